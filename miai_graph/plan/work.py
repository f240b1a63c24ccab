"""What each kernel of a plan is: which node's, how much work, for which part of the batch. For the recorder of time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from miai_graph.node import Node
from miai_graph.ops.communication import _receive, _send
from miai_graph.plan.order import Position
from miai_graph.plan.parts import Part
from miai_graph.plan.program import Program, Storage
from miai_graph.timing.recorder import Work
from miai_graph.types import TensorType


def kernel_work(
    program: Program,
    positions: Sequence[Position],
    places: Sequence[Part],
    blocks: Sequence[int],
    kept: Collection[Node],
    type_of: Callable[[Node, int], TensorType],
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
        types = (type_of(source, place) for source in node.inputs)
        cost = node.op.cost(type_of(node, place), *types, **node.attributes)
        number = places[place].number if is_per_part and len(blocks) > 1 else None
        links = is_linked and node.op in (_send, _receive)
        link = f"{node.attributes['value']}:{places[place].number}" if links else None
        block = node, place if node in kept or place >= len(blocks) else blocks[place] if is_per_part else 0
        memory_bytes = 0 if block in known else _memory_bytes(program, node, type_of(node, place))
        known.add(block)
        result.append(Work(node, cost, memory_bytes, number, link))
    return result


def _memory_bytes(program: Program, node: Node, type: TensorType) -> int:
    """Of a value that has memory of its own."""
    is_own = program.storage[node] in (Storage.OWN, Storage.EXPORT) and node not in program.takes_over
    return type.size_bytes if is_own else 0
