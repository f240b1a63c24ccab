"""Names beside points: they cover neither points nor each other, nor do lines to them."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miai_graph.views.point_labels import Box, LabelPlaces

INSIDE = (0.0, 100.0, 0.0, 80.0)
WALL = (40.0, 42.0, 0.0, 80.0)
WIDTH, HEIGHT, RADIUS = 18.0, 4.0, 2.0
ROUNDING = 1e-6

positions = st.lists(st.tuples(st.floats(0, 100), st.floats(0, 80)), min_size=1, max_size=12)


def meet(first: Box, second: Box) -> bool:
    across, up = ((first[at], first[at + 1], second[at], second[at + 1]) for at in (0, 2))
    return all(min(end, last) - max(start, begin) > ROUNDING for start, end, begin, last in (across, up))


@given(points=positions, may_be_away=st.booleans())
def test_nothing_is_covered(points: list[tuple[float, float]], may_be_away: bool) -> None:
    places = LabelPlaces(points, [RADIUS] * len(points), [WALL], INSIDE)
    taken = [places.take(number, WIDTH, HEIGHT, may_be_away=may_be_away) for number in range(len(points))]
    boxes: dict[int, Box] = {}
    lines: dict[int, list[tuple[float, float]]] = {}
    for number, ((x, y), place) in enumerate(zip(points, taken, strict=True)):
        if place is None:
            continue
        left, middle = x + place.left, y + place.middle
        boxes[number] = left, left + WIDTH, middle - HEIGHT / 2, middle + HEIGHT / 2
        if place.line_end is not None:
            assert may_be_away
            ends = (x, x + place.line_end[0]), (y, y + place.line_end[1])
            lines[number] = list(zip(*(np.linspace(*pair, 20) for pair in ends), strict=True))
    assert not any(meet(first, second) for first, second in combinations(boxes.values(), 2))
    for number, (left, right, bottom, top) in boxes.items():
        assert not meet((left, right, bottom, top), WALL)
        assert -1e-9 <= left
        assert right <= 100 + 1e-9
        assert -1e-9 <= bottom
        assert top <= 80 + 1e-9
        for other, (x, y) in enumerate(points):
            if other != number:
                assert not meet((left, right, bottom, top), (x - RADIUS, x + RADIUS, y - RADIUS, y + RADIUS))
        crossing = [place for other, line in lines.items() if other != number for place in line]
        assert not any(left < x < right and bottom < y < top for x, y in crossing)


def test_a_name_stands_beside_its_point_where_it_can() -> None:
    place = LabelPlaces([(50.0, 40.0)], [RADIUS], [], INSIDE).take(0, WIDTH, HEIGHT, may_be_away=True)
    assert place is not None
    assert (place.left, place.middle, place.line_end) == (pytest.approx(RADIUS + 2), pytest.approx(0), None)


def test_a_name_without_room_stands_away_if_it_may() -> None:
    crowd = [(50.0 + across, 40.0 + up) for across in (-6, 0, 6) for up in (-4, 0, 4)]
    middle = crowd.index((50.0, 40.0))
    places = LabelPlaces(crowd, [RADIUS] * len(crowd), [], INSIDE)
    assert places.take(middle, WIDTH, HEIGHT) is None
    place = places.take(middle, WIDTH, HEIGHT, may_be_away=True)
    assert place is not None
    assert place.line_end is not None
