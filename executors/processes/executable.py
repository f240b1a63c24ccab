"""A graph that is computed by the workers of a pool, each with its rows of the batch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from time import perf_counter_ns
from typing import TYPE_CHECKING
from weakref import finalize

import numpy as np

from executors.planned import PlannedExecutable
from executors.processes.choice import WorkerChoice, candidates
from executors.processes.messages import (
    AreYouReady,
    DropExecutable,
    NewBinding,
    NewGraph,
    NewPlan,
    ResetTiming,
    TellTiming,
)
from executors.processes.pool import Pool
from executors.processes.sharing import SharedPlan, Staged, Tables, numbers
from executors.splitting import analyse_parts
from executors.threads import blas_threads, can_limit, kernel_threads, limited_blas
from miai_graph.context import COMMUNICATION, WAIT
from miai_graph.errors import MiaiGraphError, WorkerLostError
from miai_graph.feeding import Batch, CheckedBatch, Rows, Table, check_batch
from miai_graph.graph import Graph
from miai_graph.graph_data import graph_to_data
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.ops.leaves import variable_of
from miai_graph.plan.binding import Binding
from miai_graph.plan.bound import BoundPlan
from miai_graph.plan.exchange import Exchange
from miai_graph.plan.memory import Workspace
from miai_graph.plan.parts import cut_batch, parts_of
from miai_graph.plan.program import Program, make_program
from miai_graph.plan.worker_programs import WorkerPrograms
from miai_graph.state import aligned_bytes, state
from miai_graph.timing import TimedWorker
from miai_graph.timing.recorder import Timed

if TYPE_CHECKING:
    from executors.processes.executor import Processes


MOST_NODES_ALONE = 400
"""A larger graph takes longer to prepare than workers take to start, and would be prepared twice: for this process
alone, and for all."""


class ProcessesExecutable(PlannedExecutable):
    """Plans for each size of batch and number of workers.

    A graph that cannot be split, or that other processes cannot get, is computed by this process alone; a warning names
    the node.
    """

    # Each worker has but its share of a batch, so reading it again costs less than making it again.
    _saves_memory = False

    def __init__(self, executor: Processes, graph: Graph, inputs: Sequence[Node]) -> None:
        super().__init__(executor, graph, inputs, is_reproducible=executor.shards is not None)
        self._owner = executor
        self._number = next(numbers)
        with self._starting_up():
            has_parts = executor.size > 1 or executor.shards is not None
            consequence = "The whole graph is computed by one worker" if executor.size > 1 else None
            self._analysis = analyse_parts(self.graph, inputs, consequence) if has_parts else None
            self._is_shared = self._analysis is not None
            self._kernel_threads = self._threads_of_kernels()
            self._choices: dict[int, WorkerChoice] = {}
            self._is_alone = False
            self._steps_alone = 0
            self._shared: dict[BoundPlan, SharedPlan] = {}
            self._unused_numbers: list[int] = []
            self._whole_program: Program | None = None
            self._shown: Program | None = None
            self._programs = (
                WorkerPrograms(self.graph, 0, is_reproducible=executor.shards is not None, analysis=self._analysis)
                if self._analysis is not None
                else None
            )
            self._pool: Pool | None = None
            self._staged: Staged | None = None
            self._finish: finalize[..., ProcessesExecutable] | None = None
            self._slot = 0
            self._tables: Tables | None = None
            self._all_numbers = state.numbers(map(variable_of, self.graph.variables))

    def _threads(self) -> AbstractContextManager[object]:
        self._owner.check()
        if self._owner.shards is not None or (self._kernel_threads or 1) > 1:
            return limited_blas(1)
        return limited_blas(self._owner.threads) if self._is_shared else nullcontext()

    def _thread_count(self) -> int:
        if self._owner.shards is not None or self._is_shared:
            return self._owner.threads
        return self._kernel_threads or blas_threads()

    def _threads_of_kernels(self) -> int | None:
        """Those of each worker. What this process computes alone may have all cores, unless bits count."""
        if self._owner.shards is not None or not can_limit():
            return None
        return self._owner.threads if self._is_shared else kernel_threads()

    def forget_plans(self) -> None:
        """Let go of all that lies in a pool's memory."""
        self._plans.clear()
        self._shared.clear()
        self._unused_numbers.clear()
        self._tables = None
        self._staged = None
        self._pool = None
        if self._finish is not None:
            self._finish.detach()

    def _ready_pool(self, batch_size: int) -> Pool:
        """The pool, which knows the graph."""
        pool = self._owner.pool()
        pool.require_idle()
        if pool is not self._pool:
            self.forget_plans()
            # That of a plan for this process alone is larger than what its share of a batch needs.
            self._workspace, self._peak_bytes = Workspace(), 0
            names = tuple(node.name for node in self._inputs)
            is_reproducible = self._owner.shards is not None
            pool.send(
                NewGraph(self._number, graph_to_data(self.graph), names, pool.workers, batch_size, is_reproducible)
            )
            self._pool = pool
            self._tables = Tables(pool, self._inputs)
            self._finish = finalize(self, _tell_dropped, pool, self._number)
        return pool

    def _is_starting(self) -> bool:
        """Whether this process computes alone, for the others have not started yet."""
        is_soon_ready = self._is_shared and len(self.graph) <= MOST_NODES_ALONE
        return is_soon_ready and self._pool is None and self._owner.is_starting()

    def _workers_for(self, batch_size: int) -> int:
        self._is_alone = self._is_starting()
        if not self._is_shared or self._is_alone:
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

    def _program(self, workers: int, batch_size: int) -> Program:
        if self._programs is not None and (workers > 1 or self._owner.shards is not None):
            self._shown = self._programs.program(workers, batch_size)
            return self._shown
        if self._whole_program is None:
            self._whole_program = make_program(self.graph)
        return self._whole_program

    def _shown_program(self) -> Program:
        return self._shown or self._program(1, 1)

    def _make_plan(self, batch_size: int, workers: int) -> BoundPlan:
        variables, updated = (list(map(variable_of, nodes)) for nodes in (self.variables, self.updated))
        pool = self._owner.pool() if self._is_shared and self._owner.size > 1 else None
        if pool is not None:
            pool.require_idle()
            pool.add_user(self)
            pool.place(variables, updated)
        else:
            state.place(variables, updated)
        program = self._program(workers, batch_size)
        if workers > 1:
            with self._ready_pool(batch_size).preparing():
                return self._make_shared_plan(program, batch_size, workers)
        if self._owner.shards is None or not self._is_shared:
            return BoundPlan(program, batch_size, state, self._workspace, threads=self._kernel_threads)
        parts = cut_batch(batch_size, self._owner.shards)
        exchange = Exchange(program, batch_size, len(parts), aligned_bytes)
        return BoundPlan(program, batch_size, state, self._workspace, parts, exchange)

    def _make_shared_plan(self, program: Program, batch_size: int, workers: int) -> BoundPlan:
        pool = self._ready_pool(batch_size)
        parts = cut_batch(batch_size, self._owner.shards or workers)
        memory: list[Array] = []

        def exchange_memory(size_bytes: int) -> Array:
            memory.append(pool.block("exchange", size_bytes)[:size_bytes])
            return memory[0]

        exchange = Exchange(program, batch_size, len(parts), exchange_memory)
        self._plans.pop((batch_size, workers), None)
        self._forget_unused()
        number = self._unused_numbers.pop() if self._unused_numbers else next(numbers)
        shared = SharedPlan.make(pool, number, self.graph, self._inputs, batch_size, workers, self._owner.shards)
        where = pool.locate
        places = [state.arrays(variable_of(node)) for node in self.graph.variables]
        pool.send(
            NewPlan(
                shared.number,
                self._number,
                batch_size,
                workers,
                len(parts),
                tuple((where(even), where(odd)) for even, odd in places),
                where(memory[0]),
                where(shared.turns),
                where(shared.indices),
                where(shared.stamps),
                self._kernel_threads,
                tuple(tuple(map(where, slot)) for slot in shared.slots),
            )
        )
        # The others prepare theirs meanwhile.
        own = parts_of(0, workers, parts)
        threads, barrier = self._kernel_threads, pool.leader.barrier
        plan = BoundPlan(program, batch_size, state, self._workspace, own, exchange, barrier, threads=threads)
        self._shared[plan] = shared
        pool.ask(AreYouReady())
        return plan

    def _bind(self, plan: BoundPlan, turns: int) -> Binding:
        shared = self._shared.get(plan)
        if shared is not None and self._pool is not None:
            # The others do the same meanwhile.
            self._pool.send(NewBinding(shared.number, state.versions[self._all_numbers]))
        return super()._bind(plan, turns)

    def _forget_unused(self) -> None:
        """Free the numbers of plans that are not kept: the workers forget a plan when another one gets its number."""
        kept = set(self._plans.values())
        for plan in [plan for plan in self._shared if plan not in kept]:
            self._unused_numbers.append(self._shared.pop(plan).number)

    def _execute(
        self, plan: BoundPlan, binding: Binding, batch: CheckedBatch, step: int, number: int, is_traced: bool
    ) -> int:
        shared = self._shared.get(plan)
        if shared is None:
            self._steps_alone += self._is_alone
            return super()._execute(plan, binding, batch, step, number, is_traced)
        pool = self._pool
        assert pool is not None
        with pool.stepping():
            source = self._publish(shared, plan, batch)
            ordered_ns = perf_counter_ns()
            pool.describe_work = partial(
                shared.work_of, graph=self.graph, batch_size=plan.batch_size, ordered_ns=ordered_ns
            )
            pool.order(shared.workers - 1, shared.number, step, source, ordered_ns, number, is_traced)
            self._feed(plan, batch)
            plan.run(step, binding)
            done_ns = perf_counter_ns()
            pool.leader.gather()
            return perf_counter_ns() - done_ns

    def _publish(self, shared: SharedPlan, plan: BoundPlan, batch: CheckedBatch) -> int:
        """Put where the workers read it which arrays hold the values, and the batch: as rows of a table, whose number
        is returned, or whole, in a slot, which is counted from -1 down."""
        assert self._tables is not None
        shared.turns[...] = state.versions[self._all_numbers]
        table = self._tables.number(batch)
        if table is not None:
            shared.indices[...] = batch.indices
            return table
        staged = self._staged
        if staged is None or staged.batch is not batch.source or staged.plan is not plan:
            shared.fill(self._slot, self._inputs, batch)
        return -1 - self._slot

    def run(self, batches: Iterable[Batch]) -> Iterator[list[Array]]:
        iterator = iter(batches)
        batch, error = _next(iterator)
        with self._threads(), ThreadPoolExecutor(1) as copier:
            while batch is not None:
                upcoming, error = _next(iterator)
                staging = None
                if upcoming is not None and self._shared and not _is_of_table(upcoming):
                    # Into the slot that the current batch does not use.
                    staging = copier.submit(self._stage, upcoming, 1 - self._slot)
                yield self._run(batch)
                self._staged = staging.result() if staging is not None else None
                self._slot = 1 - self._slot
                batch = upcoming
        if error is not None:
            raise error

    def _stage(self, batch: Batch, slot: int) -> Staged | None:
        """Copy a batch to shared memory while another one is computed. What is wrong with it is told when its turn
        comes."""
        if self._pool is None:
            return None
        try:
            checked = check_batch(self._inputs, batch)
        except MiaiGraphError:
            return None
        plan = self._plans.get((checked.size, self._workers_for(checked.size)))
        shared = None if plan is None else self._shared.get(plan)
        if plan is None or shared is None:
            return None
        shared.fill(slot, self._inputs, checked)
        return Staged(checked.source, plan)

    def warmup(self, batch_size: int) -> None:
        with state.lock:
            if self._is_starting():
                self._owner.pool().ask(AreYouReady())
        super().warmup(batch_size)

    def _learn(self, plan: BoundPlan, step_ns: int, waited_ns: int) -> None:
        choice = self._choices.get(plan.batch_size)
        if choice is not None and choice.workers == self._workers_of(plan):
            choice.add(step_ns / 1e9, 0.0 if choice.is_decided else _waiting(plan, waited_ns) / step_ns)

    def _workers_of(self, plan: BoundPlan) -> int:
        shared = self._shared.get(plan)
        return 1 if shared is None else shared.workers

    def _usable_pool(self) -> Pool | None:
        """The pool that knows the graph, if its workers are there still."""
        self._owner.check()
        return self._pool if self._pool is not None and self._owner.has(self._pool) else None

    def _others(self) -> Sequence[Timed]:
        pool = self._usable_pool()
        try:
            return [] if pool is None else pool.ask(TellTiming(self._number))
        except WorkerLostError:
            return []

    def _timed_workers(self) -> list[TimedWorker]:
        (own,) = super()._timed_workers()
        pool = self._usable_pool()
        others = [] if pool is None else pool.processes
        return [own, *(replace(own, index=place + 1, pid=other.pid) for place, other in enumerate(others))]

    def _notes(self) -> list[str]:
        notes = [self._owner.summary if self._is_shared else "computed by one worker, as a whole"]
        if self._steps_alone:
            steps = "one step was" if self._steps_alone == 1 else f"{self._steps_alone} steps were"
            notes.append(f"{steps} computed by one worker, while the others started")
        return notes + [
            f"at batch size {size}: {note}" for size, choice in self._choices.items() if (note := choice.describe())
        ]

    def reset_timing(self, trace_steps: Collection[int] = ()) -> None:
        with state.lock:
            super().reset_timing(trace_steps)
            self._steps_alone = 0
            pool = self._usable_pool()
            if pool is not None:
                with suppress(WorkerLostError):
                    pool.send(ResetTiming(self._number))


def _next(batches: Iterator[Batch]) -> tuple[Batch | None, Exception | None]:
    """The next batch, if there is one, or what was raised instead, for after the steps before."""
    try:
        return next(batches, None), None
    except Exception as error:
        return None, error


def _is_of_table(batch: Batch) -> bool:
    return isinstance(batch, Rows) and isinstance(batch.arrays, Table)


def _waiting(plan: BoundPlan, waited_ns: int) -> int:
    """The nanoseconds of the last step that went by with waiting and reducing."""
    elapsed = np.diff(plan.stamps).tolist()
    beside = (time for time, node in zip(elapsed, plan.nodes, strict=True) if node.phase in (WAIT, COMMUNICATION))
    return waited_ns + sum(beside)


def _tell_dropped(pool: Pool, number: int) -> None:
    if pool.is_open:
        pool.later(DropExecutable(number))
