"""Who updates what: the work that follows the reduction of gradients, cut up between workers.

Update rules are element-wise for the most part. Then a worker need not compute the new value of a whole parameter:
it reduces a slice of the gradient and updates that slice of the parameter and of its slots, and other workers do the
rest. What is not element-wise (a norm along an axis, say) is one worker's as a whole, apart from sums over all
elements, which may be added up from slices.

The idea is ZeRO's (Rajbhandari et al. 2020, arXiv:1910.02054, section 5.1).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from miai_graph.graph import Graph
from miai_graph.node import Node
from miai_graph.ops.casting import _cast
from miai_graph.ops.elementwise import ElementwiseOp
from miai_graph.ops.structure import _broadcast_to, _sum
from miai_graph.passes.batch_analysis import BatchAnalysis
from miai_graph.placement import Placement, Replicated
from miai_graph.types import int_dims

CALL_ELEMENTS = 1000
"""To call a kernel takes about as long as an element-wise kernel needs for so many elements."""

NO_PRODUCTS: Mapping[Node, int] = MappingProxyType({})

SLICE_ELEMENTS = 4096
"""What is smaller than two of these is not cut."""

CUT_ELEMENTS = 64
"""Cuts stand at multiples of so many elements: whole cache lines and vector registers of any dtype."""

CUT_ROWS = 16
"""Cuts of a product of matrices stand at multiples of so many of its rows: whole tiles of its kernel."""


@dataclass(frozen=True)
class Slice:
    """Elements from start to stop of an array seen as one row."""

    start: int
    stop: int
    size: int

    @property
    def is_whole(self) -> bool:
        return self.start == 0 and self.stop == self.size

    @property
    def is_empty(self) -> bool:
        return self.start == self.stop


@dataclass(frozen=True)
class Shards:
    """One worker's share of the updates.

    slices : by node, the slice of it that the worker computes
    sums : nodes that add up all elements of a slice, which is still owed by the other workers
    updates : the variable nodes of which the worker computes the new value, or a slice of it
    """

    slices: Mapping[Node, Slice]
    sums: frozenset[Node]
    updates: frozenset[Node]


def shard_updates(
    graph: Graph,
    analysis: BatchAnalysis,
    levels: Mapping[Node, int],
    worker: int,
    workers: int,
    *,
    sums: bool = True,
    products: Mapping[Node, int] = NO_PRODUCTS,
) -> Shards:
    """Cut the updates of a graph up, so that workers have about the same to do.

    Parameters
    ----------
    analysis : what is known of the graph's dependence on the batch
    levels : how many reductions come before each node
    sums : whether sums over all elements may be added up from slices, which changes their rounding
    products : gradients that are computed with the updates, and what an element of them costs; see `outer_products`
    """
    users: dict[Node, list[Node]] = defaultdict(list)
    for node in graph.nodes:
        for source in node.inputs:
            users[source].append(node)
    sliceable = _sliceable(graph, analysis.placements, levels, users, sums)
    units = _units(graph, analysis, levels, sliceable, products)
    slices: dict[Node, Slice] = {}
    updates: set[Node] = set()
    costs = [unit.cost for unit in units]
    before = 0
    for unit, cost in zip(units, costs, strict=True):
        own = unit.share(before, sum(costs), worker, workers)
        before += cost
        if unit.is_sliceable:
            slices |= dict.fromkeys(unit.nodes, own)
        if not own.is_empty:
            updates |= set(unit.updates)
    added = frozenset(
        user for node in slices for user in users[node] if user not in slices and _is_sum_of_all(user, levels)
    )
    return Shards(slices, added, frozenset(updates))


def _sliceable(
    graph: Graph,
    placements: Mapping[Node, Placement],
    levels: Mapping[Node, int],
    users: Mapping[Node, list[Node]],
    sums: bool,
) -> set[Node]:
    """The nodes that are computed element by element and that nobody needs whole."""
    found: set[Node] = set()
    whole, updating = set(graph.outputs), set(graph.updates.values())
    for node in reversed(graph.nodes):
        if node in whole or not isinstance(placements[node], Replicated) or not _is_elementwise(node):
            continue
        readers = users[node]
        if (readers or node in updating) and all(
            user in found or (sums and _is_sum_of_all(user, levels)) for user in readers
        ):
            found.add(node)
    return found


def _is_elementwise(node: Node) -> bool:
    if node.type.size < 2 or not node.inputs:
        return False
    if node.op is _broadcast_to:
        return node.inputs[0].type.size == 1
    # What a user's op does is not known, whatever it says of batches.
    return isinstance(node.op, ElementwiseOp) or node.op is _cast


def _is_sum_of_all(node: Node, levels: Mapping[Node, int]) -> bool:
    """Whether it adds up all elements of something that was reduced before, so that a reduction more is no barrier more
    in the forward pass."""
    return node.op is _sum and node.type.size == 1 and levels[node] > 0


@dataclass
class _Unit:
    """Updates that are computed together, and the nodes that only they need."""

    nodes: list[Node]
    updates: list[Node]
    is_sliceable: bool
    product_cost: int = 0
    cut_elements: int = CUT_ELEMENTS

    def add_product(self, product: Node, cost: int) -> None:
        """It is computed with them, whole rows of it."""
        _, columns = int_dims(product.type.shape)
        self.product_cost += cost * product.type.size
        self.cut_elements = math.lcm(self.cut_elements, CUT_ROWS * columns)

    @property
    def cost(self) -> int:
        return self.product_cost + sum(CALL_ELEMENTS + node.type.size for node in (*self.nodes, *self.updates))

    @property
    def size(self) -> int:
        return (self.nodes or self.updates)[0].type.size

    def share(self, before: int, total: int, worker: int, workers: int) -> Slice:
        """A worker's part, if its due is from worker/workers to (worker + 1)/workers of the total."""
        start, stop = (self._cut(total * place / workers - before) for place in (worker, worker + 1))
        return Slice(start, stop, self.size)

    def _cut(self, cost: float) -> int:
        """The number of elements before a place that is given as a cost."""
        fraction = min(max(cost / self.cost, 0.0), 1.0)
        if fraction == 1:
            return self.size
        if not self.is_sliceable or self.size < 2 * SLICE_ELEMENTS:
            return self.size if fraction > 0.5 else 0
        elements = round(fraction * self.size / self.cut_elements) * self.cut_elements
        return min(elements, self.size)


