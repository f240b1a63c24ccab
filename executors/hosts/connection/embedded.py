"""A cluster on this machine: the scheduler in this process, and each host in a process of its own."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from executors.hosts.cluster import Cluster, Message
from executors.hosts.connection.host_process import MAKER, HostProcess
from executors.hosts.connection.loading import load
from executors.hosts.connection.loop import LoopThread

START_SECONDS = 60.0
"""How long hosts may take to join, on a busy machine."""

LOOPBACK = "127.0.0.1"


class EmbeddedCluster(Cluster):
    """Hosts on this machine, which live as long as this object.

    Nobody else can join: connections are encrypted, by a token that is forgotten at once if none is given.

    Parameters
    ----------
    workers : how many hosts
    threads : how many BLAS and native kernels may use on each
    token : of the cluster, for others on this machine to join; a new one if not given
    hosts : the addresses at which they listen, in turns, such as ``127.0.0.2``
    maker : makes their services, ``module:function``
    """

    def __init__(
        self,
        workers: int,
        threads: int = 1,
        *,
        token: str | None = None,
        hosts: Sequence[str] = (LOOPBACK,),
        maker: str = MAKER,
    ) -> None:
        closing = _Closing()
        try:
            # The hosts load what they need while this process does.
            processes = [closing.start_process(threads) for _ in range(workers)]
            dask_cluster, dask_host, security = (
                load("connection.dask_cluster"),
                load("connection.dask_host"),
                load("connection.security"),
            )
            shown = security.credentials(token or security.new_token())
            closing.scheduler = closing.loop.run(dask_host.start_scheduler(shown, host=LOOPBACK, port=0))
            self._scheduler_address = str(closing.scheduler.address)
            for number, process in enumerate(processes):
                host = hosts[number % len(hosts)]
                process.join(self._scheduler_address, shown, host=host, port=0, maker=maker)
            closing.cluster = dask_cluster.DaskCluster(self._scheduler_address, shown, maker)
            joined = [process.joined(START_SECONDS) for process in processes]
        except BaseException:
            closing.run()
            raise
        self._pids = {address: process.pid for address, process in zip(joined, processes, strict=True)}
        self._order = {address: place for place, address in enumerate(joined)}
        self._cluster: Cluster = closing.cluster
        self._end = weakref.finalize(self, closing.run)

    @property
    def scheduler_address(self) -> str:
        """Where others on this machine can join, if they have the token."""
        return self._scheduler_address

    @property
    def pids(self) -> Mapping[str, int]:
        """The process of each host that was started, by its address."""
        return self._pids

    @property
    def addresses(self) -> Sequence[str]:
        """Of the hosts that are there now: first those of this cluster in the order of `hosts`, then who joined."""
        return sorted(self._cluster.addresses, key=lambda address: self._order.get(address, len(self._order)))

    def call(self, address: str, name: str, message: Message | None = None) -> Future[Message]:
        return self._cluster.call(address, name, message)

    def post(self, address: str, message: Message) -> Future[None]:
        return self._cluster.post(address, message)

    def close(self) -> None:
        self._end()


class _Closing:
    """What there is to close; it does not know the cluster, which can be collected."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self.processes: list[HostProcess] = []
        self.loop = LoopThread("miai_graph scheduler")
        self.scheduler: Any = None
        self.cluster: Any = None

    def start_process(self, threads: int) -> HostProcess:
        process = HostProcess(threads)
        self.processes.append(process)
        return process

    def run(self) -> None:
        if os.getpid() != self._pid:  # the hosts are those of the process which this is a fork of
            return
        for process in self.processes:
            process.connection.close()  # all begin to end at once
        try:
            if self.cluster is not None:
                self.cluster.close()
            self.loop.finish(self._finish)
        finally:
            for process in self.processes:
                process.stop()

    async def _finish(self) -> None:
        if self.scheduler is not None:
            with suppress(OSError):
                await self.scheduler.close()
