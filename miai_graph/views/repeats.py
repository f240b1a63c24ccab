"""Folding a model, or a graph: what comes again and again, one behind the other, is drawn once, with how often.

That is layers in a chain, drawn as one box; or blocks with branches, such as residual ones, drawn box by box.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from miai_graph.views.model_units import Link

_LONGEST_PERIOD = 12
_LEAST_SAVED = 2


class Repeatable(Protocol):
    """What is to be known of a unit here; see `miai_graph.views.model_units.Unit`. No two of kind None look alike."""

    @property
    def key(self) -> Hashable: ...

    @property
    def kind(self) -> Hashable: ...

    @property
    def is_output(self) -> bool: ...


Unit = TypeVar("Unit", bound=Repeatable)


@dataclass(frozen=True)
class Run(Generic[Unit]):
    """Units one after another that occur several times, one after another; mostly one unit, once.

    units : all of them, in order: `times` times as many as are drawn
    block : the block that comes so often, if it has several boxes, as a number; else None
    """

    units: Sequence[Unit]
    times: int = 1
    block: int | None = None

    @property
    def pattern(self) -> Sequence[Unit]:
        """What occurs several times."""
        return self.units[: len(self.units) // self.times]

    def like(self, place: int) -> list[Unit]:
        """All units that look like the one at a place of the pattern."""
        return list(self.units[place :: len(self.units) // self.times])


def single_runs(units: Sequence[Unit]) -> list[Run[Unit]]:
    """Each unit alone."""
    return [Run([unit]) for unit in units]


def folded_runs(units: Sequence[Unit], links: Sequence[Link]) -> list[Run[Unit]]:
    """Units in runs, where the same blocks, or the same layers of a chain, come again and again.

    In a chain each unit but the first has the one before as its only input, and nobody else uses that.
    """
    runs = _block_runs(units, links)
    folded = {unit.key for run in runs for unit in run.units}
    rest = [unit for unit in units if unit.key not in folded]
    for chain in _chains(rest, [link for link in links if not folded & set(link)]):
        place = 0
        for period, times in _repetitions([unit.kind for unit in chain]):
            runs.append(Run(chain[place : place + period * times], times))
            place += period * times
    order = {unit.key: number for number, unit in enumerate(units)}
    return sorted(runs, key=lambda run: order[run.units[0].key])


def _block_runs(units: Sequence[Unit], links: Sequence[Link]) -> list[Run[Unit]]:
    """The runs of blocks with branches that come again and again: one for each unit of a block."""
    segments = _segments(units, links)
    runs: list[Run[Unit]] = []
    place = 0
    for block, (period, times) in enumerate(_repetitions(_signatures(units, links, segments))):
        own = segments[place : place + period * times]
        place += period * times
        start, size = own[0].start, sum(map(len, own)) // times
        if times > 1 and size > period:
            copies = [units[start + copy * size : start + (copy + 1) * size] for copy in range(times)]
            runs += [Run(alike, times, block) for alike in zip(*copies, strict=True)]
    return runs


def _segments(units: Sequence[Repeatable], links: Sequence[Link]) -> list[range]:
    """The places between joints: units through which all goes that comes before them."""
    place = {unit.key: number for number, unit in enumerate(units)}
    last_use = list(range(len(units)))
    for source, target in links:
        last_use[place[source]] = max(last_use[place[source]], place[target])
    segments, start, reached = [], 0, 0
    for number in range(len(units)):
        if reached <= number:
            segments.append(range(start, number + 1))
            start = number + 1
        reached = max(reached, last_use[number])
    return segments


def _signatures(units: Sequence[Repeatable], links: Sequence[Link], segments: Sequence[range]) -> list[Hashable]:
    """What segments have in common if they look alike; None for one that is like no other."""
    place = {unit.key: number for number, unit in enumerate(units)}
    sources: dict[int, list[int]] = {number: [] for number in range(len(units))}
    for source, target in links:
        sources[place[target]].append(place[source])
    return [
        None
        if any(units[number].kind is None for number in segment)
        else tuple(
            (units[number].kind, units[number].is_output, tuple(source - segment.start for source in sources[number]))
            for number in segment
        )
        for segment in segments
    ]


def _chains(units: Sequence[Unit], links: Sequence[Link]) -> list[list[Unit]]:
    by_key = {unit.key: unit for unit in units}
    users: dict[Hashable, list[Hashable]] = {unit.key: [] for unit in units}
    sources: dict[Hashable, list[Hashable]] = {unit.key: [] for unit in units}
    for source, target in links:
        users[source].append(target)
        sources[target].append(source)
    follows = {
        key: near[0]
        for key, near in users.items()
        if len(near) == 1 and len(sources[near[0]]) == 1 and not by_key[key].is_output
    }
    starts = [unit for unit in units if unit.key not in set(follows.values())]
    chains = []
    for unit in starts:
        chain = [unit]
        while chain[-1].key in follows:
            chain.append(by_key[follows[chain[-1].key]])
        chains.append(chain)
    return chains


def _repetitions(kinds: Sequence[Hashable]) -> Iterator[tuple[int, int]]:
    """From the beginning to the end, the period of what comes next, and how often it comes."""
    place = 0
    while place < len(kinds):
        period, times = _repetition(kinds, place)
        yield period, times
        place += period * times


def _repetition(kinds: Sequence[Hashable], start: int) -> tuple[int, int]:
    """The period that folds most away from `start` on, and how often it occurs; 1 and 1 if none saves enough."""
    best = 1, 1
    for period in range(1, min(_LONGEST_PERIOD, (len(kinds) - start) // 2) + 1):
        pattern = kinds[start : start + period]
        if None in pattern:
            break
        times = 1
        while kinds[start + times * period : start + (times + 1) * period] == pattern:
            times += 1
        if (times - 1) * period > max((best[1] - 1) * best[0], _LEAST_SAVED - 1):
            best = period, times
    return best


def relinked(runs: Sequence[Run[Unit]], links: Sequence[Link]) -> list[tuple[int, int]]:
    """The links between runs, by their numbers; without those from one block to the next that looks like it."""
    place = {unit.key: (number, copy) for number, run in enumerate(runs) for copy, unit in enumerate(run.units)}
    pairs: dict[tuple[int, int], None] = {}
    for source_key, target_key in links:
        (source, source_copy), (target, target_copy) = place[source_key], place[target_key]
        block = runs[source].block
        is_between_copies = block is not None and block == runs[target].block and source_copy != target_copy
        if source != target and not is_between_copies:
            pairs[source, target] = None
    return list(pairs)
