"""The lanes of a timeline: for each worker a row of blocks in colours of layers or ops, and below it the phases."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from miai_graph.context import BACKWARD, COMMUNICATION, FORWARD, RECOMPUTE, UPDATE, WAIT
from miai_graph.timing import Slice, Timing, TimingRecord
from miai_graph.timing.records import IDLE
from miai_graph.views import style
from miai_graph.views.palette import palette
from miai_graph.views.shares import drawn_records
from miai_graph.views.time_look import SMALL_SIZE, phase_look
from miai_graph.views.traced_steps import Block, TracedStep, joined_blocks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NO_LAYER, SEVERAL_OPS = "no layer", "several ops at once"
COMPUTING = (FORWARD, RECOMPUTE, BACKWARD, UPDATE)

_BLOCK, _STRIP, _LANE, _TOP = 24.0, 11.0, 46.0, 4.0
_MOST_LANES_OF_FULL_HEIGHT, _LOW = 12, 0.6
_MOST_LINKS = 200
_FINEST, _BRIDGED = 1 / 4000, 1 / 150
"""So much of a step may lie between slices that are drawn as one: of the same layer, and of the same phase."""

_NUMBER = re.compile(r"_\d+$")

Area = tuple[float, float, float, float]
"""Left and right in the unit of the axes, top and height in points."""


def _from_first_stage(timing: Timing, workers: Collection[int]) -> list[int]:
    """The workers in the order in which a pipeline hands on its work; where there is none, by their numbers."""
    stages = {known.index: known.stage or 0 for known in timing.workers}
    return sorted(workers, key=lambda worker: (stages.get(worker, 0), worker))


class Lanes:
    """How the lanes of all steps look.

    Attributes
    ----------
    looks : how each kind of block is filled, as matplotlib's options, by its name: those of the legend. Where there are
        many layers, those of a kind look alike; where there is none, ops stand in their place
    workers : from top to bottom
    height : of all lanes, in points
    """

    def __init__(self, timing: Timing, steps: Sequence[TracedStep]) -> None:
        self._has_layers = any(record.layer for record in timing.records)
        self._names = _names_of_nodes(timing, _outer_layer if self._has_layers else _op)
        if self._has_layers and len(set(self._names.values())) > len(palette().layer_fills):
            self._names = _names_of_nodes(timing, _kind_of_layer)
        self._seconds: dict[str, float] = defaultdict(float)
        for record in timing.records:
            self._seconds[record.node] += record.seconds
        self._shared: dict[tuple[str, ...], dict[str, float]] = {}
        self.looks = self._chosen_looks(steps)
        self.workers = _from_first_stage(timing, {worker for step in steps for worker in step.slices})
        self.is_high = len(self.workers) <= _MOST_LANES_OF_FULL_HEIGHT
        scale = 1.0 if self.is_high else _LOW
        self.block, self.strip, self._lane, self._top = (scale * size for size in (_BLOCK, _STRIP, _LANE, _TOP))
        self.height = self._lane * len(self.workers)

    def top(self, worker: int) -> float:
        return self.workers.index(worker) * self._lane + self._top

    def bottom(self, worker: int) -> float:
        return self.top(worker) + self.block + self.strip

    def kind(self, piece: Slice) -> str:
        """The entry of the legend that a slice belongs to."""
        name = self._name(piece)
        return name if name in self.looks or piece.phase not in COMPUTING else self._others

    def notes(self, steps: Sequence[TracedStep]) -> list[str]:
        """What is to be known of the colours."""
        pieces = (piece for step in steps for piece in step.all_slices())
        is_mixed = self._has_layers and any(len(self._parts(piece)) > 1 for piece in pieces)
        note = "What is computed at once of several layers has the colour of the one with the largest part."
        return [note] if is_mixed else []

    def _parts(self, piece: Slice) -> dict[str, float]:
        """The layers, or ops, of all that was computed, and the time that they take."""
        parts = self._shared.get(piece.computed)
        if parts is None:
            parts = self._shared[piece.computed] = defaultdict(float)
            for name in piece.computed:
                parts[self._names.get(name, NO_LAYER)] += self._seconds[name]
        return parts

    @property
    def _others(self) -> str:
        return "other layers" if self._has_layers else "other ops"

    def _name(self, piece: Slice) -> str:
        if piece.phase not in COMPUTING:
            return piece.phase
        parts = self._parts(piece)
        if len(parts) > 1 and not self._has_layers:
            return SEVERAL_OPS
        return max(parts, key=lambda name: parts[name])

    def _chosen_looks(self, steps: Sequence[TracedStep]) -> dict[str, dict[str, Any]]:
        """The layers, or ops, that took longest have colours of their own."""
        seconds: dict[str, float] = defaultdict(float)
        phases = set()
        for piece in (piece for step in steps for piece in step.all_slices()):
            if piece.phase in COMPUTING:
                seconds[self._name(piece)] += piece.seconds
            elif piece.phase != IDLE:
                phases.add(piece.phase)
        order = sorted(seconds, key=lambda name: -seconds[name])
        fills = dict(zip(order, palette().layer_fills, strict=False))
        if len(order) > len(fills):
            fills[self._others] = palette().other_layers
        looks: dict[str, dict[str, Any]] = {
            name: {"facecolor": fill, "edgecolor": "none"} for name, fill in fills.items()
        }
        shown = sorted(phases, key=lambda phase: (phase != COMMUNICATION, phase != WAIT, phase))
        return looks | {phase: phase_look(phase) for phase in shown}


def _names_of_nodes(timing: Timing, named: Callable[[TimingRecord], str]) -> dict[str, str]:
    """What each node counts for, by all the names that slices may call the node."""
    result: dict[str, str] = {}
    for record, drawn in zip(timing.records, drawn_records(timing.records), strict=True):
        if name := named(record):
            result[drawn.node] = result[record.node] = name
    return result


def _outer_layer(record: TimingRecord) -> str:
    return record.layer.split("/", 1)[0]


def _kind_of_layer(record: TimingRecord) -> str:
    """``conv2d`` for ``encoder/conv2d_3``: what many layers have in common."""
    return _NUMBER.sub("", record.layer.rpartition("/")[2])


def _op(record: TimingRecord) -> str:
    return record.op


def draw_lanes(axes: Axes, step: TracedStep, lanes: Lanes, factor: float, scale: float) -> None:
    """Draw one step.

    Parameters
    ----------
    factor : the unit of the axes in seconds
    scale : how many points wide a unit is
    """
    drawing = _LaneDrawing(axes, step, lanes, factor, scale)
    areas: dict[str, list[Area]] = defaultdict(list)
    for worker, slices in step.slices.items():
        blocks = joined_blocks(step, [((lanes.kind(piece), None), piece) for piece in slices], _FINEST)
        for block in blocks:
            areas[block.kind[0]].append(drawing.area(block, lanes.top(worker), lanes.block))
        if lanes.is_high:
            drawing.names(blocks, lanes.top(worker))
        computing = [((piece.phase, piece.micro_batch), piece) for piece in slices if piece.phase in COMPUTING]
        drawing.strip(joined_blocks(step, computing, _BRIDGED), lanes.top(worker) + lanes.block + 1)
    for kind, places in areas.items():
        if kind != IDLE:
            drawing.fill(places, lanes.looks[kind])
    drawing.links()


class _LaneDrawing:
    """Draws into the axes of one step."""

    def __init__(self, axes: Axes, step: TracedStep, lanes: Lanes, factor: float, scale: float) -> None:
        self._axes = axes
        self._step = step
        self._lanes = lanes
        self._factor = factor
        self._scale = scale

    def area(self, block: Block, top: float, height: float) -> Area:
        return block.start / self._factor, block.end / self._factor, top, height

    def fill(self, places: Iterable[Area], look: Mapping[str, Any]) -> None:
        from matplotlib.collections import PolyCollection

        corners = [
            [(left, top), (right, top), (right, top + height), (left, top + height)]
            for left, right, top, height in places
        ]
        self._axes.add_collection(PolyCollection(corners, **look), autolim=False)

    def names(self, blocks: Iterable[Block], top: float) -> None:
        """What the blocks are, where there is room."""
        for block in blocks:
            name, _ = block.kind
            if name == IDLE or not self._fits(name, block, SMALL_SIZE):
                continue
            options: dict[str, Any] = {"color": style.text_on(self._lanes.looks[name]["facecolor"])}
            if name == WAIT:
                options["bbox"] = {"facecolor": palette().paper, "edgecolor": "none", "pad": 1.0}
            self._write(name, block, top + self._lanes.block / 2, SMALL_SIZE, **options)

    def strip(self, runs: Sequence[Block], top: float) -> None:
        """The phases, with the numbers of micro-batches."""
        height = self._lanes.strip - 1
        by_phase: dict[str, list[Area]] = defaultdict(list)
        for run in runs:
            phase, micro_batch = run.kind
            by_phase[phase].append(self.area(run, top, height))
            number = "" if micro_batch is None else str(micro_batch)
            texts = [text for text in (f"{phase} {number}".strip(), number) if text]
            text = next((text for text in texts if self._fits(text, run, SMALL_SIZE - 0.5)), "")
            if text and self._lanes.is_high:
                self._write(text, run, top + height / 2 + 0.5, SMALL_SIZE - 0.5)
        for phase, places in by_phase.items():
            fill, frame = palette().phase_fills[phase], palette().phase_frames[phase]
            self.fill(places, {"facecolor": fill, "edgecolor": frame, "linewidth": 0.4})

    def links(self) -> None:
        """Lines from sending to receiving, unless there are too many to tell them apart."""
        from matplotlib.collections import LineCollection

        ends: dict[str, list[Slice]] = defaultdict(list)
        for piece in self._step.all_slices():
            if piece.link is not None:
                ends[piece.link].append(piece)
        pairs = [pair for pair in ends.values() if len({piece.worker for piece in pair}) == len(pair) == 2]
        if 0 < len(pairs) <= _MOST_LINKS:
            lines = [[self._link_end(*pair), self._link_end(*reversed(pair))] for pair in pairs]
            colour = palette().time_fills[COMMUNICATION]
            self._axes.add_collection(LineCollection(lines, colors=colour, linewidths=0.8, alpha=0.75), autolim=False)

    def _link_end(self, piece: Slice, other: Slice) -> tuple[float, float]:
        """The end of the slice, at the side of its lane that is nearer to the other one."""
        x = (piece.start_seconds + piece.seconds - self._step.start) / self._factor
        is_above = self._lanes.top(piece.worker) < self._lanes.top(other.worker)
        return x, self._lanes.bottom(piece.worker) if is_above else self._lanes.top(piece.worker)

    def _fits(self, text: str, block: Block, size: float) -> bool:
        room = (block.end - block.start) / self._factor * self._scale - 3
        return room > size / 2 and style.text_width(text, size) <= room

    def _write(self, text: str, block: Block, y: float, size: float, **options: Any) -> None:
        x = (block.start + block.end) / 2 / self._factor
        style.plain_text(self._axes, x, y, text, size, ha="center", va="center_baseline", **options)
