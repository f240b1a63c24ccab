"""Adds up the stamps of the node loop: in memory of constant size, for every step."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from miai_graph.context import WAIT
from miai_graph.graph import Graph
from miai_graph.node import Node
from miai_graph.op import Cost
from miai_graph.timing.records import HISTOGRAM_BINS, OVERHEAD, TimingRecord, merge_calls
from miai_graph.timing.traces import Label, StepTrace, WorkerTraces

Times = np.ndarray[Any, np.dtype[np.int64]]

ROWS_BESIDE_NODES = 3
NO_COST = Cost(0, 0)
COLLECTED_STAMPS, MOST_STEPS, FEWEST_STEPS = 1 << 15, 512, 8
"""The stamps of some steps, as many as fit into a core's own cache, are collected and then added up together."""


@dataclass(frozen=True, slots=True)
class Work:
    """What is computed between one stamp and the next.

    node, cost : which node, and the work that it is
    memory_bytes : of the value, where it has memory of its own
    micro_batch : its number; None for what is computed once
    link : what a `send` has in common with the `receive` of another worker
    members : of a kernel that computes several nodes, each of them; the costs add up to `cost`
    """

    node: Node
    cost: Cost
    memory_bytes: int = 0
    micro_batch: int | None = None
    link: str | None = None
    members: Sequence[Member] = ()


@dataclass(frozen=True, slots=True)
class Member:
    """A node of those that one kernel computes, with its part of the work. Its time is by its part of the flops."""

    node: Node
    cost: Cost
    memory_bytes: int


_Step = tuple[int, int, int, int, int, bytes]
"""Start, what it waited at first and at last, end, number, and stamps."""


