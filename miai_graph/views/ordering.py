"""The order of the vertices in each row, so that few edges cross.

Sweeps down and up the rows; in each row vertices are sorted by the mean place of their neighbours in the row before
(barycentres). The best order that was met stays. Then neighbours change places where that takes crossings away.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise

from miai_graph.views.ranks import Rows

_MOST_SWEEPS = 16
_PATIENCE = 4
_WORK = 400_000
"""A bound for vertices times sweeps, for large graphs."""


def ordered_rows(rows: Rows) -> list[list[int]]:
    """The members of each row, from left to right; by columns first."""
    members = _by_depth_first_search(rows)
    best, fewest = [list(row) for row in members], count_crossings(members, rows.below)
    waited = 0
    for sweep in range(min(_MOST_SWEEPS, max(2, _WORK // len(rows.ranks)))):
        if fewest == 0 or waited == _PATIENCE:
            break
        downward = sweep % 2 == 0
        _sweep(members, rows, rows.above if downward else rows.below, downward)
        crossings = count_crossings(members, rows.below)
        waited += 1
        if crossings < fewest:
            best, fewest, waited = [list(row) for row in members], crossings, 0
    if fewest and len(rows.ranks) * len(rows.ranks) < 16 * _WORK:
        _exchange_neighbours(best, rows)
    return best


def _by_depth_first_search(rows: Rows) -> list[list[int]]:
    """A first order: in which a search from the top meets the vertices, so that what belongs together is together."""
    met: dict[int, None] = {}
    for root in sorted(range(len(rows.ranks)), key=lambda vertex: (rows.ranks[vertex], vertex)):
        waiting = [root]
        while waiting:
            vertex = waiting.pop()
            if vertex not in met:
                met[vertex] = None
                waiting += reversed(rows.below[vertex])
    place = {vertex: float(number) for number, vertex in enumerate(met)}
    return [_sorted_row(row, place, rows) for row in rows.members]


def _sweep(members: list[list[int]], rows: Rows, neighbours: Sequence[Sequence[int]], downward: bool) -> None:
    """Sort each row by the places in the row before it; vertices without neighbours there keep theirs."""
    place = {vertex: float(number) for row in members for number, vertex in enumerate(row)}
    order = range(1, len(members)) if downward else range(len(members) - 2, -1, -1)
    for rank in order:
        wanted = {vertex: _mean_place(neighbours[vertex], place, place[vertex]) for vertex in members[rank]}
        members[rank] = _sorted_row(members[rank], wanted, rows)
        for number, vertex in enumerate(members[rank]):
            place[vertex] = float(number)


def _sorted_row(row: Sequence[int], wanted: Mapping[int, float], rows: Rows) -> list[int]:
    """A row by columns, and within them by the places that are wanted, with the members of each group side by side."""
    together = _group_places(row, wanted, rows)
    keys = {
        vertex: (rows.columns[vertex], together[rows.groups[vertex]], str(rows.groups[vertex]), wanted[vertex])
        if rows.groups[vertex] is not None
        else (rows.columns[vertex], wanted[vertex], "", wanted[vertex])
        for vertex in row
    }
    return sorted(row, key=keys.__getitem__)


def _mean_place(near: Sequence[int], place: dict[int, float], otherwise: float) -> float:
    return sum([place[other] for other in near]) / len(near) if near else otherwise


def _group_places(row: Sequence[int], wanted: Mapping[int, float], rows: Rows) -> dict[Hashable, float]:
    """The mean of what the members of each group want."""
    by_group: dict[Hashable, list[float]] = {}
    for vertex in row:
        by_group.setdefault(rows.groups[vertex], []).append(wanted[vertex])
    return {group: sum(places) / len(places) for group, places in by_group.items()}


def count_crossings(members: Sequence[Sequence[int]], below: Sequence[Sequence[int]]) -> int:
    """How many pairs of edges between neighbouring rows cross."""
    total = 0
    for row, next_row in pairwise(members):
        place = {vertex: number for number, vertex in enumerate(next_row)}
        ends: list[int] = []
        for vertex in row:
            mine = sorted([place[lower] for lower in below[vertex]])
            total += sum([len(ends) - bisect_right(ends, end) for end in mine])
            for end in mine:
                insort(ends, end)
    return total


def _exchange_neighbours(members: list[list[int]], rows: Rows) -> None:
    """Let vertices side by side change places as long as crossings become fewer."""
    place = {vertex: number for row in members for number, vertex in enumerate(row)}
    for _ in range(8):
        changed = False
        for row in members:
            for left in range(len(row) - 1):
                first, second = row[left], row[left + 1]
                if _alike(first, second, rows) and _gain(first, second, rows, place) > 0:
                    row[left], row[left + 1] = second, first
                    place[first], place[second] = left + 1, left
                    changed = True
        if not changed:
            return


def _alike(first: int, second: int, rows: Rows) -> bool:
    """Whether neither column nor group fixes the order of two vertices side by side."""
    return rows.columns[first] == rows.columns[second] and rows.groups[first] == rows.groups[second]


def _gain(first: int, second: int, rows: Rows, place: dict[int, int]) -> int:
    """How many crossings go away if two vertices side by side change places."""
    gain = 0
    for neighbours in (rows.above, rows.below):
        mine = sorted([place[vertex] for vertex in neighbours[first]])
        for other in neighbours[second]:
            gain += len(mine) - bisect_right(mine, place[other]) - bisect_left(mine, place[other])
    return gain
