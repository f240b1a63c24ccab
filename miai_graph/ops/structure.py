"""Ops that move elements about, and the sum that undoes their repetition: the ground the other op files stand on.

Closed under vjp: reshape ↔ reshape, transpose ↔ transpose, broadcast_to ↔ sum, slice ↔ scatter_slice,
pad → slice, concatenate → slice, cast ↔ cast.
"""

from __future__ import annotations

import builtins
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from miai_graph.errors import ArgumentError, DTypeError, ShapeError
from miai_graph.node import Node, apply, describe, functions
from miai_graph.op import Array, Cost, Op, as_node, elementwise_cost, moved_bytes, register, register_function
from miai_graph.placement import (
    Partial,
    Placement,
    Split,
    Unsplittable,
    elementwise,
    keeps_rows,
    placement_of_type,
    rearrangement,
)
from miai_graph.types import (
    BATCH,
    BatchDim,
    Dim,
    ElementCount,
    Shape,
    TensorType,
    as_dtype,
    as_shape,
    broadcast_shapes,
    format_shape,
    normalize_axes,
    normalize_axis,
)

SliceKey = tuple[tuple[int | None, int | None, int], ...]


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


def cast(x: Any, dtype: Any) -> Node:
    """The elements of x as another dtype; x itself if it has that dtype already."""
    node = as_node(x)
    target = as_dtype(dtype)
    return node if node.dtype == target else apply(_cast, [node], {"dtype": target})


register_function(cast)


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
    if None in wanted and len(batch_dims) != 1:
        raise ShapeError(f"expected integers or -1, for {format_shape(source)} has no one batch axis; found {wanted}")
    dims: list[Any] = [batch_dims[0] if dim is None else dim for dim in wanted]
    unknown = [axis for axis, dim in enumerate(dims) if not isinstance(dim, BatchDim) and dim == -1]
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


class Slice(Op):
    """Every step-th element from start on, along each axis: y = x[key].

    Shapes: x any; y as NumPy's basic slicing gives. The batch axis is taken whole, or reversed.
    Gradient: dx = zeros with g put at the slice.
    Cost: no flops, no bytes.
    Batch: passes along other axes; reversing the batch needs all of it.
    """

    name = "slice"
    is_view = True

    def infer(self, x: TensorType, *, key: SliceKey) -> TensorType:
        return x.with_shape(tuple(_sliced_dim(dim, *part) for dim, part in zip(x.shape, key, strict=True)))

    def forward(self, x: Array, *, key: SliceKey) -> Array:
        return x[_as_slices(key)]

    def vjp(self, g: Node, output: Node, x: Node, *, key: SliceKey) -> Sequence[Node | None]:
        return [_scatter_slice(g, shape=x.type.shape, key=key)]

    def cost(self, output: TensorType, *inputs: TensorType, key: SliceKey) -> Cost:
        return Cost(0, 0)

    def batch(
        self, placements: Sequence[Placement], output: TensorType, *types: TensorType, key: SliceKey
    ) -> Placement | None:
        return _slice_placement(placements, output, key)


_slice = register(Slice())


class ScatterSlice(Op):
    """Zeros, with g put at a slice: y[key] = g, and y = 0 elsewhere.

    Shapes: g that of the slice; y `shape`.
    Gradient: dg = the cotangent's slice.
    Cost: one pass over y; no flops.
    Batch: like slice.
    """

    name = "scatter_slice"

    def infer(self, g: TensorType, *, shape: Shape, key: SliceKey) -> TensorType:
        expected = tuple(_sliced_dim(dim, *part) for dim, part in zip(shape, key, strict=True))
        if g.shape != expected:
            raise ShapeError(f"expected the slice's shape {format_shape(expected)}; found {format_shape(g.shape)}")
        return g.with_shape(shape)

    def forward(self, g: Array, *, shape: tuple[int, ...], key: SliceKey) -> Array:
        result = np.zeros(shape, g.dtype)
        result[_as_slices(key)] = g
        return result

    def vjp(self, g: Node, output: Node, x: Node, *, shape: Shape, key: SliceKey) -> Sequence[Node | None]:
        return [_slice(g, key=key)]

    def cost(self, output: TensorType, x: TensorType, **_: Any) -> Cost:
        return Cost(0, moved_bytes(output, x))

    def batch(
        self, placements: Sequence[Placement], output: TensorType, *types: TensorType, shape: Shape, key: SliceKey
    ) -> Placement | None:
        return _slice_placement(placements, output, key)


