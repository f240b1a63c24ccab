"""All that the report shows, as plain data: what stands in the page as JSON, in ``<script id="data">``.

A program can read it from there, and `json.loads` takes it as it is. Times are in seconds, sizes in bytes. "Number of
a node" is its place in ``nodes``, "number of a box" its place in ``boxes``. Tables of many rows are stored by column:
a dictionary of lists, all of one length.

========== ===========================================================================================================
format     "miai_graph report", and version, of this description
title      of the page
run        of the timing: steps, wall_seconds, start_up_seconds, peak_bytes, notes, and verdict, a list of lines
workers    those that compute, by stages: index, host, pid, stage, replica, flops_per_second, bytes_per_second,
           clock_uncertainty_seconds (as in `TimedWorker`; null where not known) and parts: seconds by phase, which add
           up to wall_seconds
nodes      all nodes of the graph and all else that was timed: name, op, layer, phase, type, source (file and line),
           attributes, and box, the number of the box that shows it, or null
edges      pairs of numbers of nodes: which one is an input of which
drawing    width and height of the outermost drawing
boxes      scope (its layer; "first … last" of several that look alike), phase, type (of what comes out), parent (the
           number of the box it is in, or null), x and y of its centre in the drawing within its parent, width, height,
           inside: width and height of the drawing that is seen when it is opened, or null if it is a single node; and
           times: of how many blocks that look alike it consists, 1 for all other boxes
links      arrows between boxes of one parent: from, to, and points, the corners of the line; none for links that are
           only shown for a box that is marked, such as those from forward to backward
records    columns: node, kernel, worker, calls, seconds, min_seconds, max_seconds, flops, bytes, memory_bytes, for all
           calls together, as in `TimingRecord`; kernel is the number of a node, or null
kernels    lists of numbers of nodes that are computed together
slices     columns: node, kernel, worker, step, micro_batch, start_seconds, seconds, link, as in `Slice`; in order of
           start; kernel is its place in ``kernels``, or null
compared   null, or of the other run: run, records (as above), and verdict, lines on how the two differ
curves     null, or what a training has reached so far: x, the epochs done, and a list for each loss and metric, and for
           "seconds a step"
live       null, or of a page that is served while a model is trained: version, which grows, and is_over
========== ===========================================================================================================
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any

from miai_graph.errors import ArgumentError
from miai_graph.graph import Graph, format_attribute
from miai_graph.node import Node
from miai_graph.ops.leaves import is_input, is_variable
from miai_graph.report.drawing import GraphDrawing, draw
from miai_graph.timing import Slice, TimedWorker, Timing, TimingRecord
from miai_graph.timing.grouping import calling_processes, records_by_kernel, records_of_workers
from miai_graph.timing.table import left_out
from miai_graph.views.folding import outer_scope

FORMAT = "miai_graph report"
VERSION = 1

NodeKey = tuple[str, str]
"""Name and phase: a node, and the waits for it, are two."""


class GraphData:
    """What the page needs of a graph, which stays the same however often it is timed."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.names = graph.names
        self.drawing: GraphDrawing = draw(graph)
        self.nodes = [self._node(node) for node in graph.nodes]
        self.numbers: dict[NodeKey, int] = {(row["name"], row["phase"]): n for n, row in enumerate(self.nodes)}
        self.boxes_of_names = {self.names[node]: box for node, box in self.drawing.box_of.items()}
        self.boxes_of_layers: dict[NodeKey, int] = {}
        for number, box in enumerate(self.drawing.boxes):
            is_outermost = box["parent"] is None or self.drawing.boxes[box["parent"]]["times"] > 1
            if is_outermost and box["times"] == 1 and box["scope"]:
                self.boxes_of_layers.setdefault((outer_scope(box["scope"]), box["phase"]), number)
                self.boxes_of_layers.setdefault((outer_scope(box["scope"]), ""), number)

    def _node(self, node: Node) -> dict[str, Any]:
        is_leaf = is_input(node) or is_variable(node)
        attributes = () if is_leaf else node.attributes.items()
        return {
            "name": self.names[node],
            "op": node.op.name,
            "layer": node.scope,
            "phase": node.phase,
            "type": str(node.type),
            "source": node.source.short if node.source else "",
            "attributes": ", ".join(f"{key}={format_attribute(value)}" for key, value in attributes),
            "box": self.drawing.box_of[node],
        }

    def edges(self) -> list[tuple[int, int]]:
        """Pairs of numbers of nodes."""
        places = {node: place for place, node in enumerate(self.graph.nodes)}
        return [(places[source], places[node]) for node in self.graph.nodes for source in node.inputs]

    def box_of(self, name: str, layer: str, phase: str) -> int | None:
        """The box of a node of this name, else of its layer, if there is one."""
        layer = outer_scope(layer)
        found = (self.boxes_of_names.get(name), *(self.boxes_of_layers.get((layer, key)) for key in (phase, "")))
        return next((box for box in found if box is not None), None)


