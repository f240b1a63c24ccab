"""What executables have in common that compute by plans: one plan for each size of batch, and records of the time."""

from __future__ import annotations

import os
import socket
from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from time import perf_counter_ns
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from executors.threads import blas_threads, limited_blas
from miai_graph.executor import Executable, Executor, VariableValues
from miai_graph.feeding import EVERY_ROW, Batch, CheckedBatch, check_inputs
from miai_graph.garbage import no_search_for_garbage
from miai_graph.graph import Graph
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.ops.leaves import variable_of
from miai_graph.passes.pooled_masks import mask_pooled
from miai_graph.passes.second_computation import compute_again
from miai_graph.passes.simplify import simplify
from miai_graph.plan.binding import Binding
from miai_graph.plan.bound import BoundPlan
from miai_graph.plan.memory import Workspace
from miai_graph.plan.program import Program
from miai_graph.plan.row_feed import BatchCheck, RowFeed
from miai_graph.plan.text import format_program
from miai_graph.state import state
from miai_graph.timing import TimedWorker, Timing
from miai_graph.timing.booking import with_idle
from miai_graph.timing.peaks import known_peaks
from miai_graph.timing.recorder import Recorder, Timed, timed_by
from miai_graph.timing.traces import TraceChoice, make_slices

PLANS_LIMIT = 64
"""For how many batch sizes an executable keeps its plans."""


