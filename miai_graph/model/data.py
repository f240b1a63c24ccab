"""What users hand to fit, evaluate and predict, checked and cut into batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from typing import Any

import numpy as np

from miai_graph.errors import ArgumentError, FeedError
from miai_graph.feeding import Batch, Rows, Table
from miai_graph.node import Node
from miai_graph.op import Array

Arrays = list[Array]


@dataclass(frozen=True)
class Dataset:
    """Arrays in memory.

    inputs, targets : with a sample a row
    weights : of the samples, for each target; or none
    has_batch_axis : whether the inputs of the graph take any number of samples, so that they can be told as row numbers
    """

    inputs: Arrays
    targets: Arrays
    weights: Arrays
    has_batch_axis: bool = True

    @property
    def size(self) -> int:
        return len(self.inputs[0])

    @cached_property
    def arrays(self) -> Table:
        return Table([*self.inputs, *self.targets, *self.weights])

    def part(self, start: int, stop: int) -> Dataset:
        """Some of the samples, by number."""

        def rows(arrays: Arrays) -> Arrays:
            return [array[start:stop] for array in arrays]

        return Dataset(rows(self.inputs), rows(self.targets), rows(self.weights), self.has_batch_axis)

    def batches(self, batch_size: int, order: Array | None = None) -> Iterator[tuple[Batch, int]]:
        """Batches with their sizes, the last one smaller if it must be; `order` are row numbers."""
        arrays = self.arrays
        for start in range(0, self.size, batch_size):
            stop = min(start + batch_size, self.size)
            rows = np.arange(start, stop) if order is None else order[start:stop]
            if self.has_batch_axis:
                yield Rows(arrays, rows), stop - start
            else:
                yield [array[rows] for array in arrays], stop - start

    def weighted_by_class(self, class_weight: Mapping[int, float] | None) -> Dataset:
        """The dataset with weights from the samples' classes, times their own; classes that are not named count 1.

        Raises
        ------
        ArgumentError, FeedError
            if there is not one target, or it does not hold one class a sample.
        """
        if class_weight is None:
            return self
        check_class_weight(class_weight)
        if len(self.targets) != 1:
            raise ArgumentError(f"expected one target with class_weight; found {len(self.targets)}")
        (labels,) = self.targets
        if labels.ndim == 2 and labels.shape[1] > 1:
            labels = labels.argmax(axis=1)
        labels = labels.reshape(len(labels), -1)
        if labels.shape[1] != 1:
            raise FeedError(
                f"expected one class a sample with class_weight; found targets of shape {self.targets[0].shape}"
            )
        weights = np.ones(len(labels), np.float32)
        for label, weight in class_weight.items():
            weights[np.rint(labels[:, 0]) == label] = weight
        return replace(self, weights=[weights * own for own in self.weights] or [weights])


def check_class_weight(class_weight: Any) -> None:
    """Raise ArgumentError unless it is a dictionary from class numbers to finite numbers."""
    entries = class_weight.items() if isinstance(class_weight, Mapping) else [(None, None)]
    for label, weight in entries:
        if not isinstance(label, Real) or not isinstance(weight, Real) or not math.isfinite(weight):
            raise ArgumentError(
                f"expected a dictionary from class numbers to finite numbers as class_weight; found {class_weight!r}"
            )


def as_arrays(value: Any, names: Sequence[str], what: str) -> Arrays:
    """One array for each name, from an array, a list of arrays, or a dictionary by name.

    Raises
    ------
    FeedError
        if there are too few or too many, one has no samples or no batch axis, or is not of numbers.
    """
    if isinstance(value, Mapping):
        if set(value) != set(names):
            raise FeedError(f"expected {what} for {', '.join(names)}; found {', '.join(map(str, value)) or 'none'}")
        parts = [value[name] for name in names]
    elif len(names) == 1:
        single = isinstance(value, list | tuple) and len(value) == 1 and hasattr(value[0], "__array__")
        parts = list(value) if single else [value]
    elif isinstance(value, list | tuple) and len(value) == len(names):
        parts = list(value)
    else:
        found = f"{len(value)} arrays" if isinstance(value, list | tuple) else type(value).__name__
        raise FeedError(f"expected a list of {len(names)} arrays as {what}, for {', '.join(names)}; found {found}")
    return [as_samples(part, f"{what} {name!r}") for part, name in zip(parts, names, strict=True)]


def as_samples(value: Any, what: str) -> Array:
    """The value as an array of numbers with a sample a row.

    Raises
    ------
    FeedError
        if it is none.
    """
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise FeedError(f"expected an array as {what}; found {type(value).__name__} ({error})") from None
    if array.dtype.kind not in "fiub":
        raise FeedError(f"expected numbers as {what}; found an array of dtype {array.dtype}")
    if array.ndim == 0 or len(array) == 0:
        raise FeedError(f"expected at least one sample as {what}; found shape {array.shape}")
    # Rows are gathered from whole arrays, which takes long if they must be made contiguous for each batch.
    return np.ascontiguousarray(array)


def with_last_axis(arrays: Arrays, nodes: Sequence[Node]) -> Arrays:
    """The arrays, with an axis of length one added where an input [batch, …, 1] is given without its last axis."""
    return [
        array[..., np.newaxis] if array.ndim == node.ndim - 1 and node.shape[-1] == 1 else array
        for array, node in zip(arrays, nodes, strict=True)
    ]


def check_lengths(dataset: Dataset) -> None:
    """Raise FeedError if the arrays differ in the number of samples."""
    for array in dataset.arrays:
        if len(array) != dataset.size:
            kinds = (("input", dataset.inputs), ("target", dataset.targets), ("sample_weight", dataset.weights))
            lengths = ", ".join(f"{len(other)} in {kind}" for kind, arrays in kinds for other in arrays)
            raise FeedError(f"expected as many samples in each array; found {lengths}")


def check_no_nan(array: Array, what: str) -> None:
    """Raise FeedError, saying where the first nan stands, if there is one."""
    if array.dtype.kind != "f":
        return
    bad = np.isnan(array)
    if bad.any():
        place = tuple(int(part) for part in np.unravel_index(int(bad.argmax()), array.shape))
        raise FeedError(f"expected numbers as {what}; found nan at position {place} ({int(bad.sum())} in all)")


def as_weights(value: Any, names: Sequence[str]) -> Arrays:
    """Weights for each target, from those for all of them, or a list or dictionary with some for each.

    Raises
    ------
    FeedError
        if they do not fit the targets' number, or are not numbers.
    """
    if value is None:
        return []
    what = "sample_weight"
    for_each = isinstance(value, Mapping) or (
        isinstance(value, list | tuple) and any(hasattr(part, "__array__") for part in value)
    )
    arrays = as_arrays(value, names, what) if for_each else [as_samples(value, what)] * len(names)
    for array in arrays:
        check_no_nan(array, what)
    return arrays


def split_validation(dataset: Dataset, fraction: float) -> tuple[Dataset, Dataset]:
    """The last part of the samples for validation, before any shuffling, as in Keras."""
    if not isinstance(fraction, Real) or not 0 < fraction < 1:
        raise ArgumentError(f"expected a validation_split between 0 and 1; found {fraction!r}")
    cut = math.floor(dataset.size * (1 - fraction))
    if cut in (0, dataset.size):
        raise FeedError(f"expected samples on both sides of validation_split={fraction}; found {dataset.size} in all")
    return dataset.part(0, cut), dataset.part(cut, dataset.size)


def is_batches(x: Any) -> bool:
    """Whether x gives batches, by iteration or by number, rather than being arrays."""
    if isinstance(x, np.ndarray | Sequence | Mapping) or hasattr(x, "__array__"):
        return False
    return isinstance(x, Iterable) or (hasattr(x, "__getitem__") and hasattr(x, "__len__"))


def unpack_batch(batch: Any) -> tuple[Any, Any, Any]:
    """(x, y, sample_weight) from a tuple or list that may lack the later ones, or from x alone."""
    if not isinstance(batch, tuple | list):
        return batch, None, None
    if not 1 <= len(batch) <= 3:
        raise FeedError(f"expected batches (x,), (x, y) or (x, y, sample_weight); found {len(batch)} parts")
    x, y, sample_weight = (*batch, None, None)[:3]
    return x, y, sample_weight
