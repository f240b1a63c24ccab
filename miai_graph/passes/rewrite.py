"""The one way in which graphs are rewritten: node by node, inputs first."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence

from miai_graph.graph import Graph
from miai_graph.node import Node, reapply

Rule = Callable[[Node], Node | None]


def rewrite(graph: Graph, replace: Callable[[Node], Node]) -> Graph:
    """The graph with each node replaced; `replace` gets it with its inputs replaced already."""
    replaced: dict[Node, Node] = {}
    for node in graph.nodes:
        replaced[node] = replace(with_inputs(node, [replaced[source] for source in node.inputs]))
    return with_replaced(graph, replaced)


def with_replaced(graph: Graph, replaced: Mapping[Node, Node]) -> Graph:
    """The graph of the nodes that stand for its outputs and updates; the graph itself if they are the same."""
    outputs = [replaced[node] for node in graph.outputs]
    updates = {target: replaced[value] for target, value in graph.updates.items()}
    if all(map(operator.is_, (*outputs, *updates.values()), (*graph.outputs, *graph.updates.values()))):
        return graph
    return Graph(outputs, updates)


def with_inputs(node: Node, inputs: Sequence[Node]) -> Node:
    """The node over other inputs; itself if they are its own."""
    return node if all(map(operator.is_, inputs, node.inputs)) else reapply(node, inputs)


def substitute(nodes: Sequence[Node], replacements: dict[Node, Node]) -> list[Node]:
    """The nodes computed from other inputs: `replacements` by node, wherever it stands."""
    graph = Graph(nodes)
    replaced = dict(replacements)
    for node in graph.nodes:
        if node not in replaced:
            replaced[node] = with_inputs(node, [replaced[source] for source in node.inputs])
    return [replaced[node] for node in nodes]
