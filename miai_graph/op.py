"""What an op is: one object that says all there is to know of it, and the registry of them.

To add an op, write a class like those in `miai_graph.ops` and a row in the tests' table of samples. Users do the same
with `mg.op`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from miai_graph.context import SourceLine, user_source_line
from miai_graph.errors import ArgumentError, DTypeError, GradientError
from miai_graph.messages import describe, locates_errors
from miai_graph.node import Node, apply, functions
from miai_graph.placement import Placement, whole_batch
from miai_graph.types import TensorType, as_dtype

Array = np.ndarray[Any, np.dtype[Any]]

ops: dict[str, Op] = {}
"""All ops by name."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What computing a node once takes.

    flops : arithmetic operations; exp, log, tanh and the like count as one
    bytes : read from inputs and written to the output, if nothing is kept in caches
    """

    flops: int
    bytes: int


def moved_bytes(output: TensorType, *inputs: TensorType) -> int:
    """Each input read once and the output written once; shapes without the batch symbol."""
    return output.size_bytes + sum(type.size_bytes for type in inputs)


class Op:
    """One operation on arrays.

    A subclass defines, with the attributes of its nodes as keyword arguments:

    - ``infer(*types, **attributes)``: the type of the output. Raises `ShapeError` or `DTypeError`.
    - ``forward(*arrays, **attributes)``: the output. This is the definition, in plain NumPy; shapes among the
      attributes are integers by then. Raises ``ValueError`` or ``IndexError`` for values that the op cannot work on.
    - ``vjp(g, output, *inputs, **attributes)``: for each input the node of the vector-Jacobian product with the
      cotangent `g`, or None where the derivative is zero. Built of nodes, so it can be differentiated again.
    - ``cost(output, *types, **attributes)``: the `Cost`; the batch size is known by then.
    - ``batch(placements, output, *types, **attributes)``: the placement of the output (see `placement`).

    ``is_view`` says that forward may return a view of its first input, so that no memory is moved. ``source`` is the
    line that defined a user's op.
    """

    name: str = ""
    is_view: bool = False
    source: SourceLine | None = None
    infer: Callable[..., TensorType]
    forward: Callable[..., Array]
    vjp: Callable[..., Sequence[Node | None]]
    cost: Callable[..., Cost]
    batch: Callable[..., Placement | None]

    def __call__(self, *inputs: Any, name: str | None = None, **attributes: Any) -> Node:
        return apply(self, [as_node(value) for value in inputs], attributes, name)

    def __repr__(self) -> str:
        return f"<op {self.name}>"


OpType = TypeVar("OpType", bound=Op)


def register(op: OpType) -> OpType:
    """Enter the one object of an op in the registry."""
    if op.name in ops:
        raise ArgumentError(f"expected ops of different names; found {op.name!r} twice")
    ops[op.name] = op
    return op


FunctionType = TypeVar("FunctionType", bound=Callable[..., Any])


def register_function(function: FunctionType) -> FunctionType:
    """Make a function the one that operators and NumPy's functions of its name call on nodes."""
    telling: Any = locates_errors(function)
    functions[function.__name__.rstrip("_")] = telling
    return telling


def elementwise_cost(flops_per_element: int) -> Callable[..., Cost]:
    """The cost of an op that does the same for each element of its output."""

    def cost(self: Op, output: TensorType, *inputs: TensorType, **_: Any) -> Cost:
        return Cost(flops_per_element * output.size, moved_bytes(output, *inputs))

    return cost


def no_derivative(self: Op, g: Node, output: Node, *inputs: Node, **_: Any) -> Sequence[Node | None]:
    """The vjp of an op that is constant almost everywhere: comparisons, rounding, indices."""
    return [None] * len(inputs)


