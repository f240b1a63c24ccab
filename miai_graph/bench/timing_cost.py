"""What the recording of times costs: training steps with it and without, side by side."""

from __future__ import annotations

import functools
import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter_ns
from typing import Any

import numpy as np

from miai_graph.bench.workloads import workload
from miai_graph.executor import Executable, executor
from miai_graph.feeding import Batch, Rows, Table
from miai_graph.kernels.running.run import Run, joined
from miai_graph.model.sources import ROWS_DRAWN_AT_ONCE
from miai_graph.plan.binding import Binding
from miai_graph.plan.bound import BoundPlan
from miai_graph.timing.booking import Tally, TrainingClock
from miai_graph.timing.recorder import Recorder

TURN_SECONDS = 60e-3
"""Long enough for the collected times of short steps to be added up in each turn."""

LEAST_TURNS = 5


@dataclass(frozen=True)
class TimingCost:
    """Seconds of a step with and without recording, and by which share of the latter it is longer with it.

    The share is the median of those of turns that follow one another, for a machine may be faster now and slower then.
    """

    workload: str
    batch: int
    recorded_seconds: float
    plain_seconds: float
    share: float

    @property
    def data(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


class _PlainPlan(BoundPlan):
    """The loop over nodes without a clock."""

    def _run(self, step: int, binding: Binding) -> None:
        self._step[...] = step
        with self._flushed_denormals:
            for run in _without_clock(binding):
                run.kernel()
        for target, source in binding.copies:
            np.copyto(target, source)


@functools.cache
def _without_clock(binding: Binding) -> Sequence[Run]:
    return joined(binding.kernels, None)


class _NoRecorder(Recorder):
    """Forgets everything at once."""

    def add(self, *_: Any) -> None:
        """Not even count."""


def measure_timing_cost(name: str, batch: int, seconds: float) -> TimingCost:
    """Train a workload on the serial executor with one thread, in short turns with and without recording.

    Parameters
    ----------
    seconds : how long to measure
    """
    problem = workload(name).problem(batch)
    model = workload(name).model()
    with executor("serial", threads=1) as serial:
        model.fit(problem.x, problem.y, batch, steps_per_epoch=1, verbose=0, executor=serial)
        source = model._source(problem.x, problem.y, None, batch)
        step = model._step_cache.train(model.compiled_arguments, source.targets, source.weights, serial)
        table = Table([problem.x, problem.y])
        batches = itertools.cycle([Rows(table, rows) for rows in problem.rows])
        return _measure(name, batch, step.executable, batches, seconds)


def _measure(name: str, batch: int, executable: Any, batches: Iterator[Batch], seconds: float) -> TimingCost:
    (plan,) = executable._plans.values()
    recorder = plan.recorder
    _run(executable, itertools.islice(batches, 3), is_recorded=True)
    steps = max(1, round(TURN_SECONDS / _run(executable, itertools.islice(batches, 3), is_recorded=True)))
    found: dict[bool, list[float]] = {True: [], False: []}
    end = perf_counter_ns() + round(seconds * 1e9)
    while perf_counter_ns() < end or len(found[True]) < LEAST_TURNS:
        for is_recorded in (True, False):
            plan.__class__ = BoundPlan if is_recorded else _PlainPlan
            recorder.__class__ = Recorder if is_recorded else _NoRecorder
            found[is_recorded].append(_run(executable, itertools.islice(batches, steps), is_recorded=is_recorded))
    plan.__class__, recorder.__class__ = BoundPlan, Recorder
    ratios = [recorded / plain for recorded, plain in zip(found[True], found[False], strict=True)]
    recorded_seconds, plain_seconds = (statistics.median(found[is_recorded]) for is_recorded in (True, False))
    return TimingCost(name, batch, recorded_seconds, plain_seconds, statistics.median(ratios) - 1)


def _run(executable: Executable, batches: Iterator[Batch], *, is_recorded: bool) -> float:
    """Seconds of a step, as `fit` runs them, or without its clock."""
    start, steps = perf_counter_ns(), 0
    drawn = TrainingClock(start, Tally()).drawing(batches, ROWS_DRAWN_AT_ONCE) if is_recorded else batches
    for _ in executable.run(drawn):
        steps += 1
    return (perf_counter_ns() - start) / 1e9 / steps


def format_costs(costs: Sequence[TimingCost]) -> str:
    """A table, a workload a line."""
    lines = [f"{'workload':<12}{'batch':>6}{'recorded µs':>14}{'plain µs':>12}{'cost':>8}"]
    lines += [
        f"{cost.workload:<12}{cost.batch:>6}{cost.recorded_seconds * 1e6:>14.1f}{cost.plain_seconds * 1e6:>12.1f}"
        f"{cost.share:>8.1%}"
        for cost in costs
    ]
    return "\n".join(lines)
