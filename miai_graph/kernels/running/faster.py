"""Two ways to compute the same, of which the one is used that is faster at the time: other programs come and go.

Threads that work in step lose whole slices of time to each other where some other program has the core of one of them.
"""

from __future__ import annotations

from time import perf_counter_ns

from miai_graph.kernels.kernel import Kernel

CALLS_BEFORE_FIRST_TRIAL, FEWEST_BETWEEN_TRIALS, MOST_BETWEEN_TRIALS = 8, 16, 512
"""After so many calls the other way is tried: more and more of them, as long as it turns out to be the slower one."""

CALLS_OF_A_TRIAL = 3
"""At most. The first one may have to wake threads."""

HOPELESS = 1.5
"""A trial ends where the other way takes so many times as long."""

CALLS_AVERAGED = 8
"""About so many of the last calls count."""

UNUSUAL = 4
"""A call that takes more than so many times as long as usual counts as if it took just that."""


class Faster:
    """A kernel that takes one of two ways, the first one to begin with."""

    def __init__(self, first: Kernel, second: Kernel) -> None:
        self._used, self._other = first, second
        self._used_ns = self._other_ns = 0.0
        """How long each of them takes; 0: not known."""
        self._trial_ns: list[int] = []
        self._interval = FEWEST_BETWEEN_TRIALS
        self._calls_left = CALLS_BEFORE_FIRST_TRIAL

    def __call__(self) -> None:
        is_trial = self._calls_left <= 0
        way = self._other if is_trial else self._used
        start = perf_counter_ns()
        way()
        (self._judge if is_trial else self._watch)(perf_counter_ns() - start)

    def _watch(self, nanoseconds: int) -> None:
        """Take note of a call of the way in use."""
        usual = self._used_ns or nanoseconds
        self._used_ns = usual + (min(nanoseconds, UNUSUAL * usual) - usual) / CALLS_AVERAGED
        self._calls_left -= 1
        if 0 < self._other_ns < self._used_ns:
            self._calls_left = 0

    def _judge(self, nanoseconds: int) -> None:
        """Take note of a call of the other way, and decide if that is enough."""
        self._trial_ns.append(nanoseconds)
        count = len(self._trial_ns)
        self._other_ns = sum(self._trial_ns) / count
        if count < CALLS_OF_A_TRIAL and self._other_ns < HOPELESS * self._used_ns:
            return
        if self._other_ns < self._used_ns:
            self._used, self._other = self._other, self._used
            self._used_ns, self._other_ns = self._other_ns, self._used_ns
            self._interval = FEWEST_BETWEEN_TRIALS
        else:
            self._interval = min(2 * self._interval, MOST_BETWEEN_TRIALS)
        self._trial_ns.clear()
        self._calls_left = self._interval
