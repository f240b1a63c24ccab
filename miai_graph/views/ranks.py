"""Rows for the boxes of a drawing, and places in the rows between for long edges."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

from miai_graph.errors import ArgumentError


class Sized(Protocol):
    """What is to be known of a box here."""

    @property
    def width(self) -> float: ...

    @property
    def height(self) -> float: ...

    @property
    def column(self) -> int: ...

    @property
    def group(self) -> Hashable: ...


@dataclass
class Rows:
    """Boxes and way points of edges, all called vertices and numbered; boxes come first.

    ranks, widths, heights, columns, groups : of each vertex
    above, below : the neighbours of each vertex in the row above and the row below
    members : the vertices of each row, from left to right
    paths : the vertices of each edge, from top to bottom
    upward : whether each edge runs against that
    boxes : the number of boxes
    """

    ranks: list[int]
    widths: list[float]
    heights: list[float]
    columns: list[float]
    groups: list[Hashable]
    above: list[list[int]]
    below: list[list[int]]
    members: list[list[int]] = field(default_factory=list)
    paths: list[list[int]] = field(default_factory=list)
    upward: list[bool] = field(default_factory=list)
    boxes: int = 0

    def is_way_point(self, vertex: int) -> bool:
        return vertex >= self.boxes


def assign_ranks(boxes: Sequence[Sized], edges: Sequence[tuple[int, int]]) -> list[int]:
    """A row for each box: below all boxes from which edges come, by the longest path.

    What has nothing above it, or only what is used for nothing else, moves down to where its own column uses it; what
    depends on it in other columns then stands beside.

    Raises
    ------
    ArgumentError
        if there is a cycle.
    """
    above: list[list[int]] = [[] for _ in boxes]
    below: list[list[int]] = [[] for _ in boxes]
    for upper, lower in dict.fromkeys(edges):
        above[lower].append(upper)
        below[upper].append(lower)
    order = _from_top_to_bottom(above, below)
    loose = [False] * len(boxes)
    for box in order:
        loose[box] = all(loose[upper] and _users_beside(upper, below, boxes) == 1 for upper in above[box])
    ranks = _longest_paths(order, above, [0] * len(boxes))
    for box in reversed(order):
        near = [ranks[lower] for lower in below[box] if boxes[lower].column == boxes[box].column]
        if loose[box] and near:
            ranks[box] = min(near) - 1
    ranks = _longest_paths(order, above, ranks)
    for box in reversed(order):
        if loose[box] and below[box]:
            ranks[box] = min(ranks[lower] for lower in below[box]) - 1
    used = {rank: row for row, rank in enumerate(sorted(set(ranks)))}
    return [used[rank] for rank in ranks]


def _users_beside(box: int, below: Sequence[Sequence[int]], boxes: Sequence[Sized]) -> int:
    """How many boxes of its own column a box leads to."""
    return sum(boxes[lower].column == boxes[box].column for lower in below[box])


def _longest_paths(order: Sequence[int], above: Sequence[Sequence[int]], least: Sequence[int]) -> list[int]:
    """Each box below all that are above it; those with nothing above stay where they are."""
    ranks = list(least)
    for box in order:
        ranks[box] = max((ranks[upper] + 1 for upper in above[box]), default=least[box])
    return ranks


def _from_top_to_bottom(above: Sequence[Sequence[int]], below: Sequence[Sequence[int]]) -> list[int]:
    missing = [len(boxes) for boxes in above]
    order = [box for box, number in enumerate(missing) if number == 0]
    for box in order:
        for lower in below[box]:
            missing[lower] -= 1
            if missing[lower] == 0:
                order.append(lower)
    if len(order) < len(above):
        raise ArgumentError(f"expected edges without a cycle; found one among {len(above) - len(order)} boxes")
    return order


def divide_long_edges(boxes: Sequence[Sized], edges: Sequence[tuple[int, int, bool]], ranks: Sequence[int]) -> Rows:
    """Rows in which each edge only runs from one to the next, by way points that edges of one source share."""
    rows = Rows(
        ranks=list(ranks),
        widths=[box.width for box in boxes],
        heights=[box.height for box in boxes],
        columns=[float(box.column) for box in boxes],
        groups=[box.group for box in boxes],
        above=[[] for _ in boxes],
        below=[[] for _ in boxes],
        boxes=len(boxes),
    )
    farthest = _least_columns(boxes, edges, ranks)
    way_points: dict[tuple[int, bool, int], int] = {}
    linked: set[tuple[int, int]] = set()
    for source, target, upward in edges:
        step = -1 if upward else 1
        path = [source]
        for rank in range(ranks[source] + step, ranks[target], step):
            place = source, upward, rank
            if place not in way_points:
                way_points[place] = _add_way_point(rows, rank, (boxes[source].column + farthest[place]) / 2)
            path.append(way_points[place])
        path.append(target)
        path = path[::-1] if upward else path
        for upper, lower in pairwise(path):
            if (upper, lower) not in linked:
                linked.add((upper, lower))
                rows.below[upper].append(lower)
                rows.above[lower].append(upper)
        rows.paths.append(path)
        rows.upward.append(upward)
    rows.members = [[] for _ in range(max(ranks) + 1)]
    for vertex, rank in enumerate(rows.ranks):
        rows.members[rank].append(vertex)
    return rows


def _least_columns(
    boxes: Sequence[Sized], edges: Sequence[tuple[int, int, bool]], ranks: Sequence[int]
) -> dict[tuple[int, bool, int], int]:
    """For each way point, the lowest column to which the edges through it lead."""
    result: dict[tuple[int, bool, int], int] = {}
    for source, target, upward in edges:
        step = -1 if upward else 1
        for rank in range(ranks[source] + step, ranks[target], step):
            place = source, upward, rank
            result[place] = min(result.get(place, boxes[target].column), boxes[target].column)
    return result


def _add_way_point(rows: Rows, rank: int, column: float) -> int:
    rows.ranks.append(rank)
    rows.widths.append(0.0)
    rows.heights.append(0.0)
    rows.columns.append(column)
    rows.groups.append(None)
    rows.above.append([])
    rows.below.append([])
    return len(rows.ranks) - 1
