"""How parts of a batch come together again: what partitioning puts into a graph (see `passes.partition`).

A graph with these ops is that of one worker. Each worker computes with its own rows, writes what it owes into memory
that all can read, waits at a barrier, and reduces what it needs. Forward says what that comes to for a worker who is
alone. They are put in after all gradients are taken, so they have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from miai_graph.errors import GradientError
from miai_graph.messages import describe
from miai_graph.node import Node
from miai_graph.op import Array, Cost, Op, elementwise_cost, register
from miai_graph.placement import whole_batch
from miai_graph.types import Shape, TensorType

NOTHING = TensorType(np.dtype(bool), (0,))
"""The type of what is done for its effect."""


class Communication(Op):
    """What these ops have in common."""

    batch = staticmethod(whole_batch("it is one worker's part already"))

    def vjp(self, g: Node, output: Node, *inputs: Node, **_: Any) -> Sequence[Node | None]:
        raise GradientError(
            f"expected derivatives to be taken before a graph is partitioned; found {describe(output)}. "
            "Call grad on the whole graph"
        )


class Barrier(Communication):
    """Wait until all workers have computed the inputs.

    Shapes: x… any; y has no elements.
    Gradient: none; taken before.
    Cost: nothing; waiting is not work.
    Batch: that of one worker.
    """

    name = "barrier"

    def infer(self, *types: TensorType) -> TensorType:
        return NOTHING

    def forward(self, *arrays: Array) -> Array:
        return np.empty(0, bool)

    def cost(self, output: TensorType, *inputs: TensorType) -> Cost:
        return Cost(0, 0)


class AllReduce(Communication):
    """The sum, maximum or minimum of what all workers have: y = ⊕ x over the workers.

    Shapes: x any, the barrier after which it is there; y that of x.
    Gradient: none; taken before.
    Cost: one flop an element, for each worker beyond the first.
    Batch: that of one worker.
    Care: in the order of a binary tree over the parts of the batch, which does not depend on who computed them.
    """

    name = "all_reduce"

    def infer(self, x: TensorType, barrier: TensorType, *, reduction: str) -> TensorType:
        return x

    def forward(self, x: Array, barrier: Array, *, reduction: str) -> Array:
        return x

    cost = elementwise_cost(1)


class ReduceScatter(Communication):
    """A worker's slice of the reduction: y = (⊕ x over the workers), as one row, from start to stop.

    Shapes: x any, the barrier after which it is there; y [stop - start].
    Gradient: none; taken before.
    Cost: one flop an element of y, for each worker beyond the first.
    Batch: that of one worker.
    Source: as in ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054, section 5), each worker reduces what it updates.
    """

    name = "reduce_scatter"

    def infer(self, x: TensorType, barrier: TensorType, *, reduction: str, start: int, stop: int) -> TensorType:
        return x.with_shape((stop - start,))

    def forward(self, x: Array, barrier: Array, *, reduction: str, start: int, stop: int) -> Array:
        return x.reshape(-1)[start:stop]

    cost = elementwise_cost(1)


class AllGather(Communication):
    """The whole of which each worker has a slice: y = the slices of all workers, one after another.

    Shapes: x [stop - start], where it stands in the whole as one row; y `shape`.
    Gradient: none; taken before.
    Cost: nothing; each worker writes its slice where the whole will be.
    Batch: that of one worker.
    """

    name = "all_gather"

    def infer(self, x: TensorType, *, shape: Shape, start: int) -> TensorType:
        return x.with_shape(shape)

    def forward(self, x: Array, *, shape: tuple[int, ...], start: int) -> Array:
        if x.size != np.prod(shape):
            raise ValueError(f"expected the whole of {list(shape)}, for there are no other workers; found {x.size}")
        return x.reshape(shape)

    def cost(self, output: TensorType, x: TensorType, **_: Any) -> Cost:
        return Cost(0, 0)


class GatherRows(Communication):
    """The rows of all workers: y = the x of all workers, one after another.

    Shapes: x [rows of the worker's part, …], the barrier after which it is there; y [rows of the batch, …].
    Gradient: none; taken before.
    Cost: nothing; each worker writes its rows where the whole is.
    Batch: that of one worker.
    """

    name = "gather_rows"

    def infer(self, x: TensorType, barrier: TensorType) -> TensorType:
        return x

    def forward(self, x: Array, barrier: Array) -> Array:
        return x

    def cost(self, output: TensorType, *inputs: TensorType) -> Cost:
        return Cost(0, 0)


class RowsOfColumns(Communication):
    """A worker's rows of a matrix of which each worker has computed some columns.

    Shapes: x [rows of the batch, columns of the worker], the barrier after which those of all are there; y [rows of the
        worker's part, `columns`].
    Gradient: none; taken before.
    Cost: nothing; each worker writes its columns where the whole is.
    Batch: that of one worker.
    """

    name = "rows_of_columns"

    def infer(self, x: TensorType, barrier: TensorType, *, columns: int, start: int) -> TensorType:
        return x.with_shape((x.shape[0], columns))

    def forward(self, x: Array, barrier: Array, *, columns: int, start: int) -> Array:
        if x.shape[1] != columns:
            raise ValueError(f"expected all {columns} columns, for there are no other workers; found {x.shape[1]}")
        return x

    def cost(self, output: TensorType, *inputs: TensorType, **_: Any) -> Cost:
        return Cost(0, 0)


class Send(Communication):
    """Give a value to another stage of a pipeline, and do not wait.

    Shapes: x any; y has no elements.
    Gradient: none; taken before.
    Cost: no flops; the bytes of x.
    Batch: that of one stage.
    """

    name = "send"

    def infer(self, x: TensorType, *, stage: int, value: int) -> TensorType:
        return NOTHING

    def forward(self, x: Array, *, stage: int, value: int) -> Array:
        return np.empty(0, bool)

    cost = elementwise_cost(0)


class Receive(Communication):
    """A value that another stage of a pipeline sends, waited for if need be.

    Shapes: no inputs; y of the type stated.
    Gradient: none; taken before.
    Cost: nothing; waiting is not work.
    Batch: that of one stage.
    """

    name = "receive"

    def infer(self, *, type: TensorType, stage: int, value: int) -> TensorType:
        return type

    def forward(self, *, type: TensorType, stage: int, value: int) -> Array:
        raise ValueError(f"expected stage {stage} to send the value; found no other stages")

    def cost(self, output: TensorType, **_: Any) -> Cost:
        return Cost(0, 0)


class Contribute(Communication):
    """Give what is owed to reductions to the other replicas of this stage, and do not wait.

    Shapes: x… any; y has no elements.
    Gradient: none; taken before.
    Cost: no flops; the bytes of x.
    Batch: that of one replica.
    """

    name = "contribute"

    def infer(self, *types: TensorType) -> TensorType:
        return NOTHING

    def forward(self, *arrays: Array) -> Array:
        return np.empty(0, bool)

    cost = elementwise_cost(0)


class AwaitCommit(Communication):
    """Wait until the step before is done on all hosts, and holds: before that, nothing of it may be overwritten.

    Shapes: no inputs; y has no elements.
    Gradient: none; it is put in after all gradients are taken.
    Cost: nothing; waiting is not work.
    Batch: that of one stage.
    """

    name = "await_commit"

    def infer(self) -> TensorType:
        return NOTHING

    def forward(self) -> Array:
        return np.empty(0, bool)

    def cost(self, output: TensorType) -> Cost:
        return Cost(0, 0)


_barrier = register(Barrier())
_all_reduce = register(AllReduce())
_reduce_scatter = register(ReduceScatter())
_all_gather = register(AllGather())
_gather_rows = register(GatherRows())
_rows_of_columns = register(RowsOfColumns())
_send = register(Send())
_receive = register(Receive())
_contribute = register(Contribute())
_await_commit = register(AwaitCommit())

EFFECTS = (_barrier, _send, _contribute, _await_commit)
"""The ops that are there for what they do, not for a value."""

FROM_ALL = (_gather_rows, _rows_of_columns)
"""The ops that read what all workers have written, and compute nothing: there when the barrier, their last input, is
passed."""
