"""Which stage of a pipeline computes what.

The forward nodes that depend on the batch stand in a row, in the order in which the user built them; stages are runs of
that row. Everything else follows: a gradient's node goes where the node is whose cotangents it computes; a variable,
its slots and its update go where the variable is first used. What is cheap and known everywhere (inputs, constants,
small variables, views of them) goes to each stage that wants it.

A node's place is therefore told as a position in the row, before anybody knows where the row is cut.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from miai_graph.context import BACKWARD, FORWARD
from miai_graph.graph import Graph
from miai_graph.node import Node
from miai_graph.op import Array, constant
from miai_graph.ops.leaves import RUN_NUMBERS, is_input, is_variable
from miai_graph.ops.structure import _broadcast_to
from miai_graph.passes.batch_analysis import BatchAnalysis
from miai_graph.placement import Replicated
from miai_graph.types import bind_type

SMALL_VARIABLE_BYTES = 1024
"""A variable up to this size is kept on every stage that wants it, and so is what is computed from such alone."""


@dataclass(frozen=True)
class Row:
    """The forward nodes that depend on the batch, in order, and where all others stand beside them.

    Attributes
    ----------
    items : the nodes that can be dealt out to stages
    positions : by node, the number of the item that it stands beside; None: wherever it is wanted
    """

    items: Sequence[Node]
    positions: Mapping[Node, int | None]

    def stages(self, bounds: Sequence[int]) -> dict[Node, int | None]:
        """The stage of each node, if stage s has the items from bounds[s] to bounds[s + 1]."""
        return {
            node: None if position is None else min(max(bisect_right(bounds, position) - 1, 0), len(bounds) - 2)
            for node, position in self.positions.items()
        }

    def work(self, amount: Callable[[Node], float]) -> Array:
        """For each item, what the nodes beside it come to together."""
        total = np.zeros(max(len(self.items), 1))
        for node, position in self.positions.items():
            if position is not None:
                total[position] += amount(node)
        return total

    def crossing_bytes(self, graph: Graph, batch_size: int) -> Array:
        """For each place between items (and before the first, behind the last), the bytes that are sent across it."""
        farthest: dict[Node, tuple[int, int]] = {}
        for node in graph.nodes:
            here = self.positions[node]
            for source in node.inputs:
                there = self.positions[source]
                if here is not None and there is not None:
                    low, high = farthest.get(source, (there, there))
                    farthest[source] = min(low, here), max(high, here)
        changes = np.zeros(max(len(self.items), 1) + 2)
        for node, (low, high) in farthest.items():
            size_bytes = bind_type(node.type, batch_size).size_bytes
            changes[low + 1] += size_bytes
            changes[high + 1] -= size_bytes
        return np.cumsum(changes)[:-1]


def lay_out(graph: Graph, analysis: BatchAnalysis) -> Row:
    """Put all nodes of a graph in a row.

    Parameters
    ----------
    analysis : of a graph that can be split
    """
    is_split = {node: not isinstance(analysis.placements[node], Replicated) for node in graph.nodes}
    copied = _copied(graph)
    items = sorted(
        (node for node in graph.nodes if node.phase == FORWARD and is_split[node] and node not in copied),
        key=lambda node: (node.origin, node.index),
    )
    return Row(items, _Positions(graph, analysis, is_split, copied, items).found)


def _copied(graph: Graph) -> set[Node]:
    """The nodes that any stage may have for itself: they are there already, or next to nothing to compute."""
    copied: set[Node] = set()
    known: set[Node] = set()
    for node in graph.nodes:
        if is_variable(node):
            copied.add(node)
            if node.type.size_bytes <= SMALL_VARIABLE_BYTES:
                known.add(node)
        elif is_input(node) or node.op is constant or node.op.name in RUN_NUMBERS:
            copied.add(node)
            if not node.type.batch_axes:
                known.add(node)
        elif node.inputs and not node.type.batch_axes and all(source in known for source in node.inputs):
            copied.add(node)
            if node.type.size_bytes <= SMALL_VARIABLE_BYTES:
                known.add(node)
        elif (node.op.is_view or node.op is _broadcast_to) and all(source in copied for source in node.inputs):
            copied.add(node)
    return copied


class _Positions:
    """Where all nodes stand beside the items."""

    def __init__(
        self,
        graph: Graph,
        analysis: BatchAnalysis,
        is_split: Mapping[Node, bool],
        copied: set[Node],
        items: Sequence[Node],
    ) -> None:
        self._users: dict[Node, list[Node]] = defaultdict(list)
        for node in graph.nodes:
            for source in node.inputs:
                self._users[source].append(node)
        for target, value in graph.updates.items():
            self._users[target].append(value)
        self._places: dict[Node, int] = {}
        origins = [item.origin for item in items]
        known = {item: place for place, item in enumerate(items)}
        for node in graph.nodes:
            if is_split[node] and node not in copied:
                self._places[node] = known[node] if node in known else self._beside(node, origins)
        whole = [node for node in graph.nodes if not is_split[node]]
        self._draw_to_users([node for node in whole if node in copied or not self._is_late(node, analysis)])
        self._draw_to_inputs(whole)
        self._draw_to_users(whole)
        self.found = {node: None if node in copied else self._places.get(node, 0) for node in graph.nodes}

    def _beside(self, node: Node, origins: Sequence[int]) -> int:
        """The item for which the node was made, or that which was built just before."""
        if node.phase in (FORWARD, BACKWARD):
            return max(bisect_right(origins, node.origin) - 1, 0)
        return max((self._places.get(source, 0) for source in node.inputs), default=0)

    @staticmethod
    def _is_late(node: Node, analysis: BatchAnalysis) -> bool:
        """Whether it is computed from something that was reduced."""
        return any(source in analysis.reduced for source in node.inputs)

    def _draw_to_users(self, nodes: Sequence[Node]) -> None:
        for node in reversed(nodes):
            if node not in self._places:
                places = [self._places[user] for user in self._users[node] if user in self._places]
                if places:
                    self._places[node] = places[0]

    def _draw_to_inputs(self, nodes: Sequence[Node]) -> None:
        for node in nodes:
            known = [source for source in node.inputs if source in self._places]
            if node not in self._places and known:
                self._places[node] = self._places[max(known, key=lambda source: source.type.size_bytes)]
