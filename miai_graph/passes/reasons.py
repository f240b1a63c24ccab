"""Why a pipeline is cut where it is, in words and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Figures:
    """What there is to say about a cut.

    Attributes
    ----------
    asked : the number of stages that there should be
    items, hosts, computing : for each stage its items in words, its host's name, and the seconds that it computes
    slowest : what the slowest stage takes, computing or sending
    sending, sizes : for each cut the seconds and the bytes that are sent across it
    moved : what the slowest stage would take if one cut were moved by a layer, at best; None if there is no such place
    alone : what it would take the fastest host to compute everything
    """

    asked: int
    items: Sequence[str]
    hosts: Sequence[str]
    computing: Sequence[float]
    slowest: float
    sending: Sequence[float]
    sizes: Sequence[float]
    moved: float | None
    alone: float


def reason(figures: Figures) -> str:
    """One to three sentences."""
    sentences = [_stages(figures)]
    if len(figures.items) > 1:
        sentences.append(_pace(figures))
        if figures.alone <= figures.slowest:
            sentences.append(f"One host alone would take {readable_time(figures.alone)}, so cutting does not pay here")
    return " ".join(f"{sentence}." for sentence in sentences)


def _stages(figures: Figures) -> str:
    count = len(figures.items)
    fewer = f" instead of {figures.asked}, for there are no more places to cut" if count < figures.asked else ""
    first, *others = map(readable_time, figures.computing)
    if not others:
        return f"1 stage{fewer}, on {figures.hosts[0]}: {first} of computing a step"
    times = [f"{first} of computing a step", *others]
    listed = [
        f"{items} on {host} ({time})" for items, host, time in zip(figures.items, figures.hosts, times, strict=True)
    ]
    return f"{count} stages{fewer}: {'; '.join(listed)}"


def _pace(figures: Figures) -> str:
    """What the pipeline waits for, and what the next best cut would be."""
    worst = max(range(len(figures.sending)), key=figures.sending.__getitem__)
    if figures.sending[worst] > max(figures.computing):
        size, taken = readable_size(figures.sizes[worst]), readable_time(figures.sending[worst])
        pace = f"Sending {size} from stage {worst} to stage {worst + 1} and back takes {taken} and sets the pace"
    else:
        pace = f"Stage {figures.computing.index(max(figures.computing))} sets the pace"
    moved, slowest = figures.moved or 0.0, figures.slowest
    if moved < slowest or readable_time(moved) == readable_time(slowest):
        return f"{pace}; no faster cut was found"
    return f"{pace}; with a cut one layer earlier or later it would be {readable_time(moved)} at best"


def why_parts(stages: int, parts: int, stage_seconds: float, overhead_seconds: float) -> str:
    """Why `choose_parts` has chosen so many, as a clause: what a step would take otherwise. See there."""

    def step(count: int) -> float:
        return (count + stages - 1) * (stage_seconds / count + overhead_seconds)

    other = 1 if parts > 1 else 2
    if step(other) < step(parts):
        return "there are no more rows"
    return (
        f"so a step should take {readable_time(step(parts))}, with {other} instead {readable_time(step(other))} (the "
        f"slowest stage takes {readable_time(stage_seconds)}, and each micro-batch {readable_time(overhead_seconds)} "
        "besides)"
    )


def items_in_words(bounds: Sequence[int], labels: Sequence[str]) -> list[str]:
    """For each stage from which label to which its items go. A label may go on from one stage to the next."""
    result = []
    for start, stop in pairwise(bounds):
        first, last = labels[start], labels[stop - 1]
        begins = f"the rest of {first}" if start and labels[start - 1] == first else first
        ends = f"part of {last}" if stop < len(labels) and labels[stop] == last else last
        if first != last:
            result.append(f"{begins} to {ends}")
        else:
            result.append(begins if begins != first else ends)
    return result


def in_words(texts: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, [", ".join(texts[:-1]), *texts[-1:]]))


def readable_time(seconds: float) -> str:
    """``41 ms``."""
    return _readable(seconds, {"s": 1.0, "ms": 1e-3, "µs": 1e-6}, "s")


def readable_size(size_bytes: float) -> str:
    """``1.1 MB``."""
    return _readable(size_bytes, {"GB": 1e9, "MB": 1e6, "kB": 1e3, "B": 1.0}, "B")


def _readable(value: float, units: dict[str, float], otherwise: str) -> str:
    """In the largest unit of which it is at least one; two digits, or those before the point."""
    unit = next((unit for unit, size in units.items() if value >= size), otherwise)
    amount = value / units[unit]
    digits = f"{amount:.0f}" if amount >= 10 else f"{amount:.1f}".removesuffix(".0")
    return f"{digits} {unit}"
