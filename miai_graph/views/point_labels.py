"""Where the names of points stand: beside them, or at the end of a thin line, and never over anything else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

Box = tuple[float, float, float, float]
"""Left, right, bottom, top."""

_NEAR = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)]
_LINES_AWAY = (1.5, 2.5, 3.5, 4.5)
_GAP = 2.0
_LINE_BOXES = 24


@dataclass(frozen=True)
class LabelPlace:
    """Where a name stands, from its point: its left end and the middle of its height.

    line_end : of a thin line from the point to the name; None: it stands beside it
    """

    left: float
    middle: float
    line_end: tuple[float, float] | None = None


class LabelPlaces:
    """Gives names their places, one after another; lengths are of any unit, y grows upwards.

    Parameters
    ----------
    points, radii : where the points are, and how large
    obstacles : boxes over which nothing is written
    inside : the box that holds all
    """

    def __init__(
        self, points: Sequence[tuple[float, float]], radii: Sequence[float], obstacles: Iterable[Box], inside: Box
    ) -> None:
        self._points = points
        self._radii = radii
        self._discs = [(x - r, x + r, y - r, y + r) for (x, y), r in zip(points, radii, strict=True)]
        self._obstacles = list(obstacles)
        self._inside = inside
        self._names: list[Box] = []

    def take(self, number: int, width: float, height: float, *, may_be_away: bool = False) -> LabelPlace | None:
        """The place of a point's name of that size; None: there is none.

        Parameters
        ----------
        may_be_away : whether it may stand some lines above or below, where there is no room beside the point
        """
        x, y = self._points[number]
        others = [*self._discs[:number], *self._discs[number + 1 :], *self._obstacles, *self._names]
        for left, bottom, is_away in self._candidates(number, width, height, may_be_away):
            box = left, left + width, bottom, bottom + height
            end = (left if left > x else left + width, bottom + height / 2) if is_away else None
            line = _boxes_along((x, y), end) if end is not None else []
            if self._holds(box) and not _meet([box], others) and not _meet(line, self._names):
                self._names.append(box)
                self._obstacles += line
                return LabelPlace(left - x, bottom + height / 2 - y, None if end is None else (end[0] - x, end[1] - y))
        return None

    def _candidates(
        self, number: int, width: float, height: float, may_be_away: bool
    ) -> Iterator[tuple[float, float, bool]]:
        """Left and bottom, and whether that is away from the point; the best first."""
        (x, y), radius = self._points[number], self._radii[number]
        beside = {across: x + across * (radius + _GAP) - (1 - across) / 2 * width for across in (1, 0, -1)}
        for across, up in _NEAR:
            yield beside[across], y + up * radius - (1 - up) / 2 * height, False
        for lines in _LINES_AWAY if may_be_away else ():
            for across in (1, -1):
                for up in (1, -1):
                    yield beside[across], y + up * (radius + lines * height) - height / 2, True

    def _holds(self, box: Box) -> bool:
        left, right, bottom, top = self._inside
        return left <= box[0] and box[1] <= right and bottom <= box[2] and box[3] <= top


def _meet(boxes: Iterable[Box], others: Sequence[Box]) -> bool:
    return any(
        box[0] < other[1] and other[0] < box[1] and box[2] < other[3] and other[2] < box[3]
        for box in boxes
        for other in others
    )


def _boxes_along(start: tuple[float, float], end: tuple[float, float]) -> list[Box]:
    """Small boxes along a line."""
    along = zip(*(np.linspace(*ends, _LINE_BOXES).tolist() for ends in zip(start, end, strict=True)), strict=True)
    return [(x - 1, x + 1, y - 1, y + 1) for x, y in along]
