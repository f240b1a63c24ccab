"""Which hosts answer: each is asked for its clock again and again, which also tells how far the clocks are apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from threading import Event, RLock, Thread
from time import monotonic, perf_counter_ns
from typing import Any
from weakref import finalize, ref

from executors.hosts.cluster import CLOCK, Cluster, HostUnreachableError, Message
from miai_graph.errors import MiaiGraphError

INTERVAL_SECONDS = 0.5
PATIENCE_SECONDS = 6.0
"""A host that has not answered for so long is lost: frozen, unplugged, or behind a broken link."""


DRIFT = 50e-6
"""By so much clocks of machines may drift apart, as a part of the time: quartz in a warm case."""


@dataclass(frozen=True)
class ClockOffset:
    """How far a host's clock is from that of this process: its time is ours plus `nanoseconds`, to ± `uncertainty`.

    measured_ns : when, by the clock of this process
    """

    nanoseconds: int
    uncertainty: int
    measured_ns: int = 0

    def aged(self, at_ns: int | None = None) -> ClockOffset:
        """The same as it is now, or was at another time: clocks do not go equally fast."""
        elapsed_ns = abs((perf_counter_ns() if at_ns is None else at_ns) - self.measured_ns)
        return replace(self, uncertainty=self.uncertainty + round(DRIFT * elapsed_ns))


class Watch:
    """Asks hosts for their clocks until they are lost.

    Attributes
    ----------
    lost : by address, why a host that was watched is lost, as a clause
    offsets : by address, the best estimate so far
    greet : called at each look
    """

    greet: Callable[[], None] | None = None

    def __init__(self, cluster: Cluster, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self.lost: dict[str, str] = {}
        self.offsets: dict[str, ClockOffset] = {}
        self._cluster = cluster
        self._patience = patience_seconds
        self._asked: dict[str, _Question] = {}
        self._lock = RLock()
        self._news: Future[None] = Future()
        self._end = Event()
        self._thread: Thread | None = None
        finalize(self, self._end.set)

    def add(self, address: str) -> None:
        """Watch a host from now on."""
        with self._lock:
            self.lost.pop(address, None)
            self._asked.setdefault(address, _Question(self._cluster, address))
            if self._thread is None:
                arguments = ref(self), self._end
                self._thread = Thread(target=_watch, args=arguments, name="watch of hosts", daemon=True)
                self._thread.start()

    def forgive(self, addresses: Iterable[str]) -> None:
        """Hosts that were lost are there again."""
        with self._lock:
            for address in addresses:
                self.lost.pop(address, None)

    def report(self, address: str, reason: str) -> None:
        """Somebody has found out that a host is lost."""
        with self._lock:
            if address not in self.lost:
                self.lost[address] = reason
                self._asked.pop(address, None)
                news, self._news = self._news, Future()
                news.set_result(None)

    @property
    def news(self) -> Future[None]:
        """Done when the next host is lost."""
        return self._news

    def look(self) -> None:
        """Take answers, and ask those who have answered anew."""
        if self.greet is not None:
            self.greet()
        with self._lock:
            questions = list(self._asked.items())
        for address, question in questions:
            reason = question.check(self._patience)
            if reason is not None:
                self.report(address, reason)
                continue
            known = self.offsets.get(address)
            if question.offset is not None and (
                known is None or question.offset.uncertainty < known.aged().uncertainty
            ):
                self.offsets[address] = question.offset

    def offset(self, address: str) -> ClockOffset | None:
        """The best estimate for a host so far, for which nobody need have looked yet; None: it has not answered."""
        if address not in self.offsets and not self._end.is_set():
            self.look()
        return self.offsets.get(address)

    def close(self) -> None:
        """Stop asking."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()


class _Question:
    """A host that is asked for its clock."""

    def __init__(self, cluster: Cluster, address: str) -> None:
        self._cluster = cluster
        self._address = address
        self.offset: ClockOffset | None = None
        self._ask()

    def _ask(self) -> None:
        self._asked_at = monotonic()
        start_ns = perf_counter_ns()
        self._answered_ns = 0
        self._start_ns = start_ns
        self._answer: Future[Message] = self._cluster.call(self._address, CLOCK)
        self._answer.add_done_callback(self._note_time)

    def _note_time(self, _: Any) -> None:
        self._answered_ns = perf_counter_ns()

    def check(self, patience: float) -> str | None:
        """Why the host is lost, if it is."""
        if not self._answer.done():
            silent = monotonic() - self._asked_at
            return f"it has not answered for {silent:.1f} s" if silent > patience else None
        error = self._answer.exception()
        if error is not None:
            return error.reason if isinstance(error, HostUnreachableError) else str(error)
        content: Mapping[str, Any] = self._answer.result().content
        middle, half = (self._start_ns + self._answered_ns) // 2, (self._answered_ns - self._start_ns) // 2
        self.offset = ClockOffset(content["ns"] - middle, half, self._answered_ns)
        self._ask()
        return None


def _watch(watch: ref[Watch], end: Event) -> None:
    while not end.wait(INTERVAL_SECONDS):
        watching = watch()
        if watching is None:
            return
        try:
            watching.look()
        except MiaiGraphError:
            return
