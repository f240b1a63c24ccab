"""Where the time went: one record for each node, always on.

The node loop stamps the time after each kernel; after a step the differences are added up here, in memory of constant
size. What a call does besides its nodes (copying inputs, committing updates, handing out results) is booked too, so
that the parts add up to the whole.
"""

from __future__ import annotations

import socket
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TextIO

import numpy as np

from miai_graph.context import WAIT
from miai_graph.errors import ArgumentError
from miai_graph.graph import Graph
from miai_graph.node import Node
from miai_graph.op import Cost
from miai_graph.terminal import print_text

OVERHEAD = "overhead"
ROWS_BESIDE_NODES = 3


@dataclass(frozen=True, slots=True)
class TimingRecord:
    """What one node took, on one worker.

    node, op, layer, phase : its name, op, scope and phase; phase "overhead" for what is no node, and "wait" for waiting
        for other workers
    worker : its number, from 0; host : the machine's name
    calls : how often it was computed
    seconds : in total; min_seconds and max_seconds of one call
    flops, bytes : arithmetic and memory traffic in total, by the op's cost
    stage : of a pipeline; None where there is none
    """

    node: str
    op: str
    layer: str
    phase: str
    worker: int
    host: str
    calls: int
    seconds: float
    min_seconds: float
    max_seconds: float
    flops: int
    bytes: int
    stage: int | None = None


@dataclass(frozen=True, slots=True)
class Slice:
    """What a worker did for a while, in the last step.

    node, phase : as in `TimingRecord`
    worker, stage : which; the stage of a pipeline, None where there is none
    micro_batch : its number; None for what is done once
    start_seconds : since the step began, by the clock of the process that asks
    seconds : how long it took
    uncertainty_seconds : how far `start_seconds` may be off, because clocks of hosts are compared by messages
    """

    node: str
    phase: str
    worker: int
    stage: int | None
    micro_batch: int | None
    start_seconds: float
    seconds: float
    uncertainty_seconds: float


class Recorder:
    """Adds up the stamps of one plan's steps.

    Parameters
    ----------
    graph : from which the nodes are, for their names
    nodes, costs : what is computed between one stamp and the next, and the work it is
    """

    def __init__(self, graph: Graph, nodes: Sequence[Node], costs: Sequence[Cost]) -> None:
        self._graph = graph
        self._nodes = nodes
        self._costs = costs
        self.reset()

    def reset(self) -> None:
        """Forget all calls."""
        self.calls = 0
        count = len(self._nodes) + ROWS_BESIDE_NODES
        self._total_ns = np.zeros(count, np.int64)
        self._min_ns = np.full(count, np.iinfo(np.int64).max)
        self._max_ns = np.zeros(count, np.int64)
        self._step_ns = np.empty(count, np.int64)

    def add(self, start_ns: int, stamps: np.ndarray[Any, np.dtype[np.int64]], end_ns: int, waited_ns: int = 0) -> None:
        """Book a call: before the first stamp it was feeding, after the last one committing, but for what it waited."""
        step = self._step_ns
        np.subtract(stamps[1:], stamps[:-1], step[1:-2])
        step[0] = stamps[0] - start_ns
        step[-2] = waited_ns
        step[-1] = end_ns - stamps[-1] - waited_ns
        self._total_ns += step
        np.minimum(self._min_ns, step, out=self._min_ns)
        np.maximum(self._max_ns, step, out=self._max_ns)
        self.calls += 1

    def records(self, worker: int = 0) -> list[TimingRecord]:
        """What was booked."""
        if not self.calls:
            return []
        names = self._graph.names
        host = socket.gethostname()
        nothing = Cost(0, 0)
        rows = [
            ("feed", "feed", "", OVERHEAD, nothing),
            *(
                (names[node], node.op.name, node.scope, node.phase, cost)
                for node, cost in zip(self._nodes, self._costs, strict=True)
            ),
            ("wait", "wait", "", WAIT, nothing),
            ("commit", "commit", "", OVERHEAD, nothing),
        ]
        records = [
            TimingRecord(
                node=name,
                op=op,
                layer=layer,
                phase=phase,
                worker=worker,
                host=host,
                calls=self.calls,
                seconds=int(self._total_ns[place]) / 1e9,
                min_seconds=int(self._min_ns[place]) / 1e9,
                max_seconds=int(self._max_ns[place]) / 1e9,
                flops=cost.flops * self.calls,
                bytes=cost.bytes * self.calls,
            )
            for place, (name, op, layer, phase, cost) in enumerate(rows)
            if phase != WAIT or self._total_ns[place]
        ]
        # A node that is computed for several parts of a batch is one all the same.
        parts: dict[tuple[str, str], list[TimingRecord]] = defaultdict(list)
        for record in records:
            parts[record.node, record.phase].append(record)
        return [_merge(members) for members in parts.values()]


GroupBy = Literal["layer", "op", "node", "phase", "worker"]


def _layer_of(record: TimingRecord) -> str:
    return f"({record.phase})" if record.phase in (OVERHEAD, WAIT) else record.layer or "(no layer)"


