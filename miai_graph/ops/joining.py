"""Joining arrays along an axis. Closed under vjp over `structure` and `slicing`: concatenate → slice."""

from __future__ import annotations

import builtins
import itertools
from bisect import bisect_left
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from miai_graph.errors import DTypeError, ShapeError
from miai_graph.node import Node, apply
from miai_graph.op import Array, Cost, Op, moved_bytes, register, register_function
from miai_graph.ops.casting import promoted
from miai_graph.ops.slicing import _pad, _scatter_slice, _slice
from miai_graph.ops.structure import _reshape, expand_dims, ravel, without_axes
from miai_graph.placement import (
    Placement,
    Split,
    Unsplittable,
    rearrangement,
)
from miai_graph.types import (
    BATCH,
    BatchDim,
    Dim,
    TensorType,
    format_shape,
    normalize_axis,
)


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


class SlicesToAdd:
    """Nodes made by scatter_slice, to be added up: slices of one array along one axis, which do not overlap.

    Parameters
    ----------
    first : of them
    """

    def __init__(self, first: Node) -> None:
        self._nodes = [first]
        self._axis: int | None = None

    def take(self, node: Node) -> bool:
        """Add another one, if it lies beside the others. Only slices without steps do."""
        keys = self._nodes[0].attributes["key"], node.attributes["key"]
        axes = [axis for axis, (first, other) in enumerate(zip(*keys, strict=True)) if first != other]
        if len(axes) != 1 or self._axis not in (None, axes[0]) or not all(_is_plain(key[axes[0]]) for key in keys):
            return False
        bounds = partial(_bounds, axis=axes[0])
        start, stop = bounds(node)
        place = bisect_left(self._nodes, (start, stop), key=bounds)
        overlaps_before = place > 0 and bounds(self._nodes[place - 1])[1] > start
        overlaps_behind = place < len(self._nodes) and bounds(self._nodes[place])[0] < stop
        if overlaps_before or overlaps_behind:
            return False
        self._axis = axes[0]
        self._nodes.insert(place, node)
        return True

    def total(self) -> Node:
        """Their sum, which costs one pass, however many they are."""
        first = self._nodes[0]
        if self._axis is None:
            return first
        shape, axis = first.attributes["shape"], self._axis
        ends = [_bounds(node, axis)[0] for node in self._nodes[1:]] + [shape[axis]]
        parts = []
        for place, (node, end) in enumerate(zip(self._nodes, ends, strict=True)):
            start, stop = _bounds(node, axis)
            gaps = (0 if place else start, end - stop)
            widths = tuple(gaps if at == axis else (0, 0) for at in range(len(shape)))
            parts.append(_pad(node.inputs[0], pad_width=widths, value=0) if any(gaps) else node.inputs[0])
        whole = _concatenate(*parts, axis=axis)
        key = tuple((None, None, 1) if at == axis else part for at, part in enumerate(first.attributes["key"]))
        return whole if whole.type.shape == shape else _scatter_slice(whole, shape=shape, key=key)


def _bounds(node: Node, axis: int) -> tuple[int, int]:
    start, stop, _ = node.attributes["key"][axis]
    return start, stop


def _is_plain(part: tuple[int | None, int | None, int]) -> bool:
    start, stop, step = part
    return start is not None and stop is not None and 0 <= start <= stop and step == 1
