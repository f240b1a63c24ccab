"""Values that are computed where an input lies that nobody needs any more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

from miai_graph.kernels.numpy_kernels import works_in_place
from miai_graph.kernels.rows.pooling_memory import shares_memory
from miai_graph.node import Node
from miai_graph.ops.again import _again
from miai_graph.ops.pooling import _max_pool2d_gradient
from miai_graph.ops.structure import _reshape
from miai_graph.plan.fusion import Fusion


def takeovers(
    own: AbstractSet[Node],
    roots: Mapping[Node, Node],
    steps: Sequence[Node],
    last_use: Mapping[Node, int],
    per_part: AbstractSet[Node],
    fusions: Mapping[Node, Fusion],
) -> dict[Node, Node]:
    """Which nodes may be computed in the memory of an input that they are the last to use.

    Parameters
    ----------
    own : the nodes that have memory of their own
    roots, steps, last_use, per_part, fusions : see `Program`
    """
    result: dict[Node, Node] = {}

    def find(node: Node, read: Sequence[Node], inputs: Sequence[Node], position: int) -> Node | None:
        for source in inputs:
            root = roots[source]
            if (
                root in own
                and last_use[root] == position
                and (root in per_part) == (node in per_part)
                and root not in taken
                and have_same_layout(source, root, node)
                and all(roots[other] is not root or other is source for other in read)
            ):
                return root
        return None

    for position, leader in enumerate(steps):
        taken: set[Node] = set()
        fusion = fusions.get(leader)
        if fusion is not None and not fusion.works_in_place:
            continue
        for node in (leader,) if fusion is None else fusion.results:
            if node not in own:
                continue
            if fusion is None:
                root = find(node, node.inputs, _overwritable(node), position)
            else:
                root = find(node, fusion.operands, fusion.operands, position)
            if root is not None:
                result[node] = root
                taken.add(root)
    return result


def _overwritable(node: Node) -> Sequence[Node]:
    """The inputs in whose memory a node's kernel may write its output."""
    if works_in_place(node):
        return node.inputs
    return node.inputs[1:] if node.op is _max_pool2d_gradient and shares_memory(node) else ()


def have_same_layout(source: Node, root: Node, node: Node) -> bool:
    """Whether element i of the input lies where element i of the result would."""
    if source.type != node.type:
        return False
    while source is not root:
        if source.op not in (_reshape, _again):
            return False
        source = source.inputs[0]
    return True
