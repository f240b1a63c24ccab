"""How many workers to use for batches of one size: as many as there are, unless fewer are measured to be faster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

TRIAL_STEPS = 6
"""How many steps are measured with each number of workers; the shortest counts."""

STEPS_BETWEEN_TRIALS = 1000
"""After so many steps it is measured again, for other programs come and go."""

STEPS_WITH_FEWER = 200
"""The same while fewer workers are used: something else that ran just then may have been the reason."""

WAITING_WORTH_A_TRIAL = 0.15
"""Where a smaller part of a long step is spent waiting and reducing, no smaller number of workers can be faster."""

LONG_STEP_SECONDS = 5e-3
"""In shorter steps what each worker does besides computing counts too."""

GAIN_WORTH_A_CHANGE = 0.95
"""Fewer workers are used if they need no more than this part of the time."""


@dataclass
class WorkerChoice:
    """Tries numbers of workers in turn, the greatest first, while training goes on.

    Attributes
    ----------
    candidates : from the greatest down to 1
    seconds : the shortest step measured with each of them, as far as they were tried
    workers : how many to use for the next step
    """

    candidates: list[int]
    seconds: dict[int, float] = field(default_factory=dict)
    is_decided: bool = False
    _steps: int = 0

    def __post_init__(self) -> None:
        self.workers = self.candidates[0]
        self.is_decided = len(self.candidates) == 1

    def add(self, seconds: float, waiting: float) -> None:
        """Tell how long a step took, and which part of it went by with waiting and reducing."""
        self._steps += 1
        if self.is_decided:
            has_all = self.workers == self.candidates[0]
            if self._steps == (STEPS_BETWEEN_TRIALS if has_all else STEPS_WITH_FEWER) and len(self.candidates) > 1:
                self._begin()
            return
        self.seconds[self.workers] = min(seconds, self.seconds.get(self.workers, seconds))
        if self._steps < TRIAL_STEPS:
            return
        self._steps = 0
        place = self.candidates.index(self.workers)
        if place == 0 and seconds > LONG_STEP_SECONDS and waiting < WAITING_WORTH_A_TRIAL:
            self._decide([self.workers])
        elif place + 1 < len(self.candidates):
            self.workers = self.candidates[place + 1]
        else:
            self._decide(self.candidates)

    def _begin(self) -> None:
        self._steps, self.is_decided, self.workers = 0, False, self.candidates[0]
        self.seconds.clear()

    def _decide(self, tried: Sequence[int]) -> None:
        self.is_decided = True
        all_workers = self.candidates[0]
        best = min(tried, key=lambda workers: self.seconds[workers])
        is_better = self.seconds[best] <= GAIN_WORTH_A_CHANGE * self.seconds[all_workers]
        self.workers = best if is_better else all_workers

    def describe(self) -> str | None:
        """What was decided and why, if it is not what one would expect."""
        if not self.is_decided or self.workers == self.candidates[0]:
            return None
        found = ", ".join(f"{1e3 * self.seconds[count]:.3f} ms with {count}" for count in self.candidates)
        return f"{_count(self.workers)} of {self.candidates[0]} used, measured to be fastest: {found}"


def _count(workers: int) -> str:
    return "1 worker" if workers == 1 else f"{workers} workers"


def candidates(workers: int) -> list[int]:
    """All, half of them, and so on down to 1."""
    result = [workers]
    while result[-1] > 1:
        result.append(result[-1] // 2)
    return result
