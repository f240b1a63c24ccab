"""Threads that compute beside the one that calls, for shares of which not all are native code; see `team`."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from queue import SimpleQueue
from threading import Lock, Thread
from weakref import WeakSet

import numpy as np

from miai_graph.kernels.compiler.denormals import FlushedDenormals
from miai_graph.kernels.kernel import Kernel

_crews: WeakSet[Crew] = WeakSet()


class Crew:
    """A number of threads, of which the calling one is the first.

    The others wait for what they are given; they end with the process. What they are given keeps no lock of Python's
    for long: native code, and NumPy's calls of prepared arrays.

    Parameters
    ----------
    size : with the calling thread
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._others = [_Helper() for _ in range(size - 1)]
        self._lock = Lock()
        _crews.add(self)

    def begin_anew(self) -> None:
        """In a fork of the process, where the calling thread is alone."""
        self._others = []
        self._lock = Lock()

    def run(self, calls: Sequence[Kernel]) -> None:
        """Make all calls at once: as many as there are threads, or fewer. Returns, or raises, when all are done."""
        if self._lock.locked():
            # Another thread of this process has the crew: two steps at once, on hosts that share a process.
            for call in calls:
                call()
            return
        helpers = self._others[: len(calls) - 1]
        with self._lock:
            try:
                done = [helper.begin(call) for helper, call in zip(helpers, calls, strict=False)]
                for call in calls[len(helpers) :]:
                    call()
                for lock in done:
                    lock.acquire()
            except BaseException:
                _finish(helpers)
                raise
            for helper in helpers:
                helper.raise_error()


class _Helper:
    """One of the threads, and what it has to do."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Kernel, Lock]] = SimpleQueue()
        self._error: BaseException | None = None
        Thread(target=self._work, name="kernels", daemon=True).start()

    def begin(self, call: Kernel) -> Lock:
        """Make a call after those before. The lock that this returns is free when it is done."""
        self._error = None
        done = Lock()
        done.acquire()
        self._calls.put((call, done))
        return done

    def raise_error(self) -> None:
        """Raise what the last call raised."""
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        # Only this thread's: both hold in the calling one too.
        with np.errstate(all="ignore"), FlushedDenormals():
            while True:
                call, done = self._calls.get()
                try:
                    call()
                except BaseException as error:
                    self._error = error
                done.release()


def _finish(helpers: Sequence[_Helper]) -> None:
    """Wait until they have done all that was begun, however often Ctrl-C is pressed: they write into memory."""
    for helper in helpers:
        is_done = False
        while not is_done:
            with suppress(KeyboardInterrupt):
                helper.begin(_nothing).acquire()
                is_done = True


def _nothing() -> None:
    """Is done when all before is."""


def _begin_anew() -> None:
    for each in _crews:
        each.begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


@functools.cache
def crew(size: int) -> Crew:
    """The crew of this size, of this process."""
    return Crew(size)


def spans(length: int, shares: int, unit: int = 1) -> list[slice]:
    """A length in so many parts, or fewer, that are about equal, and multiples of a unit but for the last one."""
    units = -(-length // unit)
    ends = [units * share // shares * unit for share in range(shares)]
    return [slice(start, end) for start, end in pairwise([*ends, length]) if end > start]


@dataclass(frozen=True, eq=False)
class Together:
    """Kernels that run at the same time, each in a thread of its own."""

    kernels: tuple[Kernel, ...]

    def __call__(self) -> None:
        crew(len(self.kernels)).run(self.kernels)


def together(kernels: Sequence[Kernel]) -> Kernel:
    """What computes them all, at once if there are several."""
    return kernels[0] if len(kernels) == 1 else Together(tuple(kernels))
