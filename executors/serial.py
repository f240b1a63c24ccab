"""The default executor: this process, with as many threads as it is given."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from weakref import finalize

from executors.arguments import check_flag, check_positive
from executors.planned import PlannedExecutable
from executors.threads import blas_limits, blas_threads, kernel_threads, limited_blas
from miai_graph.errors import ArgumentError
from miai_graph.executor import Executor, Worker
from miai_graph.graph import Graph
from miai_graph.node import Node
from miai_graph.ops.leaves import variable_of
from miai_graph.passes.batch_analysis import analyse_batch
from miai_graph.plan.bound import BoundPlan
from miai_graph.plan.exchange import Exchange
from miai_graph.plan.parts import cut_batch
from miai_graph.plan.program import Program, make_program
from miai_graph.plan.worker_programs import WorkerPrograms
from miai_graph.state import aligned_bytes, state


class Serial(Executor):
    """Runs graphs in this process.

    Parameters
    ----------
    threads : how many may compute: kernels share their work among so many, unless they are measured to be faster with
        one, and BLAS uses no more, in the whole process, while this executor is open. None: as many as BLAS may use
        already, usually one a core. Of several executors that are open the last one made says it.
    reproducible : compute each batch in `shards` parts, in the one way that `Processes` with the same arguments does
        with any number of workers: results are equal to the last bit. BLAS has one thread during steps then.
    shards : the number of parts

    Raises
    ------
    ArgumentError
        if `threads` or `shards` is not a positive integer, or `threads` is more than 1 with `reproducible`.
    """

    name = "serial"

    def __init__(self, threads: int | None = None, reproducible: bool = False, shards: int = 8) -> None:
        check_positive("threads", threads, none="as many as there are")
        check_positive("shards", shards)
        check_flag("reproducible", reproducible)
        if reproducible and threads not in (None, 1):
            raise ArgumentError(f"expected one thread with reproducible=True; found threads={threads}")
        self.shards = shards if reproducible else None
        self._threads = threads
        self._release = None
        if threads is not None:
            blas_limits.rescan()
            self._release = finalize(self, blas_limits.release, blas_limits.ask(threads))

    def __repr__(self) -> str:
        reproducible = "" if self.shards is None else f", reproducible=True, shards={self.shards}"
        return f"Serial(threads={self.workers[0].threads}{reproducible})"

    @property
    def workers(self) -> Sequence[Worker]:
        return (Worker(0, os.getpid(), socket.gethostname(), 1 if self.shards is not None else blas_threads()),)

    def compile(
        self, graph: Graph, inputs: Sequence[Node], outputs: Sequence[Node], updates: Mapping[Node, Node]
    ) -> SerialExecutable:
        self.require_open()
        return SerialExecutable(self, graph, inputs, self.shards, self._threads)

    def close(self) -> None:
        if self._release is not None:
            self._release()
        super().close()


class SerialExecutable(PlannedExecutable):
    """Plans for each size of batch, run by this process alone.

    Parameters
    ----------
    shards : the number of parts in which a batch is computed; None: whole
    threads : among how many kernels share their work; None: as many as BLAS may use now
    """

    def __init__(
        self,
        executor: Executor,
        graph: Graph,
        inputs: Sequence[Node],
        shards: int | None,
        threads: int | None = None,
    ) -> None:
        super().__init__(executor, graph, inputs, is_reproducible=shards is not None)
        found = kernel_threads() if shards is None else None
        # What was asked for, since another thread may be within a step, for which BLAS is limited to one.
        self._kernel_threads = threads if found is not None and threads is not None else found
        self._limits_blas = shards is not None or (self._kernel_threads or 1) > 1
        with self._starting_up():
            state.place(map(variable_of, self.variables), map(variable_of, self.updated))
            splits = shards is not None and any(node.type.batch_axes for node in inputs)
            self._shards = shards if splits and not analyse_batch(self.graph).obstacles else None
            if self._shards is None:
                self._program = make_program(self.graph)
            else:
                self._program = WorkerPrograms(self.graph, 0, is_reproducible=True).program(1, 1)

    def _make_plan(self, batch_size: int, workers: int) -> BoundPlan:
        state.place(map(variable_of, self.variables), map(variable_of, self.updated))
        if self._shards is None:
            return BoundPlan(self._program, batch_size, state, self._workspace, threads=self._kernel_threads)
        parts = cut_batch(batch_size, self._shards)
        exchange = Exchange(self._program, batch_size, len(parts), aligned_bytes)
        return BoundPlan(self._program, batch_size, state, self._workspace, parts, exchange)

    def _shown_program(self) -> Program:
        return self._program

    def _threads(self) -> AbstractContextManager[object]:
        return limited_blas(1) if self._limits_blas else nullcontext()

    def _thread_count(self) -> int:
        return self._kernel_threads or (1 if self._limits_blas else blas_threads())
