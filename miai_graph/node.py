"""A node: one op applied to other nodes, with the type of the result. It never changes.

Values, gradients, buffers and times stand elsewhere (`state`, `gradient`, `plan`, `timing`). Operators and NumPy's
functions applied to a node build nodes: they look the function up by name in `functions`, which the op files fill.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import numpy as np

from miai_graph.context import SourceLine, current_context, unique_name, user_source_line
from miai_graph.errors import ArgumentError, DTypeError, GraphError
from miai_graph.messages import OTHERS_ATTRIBUTES, describe, locate_error, no_value_yet
from miai_graph.state import state
from miai_graph.types import TensorType, user_shape

functions: dict[str, Callable[..., Any]] = {}
"""The functions that build nodes, by NumPy's name for them."""

_indices = itertools.count()


class Operation(Protocol):
    """What a node needs to know of its op."""

    @property
    def name(self) -> str: ...

    @property
    def infer(self) -> Callable[..., TensorType]: ...


class Node:
    """A value in the graph. Made by ops and functions, never directly by users.

    Attributes
    ----------
    op : the op that computes the value
    inputs : the nodes it is computed from
    attributes : the op's other arguments, such as axes; read only
    type : dtype and shape, with the batch symbol
    shape : as a tuple in which None stands for a length that depends on the batch
    dtype : NumPy's
    name : unique among the nodes built since `set_seed`, with its scope: ``dense/matmul``
    scope : the layer that built it, such as ``encoder/dense``, or ""
    phase : "forward", "backward" and "recompute" (made by `grad`), "update" (made by an optimizer) or "communication"
        and "wait" (made by partitioning)
    source : the line of the user's code that built it
    call : the layer call that it is part of, or None
    index : grows in the order in which nodes are built, so inputs have smaller ones
    origin : the index of the node that it was built for: of a gradient's node that whose cotangents it computes, of a
        rewritten node that which stood there before, else its own
    """

    __slots__ = (
        "__weakref__",
        "attributes",
        "call",
        "index",
        "inputs",
        "name",
        "op",
        "origin",
        "phase",
        "scope",
        "source",
        "type",
    )

    op: Any
    inputs: tuple[Node, ...]
    attributes: Mapping[str, Any]
    type: TensorType
    name: str
    scope: str
    phase: str
    source: SourceLine | None
    call: Any
    index: int
    origin: int

    def __init__(self, **fields: Any) -> None:
        for field, value in fields.items():
            object.__setattr__(self, field, value)

    def __setattr__(self, field: str, value: Any) -> NoReturn:
        raise GraphError(
            f"expected no change of node {self.name}, for nodes never change; found an assignment to {field!r}. "
            + ("Set the variable with mg.assign(node, value)" if field == "value" else "Build a new node instead")
        )

    def __delattr__(self, field: str) -> NoReturn:
        self.__setattr__(field, None)

    @property
    def shape(self) -> tuple[int | None, ...]:
        return user_shape(self.type.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.type.dtype

    @property
    def ndim(self) -> int:
        return self.type.rank

    @property
    def value(self) -> np.ndarray[Any, np.dtype[Any]]:
        """A copy of the current value, for parameters and variables; `assign` sets it."""
        if self.op.name != "variable":
            raise no_value_yet(self, "a value", "only parameters and variables have one between runs")
        return state.get(self.attributes["variable"])

    @property
    def T(self) -> Node:
        return _call("transpose", self)

    def __repr__(self) -> str:
        return f"<{self.op.name} {self.name}: {self.type}>"

    # As of any object, though nodes compare like arrays; looked up in C.
    __hash__ = object.__hash__

    def __bool__(self) -> NoReturn:
        raise no_value_yet(self, "a truth value", "use mg.where(condition, a, b) to choose between values")

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        raise no_value_yet(self, "an array", "run it with mg.function(inputs, [node])")

    def __float__(self) -> NoReturn:
        raise no_value_yet(self, "a number", "run it with mg.function(inputs, [node])")

    __int__ = __index__ = __float__

    def __format__(self, format_spec: str) -> str:
        if format_spec:
            raise no_value_yet(self, "a formatted number", "run it with mg.function(inputs, [node])")
        return repr(self)

    if not TYPE_CHECKING:  # or else type checkers would take any attribute for one

        def __getattr__(self, name: str) -> NoReturn:
            found = OTHERS_ATTRIBUTES.get(name)
            advice = f", for it has no value before the graph runs: {found}" if found else ""
            raise AttributeError(f"a node has no attribute {name!r}{advice}")

    def __copy__(self) -> Node:
        return self

    def __reduce_ex__(self, _: Any) -> NoReturn:
        raise GraphError(
            f"expected no copy or pickle of a node, for variables are known by their nodes; found {describe(self)}. "
            "Save models with model.save, and copy them with type(model).from_config(model.get_config())"
        )

    def __len__(self) -> int:
        if not self.type.shape or self.shape[0] is None:
            raise no_value_yet(self, "a length", "mg.shape(node)[0] is the batch size as a node")
        return self.shape[0]

    def __iter__(self) -> Iterator[Node]:
        raise no_value_yet(self, "elements to iterate over", "take slices along other axes than the batch: node[:, 0]")

    def __contains__(self, _: Any) -> NoReturn:
        raise no_value_yet(self, "members", "compare element-wise: mg.equal(node, value)")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **keywords: Any) -> Any:
        if method != "__call__":
            raise ArgumentError(
                f"expected NumPy's {ufunc.__name__} to be called; found its .{method} applied to node "
                f"{self.name}. Use mg's function for it, such as mg.sum for np.add.reduce"
            )
        if keywords:
            raise ArgumentError(
                f"expected NumPy's {ufunc.__name__} without keywords, for a node; found {', '.join(keywords)}"
            )
        return _call(ufunc.__name__, *inputs)

    def __array_function__(self, function: Any, _: Any, args: Any, keywords: Any) -> Any:
        name = function.__name__
        known = functions.get(name)
        if known is not None:
            try:
                inspect.signature(known).bind(*args, **keywords)
            except TypeError as error:
                raise ArgumentError(
                    f"expected arguments of np.{name} that mg.{name}{inspect.signature(known)} takes; "
                    f"found others: {error}"
                ) from None
        return _call(name, *args, **keywords)

    def __getitem__(self, key: Any) -> Node:
        return _call("getitem", self, key)

    def astype(self, dtype: Any) -> Node:
        return _call("cast", self, dtype)

    def reshape(self, *shape: Any) -> Node:
        return _call("reshape", self, shape[0] if len(shape) == 1 else shape)

    def sum(self, axis: Any = None, keepdims: bool = False) -> Node:
        return _call("sum", self, axis, keepdims=keepdims)

    def mean(self, axis: Any = None, keepdims: bool = False) -> Node:
        return _call("mean", self, axis, keepdims=keepdims)

    def max(self, axis: Any = None, keepdims: bool = False) -> Node:
        return _call("max", self, axis, keepdims=keepdims)

    def min(self, axis: Any = None, keepdims: bool = False) -> Node:
        return _call("min", self, axis, keepdims=keepdims)

    def __add__(self, other: Any) -> Node:
        return _call("add", self, other)

    def __radd__(self, other: Any) -> Node:
        return _call("add", other, self)

    def __sub__(self, other: Any) -> Node:
        return _call("subtract", self, other)

    def __rsub__(self, other: Any) -> Node:
        return _call("subtract", other, self)

    def __mul__(self, other: Any) -> Node:
        return _call("multiply", self, other)

    def __rmul__(self, other: Any) -> Node:
        return _call("multiply", other, self)

    def __truediv__(self, other: Any) -> Node:
        return _call("divide", self, other)

    def __rtruediv__(self, other: Any) -> Node:
        return _call("divide", other, self)

    def __pow__(self, other: Any) -> Node:
        return _call("power", self, other)

    def __rpow__(self, other: Any) -> Node:
        return _call("power", other, self)

    def __matmul__(self, other: Any) -> Node:
        return _call("matmul", self, other)

    def __rmatmul__(self, other: Any) -> Node:
        return _call("matmul", other, self)

    def __neg__(self) -> Node:
        return _call("negative", self)

    def __pos__(self) -> Node:
        return self

    def __abs__(self) -> Node:
        return _call("absolute", self)

    def __invert__(self) -> Node:
        return _call_on_bools("logical_not", self)

    def __and__(self, other: Any) -> Node:
        return _call_on_bools("logical_and", self, other)

    def __rand__(self, other: Any) -> Node:
        return _call_on_bools("logical_and", other, self)

    def __or__(self, other: Any) -> Node:
        return _call_on_bools("logical_or", self, other)

    def __ror__(self, other: Any) -> Node:
        return _call_on_bools("logical_or", other, self)

    def __eq__(self, other: object) -> Node:  # type: ignore[override]
        return _call("equal", self, other)

    def __ne__(self, other: object) -> Node:  # type: ignore[override]
        return _call("not_equal", self, other)

    def __lt__(self, other: Any) -> Node:
        return _call("less", self, other)

    def __le__(self, other: Any) -> Node:
        return _call("less_equal", self, other)

    def __gt__(self, other: Any) -> Node:
        return _call("greater", self, other)

    def __ge__(self, other: Any) -> Node:
        return _call("greater_equal", self, other)


