"""Convolution over images, channels last, and its two gradients: the three are closed under vjp among themselves.

An image batch is (batch, height, width, channels), a kernel (height, width, channels in / groups, channels out). What
all ops of this file have as attributes is called their geometry:

- ``strides``: (down, across), how far the window moves from one output to the next;
- ``padding``: ((top, bottom), (left, right)), how many zeros are put around the image;
- ``dilation``: (down, across), the distance between neighbouring elements of the window;
- ``groups``: into how many parts the channels are dealt; each part has its own slice of the kernel's outputs.

The helpers for windows, strides and padding serve `pooling` too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from miai_graph.errors import ArgumentError, DTypeError, ShapeError
from miai_graph.messages import locates_errors
from miai_graph.node import Node, apply
from miai_graph.op import Array, Cost, Op, moved_bytes, register
from miai_graph.ops.casting import promoted
from miai_graph.placement import Partial, Placement, Split, Unsplittable, bilinear
from miai_graph.types import BatchDim, Dim, Shape, TensorType, format_shape, int_dims

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]

IMAGE_AXES = "(batch, height, width, channels)"
KERNEL_AXES = "(height, width, channels in / groups, channels out)"


def windows(x: Array, size: Pair, strides: Pair, padding: Padding, dilation: Pair = (1, 1), fill: float = 0) -> Array:
    """All windows of the padded image: a view, (batch, rows, columns, window height, window width, channels)."""
    padded = np.pad(x, ((0, 0), *padding, (0, 0)), constant_values=fill)
    spans = tuple(_span(length, rate) for length, rate in zip(size, dilation, strict=True))
    every = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=(1, 2))
    (down, across), (rate_down, rate_across) = strides, dilation
    return every[:, ::down, ::across, :, ::rate_down, ::rate_across].transpose(0, 1, 2, 4, 5, 3)


def add_windows(
    parts: Array, shape: tuple[int, ...], strides: Pair, padding: Padding, dilation: Pair = (1, 1)
) -> Array:
    """The adjoint of `windows`: an image of `shape` in which each part is added where its window lies."""
    _, rows, columns, height, width, _ = parts.shape
    (top, bottom), (left, right) = padding
    padded = np.zeros((shape[0], top + shape[1] + bottom, left + shape[2] + right, shape[3]), parts.dtype)
    for row in range(height):
        for column in range(width):
            down = _places(row * dilation[0], rows, strides[0])
            across = _places(column * dilation[1], columns, strides[1])
            padded[:, down, across] += parts[:, :, :, row, column]
    return padded[:, top : top + shape[1], left : left + shape[2]]


def _span(length: int, rate: int) -> int:
    """How many places a window reaches over whose elements are `rate` apart."""
    return (length - 1) * rate + 1


def _places(start: int, count: int, step: int) -> slice:
    return slice(start, start + _span(count, step), step)


def window_counts(shape: Shape, size: Pair, strides: Pair, padding: Padding, dilation: Pair = (1, 1)) -> Pair:
    """How many windows fit down and across the padded image.

    Raises
    ------
    ShapeError
        if none does, or `shape` is not that of an image batch.
    """
    image = image_size(shape)
    spans = [_span(length, rate) for length, rate in zip(size, dilation, strict=True)]
    padded = [length + before + after for length, (before, after) in zip(image, padding, strict=True)]
    if any(span > length for span, length in zip(spans, padded, strict=True)):
        raise ShapeError(
            f"expected a window that fits into the padded image of {padded[0]} × {padded[1]}; found one that spans "
            f"{spans[0]} × {spans[1]}, so nothing would be left. Use a smaller window, less dilation or padding='same'"
        )
    rows, columns = ((padded[axis] - spans[axis]) // strides[axis] + 1 for axis in (0, 1))
    return rows, columns


def image_size(shape: Shape) -> Pair:
    """Height and width of an image batch, of which only the first axis may depend on the batch."""
    if len(shape) != 4:
        raise ShapeError(f"expected images of 4 axes, {IMAGE_AXES}; found shape {format_shape(shape)}")
    if any(isinstance(dim, BatchDim) for dim in shape[1:]):
        raise ShapeError(f"expected the batch on the first of {IMAGE_AXES} only; found shape {format_shape(shape)}")
    height, width, _ = int_dims(shape[1:])
    return height, width


def as_count(value: Any, meaning: str, least: int = 1) -> int:
    """An integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ArgumentError(f"expected {meaning} of at least {least}; found {value!r}")
    return int(value)


def as_pair(value: Any, meaning: str, least: int = 1) -> Pair:
    """Two integers, down and across, from an integer that stands for both or a pair."""
    if not isinstance(value, tuple | list):
        count = as_count(value, f"an integer or a pair of them as {meaning},", least)
        return count, count
    if len(value) != 2:
        raise ArgumentError(f"expected an integer or a pair of them as {meaning}; found {value!r}")
    first, second = (as_count(part, f"{meaning} that are integers", least) for part in value)
    return first, second


