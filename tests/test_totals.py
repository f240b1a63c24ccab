"""Figures of steps, added up in native code and by NumPy: both are what plain arithmetic gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest

from miai_graph.kernels.compiler.native import processor
from miai_graph.timing import totals
from miai_graph.timing.records import HISTOGRAM_BINS
from miai_graph.timing.totals import CollectedTotals, NativeTotals, Step, Totals

ONE_EACH = [0, 1, 2]
SEVERAL = [0, 1, 0, 2, 1, 1]

both = pytest.mark.parametrize(
    "make",
    [
        CollectedTotals,
        pytest.param(
            NativeTotals, marks=pytest.mark.skipif(processor() is None, reason="there is no native code here")
        ),
    ],
)


def made_steps(owners: Sequence[int], count: int, rng: np.random.Generator) -> list[tuple[Step, np.ndarray]]:
    """Steps of kernels that take from nothing to days."""
    steps = []
    for number in range(count):
        taken = (2.0 ** rng.uniform(-3, 55, len(owners) + 4)).astype(np.int64)
        times = np.cumsum(taken) + 10**15
        start, waited_first, stamps = int(times[0]), int(taken[1]), times[2:-1]
        waited_last, end = int(rng.integers(taken[-1] + 1)), int(times[-1])
        steps.append((Step(start, waited_first, waited_last, end, number, stamps.tobytes()), stamps))
    return steps


def add(figures: Totals, step: Step, stamps: np.ndarray) -> None:
    if stamps is not figures.stamps:
        figures.read_from(stamps)
    for place, figure in enumerate(step[:-1]):
        figures.known[place] = figure
    figures.book()


def rows_of(owners: Sequence[int], step: Step, stamps: np.ndarray) -> list[int]:
    """What a step took, by row."""
    kernels = [after - before for before, after in pairwise(stamps.tolist())]
    nodes = [sum(time for time, own in zip(kernels, owners, strict=True) if own == node) for node in sorted({*owners})]
    first, last = stamps.tolist()[0], stamps.tolist()[-1]
    feeding = first - step.start - step.waited_first
    return [step.waited_first + step.waited_last, feeding, *nodes, step.end - last - step.waited_last]


@both
@pytest.mark.parametrize("owners", [[], [0], ONE_EACH, SEVERAL], ids=str)
def test_figures_are_those_of_all_steps(
    make: Callable[..., Totals], owners: list[int], rng: np.random.Generator
) -> None:
    steps, figures = made_steps(owners, 700, rng), make(owners)
    for step, stamps in steps:
        add(figures, step, stamps)
    figures.settle()
    times = np.array([rows_of(owners, step, stamps) for step, stamps in steps])
    assert figures.steps == len(steps)
    np.testing.assert_array_equal(figures.total_ns, times.sum(axis=0))
    np.testing.assert_array_equal(figures.min_ns, times.min(axis=0))
    np.testing.assert_array_equal(figures.max_ns, times.max(axis=0))
    bins = [[min(max(int(time), 1).bit_length(), HISTOGRAM_BINS) - 1 for time in row] for row in times.T.tolist()]
    counted = [np.bincount(row, minlength=HISTOGRAM_BINS) for row in bins]
    # Where a time is just below a power of two, it may be rounded up on its way through floats.
    assert np.abs(figures.histogram - counted).sum() <= 2
    np.testing.assert_array_equal(figures.histogram.sum(axis=1), len(steps))


@both
def test_the_latest_step_is_kept_though_its_array_is_written_to_again(
    make: Callable[..., Totals], rng: np.random.Generator
) -> None:
    figures, stamps = make(SEVERAL), np.zeros(len(SEVERAL) + 1, np.int64)
    for step, times in made_steps(SEVERAL, 600, rng):
        stamps[:] = times
        add(figures, step, stamps)
        stamps[:] = 0
        assert figures.latest == step


@both
def test_times_of_a_step_that_failed_are_not_booked(make: Callable[..., Totals], rng: np.random.Generator) -> None:
    figures = make(ONE_EACH)
    ((step, stamps),) = made_steps(ONE_EACH, 1, rng)
    add(figures, step, stamps)
    stamps[:2] += 1
    figures.settle()
    assert figures.steps == 1
    assert figures.latest == step


@pytest.mark.skipif(processor() is None, reason="there is no native code here")
def test_machines_without_native_code_collect(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(totals.totals_for(ONE_EACH), NativeTotals)
    monkeypatch.setattr(totals.native, "processor", lambda: None)
    assert isinstance(totals.totals_for(ONE_EACH), CollectedTotals)
