"""What workers spent their time on, as verdicts need it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from miai_graph.context import WAIT
from miai_graph.timing.grouping import NOT_COMPUTING, records_of_workers
from miai_graph.timing.records import IDLE, LOOP, OVERHEAD, TimingRecord
from miai_graph.timing.timeline import slices_of_step

if TYPE_CHECKING:
    from miai_graph.timing.timing import Timing

COMPUTING = "computing"
_KIND_OF_PHASE = {LOOP: OVERHEAD}


def kind_of(record: TimingRecord) -> str:
    """`COMPUTING`, or the phase; the loop of training is overhead."""
    if record.phase not in NOT_COMPUTING:
        return COMPUTING
    return _KIND_OF_PHASE.get(record.phase, record.phase)


@dataclass(frozen=True)
class Bubble:
    """How long a pipeline stood still.

    step : that was traced
    stages, micro_batches : how many
    measured : the share of the workers' time in which they neither computed nor sent
    """

    step: int
    stages: int
    micro_batches: int
    measured: float

    @property
    def theoretical(self) -> float:
        """Of a pipeline of equal stages."""
        return theoretical_bubble(self.stages, self.micro_batches)


def theoretical_bubble(stages: int, micro_batches: int) -> float:
    """The share of time in which the stages of a pipeline stand still, if they are equal and sending takes no time."""
    return (stages - 1) / (micro_batches + stages - 1)


@dataclass(frozen=True)
class Straggler:
    """A worker, or a stage, for which the others wait.

    is_stage, number : which
    host : the name of its machine; "" if it is several
    seconds, others_seconds : what it computes in a step, and what the others do on average
    mean_seconds : what all do on average
    """

    is_stage: bool
    number: int
    host: str
    seconds: float
    others_seconds: float
    mean_seconds: float


class Account:
    """Sums over a timing's records.

    A process that only gives stages their work, and waits for them, is not one of the workers.

    Attributes
    ----------
    records : those of the workers
    total_seconds : of all workers together
    wall_seconds : of all steps
    """

    _SLOWER = 1.15
    """By how much more than others a straggler computes."""
    _WAITED = 0.5
    """The part of the difference that the others must have waited, if it is the straggler that they waited for."""

    def __init__(self, timing: Timing) -> None:
        self.timing = timing
        self.records = records_of_workers(timing)
        self.total_seconds = sum(record.seconds for record in self.records)
        self.wall_seconds = timing.wall_seconds

    @cached_property
    def by_kind(self) -> dict[str, float]:
        """Seconds of all workers by kind, see `kind_of`."""
        result: dict[str, float] = defaultdict(float)
        for record in self.records:
            result[kind_of(record)] += record.seconds
        return result

    @cached_property
    def by_worker(self) -> dict[int, dict[str, float]]:
        """Seconds by worker and kind."""
        return _by_worker(self.records)

    @property
    def computing(self) -> list[TimingRecord]:
        """The records of nodes that compute."""
        return [record for record in self.records if kind_of(record) == COMPUTING]

    def share(self, kind: str) -> float:
        """Of the time of all workers."""
        return self.by_kind.get(kind, 0.0) / self.total_seconds if self.total_seconds else 0.0

    def longest(self, kind: str) -> float:
        """The seconds of the process that spent most on it."""
        return max((kinds.get(kind, 0.0) for kinds in _by_worker(self.timing.records).values()), default=0.0)

    @cached_property
    def stage_of(self) -> dict[int, int]:
        """The stage of each worker, where there are several stages."""
        stages = {record.worker: record.stage for record in self.records if record.stage is not None}
        stages |= {worker.index: worker.stage for worker in self.timing.unmeasured_workers if worker.stage is not None}
        return stages if len(set(stages.values())) > 1 else {}

    @property
    def _typical_step(self) -> int | None:
        """Of those that were traced; None: not known."""
        number = self.timing.typical_step
        return number if any(part.step == number for part in self.timing.slices) else None

    @cached_property
    def bubble(self) -> Bubble | None:
        """Of the typical step, else of the last one that was traced; None where there is no pipeline or no trace."""
        if not self.stage_of:
            return None
        slices = [part for part in slices_of_step(self.timing, self._typical_step) if part.worker in self.stage_of]
        if not slices:
            return None
        micro_batches: dict[int, set[int]] = defaultdict(set)
        for part in slices:
            if part.micro_batch is not None:
                micro_batches[part.worker].add(part.micro_batch)
        begin = min(part.start_seconds for part in slices)
        length = max(part.start_seconds + part.seconds for part in slices) - begin
        busy = sum(part.seconds for part in slices if part.phase not in (WAIT, IDLE))
        if not micro_batches or not length:
            return None
        measured = max(0.0, 1.0 - busy / (length * len({part.worker for part in slices})))
        stages = len(set(self.stage_of.values()))
        return Bubble(slices[0].step, stages, max(map(len, micro_batches.values())), measured)

    @cached_property
    def straggler(self) -> Straggler | None:
        """The worker that the others of its stage wait for, or else the stage that the others wait for."""
        by_stage: dict[int | None, list[int]] = defaultdict(list)
        for worker in self.by_worker:
            by_stage[self.stage_of.get(worker)].append(worker)
        found = [self._slowest([[worker] for worker in workers], False) for workers in by_stage.values()]
        found += [self._slowest(list(by_stage.values()), True)]
        return next((straggler for straggler in found if straggler is not None), None)

    def _slowest(self, groups: list[list[int]], are_stages: bool) -> Straggler | None:
        """The group of workers that computes longest, if the others wait for it."""
        calls = [self._calls(workers) for workers in groups]
        # Who took part in fewer steps computed less, and nobody waited for the others.
        if len(groups) < 2 or min(calls) < max(calls):
            return None
        means = [self._mean(workers, COMPUTING) for workers in groups]
        longest = max(means)
        place = means.index(longest)
        others = [mean for number, mean in enumerate(means) if number != place]
        rest = [worker for number, workers in enumerate(groups) if number != place for worker in workers]
        mean_of_others = sum(others) / len(others)
        waited = self._mean(rest, WAIT)
        if longest < self._SLOWER * mean_of_others or waited < self._WAITED * (longest - mean_of_others):
            return None
        steps = max(self.timing.steps, 1)
        first = groups[place][0]
        return Straggler(
            are_stages,
            self.stage_of[first] if are_stages else first,
            self._host(groups[place]),
            longest / steps,
            mean_of_others / steps,
            sum(means) / len(means) / steps,
        )

    def _calls(self, workers: list[int]) -> int:
        return max((record.calls for record in self.computing if record.worker in workers), default=0)

    def _mean(self, workers: list[int], kind: str) -> float:
        return sum(self.by_worker[worker].get(kind, 0.0) for worker in workers) / len(workers)

    def _host(self, workers: list[int]) -> str:
        own = {record.host for record in self.records if record.worker in workers}
        return own.pop() if len(own) == 1 < len({record.host for record in self.records}) else ""


def _by_worker(records: Iterable[TimingRecord]) -> dict[int, dict[str, float]]:
    result: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for record in records:
        result[record.worker][kind_of(record)] += record.seconds
    return result
