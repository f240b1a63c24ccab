"""What the benchmark on hosts found, as plain values. All times are in seconds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

LOSS_TOLERANCE = 1e-5
"""By how much the first losses may differ, as a share, for two sides to have done the same work: training changes even
those of `workloads.STACKED_MLP` ten times as much."""


@dataclass(frozen=True)
class Pipeline:
    """A way to train `workloads.STACKED_MLP` in equal stages, one a host."""

    batch: int
    micro_batches: int
    schedule: str
    stages: int = 2

    @property
    def title(self) -> str:
        return f"pipeline, batch {self.batch}, {self.micro_batches} × {self.schedule}"

    @property
    def stretch(self) -> float:
        """How many times as long as a stage's computing a step takes at least: stages wait for the first micro-batch,
        and for the last gradients."""
        return (self.micro_batches + self.stages - 1) / self.micro_batches


@dataclass(frozen=True)
class Scaling:
    """A workload at a batch size, which several hosts share."""

    workload: str
    batch: int

    @property
    def title(self) -> str:
        return f"{self.workload}, batch {self.batch}"


@dataclass(kw_only=True)
class HostsResult:
    """What is found of a side.

    Attributes
    ----------
    losses : of the first steps
    loss_difference : the largest to the first side, as a share of the loss
    versions : of the libraries that decide, by name
    problem : why there are no figures, if there are none
    """

    side: str
    losses: list[float] = field(default_factory=list)
    loss_difference: float | None = None
    versions: dict[str, str] = field(default_factory=dict)
    problem: str | None = None

    @property
    def is_comparable(self) -> bool:
        """Whether it was seen to do the same work as the first side."""
        return self.loss_difference is not None and self.loss_difference <= LOSS_TOLERANCE

    @property
    def _figures(self) -> Sequence[list[Any]]:
        """What was measured."""
        return ()

    def fail(self, problem: str) -> None:
        """Have no figures, for this reason."""
        self.problem = problem
        for figures in self._figures:
            figures.clear()

    def compare(self, first: HostsResult) -> None:
        """Hold the losses against those of the first side."""
        if self.losses and first.losses:
            pairs = zip(self.losses, first.losses, strict=True)
            self.loss_difference = max(abs(loss - other) / abs(other) for loss, other in pairs)


@dataclass(kw_only=True)
class PipelineResult(HostsResult):
    """One side in one pipeline.

    Attributes
    ----------
    medians : of the steps of each round
    stage_medians : in each round, for each stage the median of what it computes in a step, without sending and
        waiting, while the other stages compute too: they share the memory of the machine that emulates them
    """

    pipeline: Pipeline
    medians: list[float] = field(default_factory=list)
    stage_medians: list[list[float]] = field(default_factory=list)

    @property
    def _figures(self) -> Sequence[list[Any]]:
        return self.medians, self.stage_medians

    @property
    def median(self) -> float | None:
        """Of the rounds' medians."""
        return statistics.median(self.medians) if self.medians else None

    @property
    def stages(self) -> list[float]:
        """For each stage, the median of the rounds' medians."""
        return [statistics.median(found) for found in zip(*self.stage_medians, strict=True)]

    @property
    def over_ideal(self) -> float | None:
        """How many times as long as the ideal a step takes: the median over the rounds."""
        pairs = list(zip(self.medians, self.stage_medians, strict=True))
        stretches = [step / max(stages) / self.pipeline.stretch for step, stages in pairs]
        return statistics.median(stretches) if stretches else None

    def throughput_ratio(self, other: PipelineResult) -> float | None:
        """How many times as fast as another side this one is: the median over the rounds, each compared by itself."""
        if not self.medians or not other.medians or not (self.is_comparable and other.is_comparable):
            return None
        return statistics.median(theirs / own for own, theirs in zip(self.medians, other.medians, strict=True))


@dataclass(kw_only=True)
class ScalingResult(HostsResult):
    """One side that trains a workload on one host, and data parallel on several.

    Attributes
    ----------
    alone, together : medians of the steps of each round
    """

    scaling: Scaling
    alone: list[float] = field(default_factory=list)
    together: list[float] = field(default_factory=list)

    @property
    def _figures(self) -> Sequence[list[Any]]:
        return self.alone, self.together

    @property
    def medians(self) -> tuple[float, float] | None:
        """Of the rounds' medians, alone and together."""
        return (statistics.median(self.alone), statistics.median(self.together)) if self.alone else None

    @property
    def speed_up(self) -> float | None:
        """How many times as fast as one host several are: the median over the rounds."""
        pairs = list(zip(self.alone, self.together, strict=True))
        return statistics.median(alone / together for alone, together in pairs) if pairs else None


@dataclass
class HostsResults:
    """A whole run; for each pipeline, and each workload with its batch size, the results of all sides.

    Attributes
    ----------
    machine : facts by name
    settings : the link's speed, the rounds, and the seconds of measuring in each
    """

    machine: Mapping[str, str]
    settings: Mapping[str, Any]
    pipelines: list[Sequence[PipelineResult]] = field(default_factory=list)
    scalings: list[Sequence[ScalingResult]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """All of it in dictionaries and lists, with what is computed."""
        pipelines = [
            {
                **asdict(result),
                "median": result.median,
                "over_ideal": result.over_ideal,
                "throughput_of_first": results[0].throughput_ratio(result),
            }
            for results in self.pipelines
            for result in results
        ]
        scalings = [{**asdict(result), "speed_up": result.speed_up} for results in self.scalings for result in results]
        return {
            "machine": dict(self.machine),
            "settings": dict(self.settings),
            "pipelines": pipelines,
            "scalings": scalings,
        }
