"""Adds up the stamps of the node loop: in memory of constant size, for every step."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from miai_graph.context import WAIT
from miai_graph.graph import Graph
from miai_graph.node import Node
from miai_graph.op import Cost
from miai_graph.timing.records import HISTOGRAM_BINS, OVERHEAD, TimingRecord, merge_calls
from miai_graph.timing.totals import Step, Times, totals_for
from miai_graph.timing.traces import Label, StepTrace, WorkerTraces

NO_COST = Cost(0, 0)


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
        numbers = {node: number for number, node in enumerate(dict.fromkeys(item.node for item in work))}
        self._owners = [numbers[item.node] for item in work]
        self.reset()

    def reset(self) -> None:
        """Forget all calls."""
        self._totals = totals_for(self._owners)
        self._kept: dict[int, Step] = {}

    @property
    def calls(self) -> int:
        """How many steps were added."""
        return self._totals.steps

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
        totals = self._totals
        if stamps is not totals.stamps:
            totals.read_from(stamps)
        known = totals.known
        known[0], known[1], known[2], known[3], known[4] = start_ns, waited_first_ns, waited_last_ns, end_ns, number
        totals.book()
        if is_traced:
            self._kept[number] = totals.latest

    @property
    def traces(self) -> list[StepTrace]:
        """The steps that were kept, and the last one."""
        steps = dict(self._kept)
        if self.calls:
            latest = self._totals.latest
            steps[latest.number] = latest
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
        totals, host = self._totals, socket.gethostname()
        totals.settle()
        histograms = totals.histogram.tolist()
        return [
            TimingRecord(
                node=part.name,
                op=part.op,
                layer=part.layer,
                phase=part.phase,
                worker=worker,
                host=host,
                calls=self.calls,
                seconds=int(totals.total_ns[place]) * part.share / 1e9,
                min_seconds=int(totals.min_ns[place]) * part.share / 1e9,
                max_seconds=int(totals.max_ns[place]) * part.share / 1e9,
                flops=part.cost.flops * self.calls,
                bytes=part.cost.bytes * self.calls,
                memory_bytes=part.memory_bytes,
                histogram=_shifted(histograms[place], part.share),
                kernel=part.kernel,
            )
            for place, parts in enumerate(self._described())
            for part in parts
            if part.phase != WAIT or part.op != WAIT or totals.total_ns[place]
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


def _trace_of(step: Step) -> StepTrace:
    stamps = np.frombuffer(step.stamps, np.int64).tolist()
    before, after = step.start + step.waited_first, stamps[-1] + step.waited_last
    return StepTrace(step.number, (step.start, before, *stamps, after, step.end))


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
