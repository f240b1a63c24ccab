"""Products that are transposed anyway are computed that way: (A B)ᵀ = Bᵀ Aᵀ, where Aᵀ and Bᵀ are only views."""

from __future__ import annotations

from collections import Counter

from miai_graph.context import building_on_behalf_of
from miai_graph.graph import Graph
from miai_graph.node import Node, apply
from miai_graph.ops.linalg import _matmul
from miai_graph.ops.structure import _transpose
from miai_graph.passes.rewrite import with_inputs, with_replaced


def transpose_products(graph: Graph) -> Graph:
    """The graph in which no product's columns end up before its rows, if nobody needs them otherwise."""
    users = Counter(source for node in graph.nodes for source in node.inputs)
    users.update([*graph.outputs, *graph.updates.values()])
    replaced: dict[Node, Node] = {}
    for node in graph.nodes:
        inputs = [replaced[source] for source in node.inputs]
        turns = _turns_a_product(node) and users[node.inputs[0]] == 1
        replaced[node] = _turned(node, inputs[0]) if turns else with_inputs(node, inputs)
    return with_replaced(graph, replaced)


def _turns_a_product(node: Node) -> bool:
    if node.op is not _transpose or node.inputs[0].op is not _matmul:
        return False
    rows, columns = node.ndim - 2, node.ndim - 1
    axes = node.attributes["axes"]
    return bool(axes[-1] == rows and axes.index(columns) < axes.index(rows))


def _turned(node: Node, product: Node) -> Node:
    """The transposed product, by one that has rows and columns the other way round."""
    rows, columns = node.ndim - 2, node.ndim - 1
    exchanged = {rows: columns, columns: rows}
    swapped = tuple(exchanged.get(axis, axis) for axis in range(node.ndim))
    axes = tuple(exchanged.get(axis, axis) for axis in node.attributes["axes"])
    with building_on_behalf_of(product, product.phase):
        factors = [apply(_transpose, [factor], {"axes": swapped}) for factor in reversed(product.inputs)]
        turned = apply(_matmul, factors, {})
    if axes == tuple(range(node.ndim)):
        return turned
    with building_on_behalf_of(node, node.phase):
        return apply(_transpose, [turned], {"axes": axes})
