"""What hosts have timed, put together by the clock of the process that asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from executors.hosts.cluster import Message
from executors.hosts.conversation import HostsLost
from executors.hosts.crew import Crew
from executors.hosts.layout import HostOfStage, Layout
from executors.hosts.session import Session
from miai_graph.timing import TimedWorker, TimingRecord, merge_calls
from miai_graph.timing.traces import Label, StepTrace, WorkerTraces

Answers = Sequence[tuple[HostOfStage, Message]]
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


def records_of(answers: Answers, number: Number) -> list[TimingRecord]:
    """The records of all hosts."""
    return merge_calls(
        replace(
            TimingRecord(**record), worker=number(host.address), stage=host.stage, histogram=tuple(record["histogram"])
        )
        for host, answer in answers
        for record in answer.content["records"]
    )


def traces_of(answers: Answers, crew: Crew) -> list[WorkerTraces]:
    """The steps that hosts have traced."""
    result: list[WorkerTraces] = []
    for host, answer in answers:
        clock = crew.clock(host.address)
        where = crew.number(host.address), host.stage, host.replica, clock.nanoseconds, clock.uncertainty
        result += [
            WorkerTraces([Label(*label) for label in labels], [StepTrace(*step) for step in steps], *where)
            for labels, steps in answer.content["traces"]
        ]
    return result


def workers_of(crew: Crew, places: Iterable[HostOfStage]) -> list[TimedWorker]:
    """The hosts as workers of a timing; those that have no stage now have none there."""
    stages = {place.address: place for place in places}
    return [
        TimedWorker(
            index,
            host.name,
            host.pid,
            stages[host.address].stage if host.address in stages else None,
            stages[host.address].replica if host.address in stages else None,
            host.flops_per_second,
            host.bytes_per_second,
            crew.clock(host.address).uncertainty / 1e9,
        )
        for index, host in enumerate(crew.hosts)
    ]
