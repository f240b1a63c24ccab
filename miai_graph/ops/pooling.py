"""Pooling over images, channels last: the greatest or the mean of each window.

Closed under vjp: max_pool2d → max_pool2d_gradient ↔ max_pool2d_select; average_pool2d ↔ average_pool2d_gradient.
The attributes ``pool_size``, ``strides`` and ``padding`` are like those of `convolution`; padded places never count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from miai_graph.errors import ShapeError
from miai_graph.messages import describe, locates_errors
from miai_graph.node import Node, apply
from miai_graph.op import Array, Cost, Op, as_node, moved_bytes, register
from miai_graph.ops import reductions
from miai_graph.ops.convolution import (
    IMAGE_AXES,
    Padding,
    Pair,
    add_windows,
    as_padding,
    as_pair,
    check_floats,
    window_counts,
    windows,
)
from miai_graph.placement import elementwise, linear
from miai_graph.types import Shape, TensorType, format_shape


def _output_shape(x: Shape, *, pool_size: Pair, strides: Pair, padding: Padding) -> Shape:
    """The shape of what pooling gives; refuses windows that would see padding only."""
    rows, columns = window_counts(x, pool_size, strides, padding)
    if 0 in x[1:3] or any(max(pair) >= length for pair, length in zip(padding, pool_size, strict=True)):
        raise ShapeError(
            "expected an image, and padding narrower than the window, so that each window has an element to pool; "
            f"found padding {padding} for windows of {pool_size[0]} × {pool_size[1]} over shape {format_shape(x)}"
        )
    return x[0], rows, columns, x[3]


def _check_cotangent(g: TensorType, expected: Shape) -> None:
    if g.shape != expected:
        raise ShapeError(f"expected a cotangent of the pooled shape {format_shape(expected)}; found {g}")


def _first_of_greatest(x: Array, pool_size: Pair, strides: Pair, padding: Padding) -> Array:
    """For each window the position of its greatest element, row by row: (batch, rows, columns, 1, channels).

    The first nan wins over all else. A mask keeps padded places from winning even where all else is -inf.
    """
    elements = _flat_windows(x, -math.inf, pool_size, strides, padding)
    is_real = _flat_windows(np.ones((1, *x.shape[1:3], 1), bool), False, pool_size, strides, padding)
    wins = (elements == elements.max(axis=3, keepdims=True)) | np.isnan(elements)
    return np.asarray((wins & is_real).argmax(axis=3)[:, :, :, np.newaxis])


def _flat_windows(x: Array, fill: float, pool_size: Pair, strides: Pair, padding: Padding) -> Array:
    """All windows, the elements of each along one axis: (batch, rows, columns, elements, channels)."""
    view = windows(x, pool_size, strides, padding, fill=fill)
    batch, rows, columns, height, width, channels = view.shape
    return view.reshape(batch, rows, columns, height * width, channels)


def _window_sizes(shape: tuple[int, ...], dtype: Any, pool_size: Pair, strides: Pair, padding: Padding) -> Array:
    """How many elements of each window are not padding: (1, rows, columns, 1)."""
    ones = np.ones((1, *shape[1:3], 1), dtype)
    return np.asarray(windows(ones, pool_size, strides, padding).sum(axis=(3, 4)))


class Pool(Op):
    """What ops that pool have in common."""

    def cost(self, output: TensorType, *inputs: TensorType, pool_size: Pair, **_: Any) -> Cost:
        return Cost(output.size * math.prod(pool_size), moved_bytes(output, *inputs))

    batch = staticmethod(elementwise)


class MaxPool2D(Pool):
    """The greatest element of each window: y[n,p,q,c] = max x[n, s·p + i, s·q + j, c] over i, j.

    Shapes: x (N, H, W, C), floats; y (N, OH, OW, C) with OH = floor((H + top + bottom - pool) / stride) + 1, and so OW.
    Gradient: dx = max_pool2d_gradient(g, x): g at the first of the greatest.
    Cost: one flop an element of each window.
    Batch: passes along axis 0.
    Care: padded places never win; a window with nan gives nan. Padding must be narrower than the window.
    """

    name = "max_pool2d"

    def infer(self, x: TensorType, **window: Any) -> TensorType:
        check_floats(x)
        return x.with_shape(_output_shape(x.shape, **window))

    def forward(self, x: Array, *, pool_size: Pair, strides: Pair, padding: Padding) -> Array:
        return np.asarray(windows(x, pool_size, strides, padding, fill=-math.inf).max(axis=(3, 4)))

    def vjp(self, g: Node, output: Node, x: Node, **window: Any) -> Sequence[Node | None]:
        return [_max_pool2d_gradient(g, x, **window)]


class MaxPool2DGradient(Pool):
    """Zeros, with g added at the first of the greatest elements of each window of x.

    Shapes: g (N, OH, OW, C), as max_pool2d gives for x, and x (N, H, W, C), floats of one dtype; y of x's shape.
    Gradient: with the cotangent h, dg = max_pool2d_select(h, x), dx = 0.
    Cost: two flops an element of each window.
    Batch: passes along axis 0.
    Care: where windows overlap their shares add up. First is row by row; a nan counts as the greatest.
    """

    name = "max_pool2d_gradient"

    def infer(self, g: TensorType, x: TensorType, **window: Any) -> TensorType:
        check_floats(g, x)
        _check_cotangent(g, _output_shape(x.shape, **window))
        return x

    def forward(self, g: Array, x: Array, *, pool_size: Pair, strides: Pair, padding: Padding) -> Array:
        winner = _first_of_greatest(x, pool_size, strides, padding)
        places = np.arange(math.prod(pool_size))[:, np.newaxis]
        parts = np.where(places == winner, g[:, :, :, np.newaxis], np.zeros((), g.dtype))
        return add_windows(parts.reshape(*g.shape[:3], *pool_size, g.shape[3]), x.shape, strides, padding)

    def vjp(self, g: Node, output: Node, upstream: Node, x: Node, **window: Any) -> Sequence[Node | None]:
        return [_max_pool2d_select(g, x, **window), None]

    def cost(self, output: TensorType, *inputs: TensorType, pool_size: Pair, **_: Any) -> Cost:
        return Cost(2 * inputs[0].size * math.prod(pool_size), moved_bytes(output, *inputs))


class MaxPool2DSelect(Pool):
    """The element of v at the place of the first of the greatest elements of each window of x.

    Shapes: v and x (N, H, W, C), floats of one dtype; y (N, OH, OW, C), as max_pool2d gives for x.
    Gradient: dv = max_pool2d_gradient(g, x), dx = 0.
    Cost: one flop an element of each window.
    Batch: passes along axis 0.
    Care: first is row by row; a nan counts as the greatest.
    """

    name = "max_pool2d_select"

    def infer(self, v: TensorType, x: TensorType, **window: Any) -> TensorType:
        check_floats(v, x)
        if v.shape != x.shape:
            raise ShapeError(f"expected two inputs of one shape; found {v} and {x}")
        return v.with_shape(_output_shape(x.shape, **window))

    def forward(self, v: Array, x: Array, *, pool_size: Pair, strides: Pair, padding: Padding) -> Array:
        winner = _first_of_greatest(x, pool_size, strides, padding)
        return np.take_along_axis(_flat_windows(v, 0, pool_size, strides, padding), winner, axis=3).squeeze(axis=3)

    def vjp(self, g: Node, output: Node, v: Node, x: Node, **window: Any) -> Sequence[Node | None]:
        return [_max_pool2d_gradient(g, x, **window), None]


class AveragePool2D(Pool):
    """The mean of each window's elements: y[n,p,q,c] = Σ x[n, s·p + i, s·q + j, c] / their number.

    Shapes: x (N, H, W, C), floats; y (N, OH, OW, C) with OH = floor((H + top + bottom - pool) / stride) + 1, and so OW.
    Gradient: dx = average_pool2d_gradient(g).
    Cost: one flop an element of each window.
    Batch: passes along axis 0; a sum still owed may pass.
    Care: padded places are neither added nor counted, as in Keras. Padding must be narrower than the window.
    """

    name = "average_pool2d"
    batch = staticmethod(linear)

    def infer(self, x: TensorType, **window: Any) -> TensorType:
        check_floats(x)
        return x.with_shape(_output_shape(x.shape, **window))

    def forward(self, x: Array, *, pool_size: Pair, strides: Pair, padding: Padding) -> Array:
        total = windows(x, pool_size, strides, padding).sum(axis=(3, 4))
        return np.asarray(total / _window_sizes(x.shape, x.dtype, pool_size, strides, padding))

    def vjp(self, g: Node, output: Node, x: Node, **window: Any) -> Sequence[Node | None]:
        return [_average_pool2d_gradient(g, input_shape=x.type.shape, **window)]


class AveragePool2DGradient(Pool):
    """The adjoint of average_pool2d: zeros, with g / number added to each of a window's elements.

    Shapes: g (N, OH, OW, C), as average_pool2d gives for `input_shape`, floats; y `input_shape`, (N, H, W, C).
    Gradient: with the cotangent h, dg = average_pool2d(h).
    Cost: one flop an element of each window.
    Batch: passes along axis 0; a sum still owed may pass.
    Care: where windows overlap their shares add up.
    """

    name = "average_pool2d_gradient"
    batch = staticmethod(linear)

    def infer(self, g: TensorType, *, input_shape: Shape, **window: Any) -> TensorType:
        check_floats(g)
        _check_cotangent(g, _output_shape(input_shape, **window))
        return g.with_shape(input_shape)

    def forward(
        self, g: Array, *, input_shape: tuple[int, ...], pool_size: Pair, strides: Pair, padding: Padding
    ) -> Array:
        sizes = _window_sizes(input_shape, g.dtype, pool_size, strides, padding)
        shares = (g / sizes)[:, :, :, np.newaxis, np.newaxis]
        parts = np.broadcast_to(shares, (*g.shape[:3], *pool_size, g.shape[3]))
        return add_windows(parts, input_shape, strides, padding)

    def vjp(self, g: Node, output: Node, upstream: Node, *, input_shape: Shape, **window: Any) -> Sequence[Node | None]:
        return [_average_pool2d(g, **window)]

    def cost(self, output: TensorType, *inputs: TensorType, pool_size: Pair, **_: Any) -> Cost:
        return Cost(inputs[0].size * math.prod(pool_size), moved_bytes(output, *inputs))


_max_pool2d = register(MaxPool2D())
_max_pool2d_gradient = register(MaxPool2DGradient())
_max_pool2d_select = register(MaxPool2DSelect())
_average_pool2d = register(AveragePool2D())
_average_pool2d_gradient = register(AveragePool2DGradient())


@locates_errors
def max_pool2d(x: Any, pool_size: Any = 2, strides: Any = None, padding: Any = "valid") -> Node:
    """The greatest element of each window, as `keras.ops.max_pool` with channels last.

    Parameters
    ----------
    x : (batch, height, width, channels)
    pool_size, strides : an integer or a pair (down, across); strides None: those of windows side by side
    padding : "valid", "same" as in Keras, an integer, a pair (down, across), or ((top, bottom), (left, right))

    Returns
    -------
    (batch, rows, columns, channels)

    Raises
    ------
    ShapeError
        if x has another number of axes, no window fits, or a window would have padding only.
    ArgumentError
        for pool_size, strides or padding that are not as described.
    """
    return _pool(_max_pool2d, x, pool_size, strides, padding)


@locates_errors
def average_pool2d(x: Any, pool_size: Any = 2, strides: Any = None, padding: Any = "valid") -> Node:
    """The mean of each window, padding not counted, as `keras.ops.average_pool` with channels last.

    Parameters, result and errors are those of `max_pool2d`.
    """
    return _pool(_average_pool2d, x, pool_size, strides, padding)


def _pool(op: Op, x: Any, pool_size: Any, strides: Any, padding: Any) -> Node:
    images = as_node(x)
    size = as_pair(pool_size, "pool_size")
    moves = size if strides is None else as_pair(strides, "strides")
    window = {"pool_size": size, "strides": moves, "padding": as_padding(padding, images.type.shape, size, moves)}
    return apply(op, [images], window)


@locates_errors
def global_average_pool2d(x: Any, keepdims: bool = False) -> Node:
    """The mean of each channel of each image: (batch, channels), or (batch, 1, 1, channels) with `keepdims`."""
    return reductions.mean(_as_images(x), (1, 2), keepdims=keepdims)


@locates_errors
def global_max_pool2d(x: Any, keepdims: bool = False) -> Node:
    """The greatest of each channel of each image: (batch, channels), or (batch, 1, 1, channels) with `keepdims`."""
    return reductions.max(_as_images(x), (1, 2), keepdims=keepdims)


def _as_images(x: Any) -> Node:
    images = as_node(x)
    if images.ndim != 4:
        raise ShapeError(f"expected images of 4 axes, {IMAGE_AXES}; found {describe(images)}")
    return images
