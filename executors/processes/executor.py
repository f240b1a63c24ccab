"""Data parallelism in shared memory: each worker is a process with its rows of the batch."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from weakref import finalize

from executors.arguments import check_flag, check_positive
from executors.processes.confinement import require_no_worker
from executors.processes.pool import Pool
from executors.threads import CANNOT_LIMIT, blas_limits, can_limit
from miai_graph.cores import physical_cores, usable_cores
from miai_graph.errors import ArgumentError
from miai_graph.executor import Executor, Worker
from miai_graph.graph import Graph
from miai_graph.node import Node
from miai_graph.state import state

if TYPE_CHECKING:
    from executors.processes.executable import ProcessesExecutable


class Processes(Executor):
    """Runs graphs in several processes of this machine, each with its share of the batch; this process is one of them.

    The workers are started at once and stay until the executor is closed. Where memory needs no name, as on Linux,
    steps of small graphs do not wait for that: this process computes them alone until all workers are there. If one of
    them dies, the call in which that is noticed raises, nothing of its step is applied, and the next call starts
    others.

    Parameters
    ----------
    workers : how many, this process included; None: one a physical core that this process may use. Where fewer are
        measured to be faster, fewer are used.
    reproducible : compute each batch in `shards` parts, which results depend on to the last bit, but not on the number
        of workers: they are those of `Serial` with the same arguments.
    shards : the number of parts
    wait_for_workers : let all workers take part in the first step already, which waits until they have started; so do
        graphs of more than 400 nodes, which take longer to prepare than workers to start

    Raises
    ------
    ArgumentError
        if `workers` or `shards` is not a positive integer, or there are more workers than shards with `reproducible`.
    ExecutorError
        if the workers cannot be started, or this process is a worker itself.
    """

    name = "processes"

    def __init__(
        self,
        workers: int | None = None,
        reproducible: bool = False,
        shards: int = 8,
        wait_for_workers: bool = False,
    ) -> None:
        check_positive("workers", workers, none="one a physical core")
        check_positive("shards", shards)
        check_flag("reproducible", reproducible)
        check_flag("wait_for_workers", wait_for_workers)
        require_no_worker()
        self.size = workers if workers is not None else physical_cores()
        if reproducible and workers is None:
            self.size = min(self.size, shards)
        if reproducible and self.size > shards:
            raise ArgumentError(
                f"expected no more workers than shards with reproducible=True; found {self.size} workers and {shards} "
                f"shards. Use shards={self.size} everywhere where results shall be the same"
            )
        self.shards = shards if reproducible else None
        self._waits_for_workers = wait_for_workers
        self.threads = 1 if reproducible else max(1, usable_cores() // self.size)
        self._pools: list[Pool] = []
        self._finish = finalize(self, _stop_all, self._pools)
        if self.size > 1:
            self.pool()
        blas_limits.rescan()

    def __repr__(self) -> str:
        reproducible = "" if self.shards is None else f", reproducible=True, shards={self.shards}"
        waiting = ", wait_for_workers=True" if self._waits_for_workers else ""
        return f"Processes(workers={self.size}{reproducible}{waiting})"

    def pool(self) -> Pool:
        """The workers, started if there are none."""
        self.require_open()
        if not self._pools or not self.has(self._pools[-1]):
            self._pools[:] = [Pool(self.size, self.threads)]
        return self._pools[-1]

    def is_starting(self) -> bool:
        """Whether steps are to be computed by this process alone, for the others have not started yet."""
        return self.size > 1 and not self._waits_for_workers and not self.pool().has_started()

    def check(self) -> None:
        """Between steps: end a pool of which a worker is gone, so that the next one is made."""
        for pool in self._pools:
            # Steps that go on while workers start tell of one that does not get so far: others might not, either.
            if self._waits_for_workers or not pool.is_starting:
                pool.check()

    def has(self, pool: Pool | None) -> bool:
        """Whether these are the workers, and they can be used."""
        return pool is not None and pool.is_open and pool in self._pools

    @property
    def summary(self) -> str:
        """How many workers and threads there are, in a sentence."""
        threads = "1 BLAS thread" if self.threads == 1 else f"{self.threads} BLAS threads"
        limits = "" if can_limit() else f" in all but this process. {CANNOT_LIMIT}"
        return f"{self.size} workers of {threads} each{limits}" if self.size > 1 else f"1 worker of {threads}{limits}"

    @property
    def workers(self) -> Sequence[Worker]:
        host = socket.gethostname()
        pids = [os.getpid()]
        if self.size > 1 and not self.closed:
            self.check()
            pids += [process.pid for process in self.pool().processes]
        return tuple(Worker(index, pid, host, self.threads) for index, pid in enumerate(pids))

    def compile(
        self, graph: Graph, inputs: Sequence[Node], outputs: Sequence[Node], updates: Mapping[Node, Node]
    ) -> ProcessesExecutable:
        # Here, so that workers start while it is loaded.
        from executors.processes.executable import ProcessesExecutable

        self.require_open()
        return ProcessesExecutable(self, graph, inputs)

    def close(self) -> None:
        # A step of another thread is finished first.
        with state.lock:
            self._finish()
            super().close()


def _stop_all(pools: list[Pool]) -> None:
    for pool in pools:
        pool.stop()
