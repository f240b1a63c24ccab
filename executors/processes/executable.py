"""A graph that is computed by the workers of a pool, each with its rows of the batch."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, finalize

import numpy as np

from executors.planned import PlannedExecutable
from executors.processes.choice import WorkerChoice, candidates
from executors.processes.messages import (
    AreYouReady,
    DropExecutable,
    DropTable,
    NewGraph,
    NewPlan,
    NewTable,
    ResetTiming,
    TellTiming,
)
from executors.processes.pool import Pool
from executors.threads import limited_blas
from miai_graph.context import COMMUNICATION, WAIT
from miai_graph.errors import MiaiGraphError, WorkerLostError
from miai_graph.feeding import Batch, CheckedBatch, Rows, Table, check_batch
from miai_graph.graph import Graph
from miai_graph.graph_data import graph_to_data, unportable_ops
from miai_graph.messages import describe
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.ops.leaves import variable_of
from miai_graph.passes.batch_analysis import analyse_batch
from miai_graph.passes.partition import partition
from miai_graph.plan.bound import Binding, BoundPlan, positions
from miai_graph.plan.exchange import Exchange
from miai_graph.plan.parts import cut_batch, parts_of
from miai_graph.plan.program import Program, make_program
from miai_graph.state import aligned_bytes, padded, state
from miai_graph.timing import Timing, TimingRecord
from miai_graph.types import bind_type, int_dims

if TYPE_CHECKING:
    from executors.processes.executor import Processes

STAMPS_PER_NODE = 4
"""For so many times the nodes of the whole graph there is room for stamps: partitioning adds a few."""

PLACED_BYTES_LIMIT = 1 << 32
"""Arrays in memory up to this size are copied to shared memory, for batches to be rows of them there."""

_numbers = itertools.count()


@dataclass(eq=False)
class SharedPlan:
    """What worker 0 needs besides its own plan.

    Attributes
    ----------
    number : by which the other workers know the plan
    workers : how many take part
    turns, indices, stamps, slots : shared memory; see `messages.NewPlan`
    """

    number: int
    workers: int
    turns: Array
    indices: Array
    stamps: Array
    slots: tuple[list[Array], list[Array]]
    slot: int = 0
    """Which of the two is used by the current step; the next batch may be put into the other one meanwhile."""


@dataclass(frozen=True)
class Staged:
    """A batch that was put into a slot of a plan ahead of its step."""

    batch: object
    plan: BoundPlan
    slot: int


class ProcessesExecutable(PlannedExecutable):
    """Plans for each size of batch and number of workers.

    A graph that cannot be split, or that other processes cannot get, is computed by this process alone; a warning names
    the node.
    """

    def __init__(self, executor: Processes, graph: Graph, inputs: Sequence[Node]) -> None:
        super().__init__(executor, graph, inputs)
        self._owner = executor
        self._number = next(_numbers)
        with self._starting_up():
            self._splits = executor.size > 1 or executor.shards is not None
            self._is_shared = self._splits and self._can_be_shared()
            self._choices: dict[int, WorkerChoice] = {}
            self._shared: dict[BoundPlan, SharedPlan] = {}
            self._unused_numbers: list[int] = []
            self._programs: dict[int, Program] = {}
            self._pool: Pool | None = None
            self._staged: Staged | None = None
            self._finish: finalize[..., ProcessesExecutable] | None = None
            self._tables: WeakKeyDictionary[Table, tuple[int, list[Array]]] = WeakKeyDictionary()
            self._all_numbers = state.numbers(map(variable_of, self.graph.variables))

    def _can_be_shared(self) -> bool:
        """Whether workers can compute parts of the batch; a warning says why not."""
        if not any(node.type.batch_axes for node in self._inputs):
            return False
        analysis = analyse_batch(self.graph)
        reasons = {node: str(analysis.placements[node]) for node in analysis.obstacles} | dict(
            unportable_ops(self.graph)
        )
        if reasons and self._owner.size > 1:
            lines = "\n  ".join(f"{describe(node)}: {reason}" for node, reason in reasons.items())
            warnings.warn(
                f"expected a graph that workers can compute parts of; found nodes that they cannot:\n  {lines}\n"
                "  The whole graph is computed by one worker",
                stacklevel=6,
            )
        return not reasons

    def _threads(self) -> AbstractContextManager[object]:
        self._owner.check()
        return limited_blas(self._owner.threads)

    def forget_plans(self) -> None:
        """Let go of all that lies in a pool's memory."""
        self._plans.clear()
        self._shared.clear()
        self._unused_numbers.clear()
        self._tables.clear()
        self._staged = None
        self._pool = None
        if self._finish is not None:
            self._finish.detach()

    def _ready_pool(self) -> Pool:
        """The pool, which knows the graph."""
        pool = self._owner.pool()
        pool.require_idle()
        if pool is not self._pool:
            self.forget_plans()
            pool.send(NewGraph(self._number, graph_to_data(self.graph), tuple(node.name for node in self._inputs)))
            pool.add_user(self)
            self._pool = pool
            self._finish = finalize(self, _tell_dropped, pool, self._number)
        return pool

    def _workers_for(self, batch_size: int) -> int:
        if not self._is_shared:
            return 1
        choice = self._choices.get(batch_size)
        if choice is None:
            most = min(self._owner.size, batch_size)
            for size, other in self._choices.items():
                # What is too small for all workers is so for smaller batches too.
                if size >= batch_size and other.is_decided:
                    most = min(most, other.workers)
            choice = self._choices[batch_size] = WorkerChoice(candidates(most))
        return choice.workers

    def _is_stale(self, plan: BoundPlan) -> bool:
        shared = self._shared.get(plan)
        return super()._is_stale(plan) or (shared is not None and not self._owner.has(self._pool))

    def _program(self, workers: int) -> Program:
        if workers not in self._programs:
            if workers == 1 and (self._owner.shards is None or not self._is_shared):
                self._programs[1] = make_program(self.graph)
            else:
                own = partition(self.graph, 0, workers, is_reproducible=self._owner.shards is not None)
                self._programs[workers] = make_program(own.graph, own.exports, own.per_part)
        return self._programs[workers]

    def _make_plan(self, batch_size: int, workers: int) -> BoundPlan:
        variables, updated = (list(map(variable_of, nodes)) for nodes in (self.variables, self.updated))
        if self._is_shared and self._owner.size > 1:
            pool = self._ready_pool()
            pool.place(variables, updated)
        else:
            state.place(variables, updated)
        program = self._program(workers)
        if workers > 1:
            with self._ready_pool().preparing():
                return self._make_shared_plan(program, batch_size, workers)
        if self._owner.shards is None or not self._is_shared:
            return BoundPlan(program, batch_size, state, self._workspace)
        parts = cut_batch(batch_size, self._owner.shards)
        exchange = Exchange(program, batch_size, len(parts), aligned_bytes)
        return BoundPlan(program, batch_size, state, self._workspace, parts, exchange)

    def _make_shared_plan(self, program: Program, batch_size: int, workers: int) -> BoundPlan:
        pool = self._ready_pool()
        parts = cut_batch(batch_size, self._owner.shards or workers)
        memory: list[Array] = []

        def exchange_memory(size_bytes: int) -> Array:
            memory.append(pool.block("exchange", size_bytes)[:size_bytes])
            return memory[0]

        exchange = Exchange(program, batch_size, len(parts), exchange_memory)
        self._plans.pop((batch_size, workers), None)
        self._forget_unused()
        shared = self._share(pool, batch_size, workers, len(parts))
        where = pool.locate
        pool.send(
            NewPlan(
                shared.number,
                self._number,
                batch_size,
                workers,
                len(parts),
                self._owner.shards is not None,
                tuple(tuple(map(where, state.arrays(variable_of(node)))) for node in self.graph.variables),
                where(memory[0]),
                where(shared.turns),
                where(shared.indices),
                where(shared.stamps),
                tuple(tuple(map(where, slot)) for slot in shared.slots),
            )
        )
        # The others prepare theirs meanwhile.
        own = parts_of(0, workers, parts)
        plan = BoundPlan(program, batch_size, state, self._workspace, own, exchange, pool.leader.barrier)
        self._shared[plan] = shared
        pool.ask(AreYouReady())
        return plan

    def _forget_unused(self) -> None:
        """Free the numbers of plans that are not kept: the workers forget a plan when another one gets its number."""
        kept = set(self._plans.values())
        for plan in [plan for plan in self._shared if plan not in kept]:
            self._unused_numbers.append(self._shared.pop(plan).number)

    def _share(self, pool: Pool, batch_size: int, workers: int, parts: int) -> SharedPlan:
        """Memory through which a step is told."""
        types = [bind_type(node.type, batch_size) for node in self._inputs]
        stamps = workers, STAMPS_PER_NODE * len(self.graph) * parts
        sizes = [8 * len(self.graph.variables), 8 * batch_size, 8 * math.prod(stamps)]
        sizes += [type.size_bytes for type in (*types, *types)]
        block = pool.allocate(sum(map(padded, sizes)))
        arrays = []
        offset = 0
        for size in sizes:
            arrays.append(block[offset : offset + size])
            offset += padded(size)
        turns, indices, stamped, *rest = arrays
        slots = [
            slot.view(type.dtype).reshape(int_dims(type.shape))
            for slot, type in zip(rest, (*types, *types), strict=True)
        ]
        return SharedPlan(
            self._unused_numbers.pop() if self._unused_numbers else next(_numbers),
            workers,
            turns.view(np.int64),
            indices.view(np.int64),
            stamped.view(np.int64).reshape(stamps),
            (slots[: len(types)], slots[len(types) :]),
        )

    def _execute(self, plan: BoundPlan, binding: Binding, batch: CheckedBatch) -> int:
        shared = self._shared.get(plan)
        if shared is None:
            return super()._execute(plan, binding, batch)
        pool = self._pool
        assert pool is not None
        with pool.stepping():
            table = self._publish(pool, plan, shared, batch)
            ordered_ns = perf_counter_ns()
            pool.describe_work = partial(self._work_of, plan=plan, shared=shared, ordered_ns=ordered_ns)
            pool.order(shared.workers - 1, shared.number, self.step, table, ordered_ns)
            self._feed(plan, batch)
            plan.run(self.step, binding)
            done_ns = perf_counter_ns()
            pool.leader.gather()
            return perf_counter_ns() - done_ns

    def _publish(self, pool: Pool, plan: BoundPlan, shared: SharedPlan, batch: CheckedBatch) -> int:
        """Put where the workers read it which arrays hold the values, and the batch: as rows of a table, whose number
        is returned, or whole."""
        shared.turns[...] = state.versions[self._all_numbers]
        if batch.indices is not None:
            table = self._table(pool, batch)
            if table is not None:
                shared.indices[...] = batch.indices
                return table
        staged, self._staged = self._staged, None
        if staged is not None and staged.batch is batch.source and staged.plan is plan:
            shared.slot = staged.slot
        else:
            self._fill(plan, shared.slots[shared.slot], batch)
        return -1 - shared.slot

    def _fill(self, plan: BoundPlan, slot: Sequence[Array], batch: CheckedBatch) -> None:
        """Copy to shared memory what other workers need of a batch."""
        rows = slice(plan.parts[-1].rows.stop, batch.size)
        for position, (node, target) in enumerate(zip(self._inputs, slot, strict=True)):
            if node.type.batch_axes:
                batch.copy_to(position, target[rows], rows)
            else:
                batch.copy_to(position, target, None)

    def run(self, batches: Iterable[Batch]) -> Iterator[list[Array]]:
        iterator = iter(batches)
        batch, error = _next(iterator)
        with self._threads(), ThreadPoolExecutor(1) as copier:
            while batch is not None:
                upcoming, error = _next(iterator)
                staging = None
                if upcoming is not None and self._can_be_staged(upcoming):
                    staging = copier.submit(self._stage, upcoming)
                yield self._run(batch)
                self._staged = staging.result() if staging is not None else None
                batch = upcoming
        if error is not None:
            raise error

    def _can_be_staged(self, batch: Batch) -> bool:
        """Whether it has to be copied to shared memory, and there is a place already."""
        if self._pool is None or (isinstance(batch, Rows) and isinstance(batch.arrays, Table)):
            return False
        return bool(self._shared)

    def _stage(self, batch: Batch) -> Staged | None:
        """Copy a batch to shared memory while another one is computed. What is wrong with it is told when its turn
        comes."""
        try:
            checked = check_batch(self._inputs, batch)
        except MiaiGraphError:
            return None
        plan = self._plans.get((checked.size, self._workers_for(checked.size)))
        shared = None if plan is None else self._shared.get(plan)
        if plan is None or shared is None:
            return None
        slot = 1 - shared.slot
        self._fill(plan, shared.slots[slot], checked)
        return Staged(checked.source, plan, slot)

    def _table(self, pool: Pool, batch: CheckedBatch) -> int | None:
        """The number under which the workers know the arrays that a batch is rows of, if they fit in."""
        source = batch.source
        if not isinstance(source, Table):
            return None
        known = self._tables.get(source)
        if known is not None:
            return known[0]
        types = [node.type for node in self._inputs]
        sizes = [array.size * type.dtype.itemsize for array, type in zip(batch.arrays, types, strict=True)]
        if sum(sizes) > PLACED_BYTES_LIMIT:
            return None
        with self._starting_up():
            block = pool.allocate(sum(map(padded, sizes)))
            offsets = itertools.accumulate(map(padded, sizes), initial=0)
            copies = []
            for array, type, offset, size in zip(batch.arrays, types, offsets, sizes, strict=False):
                copies.append(block[offset : offset + size].view(type.dtype).reshape(array.shape))
                np.copyto(copies[-1], array, casting="same_kind")
            number = next(_numbers)
            pool.send(NewTable(number, tuple(map(pool.locate, copies))))
            self._tables[source] = number, copies
            finalize(source, _tell_table_dropped, pool, number)
        return number

    def _work_of(self, worker: int, plan: BoundPlan, shared: SharedPlan, ordered_ns: int) -> str:
        """What a worker that is gone was computing, by the stamps that it left."""
        own = partition(self.graph, worker, shared.workers, is_reproducible=self._owner.shards is not None)
        program = make_program(own.graph, own.exports, own.per_part)
        parts = parts_of(worker, shared.workers, cut_batch(plan.batch_size, self._owner.shards or shared.workers))
        nodes = [node for node, _ in positions(program, len(parts))]
        done = int(np.count_nonzero(shared.stamps[worker, : len(nodes) + 1] >= ordered_ns)) - 1
        if done < 0:
            return "before it computed its first node of the step"
        if done >= len(nodes):
            return "after it computed its last node of the step"
        node = nodes[done]
        return f"while it {'waited' if node.phase == WAIT else 'computed'} at {describe(node)}"

    def _learn(self, plan: BoundPlan, step_ns: int, waited_ns: int) -> None:
        choice = self._choices.get(plan.batch_size)
        if choice is not None:
            choice.add(step_ns / 1e9, 0.0 if choice.is_decided else _waiting(plan, waited_ns) / step_ns)

    def _records(self) -> list[TimingRecord]:
        answers = self._ask(TellTiming(self._number))
        return [*super()._records(), *(record for answer in answers for record in answer.records)]

    def _ask(self, message: Any) -> list[Any]:
        """The answers of the other workers, if there are any still."""
        self._owner.check()
        if self._pool is None or not self._owner.has(self._pool):
            return []
        try:
            return self._pool.ask(message)
        except WorkerLostError:
            return []

    @property
    def timing(self) -> Timing:
        with state.lock:
            found = super().timing
            notes = [
                f"at batch size {size}: {note}" for size, choice in self._choices.items() if (note := choice.describe())
            ]
            return Timing(found.records, found.steps, found.start_up_seconds, found.peak_bytes, notes)

    def reset_timing(self) -> None:
        with state.lock:
            super().reset_timing()
            self._owner.check()
            if self._pool is not None and self._owner.has(self._pool):
                with suppress(WorkerLostError):
                    self._pool.send(ResetTiming(self._number))


def _next(batches: Iterator[Batch]) -> tuple[Batch | None, Exception | None]:
    """The next batch, if there is one, or what was raised instead, for after the steps before."""
    try:
        return next(batches, None), None
    except Exception as error:
        return None, error


def _waiting(plan: BoundPlan, waited_ns: int) -> int:
    """The nanoseconds of the last step that went by with waiting and reducing."""
    elapsed = np.diff(plan.stamps).tolist()
    beside = (time for time, node in zip(elapsed, plan.nodes, strict=True) if node.phase in (WAIT, COMMUNICATION))
    return waited_ns + sum(beside)


def _tell_dropped(pool: Pool, number: int) -> None:
    if pool.is_open:
        pool.later(DropExecutable(number))


def _tell_table_dropped(pool: Pool, number: int) -> None:
    if pool.is_open:
        pool.later(DropTable(number))
