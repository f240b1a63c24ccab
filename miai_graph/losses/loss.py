"""What a loss is: values of the samples, weighted and reduced to one number by Keras's rules."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from miai_graph.context import name_scope
from miai_graph.errors import ArgumentError
from miai_graph.node import Node
from miai_graph.op import as_node
from miai_graph.ops.casting import cast
from miai_graph.ops.comparisons import equal
from miai_graph.ops.elementwise import where
from miai_graph.ops.reductions import mean
from miai_graph.ops.structure import expand_dims, squeeze, sum
from miai_graph.registry import Configurable
from miai_graph.types import as_dtype

REDUCTIONS = ("sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none", None)


class Loss(Configurable):
    """What all have in common. A subclass defines `call`.

    Parameters
    ----------
    name : its scope in pictures and tables; made from the class's name if None
    reduction : how the values become one. "sum_over_batch_size" and "mean", which are the same, divide the sum of the
        values times their weights by the number of values; "mean_with_sample_weight" by the sum of the weights; "sum"
        does not divide; "none" and None keep the values apart
    dtype : what predictions are cast to; None keeps theirs

    Raises
    ------
    ArgumentError
        for another reduction.
    """

    def __init__(
        self, name: str | None = None, reduction: str | None = "sum_over_batch_size", dtype: Any = None
    ) -> None:
        if reduction not in REDUCTIONS:
            raise ArgumentError(f"expected one of the reductions {REDUCTIONS}; found {reduction!r}")
        self.name = name or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower()
        self.reduction = reduction
        self.dtype = None if dtype is None else as_dtype(dtype).name

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Node:
        """The loss of a batch: a scalar node, unless the reduction is None.

        Parameters
        ----------
        sample_weight : what each value counts; of the values' shape, or one that broadcasts to it
        """
        with name_scope(self.name):
            prediction = as_floats(y_pred)
            prediction = prediction if self.dtype is None else cast(prediction, self.dtype)
            target = self.as_target(as_node(y_true), prediction)
            values = as_node(self.call(target, prediction))
            return reduce_weighted(values, sample_weight, self.mask(target, prediction), self.reduction)

    def call(self, y_true: Node, y_pred: Node) -> Node:
        """The values of the samples."""
        raise NotImplementedError(f"{type(self).__name__} has no method call(y_true, y_pred)")

    def as_target(self, y_true: Node, y_pred: Node) -> Node:
        """The true values as `call` gets them: of the predictions' dtype."""
        return cast(y_true, y_pred.dtype)

    def mask(self, y_true: Node, y_pred: Node) -> Node | None:
        """Which values count, as bool of their shape; None: all of them. The others are not in the mean's divisor."""
        return None


def reduce_weighted(values: Node, sample_weight: Any, mask: Node | None, reduction: str | None) -> Node:
    """Values times weights, reduced as `Loss` says; only those count for which `mask` holds."""
    weights = None if sample_weight is None else cast(as_node(sample_weight), values.dtype)
    if mask is not None:
        counted = cast(mask, values.dtype)
        if weights is not None:
            counted, weights = same_rank(counted, weights)
        weights = counted if weights is None else weights * counted
    if weights is not None:
        values, weights = same_rank(values, weights)
        values = values * weights
    if reduction in ("none", None) or not values.type.shape:
        return values
    if reduction == "sum":
        return sum(values)
    if reduction == "mean_with_sample_weight" and weights is not None:
        return divided_or_zero(sum(values), sum(weights))
    if mask is not None:
        return divided_or_zero(sum(values), sum(cast(mask, values.dtype)))
    return mean(values)


def divided_or_zero(total: Node, divisor: Node) -> Node:
    """The quotient; 0 for a divisor of 0."""
    zero = equal(divisor, 0.0)
    return where(zero, 0.0, total / where(zero, 1.0, divisor))


def same_rank(a: Node, b: Node) -> tuple[Node, Node]:
    """Two nodes, of which one has a last axis of length one more than the other: [B] and [B,1] both become [B,1].

    If the shorter has another rank than 1, that axis is dropped instead. Other nodes stay as they are.
    """
    if a.ndim == b.ndim + 1 and a.type.shape[-1] == 1:
        return (a, expand_dims(b, -1)) if b.ndim == 1 else (squeeze(a, -1), b)
    if b.ndim == a.ndim + 1 and b.type.shape[-1] == 1:
        return (expand_dims(a, -1), b) if a.ndim == 1 else (a, squeeze(b, -1))
    return a, b


def as_floats(value: Any) -> Node:
    """The value as a node of floats: float32, unless it has floats already."""
    node = as_node(value)
    return node if node.type.is_floating else cast(node, np.float32)