def _call(name: str, *args: Any, **keywords: Any) -> Any:
    if name not in functions:
        raise ArgumentError(
            f"expected a NumPy function that builds nodes; found {name}. There are: {', '.join(sorted(functions))}"
        )
    return functions[name](*args, **keywords)


def _call_on_bools(name: str, *args: Any) -> Any:
    """The operators & | ~ work on bits in NumPy; on bool that is what the logical functions do."""
    numbers = [node for node in args if isinstance(node, Node) and node.dtype != np.dtype(bool)]
    if numbers:
        raise DTypeError(
            f"expected bool for the operators &, | and ~; found {describe(numbers[0])}. "
            f"Use mg.{name} for numbers that are not 0"
        )
    return _call(name, *args)


def apply(
    op: Operation,
    inputs: Sequence[Node],
    attributes: Mapping[str, Any] | None = None,
    name: str | None = None,
    *,
    exact_name: bool = False,
) -> Node:
    """Build the node of `op` on `inputs`.

    Its name is made from `name`, or the op's, with the scope before it and a number behind it if it is taken; with
    `exact_name` it is `name`.

    Raises
    ------
    GraphError
        of the kind that the op's `infer` raises, with the inputs' types and lines added.
    """
    context = current_context()
    source = context.source or user_source_line()
    attributes = attributes or {}
    try:
        type = op.infer(*(node.type for node in inputs), **attributes)
    except GraphError as error:
        locate_error(error, op.name, inputs, context.scope, source)
        raise
    full_name = name or op.name
    if not exact_name:
        full_name = unique_name(f"{context.scope}/{full_name}" if context.scope else full_name)
    index = next(_indices)
    return Node(
        op=op,
        inputs=tuple(inputs),
        attributes=MappingProxyType(dict(attributes)),
        type=type,
        name=full_name,
        scope=context.scope,
        phase=context.phase,
        source=source,
        call=context.call,
        index=index,
        origin=index if context.origin is None else context.origin,
    )


