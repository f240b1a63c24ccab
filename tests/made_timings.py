"""Timings made by hand, of which the truth is known."""

from __future__ import annotations

from typing import Any

from miai_graph.context import BACKWARD, COMMUNICATION, FORWARD, UPDATE, WAIT
from miai_graph.timing import Slice, TimedWorker, Timing, TimingRecord
from miai_graph.timing.records import IDLE, OVERHEAD

STEPS = 10


def record(node: str, seconds: float, **fields: Any) -> TimingRecord:
    """A record of ten calls, of the forward phase of a matmul on worker 0 of host "near" if nothing else is said."""
    calls = fields.pop("calls", STEPS)
    known = {"op": "matmul", "layer": "", "phase": FORWARD, "worker": 0, "host": "near", "flops": 0, "bytes": 0}
    mean = seconds / calls
    return TimingRecord(node, calls=calls, seconds=seconds, min_seconds=mean, max_seconds=mean, **(known | fields))


def piece(node: str, phase: str, start: float, seconds: float, worker: int = 0, **fields: Any) -> Slice:
    """A slice of step 0, in no stage and of no micro-batch, if nothing else is said."""
    known = {"stage": None, "micro_batch": None, "uncertainty_seconds": 0.0}
    return Slice(node, phase, worker, start_seconds=start, seconds=seconds, **(known | fields))


def serial_timing() -> Timing:
    """One worker and 10 steps of 0.1 s, of which half is computing and half overhead."""
    records = [
        record("wide/matmul", 0.2, layer="wide", flops=4_000_000_000, bytes=400_000_000),
        record("wide/gradient", 0.175, layer="wide", phase=BACKWARD, op="transpose", bytes=1_000_000_000),
        record("narrow/matmul", 0.1, layer="narrow", flops=1_000_000_000, bytes=100_000_000, memory_bytes=2_500_000),
        record("sgd/subtract", 0.025, layer="sgd", phase=UPDATE, op="subtract", bytes=10_000_000),
        record("feed", 0.3, op="feed", phase=OVERHEAD),
        record("commit", 0.2, op="commit", phase=OVERHEAD),
    ]
    worker = TimedWorker(0, "near", flops_per_second=40e9, bytes_per_second=10e9)
    return Timing(records, STEPS, 0.05, 8_000_000, ["one note"], workers=[worker], wall_seconds=1.0)


def parallel_timing(computing: tuple[float, ...] = (0.6, 0.6), wall: float = 1.0, sending: float = 0.1) -> Timing:
    """A worker for each number of seconds of computing; what is left of the time they wait."""
    records = []
    for worker, seconds in enumerate(computing):
        where = {"worker": worker, "host": f"host-{worker}"}
        records += [
            record("dense/matmul", seconds, layer="dense", **where),
            record("dense/all_reduce", sending, layer="dense", op="all_reduce", phase=COMMUNICATION, **where),
            record("dense/barrier", wall - sending - seconds, layer="dense", op="barrier", phase=WAIT, **where),
        ]
    workers = [TimedWorker(worker, f"host-{worker}") for worker in range(len(computing))]
    return Timing(records, STEPS, workers=workers, wall_seconds=wall)


def pipeline_timing(micro_batches: int = 4, stages: int = 2, seconds: float = 1.0) -> Timing:
    """A step of equal stages, forward only, each micro-batch taking one second a stage; nothing else takes time."""
    slices = []
    length = (micro_batches + stages - 1) * seconds
    for stage in range(stages):
        place = {"worker": stage, "stage": stage, "step": 7}
        if stage:
            slices.append(piece("receive", WAIT, 0.0, stage * seconds, **place))
        slices += [
            piece(f"stage{stage}/matmul", FORWARD, (stage + number) * seconds, seconds, micro_batch=number, **place)
            for number in range(micro_batches)
        ]
        slices.append(piece("wait", WAIT, (stage + micro_batches) * seconds, (stages - 1 - stage) * seconds, **place))
    busy = micro_batches * seconds
    records = [
        item
        for stage in range(stages)
        for item in (
            record(f"stage{stage}/matmul", busy, worker=stage, stage=stage, calls=1, layer=f"stage{stage}"),
            record("wait", length - busy, op="wait", phase=WAIT, worker=stage, stage=stage, calls=1),
        )
    ]
    asking = [record("wait", length, op="wait", phase=WAIT, worker=stages, calls=1)]
    workers = [TimedWorker(stage, "near", stage=stage, replica=0) for stage in range(stages)]
    return Timing([*records, *asking], 1, slices=slices, workers=workers, wall_seconds=length)


def idle_record(seconds: float, worker: int) -> TimingRecord:
    """A worker to whom nobody gave anything to do."""
    return record("idle", seconds, op="idle", phase=IDLE, worker=worker)
