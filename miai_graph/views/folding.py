"""Folding a graph: the nodes of one layer and phase become one piece, and the pieces make a graph without cycles."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from miai_graph.graph import Graph
from miai_graph.node import Node
from miai_graph.ops.leaves import is_input, is_variable

Key = tuple[Hashable, ...]
"""What the nodes of a piece have in common."""


@dataclass(frozen=True)
class Piece:
    """Nodes that are drawn as one.

    scope : the outermost layer, or "" if they are of none
    phase : theirs
    nodes : in the order in which they were built
    """

    scope: str
    phase: str
    nodes: Sequence[Node]


def outer_scope(scope: str) -> str:
    """The outermost of the layers that a scope names."""
    return scope.split("/", 1)[0]


def fold_by_layer(graph: Graph) -> list[Piece]:
    """One piece for each layer and phase; several where a layer's output goes, through others, into it again.

    Inputs, and variables of no layer, are pieces of their own; nodes of no layer are together if they are connected.
    """
    keys = {node: _key(node) for node in graph.nodes}
    circles = _circles(graph, keys)
    if circles:
        levels = _levels(graph, keys, circles)
        keys = {node: (*key, levels[node]) if key in circles else key for node, key in keys.items()}
    members: dict[Hashable, list[Node]] = defaultdict(list)
    parts = _connected_parts(graph, keys)
    for node in graph.nodes:
        members[keys[node] if outer_scope(node.scope) else parts[node]].append(node)
    return [Piece(outer_scope(nodes[0].scope), nodes[0].phase, nodes) for nodes in members.values()]


def _key(node: Node) -> Key:
    scope = outer_scope(node.scope)
    alone = is_input(node) or (is_variable(node) and not scope)
    return (id(node),) if alone else (scope, node.phase)


def _circles(graph: Graph, keys: Mapping[Node, Key]) -> dict[Key, int]:
    """The keys whose pieces would depend on each other in a circle, with the number of the circle."""
    import networkx

    folded = networkx.DiGraph()
    folded.add_edges_from(
        (keys[source], keys[node]) for node in graph.nodes for source in node.inputs if keys[source] != keys[node]
    )
    circles = networkx.strongly_connected_components(folded)
    return {key: number for number, circle in enumerate(circles) if len(circle) > 1 for key in circle}


def _levels(graph: Graph, keys: Mapping[Node, Key], circles: Mapping[Key, int]) -> dict[Node, int]:
    """How often, at most, the key changes on the way to a node, within its circle.

    Where it does not, as on the way from a weight, nodes are as late as their users allow, so that they are with them.
    """
    levels: dict[Node, int] = {}
    users: dict[Node, list[Node]] = defaultdict(list)
    for node in graph.nodes:
        before = [source for source in node.inputs if circles.get(keys[source], -1) == circles.get(keys[node])]
        levels[node] = max((levels[source] + (keys[source] != keys[node]) for source in before), default=0)
        for source in before:
            users[source].append(node)
    for node in reversed(graph.nodes):
        if levels[node] == 0 and users[node]:
            levels[node] = min(levels[user] - (keys[user] != keys[node]) for user in users[node])
    return levels


def _connected_parts(graph: Graph, keys: Mapping[Node, Key]) -> dict[Node, Hashable]:
    """For each node one that stands for all that are connected to it by nodes of the same key."""
    leaders: dict[Node, Node] = {node: node for node in graph.nodes}

    def leader(node: Node) -> Node:
        while leaders[node] is not node:
            leaders[node] = leaders[leaders[node]]
            node = leaders[node]
        return node

    for node in graph.nodes:
        for source in node.inputs:
            if keys[source] == keys[node]:
                leaders[leader(node)] = leader(source)
    return {node: leader(node) for node in graph.nodes}
