"""Where batches come from: arrays in memory, or an iterable of batches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from miai_graph.errors import FeedError
from miai_graph.feeding import Batch
from miai_graph.model.data import Arrays, Dataset, split_validation
from miai_graph.op import Array

Batches = Iterator[tuple[Batch, int]]

ROWS_DRAWN_AT_ONCE = 16
"""Batches that are told as numbers of rows take next to no memory, and nobody notices when they are drawn."""


class Source:
    """Gives batches with their sizes, from the beginning at each pass.

    Attributes
    ----------
    targets, weights : arrays like those that a step will be fed
    batch_size : that of all batches but perhaps the last
    samples, steps : how many samples and batches there are in a pass, if that is known
    repeatable : whether there can be another pass
    drawn_at_once : how many batches may be drawn before the first of them is used
    """

    targets: Arrays
    weights: Arrays
    batch_size: int
    samples: int | None = None
    steps: int | None = None
    repeatable: bool = True
    drawn_at_once: int = 1

    def batches(self, order: Array | None = None) -> Batches:
        """One pass; `order` is that of the samples, if they are in memory."""
        raise NotImplementedError

    def weighted_by_class(self, class_weight: Mapping[int, float]) -> Source:
        """The same with weights from the samples' classes; see `Dataset.weighted_by_class`."""
        raise NotImplementedError


class ArraySource(Source):
    """Arrays, cut into batches of one size, the last perhaps smaller."""

    def __init__(self, dataset: Dataset, batch_size: int) -> None:
        self.dataset = dataset
        self.targets = dataset.targets
        self.weights = dataset.weights
        self.batch_size = batch_size
        self.samples = dataset.size
        self.steps = -(-dataset.size // batch_size)
        self.drawn_at_once = ROWS_DRAWN_AT_ONCE if dataset.has_batch_axis else 1

    def split(self, fraction: float, batch_size: int) -> tuple[ArraySource, ArraySource]:
        """What is trained on, and the rest, to validate on in batches of `batch_size`."""
        first, last = split_validation(self.dataset, fraction)
        return ArraySource(first, self.batch_size), ArraySource(last, batch_size)

    def batches(self, order: Array | None = None) -> Batches:
        return self.dataset.batches(self.batch_size, order)

    def weighted_by_class(self, class_weight: Mapping[int, float]) -> ArraySource:
        return ArraySource(self.dataset.weighted_by_class(class_weight), self.batch_size)


class IterableSource(Source):
    """Batches of any sizes, from something that can be iterated over, perhaps only once.

    Parameters
    ----------
    given : an iterable, or something with a length and batches by number
    as_dataset : makes a checked `Dataset` of a batch

    Raises
    ------
    FeedError
        if there is no batch.
    """

    def __init__(self, given: Any, as_dataset: Callable[[Any], Dataset]) -> None:
        self._given = given
        self._as_dataset = as_dataset
        self._class_weight: Mapping[int, float] | None = None
        iterator = self._iterator()
        self.repeatable = iterator is not given
        first = next(iterator, None)
        if first is None:
            raise FeedError("expected at least one batch; found none")
        # A generator's first batch must not be lost by having been looked at.
        self._waiting: Iterator[Any] | None = itertools.chain([first], iterator)
        self._first = as_dataset(first)
        self.targets = self._first.targets
        self.weights = self._first.weights
        self.batch_size = self._first.size
        self.steps = len(given) if hasattr(given, "__len__") else None

    def _iterator(self) -> Iterator[Any]:
        if hasattr(self._given, "__iter__"):
            return iter(self._given)
        return (self._given[number] for number in range(len(self._given)))

    def batches(self, order: Array | None = None) -> Batches:
        waiting, self._waiting = self._waiting, None
        for batch in self._iterator() if waiting is None else waiting:
            dataset = self._as_dataset(batch).weighted_by_class(self._class_weight)
            yield dataset.arrays, dataset.size

    def weighted_by_class(self, class_weight: Mapping[int, float]) -> IterableSource:
        self._class_weight = class_weight
        self.weights = self._first.weighted_by_class(class_weight).weights
        return self


class Epochs:
    """Cuts what a source gives into epochs.

    Parameters
    ----------
    steps : the number of batches in an epoch, which goes on where the last one stopped; None: an epoch is a pass
    shuffled : from the number of samples and that of the training step at which a pass begins to the samples' order;
        None: as they are
    """

    def __init__(self, source: Source, steps: int | None, shuffled: Callable[[int, int], Array] | None) -> None:
        self.source = source
        self.steps = steps if steps is None or source.steps is None else min(steps, source.steps)
        self._shuffled = shuffled
        self._current: Batches | None = None

    @property
    def length(self) -> int | None:
        """The number of batches in an epoch, if it is known."""
        return self.source.steps if self.steps is None else self.steps

    def batches(self, first_step: int) -> Batches:
        """An epoch, whose first batch is for training step `first_step`."""
        if self.steps is None:
            yield from self._pass(first_step)
            return
        for step in range(first_step, first_step + self.steps):
            entry = self._next(step)
            if entry is None:
                return
            yield entry

    def _pass(self, step: int) -> Batches:
        samples = self.source.samples
        return self.source.batches(None if samples is None or self._shuffled is None else self._shuffled(samples, step))

    def has_more(self, step: int) -> bool:
        """Whether there is a batch for training step `step`."""
        if self.source.repeatable:
            return True
        entry = self._next(step)
        if entry is None or self._current is None:
            return False
        self._current = itertools.chain([entry], self._current)
        return True

    def _next(self, step: int) -> tuple[Batch, int] | None:
        entry = None if self._current is None else next(self._current, None)
        if entry is None and (self._current is None or self.source.repeatable):
            self._current = self._pass(step)
            entry = next(self._current, None)
        return entry
