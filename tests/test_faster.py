"""Of two ways the faster one is used, as far as that can be known."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from miai_graph.kernels import faster
from miai_graph.kernels.faster import FEWEST_BETWEEN_TRIALS, MOST_BETWEEN_TRIALS, Faster


class Race:
    """Two ways whose time passes on a clock of their own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.taken, self.nanoseconds = 0, [], [100, 200]
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


def test_the_first_way_is_used_and_the_other_one_tried_ever_less(race: Race) -> None:
    taken = race.calls(20 * MOST_BETWEEN_TRIALS)
    trials = [place for place, way in enumerate(taken) if way == 1]
    between = [later - earlier - 1 for earlier, later in itertools.pairwise(trials)]
    assert trials[0] == FEWEST_BETWEEN_TRIALS
    assert between == sorted(between)
    assert (between[0], between[-1]) == (2 * FEWEST_BETWEEN_TRIALS, MOST_BETWEEN_TRIALS)


def test_the_second_way_is_used_where_it_is_faster(race: Race) -> None:
    race.nanoseconds[1] = 50
    taken = race.calls(1000)
    assert sum(taken) > 980
    assert set(taken[FEWEST_BETWEEN_TRIALS + 1 : 2 * FEWEST_BETWEEN_TRIALS]) == {1}


def test_what_is_slow_once_stays_in_use(race: Race) -> None:
    race.calls(100)
    race.nanoseconds[0] = 10**6
    race.calls(1)
    race.nanoseconds[0] = 100
    assert sum(race.calls(50)) <= 1


def test_what_becomes_slow_is_left_and_taken_up_again(race: Race) -> None:
    race.calls(2000)
    race.nanoseconds[0] = 10**4
    assert sum(race.calls(20)) >= 14
    assert sum(race.calls(10_000)) > 9900
    race.nanoseconds[0] = 100
    race.calls(5 * MOST_BETWEEN_TRIALS)
    assert sum(race.calls(1000)) < 10


def test_errors_go_through_and_count_for_nothing(race: Race) -> None:
    def fail() -> None:
        raise ValueError("expected")

    kernel = Faster(fail, race._way(1))
    for _ in range(3 * FEWEST_BETWEEN_TRIALS):
        with pytest.raises(ValueError, match="expected"):
            kernel()
    assert not race.taken
