"""Measuring on emulated hosts: pipelines against their ideal, and data parallelism against one host.

All sides run on the same hosts, in turns.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Generic, TypeVar

from miai_graph.bench.hosts_results import HostsResult, HostsResults, Pipeline, PipelineResult, Scaling, ScalingResult
from miai_graph.bench.hosts_sides import Side, Trainer
from miai_graph.bench.measure import LEAST_STEPS, MOST_STEPS, Tell
from miai_graph.bench.workloads import STACKED_MLP, workload
from miai_graph.errors import ExecutionError

PIPELINES = (Pipeline(256, 8, "1f1b"), Pipeline(512, 8, "1f1b"), Pipeline(256, 4, "gpipe"))
"""What is measured as pipelines."""

SCALED = {STACKED_MLP.name: 512, "wide_mlp": 256, "lenet": 256, "deep_cnn": 256}
"""What is measured data parallel: workloads with their batch sizes."""

HOSTS = 2
WARM_UP_STEPS = 3
COMPUTE_SHARE = 0.5
"""Of the time for a pipeline's steps: for how long its stages' computing is then measured."""

Result = TypeVar("Result", bound=HostsResult)
Started = TypeVar("Started")


def measurements(names: Sequence[str], batches: Sequence[int] | None) -> list[Pipeline | Scaling]:
    """What is measured of some workloads, at these batch sizes or the usual ones."""
    found: list[Pipeline | Scaling] = []
    if STACKED_MLP.name in names:
        resized = [replace(usual, batch=batch) for batch in batches or () for usual in PIPELINES]
        found += dict.fromkeys(resized or PIPELINES)
    for name in names:
        found += [Scaling(name, batch) for batch in batches or (SCALED.get(name, workload(name).batches[-1]),)]
    return found


def measure_hosts(
    measured: Sequence[Pipeline | Scaling], sides: Sequence[Side], results: HostsResults, begin: Callable[[str], Tell]
) -> None:
    """Add to the results what is measured of all sides.

    Parameters
    ----------
    results : their settings say how often each side has its turn, and for how long
    begin : called with the title of each measurement; gives what tells of its parts
    """
    rounds, seconds = results.settings["rounds"], results.settings["seconds"]
    for item in measured:
        tell = begin(item.title)
        if isinstance(item, Pipeline):
            results.pipelines.append(measure_pipeline(item, sides, rounds, seconds, tell))
        else:
            results.scalings.append(measure_scaling(item, sides, rounds, seconds, tell))


def measure_pipeline(
    pipeline: Pipeline, sides: Sequence[Side], rounds: int, seconds: float, tell: Tell
) -> list[PipelineResult]:
    """Train in a pipeline on all sides, in turns.

    Parameters
    ----------
    rounds, seconds : how often each side has its turn, and for how long it trains then
    tell : called with what is being done
    """
    results = [PipelineResult(side=side.name, pipeline=pipeline) for side in sides]

    def measure(result: PipelineResult, pace: _Pace) -> None:
        median = pace.median_step(seconds)
        result.stage_medians.append(pace.median_compute(seconds * COMPUTE_SHARE))
        result.medians.append(median)

    with _problem(STACKED_MLP.name, pipeline.batch) as problem, ExitStack() as stack:
        turns: _Turns[PipelineResult, _Pace] = _Turns(results, tell)
        turns.begin(lambda place: _Pace(stack.enter_context(sides[place].pipeline(pipeline, problem)), results[place]))
        turns.rounds(rounds, measure)
    return results


def measure_scaling(
    scaling: Scaling, sides: Sequence[Side], rounds: int, seconds: float, tell: Tell
) -> list[ScalingResult]:
    """Train on one host, and on two that share each batch, on all sides in turns. For parameters see above."""
    results = [ScalingResult(side=side.name, scaling=scaling) for side in sides]

    def measure(result: ScalingResult, paces: tuple[_Pace, _Pace]) -> None:
        alone, together = (pace.median_step(seconds / 2) for pace in paces)
        result.alone.append(alone)
        result.together.append(together)

    with _problem(scaling.workload, scaling.batch) as problem, ExitStack() as stack:

        def start(place: int) -> tuple[_Pace, _Pace]:
            alone, together = (
                _Pace(stack.enter_context(sides[place].replicas(scaling.workload, count, problem)), results[place])
                for count in (1, HOSTS)
            )
            return alone, together

        turns: _Turns[ScalingResult, tuple[_Pace, _Pace]] = _Turns(results, tell)
        turns.begin(start)
        turns.rounds(rounds, measure)
    return results


class _Pace:
    """A trainer, of which is known how long its steps take, so that it can train for some time."""

    def __init__(self, trainer: Trainer, result: HostsResult) -> None:
        self._trainer = trainer
        self._step_seconds = statistics.fmean(trainer.steps(WARM_UP_STEPS))
        result.versions |= trainer.versions
        result.losses = list(trainer.losses)

    def median_step(self, seconds: float) -> float:
        found = self._trainer.steps(self._count(seconds))
        # The mean, for on a busy machine a few steps may take most of the time.
        self._step_seconds = statistics.fmean(found)
        return statistics.median(found)

    def median_compute(self, seconds: float) -> list[float]:
        """Of each stage."""
        return [statistics.median(found) for found in self._trainer.compute(self._count(seconds))]

    def _count(self, seconds: float) -> int:
        return min(max(round(seconds / self._step_seconds), LEAST_STEPS), MOST_STEPS)


class _Turns(Generic[Result, Started]):
    """Lets sides have turns. A side with a problem has no more turns, and no figures."""

    def __init__(self, results: Sequence[Result], tell: Tell) -> None:
        self._results = results
        self._tell = tell
        self._started: dict[int, Started] = {}

    def begin(self, start: Callable[[int], Started]) -> None:
        """Start each side, given its place."""
        for place, result in enumerate(self._results):
            self._tell(f"{result.side}: first steps")
            try:
                self._started[place] = start(place)
            except ExecutionError as error:
                result.fail(str(error))
            result.compare(self._results[0])

    def rounds(self, count: int, measure: Callable[[Result, Started], None]) -> None:
        """Have each side measured so many times, to and fro, so that none always comes after the same other."""
        for number in range(count):
            for place in sorted(self._started, reverse=number % 2 == 1):
                result = self._results[place]
                self._tell(f"{result.side}: round {number + 1} of {count}")
                try:
                    measure(result, self._started[place])
                except ExecutionError as error:
                    result.fail(str(error))
                    del self._started[place]


@contextmanager
def _problem(name: str, batch: int) -> Iterator[Path]:
    """A file with what all sides start from, in a folder for this only."""
    with tempfile.TemporaryDirectory(prefix="miai_bench_") as folder:
        path = Path(folder, "problem.npz")
        workload(name).problem(batch).save(path)
        yield path
