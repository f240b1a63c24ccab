"""This machine's hosts in a cluster. One that drops out, because the network or the lid was closed, joins again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any, Self

from executors.hosts.connection.credentials import Credentials
from executors.hosts.connection.host_process import HostProcess
from executors.hosts.connection.loading import load
from miai_graph.errors import ExecutorError

JOIN_SECONDS = 60.0
"""How long a host may take to start and to join."""

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 30.0
"""How long to wait before trying again: twice as long after each failure."""

_LOOK_SECONDS = 0.5


@dataclass
class _Seat:
    """A place for a host: its port, and the process that is there now."""

    port: int
    process: HostProcess | None = None
    has_joined: bool = False
    pause_seconds: float = FIRST_PAUSE_SECONDS
    due: float = 0.0


class Membership:
    """Hosts of this machine, each a process of its own, which stay in a cluster until this is closed.

    Parameters
    ----------
    scheduler : its address
    credentials : what proves that this machine may join
    host : the address at which the hosts listen
    ports : of each host
    threads : how many BLAS and native kernels may use on each
    tell : is told, in sentences, what happens
    """

    def __init__(
        self,
        scheduler: str,
        credentials: Credentials,
        *,
        host: str,
        ports: range,
        threads: int,
        tell: Callable[[str], object],
    ) -> None:
        self._scheduler = scheduler
        self._credentials = credentials
        self._host = host
        self._threads = threads
        self._tell = tell
        self._seats = [_Seat(port) for port in ports]

    def join(self) -> list[str]:
        """Join for the first time; returns the hosts' addresses.

        Raises
        ------
        ExecutorError
            if one of them cannot.
        """
        for seat in self._seats:
            self._start(seat)
        addresses = []
        for seat in self._seats:
            assert seat.process is not None
            addresses.append(seat.process.joined(JOIN_SECONDS))
            seat.has_joined = True
        return addresses

    def stay(self, news: Callable[[], Iterable[str]] = tuple) -> None:
        """Have hosts that drop out join again, for ever: an exception ends it, such as that of Ctrl-C.

        Parameters
        ----------
        news : is asked again and again for what else there is to tell
        """
        while True:
            for sentence in news():
                self._tell(sentence)
            processes = {seat.process.connection: seat for seat in self._seats if seat.process is not None}
            if not processes:
                time.sleep(_LOOK_SECONDS)
            for connection in wait(list(processes), _LOOK_SECONDS):
                self._hear(processes[connection])  # type: ignore[index]
            for seat in self._seats:
                if seat.process is None and time.monotonic() >= seat.due:
                    self._try_again(seat)

    def close(self) -> None:
        """End the hosts."""
        for seat in self._seats:
            if seat.process is not None:
                seat.process.connection.close()  # all begin to end at once
        for seat in self._seats:
            if seat.process is not None:
                seat.process.stop()
                seat.process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _start(self, seat: _Seat) -> None:
        seat.has_joined = False
        seat.process = HostProcess(self._threads)
        seat.process.join(self._scheduler, self._credentials, host=self._host, port=seat.port)

    def _hear(self, seat: _Seat) -> None:
        assert seat.process is not None
        news = seat.process.news()
        if "address" in news:
            seat.has_joined = True
            seat.pause_seconds = FIRST_PAUSE_SECONDS
            self._tell(f"{news['address']} has joined again.")
            return
        if seat.has_joined:
            reason = news.get("ended") or news["error"]
            self._tell(f"The host at port {seat.port} has left the cluster: {reason}. Trying to join again …")
        seat.process.stop()
        seat.process = None
        self._wait_longer(seat)

    def _try_again(self, seat: _Seat) -> None:
        try:
            # Cheaper than a process which cannot join. A cluster with another token is not waited for.
            load("connection.reach").local_address_towards(self._scheduler, self._credentials)
        except ExecutorError:
            self._wait_longer(seat)
        else:
            self._start(seat)

    def _wait_longer(self, seat: _Seat) -> None:
        seat.due = time.monotonic() + seat.pause_seconds
        seat.pause_seconds = min(2 * seat.pause_seconds, LONGEST_PAUSE_SECONDS)
