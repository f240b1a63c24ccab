"""The default executor: this process, with as many threads as BLAS takes."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from threading import RLock
from time import perf_counter_ns
from typing import Any
from weakref import finalize

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from miai_graph.errors import ArgumentError
from miai_graph.executor import Executable, Executor, VariableValues, Worker
from miai_graph.feeding import Batch, check_batch, check_inputs
from miai_graph.graph import Graph
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.ops.leaves import variable_of
from miai_graph.passes.simplify import simplify
from miai_graph.plan.bound import BoundPlan, Workspace
from miai_graph.plan.program import make_program
from miai_graph.state import state
from miai_graph.timing import Recorder, Timing, merge_calls

PLANS_LIMIT = 64
"""For how many batch sizes an executable keeps its plans."""


class _BlasLimits:
    """The limits of BLAS's threads that are asked for: the latest holds, and the number before when none is left."""

    def __init__(self) -> None:
        self._lock = RLock()
        self._tickets = itertools.count()
        self._asked: dict[int, int] = {}
        self._before: threadpool_limits | None = None

    def ask(self, threads: int) -> int:
        """Limit the threads, until the ticket returned is released."""
        with self._lock:
            ticket = next(self._tickets)
            limits = threadpool_limits(threads, "blas")
            self._before = self._before or limits
            self._asked[ticket] = threads
            return ticket

    def release(self, ticket: int) -> None:
        with self._lock:
            del self._asked[ticket]
            if self._asked:
                threadpool_limits(list(self._asked.values())[-1], "blas")
            elif self._before is not None:
                self._before.restore_original_limits()
                self._before = None


_limits = _BlasLimits()


class Serial(Executor):
    """Runs graphs in this process.

    Parameters
    ----------
    threads : how many BLAS may use, in the whole process, while this executor is open; None leaves it as it is. Of
        several that are open the last one made says it.

    Raises
    ------
    ArgumentError
        if `threads` is not a positive integer.
    """

    name = "serial"

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise ArgumentError(f"expected a positive number of threads, or None; found {threads!r}")
        self._release = None if threads is None else finalize(self, _limits.release, _limits.ask(threads))

    def __repr__(self) -> str:
        return f"Serial(threads={self.workers[0].threads})"

    @property
    def workers(self) -> Sequence[Worker]:
        pools = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
        return (Worker(0, os.getpid(), socket.gethostname(), max(pools, default=1)),)

    def compile(
        self, graph: Graph, inputs: Sequence[Node], outputs: Sequence[Node], updates: Mapping[Node, Node]
    ) -> SerialExecutable:
        self.require_open()
        return SerialExecutable(self, graph, inputs)

    def close(self) -> None:
        if self._release is not None:
            self._release()
        super().close()


class SerialExecutable(Executable):
    """A program with a plan for each batch size that it has met."""

    def __init__(self, executor: Serial, graph: Graph, inputs: Sequence[Node]) -> None:
        start_ns = perf_counter_ns()
        self._counter = np.zeros((), np.int64)
        self._executor = executor
        self._inputs = tuple(inputs)
        self._has_batch = [bool(node.type.batch_axes) for node in inputs]
        check_inputs(graph, inputs)
        self._workspace = Workspace()
        self._plans: dict[int, BoundPlan] = {}
        self._recorders: dict[int, Recorder] = {}
        self._peak_bytes = 0
        state.place(variable_of(node) for node in graph.variables)
        self.program = make_program(simplify(graph))
        self._variables = graph.variables
        self._start_up_ns = perf_counter_ns() - start_ns

    def __call__(self, *arrays: Any) -> list[Array]:
        return self._run(arrays)

    def run(self, batches: Iterable[Batch]) -> Iterator[list[Array]]:
        for batch in batches:
            yield self._run(batch)

    def warmup(self, batch_size: int) -> None:
        with state.lock:
            self._plan(batch_size)

    def _run(self, batch: Batch) -> list[Array]:
        self._executor.require_open()
        # Held for the whole step: another thread must neither move the values nor change them meanwhile.
        with state.lock, np.errstate(all="ignore"):
            start_ns = perf_counter_ns()
            checked = check_batch(self._inputs, batch)
            planning_ns = -self._start_up_ns
            plan = self._plan(checked.size)
            planning_ns += self._start_up_ns
            for position, node in enumerate(self._inputs):
                target = plan.feeds.get(node)
                if target is not None:
                    checked.copy_to(position, target, self._has_batch[position])
            plan.run(self.step)
            results = [array.copy() for array in plan.outputs]
            plan.commit(self._counter)
            self._recorders[checked.size].add(start_ns + planning_ns, plan.stamps, perf_counter_ns())
            return results

    @property
    def step(self) -> int:
        return int(self._counter)

    @step.setter
    def step(self, step: int) -> None:
        self._counter[...] = step

    def _plan(self, batch_size: int) -> BoundPlan:
        plan = self._plans.get(batch_size)
        if plan is not None and plan.state_generation == state.generation:
            return plan
        start_ns = perf_counter_ns()
        size_bytes = self._workspace.size_bytes
        plan = BoundPlan(self.program, batch_size, state, self._workspace)
        if self._workspace.size_bytes > size_bytes or len(self._plans) >= PLANS_LIMIT:
            # The others hold the smaller blocks in memory; those that are needed again are soon made.
            self._plans.clear()
        if batch_size not in self._recorders:
            self._recorders[batch_size] = Recorder(plan.nodes, plan.costs())
        self._peak_bytes = max(self._peak_bytes, plan.buffer_bytes + plan.scratch_bytes)
        # Last, so that a plan that is found is complete, whenever Ctrl-C was pressed.
        self._plans[batch_size] = plan
        self._start_up_ns += perf_counter_ns() - start_ns
        return plan

    @property
    def timing(self) -> Timing:
        names = self.program.graph.names
        with state.lock:
            recorders = list(self._recorders.values())
            records = [
                record
                for recorder in recorders
                for record in recorder.records([names[node] for node in recorder.nodes])
            ]
            steps = sum(recorder.calls for recorder in recorders)
        return Timing(merge_calls(records), steps, self._start_up_ns / 1e9, self._peak_bytes)

    def reset_timing(self) -> None:
        with state.lock:
            for recorder in self._recorders.values():
                recorder.reset()
            self._start_up_ns = 0

    @property
    def state(self) -> MutableMapping[Node, Array]:
        return VariableValues(self._variables)
