"""The values that losses reduce: one for each sample, of nodes of true values and predictions.

The cross-entropies hold probabilities at least 1e-7 away from 0 and 1. Where these are the output of a softmax or
sigmoid, they compute with its logits instead (see `logits_of`): that is faster, and has no such limit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from miai_graph.context import warn_user
from miai_graph.errors import ArgumentError, ShapeError
from miai_graph.losses.loss import as_floats, same_rank
from miai_graph.messages import describe
from miai_graph.node import Node
from miai_graph.op import as_node
from miai_graph.ops.arithmetic import absolute, clip, square
from miai_graph.ops.casting import cast
from miai_graph.ops.comparisons import not_equal
from miai_graph.ops.elementwise import identity, where
from miai_graph.ops.nonlinear import log
from miai_graph.ops.reductions import logsumexp, mean
from miai_graph.ops.softmax import sigmoid_cross_entropy, softmax_cross_entropy, sparse_softmax_cross_entropy
from miai_graph.ops.structure import expand_dims, moveaxis, squeeze, sum
from miai_graph.types import normalize_axis

EPSILON = 1e-7
"""The distance from 0 and 1 at which probabilities are held."""


def logits_of(y_pred: Node, activation: str, **attributes: Any) -> Node | None:
    """What the node is the softmax or sigmoid of, if it is one; None otherwise.

    Parameters
    ----------
    activation : "softmax" or "sigmoid"
    attributes : those that the activation must have, such as its axis
    """
    while y_pred.op is identity:
        (y_pred,) = y_pred.inputs
    if y_pred.op.name != activation or dict(y_pred.attributes) != attributes:
        return None
    return y_pred.inputs[0]


def mean_squared_error(y_true: Any, y_pred: Any) -> Node:
    """The mean of (y_true - y_pred)² along the last axis."""
    target, prediction = _targets_and_predictions(y_true, y_pred)
    return mean(square(target - prediction), -1)


def mean_absolute_error(y_true: Any, y_pred: Any) -> Node:
    """The mean of abs(y_true - y_pred) along the last axis."""
    target, prediction = _targets_and_predictions(y_true, y_pred)
    return mean(absolute(target - prediction), -1)


def huber(y_true: Any, y_pred: Any, delta: float = 1.0) -> Node:
    """The mean of e² / 2 where abs(e) ≤ delta, else delta · abs(e) - delta² / 2, for e = y_pred - y_true.

    Source: Huber 1964, "Robust estimation of a location parameter", Annals of Mathematical Statistics 35.
    """
    target, prediction = _targets_and_predictions(y_true, y_pred)
    error = prediction - target
    size = absolute(error)
    return mean(where(size <= delta, 0.5 * square(error), delta * size - 0.5 * delta * delta), -1)


def binary_crossentropy(
    y_true: Any, y_pred: Any, from_logits: bool = False, label_smoothing: float = 0.0, axis: int = -1
) -> Node:
    """-y_true · log(p) - (1 - y_true) · log(1 - p), its mean along an axis.

    Parameters
    ----------
    y_true : labels from 0 to 1
    y_pred : probabilities p of 1, of the same shape, or their logits
    from_logits : whether y_pred are logits
    label_smoothing : how far, of the way from 0 to 1, labels are moved to 1/2

    Raises
    ------
    ShapeError
        if the shapes differ.
    """
    target, prediction = _targets_and_predictions(y_true, y_pred)
    _check_same_shape(target, prediction)
    target = _smoothed(target, label_smoothing, 2)
    logits = prediction if from_logits else logits_of(prediction, "sigmoid")
    if logits is not None:
        return mean(sigmoid_cross_entropy(logits, target), axis)
    probability = clip(prediction, EPSILON, 1.0 - EPSILON)
    return mean(-(target * log(probability) + (1.0 - target) * log(1.0 - probability)), axis)


def categorical_crossentropy(
    y_true: Any, y_pred: Any, from_logits: bool = False, label_smoothing: float = 0.0, axis: int = -1
) -> Node:
    """-Σ y_true · log(p) along an axis.

    Parameters
    ----------
    y_true : the true probabilities of the classes; rows of a single one as a rule
    y_pred : the predicted ones, of the same shape, which are divided by their sum; or their logits
    from_logits : whether y_pred are logits
    label_smoothing : how far, of the way from 0 to 1, the true ones are moved to equal ones
    axis : along which the classes lie

    Raises
    ------
    ShapeError
        if the shapes differ.
    """
    prediction = as_floats(y_pred)
    target = cast(as_node(y_true), prediction.dtype)
    _check_same_shape(target, prediction)
    place = normalize_axis(axis, prediction.ndim)
    classes = prediction.shape[place]
    if classes is None:
        raise ShapeError(f"expected classes along another axis than the batch; found axis {axis} of {prediction.type}")
    if classes == 1:
        warn_user(
            f"expected two classes or more; found one in {describe(prediction)}, of which the loss is always 0. "
            "Use binary_crossentropy for one probability",
            SyntaxWarning,
        )
    target = _smoothed(target, label_smoothing, classes)
    logits = prediction if from_logits else logits_of(prediction, "softmax", axis=place)
    if logits is not None:
        return softmax_cross_entropy(_with_last(logits, place), _with_last(target, place))
    return -sum(target * _log_probabilities(prediction, place), place)


def sparse_categorical_crossentropy(
    y_true: Any, y_pred: Any, from_logits: bool = False, ignore_class: int | None = None, axis: int = -1
) -> Node:
    """-log(p[y_true]) along an axis.

    Parameters
    ----------
    y_true : numbers of the true classes, […] or […, 1]
    y_pred : probabilities of the classes, […, classes], which are divided by their sum; or their logits
    from_logits : whether y_pred are logits
    ignore_class : samples with this number, which need not be a class, have a loss of 0
    axis : along which the classes lie

    A number that is no class raises when the graph runs.
    """
    prediction, labels = as_floats(y_pred), as_node(y_true)
    place = normalize_axis(axis, prediction.ndim)
    labels = _without_class_axis(labels, prediction, place)
    if not labels.type.is_integer or ignore_class is not None:
        labels = cast(labels, np.int64)
    logits = prediction if from_logits else logits_of(prediction, "softmax", axis=place)
    scores = prediction if logits is None else logits
    if ignore_class is not None:
        valid = is_counted(labels, prediction, ignore_class, place)
        labels = where(valid, labels, 0)
        # What is ignored may be nan, which a gradient of zero would not hide.
        scores = where(expand_dims(valid, place), scores, 1.0)
    if logits is not None:
        values = sparse_softmax_cross_entropy(_with_last(scores, place), labels)
    else:
        # Logarithms of probabilities are logits, but for the logarithm of the sum, which clipping moves from 0.
        rows = _log_probabilities(_with_last(scores, place), -1)
        values = sparse_softmax_cross_entropy(rows, labels) - logsumexp(rows, -1)
    return values if ignore_class is None else where(valid, values, 0.0)


def is_counted(y_true: Node, y_pred: Node, ignore_class: int, axis: int = -1) -> Node:
    """Which samples are of another class than the one to ignore, as bool."""
    labels = _without_class_axis(y_true, y_pred, normalize_axis(axis, y_pred.ndim))
    return not_equal(cast(labels, np.int64), ignore_class)


def kind_of_labels(y_true: Node, y_pred: Node) -> str:
    """ "binary", "sparse" or "categorical", by Keras's rule for an output's shape and that of its true values.

    One prediction a sample means a yes or no; fewer true values than predictions mean numbers of classes.
    """
    if y_pred.ndim == 1 or y_pred.shape[-1] == 1:
        return "binary"
    return "sparse" if y_true.ndim < y_pred.ndim or y_true.shape[-1] == 1 else "categorical"


def _targets_and_predictions(y_true: Any, y_pred: Any) -> tuple[Node, Node]:
    """Both with one dtype, and one rank where `same_rank` can do that."""
    prediction = as_floats(y_pred)
    return same_rank(cast(as_node(y_true), prediction.dtype), prediction)


def _check_same_shape(target: Node, prediction: Node) -> None:
    if target.type.shape != prediction.type.shape:
        raise ShapeError(
            "expected true values of the predictions' shape\n"
            f"  y_true: {describe(target)}\n  y_pred: {describe(prediction)}"
        )


def _smoothed(target: Node, amount: float, classes: int) -> Node:
    if not 0 <= amount <= 1:
        raise ArgumentError(f"expected a label_smoothing from 0 to 1; found {amount!r}")
    return target * (1.0 - amount) + amount / classes if amount else target


def _log_probabilities(prediction: Node, axis: int) -> Node:
    return log(clip(prediction / sum(prediction, axis, keepdims=True), EPSILON, 1.0 - EPSILON))


def _with_last(node: Node, place: int) -> Node:
    return node if place == node.ndim - 1 else moveaxis(node, place, -1)


def _without_class_axis(labels: Node, prediction: Node, place: int) -> Node:
    """Labels without the axis of length one that they may have in the place of the classes."""
    if labels.ndim == prediction.ndim and labels.type.shape[place] == 1:
        return squeeze(labels, place)
    return labels
