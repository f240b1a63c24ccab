"""How much memory a program takes for a batch, without any of it being taken."""

from __future__ import annotations

from miai_graph.node import Node
from miai_graph.plan.memory import Lifetime, assign_offsets
from miai_graph.plan.program import Program, Storage
from miai_graph.types import bind_type


def footprint_bytes(program: Program, batch_size: int) -> int:
    """The length of the block for all values that a program computes, if the whole batch is one part."""
    own = (node for node in program.computed_at if program.storage[node] is Storage.OWN)
    holders: dict[Node, Node] = {}
    spans: dict[Node, list[int]] = {}
    for node in sorted(own, key=program.computed_at.__getitem__):
        holder = holders[node] = holders.get(program.takes_over.get(node, node), node)
        spans.setdefault(holder, [program.computed_at[node], 0])[1] = program.last_use[node]
    lifetimes = [
        Lifetime(first, last, bind_type(node.type, batch_size).size_bytes) for node, (first, last) in spans.items()
    ]
    return assign_offsets(lifetimes)[1]
