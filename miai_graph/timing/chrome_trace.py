"""Traced steps in the Trace Event Format, which Perfetto and Chrome open."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from miai_graph.context import BACKWARD, FORWARD
from miai_graph.errors import ArgumentError
from miai_graph.timing.clocks import sent_pairs
from miai_graph.timing.records import Slice, TimingRecord

if TYPE_CHECKING:
    from miai_graph.timing.timing import Timing

Event = dict[str, Any]
_Place = tuple[int, int]
"""Process and thread of an event."""


def chrome_trace(timing: Timing) -> dict[str, Any]:
    """The traced steps as JSON Object Format: a process for each host, a thread for each worker.

    Raises
    ------
    ArgumentError
        if no step was traced.
    """
    if not timing.slices:
        raise ArgumentError(
            f"expected a timing with traced steps; found {timing!r} without any. Run a step before, on an executor "
            "that traces steps"
        )
    slices = sorted(timing.slices, key=lambda part: part.start_seconds)
    lanes = _lanes(slices)
    places = _places(timing, slices, lanes)
    records = {(record.node, record.phase, record.worker): record for record in timing.records}
    events = list(_names(timing, places))
    for part, lane in zip(slices, lanes, strict=True):
        found = [records.get((name, part.phase, part.worker)) for name in part.computed]
        known = [record for record in found if record is not None]
        events.append(_slice_event(part, places[part.worker, lane], known))
    place_of = {id(part): places[part.worker, lane] for part, lane in zip(slices, lanes, strict=True)}
    pairs = [("sent", *pair) for pair in sent_pairs(slices)]
    pairs += [("gradient", *pair) for pair in _differentiated(timing, slices)]
    for number, (name, source, target) in enumerate(pairs):
        events += _arrow(number, name, (source, place_of[id(source)]), (target, place_of[id(target)]))
    notes = {"steps": timing.steps, "wall_seconds": timing.wall_seconds, "notes": list(timing.notes)}
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": notes}


def _nanoseconds(part: Slice) -> tuple[int, int]:
    """Start and end, so rounded that what followed on each other does so still."""
    return round(part.start_seconds * 1e9), round((part.start_seconds + part.seconds) * 1e9)


def _lanes(slices: Sequence[Slice]) -> list[int]:
    """The lane of each slice among those of its worker: 0, but for what was done beside something else."""
    ends: dict[int, list[int]] = defaultdict(list)
    result = []
    for part in slices:
        start, end = _nanoseconds(part)
        used = ends[part.worker]
        lane = next((lane for lane, last in enumerate(used) if last <= start), len(used))
        used[lane : lane + 1] = [end]
        result.append(lane)
    return result


def _places(timing: Timing, slices: Sequence[Slice], lanes: Sequence[int]) -> dict[tuple[int, int], _Place]:
    """Process and thread for each worker and lane, numbered from 1."""
    host_of = {record.worker: record.host for record in timing.records}
    host_of |= {worker.index: worker.host for worker in timing.workers}
    keys = sorted({(part.worker, lane) for part, lane in zip(slices, lanes, strict=True)})
    processes: dict[str, int] = {}
    for worker, _ in keys:
        processes.setdefault(host_of.get(worker, ""), len(processes) + 1)
    return {key: (processes[host_of.get(key[0], "")], number) for number, key in enumerate(keys, start=1)}


def _names(timing: Timing, places: Mapping[tuple[int, int], _Place]) -> Iterator[Event]:
    """The metadata: what processes and threads are called, and in which order they stand."""
    host_of = {record.worker: record.host for record in timing.records}
    known = {worker.index: worker for worker in timing.workers}
    host_of |= {index: worker.host for index, worker in known.items()}
    hosts = {process: host_of.get(worker, "") for (worker, _), (process, _) in places.items()}
    for process, host in hosts.items():
        yield _metadata("process_name", process, 0, {"name": host or "this machine"})
        yield _metadata("process_sort_index", process, 0, {"sort_index": process})
    for (index, lane), (process, thread) in places.items():
        worker = known.get(index)
        stage = f", stage {worker.stage}" if worker is not None and worker.stage is not None else ""
        beside = " beside" if lane else ""
        yield _metadata("thread_name", process, thread, {"name": f"worker {index}{stage}{beside}"})
        yield _metadata("thread_sort_index", process, thread, {"sort_index": thread})


def _metadata(name: str, process: int, thread: int, arguments: dict[str, Any]) -> Event:
    return {"ph": "M", "name": name, "pid": process, "tid": thread, "args": arguments}


def _slice_event(part: Slice, place: _Place, records: Sequence[TimingRecord]) -> Event:
    """The event of a slice, with the records of the nodes that were computed in it."""
    start, end = _nanoseconds(part)
    arguments: dict[str, Any] = {"phase": part.phase, "step": part.step}
    if records:
        for name in ("layer", "op"):
            arguments[name] = ", ".join(dict.fromkeys(getattr(record, name) for record in records))
        if records[0].calls:
            arguments["mean_us"] = round(sum(record.seconds for record in records) / records[0].calls * 1e6, 3)
    if part.nodes:
        arguments["computes"] = list(part.nodes)
    known = {"stage": part.stage, "micro_batch": part.micro_batch, "link": part.link}
    arguments |= {name: value for name, value in known.items() if value is not None}
    if part.uncertainty_seconds:
        arguments["clock_uncertainty_us"] = round(part.uncertainty_seconds * 1e6, 3)
    return {
        "ph": "X",
        "name": part.node,
        "cat": part.phase,
        "ts": start / 1e3,
        "dur": (end - start) / 1e3,
        "pid": place[0],
        "tid": place[1],
        "args": arguments,
    }


def _differentiated(timing: Timing, slices: Sequence[Slice]) -> Iterator[tuple[Slice, Slice]]:
    """Forward slices, with the first slices of the same worker and micro-batch that are of their gradients.

    Those are gradients of the same nodes, or of the same layers where the graph is not known.
    """
    origin_of = _origins(timing)
    forward: dict[Any, Slice] = {}
    backward: dict[Any, Slice] = {}
    for part in slices:
        if part.phase not in (FORWARD, BACKWARD):
            continue
        for origin in dict.fromkeys(origin_of[name] for name in part.computed if name in origin_of):
            key = part.worker, part.step, part.micro_batch, origin
            if part.phase == FORWARD:
                forward[key] = part
            else:
                backward.setdefault(key, part)
    pairs = ((source, backward[key]) for key, source in forward.items() if key in backward)
    yield from {(id(source), id(target)): (source, target) for source, target in pairs}.values()


def _origins(timing: Timing) -> dict[str, Any]:
    if timing.graph is not None:
        return {name: node.origin for node, name in timing.graph.names.items()}
    return {record.node: record.layer for record in timing.records if record.layer}


def _arrow(number: int, name: str, source: tuple[Slice, _Place], target: tuple[Slice, _Place]) -> tuple[Event, ...]:
    """From within the one slice to within the other: what lies on its border may be taken for its neighbour's.

    None that would point to the past, as it can where clocks of hosts are uncertain.
    """
    (begin, begin_place), (end, end_place) = source, target
    start, stop = _nanoseconds(begin)
    leave = start + min(1, (stop - start) // 2)
    start, stop = _nanoseconds(end)
    arrive = max(start, stop - 1)
    if arrive < leave:
        return ()
    common = {"cat": "flow", "name": name, "id": number}
    return (
        {"ph": "s", **common, "ts": leave / 1e3, "pid": begin_place[0], "tid": begin_place[1]},
        {"ph": "f", "bp": "e", **common, "ts": arrive / 1e3, "pid": end_place[0], "tid": end_place[1]},
    )