def _units(
    graph: Graph,
    analysis: BatchAnalysis,
    levels: Mapping[Node, int],
    sliceable: set[Node],
    products: Mapping[Node, int],
) -> list[_Unit]:
    """The updates, grouped with those that share more than single numbers with them."""
    placements = analysis.placements
    joined = _Groups()
    members = [
        node
        for node in graph.nodes
        if isinstance(placements[node], Replicated)
        and node.inputs
        and node.type.size > 1
        and (levels[node] > 0 or node in sliceable)
    ]
    known = set(members)
    for node in members:
        for source in node.inputs:
            if source in known or (source in analysis.reduced and source.type.size > 1):
                joined.join(node, source)
    for target, value in graph.updates.items():
        if value in known:
            joined.join(target, value)
    groups: dict[Node, _Unit] = {}
    for target in graph.updates:
        groups.setdefault(joined.of(target), _Unit([], [], True)).updates.append(target)
    for node in members:
        unit = groups.get(joined.of(node))
        if unit is not None:
            unit.nodes.append(node)
            unit.is_sliceable &= node in sliceable
    for product, cost in products.items():
        unit = groups.get(joined.of(product))
        if unit is not None:
            unit.add_product(product, cost)
    for unit in groups.values():
        unit.is_sliceable &= bool(unit.nodes)
    return list(groups.values())


class _Groups:
    """Disjoint sets of nodes (union-find with path halving)."""

    def __init__(self) -> None:
        self._parents: dict[Node, Node] = {}

    def of(self, node: Node) -> Node:
        """The node that stands for its set."""
        parents = self._parents
        while (parent := parents.get(node, node)) is not node:
            parents[node] = node = parents.get(parent, parent)
        return node

    def join(self, first: Node, second: Node) -> None:
        one, other = self.of(first), self.of(second)
        if one is not other:
            self._parents[other] = one
