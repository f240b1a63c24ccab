"""What a benchmark found, as plain values: sides in rows, rows in a whole, and what is computed from them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from miai_graph.bench.limits import Peaks, Work

CHECKED_STEPS = 20
"""Of how many steps the losses are compared."""

LOSS_TOLERANCE, CHANGE_TOLERANCE = 1e-3, 0.05
"""By how much losses and changes of weights may differ, as shares, for two sides to have done the same work."""


@dataclass
class SideResult:
    """One side on one workload at one batch size. All times are in seconds.

    Attributes
    ----------
    medians, bests : of the steps of each round
    first_cold : from the call that trains to the end of the first step, in a new process whose imports are done
    first_warm : the same for another model in that process
    empty : the median of steps with next to nothing in them; None for peers
    build : what making the model takes, before that call
    threads : how many it computes with, in all its processes
    values_bytes : the most memory that computed values take in a step, activations and gradients among them, apart from
        parameters, what optimizers keep, and the batch, which JAX puts together in the step; None: not known
    resident_bytes : how much more memory than before the first step its processes have had in the first steps; None:
        not known
    losses : of the first steps
    loss_difference : the largest to the first side, as a share of the loss
    weight_difference : the largest to the first side, after these steps
    change_difference : of what the first step changes in all weights, as a share of it, in the Euclidean norm; later
        ones magnify the errors of rounding
    versions : of the libraries that decide, by name
    ops : a table of where the time went, by op; empty where it was not asked for, and for peers
    problem : why there are no figures, if there are none
    """

    side: str
    medians: list[float] = field(default_factory=list)
    bests: list[float] = field(default_factory=list)
    first_cold: float | None = None
    first_warm: float | None = None
    empty: float | None = None
    build: float | None = None
    threads: int | None = None
    values_bytes: int | None = None
    resident_bytes: int | None = None
    losses: list[float] = field(default_factory=list)
    loss_difference: float | None = None
    weight_difference: float | None = None
    change_difference: float | None = None
    versions: dict[str, str] = field(default_factory=dict)
    ops: str = ""
    problem: str | None = None

    @property
    def median(self) -> float | None:
        """Of the rounds' medians."""
        return statistics.median(self.medians) if self.medians else None

    @property
    def is_comparable(self) -> bool:
        """Whether it was seen to do the same work as the first side."""
        if self.loss_difference is None or self.change_difference is None:
            return False
        return self.loss_difference <= LOSS_TOLERANCE and self.change_difference <= CHANGE_TOLERANCE


@dataclass
class Row:
    """A workload at a batch size, on all sides.

    Attributes
    ----------
    work : what a step cannot do without; None: no executor of ours told
    peaks : of so many threads, the best that was seen between the rounds
    """

    workload: str
    batch: int
    sides: list[SideResult]
    work: Work | None = None
    peaks: dict[int, Peaks] = field(default_factory=dict)

    def ratio(self, side: int) -> float | None:
        """How many times as fast as the first side another is: the median over the rounds, each compared by itself."""
        first, other = self.sides[0], self.sides[side]
        if not first.medians or not other.medians or not other.is_comparable:
            return None
        return statistics.median(a / b for a, b in zip(first.medians, other.medians, strict=True))

    def limit(self, side: int) -> float | None:
        """The least seconds that a step can take with a side's threads."""
        peaks = self.peaks.get(self.sides[side].threads or 0)
        return None if self.work is None or peaks is None else peaks.limit_seconds(self.work)

    def share_of_limit(self, side: int) -> float | None:
        """How fast a side's steps are, as a share of the fastest that is possible."""
        limit, median = self.limit(side), self.sides[side].median
        return None if limit is None or median is None else limit / median


@dataclass
class Results:
    """A whole run.

    Attributes
    ----------
    machine : facts by name
    settings : the rounds, and the seconds of measuring in each
    sides : as they were written
    """

    machine: Mapping[str, str]
    settings: Mapping[str, Any]
    sides: Sequence[str]
    rows: list[Row] = field(default_factory=list)

    def mean_ratio(self, side: int) -> float | None:
        """The geometric mean of a side's ratios."""
        return geometric_mean(row.ratio(side) for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """All of it in dictionaries and lists, with what is computed."""
        rows = []
        for row in self.rows:
            sides = [
                {
                    **asdict(side),
                    "median": side.median,
                    "ratio": row.ratio(place),
                    "limit": row.limit(place),
                    "of_limit": row.share_of_limit(place),
                    "comparable": side.is_comparable,
                }
                for place, side in enumerate(row.sides)
            ]
            work = None if row.work is None else asdict(row.work)
            peaks = {str(threads): asdict(speeds) for threads, speeds in row.peaks.items()}
            rows.append({"workload": row.workload, "batch": row.batch, "work": work, "peaks": peaks, "sides": sides})
        means = {side: self.mean_ratio(place) for place, side in enumerate(self.sides)}
        return {
            "machine": dict(self.machine),
            "settings": dict(self.settings),
            "sides": list(self.sides),
            "rows": rows,
            "geometric_mean_ratios": means,
        }


def geometric_mean(ratios: Iterable[float | None]) -> float | None:
    """Of those that are there, if any are."""
    known = [math.log(ratio) for ratio in ratios if ratio is not None]
    return math.exp(math.fsum(known) / len(known)) if known else None
