"""Gradients of weights that are computed for many micro-batches at once, after their backward passes.

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
from itertools import accumulate

from miai_graph.node import Node
from miai_graph.ops.linalg import _matmul
from miai_graph.plan.parts import Part, parts_of
from miai_graph.plan.program import Program, Storage
from miai_graph.types import bind_type


@dataclass(frozen=True)
class Deferral:
    """What is computed for groups of parts of a batch together.

    Attributes
    ----------
    nodes : those that are
    kept : of which the rows of all parts lie one behind the other
    views : of those that are kept
    groups : the rows of each group, numbered as its last part is
    first_group : the number of parts, behind which groups are counted
    last_parts : the place of each group's last part
    """

    nodes: frozenset[Node] = frozenset()
    kept: frozenset[Node] = frozenset()
    views: frozenset[Node] = frozenset()
    groups: tuple[Part, ...] = ()
    first_group: int = 0
    last_parts: tuple[int, ...] = ()

    @property
    def last_group(self) -> int:
        """The number that stands for the last group among a plan's parts."""
        return self.first_group + len(self.groups) - 1


NO_DEFERRAL = Deferral()


def find_deferral(program: Program, parts: Sequence[Part], groups: int = 1) -> Deferral:
    """The gradients that had better wait.

    Parameters
    ----------
    program : of a stage
    parts : those that it computes, one behind the other
    groups : into how many products each gradient is cut. A stage that waits for others now and then can use that time
        for the first of them.
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
    if not nodes:
        return NO_DEFERRAL
    groups = min(groups, len(parts))
    runs = [parts_of(group, groups, parts) for group in range(groups)]
    joined = tuple(Part(run[-1].number, run[0].first_row, sum(part.size for part in run)) for run in runs)
    last_parts = tuple(number - 1 for number in accumulate(map(len, runs)))
    return Deferral(frozenset(nodes), frozenset(kept), frozenset(views), joined, len(parts), last_parts)


def _can_be_kept(program: Program, root: Node) -> bool:
    return program.storage[root] in (Storage.OWN, Storage.FED) and root.type.batch_axes == (0,)


def _views(program: Program, node: Node) -> Iterator[Node]:
    """The views that lead from a node to its root."""
    while node is not program.roots[node]:
        yield node
        node = node.inputs[0]
