"""Sums of multiples of what is added up anyway: Σ a·x is a·Σ x, where a is the same all along the axes.

So it is in the gradient of a normalization: what beta and the mean get are sums of one gradient, apart from the scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from miai_graph.context import building_on_behalf_of
from miai_graph.graph import Graph
from miai_graph.node import Node, apply
from miai_graph.ops.arithmetic import multiply, negative
from miai_graph.ops.parts import _sum_of_part
from miai_graph.ops.structure import _broadcast_to, _reshape, _sum, without_axes
from miai_graph.passes.batch_analysis import analyse_batch
from miai_graph.passes.rewrite import with_inputs, with_replaced
from miai_graph.placement import LOCAL
from miai_graph.types import Shape

_Scaled = tuple[Node, list[Node | None]]
"""What is added up but for factors, and these: numbers that are repeated, and None for a change of sign."""


def scale_sums(graph: Graph) -> Graph:
    """The graph in which such sums are multiples of the others."""
    sums = [node for node in graph.nodes if node.op in (_sum, _sum_of_part)]
    added_up = {(node.inputs[0], node.attributes["axes"]) for node in sums}
    scaled = {node: (x, factors) for node in sums for x, factors in [_as_scaled(node)] if factors}
    scaled = {node: found for node, found in scaled.items() if (found[0], node.attributes["axes"]) in added_up}
    if scaled and any(node.op is _sum_of_part for node in sums):
        scaled = _with_factors_of_all(graph, scaled)
    if not scaled:
        return graph
    replaced: dict[Node, Node] = {}
    for node in graph.nodes:
        if node in scaled:
            x, factors = scaled[node]
            repeated = [None if factor is None else replaced[factor] for factor in factors]
            replaced[node] = _multiple(node, replaced[x], repeated)
        else:
            replaced[node] = with_inputs(node, [replaced[source] for source in node.inputs])
    return with_replaced(graph, replaced)


def _as_scaled(total: Node) -> _Scaled:
    added, factors = total.inputs[0], list[Node | None]()
    while True:
        if added.op is negative:
            added = added.inputs[0]
            factors.append(None)
        elif added.op is multiply and (place := _repeated_input(added, total.attributes["axes"])) is not None:
            factors.append(added.inputs[place].inputs[0])
            added = added.inputs[1 - place]
        else:
            return added, factors


def _with_factors_of_all(graph: Graph, scaled: Mapping[Node, _Scaled]) -> dict[Node, _Scaled]:
    """Those that parts of the batch owe together have no factors that each part has for itself."""
    placements = analyse_batch(graph).placements
    return {
        node: (x, factors)
        for node, (x, factors) in scaled.items()
        if node.op is _sum_of_part or not any(factor is not None and placements[factor] == LOCAL for factor in factors)
    }


def _multiple(node: Node, x: Node, factors: Sequence[Node | None]) -> Node:
    """The sum of x times the factors, in place of a node."""
    axes = node.attributes["axes"]
    with building_on_behalf_of(node, node.phase):
        total = apply(node.op, [x], {"axes": axes})
        for factor in factors:
            if factor is None:
                total = apply(negative, [total])
            else:
                small = apply(_reshape, [factor], {"shape": without_axes(_aligned(factor, x.ndim), axes)})
                total = apply(multiply, [total, apply(_broadcast_to, [small], {"shape": total.type.shape})])
    return total


def _repeated_input(product: Node, axes: Sequence[int]) -> int | None:
    """Which factor of a product is the same along axes; None: neither."""
    for place, factor in enumerate(product.inputs):
        if factor.op is _broadcast_to and all(_aligned(factor.inputs[0], product.ndim)[axis] == 1 for axis in axes):
            return place
    return None


def _aligned(node: Node, ndim: int) -> Shape:
    """The shape from which it is repeated to one of so many axes."""
    return (1,) * (ndim - node.ndim) + node.type.shape
