"""Where in a block of memory a program's values lie, without any of it being taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from miai_graph.node import Node
from miai_graph.plan.memory import Lifetime, assign_offsets, used_until
from miai_graph.plan.program import Program, Storage
from miai_graph.types import TensorType, bind_type


@dataclass(frozen=True)
class Layout:
    """Places of values in a block.

    Attributes
    ----------
    offsets : in bytes, of each value
    size_bytes : the length of the block
    used_until : for each step, behind which offset nothing lies that is needed then
    """

    offsets: Mapping[Node, int]
    size_bytes: int
    used_until: list[int]


def lay_out(program: Program, types: Mapping[Node, TensorType]) -> Layout:
    """Places for values that have memory of their own.

    Parameters
    ----------
    types : of these values, in the order in which they are computed
    """
    holders: dict[Node, Node] = {}
    lifetimes: dict[Node, list[int]] = {}
    for node in types:
        root = program.takes_over.get(node, node)
        holder = holders[node] = holders.get(root, node)
        lifetimes.setdefault(holder, [program.computed_at[node], 0])[1] = program.last_use[node]
    spans = [Lifetime(first, last, types[node].size_bytes) for node, (first, last) in lifetimes.items()]
    offsets, size_bytes = assign_offsets(spans)
    places = dict(zip(lifetimes, offsets, strict=True))
    own_offsets = {node: places[holder] for node, holder in holders.items()}
    return Layout(own_offsets, size_bytes, used_until(spans, offsets, len(program.steps)))


def footprint_bytes(program: Program, batch_size: int) -> int:
    """The length of the block for all values that a program computes, if the whole batch is one part."""
    own = (node for node in program.computed_at if program.storage[node] is Storage.OWN)
    ordered = sorted(own, key=program.computed_at.__getitem__)
    return lay_out(program, {node: bind_type(node.type, batch_size) for node in ordered}).size_bytes
