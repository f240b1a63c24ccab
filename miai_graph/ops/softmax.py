"""Softmax, its logarithm, and the cross-entropies that take logits, all safe for logits of any size.

Closed under vjp over `structure`, `elementwise`, `reductions`, `indexing` and this file. For the algorithms see
Blanchard, Higham and Higham 2021, "Accurately computing the log-sum-exp and softmax functions".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from miai_graph.errors import DTypeError, ShapeError
from miai_graph.messages import locates_errors
from miai_graph.node import Node
from miai_graph.op import Array, Cost, Op, as_node, elementwise_cost, moved_bytes, register
from miai_graph.ops.casting import cast, promoted
from miai_graph.ops.elementwise import ElementwiseOp
from miai_graph.ops.indexing import as_index_node, one_hot
from miai_graph.ops.nonlinear import exp, sigmoid
from miai_graph.ops.reductions import along_other_axes, as_float_node, logsumexp
from miai_graph.ops.structure import expand_dims, sum
from miai_graph.placement import Placement, elementwise
from miai_graph.types import TensorType, format_shape, normalize_axis


class AlongAxis(Op):
    """What softmax and log_softmax have in common: floats, mixed along one axis only."""

    def infer(self, x: TensorType, *, axis: int) -> TensorType:
        if not x.is_floating:
            raise DTypeError(f"expected floats; found {x}")
        return x

    cost = elementwise_cost(5)

    def batch(
        self, placements: Sequence[Placement], output: TensorType, *types: TensorType, axis: int
    ) -> Placement | None:
        return along_other_axes(placements, output, [axis])


class Softmax(AlongAxis):
    """Exponentials divided by their sum: y = exp(x) / Σ exp(x) along an axis.

    Shapes: x any, floating; y the same; sums to 1 along `axis`.
    Gradient: dx = y · (g - Σ g · y).
    Cost: five flops an element.
    Batch: passes along other axes (the function `softmax` builds a composition for the batch axis).
    Care: the greatest is taken out first, so nothing overflows.
    """

    name = "softmax"

    def forward(self, x: Array, *, axis: int) -> Array:
        exponentials = np.exp(x - x.max(axis=axis, keepdims=True, initial=-np.inf))
        return exponentials / exponentials.sum(axis=axis, keepdims=True)

    def vjp(self, g: Node, output: Node, x: Node, *, axis: int) -> Sequence[Node | None]:
        return [output * (g - sum(g * output, axis, keepdims=True))]


class LogSoftmax(AlongAxis):
    """Logarithm of softmax: y = x - log Σ exp(x) along an axis.

    Shapes: x any, floating; y the same.
    Gradient: dx = g - exp(y) · Σ g.
    Cost: five flops an element.
    Batch: passes along other axes (the function `log_softmax` builds a composition for the batch axis).
    Care: the greatest is taken out first, so nothing overflows and no logarithm of zero is taken.
    """

    name = "log_softmax"

    def forward(self, x: Array, *, axis: int) -> Array:
        shifted = x - x.max(axis=axis, keepdims=True, initial=-np.inf)
        return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))

    def vjp(self, g: Node, output: Node, x: Node, *, axis: int) -> Sequence[Node | None]:
        return [g - exp(output) * sum(g, axis, keepdims=True)]


_softmax = register(Softmax())
_log_softmax = register(LogSoftmax())


@locates_errors
def softmax(x: Any, axis: int = -1) -> Node:
    """Exponentials divided by their sum along an axis, the last by default. Safe for large x."""
    node = as_float_node(x)
    place = normalize_axis(axis, node.ndim)
    if place in node.type.batch_axes:
        return exp(node - logsumexp(node, place, keepdims=True))
    return _softmax(node, axis=place)


@locates_errors
def log_softmax(x: Any, axis: int = -1) -> Node:
    """The logarithm of softmax along an axis, the last by default. Safe for large x."""
    node = as_float_node(x)
    place = normalize_axis(axis, node.ndim)
    if place in node.type.batch_axes:
        return node - logsumexp(node, place, keepdims=True)
    return _log_softmax(node, axis=place)


class SparseSoftmaxCrossEntropy(Op):
    """Cross-entropy of one class a row, from logits: y = log Σ exp(x) - x[label].

    Shapes: logits […, classes], floating; labels […], integers from 0 to classes - 1; y […].
    Gradient: d logits = g · (softmax(logits) - one_hot(labels)); labels have none.
    Cost: five flops an element of logits.
    Batch: passes along the leading axes.
    Care: safe for logits of any size; a label outside raises when the graph runs.
    """

    name = "sparse_softmax_cross_entropy"

    def infer(self, logits: TensorType, labels: TensorType) -> TensorType:
        _check_logits(logits)
        if not labels.is_integer:
            raise DTypeError(
                f"expected integers as labels; found {labels}. For rows of probabilities use the dense loss"
            )
        if labels.shape != logits.shape[:-1]:
            raise ShapeError(
                f"expected a label for each row of logits, {format_shape(logits.shape[:-1])}; "
                f"found {format_shape(labels.shape)}"
            )
        return logits.with_shape(labels.shape)

    def forward(self, logits: Array, labels: Array) -> Array:
        check_labels(labels, logits.shape[-1])
        shifted = logits - logits.max(axis=-1, keepdims=True, initial=-np.inf)
        chosen = np.take_along_axis(shifted, labels[..., None], -1)[..., 0]
        return np.asarray(np.log(np.exp(shifted).sum(axis=-1)) - chosen)

    def vjp(self, g: Node, output: Node, logits: Node, labels: Node) -> Sequence[Node | None]:
        classes = logits.shape[-1]
        assert classes is not None
        difference = softmax(logits) - one_hot(labels, classes, logits.dtype)
        return [expand_dims(g, -1) * difference, None]

    def cost(self, output: TensorType, logits: TensorType, labels: TensorType) -> Cost:
        return Cost(5 * logits.size, moved_bytes(output, logits, labels))

    def batch(self, placements: Sequence[Placement], output: TensorType, *types: TensorType) -> Placement | None:
        return elementwise(placements, output)


def _check_logits(logits: TensorType) -> None:
    if not logits.is_floating:
        raise DTypeError(f"expected floats as logits; found {logits}")
    if logits.rank < 1 or logits.shape[-1] == 0 or logits.rank - 1 in logits.batch_axes:
        raise ShapeError(f"expected at least one class along the last axis of the logits; found {logits}")


def check_labels(labels: Array, classes: int) -> None:
    """Raise ``ValueError`` naming the first label that is no class, and where it stands."""
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        place = np.unravel_index(int(outside.argmax()), outside.shape)
        raise ValueError(
            f"expected labels from 0 to {classes - 1}, for there are {classes} classes; found {labels[place]} "
            f"at position {tuple(int(part) for part in place)}"
        )


class SoftmaxCrossEntropy(Op):
    """Cross-entropy of a row of probabilities, from logits: y = -Σ p · log_softmax(x).

    Shapes: logits […, classes], floating; probabilities p the same, need not sum to 1; y […].
    Gradient: d logits = g · (softmax(logits) · Σ p - p); dp = -g · log_softmax(logits).
    Cost: seven flops an element of logits.
    Batch: passes along the leading axes.
    Care: safe for logits of any size; 0 · -inf does not occur for finite logits.
    """

    name = "softmax_cross_entropy"

    def infer(self, logits: TensorType, probabilities: TensorType) -> TensorType:
        _check_logits(logits)
        if probabilities.shape != logits.shape or probabilities.dtype != logits.dtype:
            raise ShapeError(f"expected probabilities of the logits' type {logits}; found {probabilities}")
        return logits.with_shape(logits.shape[:-1])

    def forward(self, logits: Array, probabilities: Array) -> Array:
        shifted = logits - logits.max(axis=-1, keepdims=True, initial=-np.inf)
        log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
        return np.asarray(-(probabilities * log_probabilities).sum(axis=-1))

    def vjp(self, g: Node, output: Node, logits: Node, probabilities: Node) -> Sequence[Node | None]:
        spread = expand_dims(g, -1)
        total = sum(probabilities, -1, keepdims=True)
        return [spread * (softmax(logits) * total - probabilities), -spread * log_softmax(logits)]

    def cost(self, output: TensorType, logits: TensorType, probabilities: TensorType) -> Cost:
        return Cost(7 * logits.size, moved_bytes(output, logits, probabilities))

    def batch(self, placements: Sequence[Placement], output: TensorType, *types: TensorType) -> Placement | None:
        return elementwise(placements, output)


def _sigmoid_cross_entropy(logits: Array, labels: Array) -> Array:
    zero = np.zeros((), logits.dtype)
    return np.maximum(logits, zero) - logits * labels + np.log1p(np.exp(-np.abs(logits)))


class SigmoidCrossEntropy(ElementwiseOp):
    """Cross-entropy of independent yes-or-no labels, from logits: y = max(x, 0) - x · z + log(1 + exp(-abs(x))).

    Shapes: logits x and labels z broadcast together, floating; y their common shape.
    Gradient: dx = g · (sigmoid(x) - z); dz = -g · x.
    Cost: eight flops an element.
    Batch: element-wise.
    Care: safe for logits of any size. Labels may lie anywhere between 0 and 1, and are not checked.
    """

    name = "sigmoid_cross_entropy"
    arity = 2
    accepts = "f"
    function = _sigmoid_cross_entropy
    cost = elementwise_cost(8)

    def vjp(self, g: Node, output: Node, logits: Node, labels: Node) -> Sequence[Node | None]:
        return [g * (sigmoid(logits) - labels), -g * logits]


_sparse_softmax_cross_entropy = register(SparseSoftmaxCrossEntropy())
_softmax_cross_entropy = register(SoftmaxCrossEntropy())
sigmoid_cross_entropy = register(SigmoidCrossEntropy())


@locates_errors
def sparse_softmax_cross_entropy(logits: Any, labels: Any) -> Node:
    """The cross-entropy of each row of logits with its one class, […] for logits […, classes]."""
    return _sparse_softmax_cross_entropy(as_node(logits), as_index_node(labels))


@locates_errors
def softmax_cross_entropy(logits: Any, probabilities: Any) -> Node:
    """The cross-entropy of each row of logits with a row of probabilities, […] for logits […, classes]."""
    x, p = promoted([logits, probabilities])
    return _softmax_cross_entropy(x, cast(p, x.dtype))