class PlannedExecutable(Executable):
    """A graph with a plan for each batch size that it has met.

    Parameters
    ----------
    is_reproducible : whether results must be the same to the last bit on all executors

    Attributes
    ----------
    graph : what it computes, simplified
    variables, updated : the nodes of those that it reads or updates, and of those that it updates
    """

    _saves_memory = True
    """Whether what normalizations make of large values is made again in the backward pass, instead of being kept."""

    def __init__(
        self, executor: Executor, graph: Graph, inputs: Sequence[Node], *, is_reproducible: bool = False
    ) -> None:
        self._start_up_ns = 0
        with self._starting_up():
            check_inputs(graph, inputs)
            self._executor = executor
            self._inputs = tuple(inputs)
            self._check_batch = BatchCheck(inputs)
            self.variables = graph.variables
            self.updated = tuple(graph.updates)
            # Results of reproducible executors are those of hosts, where a layer and its pooling may lie apart.
            masked = mask_pooled(simplify(graph), moves_sums=not is_reproducible)
            self.graph = compute_again(masked) if self._saves_memory else masked
            self._variables = tuple(map(variable_of, self.variables))
            self._updated = tuple(map(variable_of, self.updated))
            self._counter = state.new_number()
            self._committed = np.append(state.numbers(map(variable_of, self.updated)), self._counter)
            self._plans: dict[tuple[int, int], BoundPlan] = {}
            self._row_feeds: WeakKeyDictionary[BoundPlan, RowFeed] = WeakKeyDictionary()
            self._workspace = Workspace()
            self._recorders: dict[Any, Recorder] = {}
            self._peak_bytes = 0
            self._traced = TraceChoice()

    @abstractmethod
    def _make_plan(self, batch_size: int, workers: int) -> BoundPlan:
        """The plan of this process for batches of one size and a number of workers."""

    @abstractmethod
    def _shown_program(self) -> Program:
        """What this process runs."""

    @property
    def kernels(self) -> str:
        return format_program(self._shown_program())

    def _workers_for(self, batch_size: int) -> int:
        """How many workers are to compute a batch."""
        return 1

    def _workers_of(self, plan: BoundPlan) -> int:
        """How many workers run a plan."""
        return 1

    def _is_stale(self, plan: BoundPlan) -> bool:
        """Whether it has to be made again."""
        return plan.state_generation != state.generation

    def _threads(self) -> AbstractContextManager[object]:
        """Within it BLAS has as many threads as it should."""
        return nullcontext()

    def _thread_count(self) -> int:
        """How many threads compute in this process."""
        return blas_threads()

    def __call__(self, *arrays: Any) -> list[Array]:
        with self._threads():
            return self._run(arrays)

    def run(self, batches: Iterable[Batch]) -> Iterator[list[Array]]:
        with self._threads():
            for batch in batches:
                yield self._run(batch)

    def warmup(self, batch_size: int) -> None:
        with self._threads(), state.lock:
            self._plan(batch_size)

    def _run(self, batch: Batch) -> list[Array]:
        self._executor.require_open()
        # Held for the whole step: another thread must neither move the values nor change them meanwhile.
        with state.lock:
            start_ns = perf_counter_ns()
            checked = self._check_batch(batch)
            state.require_home(self._variables)
            state.about_to_change(self._updated)
            planning_ns = -self._start_up_ns
            plan = self._plan(checked.size)
            binding = self._binding(plan)
            planning_ns += self._start_up_ns
            step = self.step
            number = step - self._traced.first
            is_traced = self._traced.takes(number, len(plan.nodes) * self._workers_of(plan))
            waited_ns = self._execute(plan, binding, checked, step, number, is_traced)
            results = [array.copy() for array in binding.outputs]
            state.commit(self._committed)
            end_ns = perf_counter_ns()
            plan.recorder.add(start_ns + planning_ns, plan.stamps, end_ns, 0, waited_ns, number, is_traced)
            if not planning_ns:
                self._learn(plan, end_ns - start_ns, waited_ns)
            return results

    def _execute(
        self, plan: BoundPlan, binding: Binding, batch: CheckedBatch, step: int, number: int, is_traced: bool
    ) -> int:
        """Feed a batch and compute. Returns the time it waited after that, in nanoseconds.

        Parameters
        ----------
        number, is_traced : of the step, since timing began, and whether all workers keep its trace
        """
        self._feed(plan, batch)
        plan.run(step, binding)
        return 0

    def _learn(self, plan: BoundPlan, step_ns: int, waited_ns: int) -> None:
        """Take note of how long a step took for which everything had been prepared."""

    def _feed(self, plan: BoundPlan, batch: CheckedBatch) -> None:
        if batch.indices is not None and batch.indices is self._check_batch.numbers:
            self._row_feed(plan, batch.indices)(batch.arrays)
            return
        for position, node in enumerate(self._inputs):
            target = plan.feeds.get(node)
            if target is not None:
                batch.copy_to(position, target, EVERY_ROW if node.type.batch_axes else None)
                continue
            for part, feeds in zip(plan.parts, plan.part_feeds, strict=True):
                if node in feeds:
                    batch.copy_to(position, feeds[node], part.rows)

    def _row_feed(self, plan: BoundPlan, indices: Array) -> RowFeed:
        """What copies the rows with these numbers."""
        feed = self._row_feeds.get(plan)
        if feed is None or feed.numbers is not indices:
            feed = self._row_feeds[plan] = RowFeed(plan, self._inputs, indices)
        return feed

    @property
    def step(self) -> int:
        return int(state.versions[self._counter])

    @step.setter
    def step(self, step: int) -> None:
        self._traced.first += step - self.step
        state.versions[self._counter] = step

    def _plan(self, batch_size: int) -> BoundPlan:
        key = batch_size, self._workers_for(batch_size)
        plan = self._plans.get(key)
        if plan is not None and not self._is_stale(plan):
            return plan
        with self._starting_up():
            size_bytes = self._workspace.size_bytes
            plan = self._make_plan(*key)
            if self._workspace.size_bytes > size_bytes or len(self._plans) >= PLANS_LIMIT:
                # The others hold the smaller blocks in memory; those that are needed again are soon made.
                self._plans.clear()
            # A plan that is made again goes on counting where the one before stopped.
            plan.recorder = self._recorders.setdefault((batch_size, plan.nodes), plan.recorder)
            self._peak_bytes = max(self._peak_bytes, plan.buffer_bytes + plan.scratch_bytes)
            # Last, so that a plan that is found is complete, whenever Ctrl-C was pressed.
            self._plans[key] = plan
        return plan

    def _binding(self, plan: BoundPlan) -> Binding:
        turns = plan.turns()
        if turns in plan.bindings:
            return plan.bindings[turns]
        with self._starting_up():
            return self._bind(plan, turns)

    def _bind(self, plan: BoundPlan, turns: int) -> Binding:
        """Prepare for values that lie where no step has found them yet."""
        return plan.bind(turns)

    @contextmanager
    def _starting_up(self) -> Iterator[None]:
        """Book the time within as start-up."""
        start_ns = perf_counter_ns()
        try:
            with no_search_for_garbage():
                yield
        finally:
            self._start_up_ns += perf_counter_ns() - start_ns

    @property
    def timing(self) -> Timing:
        with state.lock:
            steps = sum(recorder.calls for recorder in self._recorders.values())
            own = timed_by(self._recorders.values(), 0, self._peak_bytes)
            wall_seconds = sum(record.seconds for record in own.records)
            every = [own, *self._others()]
            records = [record for worker in every for record in worker.records]
            traces = [trace for worker in every for trace in worker.traces]
            workers = self._timed_workers() if steps else []
            return Timing(
                with_idle(records, workers, wall_seconds, steps),
                steps,
                self._start_up_ns / 1e9,
                max(worker.peak_bytes for worker in every),
                [*self._notes(), *self._traced.notes],
                make_slices(traces, self._traced.shown(self.step - self._traced.first)),
                wall_seconds=wall_seconds,
                workers=workers,
                graph=self.graph,
                measure=partial(_with_peaks, self._thread_count()),
            )

    def _others(self) -> Sequence[Timed]:
        """What the workers beside this process have timed."""
        return ()

    def _notes(self) -> list[str]:
        """What is to be known of how steps were run."""
        return []

    def _timed_workers(self) -> list[TimedWorker]:
        """The workers, this process first."""
        return [TimedWorker(0, socket.gethostname(), os.getpid())]

    def reset_timing(self, trace_steps: Collection[int] = ()) -> None:
        with state.lock:
            for recorder in self._recorders.values():
                recorder.reset()
            self._start_up_ns = 0
            self._traced = TraceChoice(self.step, trace_steps)

    @property
    def state(self) -> MutableMapping[Node, Array]:
        return VariableValues(self.variables)


def _with_peaks(threads: int, worker: TimedWorker) -> TimedWorker:
    """A worker of this machine that has so many threads, with what it can do at most."""
    with state.lock, limited_blas(threads):
        flops_per_second, bytes_per_second = known_peaks(threads)
    return replace(worker, flops_per_second=flops_per_second, bytes_per_second=bytes_per_second)
