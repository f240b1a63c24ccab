"""Ops that move whole values about, and the sum that undoes their repetition: the ground the other op files stand on.

Closed under vjp: reshape ↔ reshape, transpose ↔ transpose, broadcast_to ↔ sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from miai_graph.errors import ShapeError
from miai_graph.node import Node
from miai_graph.op import Array, Cost, Op, as_node, moved_bytes, register, register_function
from miai_graph.placement import (
    Partial,
    Placement,
    Split,
    Unsplittable,
    keeps_rows,
    placement_of_type,
    rearrangement,
)
from miai_graph.types import (
    BatchDim,
    ElementCount,
    Shape,
    TensorType,
    as_shape,
    broadcast_shapes,
    format_shape,
    normalize_axes,
    normalize_axis,
)


class Reshape(Op):
    """The same elements in the same (row-major) order under another shape.

    Shapes: x any; y `shape`, of as many elements.
    Gradient: dx = g reshaped to x's shape.
    Cost: no flops; no bytes where x lies contiguous.
    Batch: passes where as many elements stand before the batch axis as before; else the rows of a sample would be torn
    apart.
    """

    name = "reshape"
    is_view = True

    def infer(self, x: TensorType, *, shape: Shape) -> TensorType:
        if ElementCount.of(x.shape) != ElementCount.of(shape):
            raise ShapeError(
                f"expected a shape of as many elements as {format_shape(x.shape)} has; found {format_shape(shape)}"
            )
        return x.with_shape(shape)

    def forward(self, x: Array, *, shape: tuple[int, ...]) -> Array:
        return x.reshape(shape)

    def vjp(self, g: Node, output: Node, x: Node, *, shape: Shape) -> Sequence[Node | None]:
        return [_reshape(g, shape=x.type.shape)]

    def cost(self, output: TensorType, *inputs: TensorType, shape: Shape) -> Cost:
        return Cost(0, 0)

    def batch(
        self, placements: Sequence[Placement], output: TensorType, x: TensorType, *, shape: Shape
    ) -> Placement | None:
        if isinstance(placements[0], Split) and not keeps_rows(x.shape, shape):
            return Unsplittable(f"reshaping {x} to {output} mixes the rows of different samples")
        return rearrangement(placements, output)


_reshape = register(Reshape())


@register_function
def reshape(x: Any, shape: Any) -> Node:
    """x under another shape, as `numpy.reshape`, in row-major order.

    Parameters
    ----------
    shape : integers, of which one may be -1 (what is left). None stands for x's own batch dimension, so
        ``reshape(x, (x.shape[0], -1))`` works.

    Raises
    ------
    ShapeError
        if the numbers of elements differ.
    """
    node = as_node(x)
    return _reshape(node, shape=resolve_shape(node.type.shape, shape))


def resolve_shape(source: Shape, shape: Any) -> Shape:
    """A user's target shape with its None and -1 filled in from the source's."""
    wanted = [shape] if isinstance(shape, int | np.integer | BatchDim) else list(shape)
    batch_dims = [dim for dim in source if isinstance(dim, BatchDim)]
    if any(dim is None for dim in wanted) and len(batch_dims) != 1:
        raise ShapeError(f"expected integers or -1, for {format_shape(source)} has no one batch axis; found {wanted}")
    dims: list[Any] = [batch_dims[0] if dim is None else dim for dim in wanted]
    unknown = [axis for axis, dim in enumerate(dims) if isinstance(dim, int | np.integer) and dim == -1]
    if len(unknown) > 1:
        raise ShapeError(f"expected at most one -1; found {tuple(wanted)}")
    if unknown:
        rest = as_shape(dim for axis, dim in enumerate(dims) if axis != unknown[0])
        left = ElementCount.of(source).divided_by(ElementCount.of(rest))
        if left is None:
            raise ShapeError(
                f"reshape: expected a shape into which {format_shape(source)} divides; found {tuple(wanted)}"
            )
        dims[unknown[0]] = left
    return as_shape(dims)


@register_function
def expand_dims(x: Any, axis: int | Sequence[int]) -> Node:
    """x with axes of length one put in, at the places they have in the result, as `numpy.expand_dims`."""
    node = as_node(x)
    count = 1 if isinstance(axis, int | np.integer) else len(axis)
    axes = normalize_axes(axis, node.ndim + count)
    dims = iter(node.type.shape)
    shape = tuple(1 if place in axes else next(dims) for place in range(node.ndim + count))
    return _reshape(node, shape=shape)


@register_function
def squeeze(x: Any, axis: int | Sequence[int] | None = None) -> Node:
    """x without its axes of length one, or those of them that are named, as `numpy.squeeze`.

    The batch axis stays, even for a batch of one.
    """
    node = as_node(x)
    dims = node.type.shape
    axes = [place for place, dim in enumerate(dims) if dim == 1] if axis is None else normalize_axes(axis, node.ndim)
    for place in axes:
        if dims[place] != 1:
            raise ShapeError(f"squeeze: expected axes of length one; found axis {place} of {node.type}")
    return _reshape(node, shape=tuple(dim for place, dim in enumerate(dims) if place not in axes))


@register_function
def ravel(x: Any) -> Node:
    """All elements of x in one axis, as `numpy.ravel`."""
    return reshape(x, -1)


class Transpose(Op):
    """Reorder the axes: y[i…] = x[i permuted].

    Shapes: x any; y's axis a is x's axis `axes[a]`.
    Gradient: dx = g with the axes put back.
    Cost: no flops, no bytes; consumers read with other strides.
    Batch: the batch axis moves along.
    """

    name = "transpose"
    is_view = True

    def infer(self, x: TensorType, *, axes: tuple[int, ...]) -> TensorType:
        if sorted(axes) != list(range(x.rank)):
            raise ShapeError(f"expected each of the axes 0 to {x.rank - 1} once; found {axes}")
        return x.with_shape(tuple(x.shape[axis] for axis in axes))

    def forward(self, x: Array, *, axes: tuple[int, ...]) -> Array:
        return x.transpose(axes)

    def vjp(self, g: Node, output: Node, x: Node, *, axes: tuple[int, ...]) -> Sequence[Node | None]:
        return [_transpose(g, axes=tuple(int(axis) for axis in np.argsort(axes)))]

    def cost(self, output: TensorType, *inputs: TensorType, axes: tuple[int, ...]) -> Cost:
        return Cost(0, 0)

    batch = staticmethod(rearrangement)


_transpose = register(Transpose())


@register_function
def transpose(x: Any, axes: Sequence[int] | None = None) -> Node:
    """x with its axes in another order, reversed if `axes` is None, as `numpy.transpose`."""
    node = as_node(x)
    order = range(node.ndim)[::-1] if axes is None else [normalize_axis(axis, node.ndim) for axis in axes]
    return _transpose(node, axes=tuple(order))


@register_function
def swapaxes(x: Any, axis1: int, axis2: int) -> Node:
    """x with two axes exchanged, as `numpy.swapaxes`."""
    node = as_node(x)
    axes = list(range(node.ndim))
    first, second = normalize_axis(axis1, node.ndim), normalize_axis(axis2, node.ndim)
    axes[first], axes[second] = axes[second], axes[first]
    return _transpose(node, axes=tuple(axes))


@register_function
def moveaxis(x: Any, source: int, destination: int) -> Node:
    """x with one axis moved to another place, as `numpy.moveaxis`."""
    node = as_node(x)
    start = normalize_axis(source, node.ndim)
    axes = [axis for axis in range(node.ndim) if axis != start]
    axes.insert(normalize_axis(destination, node.ndim), start)
    return _transpose(node, axes=tuple(axes))


class BroadcastTo(Op):
    """Repeat x along axes where it has length one or which it lacks, by NumPy's rules.

    Shapes: x broadcastable to `shape`; y `shape`. Axes of length zero broadcast from one as in NumPy.
    Gradient: dx = sum of g over the repeated axes.
    Cost: no flops, no bytes; consumers read with stride zero.
    Batch: rows are repeated where the worker has them.
    """

    name = "broadcast_to"
    is_view = True

    def infer(self, x: TensorType, *, shape: Shape) -> TensorType:
        if x.rank > len(shape) or broadcast_shapes(x.shape, shape) != shape:
            raise ShapeError(
                f"expected a shape to which {format_shape(x.shape)} broadcasts; found {format_shape(shape)}"
            )
        return x.with_shape(shape)

    def forward(self, x: Array, *, shape: tuple[int, ...]) -> Array:
        return np.broadcast_to(x, shape)

    def vjp(self, g: Node, output: Node, x: Node, *, shape: Shape) -> Sequence[Node | None]:
        source = (1,) * (len(shape) - x.ndim) + x.type.shape
        repeated = tuple(axis for axis, dim in enumerate(shape) if dim != source[axis])
        summed = _sum(g, axes=repeated) if repeated else g
        return [_reshape(summed, shape=x.type.shape) if summed.type.shape != x.type.shape else summed]

    def cost(self, output: TensorType, *inputs: TensorType, shape: Shape) -> Cost:
        return Cost(0, 0)

    batch = staticmethod(rearrangement)


_broadcast_to = register(BroadcastTo())


@register_function
def broadcast_to(x: Any, shape: Any) -> Node:
    """x repeated to `shape`, as `numpy.broadcast_to`; None stands for the batch."""
    node = as_node(x)
    target = as_shape(shape)
    return node if node.type.shape == target else _broadcast_to(node, shape=target)


def full(shape: Shape, value: float | bool, dtype: Any) -> Node:
    """One number, repeated to a shape that may have the batch in it."""
    return broadcast_to(as_node(value, dtype), shape)


@register_function
def zeros_like(x: Any, dtype: Any = None) -> Node:
    """Zeros of x's shape, as `numpy.zeros_like`."""
    return full_like(x, 0, dtype)