def as_padding(padding: Any, shape: Shape, size: Shape, strides: Pair, dilation: Pair = (1, 1)) -> Padding:
    """((top, bottom), (left, right)) from what users may give.

    Parameters
    ----------
    padding : "valid" for none; "same" for as many outputs as inputs, divided by the strides and rounded up, with
        the odd place at the bottom and right; an integer for all sides; a pair (down, across); or a pair of pairs
    shape : of the image batch
    size : of the window

    Raises
    ------
    ArgumentError
        for anything else.
    """
    if isinstance(padding, str):
        if padding == "valid":
            return (0, 0), (0, 0)
        if padding == "same":
            # Of shapes too short for a pair infer complains, with the inputs' lines.
            pairs = zip(shape[1:3], size[:2], strides, dilation, strict=False)
            return tuple(_same_padding(*sizes) for sizes in pairs)  # type: ignore[return-value]
    elif isinstance(padding, int | np.integer):
        padding = (padding, padding)
    if isinstance(padding, str) or not isinstance(padding, tuple | list) or len(padding) != 2:
        raise ArgumentError(
            "expected padding 'same', 'valid', an integer, a pair (down, across), or ((top, bottom), (left, right)); "
            f"found {padding!r}"
        )
    rows, columns = (as_pair(part, "padding", least=0) for part in padding)
    return rows, columns


