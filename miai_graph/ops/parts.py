"""Values of which each part of the batch has its own, such as the mean of a micro-batch or of a worker's rows.

What they come to depends on how the batch is cut. On an executor that does not cut it, its one part is the whole batch.

There are four kinds of values (see `placement`), and the four ops here lead from one to another. Each is the vjp of
another, so that cotangents are of the right kind too: what each part has for itself gets a cotangent for each part, and
what all parts share gets the sum over them.

    sum_of_part     split → local           ↔  repeat_in_part  local → split
    each_part       replicated → local      ↔  sum_over_parts  local → partial

They are the "varying" and "invariant" values of JAX's `shard_map`, with `pvary` and `psum` between them.
"""

from __future__ import annotations

from collections.abc import Sequence

from miai_graph.errors import ShapeError
from miai_graph.node import Node
from miai_graph.op import Array, Op, elementwise_cost, register
from miai_graph.ops.casting import cast
from miai_graph.ops.leaves import batch_size, part_size
from miai_graph.ops.reductions import element_count
from miai_graph.ops.structure import BroadcastTo, Sum, _reshape, restore_axes
from miai_graph.placement import LOCAL, Partial, Placement, Split, placement_of_type
from miai_graph.types import Shape, TensorType


class SumOfPart(Sum):
    """Add up the elements along axes, of the rows of each part of the batch for itself: y = Σ x.

    Shapes: x any; y has x's shape without `axes`.
    Gradient: dx = g repeated along `axes`, for each part its own.
    Cost: one flop an element of x.
    Batch: over the batch axis each part has its own sum, and none is owed.
    """

    name = "sum_of_part"

    def vjp(self, g: Node, output: Node, x: Node, *, axes: tuple[int, ...]) -> Sequence[Node | None]:
        shape = x.type.shape
        return [repeat_in_part(restore_axes(g, shape, axes), shape) if x.type.is_floating else None]

    def batch(
        self, placements: Sequence[Placement], output: TensorType, x: TensorType, *, axes: tuple[int, ...]
    ) -> Placement | None:
        (placement,) = placements
        if isinstance(placement, Partial):
            return None
        return LOCAL if isinstance(placement, Split) and placement.axis in axes else placement_of_type(output)


class RepeatInPart(BroadcastTo):
    """Repeat what each part of the batch has for itself along axes of length one, in its own rows.

    Shapes: x of as many axes as `shape`, and of its lengths or 1; y `shape`.
    Gradient: dx = sum of g over the repeated axes, for each part its own.
    Cost: no flops, no bytes; consumers read with stride zero.
    Batch: rows are repeated where the worker has them.
    """

    name = "repeat_in_part"

    def vjp(self, g: Node, output: Node, x: Node, *, shape: Shape) -> Sequence[Node | None]:
        repeated = tuple(axis for axis, dim in enumerate(shape) if dim != x.type.shape[axis])
        return [_reshape(_sum_of_part(g, axes=repeated), shape=x.type.shape)]


class Crossing(Op):
    """What `each_part` and `sum_over_parts` have in common: on one part they change nothing."""

    is_view = True
    cost = elementwise_cost(0)

    def infer(self, x: TensorType) -> TensorType:
        if x.batch_axes:
            raise ShapeError(f"expected a value without the batch axis; found {x}. Reduce it along that axis before")
        return x

    def forward(self, x: Array) -> Array:
        return x


class EachPart(Crossing):
    """What all parts of the batch share, for each part to use by itself: y = x.

    Shapes: x any without the batch; y the same.
    Gradient: dx = sum of g over the parts.
    Cost: nothing.
    Batch: each part has its own, though they are equal.
    """

    name = "each_part"

    def vjp(self, g: Node, output: Node, x: Node) -> Sequence[Node | None]:
        return [_sum_over_parts(g)]

    def batch(self, placements: Sequence[Placement], output: TensorType, x: TensorType) -> Placement | None:
        return None if isinstance(placements[0], Partial) else LOCAL


class SumOverParts(Crossing):
    """Add up what the parts of the batch have, each for itself: y = Σ x over the parts.

    Shapes: x any without the batch; y the same.
    Gradient: dx = g, the same for each part.
    Cost: nothing; the reduction is counted where it is done.
    Batch: a sum is owed.
    """

    name = "sum_over_parts"

    def vjp(self, g: Node, output: Node, x: Node) -> Sequence[Node | None]:
        return [_each_part(g)]

    def batch(self, placements: Sequence[Placement], output: TensorType, x: TensorType) -> Placement | None:
        return None if isinstance(placements[0], Partial) else Partial("sum")


_sum_of_part = register(SumOfPart())
_repeat_in_part = register(RepeatInPart())
_each_part = register(EachPart())
_sum_over_parts = register(SumOverParts())


def repeat_in_part(x: Node, shape: Shape) -> Node:
    """x, of as many axes as the shape, repeated to it in each part's own rows."""
    return x if x.type.shape == shape else _repeat_in_part(x, shape=shape)


def each_part(x: Node) -> Node:
    """x, which all parts share, as a value of each part."""
    return _each_part(x)


def mean_of_part(x: Node, axes: Sequence[int]) -> Node:
    """For each part the arithmetic mean of its rows, of floats, along axes that stay with length one."""
    shape = x.type.shape
    total = restore_axes(_sum_of_part(x, axes=tuple(axes)), shape, axes)
    return total / element_count(shape, axes, x.dtype, part_size())


def average_over_parts(x: Node) -> Node:
    """The average of what the parts have, weighted by their numbers of samples."""
    return _sum_over_parts(x * cast(part_size() / batch_size(), x.dtype))
