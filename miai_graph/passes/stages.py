"""Which stage of a pipeline computes what.

The forward nodes that depend on the batch stand in a row, in the order in which the user built them; stages are runs of
that row. Everything else follows: a gradient's node goes where the node is whose cotangents it computes; a variable,
its slots and its update go where the variable is first used. What is cheap and known everywhere (inputs, constants,
small variables, views of them) goes to each stage that wants it. What is only repeated stands with what reads it, so
that never the larger array is sent.

A node's place is therefore told as a position in the row, before anybody knows where the row is cut.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from miai_graph.context import FORWARD
from miai_graph.graph import Graph
from miai_graph.node import Node
from miai_graph.op import Array, constant
from miai_graph.ops.leaves import RUN_NUMBERS, is_input, is_variable
from miai_graph.ops.parts import _sum_over_parts
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
        changes = np.zeros(max(len(self.items), 1) + 2)
        for node, (low, high) in self._reaches(graph).items():
            if self.positions[node] is not None:
                size_bytes = bind_type(node.type, batch_size).size_bytes
                changes[low + 1] += size_bytes
                changes[high + 1] -= size_bytes
        return np.cumsum(changes)[:-1]

    def _reaches(self, graph: Graph) -> dict[Node, tuple[int, int]]:
        """Between which items each node is wanted: for itself, for others, as the next value of a variable."""
        wanted: dict[Node, set[int]] = defaultdict(set)
        for node in reversed(graph.nodes):
            here = self.positions[node]
            if here is not None:
                wanted[node].add(here)
            for source in node.inputs:
                wanted[source] |= {here} if here is not None else wanted[node]
        for target, value in graph.updates.items():
            wanted[value] |= wanted[target]
        return {node: (min(places), max(places)) for node, places in wanted.items() if places}


def lay_out(graph: Graph, analysis: BatchAnalysis) -> Row:
    """Put all nodes of a graph in a row.

    Parameters
    ----------
    analysis : of a graph that can be split
    """
    is_split = {node: not isinstance(analysis.placements[node], Replicated) for node in graph.nodes}
    copied = _copied(graph, is_split)
    items = sorted(
        (
            node
            for node in graph.nodes
            if node.phase == FORWARD and is_split[node] and node not in copied and node.op is not _broadcast_to
        ),
        key=lambda node: (node.origin, node.index),
    )
    return Row(items, _Positions(graph, analysis, is_split, copied, items).found)


def _copied(graph: Graph, is_split: Mapping[Node, bool]) -> set[Node]:
    """The nodes that any stage may have for itself: they are there already, or next to nothing to compute."""
    copied: set[Node] = set()
    known: set[Node] = set()
    for node in graph.nodes:
        if node.op is _sum_over_parts:
            continue  # what is owed to a reduction is added up in one place
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
        elif (node.op is _broadcast_to and not is_split[node]) or (
            (node.op.is_view or node.op is _broadcast_to) and all(source in copied for source in node.inputs)
        ):
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
        self._copied = copied
        self._places = {item: place for place, item in enumerate(items)}
        # What is copied, or made larger, stands with what reads it, and its gradients do so too.
        self._draw_to_users([node for node in graph.nodes if node.phase == FORWARD and node.inputs])
        built = sorted((node.origin, place) for node, place in self._places.items())
        split = [node for node in graph.nodes if is_split[node] and node not in copied]
        self._put_beside([node for node in split if node.op is not _broadcast_to], built)
        self._draw_to_users(split)
        self._put_beside(split, built)
        whole = [node for node in graph.nodes if not is_split[node]]
        late = _late(graph, analysis)
        self._draw_to_users([node for node in whole if node not in late])
        self._draw_to_inputs(whole)
        self._draw_to_users(whole)
        self.found = {node: None if node in copied else self._places.get(node, 0) for node in graph.nodes}

    def _put_beside(self, nodes: Sequence[Node], built: Sequence[tuple[int, int]]) -> None:
        """Give them the place of the node for which they were made, or of that which was built just before it.

        Parameters
        ----------
        built : origins and places of forward nodes, in order
        """
        for node in nodes:
            if node not in self._places:
                self._places[node] = self._beside(node, built)

    def _beside(self, node: Node, built: Sequence[tuple[int, int]]) -> int:
        if built and (node.phase == FORWARD or node.origin != node.index):
            return built[max(bisect_right(built, node.origin, key=lambda pair: pair[0]) - 1, 0)][1]
        return max((self._places.get(source, 0) for source in node.inputs), default=0)

    def _draw_to_users(self, nodes: Sequence[Node]) -> None:
        for node in reversed(nodes):
            if node not in self._places:
                places = [self._places[user] for user in self._users[node] if user in self._places]
                if places:
                    self._places[node] = places[0]

    def _draw_to_inputs(self, nodes: Sequence[Node]) -> None:
        for node in nodes:
            known = [source for source in node.inputs if source in self._places and self._has_home(source)]
            if node not in self._places and known:
                # Of equals the last: a sum over all stages, such as a global norm, is passed on from one to the next.
                self._places[node] = max((source.type.size_bytes, self._places[source]) for source in known)[1]

    def _has_home(self, node: Node) -> bool:
        """Whether it should not be sent, if that can be helped."""
        return node not in self._copied or is_variable(node)


def _late(graph: Graph, analysis: BatchAnalysis) -> set[Node]:
    """The nodes that are computed from something that was reduced."""
    late: set[Node] = set()
    for node in graph.nodes:
        if any(source in late or source in analysis.reduced for source in node.inputs):
            late.add(node)
    return late
