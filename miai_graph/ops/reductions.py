"""Reductions other than the sum: extremes, means, logarithms of sums, positions.

Closed under vjp over `structure`, `elementwise` and this file. Mean and variance are compositions of sums and counts,
so that they are right on any part of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from miai_graph.errors import DTypeError, ShapeError
from miai_graph.node import Node, functions
from miai_graph.op import Array, Cost, Op, as_node, moved_bytes, no_derivative, register, register_function
from miai_graph.ops.casting import cast
from miai_graph.ops.comparisons import equal, isfinite
from miai_graph.ops.elementwise import stop_gradient, where
from miai_graph.ops.leaves import batch_size
from miai_graph.ops.nonlinear import exp, log
from miai_graph.ops.special import squared_deviation
from miai_graph.ops.structure import reduction_placement, restore_axes, sum, without_axes
from miai_graph.placement import Placement, Split, Unsplittable, elementwise
from miai_graph.types import BatchDim, ElementCount, Shape, TensorType, normalize_axes, normalize_axis

Axes = int | Sequence[int] | None


class Extreme(Op):
    """What max and min have in common."""

    def infer(self, x: TensorType, *, axes: tuple[int, ...]) -> TensorType:
        if any(x.shape[axis] == 0 for axis in axes):
            raise ShapeError(f"expected at least one element along axes {axes}; found {x}")
        return x.with_shape(without_axes(x.shape, axes))

    def vjp(self, g: Node, output: Node, x: Node, *, axes: tuple[int, ...]) -> Sequence[Node | None]:
        shape = x.type.shape
        winners = cast(equal(x, restore_axes(output, shape, axes)), x.dtype)
        shares = winners / sum(winners, axes, keepdims=True)
        return [restore_axes(g, shape, axes) * shares if x.type.is_floating else None]

    def cost(self, output: TensorType, x: TensorType, **_: Any) -> Cost:
        return Cost(x.size, moved_bytes(output, x))

    def batch(
        self, placements: Sequence[Placement], output: TensorType, *types: TensorType, axes: tuple[int, ...]
    ) -> Placement | None:
        return reduction_placement(self.name, placements, output, axes)


class Max(Extreme):
    """The greatest element along axes: y = max x.

    Shapes: x any, with at least one element along `axes`; y has x's shape without them.
    Gradient: dx = g at the greatest, in equal shares where several are; 0 elsewhere.
    Cost: one flop an element of x.
    Batch: over the batch axis a maximum is owed.
    Care: nan if any is.
    """

    name = "max"

    def forward(self, x: Array, *, axes: tuple[int, ...]) -> Array:
        return np.asarray(x.max(axis=axes))


class Min(Extreme):
    """The least element along axes: y = min x.

    Shapes: x any, with at least one element along `axes`; y has x's shape without them.
    Gradient: dx = g at the least, in equal shares where several are; 0 elsewhere.
    Cost: one flop an element of x.
    Batch: over the batch axis a minimum is owed.
    Care: nan if any is.
    """

    name = "min"

    def forward(self, x: Array, *, axes: tuple[int, ...]) -> Array:
        return np.asarray(x.min(axis=axes))


_max = register(Max())
_min = register(Min())


@register_function
def max(x: Any, axis: Axes = None, *, keepdims: bool = False) -> Node:
    """The greatest along one axis, several, or all (None), as `numpy.max`."""
    return _reduce(_max, x, axis, keepdims)


@register_function
def min(x: Any, axis: Axes = None, *, keepdims: bool = False) -> Node:
    """The least along one axis, several, or all (None), as `numpy.min`."""
    return _reduce(_min, x, axis, keepdims)


amax = max
amin = min
functions["amax"], functions["amin"] = max, min


def _reduce(op: Op, x: Any, axis: Axes, keepdims: bool) -> Node:
    node = as_node(x)
    axes = normalize_axes(axis, node.ndim)
    result = op(node, axes=axes)
    return restore_axes(result, node.type.shape, axes) if keepdims else result


def element_count(shape: Shape, axes: Sequence[int], dtype: np.dtype[Any], samples: Node | None = None) -> Any:
    """The number of elements along the axes: a number, or a node of the dtype where the batch is among them.

    Parameters
    ----------
    samples : how many samples there are; None: as many as in the whole batch
    """
    count = ElementCount.of(tuple(shape[axis] for axis in axes))
    if not count.power:
        return float(count.factor)
    return cast(count.factor * (batch_size() if samples is None else samples) ** count.power, dtype)


@register_function
def mean(x: Any, axis: Axes = None, *, keepdims: bool = False) -> Node:
    """The arithmetic mean along one axis, several, or all (None), as `numpy.mean`.

    Integers and bool give float64, as in NumPy. The mean of no elements is nan.
    """
    node = as_node(x)
    if not node.type.is_floating:
        node = cast(node, np.float64)
    axes = normalize_axes(axis, node.ndim)
    return sum(node, axes, keepdims=keepdims) / element_count(node.type.shape, axes, node.dtype)


@register_function
def var(x: Any, axis: Axes = None, *, ddof: int = 0, keepdims: bool = False) -> Node:
    """The variance along one axis, several, or all (None), as `numpy.var`.

    Computed in two passes, from the squares of the differences to the mean, so that it is never negative.

    Parameters
    ----------
    ddof : what is taken from the number of elements before dividing by it; only along axes of known lengths if not 0
    """
    node = as_node(x)
    if not node.type.is_floating:
        node = cast(node, np.float64)
    axes = normalize_axes(axis, node.ndim)
    squares = squared_deviation(node, mean(node, axes, keepdims=True))
    if ddof == 0:
        return mean(squares, axes, keepdims=keepdims)
    dims = [node.type.shape[place] for place in axes]
    if any(isinstance(dim, BatchDim) for dim in dims):
        raise ShapeError(f"var: expected ddof=0 along the batch axis; found ddof={ddof}")
    count = math.prod(dim for dim in dims if not isinstance(dim, BatchDim)) - ddof
    return sum(squares, axes, keepdims=keepdims) / (float(count) if count > 0 else 0.0)


class LogSumExp(Op):
    """Logarithm of the sum of exponentials: y = log Σ exp(x).

    Shapes: x any, floating; y has x's shape without `axes`. The value for no elements is -inf.
    Gradient: dx = g · exp(x - y).
    Cost: four flops an element of x.
    Batch: passes if the batch axis is not among `axes` (the function `logsumexp` builds a composition then).
    Care: the greatest is taken out first, so nothing overflows; all -inf gives -inf, any inf gives inf.
    Source: Blanchard, Higham and Higham 2021, "Accurately computing the log-sum-exp and softmax functions", section 2.
    """

    name = "logsumexp"

    def infer(self, x: TensorType, *, axes: tuple[int, ...]) -> TensorType:
        if not x.is_floating:
            raise DTypeError(f"expected floats; found {x}")
        return x.with_shape(without_axes(x.shape, axes))

    def forward(self, x: Array, *, axes: tuple[int, ...]) -> Array:
        greatest = np.max(x, axis=axes, keepdims=True, initial=-np.inf)
        shift = np.where(np.isfinite(greatest), greatest, 0).astype(x.dtype)
        total = np.exp(x - shift).sum(axis=axes, keepdims=True)
        return np.asarray((np.log(total) + shift).squeeze(axis=axes))

    def vjp(self, g: Node, output: Node, x: Node, *, axes: tuple[int, ...]) -> Sequence[Node | None]:
        shape = x.type.shape
        return [restore_axes(g, shape, axes) * exp(x - restore_axes(output, shape, axes))]

    def cost(self, output: TensorType, x: TensorType, **_: Any) -> Cost:
        return Cost(4 * x.size, moved_bytes(output, x))

    def batch(
        self, placements: Sequence[Placement], output: TensorType, *types: TensorType, axes: tuple[int, ...]
    ) -> Placement | None:
        return along_other_axes(placements, output, axes)


def along_other_axes(placements: Sequence[Placement], output: TensorType, axes: Sequence[int]) -> Placement | None:
    """The batch rule of ops that mix the elements along `axes` and leave the other axes apart."""
    if any(isinstance(placement, Split) and placement.axis in axes for placement in placements):
        return Unsplittable("it mixes the samples of the batch")
    return elementwise(placements, output)


_logsumexp = register(LogSumExp())


@register_function
def logsumexp(x: Any, axis: Axes = None, *, keepdims: bool = False) -> Node:
    """log Σ exp(x) along one axis, several, or all (None), as `scipy.special.logsumexp`; safe for large x."""
    node = as_float_node(x)
    axes = normalize_axes(axis, node.ndim)
    if set(axes) & set(node.type.batch_axes):
        greatest = stop_gradient(max(node, axes, keepdims=True))
        shift = where(isfinite(greatest), greatest, 0.0)
        total = log(sum(exp(node - shift), axes, keepdims=True)) + shift
        return total if keepdims else total.reshape(without_axes(node.type.shape, axes))
    return _reduce(_logsumexp, node, axes, keepdims)


def as_float_node(x: Any) -> Node:
    """The value as a node of floats; integers become float64 as NumPy does for functions such as exp."""
    node = as_node(x)
    return node if node.type.is_floating else cast(node, np.float64)


class ArgMax(Op):
    """The position of the greatest element along an axis; the first of them if several are.

    Shapes: x any, with at least one element along `axis`; y has x's shape without it, int64.
    Gradient: zero.
    Cost: one flop an element of x.
    Batch: passes along other axes.
    Care: the first nan counts as the greatest.
    """

    name = "argmax"
    vjp = no_derivative

    def infer(self, x: TensorType, *, axis: int) -> TensorType:
        if x.shape[axis] == 0:
            raise ShapeError(f"expected at least one element along axis {axis}; found {x}")
        return TensorType(np.dtype(np.int64), without_axes(x.shape, [axis]))

    def forward(self, x: Array, *, axis: int) -> Array:
        return np.asarray(x.argmax(axis=axis), np.int64)

    def cost(self, output: TensorType, x: TensorType, **_: Any) -> Cost:
        return Cost(x.size, moved_bytes(output, x))

    def batch(
        self, placements: Sequence[Placement], output: TensorType, *types: TensorType, axis: int
    ) -> Placement | None:
        return along_other_axes(placements, output, [axis])


_argmax = register(ArgMax())


@register_function
def argmax(x: Any, axis: int | None = None) -> Node:
    """The position of the greatest along an axis, or in all of x laid out flat (None), as `numpy.argmax`."""
    node = as_node(x)
    if axis is None:
        node, axis = node.reshape(-1), 0
    return _argmax(node, axis=normalize_axis(axis, node.ndim))


def shape(x: Any) -> tuple[Any, ...]:
    """The lengths of x's axes: integers, and nodes (int64) where a length depends on the batch.

    >>> mg.shape(x)[0]      # the number of samples in the whole batch
    """
    dims = as_node(x).type.shape
    return tuple(
        (dim.multiple * batch_size() if dim.multiple != 1 else batch_size()) if isinstance(dim, BatchDim) else dim
        for dim in dims
    )