class Constant(Op):
    """An array that is part of the graph: y = value.

    Shapes: no inputs; y has the shape of the attribute `value`, which must not be changed afterwards.
    Gradient: none; there are no inputs.
    Cost: nothing.
    Batch: replicated.
    """

    name = "constant"

    def infer(self, *, value: Array) -> TensorType:
        return TensorType(as_dtype(value.dtype), value.shape)

    def forward(self, *, value: Array) -> Array:
        return value

    def vjp(self, g: Node, output: Node, *, value: Array) -> Sequence[Node | None]:
        return []

    def cost(self, output: TensorType, *, value: Array) -> Cost:
        return Cost(0, 0)

    batch = staticmethod(whole_batch("a constant"))


constant = register(Constant())


def as_node(value: Any, dtype: Any = None) -> Node:
    """The node itself, or a constant node of an array or number.

    Python floats become float32 and Python integers int64, unless `dtype` says otherwise.

    Raises
    ------
    DTypeError
        for arrays of objects, strings, complex numbers …
    """
    if isinstance(value, Node):
        return value
    array = as_array(value, dtype)
    array.setflags(write=False)
    return apply(constant, [], {"value": array})


def as_array(value: Any, dtype: Any = None, *, is_new: bool = True) -> Array:
    """An array of what users give as a constant or a first value; see `as_node`.

    Parameters
    ----------
    is_new : whether it must not be the one that was given
    """
    if type(value) is float and dtype is None:
        dtype = np.float32
    try:
        array = (np.array if is_new else np.asarray)(value, dtype=dtype, order="C")
    except (ValueError, TypeError, OverflowError) as error:
        raise DTypeError(f"expected a node, an array or a number; found {value!r} ({error})") from None
    if array.dtype.kind not in "fiubc":
        raise DTypeError(f"expected a node, an array of numbers, or a number; found {value!r}")
    as_dtype(array.dtype)
    return array


def _user_vjp_missing(self: Op, g: Node, output: Node, *inputs: Node, **_: Any) -> Sequence[Node | None]:
    raise GradientError(
        f"op {self.name} has no derivative; node {describe(output)}. "
        f"Give class {type(self).__name__} a method vjp(g, output, *inputs)"
    )


def op(definition: type) -> Op:
    """Class decorator: a user's own op, which is then called like a function.

    >>> @mg.op
    ... class softsign:
    ...     def infer(x):
    ...         return x
    ...     def forward(x):
    ...         return x / (1 + np.abs(x))
    ...     def vjp(g, output, x):
    ...         return [g / mg.square(1 + abs(x))]
    >>> y = softsign(x)

    Parameters
    ----------
    definition : a class whose functions (without ``self``) are those that `Op` names. `infer` and `forward` are
        required. Without `vjp` the op cannot be differentiated; without `cost` it counts one flop an element of its
        output; without `batch` it is not split over the batch; ``batch = mg.placement.elementwise`` says that it works
        element by element. Keyword arguments of the call become attributes, passed to each function. For executors with
        other processes, define it at the top level of a module that they can import.

    Raises
    ------
    ArgumentError
        if `infer` or `forward` is missing, or the name is that of an op of this library.
    """
    missing = [method for method in ("infer", "forward") if not callable(getattr(definition, method, None))]
    if missing:
        raise ArgumentError(
            f"expected an op class with functions infer and forward; {definition.__name__} has no "
            f"{' and no '.join(missing)}"
        )
    existing = ops.get(definition.__name__)
    if existing is not None and not isinstance(existing, _UserOp):
        raise ArgumentError(f"expected a name that no built-in op has; found {definition.__name__!r}. Rename the class")
    methods = {
        name: staticmethod(inspect.unwrap(value))
        for name in ("infer", "forward", "vjp", "cost", "batch")
        if (value := getattr(definition, name, None)) is not None
    }
    # The module and the qualified name tell other processes where to find the op.
    described = {name: getattr(definition, name) for name in ("__doc__", "__module__", "__qualname__")}
    op_class = type(definition.__name__, (_UserOp,), {**described, **methods})
    created: Op = op_class()
    created.name = definition.__name__
    created.source = user_source_line()
    ops[created.name] = created
    return created


class _UserOp(Op):
    """The defaults for what a user's op leaves out."""

    vjp = _user_vjp_missing
    cost = elementwise_cost(1)
    batch = staticmethod(whole_batch("the op states no batch rule"))
