"""Very tall drawings are cut between rows, like text in columns, and the pieces stand side by side."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from miai_graph.views.layout import Box, Drawing, Edge, Point, without_needless_points

_TALLEST = 2.2
"""Drawings are left alone up to this ratio of height to width."""
_LEAST_HEIGHT = 900.0
_WANTED = 1.3
_MOST_LINES = 4
"""Where more lines than this run down or up, there is no cut."""
_AIR, _LANE = 14.0, 6.0
_COST_OF_LINE = 80.0
_NEAR = 1e-6

_Way = tuple[Hashable, bool]
"""The source of edges that share their way, and whether they run up."""


@dataclass(frozen=True, slots=True)
class _Cut:
    """A cut below a row.

    row : the last one above the cut
    above, below : the y at which that row ends and the next one begins
    lines : the ways that cross it, from left to right
    """

    row: int
    above: float
    below: float
    lines: Sequence[_Way]


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows that stay together: how far they are moved, and where they end then."""

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
    piece_of = {key: sum(row > cut.row for cut in cuts) for key, row in drawing.rows.items()}
    routes = []
    for route, edge in zip(drawing.routes, edges, strict=True):
        first, last = sorted((piece_of[edge.source], piece_of[edge.target]))
        wound = _wrapped_route(_downward(route, edge), (edge.source, edge.upward), first, last, pieces, cuts)
        routes.append(wound[::-1] if edge.upward else wound)
    return Drawing(
        centres={key: _moved(centre, pieces[piece_of[key]]) for key, centre in drawing.centres.items()},
        rows={key: row + piece_of[key] for key, row in drawing.rows.items()},
        routes=routes,
        width=pieces[-1].right,
        height=max(piece.bottom for piece in pieces),
    )


def _chosen_cuts(drawing: Drawing, edges: Sequence[Edge]) -> list[_Cut]:
    """Cuts that make pieces of about the same height, where few lines run."""
    possible = [cut for row in range(len(drawing.extents) - 1) if (cut := _cut(drawing, edges, row)) is not None]
    count = max(2, round(math.sqrt(drawing.height / (_WANTED * (drawing.width + 2 * _AIR)))))
    height = drawing.height / count
    chosen: dict[int, _Cut] = {}
    for number in range(1, count):
        costs = {
            cut.row: abs(cut.above - number * height) + _COST_OF_LINE * len(cut.lines)
            for cut in possible
            if abs(cut.above - number * height) < height / 2 and cut.row not in chosen
        }
        if costs:
            row = min(costs, key=costs.__getitem__)
            chosen[row] = next(cut for cut in possible if cut.row == row)
    return [chosen[row] for row in sorted(chosen)]


def _cut(drawing: Drawing, edges: Sequence[Edge], row: int) -> _Cut | None:
    """The cut below a row; None if too many lines cross it."""
    above, below = drawing.extents[row][1], drawing.extents[row + 1][0]
    lines: dict[_Way, float] = {}
    for route, edge in zip(drawing.routes, edges, strict=True):
        ends = sorted((drawing.rows[edge.source], drawing.rows[edge.target]))
        if ends[0] <= row < ends[1]:
            lines.setdefault((edge.source, edge.upward), _last_x(_downward(route, edge), above))
    return _Cut(row, above, below, sorted(lines, key=lines.__getitem__)) if len(lines) <= _MOST_LINES else None


def _downward(route: Sequence[Point], edge: Edge) -> Sequence[Point]:
    """The corners of the route from top to bottom."""
    return route[::-1] if edge.upward else route


def _last_x(route: Sequence[Point], above: float) -> float:
    """Where a line that runs down is when it leaves what lies above."""
    return [x for x, y in route if y <= above + _NEAR][-1]


def _first_x(route: Sequence[Point], below: float) -> float:
    return next(x for x, y in route if y >= below - _NEAR)


def _placed_pieces(drawing: Drawing, boxes: Sequence[Box], cuts: Sequence[_Cut]) -> list[_Piece]:
    """The pieces side by side, with room for the lines that lead from the end of one to the beginning of the next."""
    tops = [0.0, *(cut.below for cut in cuts)]
    bottoms = [*(cut.above for cut in cuts), drawing.height]
    lines = [*(len(cut.lines) for cut in cuts), 0]
    head = max(_AIR + _LANE * number for number in lines)
    pieces: list[_Piece] = []
    x = 0.0
    for number, (top, bottom) in enumerate(zip(tops, bottoms, strict=True)):
        sides = [
            drawing.centres[box.key][0] + side * box.width
            for box in boxes
            for side in (-0.5, 0.5)
            if top - _NEAR <= drawing.centres[box.key][1] <= bottom + _NEAR
        ]
        sides += [px for route in drawing.routes for px, py in route if top - _NEAR <= py <= bottom + _NEAR]
        down = head - top if number else 0.0
        right = x + max(sides) - min(sides)
        room_below = _AIR + _LANE * lines[number] if lines[number] else 0.0
        pieces.append(_Piece((x - min(sides), down), right, bottom + down + room_below))
        x = right + 2 * _AIR + _LANE * lines[number]
    return pieces


def _moved(point: Point, piece: _Piece) -> Point:
    return point[0] + piece.shift[0], point[1] + piece.shift[1]


def _wrapped_route(
    route: Sequence[Point],
    way: _Way,
    first: int,
    last: int,
    pieces: Sequence[_Piece],
    cuts: Sequence[_Cut],
) -> list[Point]:
    """A route from one piece to another: down, to the right, up beside the piece, and into the next from above."""
    if first == last:
        return [_moved(point, pieces[first]) for point in route]
    result: list[Point] = []
    for number in range(first, last + 1):
        top = cuts[number - 1].below if number > first else -math.inf
        bottom = cuts[number].above if number < last else math.inf
        points = [point for point in route if top - _NEAR <= point[1] <= bottom + _NEAR]
        if number > first:
            points.insert(0, (_first_x(route, top), top))
        if number < last:
            points.append((_last_x(route, bottom), bottom))
        moved = [_moved(point, pieces[number]) for point in points]
        if number > first:
            result += _connection(result[-1], moved[0], pieces[number - 1], cuts[number - 1], way)
        result += moved
    return without_needless_points(result)


def _connection(start: Point, end: Point, piece: _Piece, cut: _Cut, way: _Way) -> list[Point]:
    """The corners between the end of a piece and the beginning of the next; lines side by side do not cross."""
    place = list(cut.lines).index(way)
    outer = len(cut.lines) - 1 - place
    lane_y = start[1] + _AIR / 2 + _LANE * outer
    channel_x = piece.right + _AIR + _LANE * outer
    head_y = end[1] - _AIR / 2 - _LANE * (place + 0.5)
    return [(start[0], lane_y), (channel_x, lane_y), (channel_x, head_y), (end[0], head_y)]
