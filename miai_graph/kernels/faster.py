"""Two ways to compute the same, of which the one is used that is faster at the time: other programs come and go.

Threads that work in step lose whole slices of time to each other where some other program has the core of one of them.
"""

from __future__ import annotations

from time import perf_counter_ns

from miai_graph.kernels.kernel import Kernel

FEWEST_BETWEEN_TRIALS, MOST_BETWEEN_TRIALS = 8, 512
"""After so many calls the other way is tried: more and more of them, as long as it turns out to be the slower one."""


class Faster:
    """A kernel that takes one of two ways, the first one to begin with.

    What is slow once may have met with something else: an estimate falls at once, and grows by a half at most.
    """

    def __init__(self, first: Kernel, second: Kernel) -> None:
        self._ways = first, second
        self._nanoseconds = [0, 0]
        self._used = 0
        self._interval = self._calls_left = FEWEST_BETWEEN_TRIALS

    def __call__(self) -> None:
        used = self._used
        is_trial = self._calls_left <= 0
        way = 1 - used if is_trial else used
        start = perf_counter_ns()
        self._ways[way]()
        self._learn(way, perf_counter_ns() - start)
        if is_trial:
            self._decide(way)
        elif 0 < self._nanoseconds[1 - used] < self._nanoseconds[used]:
            self._calls_left = 0
        else:
            self._calls_left -= 1

    def _learn(self, way: int, nanoseconds: int) -> None:
        before = self._nanoseconds[way] or nanoseconds
        self._nanoseconds[way] = min(nanoseconds, (before + min(nanoseconds, 2 * before)) // 2)

    def _decide(self, tried: int) -> None:
        if self._nanoseconds[tried] < self._nanoseconds[self._used]:
            self._used = tried
            self._interval = FEWEST_BETWEEN_TRIALS
        else:
            self._interval = min(2 * self._interval, MOST_BETWEEN_TRIALS)
        self._calls_left = self._interval