def _same_padding(length: Dim, size: Dim, stride: int, rate: int) -> Pair:
    if isinstance(length, BatchDim) or isinstance(size, BatchDim):
        return 0, 0
    outputs = -(-length // stride)
    total = max((outputs - 1) * stride + _span(size, rate) - length, 0)
    return total // 2, total - total // 2


def _output_shape(x: Shape, kernel: Shape, *, strides: Pair, padding: Padding, dilation: Pair, groups: int) -> Shape:
    """The shape of a convolution's output; refuses what does not fit."""
    image_size(x)
    if len(kernel) != 4 or any(isinstance(dim, BatchDim) for dim in kernel):
        raise ShapeError(f"expected a kernel {KERNEL_AXES} without the batch; found shape {format_shape(kernel)}")
    height, width, channels_in, channels_out = int_dims(kernel)
    if not height or not width:
        raise ShapeError(f"expected a kernel of at least 1 × 1; found shape {format_shape(kernel)}")
    if x[3] != channels_in * groups:
        raise ShapeError(
            f"expected images of {channels_in * groups} channels, {groups} groups of the {channels_in} that kernel "
            f"{format_shape(kernel)} takes; found {x[3]} channels in {format_shape(x)}. A kernel is {KERNEL_AXES}"
        )
    if channels_out % groups:
        raise ShapeError(f"expected channels out that divide by groups={groups}; found {channels_out}")
    rows, columns = window_counts(x, (height, width), strides, padding, dilation)
    return x[0], rows, columns, channels_out


def check_floats(*types: TensorType) -> None:
    """Refuse dtypes that are not one and the same floating one."""
    if not types[0].is_floating or any(type.dtype != types[0].dtype for type in types):
        raise DTypeError(
            f"expected floats of one dtype; found {' and '.join(str(type) for type in types)}. "
            "Cast them: mg.cast(x, 'float32')"
        )


def _check_cotangent(g: TensorType, expected: Shape) -> None:
    if g.shape != expected:
        raise ShapeError(f"expected a cotangent of the convolution's shape {format_shape(expected)}; found {g}")


def _patches(x: Array, size: Pair, *, strides: Pair, padding: Padding, dilation: Pair, groups: int) -> Array:
    """A matrix for each group, whose rows are the elements of one window: (groups, windows, elements)."""
    view = windows(x, size, strides, padding, dilation)
    batch, rows, columns, height, width, channels = view.shape
    per_group = channels // groups
    grouped = view.reshape(batch, rows, columns, height, width, groups, per_group).transpose(5, 0, 1, 2, 3, 4, 6)
    return grouped.reshape(groups, batch * rows * columns, height * width * per_group)


def _grouped_channels(array: Array, groups: int) -> Array:
    """A matrix for each group, whose columns are the group's last-axis channels: (groups, all other axes, channels)."""
    *others, channels = array.shape
    return array.reshape(math.prod(others), groups, channels // groups).transpose(1, 0, 2)


def _joined_channels(matrices: Array, shape: tuple[int, ...]) -> Array:
    """The inverse of `_grouped_channels`."""
    return matrices.transpose(1, 0, 2).reshape(shape)


def _image_and_kernel_placement(placements: Sequence[Placement], output: TensorType) -> Placement | None:
    """The batch rule of a bilinear op that treats each image by itself, with one kernel for all."""
    images, kernel = placements
    if isinstance(kernel, Split):
        return Unsplittable("its kernel differs from sample to sample")
    if isinstance(images, Split) and images.axis != 0:
        return Unsplittable("the batch is not the first axis of the images")
    return bilinear(placements, output)


class Conv2D(Op):
    """Cross-correlation of images with a kernel: y[n,p,q,o] = Σ x[n, s·p + d·i, s·q + d·j, c] · kernel[i,j,c,o].

    Shapes: x (N, H, W, C_in) and kernel (KH, KW, C_in/groups, C_out), floats of one dtype; y (N, OH, OW, C_out) with
    OH = floor((H + top + bottom - (KH - 1) · dilation - 1) / stride) + 1, and OW likewise.
    Gradient: dx = conv2d_input_gradient(g, kernel), dkernel = conv2d_kernel_gradient(x, g).
    Cost: 2 · N · OH · OW · KH · KW · C_in/groups · C_out flops.
    Batch: passes along axis 0; one sum still owed may pass. The kernel cannot be split.
    Care: x is padded with zeros first. Where an element is nan or infinite, neighbours in the same image may become nan
    too: native code takes some pixels together, with zeros in between. What meets only the zeros around an image
    is left out, so nan or inf of the kernel is not seen there.
    Source: Dumoulin and Visin 2016, "A guide to convolution arithmetic for deep learning", relationships 6 and 13.
    """

    name = "conv2d"

    def infer(self, x: TensorType, kernel: TensorType, **geometry: Any) -> TensorType:
        check_floats(x, kernel)
        return x.with_shape(_output_shape(x.shape, kernel.shape, **geometry))

    def forward(self, x: Array, kernel: Array, **geometry: Any) -> Array:
        groups = geometry["groups"]
        shape = int_dims(_output_shape(x.shape, kernel.shape, **geometry))
        product = _patches(x, kernel.shape[:2], **geometry) @ _grouped_channels(kernel, groups)
        return _joined_channels(product, shape)

    def vjp(self, g: Node, output: Node, x: Node, kernel: Node, **geometry: Any) -> Sequence[Node | None]:
        return [
            _input_gradient(g, kernel, input_shape=x.type.shape, **geometry),
            _kernel_gradient(x, g, kernel_shape=kernel.type.shape, **geometry),
        ]

    def cost(self, output: TensorType, x: TensorType, kernel: TensorType, **_: Any) -> Cost:
        return Cost(2 * output.size * math.prod(int_dims(kernel.shape)[:3]), moved_bytes(output, x, kernel))

    def batch(
        self, placements: Sequence[Placement], output: TensorType, *types: TensorType, **_: Any
    ) -> Placement | None:
        return _image_and_kernel_placement(placements, output)


class Conv2DInputGradient(Op):
    """The adjoint of conv2d in its images: y[n, s·p + d·i, s·q + d·j, c] = Σ g[n,p,q,o] · kernel[i,j,c,o].

    Shapes: g (N, OH, OW, C_out), as conv2d gives for `input_shape`, and kernel (KH, KW, C_in/groups, C_out); y
    `input_shape`, (N, H, W, C_in).
    Gradient: with the cotangent h, dg = conv2d(h, kernel), dkernel = conv2d_kernel_gradient(h, g).
    Cost: as conv2d: 2 · N · OH · OW · KH · KW · C_in/groups · C_out flops.
    Batch: passes along axis 0; one sum still owed may pass. The kernel cannot be split.
    Care: what falls on the padding is dropped; places that no window covers are 0. nan may spread as in conv2d.
    Source: Dumoulin and Visin 2016, "A guide to convolution arithmetic for deep learning", chapter 4.
    """

    name = "conv2d_input_gradient"

    def infer(self, g: TensorType, kernel: TensorType, *, input_shape: Shape, **geometry: Any) -> TensorType:
        check_floats(g, kernel)
        _check_cotangent(g, _output_shape(input_shape, kernel.shape, **geometry))
        return g.with_shape(input_shape)

    def forward(
        self,
        g: Array,
        kernel: Array,
        *,
        input_shape: tuple[int, ...],
        strides: Pair,
        padding: Padding,
        dilation: Pair,
        groups: int,
    ) -> Array:
        height, width, per_group, _ = kernel.shape
        batch, rows, columns, _ = g.shape
        product = _grouped_channels(g, groups) @ _grouped_channels(kernel, groups).transpose(0, 2, 1)
        parts = product.reshape(groups, batch, rows, columns, height, width, per_group).transpose(1, 2, 3, 4, 5, 0, 6)
        parts = parts.reshape(batch, rows, columns, height, width, groups * per_group)
        return add_windows(parts, input_shape, strides, padding, dilation)

    def vjp(
        self, g: Node, output: Node, upstream: Node, kernel: Node, *, input_shape: Shape, **geometry: Any
    ) -> Sequence[Node | None]:
        return [
            _conv2d(g, kernel, **geometry),
            _kernel_gradient(g, upstream, kernel_shape=kernel.type.shape, **geometry),
        ]

    def cost(self, output: TensorType, g: TensorType, kernel: TensorType, **_: Any) -> Cost:
        return Cost(2 * g.size * math.prod(int_dims(kernel.shape)[:3]), moved_bytes(output, g, kernel))

    def batch(
        self, placements: Sequence[Placement], output: TensorType, *types: TensorType, **_: Any
    ) -> Placement | None:
        return _image_and_kernel_placement(placements, output)


class Conv2DKernelGradient(Op):
    """The adjoint of conv2d in its kernel: y[i,j,c,o] = Σ x[n, s·p + d·i, s·q + d·j, c] · g[n,p,q,o].

    Shapes: x (N, H, W, C_in) and g (N, OH, OW, C_out), as conv2d gives for x and `kernel_shape`; y `kernel_shape`,
    (KH, KW, C_in/groups, C_out).
    Gradient: with the cotangent h, dx = conv2d_input_gradient(g, h), dg = conv2d(x, h).
    Cost: as conv2d: 2 · N · OH · OW · KH · KW · C_in/groups · C_out flops.
    Batch: a sum over the samples is owed; one sum still owed may pass.
    Care: without native code all windows are copied side by side, which takes KH · KW times the memory of x.
    """

    name = "conv2d_kernel_gradient"

    def infer(self, x: TensorType, g: TensorType, *, kernel_shape: Shape, **geometry: Any) -> TensorType:
        check_floats(x, g)
        _check_cotangent(g, _output_shape(x.shape, kernel_shape, **geometry))
        return x.with_shape(kernel_shape)

    def forward(self, x: Array, g: Array, *, kernel_shape: tuple[int, ...], **geometry: Any) -> Array:
        height, width = kernel_shape[:2]
        patches = _patches(x, (height, width), **geometry)
        product = patches.transpose(0, 2, 1) @ _grouped_channels(g, geometry["groups"])
        return _joined_channels(product, kernel_shape)

    def vjp(
        self, g: Node, output: Node, x: Node, upstream: Node, *, kernel_shape: Shape, **geometry: Any
    ) -> Sequence[Node | None]:
        return [_input_gradient(upstream, g, input_shape=x.type.shape, **geometry), _conv2d(x, g, **geometry)]

    def cost(self, output: TensorType, x: TensorType, g: TensorType, **_: Any) -> Cost:
        return Cost(2 * g.size * math.prod(int_dims(output.shape)[:3]), moved_bytes(output, x, g))

    def batch(
        self, placements: Sequence[Placement], output: TensorType, *types: TensorType, **_: Any
    ) -> Placement | None:
        images, cotangent = placements
        if isinstance(images, Split) and images.axis == 0 and images == cotangent:
            return Partial("sum")
        if isinstance(images, Split) and isinstance(cotangent, Split):
            return Unsplittable("its images and their cotangent are split in different ways")
        if isinstance(images, Split) or isinstance(cotangent, Split):
            other = cotangent if isinstance(images, Split) else images
            return None if isinstance(other, Partial) else Unsplittable(f"one operand is split and the other {other}")
        return bilinear(placements, output)


_conv2d = register(Conv2D())
_input_gradient = register(Conv2DInputGradient())
_kernel_gradient = register(Conv2DKernelGradient())


@locates_errors
def conv2d(x: Any, kernel: Any, strides: Any = 1, padding: Any = "valid", dilation: Any = 1, groups: int = 1) -> Node:
    """Convolution of images with a kernel (which is not flipped), as `keras.ops.conv` with channels last.

    Parameters
    ----------
    x : (batch, height, width, channels in)
    kernel : (height, width, channels in / groups, channels out)
    strides, dilation : an integer or a pair (down, across)
    padding : "valid", "same" as in Keras, an integer, a pair (down, across), or ((top, bottom), (left, right))
    groups : parts of the channels that are convolved apart; as many as there are channels in: a depthwise convolution

    Returns
    -------
    (batch, rows, columns, channels out)

    Raises
    ------
    ShapeError
        if x or kernel has another number of axes, the channels do not fit the groups, or nothing would be left.
    ArgumentError
        for strides, dilation, padding or groups that are not as described.
    """
    images, weights = promoted([x, kernel])
    moves, rates = as_pair(strides, "strides"), as_pair(dilation, "dilation")
    geometry = {
        "strides": moves,
        "padding": as_padding(padding, images.type.shape, weights.type.shape, moves, rates),
        "dilation": rates,
        "groups": as_count(groups, "an integer as groups,"),
    }
    return apply(_conv2d, [images, weights], geometry)
