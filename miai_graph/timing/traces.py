"""Traces of single steps: which steps are kept, and what each worker did in them, slice by slice."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from miai_graph.context import WAIT
from miai_graph.timing.clocks import align_clocks
from miai_graph.timing.records import OVERHEAD, Slice

SLICES_LIMIT = 100_000
"""So many slices of steps that were asked for are kept, of all workers together."""


class Label(NamedTuple):
    """What a slice is of: see `Slice`. `link` lacks the step."""

    node: str
    phase: str
    micro_batch: int | None
    link: str | None
    nodes: tuple[str, ...] = ()


class StepTrace(NamedTuple):
    """The clock of a worker in one step, in nanoseconds.

    number : of the step
    times : when it began, when it had waited for its order, before the first kernel and after each one, when it had
        waited for the others, and when it was done
    """

    number: int
    times: Sequence[int]


class WorkerTraces(NamedTuple):
    """Steps of one plan of one worker.

    labels : of its kernels
    offset_ns : how far the worker's clock is ahead of that of the process that asks
    uncertainty_ns : how far that may be wrong
    """

    labels: Sequence[Label]
    steps: Sequence[StepTrace]
    worker: int = 0
    stage: int | None = None
    replica: int = 0
    offset_ns: int = 0
    uncertainty_ns: int = 0


@dataclass
class TraceChoice:
    """Which steps are traced: the first, the last, and those asked for while there is room.

    Attributes
    ----------
    first : what executables count the first step as
    wanted : the numbers of steps asked for, from 0
    """

    first: int = 0
    wanted: Collection[int] = ()

    def __post_init__(self) -> None:
        self._kept: set[int] = set()
        self._refused = 0
        self._left = SLICES_LIMIT

    def takes(self, number: int, slices: int) -> bool:
        """Whether a step, which all workers together have so many slices of, is kept even if it is not the last."""
        if number not in self.wanted:
            return number == 0
        if number not in self._kept:
            if slices > self._left:
                self._refused += 1
                return number == 0
            self._left -= slices
            self._kept.add(number)
        return True

    def shown(self, steps: int) -> set[int]:
        """The numbers of the steps that are kept, after so many."""
        return {0, steps - 1, *self._kept}

    @property
    def notes(self) -> list[str]:
        """What was left out, as a sentence."""
        if not self._refused:
            return []
        count = len(self._kept)
        return [
            f"Of the steps that trace_steps names {count} {'is' if count == 1 else 'are'} traced and "
            f"{self._refused} not: more than {SLICES_LIMIT} slices are not kept."
        ]


def make_slices(traces: Iterable[WorkerTraces], numbers: Collection[int]) -> list[Slice]:
    """The slices of steps with these numbers, timed from the beginning of the first of them."""
    found: dict[tuple[int, int], tuple[WorkerTraces, StepTrace]] = {}
    for own in traces:
        # What was done once more, after a host was lost, takes the place of what it repeats.
        found.update({(step.number, own.worker): (own, step) for step in own.steps if step.number in numbers})
    if not found:
        return []
    first = min(number for number, _ in found)
    begun = min(step.times[0] - own.offset_ns for own, step in found.values() if step.number == first)
    slices = [piece for _, (own, step) in sorted(found.items()) for piece in _slices_of(own, step, begun)]
    return list(align_clocks(slices))


def _slices_of(own: WorkerTraces, step: StepTrace, begun_ns: int) -> Iterator[Slice]:
    wait, feed, commit = Label("wait", WAIT, None, None), *(Label(n, OVERHEAD, None, None) for n in ("feed", "commit"))
    empty = Slice("", "", own.worker, own.stage, None, 0.0, 0.0, own.uncertainty_ns / 1e9, step.number)
    labels = [wait, feed, *own.labels, wait, commit]
    for label, (start, end) in zip(labels, pairwise(step.times), strict=True):
        if label is wait and start == end:
            continue
        yield replace(
            empty,
            node=label.node,
            phase=label.phase,
            micro_batch=label.micro_batch,
            start_seconds=(start - own.offset_ns - begun_ns) / 1e9,
            seconds=(end - start) / 1e9,
            link=None if label.link is None else f"{step.number}:{own.replica}:{label.link}",
            nodes=label.nodes,
        )
