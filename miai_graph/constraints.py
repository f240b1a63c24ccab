"""Conditions that weights are held to after each update: Keras's constraints, as functions from a node to a node.

>>> kernel = mg.parameter(...)
>>> updates = {kernel: constraints.MaxNorm(3.0)(kernel - 0.1 * gradient)}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from miai_graph.errors import ArgumentError
from miai_graph.node import Node
from miai_graph.ops.arithmetic import clip, maximum, square
from miai_graph.ops.nonlinear import sqrt
from miai_graph.ops.reductions import as_float_node
from miai_graph.ops.structure import sum
from miai_graph.registry import Configurable, Registry

EPSILON = 1e-7
"""What is added to a norm before dividing by it."""

Axis = int | Sequence[int]


class Constraint(Configurable):
    """What all have in common. A subclass defines `__call__`."""

    def __call__(self, weights: Any) -> Node:
        """The weights, changed to fit: a node of the same type."""
        raise NotImplementedError(f"{type(self).__name__} has no method __call__(weights)")


_registry = Registry("a constraint", Constraint)
get = _registry.get
serialize = _registry.serialize


@_registry.register
class NonNeg(Constraint):
    """Weights below 0 become 0."""

    def __call__(self, weights: Any) -> Node:
        return maximum(as_float_node(weights), 0.0)


@_registry.register
class UnitNorm(Constraint):
    """The weights of each unit are scaled to a Euclidean norm of 1.

    Parameters
    ----------
    axis : the axes that a unit's weights lie along: 0 for a Dense kernel, [0, 1, 2] for that of a two-dimensional
        convolution
    """

    def __init__(self, axis: Axis = 0) -> None:
        self.axis = axis

    def __call__(self, weights: Any) -> Node:
        node = as_float_node(weights)
        return node / (EPSILON + _norms(node, self.axis))


@_registry.register
class MinMaxNorm(Constraint):
    """The weights of each unit are scaled to a Euclidean norm between two bounds, or some of the way there.

    Parameters
    ----------
    min_value, max_value : the bounds
    rate : how much of the way, from 0 to 1
    axis : as for `UnitNorm`
    """

    def __init__(self, min_value: float = 0.0, max_value: float = 1.0, rate: float = 1.0, axis: Axis = 0) -> None:
        self.min_value, self.max_value = _bounds(min_value, max_value)
        if not 0 <= rate <= 1:
            raise ArgumentError(f"expected a rate from 0 to 1; found {rate!r}")
        self.rate = float(rate)
        self.axis = axis

    def __call__(self, weights: Any) -> Node:
        node = as_float_node(weights)
        norms = _norms(node, self.axis)
        wanted = clip(norms, self.min_value, self.max_value)
        if self.rate != 1:
            wanted = self.rate * wanted + (1.0 - self.rate) * norms
        return node * (wanted / (EPSILON + norms))


@_registry.register
class MaxNorm(Constraint):
    """The weights of each unit are scaled down to a Euclidean norm of at most `max_value`.

    Parameters
    ----------
    max_value : the bound
    axis : as for `UnitNorm`

    Source: Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting", section 5.1.
    """

    def __init__(self, max_value: float = 2, axis: Axis = 0) -> None:
        _, self.max_value = _bounds(0.0, max_value)
        self.axis = axis

    def __call__(self, weights: Any) -> Node:
        return MinMaxNorm(0.0, self.max_value, axis=self.axis)(weights)


def _norms(node: Node, axis: Axis) -> Node:
    return sqrt(sum(square(node), axis, keepdims=True))


def _bounds(low: float, high: float) -> tuple[float, float]:
    if not 0 <= low <= high:
        raise ArgumentError(f"expected bounds of a norm, 0 or above, the lower one first; found {low!r} and {high!r}")
    # As Python's floats, which take the dtype of the weights; NumPy's would impose theirs.
    return float(low), float(high)


max_norm, min_max_norm, non_neg, unit_norm = MaxNorm, MinMaxNorm, NonNeg, UnitNorm
