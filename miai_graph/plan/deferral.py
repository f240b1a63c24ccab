"""Gradients of weights that are computed once for all micro-batches, after their backward passes.

A weight's gradient is owed to the next update and to nothing before it, so it can wait: x₁ᵀg₁ + x₂ᵀg₂ + … is one
product of all rows of x and g, if they lie together. For a large matrix that is several times as fast as a product and
an addition for each micro-batch, and the stages below do not wait for it. The price is memory for x and g of all
micro-batches, so it is done where a gradient is larger than what it is computed from.

To split the backward pass in two, for cotangents and for weights, is the idea of "zero bubble" pipelines (Qi et al.
2023, arXiv:2401.10241, section 2).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from miai_graph.node import Node
from miai_graph.ops.linalg import _matmul
from miai_graph.plan.parts import Part
from miai_graph.plan.program import Program, Storage
from miai_graph.types import bind_type


@dataclass(frozen=True)
class Deferral:
    """What is computed for all parts of a batch together.

    Attributes
    ----------
    nodes : those that are
    kept : of which the rows of all parts lie one behind the other
    views : of those that are kept
    """

    nodes: frozenset[Node] = frozenset()
    kept: frozenset[Node] = frozenset()
    views: frozenset[Node] = frozenset()


NO_DEFERRAL = Deferral()


def find_deferral(program: Program, parts: Sequence[Part]) -> Deferral:
    """The gradients that had better wait.

    Parameters
    ----------
    program : of a stage
    parts : those that it computes, one behind the other
    """
    if len(parts) == 1:
        return NO_DEFERRAL
    largest = max(part.size for part in parts)
    nodes: set[Node] = set()
    kept: set[Node] = set()
    views: set[Node] = set()
    for node in program.exports:
        if node.op is not _matmul or node not in program.per_part:
            continue
        sources = [source for source in node.inputs if source in program.per_part]
        roots = {program.roots[source] for source in sources}
        read_bytes = sum(bind_type(root.type, largest).size_bytes for root in roots)
        if node.type.size_bytes > read_bytes and all(_can_be_kept(program, root) for root in roots):
            nodes.add(node)
            kept |= roots
            views.update(*(_views(program, source) for source in sources))
    return Deferral(frozenset(nodes), frozenset(kept), frozenset(views))


def _can_be_kept(program: Program, root: Node) -> bool:
    return program.storage[root] in (Storage.OWN, Storage.FED) and root.type.batch_axes == (0,)


def _views(program: Program, node: Node) -> Iterator[Node]:
    """The views that lead from a node to its root."""
    while node is not program.roots[node]:
        yield node
        node = node.inputs[0]
