"""Penalties on weights or outputs: Keras's regularizers, as functions from a node to a scalar node.

>>> penalty = regularizers.L2(0.001)(kernel)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from miai_graph.errors import ArgumentError, ShapeError
from miai_graph.node import Node
from miai_graph.op import as_node
from miai_graph.ops.arithmetic import absolute, maximum, square
from miai_graph.ops.linalg import matmul
from miai_graph.ops.nonlinear import rsqrt
from miai_graph.ops.reductions import as_float_node
from miai_graph.ops.structure import full, sum, transpose
from miai_graph.registry import Configurable, Registry
from miai_graph.types import int_dims

EPSILON = 1e-7
"""The least norm that a row is divided by."""


class Regularizer(Configurable):
    """What all have in common. A subclass defines `__call__`."""

    def __call__(self, x: Any) -> Node:
        """The penalty, a scalar node of x's dtype."""
        raise NotImplementedError(f"{type(self).__name__} has no method __call__(x)")


_registry = Registry("a regularizer", Regularizer)
get = _registry.get
serialize = _registry.serialize


@_registry.register
class L1(Regularizer):
    """l1 · Σ abs(x)."""

    def __init__(self, l1: float = 0.01) -> None:
        self.l1 = _factor("l1", 0.01 if l1 is None else l1)

    def __call__(self, x: Any) -> Node:
        return self.l1 * sum(absolute(as_float_node(x)))


@_registry.register
class L2(Regularizer):
    """l2 · Σ x²."""

    def __init__(self, l2: float = 0.01) -> None:
        self.l2 = _factor("l2", 0.01 if l2 is None else l2)

    def __call__(self, x: Any) -> Node:
        return self.l2 * sum(square(as_float_node(x)))


@_registry.register
class L1L2(Regularizer):
    """l1 · Σ abs(x) + l2 · Σ x²."""

    def __init__(self, l1: float = 0.0, l2: float = 0.0) -> None:
        self.l1 = _factor("l1", l1 or 0.0)
        self.l2 = _factor("l2", l2 or 0.0)

    def __call__(self, x: Any) -> Node:
        node = as_float_node(x)
        if self.l1 and self.l2:
            return L1(self.l1)(node) + L2(self.l2)(node)
        if self.l1:
            return L1(self.l1)(node)
        return L2(self.l2)(node) if self.l2 else full((), 0.0, node.dtype)


@_registry.register
class OrthogonalRegularizer(Regularizer):
    """factor times the mean absolute cosine of the angles between each two rows of a matrix, or each two columns.

    Parameters
    ----------
    factor : a number of at least 0
    mode : "rows" or "columns"
    """

    def __init__(self, factor: float = 0.01, mode: str = "rows") -> None:
        if mode not in ("rows", "columns"):
            raise ArgumentError(f"expected mode 'rows' or 'columns'; found {mode!r}")
        self.factor = _factor("factor", factor)
        self.mode = mode

    def __call__(self, x: Any) -> Node:
        node = as_float_node(x)
        if node.ndim != 2 or node.type.batch_axes:
            raise ShapeError(f"expected a matrix without the batch, for OrthogonalRegularizer; found {node.type}")
        rows = node if self.mode == "rows" else transpose(node)
        count, _ = int_dims(rows.type.shape)
        if count < 2:
            return full((), 0.0, node.dtype)
        # The bound goes under the root, where it keeps the gradient at a row of zeros finite.
        unit = rows * rsqrt(maximum(sum(square(rows), 1, keepdims=True), EPSILON**2))
        between = as_node(1.0 - np.eye(count), node.dtype)
        return self.factor / (count * (count - 1)) * sum(absolute(matmul(unit, transpose(unit)) * between))


def _factor(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 <= value < math.inf:
        raise ArgumentError(f"expected a finite number of at least 0 as {name}; found {value!r}")
    return float(value)


l1, l2, l1_l2, orthogonal_regularizer = L1, L2, L1L2, OrthogonalRegularizer
