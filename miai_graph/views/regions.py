"""Outlines around the boxes that belong together, row by row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

from miai_graph.views.layout import Box, Drawing, Point

_AIR = 4.0

Span = tuple[float, float, float, float]
"""Left, right, top and bottom of what a region covers in a row."""


def outlined_regions(boxes: Sequence[Box], drawing: Drawing) -> list[list[Point]]:
    """A polygon around each group of boxes, as far as they stand in rows that follow each other.

    Boxes of a group stand side by side in a row, so no other box lies inside.
    """
    spans: dict[Hashable, dict[int, Span]] = defaultdict(dict)
    sizes: dict[Hashable, int] = defaultdict(int)
    for box in boxes:
        if box.group is None:
            continue
        region, row = (box.group, box.column), drawing.rows[box.key]
        spans[region][row] = _joined(_span(box, drawing), spans[region].get(row))
        sizes[region] += 1
    return [
        _outline(run)
        for region, by_row in spans.items()
        if sizes[region] > 1
        for run in _runs(by_row)
    ]  # fmt: skip


def _span(box: Box, drawing: Drawing) -> Span:
    x, y = drawing.centres[box.key]
    return (
        x - box.width / 2 - _AIR,
        x + box.width / 2 + _AIR,
        y - box.height / 2 - _AIR,
        y + box.height / 2 + _AIR,
    )


def _joined(first: Span, second: Span | None) -> Span:
    if second is None:
        return first
    left, right, top, bottom = zip(first, second, strict=True)
    return min(left), max(right), min(top), max(bottom)


def _runs(by_row: dict[int, Span]) -> list[list[Span]]:
    """The spans of rows that follow each other without a gap."""
    runs: list[list[Span]] = []
    last = None
    for row in sorted(by_row):
        if last is None or row != last + 1:
            runs.append([])
        runs[-1].append(by_row[row])
        last = row
    return runs


def _outline(spans: Sequence[Span]) -> list[Point]:
    right_side = [point for _, right, top, bottom in spans for point in ((right, top), (right, bottom))]
    left_side = [point for left, _, top, bottom in reversed(spans) for point in ((left, bottom), (left, top))]
    return [*right_side, *left_side]
