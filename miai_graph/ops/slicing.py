"""Parts of arrays: slices, padding, and NumPy's basic indexing.

Closed under vjp: slice ↔ scatter_slice, pad → slice.
"""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import Any

import numpy as np

from miai_graph.errors import ArgumentError, ShapeError
from miai_graph.messages import describe
from miai_graph.node import Node, functions
from miai_graph.op import Array, Cost, Op, as_node, moved_bytes, register, register_function
from miai_graph.ops.structure import _reshape
from miai_graph.placement import (
    Partial,
    Placement,
    Split,
    Unsplittable,
    elementwise,
    rearrangement,
)
from miai_graph.types import (
    BatchDim,
    Dim,
    Shape,
    TensorType,
    format_shape,
    normalize_axes,
)

SliceKey = tuple[tuple[int | None, int | None, int], ...]


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
    constant_values : one number

    Raises
    ------
    ArgumentError
        for another mode, widths that are not integers, or a value that is not one number.
    """
    node = as_node(x)
    if mode != "constant":
        raise ArgumentError(f"expected mode 'constant'; found {mode!r}")
    if isinstance(constant_values, Node) or np.ndim(constant_values):
        raise ArgumentError(f"expected one number as constant_values of pad; found {constant_values!r}")
    widths = np.asarray(pad_width)
    if widths.dtype.kind not in "iu":
        raise ArgumentError(f"expected integers as pad_width; found {pad_width!r}")
    try:
        pairs = np.broadcast_to(widths, (node.ndim, 2)).tolist()
    except ValueError:
        raise ShapeError(f"pad: expected a pair for each of {node.ndim} axes; found {pad_width!r}") from None
    return _pad(node, pad_width=tuple((before, after) for before, after in pairs), value=constant_values)


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
