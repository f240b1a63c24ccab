"""How boxes are filled by what was timed: by shares of something, by who computed them, or by what changed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from miai_graph.context import WAIT
from miai_graph.errors import ArgumentError
from miai_graph.timing import Timing, TimingRecord
from miai_graph.timing.difference import TimingDifference
from miai_graph.timing.grouping import NOT_COMPUTING, records_of_workers
from miai_graph.timing.words import duration
from miai_graph.views import style
from miai_graph.views.canvas import Bar, Sample
from miai_graph.views.palette import palette
from miai_graph.views.shares import (
    MEASURES,
    Shares,
    drawn_records,
    format_share,
    kernel_note,
    owning_layer,
    rest_note,
)

OWNERS = ("stage", "worker")
COLOUR_BY = ("time", "wait", "bytes", "memory", *OWNERS)

_MOST_NAMED = 3
_LEAST_CHANGE = 0.01


class Colouring(ABC):
    """Gives each box a value, and values colours and texts.

    Attributes
    ----------
    bar, samples : what the legend has of it
    kernel_notes : lines to be written below a picture of single nodes
    nothing : the value of a box of which nothing is known
    """

    bar: Bar | None = None
    samples: Sequence[Sample] = ()
    kernel_notes: Sequence[str] = ()
    nothing: Any = 0.0

    @abstractmethod
    def of_nodes(self, names: Iterable[str]) -> Any:
        """The value of nodes together."""

    @abstractmethod
    def of_layers(self, layers: Collection[str], phase: str | None = None) -> dict[str, Any]:
        """The value of each layer; what layers do inside of others counts for the outer one. None: in all phases."""

    @abstractmethod
    def joined(self, values: Iterable[Any]) -> Any:
        """The value of a box that stands for several."""

    @abstractmethod
    def scale(self, values: Collection[Any]) -> None:
        """Told the values of all boxes, once, before the colours are asked for."""

    @abstractmethod
    def fill(self, value: Any) -> str | None:
        """The colour of a box; None: its own."""

    @abstractmethod
    def text(self, value: Any) -> str:
        """What is written on it; "": nothing."""

    def notes(self, values: Iterable[Any]) -> list[str]:
        """Lines to be written below a picture of these values."""
        return []


class ShareColouring(Colouring):
    """The share of the time, of waiting, of memory traffic or of memory."""

    def __init__(self, timing: Timing, of: str) -> None:
        self._shares = Shares(timing, of)
        self._what, _ = MEASURES[of]
        self.kernel_notes = kernel_note(timing.records) if of == "time" else ()

    def of_nodes(self, names: Iterable[str]) -> float:
        return self._shares.of_nodes(names)

    def of_layers(self, layers: Collection[str], phase: str | None = None) -> dict[str, float]:
        return self._shares.of_layers(layers, phase)

    def joined(self, values: Iterable[float]) -> float:
        return sum(values)

    def scale(self, values: Collection[float]) -> None:
        self._greatest = max(values, default=0.0) or 1.0
        self.bar = Bar(f"share of {self._what}", style.share_colours(), 0.0, self._greatest, _format_tick)

    def fill(self, value: float) -> str:
        return style.mapped_colour(style.share_colours(), value / self._greatest)

    def text(self, value: float) -> str:
        return format_share(value) if value else ""

    def notes(self, values: Iterable[float]) -> list[str]:
        drawn = sum(values)
        return rest_note(drawn, self._what) if drawn else [f"nothing of {self._what} was recorded for what is drawn"]


class OwnerColouring(Colouring):
    """The stages, or the workers, that computed it."""

    nothing: frozenset[int] = frozenset()

    def __init__(self, timing: Timing, of: str) -> None:
        self._of = of
        stages = {worker.index: worker.stage for worker in timing.workers}
        self._owned: list[tuple[TimingRecord, int]] = []
        for record in timing.records:
            stage = stages.get(record.worker) if record.stage is None else record.stage
            owner = stage if of == "stage" else record.worker
            if owner is not None and record.calls and record.phase not in NOT_COMPUTING:
                self._owned.append((record, owner))
        self._by_node: dict[str, set[int]] = defaultdict(set)
        for record, owner in self._owned:
            self._by_node[record.node].add(owner)

    def of_nodes(self, names: Iterable[str]) -> frozenset[int]:
        return self.joined(self._by_node.get(name, ()) for name in names)

    def of_layers(self, layers: Collection[str], phase: str | None = None) -> dict[str, frozenset[int]]:
        owners: dict[str, set[int]] = {layer: set() for layer in layers}
        for record, owner in self._owned:
            layer = owning_layer(record, owners) if phase in (None, record.phase) else None
            if layer is not None:
                owners[layer].add(owner)
        return {layer: frozenset(found) for layer, found in owners.items()}

    def joined(self, values: Iterable[Iterable[int]]) -> frozenset[int]:
        return frozenset(owner for value in values for owner in value)

    def scale(self, values: Collection[frozenset[int]]) -> None:
        kinds = sorted({value for value in values if value}, key=sorted)
        self._places = {kind: place for place, kind in enumerate(kinds)}
        self.samples = [Sample(self.text(kind), self.fill(kind), palette().line) for kind in kinds]

    def fill(self, value: frozenset[int]) -> str | None:
        return style.class_fill(self._places[value]) if value else None

    def text(self, value: frozenset[int]) -> str:
        if not value:
            return ""
        owners = sorted(value)
        if len(owners) == 1:
            return f"{self._of} {owners[0]}"
        if len(owners) > _MOST_NAMED and owners[-1] - owners[0] == len(owners) - 1:
            return f"{self._of}s {owners[0]}–{owners[-1]}"
        shown = owners if len(owners) <= _MOST_NAMED else owners[: _MOST_NAMED - 1]
        more = f" + {len(owners) - len(shown)} more" if len(shown) < len(owners) else ""
        return f"{self._of}s {', '.join(map(str, shown))}{more}"

    def notes(self, values: Iterable[frozenset[int]]) -> list[str]:
        return [] if any(values) else [f"the timing knows no {self._of} of what is drawn"]


class DifferenceColouring(Colouring):
    """How many seconds a step longer the first of two timings takes, or, below zero, shorter."""

    def __init__(self, difference: TimingDifference) -> None:
        self._sides = (_StepSeconds(difference.first), _StepSeconds(difference.second))
        self.kernel_notes = kernel_note([*difference.first.records, *difference.second.records])

    def of_nodes(self, names: Iterable[str]) -> float:
        listed = list(names)
        first, second = (side.of_nodes(listed) for side in self._sides)
        return first - second

    def of_layers(self, layers: Collection[str], phase: str | None = None) -> dict[str, float]:
        first, second = (side.of_layers(layers, phase) for side in self._sides)
        return {layer: first[layer] - second[layer] for layer in layers}

    def joined(self, values: Iterable[float]) -> float:
        return sum(values)

    def scale(self, values: Collection[float]) -> None:
        self._greatest = max(map(abs, values), default=0.0) or 1e-6
        self.bar = Bar(
            "time a step: first timing − second one",
            style.change_colours(),
            -self._greatest,
            self._greatest,
            _signed,
        )

    def fill(self, value: float) -> str:
        return style.mapped_colour(style.change_colours(), 0.5 + value / self._greatest / 2)

    def text(self, value: float) -> str:
        return _signed(value) if abs(value) > _LEAST_CHANGE * self._greatest else ""


class _StepSeconds:
    """The seconds a step of one timing: those of the worker that takes longest."""

    def __init__(self, timing: Timing) -> None:
        self._steps = timing.steps
        self._records = drawn_records([record for record in records_of_workers(timing) if record.phase != WAIT])
        self._by_node: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
        for record in self._records:
            self._by_node[record.node][record.worker] += record.seconds

    def of_nodes(self, names: Iterable[str]) -> float:
        by_worker: dict[int, float] = defaultdict(float)
        for name in names:
            for worker, seconds in self._by_node.get(name, {}).items():
                by_worker[worker] += seconds
        return max(by_worker.values(), default=0.0) / self._steps

    def of_layers(self, layers: Collection[str], phase: str | None = None) -> dict[str, float]:
        by_worker: dict[str, dict[int, float]] = {layer: defaultdict(float) for layer in layers}
        for record in self._records:
            layer = owning_layer(record, layers) if phase in (None, record.phase) else None
            if layer is not None:
                by_worker[layer][record.worker] += record.seconds
        return {layer: max(seconds.values(), default=0.0) / self._steps for layer, seconds in by_worker.items()}


def _signed(seconds: float) -> str:
    """``+1.20 ms``, ``−30.0 µs``."""
    return f"{'+' if seconds > 0 else '−'}{duration(abs(seconds))}" if seconds else "0"


def colouring_of(timing: Timing | TimingDifference | None, colour_by: str | None) -> Colouring | None:
    """How to fill boxes; None: in their own colours.

    Raises
    ------
    ArgumentError
        for another kind of timing or colouring, or one that needs a timing without it.
    """
    if timing is not None and not isinstance(timing, Timing | TimingDifference):
        raise ArgumentError(
            f"expected a Timing, such as history.timing, or a difference of two, or None; found {timing!r}"
        )
    if colour_by not in (None, *COLOUR_BY):
        raise ArgumentError(f"expected colour_by to be one of {', '.join(COLOUR_BY)}, or None; found {colour_by!r}")
    if timing is None:
        if colour_by is not None:
            raise ArgumentError(
                f"expected a timing to colour by {colour_by}; found none. Pass timing=history.timing as well"
            )
        return None
    if isinstance(timing, TimingDifference):
        if colour_by not in (None, "time"):
            raise ArgumentError(f"expected colour_by='time' for a difference of two timings; found {colour_by!r}")
        return DifferenceColouring(timing)
    if colour_by in OWNERS:
        return OwnerColouring(timing, str(colour_by))
    return ShareColouring(timing, colour_by or "time")


def _format_tick(share: float) -> str:
    """A tick of the colour bar, with as many digits as it needs."""
    return f"{share * 100:.3g} %"