def reapply(node: Node, inputs: Sequence[Node], attributes: Mapping[str, Any] | None = None) -> Node:
    """The node over other inputs (or attributes), with the same name, scope, phase and line: what rewrites build."""
    types = [source.type for source in inputs]
    if attributes is None and types == [source.type for source in node.inputs]:
        return _for(node, node.op, inputs, node.attributes, node.type, node.name, node.phase)
    attributes = MappingProxyType(dict(node.attributes if attributes is None else attributes))
    return _for(node, node.op, inputs, attributes, node.op.infer(*types, **attributes), node.name, node.phase)


def derive(node: Node, op: Operation, inputs: Sequence[Node], attributes: Mapping[str, Any], phase: str) -> Node:
    """A node of another op that stands for something of `node`, and is named after it: what partitioning puts in."""
    type = op.infer(*(source.type for source in inputs), **attributes)
    return _for(node, op, inputs, MappingProxyType(dict(attributes)), type, f"{node.name}/{op.name}", phase)


def _for(
    node: Node,
    op: Operation,
    inputs: Sequence[Node],
    attributes: Mapping[str, Any],
    type: TensorType,
    name: str,
    phase: str,
) -> Node:
    return Node(
        op=op,
        inputs=tuple(inputs),
        attributes=attributes,
        type=type,
        name=name,
        scope=node.scope,
        phase=phase,
        source=node.source,
        call=node.call,
        index=next(_indices),
        origin=node.origin,
    )
