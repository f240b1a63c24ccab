"""Checking targets against the loss and the output that they are for, before training begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from miai_graph import losses
from miai_graph.errors import FeedError
from miai_graph.messages import describe
from miai_graph.model.steps import FeedSpec
from miai_graph.node import Node
from miai_graph.op import Array

_COMPARING = (
    losses.mean_squared_error,
    losses.mean_absolute_error,
    losses.huber,
    losses.binary_crossentropy,
    losses.categorical_crossentropy,
)
"""The losses that need a true value for each prediction."""


def check_labels_of(loss: Any, target: Array, output: Node, name: str) -> Array:
    """The target array in the form that is usual for the loss.

    That is integers without an axis of one for class numbers, and floats of the output's shape for what is compared.

    Raises
    ------
    FeedError
        if class numbers are broken or out of range, labels are no probabilities, or the target has another shape than
        the loss can compare to the output. The user's own losses may take targets of any shape.
    """
    function = getattr(loss, "fn", None)
    if function is losses.sparse_categorical_crossentropy:
        return _class_numbers(loss.options, target, output, name)
    if function is losses.binary_crossentropy:
        _check_between_0_and_1(target, name)
    return _comparable(target, output, name) if function in _COMPARING else target


def usual_target(loss: Any, output: Node) -> FeedSpec:
    """What a target for this loss and output is like, as a rule."""
    if getattr(loss, "fn", None) is losses.sparse_categorical_crossentropy:
        axis = loss.options.get("axis", -1) % output.ndim
        return FeedSpec(_int_dims([*output.shape[1:axis], *output.shape[axis + 1 :]]), "int64")
    return FeedSpec(_int_dims(output.shape[1:]), "float")


def _int_dims(dims: Sequence[int | None]) -> tuple[int, ...]:
    return tuple(dim or 0 for dim in dims)


def _class_numbers(options: Any, target: Array, output: Node, name: str) -> Array:
    axis = options.get("axis", -1) % output.ndim
    classes = output.shape[axis] or 0
    expected = _int_dims([*output.shape[1:axis], *output.shape[axis + 1 :]])
    if target.shape[1:] not in (expected, (*expected, 1)):
        raise FeedError(
            f"expected a class number for each row of output {name!r}, shape {(None, *expected)}; found target shape "
            f"{(None, *target.shape[1:])}. For rows of probabilities use categorical_crossentropy"
            f"{_at(output)}"
        )
    if target.dtype.kind == "f":
        broken = target != np.floor(target)
        if broken.any():
            place = _first(broken)
            raise FeedError(
                f"expected whole class numbers as target {name!r}; found {target[place]} at position {place}"
                f"{_at(output)}"
            )
    outside = (target < 0) | (target >= classes)
    if options.get("ignore_class") is not None:
        outside &= target != options["ignore_class"]
    if outside.any():
        place = _first(outside)
        raise FeedError(
            f"expected class numbers from 0 to {classes - 1} as target {name!r}, for the output has {classes} classes; "
            f"found {target[place]} at position {place}"
            + (". For one probability use binary_crossentropy" if classes == 1 else "")
            + _at(output)
        )
    numbers = target if target.dtype.kind in "iu" else target.astype(np.int64)
    return numbers.reshape(len(target), *expected)


def _at(output: Node) -> str:
    return f"\n  output: {describe(output)}"


def _advice_for(target: Array, output: Node) -> str:
    if target.dtype.kind in "iu" and target.ndim < output.ndim:
        return "For class numbers use sparse_categorical_crossentropy"
    return "Let the last layer give what the target has, or reshape the target"


def _comparable(target: Array, output: Node, name: str) -> Array:
    expected, found = _int_dims(output.shape[1:]), target.shape[1:]
    if expected != found and expected != (*found, 1) and (*expected, 1) != found:
        raise FeedError(
            f"expected a target of shape {output.shape}, as output {name!r} has; found {(None, *found)}. "
            + _advice_for(target, output)
            + _at(output)
        )
    floats = target if target.dtype.kind == "f" else target.astype(output.dtype)
    return floats.reshape(len(target), *expected)


def _check_between_0_and_1(target: Array, name: str) -> None:
    outside = (target < 0) | (target > 1)
    if outside.any():
        place = _first(outside)
        raise FeedError(
            f"expected labels from 0 to 1 as target {name!r}, for binary_crossentropy; "
            f"found {target[place]} at position {place}"
        )


def _first(mask: Array) -> tuple[int, ...]:
    return tuple(int(part) for part in np.unravel_index(int(mask.argmax()), mask.shape))
