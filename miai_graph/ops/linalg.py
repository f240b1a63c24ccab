"""Matrix multiplication. Closed under vjp over `structure` and this file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from miai_graph.errors import DTypeError, ShapeError
from miai_graph.messages import describe
from miai_graph.node import Node
from miai_graph.op import Array, Cost, Op, moved_bytes, register, register_function
from miai_graph.ops.casting import promoted
from miai_graph.ops.structure import _reshape, broadcast_to, expand_dims, squeeze, swapaxes
from miai_graph.placement import REPLICATED, Partial, Placement, Split, Unsplittable, placement_of_type
from miai_graph.types import ElementCount, TensorType, broadcast_shapes, format_shape


class MatMul(Op):
    """Product of matrices, or of stacks of them: y[…, i, j] = Σₖ a[…, i, k] · b[…, k, j].

    Shapes: a […, m, k] and b […, k, n] with the same leading axes; y […, m, n].
    Gradient: da = g bᵀ, db = aᵀ g.
    Cost: 2 · m · n · k flops a matrix.
    Batch: over rows of a, columns of b or leading axes it passes; along the axis summed over a sum is owed.
    Care: the order of the additions is BLAS's own.
    """

    name = "matmul"

    def infer(self, a: TensorType, b: TensorType) -> TensorType:
        if a.rank < 2 or a.rank != b.rank or a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-2]:
            raise ShapeError(
                f"expected matrices [m,k] and [k,n], or stacks of as many; found {format_shape(a.shape)} and "
                f"{format_shape(b.shape)}"
            )
        if a.dtype != b.dtype or a.dtype == bool:
            raise DTypeError(f"expected numbers of one dtype; found {a} and {b}")
        return a.with_shape((*a.shape[:-1], b.shape[-1]))

    def forward(self, a: Array, b: Array) -> Array:
        return np.asarray(np.matmul(a, b))

    def vjp(self, g: Node, output: Node, a: Node, b: Node) -> Sequence[Node | None]:
        return [_matmul(g, swapaxes(b, -1, -2)), _matmul(swapaxes(a, -1, -2), g)]

    def cost(self, output: TensorType, a: TensorType, b: TensorType) -> Cost:
        return Cost(2 * output.size * int(a.shape[-1]), moved_bytes(output, a, b))  # type: ignore[arg-type]

    def batch(
        self, placements: Sequence[Placement], output: TensorType, a: TensorType, b: TensorType
    ) -> Placement | None:
        if set(placements) == {Partial("sum"), REPLICATED}:
            return Partial("sum")
        if any(isinstance(placement, Partial) for placement in placements):
            return None
        left, right = placements
        summed = [
            isinstance(left, Split) and left.axis == a.rank - 1,
            isinstance(right, Split) and right.axis == b.rank - 2,
        ]
        if all(summed):
            return Partial("sum")
        if any(summed) or (isinstance(left, Split) and isinstance(right, Split) and len(output.batch_axes) != 1):
            return Unsplittable("it multiplies samples of the batch with each other")
        return placement_of_type(output)


_matmul = register(MatMul())


@register_function
def matmul(x1: Any, x2: Any) -> Node:
    """The matrix product, as `numpy.matmul` and the operator @.

    Vectors count as a row on the left and a column on the right; leading axes broadcast. A matrix on the right of a
    stack is one multiplication of all rows of the stack, not one a matrix.

    Raises
    ------
    ShapeError
        if the lengths of the axis summed over differ, or an operand is a scalar.
    """
    a, b = promoted([x1, x2])
    if 0 in (a.ndim, b.ndim):
        raise ShapeError(
            f"matmul: expected vectors or matrices; found {describe(a)} and {describe(b)}. Multiply with *"
        )
    if a.ndim == 1:
        return squeeze(matmul(expand_dims(a, 0), b), -1 if b.ndim == 1 else -2)
    if b.ndim == 1:
        return squeeze(matmul(a, expand_dims(b, 1)), -1)
    rows = ElementCount.of(a.type.shape[:-1]).divided_by(ElementCount(1, 0))
    if b.ndim == 2 and a.ndim > 2 and a.type.shape[-1] == b.type.shape[0] and rows is not None:
        flat = _reshape(a, shape=(rows, a.type.shape[-1]))
        return _reshape(_matmul(flat, b), shape=(*a.type.shape[:-1], b.type.shape[-1]))
    if a.type.shape[:-2] == b.type.shape[:-2] or a.type.shape[-1] != b.type.shape[-2]:
        return _matmul(a, b)
    try:
        stack = broadcast_shapes(a.type.shape[:-2], b.type.shape[:-2])
    except ShapeError:
        return _matmul(a, b)  # infer says it again, with the inputs' lines
    return _matmul(broadcast_to(a, (*stack, *a.type.shape[-2:])), broadcast_to(b, (*stack, *b.type.shape[-2:])))


@register_function
def dot(a: Any, b: Any) -> Node:
    """The product of vectors or matrices, as `numpy.dot` for at most two axes; a scalar multiplies."""
    left, right = promoted([a, b])
    if 0 in (left.ndim, right.ndim):
        return left * right
    if right.ndim > 2:
        raise ShapeError(f"dot: expected at most two axes on the right; found {describe(right)}. Use matmul")
    return matmul(left, right)
