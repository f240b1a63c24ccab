"""Changing dtypes, and agreeing on one. Closed under vjp: cast ↔ cast."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from miai_graph.node import Node, apply
from miai_graph.op import Array, Op, as_array, as_node, elementwise_cost, register, register_function
from miai_graph.placement import (
    elementwise,
)
from miai_graph.types import (
    TensorType,
    as_dtype,
)

PLAIN = (bool, int, float)

Kind = np.dtype[Any] | type
"""What decides on a common dtype: a dtype, or that of Python's types of numbers that a value is of."""


class Cast(Op):
    """Change the dtype: y = x as dtype.

    Shapes: x any; y the same.
    Gradient: dx = g cast back, between floating dtypes; zero to and from integers and bool.
    Cost: one flop an element.
    Batch: element-wise.
    Care: floats are cut toward zero when they become integers, as in NumPy; NaN becomes an unspecified integer.
    """

    name = "cast"

    def infer(self, x: TensorType, *, dtype: np.dtype[Any]) -> TensorType:
        return x.with_dtype(dtype)

    def forward(self, x: Array, *, dtype: np.dtype[Any]) -> Array:
        return x.astype(dtype)

    def vjp(self, g: Node, output: Node, x: Node, *, dtype: np.dtype[Any]) -> Sequence[Node | None]:
        return [cast(g, x.dtype) if x.type.is_floating and output.type.is_floating else None]

    cost = elementwise_cost(1)
    batch = staticmethod(elementwise)


_cast = register(Cast())


@register_function
def cast(x: Any, dtype: Any) -> Node:
    """The elements of x as another dtype; x itself if it has that dtype already."""
    node = as_node(x)
    target = as_dtype(dtype)
    return node if node.dtype == target else apply(_cast, [node], {"dtype": target})


def promoted(values: Sequence[Any]) -> list[Node]:
    """The values as nodes of one dtype, by NumPy 2's rules: Python numbers take the dtype of the others.

    Python numbers among themselves become float32 and int64.
    """
    kinds = tuple(map(_kind_of, values))
    if all(isinstance(kind, type) for kind in kinds):
        return [as_node(value) for value in values]
    target = _common_dtype(kinds)
    return [cast(value if isinstance(value, Node) else as_node(value, target), target) for value in values]


def _kind_of(value: Any) -> Kind:
    if isinstance(value, Node):
        return value.dtype
    return type(value) if type(value) in PLAIN else as_array(value).dtype


@functools.cache
def _common_dtype(kinds: tuple[Kind, ...]) -> np.dtype[Any]:
    return as_dtype(np.result_type(*(kind() if isinstance(kind, type) else kind for kind in kinds)))
