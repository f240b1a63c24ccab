"""Measuring on emulated hosts: pipelines against their ideal, and data parallelism against one host.

All sides run on the same hosts, in turns.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from miai_graph.bench.hosts_processes import Group
from miai_graph.bench.hosts_results import HostsResult, Pipeline, PipelineResult, ScalingResult
from miai_graph.bench.hosts_workloads import STACKED_MLP, hosts_workload
from miai_graph.bench.measure import LEAST_STEPS, MOST_STEPS, Tell
from miai_graph.bench.networks import EmulatedNetwork
from miai_graph.errors import ExecutionError

PIPELINES = (Pipeline(256, 8, "1f1b"), Pipeline(512, 8, "1f1b"), Pipeline(256, 4, "gpipe"))
SCALED = (("stacked_mlp", 512), ("wide_mlp", 256), ("lenet", 256))
"""What is measured data parallel: workloads with their batch sizes."""

HOSTS = 2
WARM_UP_STEPS = 3
COMPUTE_SHARE = 0.5
"""Of the time for a pipeline's steps: how long its stages are then measured by themselves."""


class Trainer(Protocol):
    """What trains on hosts, started and past its first step."""

    def steps(self, count: int) -> Sequence[float]:
        """Train for some steps; the seconds of each."""
        ...

    def compute(self, count: int) -> Sequence[Sequence[float]]:
        """What each stage of a pipeline computes in a step, some times over; the seconds of each."""
        ...


class TorchTrainer(Trainer):
    """PyTorch in several processes."""

    def __init__(self, group: Group) -> None:
        self._group = group
        group.answers()
        group.order("fresh")

    def steps(self, count: int) -> Sequence[float]:
        seconds: Sequence[float] = self._group.order("steps", count=count)[0]["seconds"]
        return seconds

    def compute(self, count: int) -> Sequence[Sequence[float]]:
        return [answer["seconds"] for answer in self._group.order("compute", count=count)]


class TorchSide:
    """What one would use instead: pipelines of ``torch.distributed``, and DDP, both over gloo, one thread a process.

    Parameters
    ----------
    network : whose first hosts are used
    python : which has PyTorch
    """

    name = "torch"

    def __init__(self, network: EmulatedNetwork, python: str) -> None:
        self._network, self._python = network, python

    @contextmanager
    def pipeline(self, pipeline: Pipeline, problem: Path) -> Iterator[Trainer]:
        """A pipeline that trains on a problem."""
        arguments = ["--problem", str(problem), "--stages", str(pipeline.stages), "--schedule", pipeline.schedule]
        arguments += ["--micro-batches", str(pipeline.micro_batches)]
        with self._group(pipeline.stages, "torch_pipeline", arguments, problem.parent) as group:
            yield TorchTrainer(group)

    @contextmanager
    def replicas(self, workload: str, count: int, problem: Path) -> Iterator[Trainer]:
        """So many replicas of a workload's model, which share each batch of a problem."""
        arguments = ["--workload", workload, "--problem", str(problem), "--processes", str(count)]
        with self._group(count, "hosts_torch_ddp", arguments, problem.parent) as group:
            yield TorchTrainer(group)

    def _group(self, hosts: int, module: str, arguments: Sequence[str], folder: Path) -> Group:
        return Group(self._network, hosts, self._python, f"miai_graph.bench.{module}", arguments, folder)


Side = TorchSide
Result = TypeVar("Result", bound=HostsResult)
Started = TypeVar("Started")


def measure_pipeline(
    pipeline: Pipeline, sides: Sequence[Side], rounds: int, seconds: float, tell: Tell
) -> list[PipelineResult]:
    """Train in a pipeline on all sides, in turns.

    Parameters
    ----------
    rounds, seconds : how often each side has its turn, and for how long it trains then
    tell : called with what is being done
    """
    results = [PipelineResult(side.name, pipeline) for side in sides]

    def measure(result: PipelineResult, pace: _Pace) -> None:
        median = pace.median_step(seconds)
        result.stage_medians.append(pace.median_compute(seconds * COMPUTE_SHARE))
        result.medians.append(median)

    with _problem(STACKED_MLP.name, pipeline.batch) as problem, ExitStack() as stack:
        turns: _Turns[PipelineResult, _Pace] = _Turns(results, tell)
        turns.begin(lambda place: _Pace(stack.enter_context(sides[place].pipeline(pipeline, problem))))
        turns.rounds(rounds, measure)
    return results


def measure_scaling(
    workload: str, batch: int, sides: Sequence[Side], rounds: int, seconds: float, tell: Tell
) -> list[ScalingResult]:
    """Train on one host, and on two that share each batch, on all sides in turns. For parameters see above."""
    results = [ScalingResult(side.name, workload, batch) for side in sides]

    def measure(result: ScalingResult, paces: tuple[_Pace, _Pace]) -> None:
        alone, together = (pace.median_step(seconds / 2) for pace in paces)
        result.alone.append(alone)
        result.together.append(together)

    with _problem(workload, batch) as problem, ExitStack() as stack:

        def start(place: int) -> tuple[_Pace, _Pace]:
            alone, together = (
                _Pace(stack.enter_context(sides[place].replicas(workload, count, problem))) for count in (1, HOSTS)
            )
            return alone, together

        turns: _Turns[ScalingResult, tuple[_Pace, _Pace]] = _Turns(results, tell)
        turns.begin(start)
        turns.rounds(rounds, measure)
    return results


class _Pace:
    """A trainer, of which is known how long its steps take, so that it can train for some time."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._step_seconds = statistics.fmean(trainer.steps(WARM_UP_STEPS))

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
def _problem(workload: str, batch: int) -> Iterator[Path]:
    """A file with what all sides start from, in a folder for this only."""
    with tempfile.TemporaryDirectory(prefix="miai_bench_") as folder:
        path = Path(folder, "problem.npz")
        hosts_workload(workload).problem(batch).save(path)
        yield path