_scatter_slice = register(ScatterSlice())


def _as_slices(key: SliceKey) -> tuple[slice, ...]:
    return tuple(slice(*part) for part in key)


def _sliced_dim(dim: Dim, start: int | None, stop: int | None, step: int) -> Dim:
    if isinstance(dim, BatchDim):
        if start is None and stop is None and abs(step) == 1:
            return dim
        raise ShapeError(
            f"expected the batch axis whole (:) or reversed (::-1), for its length is not known yet; "
            f"found {slice(start, stop, step)}. Slice the array before it is fed"
        )
    return len(range(*slice(start, stop, step).indices(dim)))


def _slice_placement(placements: Sequence[Placement], output: TensorType, key: SliceKey) -> Placement | None:
    (placement,) = placements
    if isinstance(placement, Split) and key[placement.axis][2] < 0:
        return Unsplittable("the order of the batch is reversed")
    if placement in (Partial("max"), Partial("min")):
        return None
    return rearrangement(placements, output)


@register_function
def flip(x: Any, axis: int | Sequence[int] | None = None) -> Node:
    """x with the order along the axes reversed, as `numpy.flip`."""
    node = as_node(x)
    axes = normalize_axes(axis, node.ndim)
    return _slice(node, key=tuple((None, None, -1 if place in axes else 1) for place in range(node.ndim)))


class Pad(Op):
    """Put constant elements before and after, along each axis.

    Shapes: x any; y longer by before + after along each axis. The batch axis is not padded.
    Gradient: dx = g without the padding.
    Cost: one pass over y; no flops.
    Batch: passes along other axes.
    """

    name = "pad"

    def infer(self, x: TensorType, *, pad_width: tuple[tuple[int, int], ...], value: float) -> TensorType:
        shape: list[Dim] = []
        for dim, (before, after) in zip(x.shape, pad_width, strict=True):
            if before < 0 or after < 0:
                raise ShapeError(f"expected widths of at least 0; found {pad_width}")
            if isinstance(dim, BatchDim):
                if before or after:
                    raise ShapeError(f"expected no padding of the batch axis; found {(before, after)}")
                shape.append(dim)
            else:
                shape.append(before + dim + after)
        return x.with_shape(tuple(shape))

    def forward(self, x: Array, *, pad_width: tuple[tuple[int, int], ...], value: float) -> Array:
        return np.pad(x, pad_width, constant_values=value)

    def vjp(
        self, g: Node, output: Node, x: Node, *, pad_width: tuple[tuple[int, int], ...], value: float
    ) -> Sequence[Node | None]:
        key = tuple(
            (None, None, 1) if isinstance(dim, BatchDim) else (before, before + dim, 1)
            for dim, (before, _) in zip(x.type.shape, pad_width, strict=True)
        )
        return [_slice(g, key=key)]

    def cost(self, output: TensorType, x: TensorType, **_: Any) -> Cost:
        return Cost(0, moved_bytes(output, x))

    def batch(
        self, placements: Sequence[Placement], output: TensorType, *types: TensorType, value: float, **_: Any
    ) -> Placement | None:
        return rearrangement(placements, output) if value == 0 else elementwise(placements, output)


_pad = register(Pad())


@register_function
def pad(x: Any, pad_width: Any, mode: str = "constant", *, constant_values: float = 0) -> Node:
    """x with `constant_values` before and after, as `numpy.pad`.

    Parameters
    ----------
    pad_width : an integer, a pair, or a pair for each axis
    mode : "constant" is the only one

    Raises
    ------
    ArgumentError
        for another mode, or widths that are not integers.
    """
    node = as_node(x)
    if mode != "constant":
        raise ArgumentError(f"expected mode 'constant'; found {mode!r}")
    widths = np.asarray(pad_width)
    if widths.dtype.kind not in "iu":
        raise ArgumentError(f"expected integers as pad_width; found {pad_width!r}")
    try:
        pairs = np.broadcast_to(widths, (node.ndim, 2)).tolist()
    except ValueError:
        raise ShapeError(f"pad: expected a pair for each of {node.ndim} axes; found {pad_width!r}") from None
    return _pad(node, pad_width=tuple((before, after) for before, after in pairs), value=constant_values)