class Recorder:
    """Adds up the stamps of one plan's steps.

    Parameters
    ----------
    graph : from which the nodes are, for their names
    work : of each kernel, in order; several may belong to one node, each for another part of the batch
    """

    def __init__(self, graph: Graph, work: Sequence[Work]) -> None:
        self._graph = graph
        self.work = work
        self._nodes = list(dict.fromkeys(item.node for item in work))
        self._groups = None if len(self._nodes) == len(work) else _grouping(self._nodes, work)
        self._most_pending = min(max(COLLECTED_STAMPS // (len(work) + 1), FEWEST_STEPS), MOST_STEPS)
        self._bins = np.arange(len(self._nodes) + ROWS_BESIDE_NODES) * HISTOGRAM_BINS
        self.reset()

    def reset(self) -> None:
        """Forget all calls."""
        self._pending: list[_Step] = []
        self._latest: _Step | None = None
        self._kept: dict[int, _Step] = {}
        self._added_up = 0
        self._total_ns = np.zeros(len(self._bins), np.int64)
        self._min_ns = np.full(len(self._bins), np.iinfo(np.int64).max)
        self._max_ns = np.zeros(len(self._bins), np.int64)
        self._histogram = np.zeros(len(self._bins) * HISTOGRAM_BINS, np.int64)

    @property
    def calls(self) -> int:
        """How many steps were added."""
        return self._added_up + len(self._pending)

    def add(
        self,
        start_ns: int,
        stamps: Times,
        end_ns: int,
        waited_first_ns: int = 0,
        waited_last_ns: int = 0,
        number: int = 0,
        is_traced: bool = False,
    ) -> None:
        """Book a step: before the first stamp it was feeding, after the last one committing, but for what it waited.

        Parameters
        ----------
        waited_first_ns, waited_last_ns : how long it waited from the start on, and from the last stamp on
        number : of the step, for its trace
        is_traced : whether it is kept, even if it is not the last one
        """
        pending = self._pending
        # What is done in each step costs as little as can be; the rest is done for many steps at once.
        pending.append((start_ns, waited_first_ns, waited_last_ns, end_ns, number, stamps.tobytes()))
        if is_traced:
            self._kept[number] = pending[-1]
        if len(pending) >= self._most_pending:
            self._add_up()

    def _add_up(self) -> None:
        """Add the steps that are pending to the totals."""
        if not self._pending:
            return
        steps, self._pending = self._pending, []
        self._latest = steps[-1]
        self._added_up += len(steps)
        times = self._times_of(steps)
        self._total_ns += times.sum(axis=0)
        np.minimum(self._min_ns, times.min(axis=0), out=self._min_ns)
        np.maximum(self._max_ns, times.max(axis=0), out=self._max_ns)
        # The exponent is the number of bits.
        bits = np.frexp(times)[1]
        np.clip(bits, 1, HISTOGRAM_BINS, out=bits)
        np.add.at(self._histogram, (bits + (self._bins - 1)).reshape(-1), 1)

    def _times_of(self, steps: Sequence[_Step]) -> Times:
        """How long each step waited, fed, computed each node, and committed."""
        stamps = np.frombuffer(b"".join([step[-1] for step in steps]), np.int64).reshape(len(steps), -1)
        numbers = np.fromiter(chain.from_iterable([step[:4] for step in steps]), np.int64, 4 * len(steps))
        start, waited_first, waited_last, end = numbers.reshape(-1, 4).T
        kernels = np.diff(stamps, axis=1)
        if self._groups is not None:
            order, starts = self._groups
            kernels = np.add.reduceat(kernels[:, order], starts, axis=1)
        times = np.empty((len(steps), len(self._bins)), np.int64)
        times[:, 0] = waited_first + waited_last
        times[:, 1] = stamps[:, 0] - start - waited_first
        times[:, 2:-1] = kernels
        times[:, -1] = end - stamps[:, -1] - waited_last
        return times

    @property
    def traces(self) -> list[StepTrace]:
        """The steps that were kept, and the last one."""
        latest = self._pending[-1] if self._pending else self._latest
        steps = dict(self._kept) if latest is None else {**self._kept, latest[-2]: latest}
        return [_trace_of(step) for step in steps.values()]

    @property
    def labels(self) -> list[Label]:
        """What the kernels of a trace are."""
        names = self._graph.names
        return [
            Label(
                names[item.node],
                item.node.phase,
                item.micro_batch,
                item.link,
                tuple(names[member.node] for member in item.members),
            )
            for item in self.work
        ]

    def records(self, worker: int = 0) -> list[TimingRecord]:
        """What was booked: one record for each node, however many parts of a batch it is computed for."""
        if not self.calls:
            return []
        self._add_up()
        host = socket.gethostname()
        histograms = self._histogram.reshape(-1, HISTOGRAM_BINS).tolist()
        return [
            TimingRecord(
                node=part.name,
                op=part.op,
                layer=part.layer,
                phase=part.phase,
                worker=worker,
                host=host,
                calls=self.calls,
                seconds=int(self._total_ns[place]) * part.share / 1e9,
                min_seconds=int(self._min_ns[place]) * part.share / 1e9,
                max_seconds=int(self._max_ns[place]) * part.share / 1e9,
                flops=part.cost.flops * self.calls,
                bytes=part.cost.bytes * self.calls,
                memory_bytes=part.memory_bytes,
                histogram=_shifted(histograms[place], part.share),
                kernel=part.kernel,
            )
            for place, parts in enumerate(self._described())
            for part in parts
            if part.phase != WAIT or part.op != WAIT or self._total_ns[place]
        ]

    def _described(self) -> Iterator[Sequence[_Part]]:
        """What each row of the totals is of."""
        work: dict[Node, list[Work]] = {}
        names = self._graph.names
        for item in self.work:
            work.setdefault(item.node, []).append(item)
        yield [_Part("wait", WAIT, "", WAIT)]
        yield [_Part("feed", "feed", "", OVERHEAD)]
        for items in work.values():
            yield _parts_of(items, names)
        yield [_Part("commit", "commit", "", OVERHEAD)]


@dataclass(frozen=True, slots=True)
class _Part:
    """One of those among whom the time of a row is shared, with its share."""

    name: str
    op: str
    layer: str
    phase: str
    cost: Cost = NO_COST
    memory_bytes: int = 0
    share: float = 1.0
    kernel: str = ""


def _parts_of(items: Sequence[Work], names: Mapping[Node, str]) -> Sequence[_Part]:
    """The nodes among whom the time of one node's kernels is shared."""
    first = items[0]
    members: dict[Node, list[Member]] = {}
    for item in items:
        for member in item.members or (Member(item.node, item.cost, item.memory_bytes),):
            members.setdefault(member.node, []).append(member)
    flops = sum(member.cost.flops for group in members.values() for member in group)
    result = []
    for node, group in members.items():
        cost = Cost(sum(member.cost.flops for member in group), sum(member.cost.bytes for member in group))
        memory_bytes = sum(member.memory_bytes for member in group)
        share = cost.flops / flops if len(members) > 1 and flops else 1 / len(members)
        kernel = names[first.node] if len(members) > 1 else ""
        result.append(_Part(names[node], node.op.name, node.scope, node.phase, cost, memory_bytes, share, kernel))
    return result


def _shifted(histogram: Sequence[int], share: float) -> tuple[int, ...]:
    """The counts of calls if each took a share of its time."""
    if share == 1:
        return tuple(histogram)
    bins = round(-math.log2(share)) if share else HISTOGRAM_BINS
    return sum(histogram[: bins + 1]), *histogram[bins + 1 :], *[0] * min(bins, HISTOGRAM_BINS - 1)


def _trace_of(step: _Step) -> StepTrace:
    start, waited_first, waited_last, end, number, data = step
    stamps = np.frombuffer(data, np.int64).tolist()
    return StepTrace(number, (start, start + waited_first, *stamps, stamps[-1] + waited_last, end))


@dataclass(frozen=True)
class Timed:
    """What a worker has booked, the steps that it has traced, and the most memory that its plans use."""

    records: Sequence[TimingRecord] = ()
    traces: Sequence[WorkerTraces] = ()
    peak_bytes: int = 0


def timed_by(recorders: Iterable[Recorder], worker: int, peak_bytes: int) -> Timed:
    """What the recorders of all plans of one worker have."""
    every = list(recorders)
    records = merge_calls(record for recorder in every for record in recorder.records(worker))
    traces = [WorkerTraces(recorder.labels, recorder.traces, worker) for recorder in every]
    return Timed(records, traces, peak_bytes)


def _grouping(nodes: Sequence[Node], work: Sequence[Work]) -> tuple[Times, Times]:
    """The order in which the kernels of each node stand together, and where each node's begin."""
    places = {node: place for place, node in enumerate(nodes)}
    owners = np.array([places[item.node] for item in work])
    order = np.argsort(owners, kind="stable")
    return order, np.searchsorted(owners[order], np.arange(len(nodes)))
