"""Who comes to a cluster and who leaves it, as its scheduler sees it, in lines for the one who started it."""

from __future__ import annotations

import asyncio
import time
from asyncio import timeout
from collections.abc import Collection, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

from distributed import Scheduler, rpc
from distributed.diagnostics.plugin import SchedulerPlugin

from executors.hosts.cluster import Message
from executors.hosts.connection.dask_wire import answer_or_raise, pack
from executors.hosts.preflight import title

NAME_SECONDS = 2.0
"""How long a host may take to tell its machine's name."""

KNOWN, JOINED, LEFT = "known", "joined", "left"


class Arrivals(SchedulerPlugin):  # type: ignore[misc]
    """Takes down who comes and goes. The scheduler never waits for that, nor for who reads it.

    Parameters
    ----------
    scheduler : in this process
    known : addresses of hosts whose coming has been told
    """

    name = "miai_graph arrivals"

    def __init__(self, scheduler: Scheduler, known: Collection[str] = ()) -> None:
        self._scheduler = scheduler
        self._events: asyncio.Queue[tuple[str, str, int]] = asyncio.Queue()
        self._lines: SimpleQueue[str] = SimpleQueue()
        self._names: dict[str, str] = {}
        self._known = known

    async def start(self) -> None:
        """Begin, on the scheduler's loop; hosts that are there but not known come now."""
        self._scheduler.add_plugin(self)
        for address in self._scheduler.workers:
            if address in self._known:
                self._events.put_nowait((KNOWN, address, 0))
            else:
                self.add_worker(self._scheduler, address)
        self._writer = asyncio.create_task(self._write())

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """A host has joined."""
        self._events.put_nowait((JOINED, worker, len(scheduler.workers)))

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: Any) -> None:
        """A host has left, or was dropped."""
        self._events.put_nowait((LEFT, worker, len(scheduler.workers)))

    def lines(self) -> Iterator[str]:
        """What was taken down since the last call, from any thread."""
        with suppress(Empty):
            while True:
                yield self._lines.get_nowait()

    async def _write(self) -> None:
        # One after the other: lines stay in order although hosts are asked for their names.
        while True:
            what, address, count = await self._events.get()
            now = time.strftime("%H:%M:%S")
            if what != LEFT:
                self._names[address] = await self._ask_name(address)
            if what != KNOWN:
                name = self._names[address] if what == JOINED else self._names.pop(address, _short(address))
                self._lines.put(f"{now}  {name} has {what} the cluster: {count} host{'s' * (count != 1)} now.")

    async def _ask_name(self, address: str) -> str:
        try:
            # A connection of its own: the scheduler hands on what comes on others as it is, unread.
            async with timeout(NAME_SECONDS), rpc(address, connection_args=self._scheduler.connection_args) as host:
                reply = await host.miai_call(name="describe", message=pack(Message()))
            name = answer_or_raise(address, reply).content["name"]
        except Exception:  # any that a host which is gone already raises, or a worker without miai_graph
            return _short(address)
        return title(name, _short(address))


def _short(address: str) -> str:
    return address.removeprefix("tls://")
