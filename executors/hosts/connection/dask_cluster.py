"""A cluster over authenticated connections, as the user's process sees it. Dask's client is within."""

from __future__ import annotations

import asyncio
import warnings
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Self

from distributed import Client
from distributed.versions import VersionMismatchWarning

from executors.hosts.cluster import Cluster, HostUnreachableError, Message
from executors.hosts.connection.addresses import parse_address, write_address
from executors.hosts.connection.credentials import Credentials
from executors.hosts.connection.dask_host import HostPlugin
from executors.hosts.connection.dask_wire import (
    SILENCE_SECONDS,
    Line,
    answer_or_raise,
    dask_security,
    knock,
    pack,
    set_time_limits,
    unreachable,
)
from executors.hosts.connection.host_process import MAKER
from executors.hosts.connection.loop import LoopThread
from executors.hosts.connection.reach import CONNECT_SECONDS, local_address_towards
from miai_graph.errors import ClusterLostError, ExecutorError

_DROPPED = f"it has left the cluster, or was not heard of for {SILENCE_SECONDS} s"


class DaskCluster(Cluster):
    """The hosts of a cluster that runs already.

    Calls and posts go straight to the host. Arrays that arrive belong to who gets them, and can be written to.

    Parameters
    ----------
    address : of its scheduler, as a user types it
    credentials : what proves that this process may join
    maker : makes the service on hosts that are plain Dask workers, ``module:function``

    Raises
    ------
    ArgumentError
        if it does not accept these credentials.
    ExecutorError
        if there is no such cluster.
    """

    def __init__(self, address: str, credentials: Credentials, maker: str = MAKER) -> None:
        set_time_limits()
        scheduler = write_address(*parse_address(address))
        local_address_towards(scheduler, credentials)
        self._loop = LoopThread("miai_graph cluster")
        self._closed = False
        try:
            self._link = self._loop.run(_Link.open(scheduler, credentials, maker))
        except BaseException:
            self._loop.finish(_nothing)
            raise
        # The loop knows the link, and nobody there knows this object: it is collected when the user drops it.
        self._end = weakref.finalize(self, self._loop.finish, self._link.close)

    @property
    def addresses(self) -> Sequence[str]:
        self._check_open()
        return self._loop.run(self._link.members())

    def call(self, address: str, name: str, message: Message | None = None) -> Future[Message]:
        self._check_open()
        return self._loop.start(self._link.call(address, name, message or Message()))

    def post(self, address: str, message: Message) -> Future[None]:
        self._check_open()
        return self._loop.start(self._link.post(address, message))

    def close(self) -> None:
        self._closed = True
        self._end()

    def _check_open(self) -> None:
        if self._closed:
            raise ExecutorError("expected an open cluster; found that it was closed. Make a new executor")


class _Link:
    """The connections with a cluster. Lives on the event loop."""

    def __init__(self, client: Client, scheduler: str) -> None:
        self._client = client
        self._scheduler = scheduler
        self._lines: dict[str, Line] = {}
        self._gone: set[str] = set()
        self._order: list[str] = []

    @classmethod
    async def open(cls, scheduler: str, credentials: Credentials, maker: str) -> Self:
        warnings.filterwarnings("ignore", category=VersionMismatchWarning)
        client = Client(
            scheduler,
            asynchronous=True,
            security=dask_security(credentials),
            set_as_default=False,
            timeout=CONNECT_SECONDS,
            name="miai_graph",
        )
        try:
            await client
        except (OSError, TypeError) as error:
            with suppress(Exception):
                await client.close(timeout=CONNECT_SECONDS)
            # The port of a host takes the connection, and answers something else than a scheduler does.
            found = "something else, such as a host" if isinstance(error, TypeError) else str(error)
            raise ExecutorError(
                f"expected the scheduler of a cluster at {scheduler}; found {found}. Its port is 8786 unless it was "
                "started with another"
            ) from None
        client.rpc.allow_offload = False
        link = cls(client, scheduler)
        client.subscribe_topic("all", link._hear)
        with suppress(Exception):  # any that a worker without miai_graph raises; calls to it tell what is missing
            await client.register_plugin(HostPlugin(maker))
        return link

    async def members(self) -> list[str]:
        if self._client.status != "running":
            raise self._lost()
        try:
            found = await asyncio.wait_for(self._client.scheduler.identity(n_workers=-1), 2 * CONNECT_SECONDS)
            present = {address for address, worker in found["workers"].items() if worker["status"] == "running"}
            if not present <= set(self._order):
                self._order = _joined(await self._client.scheduler.events(topic="all"))
        except OSError:
            raise self._lost() from None
        self._gone -= present
        known = [address for address in self._order if address in present]
        return [*known, *sorted(present.difference(known))]

    async def call(self, address: str, name: str, message: Message) -> Message:
        self._check(address)
        connections = self._client.rpc
        try:
            if not connections.available[address]:
                await knock(address)
            return answer_or_raise(address, await connections(address).miai_call(name=name, message=pack(message)))
        except OSError as error:
            self._check(address)
            raise unreachable(address, error) from error

    async def post(self, address: str, message: Message) -> None:
        self._check(address)
        if address not in self._lines:
            self._lines[address] = Line(address, self._client.connection_args)
        await self._lines[address].send(pack(message))

    async def close(self) -> None:
        for address, line in self._lines.items():
            line.close(HostUnreachableError(address, "the cluster was closed"))
        await self._client.close()

    def _lost(self) -> ClusterLostError:
        return ClusterLostError(
            f"expected the scheduler at {self._scheduler} to answer; found that it ended or cannot be reached. "
            "Start the cluster again with 'miai-graph cluster start', and with the same token (--token-file), so that "
            "the others come back"
        )

    def _check(self, address: str) -> None:
        if address in self._gone:
            raise HostUnreachableError(address, _DROPPED)

    def _hear(self, event: tuple[float, Any]) -> None:
        """Of a host that comes or goes, from the scheduler."""
        match event[1]:
            case {"action": "add-worker", "worker": address}:
                self._gone.discard(address)
            case {"action": "remove-worker", "worker": address}:
                self._gone.add(address)
                self._client.rpc.remove(address, reason=_DROPPED)
                if line := self._lines.pop(address, None):
                    line.close(HostUnreachableError(address, _DROPPED))


def _joined(events: Sequence[tuple[float, Any]]) -> list[str]:
    """The hosts in the order in which they joined, for the last time."""
    order: dict[str, None] = {}
    for _, event in events:
        if event.get("action") == "add-worker":
            order.pop(event["worker"], None)
            order[event["worker"]] = None
    return list(order)


async def _nothing() -> None:
    pass
