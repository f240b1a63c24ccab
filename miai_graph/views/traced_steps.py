"""The slices of single steps, as a timeline needs them: by worker, in order, and joined where they look alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from miai_graph.errors import ArgumentError
from miai_graph.timing import Slice

Kind = tuple[str, int | None]
"""What slices that look the same have in common: a name, and the micro-batch where that counts."""


@dataclass(frozen=True)
class TracedStep:
    """One step.

    number : of the step, from 0
    slices : by worker, in order
    start : in seconds, by the clock of the slices; seconds : from the first beginning to the last end
    """

    number: int
    slices: Mapping[int, Sequence[Slice]]
    start: float
    seconds: float

    def all_slices(self) -> Iterator[Slice]:
        return (piece for own in self.slices.values() for piece in own)


@dataclass(frozen=True)
class Block:
    """Slices of one worker, one after another, that look the same; from `start` to `end` in seconds of the step."""

    kind: Kind
    start: float
    end: float


def traced_steps(slices: Iterable[Slice], numbers: Collection[int] | None, most: int) -> list[TracedStep]:
    """The steps of these numbers; None: of all that were traced the first ones and the last, no more than `most`.

    Raises
    ------
    ArgumentError
        if there are none, or no such ones.
    """
    by_step: dict[int, dict[int, list[Slice]]] = defaultdict(lambda: defaultdict(list))
    for piece in sorted(slices, key=lambda piece: piece.start_seconds):
        by_step[piece.step][piece.worker].append(piece)
    if not by_step:
        raise ArgumentError(
            "expected a timing with traced steps to draw a timeline; found none. "
            "The first and the last step are traced, and those of fit(..., trace_steps=...)"
        )
    if not isinstance(numbers, Collection | None):
        raise ArgumentError(f"expected steps to be the numbers of traced steps, such as [0, 5]; found {numbers!r}")
    known = sorted(by_step)
    wanted = [*known[: most - 1], known[-1]] if numbers is None else list(numbers)
    unknown = [number for number in wanted if number not in by_step]
    if unknown or not wanted:
        raise ArgumentError(
            f"expected steps among the traced ones, {', '.join(map(str, known))}; "
            f"found {', '.join(map(str, unknown)) or 'none'}. Trace others with fit(..., trace_steps=...)"
        )
    return [_step(number, by_step[number]) for number in dict.fromkeys(wanted)]


def _step(number: int, slices: Mapping[int, Sequence[Slice]]) -> TracedStep:
    start = min(own[0].start_seconds for own in slices.values())
    end = max(piece.start_seconds + piece.seconds for own in slices.values() for piece in own)
    return TracedStep(number, slices, start, max(end - start, 1e-9))


def joined_blocks(step: TracedStep, pieces: Iterable[tuple[Kind, Slice]], bridged: float) -> list[Block]:
    """Slices of the same kind as one block, where no more than `bridged` of the step lies between them."""
    blocks: list[Block] = []
    for kind, piece in pieces:
        start = piece.start_seconds - step.start
        end = start + piece.seconds
        if blocks and blocks[-1].kind == kind and start - blocks[-1].end <= bridged * step.seconds:
            blocks[-1] = Block(kind, blocks[-1].start, max(blocks[-1].end, end))
        else:
            blocks.append(Block(kind, start, end))
    return blocks
