"""What hosts have timed, put together by the clock of the process that asks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from executors.hosts.cluster import Message
from executors.hosts.conversation import HostsLost
from executors.hosts.layout import HostOfStage, Layout
from executors.hosts.session import Session
from executors.hosts.watch import ClockOffset
from miai_graph.timing import Slice, TimingRecord, merge_calls

IDLE = "idle"

Answers = Sequence[tuple[HostOfStage, Message]]
Clock = Callable[[str], ClockOffset]
Number = Callable[[str], int]


def ask_timing(session: Session, layout: Layout, hosts: Sequence[HostOfStage]) -> Answers:
    """What hosts have timed of their stages; nothing if one of them is lost."""
    calls = {
        session.call(host.address, "timing", {"programs": [layout.programs[host.stage]]}): host.address
        for host in hosts
    }
    try:
        return list(zip(hosts, session.gather(calls), strict=True))
    except HostsLost:
        return []


def records_of(answers: Answers, number: Number, steps: int, steps_seconds: float) -> list[TimingRecord]:
    """The records of all hosts. What is left of the steps' time is a host's idle time: orders and results were under
    way."""
    by_worker: dict[int, list[TimingRecord]] = defaultdict(list)
    for host, answer in answers:
        worker = number(host.address)
        by_worker[worker] += [
            replace(TimingRecord(**record), worker=worker, stage=host.stage) for record in answer.content["records"]
        ]
    result: list[TimingRecord] = []
    for worker, records in by_worker.items():
        rest = steps_seconds - sum(record.seconds for record in records)
        if records and rest > 0:
            mean, last = rest / max(steps, 1), records[-1]
            idle = TimingRecord(IDLE, IDLE, "", IDLE, worker, last.host, steps, rest, mean, mean, 0, 0, last.stage)
            records.append(idle)
        result += merge_calls(records)
    return result


def slices_of(answers: Answers, number: Number, clock: Clock) -> list[Slice]:
    """The last step on all hosts."""
    traces = [
        (number(host.address), host, clock(host.address), answer.content["traces"][-1])
        for host, answer in {host.address: (host, answer) for host, answer in answers}.values()
        if answer.content["traces"]
    ]
    begun = min((trace["stamps"][0] - offset.nanoseconds for _, _, offset, trace in traces), default=0)
    result: list[Slice] = []
    for worker, host, offset, trace in traces:
        stamps = np.asarray(trace["stamps"], np.int64) - offset.nanoseconds - begun
        rows = zip(trace["nodes"], trace["phases"], trace["parts"], stamps[:-1], np.diff(stamps), strict=True)
        result += [
            Slice(node, phase, worker, host.stage, part, start / 1e9, length / 1e9, offset.uncertainty / 1e9)
            for node, phase, part, start, length in rows
        ]
    return result
