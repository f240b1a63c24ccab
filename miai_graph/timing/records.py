"""What was timed: one record for each node and worker, and slices of single steps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

OVERHEAD = "overhead"
"""The phase of what a step does beside its nodes: copying inputs, committing updates, handing out results."""

IDLE = "idle"
"""The phase of a worker to whom nobody had given anything to do."""

DATA, CALLBACKS, VALIDATION, LOOP = "data", "callbacks", "validation", "loop"
"""The phases of what training does between steps: drawing batches, callbacks, validation, and its own loop."""

HISTOGRAM_BINS = 48
"""Bin ``b`` of a histogram counts the calls that took from 2**b to 2**(b + 1) nanoseconds; bin 0 also shorter ones."""


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
    memory_bytes : of its value, where it has memory of its own
    histogram : of the time of its calls, see `HISTOGRAM_BINS`; empty where it is not kept
    kernel : where one kernel computes several nodes, the name of the one that stands for them in traces; their seconds
        are shares of the kernel's, by flops. Empty for a node that is computed alone
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
    memory_bytes: int = 0
    histogram: tuple[int, ...] = ()
    kernel: str = ""


@dataclass(frozen=True, slots=True)
class Slice:
    """What a worker did for a while, in one step.

    node, phase : as in `TimingRecord`; of a kernel that computes several nodes, the one that stands for them
    worker, stage : which; the stage of a pipeline, None where there is none
    micro_batch : its number; None for what is done once
    start_seconds : since the first step that was traced began, by the clock of the process that asks
    seconds : how long it took
    uncertainty_seconds : how far `start_seconds` may be off, because clocks of hosts are compared by messages
    step : its number, from 0
    link : the same text for a `send` and for the `receive` that takes what it sent; None for all others
    nodes : all that a kernel computed, where it computes several
    """

    node: str
    phase: str
    worker: int
    stage: int | None
    micro_batch: int | None
    start_seconds: float
    seconds: float
    uncertainty_seconds: float
    step: int = 0
    link: str | None = None
    nodes: tuple[str, ...] = ()

    @property
    def computed(self) -> tuple[str, ...]:
        """The names of all nodes that were computed."""
        return self.nodes or (self.node,)


@dataclass(frozen=True, slots=True)
class TimedWorker:
    """A worker of a timing.

    index, host, pid : its number from 0, the machine's name, the process
    stage, replica : of a pipeline on hosts; None elsewhere
    flops_per_second : the most that its matrix products reach; None: not measured
    bytes_per_second : the most that its memory gives; None: not measured
    clock_uncertainty_seconds : how far its clock may be off, compared with that of the process that asks
    """

    index: int
    host: str
    pid: int | None = None
    stage: int | None = None
    replica: int | None = None
    flops_per_second: float | None = None
    bytes_per_second: float | None = None
    clock_uncertainty_seconds: float = 0.0


def merge_group(records: Sequence[TimingRecord]) -> TimingRecord:
    """Records of several nodes, or of several parts of one, as one."""
    if len(records) == 1:
        return records[0]
    return replace(
        records[0],
        calls=max(record.calls for record in records),
        seconds=sum(record.seconds for record in records),
        min_seconds=sum(record.min_seconds for record in records),
        max_seconds=sum(record.max_seconds for record in records),
        flops=sum(record.flops for record in records),
        bytes=sum(record.bytes for record in records),
        memory_bytes=sum(record.memory_bytes for record in records),
        histogram=merge_histograms(records),
    )


def merge_histograms(records: Iterable[TimingRecord]) -> tuple[int, ...]:
    """Counts of calls by time of all records together; empty if none has any."""
    kept = [record.histogram for record in records if record.histogram]
    return tuple(map(sum, zip(*kept, strict=True)))


def merge_calls(records: Iterable[TimingRecord]) -> list[TimingRecord]:
    """Records of the same node and worker, from plans for several batch sizes, as one each."""
    groups: dict[tuple[str, str, int], list[TimingRecord]] = defaultdict(list)
    for record in records:
        # The phase tells a node named "feed" from the overhead of that name.
        groups[record.node, record.phase, record.worker].append(record)
    return [_merged_calls(members) for members in groups.values()]


def _merged_calls(records: Sequence[TimingRecord]) -> TimingRecord:
    if len(records) == 1:
        return records[0]
    return replace(
        merge_group(records),
        calls=sum(record.calls for record in records),
        min_seconds=min(record.min_seconds for record in records),
        max_seconds=max(record.max_seconds for record in records),
        # Plans for several batch sizes take turns in the same memory.
        memory_bytes=max(record.memory_bytes for record in records),
    )