class Concatenate(Op):
    """Join arrays along one axis.

    Shapes: any number of inputs, equal but for `axis`; y is as long along `axis` as they are together.
    Gradient: each input gets its slice of g.
    Cost: one pass; no flops.
    Batch: passes along other axes; along the batch axis samples would change their order.
    """

    name = "concatenate"

    def infer(self, *types: TensorType, axis: int) -> TensorType:
        if not types:
            raise ShapeError("expected at least one array to join; found none")
        first = types[0]
        for other in types[1:]:
            if other.dtype != first.dtype:
                raise DTypeError(f"expected one dtype; found {first.dtype} and {other.dtype}")
            if without_axes(other.shape, [axis]) != without_axes(first.shape, [axis]) or other.rank != first.rank:
                raise ShapeError(
                    f"expected shapes that differ along axis {axis} only; found "
                    f"{format_shape(first.shape)} and {format_shape(other.shape)}"
                )
        dims = [type.shape[axis] for type in types]
        if len({isinstance(dim, BatchDim) for dim in dims}) > 1:
            raise ShapeError(f"expected the batch in all inputs along axis {axis}, or in none; found {dims}")
        length = _add_dims(dims)
        return first.with_shape((*first.shape[:axis], length, *first.shape[axis + 1 :]))

    def forward(self, *arrays: Array, axis: int) -> Array:
        return np.concatenate(arrays, axis)

    def vjp(self, g: Node, output: Node, *inputs: Node, axis: int) -> Sequence[Node | None]:
        # The batch axis cannot be cut at B, but it can be cut after any number of whole batches: (5·B) → (5, B) → [:2].
        lengths = [dim.multiple if isinstance(dim, BatchDim) else dim for dim in (x.type.shape[axis] for x in inputs)]
        is_batch = isinstance(output.type.shape[axis], BatchDim)
        if is_batch:
            shape = output.type.shape
            g = _reshape(g, shape=(*shape[:axis], builtins.sum(lengths), BATCH, *shape[axis + 1 :]))
        stops = list(itertools.accumulate(lengths))
        slices = [
            _slice(g, key=tuple((start, stop, 1) if a == axis else (None, None, 1) for a in range(g.ndim)))
            for start, stop in zip([0, *stops], stops, strict=False)
        ]
        return (
            [_reshape(part, shape=x.type.shape) for part, x in zip(slices, inputs, strict=True)] if is_batch else slices
        )

    def cost(self, output: TensorType, *inputs: TensorType, axis: int) -> Cost:
        return Cost(0, moved_bytes(output, *inputs))

    def batch(
        self, placements: Sequence[Placement], output: TensorType, *types: TensorType, axis: int
    ) -> Placement | None:
        if any(isinstance(placement, Split) and placement.axis == axis for placement in placements):
            return Unsplittable("joined along the batch axis, which changes the order of the samples")
        return rearrangement(placements, output)


_concatenate = register(Concatenate())


def _add_dims(dims: Sequence[Dim]) -> Dim:
    if isinstance(dims[0], BatchDim):
        return BatchDim(builtins.sum(dim.multiple for dim in dims if isinstance(dim, BatchDim)))
    return builtins.sum(dim for dim in dims if not isinstance(dim, BatchDim))


@register_function
def concatenate(arrays: Sequence[Any], axis: int | None = 0) -> Node:
    """The arrays joined along `axis` (or all of their elements, for None), as `numpy.concatenate`."""
    nodes = promoted(arrays)
    if axis is None:
        nodes, axis = [ravel(node) for node in nodes], 0
    if not nodes:
        raise ShapeError("concatenate: expected at least one array to join; found none")
    return apply(_concatenate, nodes, {"axis": normalize_axis(axis, nodes[0].ndim)})


@register_function
def stack(arrays: Sequence[Any], axis: int = 0) -> Node:
    """The arrays joined along a new axis, as `numpy.stack`."""
    nodes = promoted(arrays)
    if not nodes:
        raise ShapeError("stack: expected at least one array to join; found none")
    place = normalize_axis(axis, nodes[0].ndim + 1)
    return concatenate([expand_dims(node, place) for node in nodes], place)


