"""What updates of parameters do for memory: where gradients lie, and how long.

A small gradient lies where the next value of its parameter will be, which is written over it. A large one is used as
soon as it is there, so that its memory is free for the next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TypeVar

from miai_graph.kernels.numpy_kernels import works_in_place
from miai_graph.node import Node
from miai_graph.plan.fusion import FinishedProduct, Fusion, is_large_update
from miai_graph.plan.takeovers import have_same_layout

Place = TypeVar("Place")


def with_updates_early(
    steps: Sequence[Node],
    fusions: Mapping[Node, Fusion],
    roots: Mapping[Node, Node],
    per_part: AbstractSet[Node],
) -> list[Node]:
    """The steps with large updates right behind what they need, but behind all that is computed for each part.

    Parameters
    ----------
    steps, fusions, roots, per_part : see `Program`
    """
    first = max((place for place, node in enumerate(steps) if node in per_part), default=0)
    places: dict[Node, int] = {}
    """Behind which of the steps, as they were, each value is computed."""
    order: list[tuple[int, int]] = []
    for place, leader in enumerate(steps):
        fusion = fusions.get(leader)
        own = place
        if fusion is not None and is_large_update(fusion.chains[0]):
            own = max((places.get(roots[source], first) for source in fusion.operands), default=first)
            own = max(own, first)
        order.append((own, place))
        places.update(dict.fromkeys((leader,) if fusion is None else fusion.results, own))
    return [steps[place] for _, place in sorted(order)]


def computed_in_next(
    own: AbstractSet[Node],
    roots: Mapping[Node, Node],
    steps: Sequence[Node],
    last_use: Mapping[Node, int],
    fusions: Mapping[Node, Fusion],
    prepared: Mapping[Node, Place],
) -> dict[Node, Place]:
    """Values, such as gradients, that nobody reads after a variable's next value is computed from them, and that can
    lie where it will: for each of them that place.

    Parameters
    ----------
    own : the nodes that have memory of their own, apart from those that are computed for each part
    roots, steps, last_use, fusions : see `Program`
    prepared : the places of next values, by node
    """
    result: dict[Node, Place] = {}
    for position, leader in enumerate(steps):
        fusion = fusions.get(leader)
        if fusion is None:
            chains = [(list(dict.fromkeys(leader.inputs)), [leader] if works_in_place(leader) else [])]
        elif isinstance(fusion, FinishedProduct):
            chains = []
        else:
            chains = [
                (list(chain.operands), [] if is_large_update(chain) else chain.elements) for chain in fusion.chains
            ]
        # Chains are computed one after another, so none may write what another one reads.
        reads = Counter(roots[source] for operands, _ in chains for source in operands)
        for operands, results in chains:
            for node in results:
                found = (
                    roots[source]
                    for source in operands
                    if node in prepared
                    and roots[source] in own
                    and roots[source] not in result
                    and last_use[roots[source]] == position
                    and have_same_layout(source, roots[source], node)
                    and reads[roots[source]] == 1
                )
                root = next(found, None)
                if root is not None:
                    result[root] = prepared[node]
    return result
