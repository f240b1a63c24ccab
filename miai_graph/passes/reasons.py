"""Why a pipeline is cut where it is, in words and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figures:
    """What there is to say about a cut.

    Attributes
    ----------
    asked : the number of stages that there should be
    hosts, seconds, computing : for each stage its host's name, what it takes, and what of that is computing
    places, sizes : for each cut the name of the item behind it, and the bytes that are sent across it
    sending : for each cut the seconds that takes; None if nothing is known of links
    """

    asked: int
    hosts: Sequence[str]
    seconds: Sequence[float]
    computing: Sequence[float]
    places: Sequence[str]
    sizes: Sequence[float]
    sending: Sequence[float] | None


def reason(figures: Figures) -> str:
    """One to three sentences."""
    sentences = [_stages(figures), _slowest(figures)]
    if any(figures.sizes):
        sentences.append(_largest(figures) if figures.sending is None else _longest(figures, figures.sending))
    return " ".join(f"{sentence}." for sentence in sentences)


def _stages(figures: Figures) -> str:
    count = len(figures.seconds)
    stages = f"{count} stage{'s' if count > 1 else ''}"
    fewer = f" instead of {figures.asked}, for there are no more places to cut" if count < figures.asked else ""
    where = f", cut before {in_words(figures.places)}" if figures.places else ""
    return f"{stages}{fewer}{where}: {_readable_times(figures.seconds)}"


def _slowest(figures: Figures) -> str:
    slowest = figures.seconds.index(max(figures.seconds))
    which = f"The slowest is stage {slowest}," if figures.places else "It is"
    return f"{which} on host {figures.hosts[slowest]}"


def _largest(figures: Figures) -> str:
    worst = figures.sizes.index(max(figures.sizes))
    return f"The most to send is {_readable_size(figures.sizes[worst])}, across the cut before {figures.places[worst]}"


def _longest(figures: Figures, sending: Sequence[float]) -> str:
    worst = sending.index(max(sending))
    beside = min(figures.computing[worst : worst + 2])
    size, taken = _readable_size(figures.sizes[worst]), _readable_times([sending[worst]])
    text = f"Sending {size} across the cut before {figures.places[worst]} takes {taken}"
    if sending[worst] <= beside:
        return f"{text}, hidden behind computing"
    return f"{text}, longer than a stage beside it computes ({_readable_times([beside])})"


def in_words(texts: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, [", ".join(texts[:-1]), *texts[-1:]]))


def _readable_times(seconds: Sequence[float]) -> str:
    """``41, 38 and 40 ms``."""
    units = {"s": 1.0, "ms": 1e-3, "µs": 1e-6}
    unit = next((unit for unit, size in units.items() if max(seconds) >= size), "ms")
    return f"{in_words([_two_digits(value / units[unit]) for value in seconds])} {unit}"


def _readable_size(size_bytes: float) -> str:
    units = {"GB": 1e9, "MB": 1e6, "kB": 1e3, "B": 1.0}
    unit = next((unit for unit, size in units.items() if size_bytes >= size), "B")
    return f"{_two_digits(size_bytes / units[unit])} {unit}"


def _two_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}".removesuffix(".0")
