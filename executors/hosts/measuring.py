"""What hosts were timed at.

They send the stamps of each step with its results, and all is added up here: it is of finished steps alone, and stays
when a host is lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import numpy as np

from executors.hosts.cluster import Message
from executors.hosts.crew import Crew, Host
from executors.hosts.layout import HostOfStage
from executors.hosts.watch import ClockOffset
from miai_graph.graph import Graph
from miai_graph.op import Cost
from miai_graph.timing import TimedWorker, Timing, TimingRecord, merge_calls
from miai_graph.timing.booking import with_idle
from miai_graph.timing.recorder import Member, Recorder, Work
from miai_graph.timing.totals import Times
from miai_graph.timing.traces import StepTrace, TraceChoice, WorkerTraces, make_slices


@dataclass(frozen=True, eq=False)
class TimedHost:
    """What a host was timed at in steps on batches of one size.

    place : of the host
    recorder : adds up its steps
    peak_bytes : the memory that it uses for computed values and scratch
    clocks : by number of step, how far the host's clock was thought to be off then
    stamps : of the last step, always in the same array, which the recorder need find but once
    """

    place: HostOfStage
    recorder: Recorder
    peak_bytes: int
    clocks: dict[int, ClockOffset] = field(default_factory=dict)

    @cached_property
    def stamps(self) -> Times:
        return np.zeros(len(self.recorder.work) + 1, np.int64)

    @classmethod
    def described(cls, place: HostOfStage, graph: Graph, answer: Message) -> Self:
        """A host that has a plan now, by what it answered (see `stage.HostPlan.description`), for a stage's graph."""
        nodes = graph.nodes

        def member(number: int, flops: int, traffic: int, memory_bytes: int) -> Member:
            return Member(nodes[number], Cost(flops, traffic), memory_bytes)

        work = []
        for plain, micro_batch, link, members in answer.content["work"]:
            own, every = member(*plain), [member(*part) for part in members]
            work.append(Work(own.node, own.cost, own.memory_bytes, micro_batch, link, every))
        return cls(place, Recorder(graph, work), answer.content["peak_bytes"])

    def reset(self) -> None:
        """Forget all steps."""
        self.recorder.reset()
        self.clocks.clear()

    def records(self, worker: int = 0) -> list[TimingRecord]:
        """Under the number of a worker."""
        return [replace(record, stage=self.place.stage) for record in self.recorder.records(worker)]

    def traces(self, worker: int, crew: Crew) -> Iterator[WorkerTraces]:
        """Of each traced step, by the clock as it is known best for that time."""
        labels = self.recorder.labels
        for step in self.recorder.traces:
            clock = self._clock_at(step, crew)
            where = worker, self.place.stage, self.place.replica
            yield WorkerTraces(labels, [step], *where, clock.nanoseconds, clock.uncertainty)

    def _clock_at(self, step: StepTrace, crew: Crew) -> ClockOffset:
        now = crew.clock(self.place.address)
        known = [clock for clock in (self.clocks.get(step.number), now) if clock is not None]
        aged = (clock.aged(step.times[-1] - clock.nanoseconds) for clock in known)
        return min(aged, key=lambda clock: clock.uncertainty, default=ClockOffset(0, 0))


