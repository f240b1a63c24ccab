"""Of two ways to do the same the faster one is used, whichever that is at the time."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from miai_graph.kernels import trial
from miai_graph.kernels.trial import CALLS_BETWEEN_TRIALS, LATEST_CALLS, Trial


class Clock:
    """A clock that goes on only when something is done."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.done: list[int] = []
        self.durations_ns = [1000, 2000]

    def way(self, number: int) -> Callable[[], None]:
        def run() -> None:
            self.done.append(number)
            self.now_ns += self.durations_ns[number]

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(trial, "perf_counter_ns", lambda: made.now_ns)
    return made


def calls(clock: Clock, kernel: Trial, count: int) -> list[int]:
    clock.done.clear()
    for _ in range(count):
        kernel()
    return clock.done


def test_the_first_way_is_used_while_it_is_the_faster_one(clock: Clock) -> None:
    kernel = Trial([clock.way(0), clock.way(1)])
    assert calls(clock, kernel, 5) == [0] * 5
    found = calls(clock, kernel, 10 * CALLS_BETWEEN_TRIALS[0])
    assert len(found) == 10 * CALLS_BETWEEN_TRIALS[0]
    assert 0 < sum(found) < len(found) / 100


def test_the_second_way_is_used_when_the_first_one_gets_slow_and_until_it_is_fast_again(clock: Clock) -> None:
    kernel = Trial([clock.way(0), clock.way(1)])
    calls(clock, kernel, 50)
    clock.durations_ns[0] = 8000
    found = calls(clock, kernel, 40)
    assert found.count(0) <= 3 * LATEST_CALLS
    assert found[-10:] == [1] * 10
    clock.durations_ns[0] = 1000
    assert calls(clock, kernel, 2 * CALLS_BETWEEN_TRIALS[1])[-10:] == [0] * 10


def test_one_call_that_takes_long_changes_nothing(clock: Clock) -> None:
    kernel = Trial([clock.way(0), clock.way(1)])
    calls(clock, kernel, 50)
    for _ in range(5):
        clock.durations_ns[0] = 10**9
        assert calls(clock, kernel, 1) == [0]
        clock.durations_ns[0] = 1000
        assert calls(clock, kernel, 7) == [0] * 7


def test_both_slow_at_once_is_no_reason_to_change(clock: Clock) -> None:
    kernel = Trial([clock.way(0), clock.way(1)])
    calls(clock, kernel, 50)
    clock.durations_ns[:] = [10_000, 20_000]
    found = calls(clock, kernel, 300)
    assert found[-20:] == [0] * 20
    assert sum(found) < 100


def test_an_error_passes() -> None:
    def fail() -> None:
        raise ValueError("no")

    kernel = Trial([fail, time.sleep])
    with pytest.raises(ValueError, match="no"):
        kernel()
