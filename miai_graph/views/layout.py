"""Where boxes and the edges between them go: a layered drawing of a directed acyclic graph, as pure functions.

The way of Sugiyama, Tagawa and Toda (1981): boxes get rows so that edges run down (`ranks`), the boxes of each row are
ordered so that few edges cross (`ordering`), then they get coordinates that keep edges straight (`coordinates`). An
edge over several rows has a place of its own in each of them. y grows downwards.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from miai_graph.errors import ArgumentError
from miai_graph.views.coordinates import horizontal_centres, place_ports, row_extents
from miai_graph.views.ordering import ordered_rows
from miai_graph.views.ranks import Rows, assign_ranks, divide_long_edges

Point = tuple[float, float]

_SAME_PLACE = 1e-6


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle to be placed.

    key : what edges and the drawing call it
    width, height : in any unit
    column : within a row, boxes of a lower column stand left of those of a higher one
    group : within a row and column, boxes of a group stand side by side; None: of no group
    """

    key: Hashable
    width: float
    height: float
    column: int = 0
    group: Hashable = None


@dataclass(frozen=True, slots=True)
class Edge:
    """An arrow between two boxes, which runs down, or, if it is `upward`, up."""

    source: Hashable
    target: Hashable
    upward: bool = False


@dataclass(frozen=True, slots=True)
class Spacing:
    """The least distances: between boxes of a row, between rows, and from an edge to what stands beside it."""

    beside: float = 16.0
    below: float = 26.0
    edge: float = 9.0


@dataclass(frozen=True, slots=True)
class Drawing:
    """What came out.

    centres : of the boxes, by key
    rows : the number of the row of each box, by key
    routes : for each edge, in the order given, the corners of a line from the border of its source to that of its
        target. Edges of one source share the way as long as they can.
    width, height : everything lies between 0 and these
    extents : top and bottom of each row
    """

    centres: Mapping[Hashable, Point]
    rows: Mapping[Hashable, int]
    routes: Sequence[Sequence[Point]]
    width: float
    height: float
    extents: Sequence[Point] = ()


def layered(boxes: Sequence[Box], edges: Sequence[Edge], spacing: Spacing | None = None) -> Drawing:
    """A drawing in which no boxes overlap, no edge runs over a box, and edges run down (upward ones up).

    Raises
    ------
    ArgumentError
        if two boxes have one key, an edge has an end that is no box, or there is no such drawing, for a cycle.
    """
    spacing = spacing or Spacing()
    numbers = {box.key: number for number, box in enumerate(boxes)}
    if len(numbers) != len(boxes):
        raise ArgumentError(f"expected boxes with different keys; found {len(boxes)} boxes of {len(numbers)} keys")
    unknown = [end for edge in edges for end in (edge.source, edge.target) if end not in numbers]
    if unknown:
        raise ArgumentError(f"expected edges between boxes; found one with the end {unknown[0]!r}, which is no box")
    if not boxes:
        return Drawing({}, {}, [], 0.0, 0.0)
    links = [(numbers[edge.source], numbers[edge.target], edge.upward) for edge in edges]
    ranks = assign_ranks(boxes, [(b, a) if upward else (a, b) for a, b, upward in links])
    rows = divide_long_edges(boxes, links, ranks)
    rows.members = ordered_rows(rows)
    centres = horizontal_centres(rows, spacing.beside, spacing.edge)
    return _drawing(boxes, rows, centres, spacing)


def _drawing(boxes: Sequence[Box], rows: Rows, xs: list[float], spacing: Spacing) -> Drawing:
    ports = place_ports(rows, xs, spacing.edge)
    extents = row_extents(rows, xs, spacing.below)
    middles = [(top + bottom) / 2 for top, bottom in extents]
    ys = [middles[rank] for rank in rows.ranks]
    routes = [_route(rows, path, xs, ys, ports, extents) for path in rows.paths]
    routes = [route[::-1] if upward else route for route, upward in zip(routes, rows.upward, strict=True)]
    left = min(x - width / 2 for x, width in zip(xs, rows.widths, strict=True))
    right = max(x + width / 2 for x, width in zip(xs, rows.widths, strict=True))
    return Drawing(
        {box.key: (xs[number] - left, ys[number]) for number, box in enumerate(boxes)},
        {box.key: rows.ranks[number] for number, box in enumerate(boxes)},
        [[(x - left, y) for x, y in route] for route in routes],
        right - left,
        extents[-1][1],
        extents,
    )


def _route(
    rows: Rows,
    path: Sequence[int],
    xs: Sequence[float],
    ys: Sequence[float],
    ports: Mapping[tuple[int, int], float],
    extents: Sequence[Point],
) -> list[Point]:
    """The corners of a way from box to box, top to bottom: it leaves a row before it turns aside."""
    first, last = path[0], path[-1]
    start, end = ports[first, path[1]], ports[last, path[-2]]
    points = [(start, ys[first] + rows.heights[first] / 2), (start, extents[rows.ranks[first]][1])]
    for vertex in path[1:-1]:
        top, bottom = extents[rows.ranks[vertex]]
        points += [(xs[vertex], top), (xs[vertex], bottom)]
    points += [(end, extents[rows.ranks[last]][0]), (end, ys[last] - rows.heights[last] / 2)]
    return without_needless_points(points)


def without_needless_points(points: Sequence[Point]) -> list[Point]:
    """Without repeated points and those in the middle of a vertical line."""
    result: list[Point] = []
    for point in points:
        if result and math.dist(result[-1], point) < _SAME_PLACE:
            continue
        if len(result) > 1 and result[-2][0] == result[-1][0] == point[0]:
            result.pop()
        result.append(point)
    return result
