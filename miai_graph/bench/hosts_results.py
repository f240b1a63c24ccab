"""What the benchmark on hosts found, as plain values. All times are in seconds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from miai_graph.errors import SavingError


@dataclass(frozen=True)
class Pipeline:
    """A way to train `hosts_workloads.STACKED_MLP` in equal stages, one a host."""

    batch: int
    micro_batches: int
    schedule: str
    stages: int = 2

    @property
    def stretch(self) -> float:
        """How many times as long as a stage's computing a step takes at least: stages wait for the first micro-batch,
        and for the last gradients."""
        return (self.micro_batches + self.stages - 1) / self.micro_batches


class HostsResult(Protocol):
    """What is found of a side."""

    side: str
    problem: str | None

    def fail(self, problem: str) -> None:
        """Have no figures, for this reason."""
        ...


@dataclass
class PipelineResult:
    """One side in one pipeline.

    Attributes
    ----------
    medians : of the steps of each round
    stage_medians : in each round, for each stage the median of what it computes in a step, without waiting for others,
        while the other stages compute too: they share the memory of the machine that emulates them
    problem : why there are no figures, if there are none
    """

    side: str
    pipeline: Pipeline
    medians: list[float] = field(default_factory=list)
    stage_medians: list[list[float]] = field(default_factory=list)
    problem: str | None = None

    def fail(self, problem: str) -> None:
        """Have no figures, for this reason."""
        self.problem = problem
        self.medians, self.stage_medians = [], []

    @property
    def median(self) -> float | None:
        """Of the rounds' medians."""
        return statistics.median(self.medians) if self.medians else None

    @property
    def stretch(self) -> float | None:
        """How many times as long as the slowest stage's computing a step takes: the median over the rounds."""
        pairs = list(zip(self.medians, self.stage_medians, strict=True))
        return statistics.median(step / max(stages) for step, stages in pairs) if pairs else None

    @property
    def over_ideal(self) -> float | None:
        """How many times as long as the ideal a step takes."""
        return None if self.stretch is None else self.stretch / self.pipeline.stretch


@dataclass
class ScalingResult:
    """One side that trains a workload on one host, and data parallel on several.

    Attributes
    ----------
    alone, together : medians of the steps of each round
    problem : why there are no figures, if there are none
    """

    side: str
    workload: str
    batch: int
    alone: list[float] = field(default_factory=list)
    together: list[float] = field(default_factory=list)
    problem: str | None = None

    def fail(self, problem: str) -> None:
        """Have no figures, for this reason."""
        self.problem = problem
        self.alone, self.together = [], []

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
    pipelines: list[list[PipelineResult]] = field(default_factory=list)
    scalings: list[list[ScalingResult]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """All of it in dictionaries and lists, with what is computed."""
        pipelines = [
            {**asdict(result), "median": result.median, "over_ideal": result.over_ideal}
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

    def save(self, path: Path) -> None:
        """Write it as JSON; SavingError if the file cannot be written."""
        try:
            path.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise SavingError(f"expected to write results to {path}; found: {error}") from error


def throughput_ratio(first: PipelineResult, other: PipelineResult) -> float | None:
    """How many times as fast as another side the first is: the median over the rounds, each compared by itself."""
    if not first.medians or not other.medians:
        return None
    return statistics.median(theirs / own for own, theirs in zip(first.medians, other.medians, strict=True))
