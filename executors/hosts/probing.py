"""Finds out, from a host, which others it reaches and how fast messages travel between them."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from time import monotonic, perf_counter, time_ns

import numpy as np

from executors.hosts.cluster import Channel, Message
from executors.hosts.connection.addresses import parse_address
from executors.hosts.connection.loading import load

PROBE = "probe"
"""The content of posts that belong here has this key."""

KNOCK_SECONDS = 3.0
"""How long a host's port may take to answer."""

EXCHANGE_SECONDS = 4.5
"""How long two hosts may take to exchange all messages of a probe."""

SMALL, SIZES = 8, (2**16, 2**20)
"""Bytes of the messages that measure the latency, and the bandwidth."""

_SMALL_TIMES, _TIMES = 6, 3
_ENOUGH_SECONDS = 0.1
_LONGEST_SECONDS = 0.25


def knock(address: str, patience_seconds: float = KNOCK_SECONDS) -> str | None:
    """Try to connect to a host's port, and hang up at once.

    Returns
    -------
    Why that fails, as a clause; None if it does not, or there is no port between this host and that one.
    """
    if "://" not in address:
        return None
    try:
        socket.create_connection(parse_address(address), patience_seconds).close()
    except ConnectionRefusedError:
        return "connection refused"
    except TimeoutError:
        return f"no answer within {patience_seconds:g} s"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return None


class Prober:
    """What a host does to find out about others, and to let others find out about it.

    Parameters
    ----------
    channel : to the others

    Attributes
    ----------
    calls : by name, what the user's process may ask for
    """

    def __init__(self, channel: Channel) -> None:
        self.calls: Mapping[str, Callable[[Message], Message]] = {
            "busy": self._busy,
            "knock": self._knock,
            "probe": self._probe,
            "time": self._time,
        }
        self._channel = channel
        self._numbers = itertools.count()
        self._waiting: dict[int, tuple[str, SimpleQueue[str | None]]] = {}

    def deliver(self, message: Message) -> None:
        """Answer the message of a probe; or take the answer to one of ours."""
        content = message.content
        if "back" in content:
            answer = Message({PROBE: content[PROBE]}, [_payload(content["back"])])
            self._channel.post(content["from"], answer)
        elif waiting := self._waiting.get(content[PROBE]):
            waiting[1].put(None)

    def unreachable(self, address: str, reason: str) -> None:
        """End the probes of a host that cannot be reached."""
        for there, answers in list(self._waiting.values()):
            if there == address:
                answers.put(reason)

    def _busy(self, message: Message) -> Message:
        return Message({"cores": load("busyness").busy_cores(message.content["seconds"])})

    def _time(self, _: Message) -> Message:
        return Message({"ns": time_ns()})

    def _knock(self, message: Message) -> Message:
        addresses = message.content["addresses"]
        with ThreadPoolExecutor(max(1, len(addresses))) as threads:
            obstacles = dict(zip(addresses, threads.map(knock, addresses), strict=True))
        return Message({"obstacles": {address: reason for address, reason in obstacles.items() if reason}})

    def _probe(self, message: Message) -> Message:
        try:
            return Message(_Exchange(self, message.content["address"]).measure())
        except _NoAnswerError as error:
            return Message({"failed": str(error)})

    def round_trip(self, there: str, size: int, back: int, deadline: float) -> float:
        """Seconds that a message of so many bytes takes to get there, and its answer of so many to get back."""
        number, answers = next(self._numbers), SimpleQueue[str | None]()
        self._waiting[number] = there, answers
        content = {PROBE: number, "from": self._channel.address, "back": back}
        try:
            start = perf_counter()
            self._channel.post(there, Message(content, [_payload(size)]))
            reason = answers.get(timeout=max(0.0, deadline - monotonic()))
            taken = perf_counter() - start
        except Empty:
            reason = f"no answer within {EXCHANGE_SECONDS:g} s, though its port is open"
        finally:
            del self._waiting[number]
        if reason is not None:
            raise _NoAnswerError(reason)
        return taken


class _NoAnswerError(Exception):
    """A clause: why a message was not answered."""


class _Exchange:
    """Messages to one host and back."""

    def __init__(self, prober: Prober, there: str) -> None:
        self._prober = prober
        self._there = there
        self._deadline = monotonic() + EXCHANGE_SECONDS

    def measure(self) -> dict[str, float]:
        """The latency, and the bandwidth in both directions."""
        self._least_round_trip = min(self._round_trip(SMALL, SMALL) for _ in range(_SMALL_TIMES))
        return {
            "latency": self._least_round_trip / 2,
            "bandwidth": self._bandwidth(lambda size: self._round_trip(size, SMALL)),
            "bandwidth_back": self._bandwidth(lambda size: self._round_trip(SMALL, size)),
        }

    def _round_trip(self, size: int, back: int) -> float:
        return self._prober.round_trip(self._there, size, back, self._deadline)

    def _bandwidth(self, seconds_of: Callable[[int], float]) -> float:
        """Bytes a second of the largest messages for which the link is fast enough."""
        found = np.inf
        for size in SIZES:
            if size / found < _LONGEST_SECONDS:
                seconds = _least(lambda size=size: seconds_of(size))  # type: ignore[misc]
                found = size / max(seconds - self._least_round_trip, seconds / 4)
        return found


def _least(measure: Callable[[], float]) -> float:
    """The least of a few measurements, or of fewer if they take long."""
    measured: list[float] = []
    while len(measured) < _TIMES and sum(measured) < _ENOUGH_SECONDS:
        measured.append(measure())
    return min(measured)


def _payload(size: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.zeros(size, np.uint8)
