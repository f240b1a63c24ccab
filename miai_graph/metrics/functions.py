"""The values that accuracies are means of: whether each prediction is right."""

from __future__ import annotations

from typing import Any

import numpy as np

from miai_graph.errors import ArgumentError, ShapeError
from miai_graph.losses.loss import same_rank
from miai_graph.messages import describe
from miai_graph.node import Node
from miai_graph.op import as_node
from miai_graph.ops.casting import cast
from miai_graph.ops.comparisons import equal, greater, less_equal, logical_not
from miai_graph.ops.elementwise import where
from miai_graph.ops.indexing import one_hot
from miai_graph.ops.reductions import argmax, max
from miai_graph.ops.structure import expand_dims, squeeze, sum


def accuracy(y_true: Any, y_pred: Any) -> Node:
    """1 where a prediction equals the true value, else 0."""
    return _matches(*same_rank(as_node(y_true), as_node(y_pred)))


def binary_accuracy(y_true: Any, y_pred: Any, threshold: float = 0.5) -> Node:
    """1 where y_true is 1 and y_pred above the threshold, or y_true 0 and y_pred not above; else 0."""
    target, prediction = same_rank(as_node(y_true), as_node(y_pred))
    return _matches(target, greater(prediction, threshold))


def categorical_accuracy(y_true: Any, y_pred: Any) -> Node:
    """1 where the greatest of y_pred stands where the greatest of y_true does, along the last axis, else 0."""
    target, prediction = as_node(y_true), as_node(y_pred)
    _check_shapes(target, prediction)
    return _matches(argmax(target, -1), argmax(prediction, -1))


def sparse_categorical_accuracy(y_true: Any, y_pred: Any) -> Node:
    """1 where the greatest of y_pred along the last axis is that of the class y_true, […] or […, 1]; else 0."""
    prediction = as_node(y_pred)
    return _matches(_class_numbers(y_true, prediction), argmax(prediction, -1))


def top_k_categorical_accuracy(y_true: Any, y_pred: Any, k: int = 5) -> Node:
    """1 where fewer than k classes are above the one that is greatest in y_true, else 0."""
    target, prediction = as_node(y_true), as_node(y_pred)
    _check_shapes(target, prediction)
    return sparse_top_k_categorical_accuracy(argmax(target, -1), prediction, k)


def sparse_top_k_categorical_accuracy(y_true: Any, y_pred: Any, k: int = 5, from_sorted_ids: bool = False) -> Node:
    """1 where fewer than k classes are above the class y_true, […] or […, 1]; else 0.

    Parameters
    ----------
    from_sorted_ids : y_pred are numbers of classes, the most likely first, of which y_true must be among the first k
    """
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ArgumentError(f"expected an integer of at least 1 as k; found {k!r}")
    prediction = as_node(y_pred)
    classes = prediction.shape[-1]
    if classes is None:
        raise ShapeError(f"expected classes along the last axis; found {describe(prediction)}")
    labels = _class_numbers(y_true, prediction)
    if from_sorted_ids:
        return max(_floats(equal(expand_dims(labels, -1), prediction[..., :k])), -1)
    chosen = one_hot(cast(labels, np.int64), classes, bool)
    score = sum(where(chosen, prediction, 0.0), -1, keepdims=True)
    # Not "greater": what is nan counts as above.
    above = sum(logical_not(less_equal(prediction, score)), -1)
    return _floats(above < k)


def _floats(matches: Node) -> Node:
    return cast(matches, np.float32)


def _matches(target: Node, prediction: Node) -> Node:
    _check_shapes(target, prediction)
    return _floats(equal(target, prediction))


def _check_shapes(target: Node, prediction: Node) -> None:
    if target.type.shape != prediction.type.shape:
        raise ShapeError(
            f"expected a true value for each prediction\n  y_true: {describe(target)}\n  y_pred: {describe(prediction)}"
        )


def _class_numbers(y_true: Any, prediction: Node) -> Node:
    target = as_node(y_true)
    return squeeze(target, -1) if target.ndim == prediction.ndim and target.shape[-1] == 1 else target
