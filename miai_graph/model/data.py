"""What users hand to fit, evaluate and predict, checked and cut into batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from miai_graph.errors import ArgumentError, FeedError
from miai_graph.feeding import Batch, Rows
from miai_graph.op import Array

Arrays = list[Array]


@dataclass(frozen=True)
class Dataset:
    """Arrays in memory: inputs, targets and, perhaps, a weight for each sample."""

    inputs: Arrays
    targets: Arrays
    weights: Array | None = None

    @property
    def size(self) -> int:
        return len(self.inputs[0])

    @property
    def arrays(self) -> Arrays:
        return [*self.inputs, *self.targets, *([] if self.weights is None else [self.weights])]

    def part(self, start: int, stop: int) -> Dataset:
        weights = None if self.weights is None else self.weights[start:stop]
        return Dataset([a[start:stop] for a in self.inputs], [a[start:stop] for a in self.targets], weights)

    def batches(self, batch_size: int, order: Array | None = None) -> Iterator[tuple[Batch, int]]:
        """Batches with their sizes, the last one smaller if it must be; `order` are row numbers."""
        arrays = self.arrays
        for start in range(0, self.size, batch_size):
            stop = min(start + batch_size, self.size)
            if order is None:
                yield [array[start:stop] for array in arrays], stop - start
            else:
                yield Rows(arrays, order[start:stop]), stop - start


def as_arrays(value: Any, names: Sequence[str], what: str) -> Arrays:
    """One array for each name, from an array, a list of arrays, or a dictionary by name.

    Raises
    ------
    FeedError
        if there are too few or too many, one has no samples or no batch axis, or is not of numbers.
    """
    if isinstance(value, Mapping):
        missing = [name for name in names if name not in value]
        unknown = [name for name in value if name not in names]
        if missing or unknown:
            raise FeedError(f"expected {what} for {', '.join(names)}; found {', '.join(map(str, value))}")
        parts = [value[name] for name in names]
    elif len(names) == 1:
        single = isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], np.ndarray)
        parts = list(value) if single else [value]
    elif isinstance(value, list | tuple) and len(value) == len(names):
        parts = list(value)
    else:
        found = f"{len(value)} arrays" if isinstance(value, list | tuple) else type(value).__name__
        raise FeedError(f"expected a list of {len(names)} arrays as {what}, for {', '.join(names)}; found {found}")
    return [_as_samples(part, f"{what} {name!r}") for part, name in zip(parts, names, strict=True)]


def _as_samples(value: Any, what: str) -> Array:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise FeedError(f"expected an array as {what}; found {type(value).__name__} ({error})") from None
    if array.dtype.kind not in "fiub":
        raise FeedError(f"expected numbers as {what}; found an array of dtype {array.dtype}")
    if array.ndim == 0 or len(array) == 0:
        raise FeedError(f"expected at least one sample as {what}; found shape {array.shape}")
    return array


def as_dataset(
    x: Any, y: Any, sample_weight: Any, input_names: Sequence[str], target_names: Sequence[str]
) -> Dataset:
    """The arrays as a dataset.

    Raises
    ------
    FeedError
        if the arrays have different numbers of samples, targets or weights hold nan, or there are no samples.
    """
    inputs = as_arrays(x, input_names, "input")
    targets = [] if y is None else as_arrays(y, target_names, "target")
    weights = None if sample_weight is None else _as_samples(sample_weight, "sample_weight")
    dataset = Dataset(inputs, targets, weights)
    for array in dataset.arrays:
        if len(array) != dataset.size:
            raise FeedError(
                f"expected as many samples in each array; found {', '.join(str(len(other)) for other in dataset.arrays)}"
            )
    for name, target in zip(target_names, targets, strict=False):
        check_no_nan(target, f"target {name!r}")
    if weights is not None:
        check_no_nan(weights, "sample_weight")
        if weights.ndim != 1:
            raise FeedError(f"expected one sample_weight a sample; found shape {weights.shape}")
    return dataset


def check_no_nan(array: Array, what: str) -> None:
    """Raise FeedError, saying where the first nan stands, if there is one."""
    if array.dtype.kind != "f":
        return
    bad = np.isnan(array)
    if bad.any():
        place = tuple(int(part) for part in np.unravel_index(int(bad.argmax()), array.shape))
        raise FeedError(f"expected numbers as {what}; found nan at position {place} ({int(bad.sum())} in all)")


def split_validation(dataset: Dataset, fraction: float) -> tuple[Dataset, Dataset]:
    """The last part of the samples for validation, before any shuffling, as in Keras."""
    if not 0 < fraction < 1:
        raise ArgumentError(f"expected a validation_split between 0 and 1; found {fraction!r}")
    cut = math.floor(dataset.size * (1 - fraction))
    if cut in (0, dataset.size):
        raise FeedError(f"expected samples on both sides of validation_split={fraction}; found {dataset.size} in all")
    return dataset.part(0, cut), dataset.part(cut, dataset.size)


def weights_by_class(class_weight: Mapping[int, float], targets: Arrays, weights: Array | None) -> Array:
    """A weight for each sample from its class, times its own; classes that are not named count 1."""
    if len(targets) != 1:
        raise ArgumentError(f"expected one target with class_weight; found {len(targets)}")
    (labels,) = targets
    if labels.ndim == 2 and labels.shape[1] > 1:
        labels = labels.argmax(axis=1)
    labels = labels.reshape(len(labels), -1)
    if labels.shape[1] != 1:
        raise FeedError(f"expected one class a sample with class_weight; found targets of shape {targets[0].shape}")
    result = np.ones(len(labels), np.float32)
    for label, weight in class_weight.items():
        result[labels[:, 0] == label] = weight
    return result if weights is None else result * weights


def is_batches(x: Any) -> bool:
    """Whether x is an iterable of batches rather than arrays."""
    return isinstance(x, Iterator) or (
        isinstance(x, Iterable) and not isinstance(x, np.ndarray | Sequence | Mapping) and not hasattr(x, "__array__")
    )


def unpack_batch(batch: Any) -> tuple[Any, Any, Any]:
    """(x, y, sample_weight) from a batch that may lack the later ones."""
    if not isinstance(batch, tuple):
        return batch, None, None
    if not 1 <= len(batch) <= 3:
        raise FeedError(f"expected batches (x,), (x, y) or (x, y, sample_weight); found a tuple of {len(batch)}")
    return (*batch, *[None] * (3 - len(batch)))  # type: ignore[return-value]
