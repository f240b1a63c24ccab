"""Hosts that are objects in this process: the twin of a real cluster, for tests and for looking at what happens."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from concurrent.futures import Future
from threading import Thread
from time import perf_counter_ns

from executors.hosts.cluster import (
    CLOCK,
    Cluster,
    HostUnreachableError,
    Message,
    RemoteError,
    Service,
    ServiceMaker,
)
from executors.hosts.service import HostService
from miai_graph.errors import ClusterLostError

NOT_THERE = "it is not there"


class InProcessCluster(Cluster):
    """Hosts in this process. Messages are handed over as they are.

    Parameters
    ----------
    hosts : how many
    make : what makes the service of each
    """

    def __init__(self, hosts: int, make: ServiceMaker = HostService) -> None:
        self._services: dict[str, Service] = {}
        self._is_lost = False
        self._make = make
        self._joined = 0
        for _ in range(hosts):
            self.join()

    def join(self) -> str:
        """One more host."""
        address = f"in-process-{self._joined}"
        self._joined += 1
        self._services[address] = self._make(_InProcessChannel(self, address))
        return address

    def kill(self, address: str) -> None:
        """The host is gone from one moment to the next."""
        self._services.pop(address).close()

    def lose_scheduler(self) -> None:
        """Nobody knows the hosts any more."""
        self._is_lost = True

    @property
    def addresses(self) -> Sequence[str]:
        if self._is_lost:
            raise ClusterLostError("expected a scheduler; found that it is gone")
        return list(self._services)

    def call(self, address: str, name: str, message: Message | None = None) -> Future[Message]:
        service = self._services.get(address)
        future: Future[Message] = Future()
        if service is None:
            future.set_exception(HostUnreachableError(address, NOT_THERE))
        elif name == CLOCK:
            future.set_result(Message({"ns": perf_counter_ns()}))
        else:
            Thread(target=self._serve, args=(future, address, service, name, message or Message()), daemon=True).start()
        return future

    def _serve(self, future: Future[Message], address: str, service: Service, name: str, message: Message) -> None:
        try:
            answer = service.handle(name, message)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            future.set_exception(RemoteError(address, text, traceback.format_exc()))
            return
        if self._services.get(address) is service:
            future.set_result(answer)
        else:
            future.set_exception(HostUnreachableError(address, NOT_THERE))

    def post(self, address: str, message: Message) -> Future[None]:
        future: Future[None] = Future()
        service = self._services.get(address)
        if service is None:
            future.set_exception(HostUnreachableError(address, NOT_THERE))
        else:
            service.deliver(Message(message.content, [array.copy() for array in message.arrays]))
            future.set_result(None)
        return future

    def close(self) -> None:
        for service in self._services.values():
            service.close()
        self._services.clear()


class _InProcessChannel:
    def __init__(self, cluster: InProcessCluster, address: str) -> None:
        self._cluster = cluster
        self.address = address

    def post(self, address: str, message: Message) -> None:
        sent = self._cluster.post(address, message)
        error = sent.exception()
        if error is not None:
            self._cluster._services[self.address].unreachable(address, str(error))
