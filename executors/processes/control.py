"""How the workers of a pool keep in step: words in shared memory, and wake-up calls for those who sleep.

Worker 0, the user's process, orders a step by raising each worker's ``go``. At a barrier each worker raises its
``arrived``; when all have, worker 0 raises ``released``. Whoever waits spins for a moment and then sleeps, which it
says first (``asleep``): a bell wakes it, or a message, or that the other process is gone. Before all else a worker says
that it has ``started``. Each word has a cache line to itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from executors.processes.atomics import atomics, spins_for
from executors.processes.bells import WAKE_UP, Bell, Sleeper, ringing

LINE_BYTES = 64
ORDER_WORDS = 8
SPIN_SECONDS = 100e-6


class Words:
    """Where the words of a pool stand in its control memory."""

    def __init__(self, memory: np.ndarray[Any, np.dtype[np.uint8]], workers: int) -> None:
        self._memory = memory
        first = memory.ctypes.data

        def lines(place: int) -> list[int]:
            return [first + LINE_BYTES * (place + worker) for worker in range(workers)]

        self.released = first
        self.order = memory[LINE_BYTES : LINE_BYTES + 8 * ORDER_WORDS].view(np.int64)
        self.go = lines(2)
        self.arrived = lines(2 + workers)
        self.asleep = lines(2 + 2 * workers)
        self.started = lines(2 + 3 * workers)

    @staticmethod
    def size_bytes(workers: int) -> int:
        """The memory that they need."""
        return LINE_BYTES * (2 + 4 * workers)


class Follower:
    """The waiting of a worker other than 0.

    Parameters
    ----------
    handle : what to do with a message that comes while it waits for an order
    bells : its own, and that of worker 0; None where the system has none
    is_crowded : whether there are more workers than cores, so that spinning would keep others from working
    """

    def __init__(
        self,
        connection: Connection,
        words: Words,
        index: int,
        handle: Callable[[bytes], None],
        bells: tuple[Bell, Bell] | None,
        *,
        is_crowded: bool,
    ) -> None:
        own, leaders = bells or (None, None)
        self._connection = connection
        self._sleeper = Sleeper([connection], own)
        self._ring = ringing(leaders, connection)
        self._words = words
        self._index = index
        self._handle = handle
        self._atomics = atomics()
        self._spins = 0 if is_crowded else spins_for(SPIN_SECONDS)
        self._orders = 0
        self.barriers = 0
        self._atomics.store(words.started[index], 1)

    def wait_for_order(self) -> None:
        """Return when the next step is ordered; messages are handled meanwhile."""
        self._orders += 1
        self._wait(self._words.go[self._index], self._orders)

    def arrive(self) -> None:
        """Say that the work before a barrier is done."""
        self.barriers += 1
        self._atomics.store(self._words.arrived[self._index], self.barriers)
        if self._atomics.load(self._words.asleep[0]):
            self._ring()

    def barrier(self) -> None:
        """Wait until all workers have come here."""
        self.arrive()
        self._wait(self._words.released, self.barriers)

    def _wait(self, address: int, target: int) -> None:
        wait_until = self._atomics.wait_until
        if wait_until(address, 1, 0, target, self._spins):
            return
        asleep = self._words.asleep[self._index]
        self._atomics.store(asleep, 1)
        while not wait_until(address, 1, 0, target, 0):
            if self._sleeper.sleep():
                message = self._connection.recv_bytes()
                if message != WAKE_UP:
                    self._handle(message)
        self._atomics.store(asleep, 0)


class Leader:
    """The waiting of worker 0.

    Parameters
    ----------
    handle : what to do if a worker says something, or (None) is gone: it raises
    bells : its own, and those of the others; None where the system has none
    """

    def __init__(
        self,
        peers: Sequence[Connection],
        words: Words,
        handle: Callable[[int, bytes | None], None],
        bells: Sequence[Bell] | None,
        *,
        is_crowded: bool,
    ) -> None:
        own, others = (bells[0], bells[1:]) if bells else (None, [None] * len(peers))
        self._peers = list(peers)
        self._sleeper = Sleeper(self._peers, own)
        self._rings = [ringing(bell, peer) for bell, peer in zip(others, peers, strict=True)]
        self._words = words
        self._handle = handle
        self._atomics = atomics()
        self._spins = 0 if is_crowded else spins_for(SPIN_SECONDS)
        self._orders = [0] * (len(peers) + 1)
        self.barriers = 0
        self.active = 0
        """How many workers besides this one take part in the current step."""

    def has_started(self, worker: int) -> bool:
        """Whether a worker listens."""
        return bool(self._atomics.load(self._words.started[worker]))

    def order(self, active: int) -> None:
        """Let the first so many workers besides this one begin a step."""
        self.active = active
        for worker in range(1, active + 1):
            self._orders[worker] += 1
            self._atomics.store(self._words.go[worker], self._orders[worker])
            self._wake(worker)

    def gather(self) -> None:
        """Wait until all others have arrived."""
        self.barriers += 1
        wait_until, first = self._atomics.wait_until, self._words.arrived[1] if self.active else 0
        if wait_until(first, self.active, LINE_BYTES, self.barriers, self._spins):
            return
        self._atomics.store(self._words.asleep[0], 1)
        try:
            while not wait_until(first, self.active, LINE_BYTES, self.barriers, 0):
                self._listen()
        finally:
            self._atomics.store(self._words.asleep[0], 0)

    def barrier(self) -> None:
        """Wait until all have come here, and let them go on."""
        self.gather()
        self._atomics.store(self._words.released, self.barriers)
        for worker in range(1, self.active + 1):
            self._wake(worker)

    def _wake(self, worker: int) -> None:
        if self._atomics.load(self._words.asleep[worker]):
            try:
                self._rings[worker - 1]()
            except OSError:
                self._handle(worker, None)

    def _listen(self) -> None:
        """Sleep until a worker says something or is gone."""
        for place in self._sleeper.sleep():
            try:
                message = self._peers[place].recv_bytes()
            except (EOFError, OSError):
                self._handle(place + 1, None)
                continue
            if message != WAKE_UP:
                self._handle(place + 1, message)
