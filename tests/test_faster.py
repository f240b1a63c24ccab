"""Of two ways the faster one is used, as far as that can be known."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from miai_graph.kernels.running import faster
from miai_graph.kernels.running.faster import (
    CALLS_BEFORE_FIRST_TRIAL,
    CALLS_OF_A_TRIAL,
    FEWEST_BETWEEN_TRIALS,
    MOST_BETWEEN_TRIALS,
    Faster,
)


class Race:
    """Two ways whose time passes on a clock of their own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.taken, self.nanoseconds = 0, [], [100, 180]
        self.kernel = Faster(self._way(0), self._way(1))
        monkeypatch.setattr(faster, "perf_counter_ns", lambda: self.now)

    def _way(self, number: int) -> Callable[[], None]:
        def take() -> None:
            self.taken.append(number)
            self.now += self.nanoseconds[number]

        return take

    def calls(self, count: int) -> list[int]:
        self.taken.clear()
        for _ in range(count):
            self.kernel()
        return list(self.taken)


@pytest.fixture
def race(monkeypatch: pytest.MonkeyPatch) -> Race:
    return Race(monkeypatch)


@pytest.mark.parametrize(("nanoseconds", "calls"), [(149, CALLS_OF_A_TRIAL), (150, 1)])
def test_the_first_way_is_used_and_the_other_one_tried_ever_less(race: Race, nanoseconds: int, calls: int) -> None:
    race.nanoseconds[1] = nanoseconds
    groups = [(way, len(list(group))) for way, group in itertools.groupby(race.calls(20 * MOST_BETWEEN_TRIALS))]
    assert {length for way, length in groups if way == 1} == {calls}
    first, *between, _ = (length for way, length in groups if way == 0)
    assert first == CALLS_BEFORE_FIRST_TRIAL
    assert between == sorted(between)
    assert (between[0], between[-1]) == (2 * FEWEST_BETWEEN_TRIALS, MOST_BETWEEN_TRIALS)


def test_the_second_way_is_used_where_it_is_faster(race: Race) -> None:
    race.nanoseconds[1] = 50
    race.calls(CALLS_BEFORE_FIRST_TRIAL)
    assert race.calls(CALLS_OF_A_TRIAL + FEWEST_BETWEEN_TRIALS) == [1] * (CALLS_OF_A_TRIAL + FEWEST_BETWEEN_TRIALS)
    assert sum(race.calls(10 * MOST_BETWEEN_TRIALS)) > 9.9 * MOST_BETWEEN_TRIALS


def test_a_way_that_has_to_warm_up_is_found_to_be_faster(race: Race) -> None:
    race.calls(CALLS_BEFORE_FIRST_TRIAL)
    race.nanoseconds[1] = 140
    race.calls(1)
    race.nanoseconds[1] = 50
    assert race.calls(10) == [1] * 10


def test_what_is_slow_once_stays_in_use(race: Race) -> None:
    race.calls(100)
    race.nanoseconds[0] = 10**6
    race.calls(1)
    race.nanoseconds[0] = 100
    assert sum(race.calls(50)) <= CALLS_OF_A_TRIAL


def test_what_becomes_slow_is_left_and_taken_up_again(race: Race) -> None:
    race.calls(5 * MOST_BETWEEN_TRIALS)
    race.nanoseconds[0] = 10**4
    assert sum(race.calls(20)) >= 14
    assert sum(race.calls(10_000)) > 9900
    race.nanoseconds[0] = 100
    race.calls(MOST_BETWEEN_TRIALS + CALLS_OF_A_TRIAL)
    assert sum(race.calls(1000)) < 50


def test_errors_go_through_and_count_for_nothing(race: Race) -> None:
    def fail() -> None:
        raise ValueError("expected")

    kernel = Faster(fail, race._way(1))
    for _ in range(3 * FEWEST_BETWEEN_TRIALS):
        with pytest.raises(ValueError, match="expected"):
            kernel()
    assert not race.taken