class _Numbering:
    """Numbers of nodes: those of the graph, then all that was timed besides."""

    def __init__(self, graph: GraphData) -> None:
        self._graph = graph
        self.nodes = list(graph.nodes)
        self._numbers = dict(graph.numbers)

    def of_record(self, record: TimingRecord) -> int:
        return self._number(record.node, record.phase, record.op, record.layer)

    def of_kernel(self, record: TimingRecord) -> int | None:
        """Of the node that stands for the record's kernel, if that computes several nodes which all have a number."""
        return self._numbers.get((record.kernel, record.phase)) if record.kernel else None

    def of_slice(self, piece: Slice) -> int:
        return self._number(piece.node, piece.phase, piece.node, "")

    def of_computed(self, piece: Slice) -> tuple[int, ...]:
        """Of all nodes that were computed in a slice."""
        return tuple(self._number(name, piece.phase, name, "") for name in piece.computed)

    def _number(self, name: str, phase: str, op: str, layer: str) -> int:
        key = name, phase
        if key not in self._numbers:
            self._numbers[key] = len(self.nodes)
            box = self._graph.box_of(name, layer, phase)
            self.nodes.append({"name": name, "op": op, "layer": layer, "phase": phase, "box": box})
        return self._numbers[key]


def report_data(
    graph: GraphData,
    timing: Timing,
    compare: Timing | None,
    title: str,
    curves: Mapping[str, Sequence[float | None]] | None = None,
) -> dict[str, Any]:
    """The data of a page, as the module's text describes it."""
    numbering = _Numbering(graph)
    records = _record_columns(records_of_workers(timing), numbering)
    kernels: dict[tuple[int, ...], int] = {}
    slices = _slice_columns(timing.slices, numbering, kernels)
    for together in records_by_kernel(records_of_workers(timing)).values():
        if len(together) > 1:
            kernels.setdefault(tuple(map(numbering.of_record, together)), len(kernels))
    compared = None
    if compare is not None:
        compared = {
            "run": _run(compare),
            "records": _record_columns(records_of_workers(compare), numbering),
            "verdict": [(timing - compare).summary],
        }
    drawing = graph.drawing
    return {
        "format": FORMAT,
        "version": VERSION,
        "title": title,
        "run": _run(timing),
        "workers": _workers(timing),
        "nodes": numbering.nodes,
        "edges": graph.edges(),
        "drawing": {"width": drawing.size[0], "height": drawing.size[1]},
        "boxes": drawing.boxes,
        "links": drawing.links,
        "records": records,
        "kernels": list(kernels),
        "slices": slices,
        "compared": compared,
        "curves": curves,
        "live": None,
    }


