"""What each kernel of a plan is: which node's, how much work, for which part of the batch. For the recorder of time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial

from miai_graph.node import Node
from miai_graph.op import Cost
from miai_graph.ops.communication import _receive, _send
from miai_graph.plan.chains import REDUCING
from miai_graph.plan.fusion import FinishedProduct
from miai_graph.plan.order import Position
from miai_graph.plan.parts import Part
from miai_graph.plan.program import Program, Storage
from miai_graph.timing.recorder import Member, Work
from miai_graph.types import TensorType


def kernel_work(
    program: Program,
    positions: Sequence[Position],
    places: Sequence[Part],
    blocks: Sequence[int],
    kept: Collection[Node],
    type_of: Callable[..., TensorType],
    *,
    is_linked: bool,
) -> list[Work]:
    """What is computed at each position.

    Parameters
    ----------
    places : the parts, and behind them groups of parts
    blocks : for each part the number of the block of memory that its values lie in
    kept : of which each part has memory of its own, whatever its block
    type_of : a node's type for one of the places
    is_linked : whether there are other workers, with whom no memory is shared
    """
    result: list[Work] = []
    known: set[tuple[Node, int]] = set()
    for node, place in positions:
        is_per_part = node in program.per_part
        members = _members(program, node, partial(type_of, part=place))
        cost = Cost(sum(member.cost.flops for member in members), sum(member.cost.bytes for member in members))
        number = places[place].number if is_per_part and len(blocks) > 1 else None
        links = is_linked and node.op in (_send, _receive)
        link = f"{node.attributes['value']}:{places[place].number}" if links else None
        block = node, place if node in kept or place >= len(blocks) else blocks[place] if is_per_part else 0
        if block in known:
            members = [replace(member, memory_bytes=0) for member in members]
        known.add(block)
        memory_bytes = sum(member.memory_bytes for member in members)
        fusion = program.fusions.get(node)
        shown = fusion.product if isinstance(fusion, FinishedProduct) else node
        result.append(Work(shown, cost, memory_bytes, number, link, members if len(members) > 1 else ()))
    return result


def _members(program: Program, node: Node, type_of: Callable[[Node], TensorType]) -> list[Member]:
    """The node, or all that its kernel computes, of which those that stay in registers move no bytes."""

    def cost(node: Node) -> Cost:
        return node.op.cost(type_of(node), *map(type_of, node.inputs), **node.attributes)

    fusion = program.fusions.get(node)
    if fusion is None:
        return [Member(node, cost(node), _memory_bytes(program, node, type_of(node)))]
    result = []
    for chain in fusion.chains:
        unread, results = set(chain.operands), set(chain.results)
        for member in chain.nodes:
            if member in chain.repeated or program.roots[member] is not member:
                continue
            if member.op in REDUCING:
                moved = [member] * chain.contributors
            else:
                moved = [source for source in member.inputs if source in unread]
                unread.difference_update(member.inputs)
            moved += [member] if member in results else []
            moved_bytes = sum(type_of(value).size_bytes for value in moved)
            result.append(
                Member(member, Cost(cost(member).flops, moved_bytes), _memory_bytes(program, member, type_of(member)))
            )
    return result


def _memory_bytes(program: Program, node: Node, type: TensorType) -> int:
    """Of a value that has memory of its own."""
    is_own = program.storage[node] in (Storage.OWN, Storage.EXPORT) and node not in program.takes_over
    return type.size_bytes if is_own else 0
