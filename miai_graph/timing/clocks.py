"""Clocks of several workers, corrected by what cannot be: that something arrives before it is sent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from miai_graph.context import COMMUNICATION
from miai_graph.timing.records import Slice

LEAST_LATENCY_SECONDS = 1e-6
"""No message between processes is faster."""


def sent_pairs(slices: Iterable[Slice]) -> Iterator[tuple[Slice, Slice]]:
    """What was sent, with each that received it."""
    linked: dict[tuple[int, str], list[Slice]] = defaultdict(list)
    for part in slices:
        if part.link is not None:
            linked[part.step, part.link].append(part)
    for parts in linked.values():
        source = next((part for part in parts if part.phase == COMMUNICATION), None)
        if source is not None:
            yield from ((source, target) for target in parts if target is not source)


def align_clocks(slices: Sequence[Slice]) -> Sequence[Slice]:
    """The slices of some workers later, by as little as can be, so that nothing arrives before it is sent.

    As they are where that takes more than their uncertainty allows.
    """
    bounds: dict[tuple[int, int], float] = {}
    for source, target in sent_pairs(slices):
        gap = source.start_seconds + LEAST_LATENCY_SECONDS - target.start_seconds - target.seconds
        key = source.worker, target.worker
        bounds[key] = max(gap, bounds.get(key, gap))
    shifts = _least_shifts(bounds)
    uncertainty = max((part.uncertainty_seconds for part in slices), default=0.0)
    if not any(shifts.values()) or max(shifts.values()) > 2 * uncertainty:
        return slices
    return [replace(part, start_seconds=part.start_seconds + shifts.get(part.worker, 0.0)) for part in slices]


def _least_shifts(bounds: dict[tuple[int, int], float]) -> dict[int, float]:
    """By how much later each worker is, if each target is later than its source by a bound; none if that cannot be."""
    shifts = {worker: 0.0 for pair in bounds for worker in pair}
    for _ in shifts:
        changed = False
        for (source, target), gap in bounds.items():
            if shifts[target] < shifts[source] + gap:
                shifts[target] = shifts[source] + gap
                changed = True
        if not changed:
            return shifts
    return {}