def promoted(values: Sequence[Any]) -> list[Node]:
    """The values as nodes of one dtype, by NumPy 2's rules: Python numbers take the dtype of the others.

    Python numbers among themselves become float32 and int64.
    """
    plain = (bool, int, float)
    dtypes = [value if type(value) in plain else _dtype_of(value) for value in values]
    if all(type(value) in plain for value in values):
        return [as_node(value) for value in values]
    target = as_dtype(np.result_type(*dtypes))
    return [cast(value if isinstance(value, Node) else as_node(value, target), target) for value in values]


def _dtype_of(value: Any) -> np.dtype[Any]:
    return value.dtype if isinstance(value, Node) else as_dtype(np.asarray(value).dtype)


@register_function
def getitem(x: Any, key: Any) -> Node:
    """``x[key]`` by NumPy's basic indexing: integers, slices with steps, ``...`` and ``None``.

    An index array, or a node of integers, takes along the first axis, as `take` does.

    Raises
    ------
    ArgumentError
        for boolean masks and several index arrays (use `where`, `take`).
    ShapeError
        for too many indices, an integer outside its axis, or a slice of the batch axis.
    """
    node = as_node(x)
    if isinstance(key, Node | np.ndarray | list):
        return functions["take"](node, key, axis=0)
    parts = key if isinstance(key, tuple) else (key,)
    for part in parts:
        if part is not None and part is not Ellipsis and not isinstance(part, slice | int | np.integer):
            raise ArgumentError(
                f"expected integers, slices, ... and None as indices of {describe(node)}; found {part!r}. "
                "Use mg.take for index arrays and mg.where for masks"
            )
        if isinstance(part, bool):
            raise ArgumentError(f"expected no masks as indices of {describe(node)}; found {part!r}. Use mg.where")
    parts = _without_ellipsis(node, parts)
    slices: list[tuple[int | None, int | None, int]] = []
    shape: list[Dim | None] = []  # None marks an axis that the slice decides
    for part in parts:
        if part is None:
            shape.append(1)
        elif isinstance(part, slice):
            slices.append(_normalized_slice(part, node.type.shape[len(slices)]))
            shape.append(None)
        else:
            slices.append(_single_element(node, int(part), len(slices)))
    sliced = _slice(node, key=tuple(slices)) if any(part != (None, None, 1) for part in slices) else node
    kept = iter(
        dim
        for dim, part in zip(sliced.type.shape, (part for part in parts if part is not None), strict=True)
        if isinstance(part, slice)
    )
    final = tuple(next(kept) if dim is None else dim for dim in shape)
    return sliced if final == sliced.type.shape else _reshape(sliced, shape=final)


def _without_ellipsis(node: Node, parts: tuple[Any, ...]) -> tuple[Any, ...]:
    consumed = builtins.sum(part is not None and part is not Ellipsis for part in parts)
    ellipses = [place for place, part in enumerate(parts) if part is Ellipsis]
    if consumed > node.ndim or len(ellipses) > 1:
        raise ShapeError(f"expected at most {node.ndim} indices and one ... for {describe(node)}; found {parts}")
    place = ellipses[0] if ellipses else len(parts)
    return (*parts[:place], *[slice(None)] * (node.ndim - consumed), *parts[place + 1 :])


def _normalized_slice(part: slice, dim: Dim) -> tuple[int | None, int | None, int]:
    step = 1 if part.step is None else int(part.step)
    if step == 0:
        raise ShapeError("getitem: expected a step other than 0; found 0")
    if isinstance(dim, BatchDim):
        return part.start, part.stop, step
    start, stop, step = part.indices(dim)
    length = len(range(start, stop, step))
    if (start, step, length) == (0, 1, dim):
        return None, None, 1
    if length == 0:
        return 0, 0, 1
    # Going backwards to the very first element ends before index 0, which only None can say.
    return start, (None if stop < 0 else stop), step


def _single_element(node: Node, index: int, axis: int) -> tuple[int | None, int | None, int]:
    dim = node.type.shape[axis]
    if isinstance(dim, BatchDim):
        raise ShapeError(
            f"expected no single element of the batch axis, for its length is not known yet; found index {index} "
            f"of {describe(node)}. Index the array before it is fed"
        )
    if not -dim <= index < dim:
        raise ShapeError(
            f"expected an index from {-dim} to {dim - 1} along axis {axis} of {describe(node)}; found {index}"
        )
    return index % dim, index % dim + 1, 1
