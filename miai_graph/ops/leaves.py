"""Nodes without inputs: what is fed, what the state holds, and what the executor knows of a run.

The last kind are four numbers: the batch's global size, the size of the part of it that is computed, the global row at
which this part starts, and the step. Forward cannot know them; whoever evaluates a graph supplies them (`RUN_NUMBERS`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from miai_graph.context import current_context, unique_name
from miai_graph.errors import ArgumentError, DTypeError, ShapeError
from miai_graph.node import Node, apply
from miai_graph.op import Array, Cost, Op, as_array, register
from miai_graph.placement import LOCAL, REPLICATED, Placement, placement_of_type
from miai_graph.state import Variable, state
from miai_graph.types import BATCH, BatchDim, TensorType, as_dtype, batch_first_shape, user_shape


class Leaf(Op):
    """What nodes without inputs have in common."""

    def forward(self, **_: Any) -> Array:
        raise ArgumentError(f"the value of a node of op {self.name} is supplied from outside the graph")

    def vjp(self, g: Node, output: Node, **_: Any) -> Sequence[Node | None]:
        return []

    def cost(self, output: TensorType, **_: Any) -> Cost:
        return Cost(0, 0)

    def batch(self, placements: Sequence[Placement], output: TensorType, **_: Any) -> Placement:
        return placement_of_type(output)


class Input(Leaf):
    """An array that is fed at each call.

    Shapes: no inputs; y of the type stated, with the batch first or not at all.
    Gradient: none; there are no inputs.
    Cost: nothing.
    Batch: split if it has a batch axis, else replicated.
    """

    name = "input"

    def infer(self, *, type: TensorType) -> TensorType:
        return type


class VariableLeaf(Leaf):
    """The value of a variable, as it is before the updates of the step.

    Shapes: no inputs; y of the variable's type.
    Gradient: none; there are no inputs.
    Cost: nothing.
    Batch: replicated.
    """

    name = "variable"

    def infer(self, *, variable: Variable) -> TensorType:
        return variable.type


class RunNumber(Leaf):
    """What number-of-the-run ops have in common: int64 scalars."""

    def infer(self, **_: Any) -> TensorType:
        return TensorType(np.dtype(np.int64), ())

    def batch(self, placements: Sequence[Placement], output: TensorType, **_: Any) -> Placement:
        return REPLICATED


class BatchSize(RunNumber):
    """The number of samples in the whole batch, over all workers.

    Shapes: no inputs; y an int64 scalar.
    Gradient: none; there are no inputs.
    Cost: nothing.
    Batch: replicated: the executor knows it.
    """

    name = "batch_size"


class PartSize(RunNumber):
    """The number of samples in the part of the batch that is computed: a micro-batch, or a worker's rows.

    Shapes: no inputs; y an int64 scalar.
    Gradient: none; there are no inputs.
    Cost: nothing.
    Batch: each part has its own.
    """

    name = "part_size"

    def batch(self, placements: Sequence[Placement], output: TensorType, **_: Any) -> Placement:
        return LOCAL


class FirstRow(RunNumber):
    """The number of the first sample that this worker has, counted over the whole batch; 0 if there is one worker.

    Shapes: no inputs; y an int64 scalar.
    Gradient: none; there are no inputs.
    Cost: nothing.
    Batch: differs from worker to worker, but only random ops read it, to place their rows.
    """

    name = "first_row"


class Step(RunNumber):
    """The number of the call, from 0, which random ops take their numbers from.

    Shapes: no inputs; y an int64 scalar.
    Gradient: none; there are no inputs.
    Cost: nothing.
    Batch: replicated.
    """

    name = "step"


_input = register(Input())
_variable = register(VariableLeaf())
_batch_size = register(BatchSize())
_part_size = register(PartSize())
_first_row = register(FirstRow())
_step = register(Step())

RUN_NUMBERS = (_batch_size.name, _part_size.name, _first_row.name, _step.name)
"""The ops whose values are numbers of the run, in the order in which evaluators list them."""


def batch_size() -> Node:
    return _batch_size()


def part_size() -> Node:
    return _part_size()


def first_row() -> Node:
    return _first_row()


def step() -> Node:
    return _step()


def input(name: str, shape: Any, dtype: Any = "float32") -> Node:
    """A node to be fed.

    Parameters
    ----------
    name : says which one is meant in messages and in dictionaries of arrays; each input of a graph has its own
    shape : lengths; None as the first stands for the batch
    dtype : NumPy's, float32 by default

    Raises
    ------
    ShapeError
        for a None that is not first, or a negative length.
    DTypeError
        for complex, object and other dtypes that graphs do not know.

    >>> x = mg.input("x", shape=(None, 64))
    """
    _check_name(name)
    dims = batch_first_shape(shape)
    if dims and isinstance(dims[0], BatchDim) and dims[0] != BATCH:
        raise ShapeError(
            f"expected one row a sample in input {name!r}; found {dims[0]} in {user_shape(dims)}. Give None"
        )
    return apply(_input, [], {"type": TensorType(as_dtype(dtype), dims)}, name, exact_name=True)


def parameter(value: Any, name: str | None = None, *, dtype: Any = None) -> Node:
    """A trainable variable, with its first value. See `variable`."""
    return _new_variable(value, name, dtype, trainable=True)


def variable(value: Any, name: str | None = None, *, dtype: Any = None) -> Node:
    """A variable that optimizers leave alone, such as a moving average.

    Parameters
    ----------
    value : an array or a number, copied. Python floats become float32, integers int64.
    name : each variable of a graph has its own; within a layer, the layer's name comes before it. None makes one up
    dtype : NumPy's; that of the value by default

    Returns
    -------
    a node; ``node.value`` is a copy of the current value, `assign` sets it, and a function's `updates` do.
    """
    return _new_variable(value, name, dtype, trainable=False)


def _new_variable(value: Any, name: str | None, dtype: Any, *, trainable: bool) -> Node:
    name = name or unique_name("parameter" if trainable else "variable")
    _check_name(name)
    if isinstance(value, Node):
        raise ArgumentError(f"expected an array or a number as first value of {name!r}; found node {value.name}")
    array = as_array(value, None if dtype is None else as_dtype(dtype), is_new=False)
    if trainable and array.dtype.kind != "f":
        raise DTypeError(
            f"expected floats as value of parameter {name!r}, which is to be trained; found {array.dtype}. "
            "Give dtype='float32', or use mg.variable"
        )
    return _variable_of_type(name, TensorType(array.dtype, array.shape), array, trainable=trainable)


def variable_of_zeros(type: TensorType, name: str) -> Node:
    """A variable of a type, without the batch, that begins with zeros. See `variable`."""
    return _variable_of_type(name, type, None, trainable=False)


def _variable_of_type(name: str, type: TensorType, value: Array | None, *, trainable: bool) -> Node:
    scope = current_context().scope
    key = Variable(f"{scope}/{name}" if scope else name, type, trainable)
    state.add(key, value)
    return variable_node(key)


def variable_node(key: Variable) -> Node:
    """A node that reads the variable."""
    return apply(_variable, [], {"variable": key}, name=key.name, exact_name=True)


def assign(node: Node, value: Any) -> None:
    """Set the value of a parameter or variable, for all functions and models that use it.

    Raises
    ------
    ArgumentError
        if the node is of another kind.
    ShapeError, DTypeError
        if the value does not fit; nothing is changed then.
    """
    state.set(variable_of(node), value)


def variable_of(node: Any) -> Variable:
    """The key of a parameter or variable node."""
    if not is_variable(node):
        raise ArgumentError(f"expected a parameter or variable; found {node!r}")
    key: Variable = node.attributes["variable"]
    return key


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not name:
        raise ArgumentError(f"expected a name that is a non-empty string; found {name!r}")


def is_variable(node: Any) -> bool:
    return isinstance(node, Node) and node.op is _variable


def is_input(node: Any) -> bool:
    return isinstance(node, Node) and node.op is _input