class HostsTiming:
    """What the hosts of one graph were timed at.

    Hosts are numbered in the order in which they came to be known since the beginning, lost ones too.

    Attributes
    ----------
    steps, seconds : that were finished, and how long they took
    start_up_seconds : spent on plans
    """

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._timed: list[TimedHost] = []
        self.reset(0)

    def reset(self, first: int, trace_steps: Collection[int] = ()) -> None:
        """Begin to count anew, with a step of this number as the first one."""
        self._choice = TraceChoice(first, trace_steps)
        self._last = -1
        self._calls: Counter[int] = Counter()
        self._last_of_size: dict[int, int] = {}
        self.steps, self.seconds, self.start_up_seconds = 0, 0.0, 0.0
        for timed in self._timed:
            timed.reset()
        self._hosts: dict[str, Host] = {}
        self._note_hosts()

    def _note_hosts(self) -> None:
        self._hosts.update((host.address, host) for host in self._crew.hosts)

    @property
    def host_count(self) -> int:
        """Of all hosts that were known since the beginning."""
        self._note_hosts()
        return len(self._hosts)

    def shift_numbers(self, shift: int) -> None:
        """Steps are given numbers now that are so much higher than they would have been."""
        self._choice.first += shift

    def add(self, timed: Iterable[TimedHost]) -> None:
        """Hosts have a new plan."""
        self._note_hosts()
        self._timed += timed

    def tidy(self) -> None:
        """There are no plans any more: what was timed in no step is of no use."""
        self._timed = [timed for timed in self._timed if timed.recorder.calls]

    def book(
        self, hosts: Sequence[TimedHost], answers: Sequence[Message], step: int, batch_size: int, slices: int
    ) -> None:
        """A step is finished, of which all hosts together have so many slices.

        Parameters
        ----------
        hosts, answers : that took part, and what they answered (see `stage.HostPlan.run`)
        step : the number that it has for executables
        """
        number = step - self._choice.first
        is_traced = self._choice.takes(number, slices)
        for timed, answer in zip(hosts, answers, strict=True):
            start_ns, waited_ns, end_ns = answer.content["clock"]
            timed.stamps[:] = answer.arrays[-1]
            timed.recorder.add(start_ns, timed.stamps, end_ns, waited_ns, 0, number, is_traced)
            if is_traced and (clock := self._crew.clock(timed.place.address)) is not None:
                timed.clocks[number] = clock
        self._last = self._last_of_size[batch_size] = number
        self._calls[batch_size] += 1
        self.steps += 1

    @property
    def _typical_step(self) -> int | None:
        """The last one on a batch of the commonest size; of the larger size, if there are two."""
        if not self._calls:
            return None
        return self._last_of_size[max(self._calls, key=lambda size: (self._calls[size], size))]

    @property
    def workers(self) -> list[TimedWorker]:
        """The hosts as workers of a timing, each in the stage that it had last."""
        self._note_hosts()
        places = {timed.place.address: timed.place for timed in self._timed}
        return [_as_worker(index, host, places.get(host.address), self._crew) for index, host in self._numbered()]

    def _numbered(self) -> Iterator[tuple[int, Host]]:
        return enumerate(self._hosts.values())

    def timing(self, notes: Iterable[str], graph: Graph) -> Timing:
        """All of it, of a graph."""
        workers = self.workers
        numbers = {host.address: index for index, host in self._numbered()}
        found = [(timed, numbers[timed.place.address]) for timed in self._timed if timed.recorder.calls]
        records = merge_calls(record for timed, number in found for record in timed.records(number))
        typical = self._typical_step
        shown = self._choice.shown(self._last + 1) | ({typical} if typical is not None else set())
        traces = (trace for timed, number in found for trace in timed.traces(number, self._crew))
        return Timing(
            with_idle(records, workers, self.seconds, self.steps),
            self.steps,
            self.start_up_seconds,
            max((timed.peak_bytes for timed, _ in found), default=0),
            [*notes, *self._choice.notes],
            make_slices(traces, shown),
            wall_seconds=self.seconds,
            workers=workers,
            graph=graph,
            typical_step=typical,
        )


def _as_worker(index: int, host: Host, place: HostOfStage | None, crew: Crew) -> TimedWorker:
    clock = crew.clock(host.address)
    return TimedWorker(
        index,
        host.name,
        host.pid,
        None if place is None else place.stage,
        None if place is None else place.replica,
        host.flops_per_second,
        host.bytes_per_second,
        0.0 if clock is None else clock.aged().uncertainty / 1e9,
    )
