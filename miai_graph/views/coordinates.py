"""Coordinates for ordered rows: vertices near the means of their neighbours, and apart from each other."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

from miai_graph.views.ranks import Rows

_SWEEPS = 24
_STRAIGHTENINGS = 3
_GATHERINGS = 12
_LONG_CHAIN = 5
_FIRM = 1e4
_WORK = 400_000
"""A bound for vertices times sweeps, for large graphs."""


def horizontal_centres(rows: Rows, beside: float, edge: float) -> list[float]:
    """An x for each vertex: `beside` between boxes, `edge` where one of two is a way point.

    Rows go, again and again, as near as they can to the means of their neighbours: in the rows above, then below, and
    at last in both. Long edges weigh most, so they become straight.
    """
    xs = [0.0] * len(rows.ranks)
    offsets = [_packed(rows, row, beside, edge) for row in rows.members]
    for row, places in zip(rows.members, offsets, strict=True):
        for vertex, place in zip(row, places, strict=True):
            xs[vertex] = place - (places[0] + places[-1]) / 2
    sweeps = min(_SWEEPS, max(3, _WORK // len(xs)))
    for sweep in range(sweeps):
        downward = sweep % 2 == 0
        both = sweep >= sweeps - 4
        order = range(len(rows.members)) if downward else range(len(rows.members) - 1, -1, -1)
        for rank in order:
            _settle(rows, rank, xs, offsets[rank], rows.above if downward else rows.below, both)
    _straighten(rows, xs, offsets)
    _gather(rows, xs, offsets, min(_GATHERINGS, sweeps))
    for _ in range(_STRAIGHTENINGS):
        _straighten(rows, xs, offsets)
    return xs


def _packed(rows: Rows, row: Sequence[int], beside: float, edge: float) -> list[float]:
    """The places of a row's vertices if they stand as close together as they may."""
    places = [0.0]
    for left, right in pairwise(row):
        gap = edge if rows.is_way_point(left) or rows.is_way_point(right) else beside
        gap = max(gap, beside) if int(rows.columns[left]) != int(rows.columns[right]) else gap
        places.append(places[-1] + (rows.widths[left] + rows.widths[right]) / 2 + gap)
    return places


def _gather(rows: Rows, xs: list[float], offsets: Sequence[Sequence[float]], sweeps: int) -> None:
    """Let the others come near to the long chains of boxes, which stay.

    What joins a chain from the side row after row, as weights do, has pushed it aside before it was straightened.
    """
    place = {vertex: number for row in rows.members for number, vertex in enumerate(row)}
    chains = [chain for chain in _chains(rows, place) if sum(not rows.is_way_point(v) for v in chain) >= _LONG_CHAIN]
    staying = {vertex for chain in chains for vertex in chain}
    ranks = range(len(rows.members))
    for sweep in range(sweeps):
        for rank in ranks if sweep % 2 == 0 else reversed(ranks):
            _settle(rows, rank, xs, offsets[rank], rows.above, True, staying)


def _settle(
    rows: Rows,
    rank: int,
    xs: list[float],
    offsets: Sequence[float],
    neighbours: Sequence[Sequence[int]],
    both: bool,
    staying: Collection[int] = (),
) -> None:
    wanted, weights = [], []
    for vertex in rows.members[rank]:
        if vertex in staying:
            wanted.append(xs[vertex])
            weights.append(_FIRM)
            continue
        near = [*rows.above[vertex], *rows.below[vertex]] if both else neighbours[vertex]
        pulls = [_weight(rows, vertex, other) for other in near]
        total = sum(pulls)
        mean = sum([pull * xs[other] for pull, other in zip(pulls, near, strict=True)]) / total if near else xs[vertex]
        wanted.append(mean)
        weights.append(total if near else 0.05)
    shifted = [want - offset for want, offset in zip(wanted, offsets, strict=True)]
    for vertex, value, offset in zip(rows.members[rank], nondecreasing(shifted, weights), offsets, strict=True):
        xs[vertex] = value + offset


def _straighten(rows: Rows, xs: list[float], offsets: Sequence[Sequence[float]]) -> None:
    """Put the vertices of each chain on as few vertical lines as the vertices beside them allow."""
    place = {vertex: number for row in rows.members for number, vertex in enumerate(row)}
    for chain in _chains(rows, place):
        run: list[int] = []
        low, high = -math.inf, math.inf
        for vertex in chain:
            rank = rows.ranks[vertex]
            least, most = _limits(rows.members[rank], offsets[rank], place[vertex], xs)
            if max(low, least) > min(high, most):
                _align(run, xs, low, high)
                run, low, high = [], -math.inf, math.inf
            run.append(vertex)
            low, high = max(low, least), min(high, most)
        _align(run, xs, low, high)