_GROUPS: dict[str, Callable[[TimingRecord], str]] = {
    "layer": _layer_of,
    "op": lambda record: record.op,
    "node": lambda record: record.node,
    "phase": lambda record: record.phase,
    "worker": lambda record: str(record.worker),
}


class Timing:
    """A snapshot of where the time went.

    Attributes
    ----------
    records : one `TimingRecord` for each node and worker
    steps : how many calls are counted
    start_up_seconds : spent outside of the steps, on compiling and on preparing for each size of batch
    peak_bytes : the most memory that a plan uses for computed values and scratch
    notes : what else is to be known of how the steps were run
    slices : the last step, kernel by kernel; empty where that is not kept
    """

    def __init__(
        self,
        records: Iterable[TimingRecord],
        steps: int,
        start_up_seconds: float = 0.0,
        peak_bytes: int = 0,
        notes: Iterable[str] = (),
        slices: Iterable[Slice] = (),
    ) -> None:
        self.records = tuple(records)
        self.steps = steps
        self.start_up_seconds = start_up_seconds
        self.peak_bytes = peak_bytes
        self.notes = tuple(notes)
        self.slices = tuple(slices)

    @property
    def seconds(self) -> float:
        """The time of all steps together, without start-up; the greatest of the workers'."""
        by_worker: dict[int, float] = defaultdict(float)
        for record in self.records:
            by_worker[record.worker] += record.seconds
        return max(by_worker.values(), default=0.0)

    def grouped(self, by: GroupBy = "layer") -> list[TimingRecord]:
        """Records added up by layer, op, node, phase or worker, the longest first.

        ``calls`` of a group is that of its most called node.
        """
        if by not in _GROUPS:
            raise ArgumentError(f"expected by to be one of {', '.join(_GROUPS)}; found {by!r}")
        groups: dict[str, list[TimingRecord]] = defaultdict(list)
        for record in self.records:
            groups[_GROUPS[by](record)].append(record)
        merged = [replace(_merge(members), node=name) for name, members in groups.items()]
        return sorted(merged, key=lambda record: record.seconds, reverse=True)

    def table(self, by: GroupBy = "layer", limit: int | None = 30, file: TextIO | None = None) -> None:
        """Print where the time went.

        Parameters
        ----------
        by : "layer", "op", "node", "phase" or "worker"
        limit : the number of rows; the rest are one row. None: all
        file : standard output by default
        """
        print_text(self.format_table(by, limit), file)

    def format_table(self, by: GroupBy = "layer", limit: int | None = 30) -> str:
        """The text that `table` prints."""
        rows = self.grouped(by)
        if limit is not None and len(rows) > limit:
            rest = _merge(rows[limit:])
            rows = [*rows[:limit], replace(rest, node=f"({len(rows) - limit} more)", op="")]
        total = sum(record.seconds for record in rows) or 1.0
        header = (by, "op" if by == "node" else "", "calls", "total ms", "mean µs", "share", "GFLOP/s")
        cells = [header] + [
            (
                record.node,
                record.op if by == "node" else "",
                f"{record.calls}",
                f"{record.seconds * 1e3:.2f}",
                f"{record.seconds / max(self.steps, 1) * 1e6:.1f}",
                f"{record.seconds / total:.1%}",
                f"{record.flops / record.seconds / 1e9:.2f}" if record.flops and record.seconds else "",
            )
            for record in rows
        ]
        used = [column for column in range(len(header)) if any(row[column] for row in cells)]
        widths = {column: max(len(row[column]) for row in cells) for column in used}
        lines = [
            "  ".join(row[c].ljust(widths[c]) if c < 2 else row[c].rjust(widths[c]) for c in used).rstrip()
            for row in cells
        ]
        summary = (
            f"{self.steps} steps in {self.seconds:.3f} s, after {self.start_up_seconds:.3f} s of start-up; "
            f"peak memory of values {self.peak_bytes / 1e6:.2f} MB"
        )
        return "\n".join([lines[0], "─" * max(map(len, lines)), *lines[1:], summary, *self.notes])

    def __str__(self) -> str:
        return self.format_table()

    def __repr__(self) -> str:
        return f"<Timing of {self.steps} steps, {self.seconds:.3f} s, {len(self.records)} records>"


def _merge(records: Sequence[TimingRecord]) -> TimingRecord:
    return replace(
        records[0],
        calls=max(record.calls for record in records),
        seconds=sum(record.seconds for record in records),
        min_seconds=sum(record.min_seconds for record in records),
        max_seconds=sum(record.max_seconds for record in records),
        flops=sum(record.flops for record in records),
        bytes=sum(record.bytes for record in records),
    )


def merge_calls(records: Iterable[TimingRecord]) -> list[TimingRecord]:
    """Records of the same node and worker, from plans for several batch sizes, as one each."""
    groups: dict[tuple[str, str, int], list[TimingRecord]] = defaultdict(list)
    for record in records:
        # The phase tells a node named "feed" from the overhead of that name.
        groups[record.node, record.phase, record.worker].append(record)
    return [
        replace(
            _merge(members),
            calls=sum(record.calls for record in members),
            min_seconds=min(record.min_seconds for record in members),
            max_seconds=max(record.max_seconds for record in members),
        )
        for members in groups.values()
    ]
