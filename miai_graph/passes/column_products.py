"""Products of few rows with large matrices, which workers cut up by columns.

For its rows of X W a worker would read all of W, which takes longer than the arithmetic where the rows are few. So
workers let each other read their rows of X, each computes some columns of the product for the rows of all, and reads
its own rows of it when the others are done too. That is two barriers more, and each reads only its share of W.

The idea is that of tensor parallelism (Shoeybi et al. 2019, arXiv:1909.08053, section 3).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from miai_graph.graph import Graph
from miai_graph.node import Node
from miai_graph.ops.leaves import is_variable
from miai_graph.ops.linalg import _matmul
from miai_graph.passes.batch_analysis import BatchAnalysis
from miai_graph.passes.outer_products import shared_rows
from miai_graph.placement import Placement, Replicated, Split
from miai_graph.types import bind_shape

FEW_ROWS = 24
"""A worker with more rows than these computes for as long as it takes to read a matrix."""

LARGE_BYTES = 1 << 20
"""Smaller matrices stay in a core's own cache, or take no longer to read than a barrier takes."""

CUT_COLUMNS = 16
"""Cuts stand at multiples of so many columns: whole cache lines, and tiles of the kernel."""


def column_products(
    graph: Graph, analysis: BatchAnalysis, batch_size: int, workers: int, outer_products: Collection[Node]
) -> frozenset[Node]:
    """The products to be cut up by columns.

    Parameters
    ----------
    outer_products : those of which the factors are shared; no worker has these rows before all have them
    """
    shared = {shared_rows(factor) for product in outer_products for factor in product.inputs}
    found: set[Node] = set()
    for node in graph.nodes:
        if node in shared or not _multiplies_rows(node, analysis.placements) or shared_rows(node.inputs[0]) in found:
            continue
        matrix = node.inputs[1].type
        rows, columns = bind_shape(node.type.shape, batch_size)
        if rows <= FEW_ROWS * workers and matrix.size_bytes >= LARGE_BYTES and columns >= CUT_COLUMNS * workers:
            found.add(node)
    return frozenset(found)


def own_columns(node: Node, worker: int, workers: int) -> tuple[int, int]:
    """The first column that a worker computes of a product, and the one behind the last."""
    columns = node.type.shape[1]
    assert isinstance(columns, int)
    start, stop = (columns * place // workers // CUT_COLUMNS * CUT_COLUMNS for place in (worker, worker + 1))
    return start, columns if worker + 1 == workers else stop


def _multiplies_rows(node: Node, placements: Mapping[Node, Placement]) -> bool:
    """Whether it is the product of rows of the batch with a parameter."""
    if node.op is not _matmul or node.ndim != 2 or not is_variable(shared_rows(node.inputs[1])):
        return False
    left, matrix = node.inputs
    if not isinstance(placements[matrix], Replicated):
        return False
    found = [placements[each] for each in (node, left, shared_rows(left))]
    return all(isinstance(placement, Split) and placement.axis == 0 for placement in found)
