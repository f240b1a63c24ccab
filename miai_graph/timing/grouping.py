"""Records added up: from nodes to layers, ops and phases, and to workers, stages and hosts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from miai_graph.context import COMMUNICATION, FORWARD, WAIT
from miai_graph.errors import ArgumentError
from miai_graph.timing.records import (
    CALLBACKS,
    DATA,
    IDLE,
    LOOP,
    OVERHEAD,
    VALIDATION,
    TimingRecord,
    merge_group,
)

if TYPE_CHECKING:
    from miai_graph.timing.timing import Timing

GroupBy = Literal["layer", "op", "node", "phase", "worker", "host", "stage"]
SortBy = Literal["seconds", "order", "name", "calls"]

_T = TypeVar("_T")

BESIDE_NODES = frozenset({OVERHEAD, WAIT, IDLE, DATA, CALLBACKS, VALIDATION, LOOP})
"""The phases of time that belongs to no layer."""

NOT_COMPUTING = BESIDE_NODES | {COMMUNICATION}
"""The phases in which nothing of the user's graph is computed."""

SEVERAL = -1
"""The worker of a record in which those of several workers are added up."""


def _layer(record: TimingRecord) -> str:
    if record.phase in BESIDE_NODES or (record.phase == COMMUNICATION and not record.layer):
        return f"({record.phase})"
    return record.layer or "(no layer)"


def _op(record: TimingRecord) -> str:
    return f"({record.op})" if record.phase in BESIDE_NODES else record.op


def _stage(record: TimingRecord) -> str:
    return "(no stage)" if record.stage is None else str(record.stage)


_NAMES: Mapping[GroupBy, Callable[[TimingRecord], str]] = {
    "layer": _layer,
    "op": _op,
    "node": lambda record: record.node,
    "phase": lambda record: record.phase,
    "worker": lambda record: str(record.worker),
    "host": lambda record: record.host,
    "stage": _stage,
}


def records_of_workers(timing: Timing) -> list[TimingRecord]:
    """All records but those of a calling process that is no worker."""
    asking = calling_processes(timing)
    return [record for record in timing.records if record.worker not in asking]


def records_by_kernel(records: Iterable[TimingRecord]) -> dict[tuple[str, str, int], list[TimingRecord]]:
    """What is computed together, by the node that stands for it, phase and worker; mostly a single node."""
    computed: dict[tuple[str, str, int], list[TimingRecord]] = defaultdict(list)
    for record in records:
        computed[record.kernel or record.node, record.phase, record.worker].append(record)
    return computed


def calling_processes(timing: Timing) -> set[int]:
    """The number of the process that only gives stages their work, and waits for them; empty where there is none."""
    staged = {record.worker for record in timing.records if record.stage is not None}
    staged |= {worker.index for worker in timing.unmeasured_workers if worker.stage is not None}
    if not staged:
        return set()
    computing = {record.worker for record in timing.records if record.phase not in NOT_COMPUTING}
    return {record.worker for record in timing.records} - staged - computing


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raise ArgumentError unless the argument `name` is one of the choices."""
    if value not in (known := tuple(choices)):
        raise ArgumentError(f"expected {name} to be one of {', '.join(known)}; found {value!r}")


def split_into_groups(
    records: Iterable[TimingRecord], by: GroupBy = "layer"
) -> dict[tuple[str, Hashable], list[TimingRecord]]:
    """The records of each group, by its name and what else tells it from others.

    Raises
    ------
    ArgumentError
        if there is no such grouping.
    """
    check_choice("by", by, get_args(GroupBy))
    name_of = _NAMES[by]
    groups: dict[tuple[str, Hashable], list[TimingRecord]] = defaultdict(list)
    for record in records:
        # A node may be named as the overhead is.
        mark = record.phase in BESIDE_NODES if by == "node" else None
        groups[name_of(record), mark].append(record)
    return groups


def add_up(name: str, records: Sequence[TimingRecord]) -> TimingRecord:
    """The records as one of that name. What they do not have in common is "", None or `SEVERAL`."""
    merged = merge_group(records)
    return replace(
        merged,
        node=name,
        op=_common((record.op for record in records), ""),
        layer=_common((record.layer for record in records), ""),
        phase=_common((record.phase for record in records), ""),
        worker=_common((record.worker for record in records), SEVERAL),
        host=_common((record.host for record in records), ""),
        stage=_common((record.stage for record in records), None),
        memory_bytes=sum(record.memory_bytes for record in records),
        histogram=records[0].histogram if len(records) == 1 else (),
    )


def _common(values: Iterable[_T], otherwise: _T) -> _T:
    found = set(values)
    return found.pop() if len(found) == 1 else otherwise


def sorted_groups(timing: Timing, by: GroupBy = "layer", sort: SortBy = "seconds") -> list[list[TimingRecord]]:
    """The records of each group, the groups in order.

    Raises
    ------
    ArgumentError
        if there is no such grouping or order.
    """
    check_choice("sort", sort, get_args(SortBy))
    groups = [(name, members) for (name, _), members in split_into_groups(records_of_workers(timing), by).items()]
    if sort == "seconds":
        groups.sort(key=lambda group: -sum(record.seconds for record in group[1]))
    elif sort == "calls":
        groups.sort(key=lambda group: -max(record.calls for record in group[1]))
    elif sort == "name":
        groups.sort(key=lambda group: (len(group[0]) if group[0].isdecimal() else 0, group[0]))
    else:
        built = _positions(timing)
        groups.sort(key=lambda group: _place(group[1], built))
    return [members for _, members in groups]


def group_name(record: TimingRecord, by: GroupBy) -> str:
    """The name of the group that a record belongs to."""
    return _NAMES[by](record)


def _positions(timing: Timing) -> dict[int, int]:
    """Where each record's node stands in the graph, by the record's id; behind all others if it is not there."""
    names = timing.graph.names.values() if timing.graph is not None else ()
    built = {name: number for number, name in enumerate(names)}
    return {id(record): built.get(record.node, len(built) + number) for number, record in enumerate(timing.records)}


def _place(records: Iterable[TimingRecord], built: Mapping[int, int]) -> tuple[bool, bool, int]:
    """Forward passes before all else, and what is no node behind it.

    A layer stands where its output does: what it needs beside its inputs, such as random numbers, may come long before.
    """
    forward = [built[id(record)] for record in records if record.phase == FORWARD]
    beside = all(record.phase in BESIDE_NODES for record in records)
    return beside, not forward, max(forward) if forward else min(built[id(record)] for record in records)
