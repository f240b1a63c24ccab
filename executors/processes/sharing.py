"""What worker 0 shares with the others of a plan and of the data: memory through which a step is told, and tables."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary, finalize

import numpy as np

from executors.processes.messages import DropTable, NewTable
from executors.processes.pool import Pool
from miai_graph.context import WAIT
from miai_graph.feeding import CheckedBatch, Table
from miai_graph.graph import Graph
from miai_graph.messages import describe
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.plan.bound import BoundPlan
from miai_graph.plan.order import positions
from miai_graph.plan.parts import cut_batch, parts_of
from miai_graph.plan.worker_programs import WorkerPrograms
from miai_graph.state import arrays_in, block_bytes
from miai_graph.types import TensorType, bind_type

STAMPS_PER_NODE = 4
"""For so many times the nodes of the whole graph there is room for stamps: partitioning adds a few."""

PLACED_BYTES_LIMIT = 1 << 32
"""Arrays in memory up to this size are copied to shared memory, for batches to be rows of them there."""

INT64 = np.dtype(np.int64)

numbers = itertools.count()
"""By these the workers know executables, plans and tables."""


@dataclass(frozen=True, eq=False)
class SharedPlan:
    """Memory through which the steps of a plan are told; see `messages.NewPlan`.

    Attributes
    ----------
    number : by which the other workers know the plan
    workers : how many take part
    shards : the number of logical shards, if results shall be reproducible
    """

    number: int
    workers: int
    shards: int | None
    turns: Array
    indices: Array
    stamps: Array
    slots: Sequence[Sequence[Array]]

    @classmethod
    def make(
        cls,
        pool: Pool,
        number: int,
        graph: Graph,
        inputs: Sequence[Node],
        batch_size: int,
        workers: int,
        shards: int | None,
    ) -> SharedPlan:
        """New memory of a pool."""
        batch = [bind_type(node.type, batch_size) for node in inputs]
        stamps = workers, STAMPS_PER_NODE * len(graph) * len(cut_batch(batch_size, shards or workers))
        types = [TensorType(INT64, shape) for shape in ((len(graph.variables),), (batch_size,), stamps)]
        turns, indices, stamped, *slots = _arrays(pool, [*types, *batch, *batch])
        return cls(number, workers, shards, turns, indices, stamped, (slots[: len(batch)], slots[len(batch) :]))

    def fill(self, slot: int, inputs: Sequence[Node], batch: CheckedBatch) -> None:
        """Copy what the other workers need of a batch into one of the slots."""
        own = parts_of(0, self.workers, cut_batch(batch.size, self.shards or self.workers))
        rows = slice(own[-1].rows.stop, batch.size)
        for position, (node, target) in enumerate(zip(inputs, self.slots[slot], strict=True)):
            if node.type.batch_axes:
                batch.copy_to(position, target[rows], rows)
            else:
                batch.copy_to(position, target, None)

    def work_of(self, worker: int, graph: Graph, batch_size: int, ordered_ns: int) -> str:
        """What a worker that is gone was computing in the step that was ordered then, by the stamps that it left."""
        programs = WorkerPrograms(graph, worker, is_reproducible=self.shards is not None)
        parts = parts_of(worker, self.workers, cut_batch(batch_size, self.shards or self.workers))
        nodes = [node for node, _ in positions(programs.program(self.workers, batch_size), len(parts))]
        done = int(np.count_nonzero(self.stamps[worker, : len(nodes) + 1] >= ordered_ns)) - 1
        if done < 0:
            return "before it computed its first node of the step"
        if done >= len(nodes):
            return "after it computed its last node of the step"
        node = nodes[done]
        return f"while it {'waited' if node.phase == WAIT else 'computed'} at {describe(node)}"


@dataclass(frozen=True)
class Staged:
    """A batch that was put into a slot of a plan ahead of its step."""

    batch: object
    plan: BoundPlan


class Tables:
    """Arrays in memory of which batches are rows, copied once to where the workers see them, as long as they live."""

    def __init__(self, pool: Pool, inputs: Sequence[Node]) -> None:
        self._pool = pool
        self._inputs = inputs
        self._known: WeakKeyDictionary[Table, tuple[int, list[Array]]] = WeakKeyDictionary()

    def number(self, batch: CheckedBatch) -> int | None:
        """The number under which the workers know the arrays that a batch is rows of, if it is and they fit in."""
        table = batch.source
        if batch.indices is None or not isinstance(table, Table):
            return None
        known = self._known.get(table)
        if known is not None:
            return known[0]
        types = [TensorType(node.dtype, array.shape) for node, array in zip(self._inputs, batch.arrays, strict=True)]
        if sum(type.size_bytes for type in types) > PLACED_BYTES_LIMIT:
            return None
        copies = _arrays(self._pool, types)
        for copy, array in zip(copies, batch.arrays, strict=True):
            np.copyto(copy, array, casting="same_kind")
        number = next(numbers)
        self._pool.send(NewTable(number, tuple(map(self._pool.locate, copies))))
        self._known[table] = number, copies
        finalize(table, _tell_dropped, self._pool, number).atexit = False
        return number


def _tell_dropped(pool: Pool, number: int) -> None:
    if pool.is_open:
        pool.later(DropTable(number))


def _arrays(pool: Pool, types: Sequence[TensorType]) -> list[Array]:
    """Arrays of these types in one block of a pool's memory."""
    return arrays_in(pool.allocate(block_bytes(types)), types)
