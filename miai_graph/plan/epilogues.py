"""Element-wise nodes that the kernel of a product computes, before it stores what it has added up.

That saves to write the product and to read it again. It is done where nothing else reads the product and a whole chain
can be computed so: what remained of others would have to read as much as before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from miai_graph.kernels.compiler.vectors import FLOAT32, FLOAT64
from miai_graph.node import Node
from miai_graph.ops.structure import _broadcast_to, _reshape
from miai_graph.plan.uses import Use

PRODUCTS = {"matmul", "conv2d", "conv2d_input_gradient"}
"""Ops whose kernels can do it."""

CHEAP = {"add", "subtract", "multiply", "maximum", "minimum", "negative", "square", "relu"}
"""Ops that take no longer than the sums take to be stored."""


@dataclass(frozen=True, eq=False)
class Run:
    """Nodes of which each reads the one before, and nothing else does.

    Attributes
    ----------
    product : what the first of them reads
    views : through which it does
    nodes : the element-wise ones, in order
    """

    product: Node
    views: tuple[Node, ...]
    nodes: tuple[Node, ...]

    @property
    def source(self) -> Node:
        """The product as the first node reads it."""
        return (self.product, *self.views)[-1]


def runs_behind_products(
    chains: Sequence[Sequence[Node]],
    steps: Sequence[Node],
    uses: Mapping[Node, Sequence[Use]],
    roots: Mapping[Node, Node],
    go_together: Callable[[Node, Node], bool],
) -> tuple[list[Run], list[Sequence[Node]]]:
    """What the kernels of products had better compute, and what is left of the chains.

    Parameters
    ----------
    chains : of nodes that one kernel would compute
    uses, roots : of each of the steps; see `uses_of` and `Program`
    go_together : whether one kernel may compute both a product and a node that reads it
    """
    members = {node: chain for chain in chains for node in chain}
    runs = []
    for product in steps:
        if product.op.name in PRODUCTS and product.dtype in (FLOAT32, FLOAT64) and product.ndim > 1:
            run = _run_behind(product, steps, uses, roots, members)
            if run is not None and len(run.nodes) == len(members[run.nodes[0]]) and go_together(product, run.nodes[0]):
                runs.append(run)
    taken = {run.nodes[0] for run in runs}
    return runs, [chain for chain in chains if taken.isdisjoint(chain)]


def _run_behind(
    product: Node,
    steps: Sequence[Node],
    uses: Mapping[Node, Sequence[Use]],
    roots: Mapping[Node, Node],
    members: Mapping[Node, Sequence[Node]],
) -> Run | None:
    """As long as it can be; None if there is nothing of it."""
    if len(uses[product]) != 1 or uses[product][0].place >= len(steps):
        return None
    reader = steps[uses[product][0].place]
    if reader not in members:
        return None
    (source,) = (each for each in reader.inputs if roots[each] is product)
    views = _views_between(product, source)
    if views is None or source.type.shape[-1] != product.type.shape[-1] or not _suits(reader, source):
        return None
    nodes = [reader]
    while len(uses[nodes[-1]]) == 1:
        following = uses[nodes[-1]][0].reader
        if following is None or members.get(following) is not members[reader]:
            break
        if not _suits(following, nodes[-1]):
            break
        nodes.append(following)
    return Run(product, views, tuple(nodes))


def _views_between(root: Node, source: Node) -> tuple[Node, ...] | None:
    """From the root on; None if its elements do not lie one behind the other in them."""
    views: list[Node] = []
    while source is not root:
        if source.op is not _reshape:
            return None
        views.insert(0, source)
        source = source.inputs[0]
    return tuple(views)


def _suits(node: Node, source: Node) -> bool:
    """Can the node be computed of elements of the source while they are in registers?"""
    is_known = node.op.name in CHEAP and node.type == source.type
    return is_known and all(other is source or _stays_near(other, node) for other in node.inputs)


def _stays_near(operand: Node, node: Node) -> bool:
    """Is it one number, or a number for each place along the last axis?"""
    if operand.op is not _broadcast_to or operand.dtype != node.dtype:
        return False
    repeated = operand.inputs[0].type.shape
    return all(dim == 1 for dim in repeated[:-1]) and (not repeated or repeated[-1] in (1, node.type.shape[-1]))
