"""Which values of a graph can be computed from parts of the batch, and where a reduction over the parts is needed.

One pass over the nodes asks each op's batch rule (see `placement`). Data parallelism, micro-batches and the uneven last
batch all follow from the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from miai_graph.errors import NotSplittableError
from miai_graph.graph import Graph
from miai_graph.node import Node, describe
from miai_graph.placement import REPLICATED, Partial, Placement, Unsplittable


@dataclass(frozen=True)
class BatchAnalysis:
    """What is known of a graph's dependence on the batch.

    placements : of each node
    reduced : the Partial nodes that some user, output or update needs whole: there an all-reduce goes
    """

    placements: Mapping[Node, Placement]
    reduced: frozenset[Node]

    @property
    def obstacles(self) -> list[Node]:
        """The nodes that need the whole batch in one place, and none of whose inputs do."""
        return [
            node
            for node, placement in self.placements.items()
            if isinstance(placement, Unsplittable)
            and not any(isinstance(self.placements[source], Unsplittable) for source in node.inputs)
        ]

    def require_splittable(self) -> None:
        """Raise NotSplittableError, naming the nodes in the way, if the graph cannot be run on parts of the batch."""
        if self.obstacles:
            lines = [f"  {describe(node)}: {self.placements[node]}" for node in self.obstacles]
            raise NotSplittableError(
                "expected a graph that can be computed from parts of the batch; found nodes that need all of it\n"
                + "\n".join(lines)
            )


def analyse_batch(graph: Graph) -> BatchAnalysis:
    """Place each node of the graph.

    A node that is reduced for one user is whole for all of them, so the pass is repeated until no more are.
    """
    reduced: set[Node] = set()
    while True:
        placements, needed = _place_all(graph, reduced)
        if needed <= reduced:
            return BatchAnalysis(placements, frozenset(needed))
        reduced |= needed


def _place_all(graph: Graph, reduced: set[Node]) -> tuple[dict[Node, Placement], set[Node]]:
    """The placements if the nodes `reduced` are reduced, and all the nodes that have to be."""
    placements: dict[Node, Placement] = {}
    needed: set[Node] = set()
    for node in graph.nodes:
        inputs = [REPLICATED if source in reduced else placements[source] for source in node.inputs]
        needed |= {source for source in node.inputs if source in reduced}
        placement = _placed(node, inputs)
        if placement is None:
            needed |= {source for source in node.inputs if isinstance(placements[source], Partial)}
            inputs = [REPLICATED if isinstance(placement, Partial) else placement for placement in inputs]
            placement = _placed(node, inputs)
        placements[node] = placement or Unsplittable(f"op {node.op.name} has no rule for its inputs")
    needed |= {node for node in (*graph.outputs, *graph.updates.values()) if isinstance(placements[node], Partial)}
    return placements, {node for node in needed if isinstance(placements[node], Partial)}


def _placed(node: Node, inputs: Sequence[Placement]) -> Placement | None:
    if any(isinstance(placement, Unsplittable) for placement in inputs):
        return Unsplittable("it is computed from a value that needs the whole batch")
    placement: Placement | None = node.op.batch(
        inputs, node.type, *(source.type for source in node.inputs), **node.attributes
    )
    return placement
