"""Which values of a graph can be computed from parts of the batch, and where a reduction over the parts is needed.

Each op's batch rule is asked, inputs first (see `placement`). Data parallelism, micro-batches and the uneven last
batch all follow from the answer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from miai_graph.context import BACKWARD, UPDATE
from miai_graph.errors import NotSplittableError
from miai_graph.graph import Graph
from miai_graph.messages import describe
from miai_graph.node import Node
from miai_graph.ops.parts import _sum_over_parts
from miai_graph.placement import LOCAL, REPLICATED, Local, Partial, Placement, Replicated, Unsplittable


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


def analyse_batch(graph: Graph, whole: Iterable[Node] = ()) -> BatchAnalysis:
    """Place each node of the graph.

    A node that is reduced for one user is whole for all of them, so those that were placed before are placed again.

    Parameters
    ----------
    whole : nodes that are needed whole for other reasons than that they are outputs or updates
    """
    users: dict[Node, list[int]] = defaultdict(list)
    for position, node in enumerate(graph.nodes):
        for source in node.inputs:
            users[source].append(position)
    results = {*graph.outputs, *graph.updates.values()}
    needed_whole = {*results, *_read_by_updates(graph), *whole}
    placements: dict[Node, Placement] = {}
    reduced: set[Node] = set()
    waiting = list(range(len(graph)))  # a heap, as it is sorted: inputs come first
    while waiting:
        node = graph.nodes[heappop(waiting)]
        placement, owed = _place(node, placements, reduced)
        if node in needed_whole and isinstance(placement, Partial):
            owed.add(node)
        elif node in results and isinstance(placement, Local):
            placement = Unsplittable(f"each part of the batch has its own; add them up with {_sum_over_parts.name}")
        changed = owed - reduced
        if placements.setdefault(node, placement) != placement:
            changed.add(node)
        placements[node] = placement
        reduced |= owed
        for position in {position for source in changed for position in users[source]}:
            if graph.nodes[position] in placements:
                heappush(waiting, position)
    return BatchAnalysis(placements, frozenset(node for node in reduced if isinstance(placements[node], Partial)))


def _read_by_updates(graph: Graph) -> Iterator[Node]:
    """What update rules start from, gradients above all: reduced once, before any arithmetic on it."""
    for node in graph.nodes:
        for source in node.inputs:
            if UPDATE == node.phase != source.phase or node.phase != source.phase == BACKWARD:
                yield source


def _place(node: Node, placements: Mapping[Node, Placement], reduced: set[Node]) -> tuple[Placement, set[Node]]:
    """The placement of a node, and those of its inputs that have to be reduced for it."""
    inputs = [_as_read(source, placements, reduced) for source in node.inputs]
    placement = _placed(node, inputs)
    if placement is not None:
        return placement, set()
    owed = {source for source, read in zip(node.inputs, inputs, strict=True) if isinstance(read, Partial)}
    placement = _placed(node, [REPLICATED if isinstance(read, Partial) else read for read in inputs])
    return placement or Unsplittable(f"op {node.op.name} has no rule for its inputs"), owed


def _as_read(source: Node, placements: Mapping[Node, Placement], reduced: set[Node]) -> Placement:
    placement = placements[source]
    return REPLICATED if source in reduced and isinstance(placement, Partial) else placement


def _placed(node: Node, inputs: Sequence[Placement]) -> Placement | None:
    if any(isinstance(placement, Unsplittable) for placement in inputs):
        return Unsplittable("it is computed from a value that needs the whole batch")
    if not any(isinstance(placement, Local) for placement in inputs):
        return _by_rule(node, inputs)
    if any(isinstance(placement, Partial) for placement in inputs):
        return None
    found = _by_rule(node, [REPLICATED if isinstance(placement, Local) else placement for placement in inputs])
    return LOCAL if isinstance(found, Replicated) else found


def _by_rule(node: Node, inputs: Sequence[Placement]) -> Placement | None:
    placement: Placement | None = node.op.batch(
        inputs, node.type, *(source.type for source in node.inputs), **node.attributes
    )
    return placement
