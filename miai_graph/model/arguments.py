"""Checking the numbers that fit, evaluate and predict are told."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np

from miai_graph.errors import ArgumentError
from miai_graph.model.sources import Source


def check_counts(**counts: Any) -> None:
    """Raise ArgumentError for a count that is neither None nor an integer of at least 1."""
    for name, value in counts.items():
        if value is not None and not _is_integer(value, at_least=1):
            raise ArgumentError(f"expected an integer of at least 1, or None, as {name}; found {value!r}")


def check_epochs(epochs: Any, initial_epoch: Any) -> None:
    """Raise ArgumentError unless both are integers of at least 0, the first the greater one."""
    if not (_is_integer(initial_epoch, at_least=0) and _is_integer(epochs, at_least=initial_epoch)):
        raise ArgumentError(
            f"expected integers of at least 0 as epochs and initial_epoch, from which epochs count; "
            f"found {epochs!r} and {initial_epoch!r}"
        )


def _is_integer(value: Any, *, at_least: int) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | np.integer) and bool(value >= at_least)


def check_trace_steps(given: Any) -> Collection[int]:
    """Numbers of steps as a range or a set. Raises ArgumentError if they are something else."""
    if given is None:
        return ()
    if isinstance(given, range) and (not given or min(given[0], given[-1]) >= 0):
        return given
    is_collection = isinstance(given, Iterable) and not isinstance(given, str | range)
    numbers: list[Any] = list(given) if is_collection else []
    if not is_collection or not all(_is_integer(number, at_least=0) for number in numbers):
        raise ArgumentError(
            "expected trace_steps to be a range or a collection of the numbers of steps, counted from 0 where this fit "
            f"begins; found {given!r}. Write trace_steps=range(5, 8) for three of them"
        )
    return frozenset(map(int, numbers))


def check_repeatable(source: Source, steps: int | None, passes: int, name: str) -> None:
    """Raise ArgumentError if a source would have to be gone through more often than it can."""
    if passes > 1 and steps is None and not source.repeatable:
        raise ArgumentError(
            f"expected {name} for an iterator, which can be gone through only once, and {passes} times; found None. "
            "Or give an iterable that can be gone through again"
        )


def fewer(steps: int | None, others: int | None) -> int | None:
    """The lesser of two numbers of batches; None: no limit."""
    limits = [limit for limit in (steps, others) if limit is not None]
    return min(limits, default=None)
