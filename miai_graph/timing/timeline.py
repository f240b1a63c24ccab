"""One step as text: a lane for each worker, in which characters say what it did."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from miai_graph.context import BACKWARD, COMMUNICATION, FORWARD, RECOMPUTE, UPDATE, WAIT
from miai_graph.errors import ArgumentError
from miai_graph.timing.grouping import BESIDE_NODES
from miai_graph.timing.records import IDLE, Slice
from miai_graph.timing.table import check_width, wrap
from miai_graph.timing.words import duration, percent, shorten

if TYPE_CHECKING:
    from miai_graph.timing.timing import Timing

_BESIDE = "beside"
_MARKS = {
    FORWARD: "█",
    RECOMPUTE: "▞",
    BACKWARD: "▓",
    UPDATE: "▒",
    COMMUNICATION: "━",
    _BESIDE: "░",
    WAIT: "·",
    IDLE: " ",
}
_LEGEND = {
    FORWARD: "forward",
    RECOMPUTE: "forward once more",
    BACKWARD: "backward",
    UPDATE: "update",
    COMMUNICATION: "sending and reducing",
    _BESIDE: "feeding and committing",
    WAIT: "waiting",
    IDLE: "idle",
}
_NO_BREAK = "\N{NO-BREAK SPACE}"
_DEFAULT_WIDTH = 100
_LEAST_LANE = 10


def format_timeline(timing: Timing, step: int | None, width: int | None) -> str:
    """The text of `Timing.timeline`."""
    check_width(width)
    slices = slices_of_step(timing, step)
    if not slices:
        return "no step was traced"
    begin = min(part.start_seconds for part in slices)
    length = max(part.start_seconds + part.seconds for part in slices) - begin
    lanes: dict[int, list[Slice]] = defaultdict(list)
    for part in slices:
        lanes[part.worker].append(part)
    labels = _labels(timing, sorted(lanes), (width or _DEFAULT_WIDTH) * 2 // 5)
    shares = {worker: _busy_share(parts, length) for worker, parts in lanes.items()}
    label_width = max(map(len, labels.values()))
    columns = max(_LEAST_LANE, (width or _DEFAULT_WIDTH) - label_width - max(map(len, shares.values())) - 4)
    rows = {worker: _draw(parts, begin, length, columns) for worker, parts in lanes.items()}
    lines = [f"{labels[worker]:<{label_width}} |{rows[worker]}| {shares[worker]}" for worker in labels]
    axis = f"0{duration(length):>{columns - 1}}"
    used = [kind for kind in _LEGEND if any(_MARKS[kind] in row for row in rows.values())]
    items = (f"{_MARKS[kind]} {_LEGEND[kind]}" if kind != IDLE else "blank: idle" for kind in used)
    legend = "  ".join(item.replace(" ", _NO_BREAK) for item in items)
    title = _title(slices, length)
    explained = [line.replace(_NO_BREAK, " ") for line in wrap(legend, width)]
    return "\n".join([*wrap(title, width), *lines, f"{'':<{label_width}}  {axis}", *explained])


def slices_of_step(timing: Timing, step: int | None = None) -> list[Slice]:
    """What was traced of a step, in the order of time; of the last one that was, by default.

    Raises
    ------
    ArgumentError
        if that step was not traced.
    """
    traced = sorted({part.step for part in timing.slices})
    if step is None:
        step = traced[-1] if traced else None
    elif step not in traced:
        known = ", ".join(map(str, traced)) or "none"
        raise ArgumentError(
            f"expected a step that was traced ({known}); found {step!r}. Name more with fit(..., trace_steps=...)"
        )
    return sorted((part for part in timing.slices if part.step == step), key=lambda part: part.start_seconds)


def _kind(phase: str) -> str:
    if phase in _MARKS:
        return phase
    return _BESIDE if phase in BESIDE_NODES else FORWARD


def _draw(slices: Iterable[Slice], begin: float, length: float, columns: int) -> str:
    """In each place the mark of what took most of its time."""
    time_of: list[dict[str, float]] = [defaultdict(float) for _ in range(columns)]
    column_seconds = (length or 1.0) / columns
    for part in slices:
        start = (part.start_seconds - begin) / column_seconds
        end = start + part.seconds / column_seconds
        kind = _kind(part.phase)
        for column in range(int(start), min(int(end), columns - 1) + 1):
            time_of[column][kind] += min(end, column + 1) - max(start, column)
    return "".join(_mark(times) for times in time_of)


def _mark(times: dict[str, float]) -> str:
    idle = 1.0 - sum(times.values())
    kind = max(times, key=lambda key: times[key], default=IDLE)
    return _MARKS[IDLE] if idle > times.get(kind, 0.0) else _MARKS[kind]


def _busy_share(slices: Sequence[Slice], length: float) -> str:
    """How much of the step a worker did something."""
    busy = sum(part.seconds for part in slices if part.phase not in (WAIT, IDLE))
    return f"{percent(busy / length)} busy" if length else ""


def _labels(timing: Timing, workers: Sequence[int], width: int) -> dict[int, str]:
    """What stands before the lanes: as much about each worker as there is room for."""
    known = {worker.index: worker for worker in timing.workers}
    hosts = {worker.host for worker in timing.workers}
    labels = {}
    for index in workers:
        parts = [f"worker {index}"]
        if (worker := known.get(index)) is not None:
            parts += [f"stage {worker.stage}"] if worker.stage is not None else []
            parts += [worker.host] if len(hosts) > 1 else []
        while len(parts) > 1 and len(", ".join(parts)) > width:
            parts.pop()
        labels[index] = shorten(", ".join(parts), width)
    return labels


def _title(slices: Sequence[Slice], length: float) -> str:
    uncertainty = max(part.uncertainty_seconds for part in slices)
    title = f"step {slices[0].step}, {duration(length)}"
    return f"{title}; clocks of workers agree within {duration(uncertainty)}" if uncertainty else title
