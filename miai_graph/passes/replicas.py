"""Copies of a pipeline that share the rows of a batch: which hosts form which copy, and how many rows each one gets.

All replicas are cut at the same places, so that the hosts of one stage have the same parameters to reduce over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np

from miai_graph.errors import ArgumentError
from miai_graph.op import Array
from miai_graph.passes.cutting import Cut, Links, check_hosts, cut, stage_seconds
from miai_graph.passes.reasons import in_words

_MOST_PERMUTED = 5
"""So many hosts are assigned to replicas by trying all ways."""

_EVEN = 0.05
"""Replicas whose speeds differ by less than this share count as equally fast."""


@dataclass(frozen=True)
class GridCut:
    """Stages, where they are in each replica, and what each replica's share of the rows is.

    Attributes
    ----------
    bounds : stage k has the items ``bounds[k]:bounds[k + 1]``, in all replicas
    hosts : for each replica and stage the number of its host
    shares : for each replica its fraction of a batch
    stage_seconds : for each replica and stage what it takes, where all replicas have as many rows
    reason : in a few sentences, for the user
    """

    bounds: tuple[int, ...]
    hosts: tuple[tuple[int, ...], ...]
    shares: tuple[float, ...]
    stage_seconds: tuple[tuple[float, ...], ...]
    reason: str


def cut_grid(
    seconds: Any,
    crossing: Any,
    stages: int,
    replicas: int,
    *,
    speeds: Any,
    links: Links | None = None,
    allowed: Any = None,
    labels: Sequence[str] | None = None,
    hosts: Sequence[str] | None = None,
) -> GridCut:
    """Stages for several replicas, and the hosts for them. The parameters are those of `cut`."""
    speeds = np.asarray(speeds, float)
    names = [str(host) for host in range(len(speeds))] if hosts is None else hosts
    chains = grid(speeds, links, stages, replicas)
    columns = list(zip(*chains, strict=True))
    found = cut(
        seconds,
        crossing,
        stages,
        speeds=[speeds[list(column)].mean() for column in columns],
        links=None if links is None else _links_between(columns, links),
        allowed=allowed,
        labels=labels,
        hosts=[in_words([names[host] for host in column]) for column in columns],
    )
    placed = [tuple(chain[place] for place in found.order) for chain in chains]
    taken = [stage_seconds(found.bounds, chain, seconds, crossing, speeds, links) for chain in placed]
    parts = shares(_paces([times.max() for times in taken]))
    rows_of_each = tuple(tuple(times.tolist()) for times in taken)
    return GridCut(found.bounds, tuple(placed), parts, rows_of_each, _reason(found, parts))


def _links_between(columns: Sequence[Sequence[int]], links: Links) -> Links:
    """From one stage to another the slowest link that any replica has."""
    bandwidth = [[links.bandwidth[list(a), list(b)].min() for b in columns] for a in columns]
    latency = [[links.latency[list(a), list(b)].max() for b in columns] for a in columns]
    return Links(np.array(bandwidth), np.array(latency))


def _paces(slowest: Sequence[float]) -> list[float]:
    return [1 / seconds for seconds in slowest] if min(slowest) > 0 else [1.0] * len(slowest)


def _reason(found: Cut, parts: Sequence[float]) -> str:
    if len(parts) == 1:
        return found.reason
    return f"{found.reason} The replicas take {in_words([f'{100 * part:.0f}' for part in parts])} % of the rows."


def grid(speeds: Any, links: Links | None, stages: int, replicas: int) -> tuple[tuple[int, ...], ...]:
    """For each replica its hosts: the fastest ones there are, so that replicas are about equally fast.

    At the same place of all replicas stand hosts of similar speeds, and neighbours are those with fast links between
    them, where that does not make replicas uneven.

    Raises
    ------
    ArgumentError
        if there are fewer hosts than stages times replicas, or links and speeds do not fit each other.
    """
    speeds = np.asarray(speeds, float)
    check_hosts(speeds, links, 1)
    needed = stages * replicas
    if stages < 1 or replicas < 1 or len(speeds) < needed:
        raise ArgumentError(
            f"expected at least 1 stage, 1 replica, and stages × replicas hosts; found {stages} × {replicas} on "
            f"{len(speeds)} hosts. Let more hosts join, or ask for less"
        )
    fastest = sorted(range(len(speeds)), key=lambda host: -speeds[host])[:needed]
    chains = [[host] for host in fastest[:replicas]]
    for first in range(replicas, needed, replicas):
        for chain, host in zip(
            chains, _next_hosts(chains, fastest[first : first + replicas], speeds, links), strict=True
        ):
            chain.append(host)
    return tuple(map(tuple, chains))


def _next_hosts(
    chains: Sequence[Sequence[int]], hosts: Sequence[int], speeds: Array, links: Links | None
) -> Sequence[int]:
    """The hosts, which are ordered by speed, in the order in which the chains get them."""
    totals = np.array([speeds[list(chain)].sum() for chain in chains])

    def unevenness(order: Sequence[int]) -> tuple[int, float]:
        sums = totals + speeds[list(order)]
        slowness = (
            0.0
            if links is None
            else sum(1 / links.bandwidth[chain[-1], host] for chain, host in zip(chains, order, strict=True))
        )
        return round(float(np.ptp(sums) / sums.mean() / _EVEN)), float(slowness)

    if len(hosts) <= _MOST_PERMUTED:
        return min(permutations(hosts), key=unevenness)
    ranks = totals.argsort(kind="stable").argsort(kind="stable")
    return [hosts[rank] for rank in ranks]


def shares(speeds: Sequence[float]) -> tuple[float, ...]:
    """Each replica's fraction of the rows, so that all take as long."""
    if not speeds or min(speeds) <= 0 or not math.isfinite(sum(speeds)):
        raise ArgumentError(f"expected finite speeds above 0; found {list(speeds)}")
    total = math.fsum(speeds)
    return tuple(speed / total for speed in speeds)


def rows(batch_size: int, shares: Sequence[float]) -> tuple[int, ...]:
    """How many rows of a batch each replica gets: all in all as many as there are, and each at least one if it can."""
    exact = [batch_size * share / math.fsum(shares) for share in shares]
    result = [math.floor(value) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda replica: result[replica] - exact[replica])
    for replica in by_remainder[: batch_size - sum(result)]:
        result[replica] += 1
    while 0 in result and max(result) > 1:
        result[result.index(max(result))] -= 1
        result[result.index(0)] += 1
    return tuple(result)
