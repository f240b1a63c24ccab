"""Threads that run native code beside the one that calls. They share work that takes a millisecond or more."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from threading import Lock, Thread
from typing import Any
from weakref import WeakSet

import numpy as np

Call = Callable[[], Any]

WORTH_SHARING = 1 << 20
"""So many bytes read and written, or so many floating-point operations by 16, are worth the time to wake a thread."""


_crews: WeakSet[Crew] = WeakSet()


class Crew:
    """A number of threads, of which the calling one is the first.

    The others wait for what they are given; they end with the process. What they are given keeps no lock of Python's
    for long, and does not fail: native code, and NumPy's calls of prepared arrays.

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

    def run(self, calls: Sequence[Call]) -> None:
        """Make all calls at once: as many as there are threads, or fewer. Returns when all are done."""
        if not self._lock.acquire(blocking=False):
            # Another thread of this process has the crew: two steps at once, on hosts that share a process.
            for call in calls:
                call()
            return
        try:
            helpers = self._others[: len(calls) - 1]
            for helper, call in zip(helpers, calls, strict=False):
                helper.begin(call)
            for call in calls[len(helpers) :]:
                call()
            for helper in helpers:
                helper.wait()
        finally:
            self._lock.release()


class _Helper:
    """One of the threads, with what it does next."""

    def __init__(self) -> None:
        self._call: Call | None = None
        self._ordered, self._done = Lock(), Lock()
        self._ordered.acquire()
        self._done.acquire()
        Thread(target=self._work, name="kernels", daemon=True).start()

    def begin(self, call: Call) -> None:
        self._call = call
        self._ordered.release()

    def wait(self) -> None:
        self._done.acquire()

    def _work(self) -> None:
        while True:
            self._ordered.acquire()
            assert self._call is not None
            # Only this thread's: warnings of infinite values are off in the calling one too.
            with np.errstate(all="ignore"):
                self._call()
            self._done.release()


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


def together(calls: Sequence[Call]) -> Call:
    """What makes all calls, at once if there are several; there is a thread for each."""
    return calls[0] if len(calls) == 1 else partial(crew(len(calls)).run, calls)
