"""Joining arrays along an axis. Closed under vjp over `structure` and `slicing`: concatenate → slice."""

from __future__ import annotations

import builtins
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from miai_graph.errors import DTypeError, ShapeError
from miai_graph.node import Node, apply
from miai_graph.op import Array, Cost, Op, moved_bytes, register, register_function
from miai_graph.ops.casting import promoted
from miai_graph.ops.slicing import _slice
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
