"""The backward pass of a rectifier before max-pooling, done where there are fewer elements: behind the pooling.

The greatest of a window is above zero where the rectifier lets its gradient through, and the others get no gradient.
Sums over all pixels may be taken there too, in another order: each window's gradient goes to one of them.
"""

from __future__ import annotations

from collections import Counter

from miai_graph.graph import Graph
from miai_graph.node import Node, reapply
from miai_graph.ops.nonlinear import relu_gradient
from miai_graph.ops.pooling import _max_pool2d, _max_pool2d_gradient
from miai_graph.ops.structure import _sum
from miai_graph.passes.rewrite import with_inputs, with_replaced

PIXELS = (0, 1, 2)
"""The axes of images and of their rows and columns."""


def mask_pooled(graph: Graph, *, moves_sums: bool) -> Graph:
    """The graph in which gradients pass the rectifier before they pass the pooling.

    Parameters
    ----------
    moves_sums : whether they are also added up before, so that sums are others to the last bit
    """
    if not any(node.op is _max_pool2d_gradient for node in graph.nodes):
        return graph
    users = Counter(source for node in graph.nodes for source in node.inputs)
    users.update([*graph.outputs, *graph.updates.values()])
    pooled = {_key(node, node.inputs[0]): node for node in graph.nodes if node.op is _max_pool2d}
    replaced: dict[Node, Node] = {}
    for node in graph.nodes:
        inputs = [replaced[source] for source in node.inputs]
        is_sum = moves_sums and node.op is _sum and node.attributes["axes"] == PIXELS
        if is_sum and inputs[0].op is _max_pool2d_gradient:
            inputs = [inputs[0].inputs[0]]
        scattered = node.inputs[0] if node.op is relu_gradient else None
        greatest = None
        if scattered is not None and scattered.op is _max_pool2d_gradient and users[scattered] == 1:
            g, x = scattered.inputs
            greatest = pooled.get(_key(scattered, x)) if x is node.inputs[1] else None
        if scattered is None or greatest is None:
            replaced[node] = with_inputs(node, inputs)
        else:
            masked = reapply(node, [replaced[g], replaced[greatest]])
            replaced[node] = reapply(scattered, [masked, replaced[x]])
    return with_replaced(graph, replaced)


def _key(node: Node, x: Node) -> tuple[Node, object]:
    return x, tuple(sorted(node.attributes.items()))
