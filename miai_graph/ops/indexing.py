"""Ops that pick elements by index arrays, and those that put them back.

Closed under vjp over `structure` and this file: take ↔ scatter_add.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from miai_graph.errors import ArgumentError, DTypeError, ShapeError
from miai_graph.messages import describe, locates_errors
from miai_graph.node import Node
from miai_graph.op import Array, Cost, Op, as_node, moved_bytes, no_derivative, register, register_function
from miai_graph.ops.arithmetic import add
from miai_graph.ops.casting import promoted
from miai_graph.ops.structure import ravel
from miai_graph.placement import REPLICATED, Partial, Placement, Split, Unsplittable, elementwise, placement_of_type
from miai_graph.types import BatchDim, TensorType, as_dtype, format_shape, normalize_axis


def _check_indices(indices: TensorType) -> None:
    if not indices.is_integer:
        raise DTypeError(f"expected integers as indices; found {indices}")


def checked_indices(indices: Array, length: int) -> Array:
    """Indices counted from the front, as int64.

    Raises
    ------
    IndexError
        naming the first index that is outside, and its position.
    """
    outside = (indices < -length) | (indices >= length)
    if outside.any():
        place = np.unravel_index(int(outside.argmax()), outside.shape)
        raise IndexError(
            f"expected indices from {-length} to {length - 1}; found {indices[place]} "
            f"at position {tuple(int(part) for part in place)}"
        )
    # In int64 first: a narrow dtype need not hold the length.
    places = indices.astype(np.int64, copy=False)
    return np.where(places < 0, places + length, places)


class Take(Op):
    """Rows picked by their numbers: y = x[indices] along an axis.

    Shapes: x any; indices any, of integers; y is x with `axis` replaced by the axes of indices.
    Gradient: dx = scatter_add of g; indices have none.
    Cost: no flops; one pass over y.
    Batch: split indices pick from a whole x; other axes of x pass.
    Care: negative indices count from the back; any outside raises when the graph runs.
    """

    name = "take"

    def infer(self, x: TensorType, indices: TensorType, *, axis: int) -> TensorType:
        _check_indices(indices)
        if isinstance(x.shape[axis], BatchDim):
            raise ShapeError(
                f"expected an axis other than the batch to take from, for its length is not known yet; found {x}. "
                "Pick samples before they are fed"
            )
        return x.with_shape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))

    def forward(self, x: Array, indices: Array, *, axis: int) -> Array:
        return np.take(x, checked_indices(indices, x.shape[axis]), axis)

    def vjp(self, g: Node, output: Node, x: Node, indices: Node, *, axis: int) -> Sequence[Node | None]:
        length = x.type.shape[axis]
        return [_scatter_add(indices, g, length=length, axis=axis) if x.type.is_floating else None, None]

    def cost(self, output: TensorType, x: TensorType, indices: TensorType, *, axis: int) -> Cost:
        return Cost(0, 2 * output.size_bytes + indices.size_bytes)

    def batch(
        self, placements: Sequence[Placement], output: TensorType, *types: TensorType, axis: int
    ) -> Placement | None:
        x, indices = placements
        if isinstance(x, Partial) and indices == REPLICATED:
            return x
        return elementwise(placements, output)


class ScatterAdd(Op):
    """Rows added up at the places that indices say: y[indices] += g along an axis, from zeros.

    Shapes: indices any, of integers; g has their axes in the place of `axis`; y has one axis of `length` there.
    Gradient: dg = take of the cotangent; indices have none.
    Cost: one flop an element of g; one pass over g and y.
    Batch: a sum is owed if indices and g are split along the indices' axes; other axes of g pass.
    Care: the order of additions to one place is that of the indices.
    """

    name = "scatter_add"

    def infer(self, indices: TensorType, g: TensorType, *, length: int, axis: int) -> TensorType:
        _check_indices(indices)
        end = axis + indices.rank
        if g.shape[axis:end] != indices.shape:
            raise ShapeError(
                f"expected rows with the axes of the indices, {format_shape(indices.shape)}, from axis {axis} on; "
                f"found {g}"
            )
        return g.with_shape((*g.shape[:axis], length, *g.shape[end:]))

    def forward(self, indices: Array, g: Array, *, length: int, axis: int) -> Array:
        places = checked_indices(indices, length).ravel()
        shape = g.shape
        end = axis + indices.ndim
        before, after = math.prod(shape[:axis]), math.prod(shape[end:])
        result = np.zeros((before, length, after), g.dtype)
        rows = g.reshape(before, places.size, after)
        for block, source in zip(result, rows, strict=True):
            np.add.at(block, places, source)
        return result.reshape((*shape[:axis], length, *shape[end:]))

    def vjp(self, g: Node, output: Node, indices: Node, rows: Node, *, length: int, axis: int) -> Sequence[Node | None]:
        return [None, _take(g, indices, axis=axis)]

    def cost(self, output: TensorType, indices: TensorType, g: TensorType, **_: Any) -> Cost:
        return Cost(g.size, moved_bytes(output, indices, g))

    def batch(
        self,
        placements: Sequence[Placement],
        output: TensorType,
        indices_type: TensorType,
        g_type: TensorType,
        *,
        length: int,
        axis: int,
    ) -> Placement | None:
        indices, g = placements
        if isinstance(indices, Partial):
            return None
        if indices == REPLICATED and g == Partial("sum"):
            return g
        if isinstance(g, Partial):
            return None
        if isinstance(indices, Split):
            return Partial("sum")
        if isinstance(g, Split) and axis <= g.axis < axis + indices_type.rank:
            return Unsplittable("the rows are split but their indices are not")
        return placement_of_type(output)


_take = register(Take())
_scatter_add = register(ScatterAdd())


@register_function
def take(x: Any, indices: Any, axis: int | None = None) -> Node:
    """Elements or rows of x by number, as `numpy.take`.

    Parameters
    ----------
    indices : integers, or a node of them; negative ones count from the back
    axis : which rows; None: of x laid out flat

    Raises
    ------
    ExecutionError
        when the graph runs, if an index is outside.
    """
    node, places = as_node(x), as_index_node(indices)
    if axis is None:
        node, axis = ravel(node), 0
    return _take(node, places, axis=normalize_axis(axis, node.ndim))


def as_index_node(indices: Any) -> Node:
    """Integers as a node; bool masks are refused, for they would be taken as numbers."""
    node = as_node(np.zeros(np.shape(indices), np.int64) if _is_empty_list(indices) else indices)
    if not node.type.is_integer:
        raise DTypeError(f"expected integers as indices; found {describe(node)}. Use mg.where for masks")
    return node


def _is_empty_list(indices: Any) -> bool:
    """Whether it is a list without numbers, which NumPy would take for floats."""
    return isinstance(indices, list | tuple) and np.size(indices) == 0


@locates_errors
def scatter_add(x: Any, indices: Any, updates: Any, axis: int = 0) -> Node:
    """x with rows added at the places that indices say; where an index repeats, all its rows are added.

    Parameters
    ----------
    x : any shape, floating
    indices : integers of any shape
    updates : x's shape with `axis` replaced by the axes of indices
    """
    target, rows = promoted([x, updates])
    place = normalize_axis(axis, target.ndim)
    length = target.type.shape[place]
    if isinstance(length, BatchDim):
        raise ShapeError(
            f"scatter_add: expected an axis other than the batch; found axis {place} of {describe(target)}"
        )
    return add(target, _scatter_add(as_index_node(indices), rows, length=length, axis=place))


class OneHot(Op):
    """A one at each index, in a row of zeros: y[…, k] = (indices[…] == k).

    Shapes: indices any, of integers; y has one more axis, of length `depth`, last.
    Gradient: zero.
    Cost: one flop an element; one pass over y.
    Batch: passes.
    Care: an index outside 0 to depth - 1 gives a row of zeros.
    """

    name = "one_hot"
    vjp = no_derivative

    def infer(self, indices: TensorType, *, depth: int, dtype: np.dtype[Any]) -> TensorType:
        _check_indices(indices)
        if depth < 0:
            raise ShapeError(f"expected a depth of at least 0; found {depth}")
        return TensorType(dtype, (*indices.shape, depth))

    def forward(self, indices: Array, *, depth: int, dtype: np.dtype[Any]) -> Array:
        return np.asarray(indices[..., None] == np.arange(depth)).astype(dtype)

    def cost(self, output: TensorType, indices: TensorType, **_: Any) -> Cost:
        return Cost(output.size, moved_bytes(output, indices))

    def batch(
        self, placements: Sequence[Placement], output: TensorType, *types: TensorType, **_: Any
    ) -> Placement | None:
        return elementwise(placements, output)


_one_hot = register(OneHot())


@locates_errors
def one_hot(indices: Any, depth: int, dtype: Any = "float32") -> Node:
    """A one at each index, in a row of `depth` zeros; rows of zeros for indices outside."""
    if isinstance(depth, bool) or not isinstance(depth, int | np.integer):
        raise ArgumentError(f"expected an integer as depth of one_hot; found {depth!r}")
    return _one_hot(as_index_node(indices), depth=int(depth), dtype=as_dtype(dtype))
