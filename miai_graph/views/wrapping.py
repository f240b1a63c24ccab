"""Very tall drawings are cut between rows, like text in columns, and the pieces stand side by side."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from miai_graph.views.layout import Box, Drawing, Edge, Point

_TALLEST = 2.2
"""Drawings are left alone up to this ratio of height to width."""
_LEAST_HEIGHT = 900.0
_WANTED = 1.3
_MOST_LINES = 3
"""Where more lines than this run down, there is no cut."""
_AIR, _LANE = 14.0, 6.0
_NEAR = 1e-6


@dataclass(frozen=True, slots=True)
class _Cut:
    """A cut below a row.

    row : the last one above the cut
    above, below : the y at which that row ends and the next one begins
    lines : for each source whose edges cross, the x above and below
    """

    row: int
    above: float
    below: float
    lines: dict[Hashable, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows that stay together: how far they are moved, and where they end."""

    first_row: int
    shift: Point
    right: float
    bottom: float


def wrapped(drawing: Drawing, boxes: Sequence[Box], edges: Sequence[Edge]) -> Drawing:
    """The same drawing, in pieces side by side if it is very tall and can be cut; else as it is.

    Row numbers leave one out at each cut, for the rows before and behind it are not next to each other any more.
    """
    if drawing.height < max(_LEAST_HEIGHT, _TALLEST * drawing.width):
        return drawing
    cuts = _chosen_cuts(drawing, edges)
    if not cuts:
        return drawing
    pieces = _placed_pieces(drawing, boxes, cuts)
    piece_of = {box.key: sum(drawing.rows[box.key] > cut.row for cut in cuts) for box in boxes}
    centres = {key: _moved([centre], pieces[piece_of[key]])[0] for key, centre in drawing.centres.items()}
    routes = [
        _wrapped_route(route, edge, piece_of[edge.source], piece_of[edge.target], pieces, cuts)
        for route, edge in zip(drawing.routes, edges, strict=True)
    ]
    extents = list(drawing.extents)
    rows = {key: row + piece_of[key] for key, row in drawing.rows.items()}
    return Drawing(centres, rows, extents, routes, pieces[-1].right, max(piece.bottom for piece in pieces))


def _chosen_cuts(drawing: Drawing, edges: Sequence[Edge]) -> list[_Cut]:
    """Cuts that make pieces of about the same height, where few lines run."""
    possible = [cut for row in range(len(drawing.extents) - 1) if (cut := _cut(drawing, edges, row)) is not None]
    count = max(2, math.ceil(math.sqrt(drawing.height / (_WANTED * (drawing.width + 2 * _AIR)))))
    height = drawing.height / count
    chosen: list[_Cut] = []
    for number in range(1, count):
        near = [cut for cut in possible if abs(cut.above - number * height) < height / 2 and cut not in chosen]
        if near:
            chosen.append(min(near, key=lambda cut: abs(cut.above - number * height) + 80 * len(cut.lines)))  # noqa: B023
    return sorted(chosen, key=lambda cut: cut.row)


def _cut(drawing: Drawing, edges: Sequence[Edge], row: int) -> _Cut | None:
    """The cut below a row; None if too many lines cross it, or one that runs up."""
    above, below = drawing.extents[row][1], drawing.extents[row + 1][0]
    lines: dict[Hashable, tuple[float, float]] = {}
    for route, edge in zip(drawing.routes, edges, strict=True):
        if min(drawing.rows[edge.source], drawing.rows[edge.target]) > row:
            continue
        if max(drawing.rows[edge.source], drawing.rows[edge.target]) <= row:
            continue
        if edge.upward:
            return None
        upper = [x for x, y in route if y <= above + _NEAR][-1]
        lower = next(x for x, y in route if y >= below - _NEAR)
        lines[edge.source] = (lines.get(edge.source, (upper, lower))[0], lower)
    return _Cut(row, above, below, lines) if len(lines) <= _MOST_LINES else None
