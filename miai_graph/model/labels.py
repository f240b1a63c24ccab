"""Checking targets against the loss and the output that they are for, before training begins."""

from __future__ import annotations

from typing import Any

import numpy as np

from miai_graph.errors import FeedError
from miai_graph.losses import SparseCategoricalCrossentropy
from miai_graph.node import Node
from miai_graph.op import Array


def check_labels_of(loss: Any, target: Array, output: Node, name: str) -> Array:
    """The target array, as the loss can take it: class numbers as integers.

    Raises
    ------
    FeedError
        if class numbers are broken or out of range, or the target has another shape than the loss can compare to the output.
    """
    if isinstance(loss, SparseCategoricalCrossentropy):
        return _class_numbers(loss, target, output, name)
    if loss is not None:
        _check_comparable(target, output, name)
    return target


def _class_numbers(loss: Any, target: Array, output: Node, name: str) -> Array:
    classes = output.shape[-1]
    if target.dtype.kind == "f":
        whole = target.astype(np.int64)
        if (whole != target).any():
            place = _first(whole != target)
            raise FeedError(f"expected whole class numbers as target {name!r}; found {target[place]} at position {place}")
        target = whole
    if target.shape[1:] not in (output.shape[1:-1], (*output.shape[1:-1], 1)):
        raise FeedError(
            f"expected a class number for each row of output {name!r}, shape {output.shape[:-1]}; found target shape "
            f"{(None, *target.shape[1:])}. For rows of probabilities use categorical_crossentropy"
        )
    outside = (target < 0) | (target >= (classes or 0))
    if getattr(loss, "ignore_class", None) is not None:
        outside &= target != loss.ignore_class
    if outside.any():
        place = _first(outside)
        raise FeedError(
            f"expected class numbers from 0 to {(classes or 0) - 1} as target {name!r}, for the output has {classes} classes; "
            f"found {target[place]} at position {place}"
        )
    return target


def _check_comparable(target: Array, output: Node, name: str) -> None:
    expected, found = output.shape[1:], target.shape[1:]
    if expected != found and expected != (*found, 1) and (*expected, 1) != found:
        raise FeedError(
            f"expected a target of shape {output.shape}, as output {name!r} has; found {(None, *found)}. "
            "For class numbers use sparse_categorical_crossentropy"
        )


def _first(mask: Array) -> tuple[int, ...]:
    return tuple(int(part) for part in np.unravel_index(int(mask.argmax()), mask.shape))