def graph_of(model_or_graph: Any, timing: Timing) -> Graph:
    """The graph that was timed; if the timing does not know it, the one given.

    Raises
    ------
    ArgumentError
        if nothing given is a graph, or a timing.
    """
    if not isinstance(timing, Timing):
        raise ArgumentError(f"expected a Timing to report on, such as history.timing; found {timing!r}")
    if isinstance(timing.graph, Graph):
        return timing.graph
    graph = model_or_graph if isinstance(model_or_graph, Graph) else getattr(model_or_graph, "graph", None)
    if isinstance(graph, Graph):
        return graph
    outputs = [model_or_graph] if isinstance(model_or_graph, Node) else model_or_graph
    if isinstance(outputs, list | tuple) and outputs and all(isinstance(node, Node) for node in outputs):
        return Graph(outputs)
    raise ArgumentError(f"expected a model, a Graph or nodes to report on; found {model_or_graph!r}")


def to_json(data: Mapping[str, Any]) -> str:
    """Readable JSON, a row or a column a line, that can stand in a page: no ``<`` is in it as such."""
    parts = (f"{json.dumps(key)}: {_section(value)}" for key, value in data.items())
    return ("{\n" + ",\n".join(parts) + "\n}").replace("<", "\\u003c")


def _section(value: Any) -> str:
    if isinstance(value, dict):
        lines = [f"{json.dumps(key)}: {_line(part)}" for key, part in value.items()]
        return "{\n" + ",\n".join(lines) + "\n}"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(_line(part) for part in value) + "\n]"
    return _line(value)


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def finite(value: float) -> float | None:
    """The number, or None (null in JSON) where it is none."""
    return value if math.isfinite(value) else None


def _run(timing: Timing) -> dict[str, Any]:
    return {
        "steps": timing.steps,
        "wall_seconds": timing.wall_seconds,
        "start_up_seconds": timing.start_up_seconds,
        "peak_bytes": timing.peak_bytes,
        "notes": [*left_out(timing), *timing.notes],
        "verdict": list(timing.verdict()),
    }


def _workers(timing: Timing) -> list[dict[str, Any]]:
    """All workers that anything is known of, in the order of their stages, if they have any, and numbers."""
    asking = calling_processes(timing)
    known = {worker.index: worker for worker in timing.workers if worker.index not in asking}
    parts: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for record in records_of_workers(timing):
        known.setdefault(record.worker, TimedWorker(record.worker, record.host, stage=record.stage))
        parts[record.worker][record.phase] += record.seconds
    for piece in timing.slices:
        known.setdefault(piece.worker, TimedWorker(piece.worker, "", stage=piece.stage))
    ordered = sorted(known.values(), key=lambda worker: (worker.stage or 0, worker.index))
    return [{**asdict(worker), "parts": dict(parts[worker.index])} for worker in ordered]


def _record_columns(records: Sequence[TimingRecord], numbering: _Numbering) -> dict[str, list[Any]]:
    numbers = [numbering.of_record(record) for record in records]
    figures = ("calls", "seconds", "min_seconds", "max_seconds", "flops", "bytes", "memory_bytes")
    return _columns(
        ("node", "kernel", "worker", *figures),
        (
            (
                number,
                numbering.of_kernel(record),
                record.worker,
                record.calls,
                round(record.seconds, 9),
                round(record.min_seconds, 9),
                round(record.max_seconds, 9),
                record.flops,
                record.bytes,
                record.memory_bytes,
            )
            for number, record in zip(numbers, records, strict=True)
        ),
    )


def _slice_columns(
    slices: Iterable[Slice], numbering: _Numbering, kernels: dict[tuple[int, ...], int]
) -> dict[str, list[Any]]:
    """The slices; what is computed together gets a number in `kernels`."""
    return _columns(
        ("node", "kernel", "worker", "step", "micro_batch", "start_seconds", "seconds", "link"),
        (
            (
                numbering.of_slice(piece),
                kernels.setdefault(numbering.of_computed(piece), len(kernels)) if piece.nodes else None,
                piece.worker,
                piece.step,
                piece.micro_batch,
                round(piece.start_seconds, 9),
                round(piece.seconds, 9),
                piece.link,
            )
            for piece in sorted(slices, key=lambda piece: piece.start_seconds)
        ),
    )


def _columns(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> dict[str, list[Any]]:
    flat = list(chain.from_iterable(rows))
    return {name: flat[place :: len(names)] for place, name in enumerate(names)}
