"""Which of two ways to do the same is faster, found out by doing it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median_high
from time import perf_counter_ns

from miai_graph.kernels.kernel import Kernel

CALLS_BEFORE_FIRST_TRIAL = 8

CALLS_BETWEEN_TRIALS = 512, 64
"""After so many calls the other way is tried again: the second one while the first one is used, and the first one."""

CALLS_OF_A_TRIAL, LATEST_CALLS = 3, 5
"""More than half of those that are compared are of the latest trial."""


class Trial:
    """Two kernels that compute the same to the last bit, of which the faster one is used.

    Parameters
    ----------
    kernels : the first one is faster on an idle machine, the second one where others want its cores
    """

    def __init__(self, kernels: Sequence[Kernel]) -> None:
        self._kernels = kernels
        self._durations_ns = [deque[int](maxlen=LATEST_CALLS) for _ in kernels]
        self._used = 0
        self._calls_left = CALLS_BEFORE_FIRST_TRIAL

    def __call__(self) -> None:
        self._calls_left -= 1
        way = self._used if self._calls_left >= CALLS_OF_A_TRIAL else 1 - self._used
        start_ns = perf_counter_ns()
        self._kernels[way]()
        self._durations_ns[way].append(perf_counter_ns() - start_ns)
        is_over = self._calls_left <= 0
        # Now and then only: comparing takes a microsecond.
        if is_over or (self._calls_left % LATEST_CALLS == 0 and self._is_slower(self._used)):
            self._used = int(self._is_slower(0))
            self._calls_left = CALLS_BETWEEN_TRIALS[self._used]

    def _is_slower(self, way: int) -> bool:
        own, other = self._durations_ns[way], self._durations_ns[1 - way]
        return bool(other) and median_high(own) > median_high(other)
