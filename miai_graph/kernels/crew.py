"""Threads that run native code beside the one that calls. They share work that takes a millisecond or more."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from functools import partial
from threading import Lock, Thread
from typing import Any

Call = Callable[[], Any]

WORTH_SHARING = 1 << 20
"""So many bytes read and written, or so many floating-point operations by 16, are worth the time to wake a thread."""


class Crew:
    """A number of threads, of which the calling one is the first.

    The others wait for what they are given; they end with the process. What they are given is native code: it keeps no
    lock of Python's and does not fail.

    Parameters
    ----------
    size : with the calling thread
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._others = [_Helper() for _ in range(size - 1)]
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
            for helper, call in zip(helpers, calls[1:], strict=True):
                helper.begin(call)
            calls[0]()
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
            self._call()
            self._done.release()


@functools.cache
def crew(size: int) -> Crew:
    """The crew of this size, of this process."""
    return Crew(size)


def together(calls: Sequence[Call]) -> Call:
    """What makes all calls, at once if there are several; there is a thread for each."""
    return calls[0] if len(calls) == 1 else partial(crew(len(calls)).run, calls)
