"""The backward pass of a rectifier before max-pooling, done where there are fewer elements: behind the pooling.

The greatest of a window is above zero where the rectifier lets its gradient through, and the others get no gradient.
"""

from __future__ import annotations

from collections import Counter

from miai_graph.graph import Graph
from miai_graph.node import Node, reapply
from miai_graph.ops.nonlinear import relu_gradient
from miai_graph.ops.pooling import _max_pool2d, _max_pool2d_gradient
from miai_graph.passes.rewrite import with_inputs, with_replaced


def mask_pooled(graph: Graph) -> Graph:
    """The graph in which gradients pass the rectifier first, and then the pooling."""
    users = Counter(source for node in graph.nodes for source in node.inputs)
    users.update([*graph.outputs, *graph.updates.values()])
    pooled = {_key(node, node.inputs[0]): node for node in graph.nodes if node.op is _max_pool2d}
    replaced: dict[Node, Node] = {}
    for node in graph.nodes:
        scattered = node.inputs[0] if node.op is relu_gradient else node
        greatest = None
        if scattered.op is _max_pool2d_gradient and scattered is not node and users[scattered] == 1:
            g, x = scattered.inputs
            greatest = pooled.get(_key(scattered, x)) if x is node.inputs[1] else None
        if greatest is None:
            replaced[node] = with_inputs(node, [replaced[source] for source in node.inputs])
        else:
            masked = reapply(node, [replaced[g], replaced[greatest]])
            replaced[node] = reapply(scattered, [masked, replaced[x]])
    return with_replaced(graph, replaced)


def _key(node: Node, x: Node) -> tuple[Node, object]:
    return x, tuple(sorted(node.attributes.items()))
