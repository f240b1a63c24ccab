"""Gradients of matrices of which workers share the factors, not the products.

The gradient of a dense layer's matrix is Xᵀ G. A worker who has some rows of X and of G computes a matrix of the same
size from them, and all these are to be added up. Where the batch is small beside the matrix, both factors together are
smaller than their product: then each worker lets the others read its rows, and computes its slice of the matrix from
the rows of all. Nothing has to be added up, and no worker writes or reads more of the gradient than its slice.

The idea is that of sufficient factors (Xie et al. 2016, "Lighter-communication distributed machine learning via
sufficient factor broadcasting", UAI, section 3).
"""

from __future__ import annotations

from miai_graph.graph import Graph
from miai_graph.node import Node
from miai_graph.ops.again import _again
from miai_graph.ops.elementwise import ElementwiseOp
from miai_graph.ops.linalg import _matmul
from miai_graph.ops.structure import _reshape, _transpose
from miai_graph.passes.batch_analysis import BatchAnalysis
from miai_graph.placement import Split
from miai_graph.types import bind_shape

MULTIPLICATIONS = 16
"""A core does about so many, with additions, in the time that an element takes in an element-wise kernel."""

VIEWS = (_transpose, _reshape, _again)


def outer_products(graph: Graph, analysis: BatchAnalysis, batch_size: int) -> dict[Node, int]:
    """The products of which workers are to share the factors, for batches of a size.

    Each is given with what an element of it costs, as so many times what one of an element-wise node does. That is a
    power of two, so that batches of about one size come to the same.
    """
    needed_whole = set(graph.outputs)
    for node in graph.nodes:
        if not isinstance(node.op, ElementwiseOp):
            needed_whole.update(node.inputs)
    found: dict[Node, int] = {}
    for node in graph.nodes:
        # What is needed whole would be computed whole by each who needs it.
        if node not in analysis.reduced or node in needed_whole or not _multiplies_rows(node, analysis):
            continue
        depth, columns = bind_shape(node.inputs[1].type.shape, batch_size)
        if depth * (node.type.size // columns + columns) <= node.type.size:
            found[node] = 1 << (depth // MULTIPLICATIONS).bit_length()
    return found


def shared_rows(factor: Node) -> Node:
    """The value whose rows are shared, of which a factor is a view."""
    while factor.op in VIEWS:
        factor = factor.inputs[0]
    return factor


def _multiplies_rows(node: Node, analysis: BatchAnalysis) -> bool:
    """Whether it adds up over the rows of the batch, of two values that have these along their first axis."""
    if node.op is not _matmul or node.ndim != 2 or node.type.batch_axes:
        return False
    placements = [analysis.placements[factor] for factor in (*node.inputs, *map(shared_rows, node.inputs))]
    axes = [placement.axis if isinstance(placement, Split) else None for placement in placements]
    return axes == [1, 0, 0, 0]