@register_function
def ones_like(x: Any, dtype: Any = None) -> Node:
    """Ones of x's shape, as `numpy.ones_like`."""
    return full_like(x, 1, dtype)


@register_function
def full_like(x: Any, fill_value: float | bool, dtype: Any = None) -> Node:
    """One number in x's shape, as `numpy.full_like`."""
    node = as_node(x)
    return full(node.type.shape, fill_value, dtype or node.dtype)


class Sum(Op):
    """Add up the elements along axes: y = Σ x.

    Shapes: x any; y has x's shape without `axes`. The sum of no elements is 0. Bool counts as int64, and so do
    narrower integers, as in NumPy.
    Gradient: dx = g repeated along `axes`.
    Cost: one flop an element of x.
    Batch: over the batch axis a sum is owed; sums still owed pass.
    Care: NumPy adds pairwise along the last axis, so errors grow with the logarithm of the length.
    """

    name = "sum"

    def infer(self, x: TensorType, *, axes: tuple[int, ...]) -> TensorType:
        dtype = x.dtype if x.is_floating else np.sum(np.empty(0, x.dtype)).dtype
        return TensorType(dtype, without_axes(x.shape, axes))

    def forward(self, x: Array, *, axes: tuple[int, ...]) -> Array:
        return np.asarray(x.sum(axis=axes))

    def vjp(self, g: Node, output: Node, x: Node, *, axes: tuple[int, ...]) -> Sequence[Node | None]:
        return [broadcast_to(restore_axes(g, x.type.shape, axes), x.type.shape) if x.type.is_floating else None]

    def cost(self, output: TensorType, x: TensorType, *, axes: tuple[int, ...]) -> Cost:
        return Cost(x.size, moved_bytes(output, x))

    def batch(
        self, placements: Sequence[Placement], output: TensorType, x: TensorType, *, axes: tuple[int, ...]
    ) -> Placement | None:
        return reduction_placement("sum", placements, output, axes)


_sum = register(Sum())


def reduction_placement(
    reduction: str, placements: Sequence[Placement], output: TensorType, axes: tuple[int, ...]
) -> Placement | None:
    """The batch rule of sum, max and min."""
    (placement,) = placements
    if isinstance(placement, Partial):
        return placement if placement.reduction == reduction else None
    if isinstance(placement, Split) and placement.axis in axes:
        return Partial(reduction)
    return placement_of_type(output)


def without_axes(shape: Shape, axes: Sequence[int]) -> Shape:
    return tuple(dim for axis, dim in enumerate(shape) if axis not in axes)


def restore_axes(reduced: Node, shape: Shape, axes: Sequence[int]) -> Node:
    """A reduction's result with its axes back, of length one: fit to broadcast to what was reduced."""
    return _reshape(reduced, shape=tuple(1 if axis in axes else dim for axis, dim in enumerate(shape)))


@register_function
def sum(x: Any, axis: int | Sequence[int] | None = None, *, keepdims: bool = False) -> Node:
    """The sum along one axis, several, or all (None), as `numpy.sum`."""
    node = as_node(x)
    axes = normalize_axes(axis, node.ndim)
    result = _sum(node, axes=axes)
    return restore_axes(result, node.type.shape, axes) if keepdims else result
