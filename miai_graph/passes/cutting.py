"""Where to cut a row of nodes into pipeline stages, and which host gets which: from plain figures.

The model. Items stand in an order in which they can be computed; a stage is a run of them. A stage on a host takes the
longest of

- computing: the seconds of its items by the host's speed, and what it takes the host to encrypt and copy the bytes of
  the cuts on both sides of it;
- sending across the cut before it, and across the cut behind it: the cut's bytes by the link's bandwidth, and the
  latency. Of a cut's bytes about half go either way, so a host between two cuts sends no longer than across the
  slower one of them.

For hosts send and compute at once. The slowest stage sets the pace of a pipeline, so it is made as fast as it can be.
Whether all stages can keep within a limit is found in one pass over the items; the least such limit by bisection.
Among cuts within 1 % of it, closer than times can be measured, those with little to send and even stages are taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations
from typing import Any

import numpy as np

from miai_graph.errors import ArgumentError
from miai_graph.op import Array
from miai_graph.passes.reasons import Figures, items_in_words, reason

HANDLED_BYTES_PER_SECOND = 1e9
"""What a host of speed 1 encrypts and copies, or receives and decrypts, while it computes nothing."""

SLACK = 0.01
"""Cuts whose slowest stages differ by no more count as equal."""

_PRECISION = 1e-9
_MOST_STEPS = 60
_MOST_ROUNDS = 8
_MOST_ORDERS = math.perm(5, 5)
"""So many orders of hosts are all tried."""


@dataclass(frozen=True)
class Links:
    """What connects each host with each other one, as square arrays. The diagonals mean nothing.

    Attributes
    ----------
    bandwidth : bytes a second
    latency : seconds
    """

    bandwidth: Array
    latency: Array

    def seconds(self, size_bytes: Array, source: int, target: int) -> Array:
        """What sending takes. Where there is nothing to send, nothing."""
        return np.where(size_bytes > 0, size_bytes / self.bandwidth[source, target] + self.latency[source, target], 0.0)


@dataclass(frozen=True)
class Cut:
    """Stages, and where they are.

    Attributes
    ----------
    bounds : stage k has the items ``bounds[k]:bounds[k + 1]``
    order : for each stage the number of its host
    stage_seconds : what each stage takes
    reason : in one to three sentences, for the user
    """

    bounds: tuple[int, ...]
    order: tuple[int, ...]
    stage_seconds: tuple[float, ...]
    reason: str

    @property
    def stages(self) -> int:
        return len(self.order)

    @property
    def slowest_seconds(self) -> float:
        return max(self.stage_seconds)


def cut(
    seconds: Any,
    crossing: Any,
    stages: int,
    *,
    speeds: Any = None,
    links: Links | None = None,
    allowed: Any = None,
    labels: Sequence[str] | None = None,
    hosts: Sequence[str] | None = None,
) -> Cut:
    """The stages whose slowest is as fast as can be, and the hosts for them.

    There are fewer stages than asked for where there are too few items, or places to cut. All orders of up to five
    hosts are tried, of more hosts some likely ones.

    Parameters
    ----------
    seconds : (n,) what each item takes on a host of speed 1: forward and backward pass, and update
    crossing : (n + 1,) the bytes to send, both ways together, if there is a cut before an item; 0 at both ends.
        For the whole batch or for one part of it, as `seconds` is
    stages : the number of stages
    speeds : (hosts,) how fast each host is. None: as many equal hosts as stages
    links : between hosts. None: sending takes no time
    allowed : (n + 1,) whether there may be a cut before an item. None: anywhere
    labels, hosts : the names of items and of hosts, for the reason

    Raises
    ------
    ArgumentError
        for figures that do not fit each other, or fewer hosts than stages.
    """
    items = _Items(seconds, crossing, allowed)
    speeds = np.ones(stages) if speeds is None else np.asarray(speeds, float)
    check_hosts(speeds, links, stages)
    count = min(stages, items.places + 1)
    chains = [_Chain(items, order, speeds, links) for order in _orders(speeds, links, count)]
    limit = _least_limit(chains) * (1 + SLACK)
    found = [(chain, bounds) for chain in chains if (bounds := chain.bounds_within(limit)) is not None]
    chain, bounds = min(found, key=lambda pair: pair[0].tie_breaker(pair[1]))
    return chain.result(bounds, stages, labels, hosts)


def stage_seconds(
    bounds: Sequence[int], order: Sequence[int], seconds: Any, crossing: Any, speeds: Any, links: Links | None = None
) -> Array:
    """What each stage takes, for stages that are given. The parameters are those of `Cut` and `cut`."""
    items = _Items(seconds, crossing, None)
    speeds = np.asarray(speeds, float)
    check_hosts(speeds, links, len(order))
    return _Chain(items, order, speeds, links).stage_seconds(bounds)


class _Items:
    """The figures of all items, as running sums.

    Attributes
    ----------
    crossing, allowed : see `cut`; there is never a cut at the ends
    before : what all items before each place take
    """

    def __init__(self, seconds: Any, crossing: Any, allowed: Any) -> None:
        seconds, self.crossing = np.asarray(seconds, float), np.asarray(crossing, float)
        self.count = seconds.size
        places = np.ones(self.count + 1, bool) if allowed is None else np.array(allowed, bool)
        expected, found = ((self.count,), (self.count + 1,)), (seconds.shape, self.crossing.shape)
        if not self.count or found != expected or places.shape != expected[1]:
            raise ArgumentError(
                "expected n seconds, at least one, and n + 1 crossing bytes and places to cut; "
                f"found shapes {seconds.shape}, {self.crossing.shape} and {places.shape}"
            )
        if not _are_amounts(seconds) or not _are_amounts(self.crossing) or self.crossing[0] or self.crossing[-1]:
            raise ArgumentError(
                "expected finite seconds and bytes of at least 0, and nothing that crosses the ends; "
                f"found {_extremes(seconds)} seconds, {_extremes(self.crossing)} bytes, and at the ends "
                f"{self.crossing[0]:g} and {self.crossing[-1]:g}"
            )
        self.before = np.concatenate([[0.0], np.cumsum(seconds)])
        places[[0, -1]] = False
        self.allowed = places

    @property
    def places(self) -> int:
        """Where a cut may be."""
        return int(self.allowed.sum())


def _are_amounts(values: Array) -> bool:
    return bool(np.isfinite(values).all() and (values >= 0).all())


def _extremes(values: Array) -> str:
    return f"{values.min():g} to {values.max():g}"


def check_hosts(speeds: Array, links: Links | None, needed: int) -> None:
    """Raise ArgumentError unless there are so many hosts, with speeds, and links between all of them."""
    if needed < 1 or speeds.ndim != 1 or len(speeds) < needed:
        raise ArgumentError(
            f"expected at least one stage, and a host for each; found {needed} stages, speeds of shape {speeds.shape}"
        )
    if not _are_amounts(speeds) or not speeds.all():
        raise ArgumentError(f"expected speeds above 0; found {speeds.tolist()}")
    if links is None:
        return
    between = ~np.eye(len(speeds), dtype=bool)
    shapes = {links.bandwidth.shape, links.latency.shape}
    if shapes != {between.shape}:
        raise ArgumentError(f"expected bandwidth and latency of shape {between.shape}; found {shapes}")
    if not (links.bandwidth[between] > 0).all() or not _are_amounts(links.latency[between]):
        raise ArgumentError("expected bandwidths above 0 and latencies of at least 0 between any two hosts")


def _orders(speeds: Array, links: Links | None, count: int) -> list[tuple[int, ...]]:
    """The hosts of `count` stages in the orders that are worth trying."""
    if math.perm(len(speeds), count) <= _MOST_ORDERS:
        return list(permutations(range(len(speeds)), count))
    fastest = sorted(range(len(speeds)), key=lambda host: -speeds[host])[:count]
    orders = [sorted(fastest), fastest, fastest[::-1]]
    if links is not None:
        orders += [_along_fast_links(host, fastest, links) for host in fastest]
    return list(dict.fromkeys(map(tuple, orders)))


def _along_fast_links(first: int, hosts: Sequence[int], links: Links) -> list[int]:
    """From the first host always on to the one with the fastest link."""
    order, left = [first], [host for host in hosts if host != first]
    while left:
        order.append(max(left, key=lambda host: links.bandwidth[order[-1], host]))
        left.remove(order[-1])
    return order


class _Chain:
    """Items to be cut over hosts in a certain order."""

    def __init__(self, items: _Items, order: Sequence[int], speeds: Array, links: Links | None) -> None:
        self._items = items
        self._order = tuple(order)
        self._speeds = speeds[list(order)]
        handled = items.crossing / HANDLED_BYTES_PER_SECOND
        self._entered = items.before - handled
        """A stage from place i to place j, on a host of speed 1, computes for `_left` at j less `_entered` at i."""
        self._left = items.before + handled
        nothing = np.zeros(items.count + 1)
        self._sending = [
            nothing if links is None else links.seconds(items.crossing, *pair) for pair in pairwise(self._order)
        ]
        """For each cut, what sending takes if it is at a certain place."""

    @property
    def least(self) -> float:
        """No cut is faster."""
        return float(self._items.before[-1] / self._speeds.sum())

    @property
    def most(self) -> float:
        """No cut is slower."""
        handled = 2 * self._items.crossing.max() / HANDLED_BYTES_PER_SECOND
        computing = (self._items.before[-1] + handled) / self._speeds.min()
        return float(max([computing, *(sending.max() for sending in self._sending)]))

    def is_possible(self, limit: float) -> bool:
        """Whether no stage need take longer."""
        return bool(self._reached(limit)[-1][-1])

    def _reached(self, limit: float) -> list[Array]:
        """For each number of stages, the places where they can end within the limit."""
        reached = np.zeros(self._items.count + 1, bool)
        reached[0] = True
        result = [reached]
        for speed, sending in zip(self._speeds, [*self._sending, None], strict=True):
            best = np.maximum.accumulate(np.where(result[-1], self._entered, -np.inf))
            reached = np.zeros_like(reached)
            np.greater_equal(best[:-1], self._left[1:] - limit * speed, out=reached[1:])
            if sending is not None:
                reached &= self._items.allowed & (sending <= limit)
            result.append(reached)
        return result

    def bounds_within(self, limit: float) -> list[int] | None:
        """Stages that take no longer, or None."""
        reached = self._reached(limit)
        if not reached[-1][-1]:
            return None
        bounds = [self._items.count]
        for stage in range(len(self._order) - 1, 0, -1):
            stop = bounds[-1]
            fits = reached[stage][:stop] & (self._entered[:stop] >= self._left[stop] - limit * self._speeds[stage])
            bounds.append(self._nearest_to_even(stage, np.flatnonzero(fits), stop))
        return self._improved([0, *reversed(bounds)], limit)

    def _nearest_to_even(self, stage: int, places: Array, stop: int) -> int:
        """Of the places where a stage that ends at `stop` may start, that which makes it as long as those before."""
        before = self._items.before
        even = before[stop] * self._speeds[:stage].sum() / self._speeds[: stage + 1].sum()
        off_in_items = np.abs(places - stop * stage / (stage + 1))
        return int(places[_least(np.abs(before[places] - even), off_in_items)])

    def _improved(self, bounds: list[int], limit: float) -> list[int]:
        """Each cut moved to where the stages beside it are most even and little is sent, until none moves."""
        for _ in range(_MOST_ROUNDS):
            before = list(bounds)
            for stage in range(1, len(self._order)):
                bounds[stage] = self._best_between(stage, bounds[stage - 1], bounds[stage], bounds[stage + 1], limit)
            if bounds == before:
                break
        return bounds

    def _best_between(self, stage: int, start: int, place: int, stop: int, limit: float) -> int:
        """Where to cut between a stage and the one before it, which start and stop there; now it is at `place`."""
        places = np.arange(start + 1, stop)
        lower = (self._left[places] - self._entered[start]) / self._speeds[stage - 1]
        upper = (self._left[stop] - self._entered[places]) / self._speeds[stage]
        slower, sending = np.maximum(lower, upper), self._sending[stage - 1][places]
        fits = self._items.allowed[places] & (slower <= limit) & (sending <= limit)
        fits[place - start - 1] = True
        off_in_items = np.abs(places - (start + stop) / 2)
        cost = np.where(fits, slower + sending, np.inf)
        return int(places[_least(cost, self._items.crossing[places], off_in_items)])

    def tie_breaker(self, bounds: Sequence[int]) -> float:
        """Less is better: the pace of the pipeline, and what sending holds a part up on its way through it."""
        return float(self.stage_seconds(bounds).max() + self._sent_at(bounds).sum())

    def stage_seconds(self, bounds: Sequence[int]) -> Array:
        sent = [0.0, *self._sent_at(bounds), 0.0]
        return np.maximum(self._computing(bounds), [max(pair) for pair in pairwise(sent)])

    def _computing(self, bounds: Sequence[int]) -> Array:
        places = list(bounds)
        return (self._left[places[1:]] - self._entered[places[:-1]]) / self._speeds

    def _sent_at(self, bounds: Sequence[int]) -> Array:
        return np.array([sending[place] for sending, place in zip(self._sending, bounds[1:-1], strict=True)])

    def result(
        self, bounds: Sequence[int], asked: int, labels: Sequence[str] | None, hosts: Sequence[str] | None
    ) -> Cut:
        taken = tuple(self.stage_seconds(bounds).tolist())
        named = [f"item {place}" for place in range(self._items.count)] if labels is None else labels
        figures = Figures(
            asked,
            items_in_words(bounds, named),
            [f"host {host}" if hosts is None else hosts[host] for host in self._order],
            self._computing(bounds).tolist(),
            max(taken),
            self._sent_at(bounds).tolist(),
            self._items.crossing[list(bounds[1:-1])].tolist(),
            self._slowest_if_moved(bounds, named),
            float(self._items.before[-1] / self._speeds.max()),
        )
        return Cut(tuple(bounds), self._order, taken, reason(figures))

    def _slowest_if_moved(self, bounds: Sequence[int], labels: Sequence[str]) -> float | None:
        """What the slowest stage takes if one cut is moved to where the items' label changes next, at best."""
        places = np.flatnonzero(self._items.allowed).tolist()
        changes = [place for place in places if labels[place] != labels[place - 1]]
        moved = []
        for stage in range(1, len(bounds) - 1):
            earlier = [place for place in changes if bounds[stage - 1] < place < bounds[stage]]
            later = [place for place in changes if bounds[stage] < place < bounds[stage + 1]]
            moved += [[*bounds[:stage], place, *bounds[stage + 1 :]] for place in (*earlier[-1:], *later[:1])]
        return min((float(self.stage_seconds(others).max()) for others in moved), default=None)


def _least(*keys: Array) -> int:
    """Where the first key is least; where it is so more than once, the next one, and so on."""
    places = np.arange(keys[0].size)
    for key in keys:
        places = places[key[places] == key[places].min()]
    return int(places[0])


def _least_limit(chains: Iterable[_Chain]) -> float:
    """The least limit within which all stages of one of the chains can keep."""
    chains = list(chains)
    best = max(chain.most for chain in chains)
    for chain in chains:
        if chain.is_possible(best * (1 - _PRECISION)):
            best = _bisect(chain, best)
    return best


def _bisect(chain: _Chain, possible: float) -> float:
    impossible = chain.least
    for _ in range(_MOST_STEPS):
        if possible - impossible <= _PRECISION * possible:
            break
        middle = (possible + impossible) / 2
        if chain.is_possible(middle):
            possible = middle
        else:
            impossible = middle
    return possible