def _limits(row: Sequence[int], offsets: Sequence[float], at: int, xs: Sequence[float]) -> tuple[float, float]:
    """How far a member of a row can go to the left and to the right while the others stay."""
    least = xs[row[at - 1]] + offsets[at] - offsets[at - 1] if at > 0 else -math.inf
    most = xs[row[at + 1]] - offsets[at + 1] + offsets[at] if at + 1 < len(row) else math.inf
    return least, most


def _chains(rows: Rows, place: Mapping[int, int]) -> list[list[int]]:
    """Vertices that should stand below each other, from top to bottom; the longest chains first.

    Each leads to the one in the middle of those below, if it is in the middle of those above that one. Way points of
    one edge always do.
    """
    following: dict[int, int] = {}
    preceded: set[int] = set()
    pairs = [(upper, lower) for row in rows.members for upper in row for lower in rows.below[upper]]
    for upper, lower in sorted(pairs, key=lambda pair: -sum(map(rows.is_way_point, pair)) // 2):
        fits = upper in _middle(rows.above[lower], place) and lower in _middle(rows.below[upper], place)
        fits = fits or (rows.is_way_point(upper) and rows.is_way_point(lower))
        if fits and upper not in following and lower not in preceded:
            following[upper] = lower
            preceded.add(lower)
    chains = []
    for vertex in range(len(rows.ranks)):
        if vertex not in preceded:
            chain = [vertex]
            while chain[-1] in following:
                chain.append(following[chain[-1]])
            chains.append(chain)
    return sorted(chains, key=len, reverse=True)


def _middle(vertices: Sequence[int], place: Mapping[int, int]) -> list[int]:
    """The one in the middle, from left to right, or the two."""
    ordered = sorted(vertices, key=place.__getitem__)
    return ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1]


def _align(run: Sequence[int], xs: list[float], low: float, high: float) -> None:
    if run:
        middle = sum([xs[vertex] for vertex in run]) / len(run)
        for vertex in run:
            xs[vertex] = min(max(middle, low), high)


def _weight(rows: Rows, first: int, second: int) -> float:
    return (1.0, 2.0, 16.0)[rows.is_way_point(first) + rows.is_way_point(second)]


def nondecreasing(wanted: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The values nearest to those wanted, by weighted squares, none of which is less than the one before it.

    Where the wanted ones fall, neighbours are pooled to their mean (pool adjacent violators).
    """
    pools: list[tuple[float, float, int]] = []
    for value, weight in zip(wanted, weights, strict=True):
        mean, heavy, count = value, weight, 1
        while pools and pools[-1][0] > mean:
            before, other, number = pools.pop()
            mean = (before * other + mean * heavy) / (other + heavy)
            heavy, count = heavy + other, count + number
        pools.append((mean, heavy, count))
    return [mean for mean, _, count in pools for _ in range(count)]


def place_ports(rows: Rows, xs: Sequence[float], edge: float) -> dict[tuple[int, int], float]:
    """Where on a box the edge to a neighbour ends, by both vertices: straight below or above it, if that can be."""
    ports: dict[tuple[int, int], float] = {}
    for box in range(rows.boxes):
        for neighbours in (rows.above[box], rows.below[box]):
            if not neighbours:
                continue
            near = sorted(neighbours, key=lambda other: (xs[other], other))
            room = max(rows.widths[box] - 2 * edge, 0.0)
            step = min(edge, room / len(near))
            low = xs[box] - room / 2
            wanted = [_facing(rows, xs, box, other) - place * step for place, other in enumerate(near)]
            spread = nondecreasing(wanted, [1.0] * len(near))
            high = low + room - (len(near) - 1) * step
            for place, (other, value) in enumerate(zip(near, spread, strict=True)):
                ports[box, other] = min(max(value, low), high) + place * step
    return ports


def _facing(rows: Rows, xs: Sequence[float], box: int, other: int) -> float:
    """The middle of the stretch that lies above or below both; where there is none, the x between them."""
    left = max(xs[box] - rows.widths[box] / 2, xs[other] - rows.widths[other] / 2)
    right = min(xs[box] + rows.widths[box] / 2, xs[other] + rows.widths[other] / 2)
    return (left + right) / 2


def row_extents(rows: Rows, xs: Sequence[float], below: float) -> list[tuple[float, float]]:
    """The top and bottom of each row. Rows stand farther apart where edges between them go far aside."""
    extents = []
    top = 0.0
    for row in rows.members:
        bottom = top + max(rows.heights[vertex] for vertex in row)
        extents.append((top, bottom))
        aside = max((abs(xs[vertex] - xs[other]) for vertex in row for other in rows.below[vertex]), default=0.0)
        top = bottom + below + min(below, aside / 16)
    return extents
