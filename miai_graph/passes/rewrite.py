"""The one way in which graphs are rewritten: node by node, inputs first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from miai_graph.graph import Graph
from miai_graph.node import Node, reapply

Rule = Callable[[Node], Node | None]


def rewrite(graph: Graph, replace: Callable[[Node], Node]) -> Graph:
    """The graph with each node replaced; `replace` gets it with its inputs replaced already."""
    replaced: dict[Node, Node] = {}
    for node in graph.nodes:
        inputs = [replaced[source] for source in node.inputs]
        changed = any(new is not old for new, old in zip(inputs, node.inputs, strict=True))
        replaced[node] = replace(reapply(node, inputs) if changed else node)
    return Graph(
        [replaced[node] for node in graph.outputs],
        {target: replaced[value] for target, value in graph.updates.items()},
    )


def substitute(nodes: Sequence[Node], replacements: dict[Node, Node]) -> list[Node]:
    """The nodes computed from other inputs: `replacements` by node, wherever it stands."""
    graph = Graph(nodes)
    replaced = dict(replacements)
    for node in graph.nodes:
        if node not in replaced:
            inputs = [replaced[source] for source in node.inputs]
            changed = any(new is not old for new, old in zip(inputs, node.inputs, strict=True))
            replaced[node] = reapply(node, inputs) if changed else node
    return [replaced[node] for node in nodes]
