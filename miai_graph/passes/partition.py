"""Data parallelism as a rewrite: from a graph on a whole batch to the graph of one worker, on some rows of it.

Where the batch analysis says that a reduction is owed, the worker's graph has an `all_reduce`, or a `reduce_scatter` of
what the worker updates. All reductions that can wait for each other share one `barrier`: nodes are ordered by levels,
the number of reductions that come before them, and a barrier stands between one level and the next. So a training step
whose only reductions are those of gradients and loss has one.

Of some gradients the factors are shared instead, see `outer_products`; some products are cut up by columns, see
`column_products`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from miai_graph.context import COMMUNICATION, WAIT
from miai_graph.graph import Graph
from miai_graph.node import Node, derive, reapply
from miai_graph.ops.again import _again
from miai_graph.ops.communication import (
    _all_gather,
    _all_reduce,
    _barrier,
    _gather_rows,
    _reduce_scatter,
    _rows_of_columns,
)
from miai_graph.ops.slicing import _slice
from miai_graph.ops.structure import _broadcast_to, _reshape, _sum
from miai_graph.passes.batch_analysis import BatchAnalysis, analyse_batch
from miai_graph.passes.column_products import own_columns
from miai_graph.passes.outer_products import shared_rows
from miai_graph.passes.sharding import NO_PRODUCTS, Shards, Slice, shard_updates
from miai_graph.placement import Partial, Replicated, Split
from miai_graph.types import int_dims


@dataclass(frozen=True)
class Partition:
    """The graph of one worker.

    Attributes
    ----------
    graph : its outputs are those at `outputs` and then the barriers; its updates those that the worker computes, of
        which some are an `all_gather` of the worker's slice
    outputs : places of the whole graph's outputs that this worker has: those that are split by rows, and at worker 0
        all others
    exports : what the worker owes to reductions. All workers have as many, of the same types, in the same order
    rows : of what all workers read all rows; of these likewise
    columns : what the worker reads its rows of, and some columns of which it computes; of these likewise
    per_part : the nodes that depend on the rows, and so are computed for each part of the batch that a worker has
    """

    graph: Graph
    outputs: tuple[int, ...]
    exports: tuple[Node, ...]
    rows: tuple[Node, ...]
    columns: tuple[Node, ...]
    per_part: frozenset[Node]


def partition(
    graph: Graph,
    worker: int,
    workers: int,
    *,
    is_reproducible: bool = False,
    analysis: BatchAnalysis | None = None,
    products: Mapping[Node, int] = NO_PRODUCTS,
    by_columns: Collection[Node] = (),
) -> Partition:
    """The graph that one of several workers runs.

    Parameters
    ----------
    graph : on the whole batch
    is_reproducible : whether values must not depend on the number of workers, not even in the last bit: reductions over
        anything but parts of the batch are not cut up then
    analysis : of the graph, where it is known already
    products : those of which the factors are shared, with their costs; see `outer_products`
    by_columns : products that are cut up by columns; see `column_products`

    Raises
    ------
    NotSplittableError
        if a node needs the whole batch in one place.
    """
    analysis = analyse_batch(graph) if analysis is None else analysis
    analysis.require_splittable()
    levels = _levels(graph, analysis.reduced)
    shards = shard_updates(graph, analysis, levels, worker, workers, sums=not is_reproducible, products=products)
    return _Rewriter(graph, analysis, shards, products, by_columns, worker, workers).result()


BARRIERS_OF_COLUMNS = 2
"""That a product which is cut up by columns waits for: rows of all, and columns of all."""


def _levels(graph: Graph, reduced: frozenset[Node], by_columns: Collection[Node] = ()) -> dict[Node, int]:
    """How many barriers stand before each node, one after another."""
    levels: dict[Node, int] = {}
    for node in graph.nodes:
        own = BARRIERS_OF_COLUMNS if node in by_columns else 0
        levels[node] = own + max((levels[source] + (source in reduced) for source in node.inputs), default=0)
    return levels


class _Rewriter:
    def __init__(
        self,
        graph: Graph,
        analysis: BatchAnalysis,
        shards: Shards,
        products: Collection[Node],
        by_columns: Collection[Node],
        worker: int,
        workers: int,
    ) -> None:
        self._graph = graph
        self._analysis = analysis
        self._shards = shards
        self._products = products
        self._by_columns = by_columns
        self._worker, self._workers = worker, workers
        self._owed = analysis.reduced | shards.sums
        self._levels = _levels(graph, self._owed, by_columns)
        self._due_at: dict[int, list[Node]] = defaultdict(list)
        """What is owed, by the number of the barrier."""
        self._begin_at: dict[int, list[Node]] = defaultdict(list)
        """Products that are cut up by columns, by the number of the barrier for the rows of all."""
        for node in sorted(self._owed, key=self._order):
            self._due_at[self._levels[node]].append(node)
        for node in sorted(by_columns, key=self._order):
            self._begin_at[self._levels[node] - BARRIERS_OF_COLUMNS].append(node)
        self._new: dict[Node, Node] = {}
        """The worker's node for each of the graph's: a slice, a part, or the whole."""
        self._whole: dict[Node, Node] = {}
        """Reduced values."""
        self._gathered: dict[Node, Node] = {}
        """Values of which there are the rows of all workers."""
        self._cut: dict[tuple[Node, Slice], Node] = {}
        self._barriers: list[Node] = []
        self._exports: list[Node] = []
        self._rows: list[Node] = []
        self._columns: list[Node] = []
        self._computed_columns: list[tuple[Node, Node]] = []
        """Products with the worker's columns of them, which the others do not see before the next barrier."""

    def result(self) -> Partition:
        last = self._computed_last()
        for node in sorted(self._graph.nodes, key=self._order):
            if node not in last:
                self._reach(self._levels[node])
                self._rewrite(node)
        self._reach(max((self._levels[node] + (node in self._owed) for node in self._graph.nodes), default=0))
        for node in sorted(last, key=self._order):
            self._rewrite(node)
        places = tuple(
            place for place, node in enumerate(self._graph.outputs) if self._worker == 0 or self._is_split(node)
        )
        outputs = [self._read(self._graph.outputs[place]) for place in places]
        graph = Graph([*outputs, *self._barriers], self._updates())
        return Partition(graph, places, tuple(self._exports), tuple(self._rows), tuple(self._columns), self._per_part())

    def _per_part(self) -> frozenset[Node]:
        placements = self._analysis.placements
        return frozenset(new for node, new in self._new.items() if not isinstance(placements[node], Replicated))

    def _order(self, node: Node) -> tuple[int, bool, int]:
        """By level, and in a level first what all parts of the batch share."""
        return self._levels[node], not isinstance(self._analysis.placements[node], Replicated), node.index

    def _computed_last(self) -> set[Node]:
        """What is computed from reductions, and nobody needs at a barrier: updates.

        Workers have as much to do of them, but not behind each barrier: they would wait for one another.
        """
        found = {
            node
            for node in self._graph.nodes
            if isinstance(self._analysis.placements[node], Replicated)
            and self._levels[node] > 0
            and node not in self._owed
        }
        for node in reversed(self._graph.nodes):
            if node not in found:
                found.difference_update(node.inputs)
        return found

    def _is_split(self, node: Node) -> bool:
        return isinstance(self._analysis.placements[node], Split)

    def _reach(self, level: int) -> None:
        """Put a barrier behind each level before this one, and behind it what is there then."""
        while len(self._barriers) < level:
            number = len(self._barriers)
            by_columns = self._begin_at[number]
            owed = [node for node in self._due_at[number] if node not in self._products]
            shared = self._newly_shared([*self._due_at[number], *by_columns])
            exports, rows = ([self._new[node] for node in nodes] for nodes in (owed, shared))
            columns, self._computed_columns = self._computed_columns, []
            waits_for = [*exports, *rows, *(own for _, own in columns)]
            barrier = derive(waits_for[-1], _barrier, waits_for, {}, WAIT)
            self._exports += exports
            self._rows += rows
            self._barriers.append(barrier)
            for node, own in zip(shared, rows, strict=True):
                self._gathered[node] = derive(own, _gather_rows, [own, barrier], {}, COMMUNICATION)
            for node, own in columns:
                self._new[node] = self._rows_of_columns(node, own, barrier)
            for node, export in zip(owed, exports, strict=True):
                reduction = {"reduction": self._reduction(node)}
                self._whole[node] = derive(export, _all_reduce, [export, barrier], reduction, COMMUNICATION)
            self._computed_columns = [(node, self._own_columns(node)) for node in by_columns]

    def _newly_shared(self, nodes: Sequence[Node]) -> list[Node]:
        """The values whose rows are shared for these products, and were not before."""
        factors = [factor for node in nodes if node in self._products for factor in node.inputs]
        factors += [node.inputs[0] for node in nodes if node in self._by_columns]
        return [node for node in dict.fromkeys(map(shared_rows, factors)) if node not in self._gathered]

    def _own_columns(self, node: Node) -> Node:
        """The worker's columns of a product, for the rows of all workers."""
        left, matrix = self._gather(node.inputs[0]), self._read(node.inputs[1])
        key = (None, None, 1), (*own_columns(node, self._worker, self._workers), 1)
        return reapply(node, [left, derive(matrix, _slice, [matrix], {"key": key}, node.phase)])

    def _rows_of_columns(self, node: Node, own: Node, barrier: Node) -> Node:
        start, _ = own_columns(node, self._worker, self._workers)
        attributes = {"columns": node.type.shape[1], "start": start}
        self._columns.append(derive(own, _rows_of_columns, [own, barrier], attributes, COMMUNICATION))
        return self._columns[-1]

    def _reduction(self, node: Node) -> str:
        placement = self._analysis.placements[node]
        return placement.reduction if isinstance(placement, Partial) else "sum"

    def _rewrite(self, node: Node) -> None:
        """Make the worker's node; some are made at barriers, and products where they are read."""
        if node not in self._by_columns and node not in self._products:
            self._new[node] = self._rewritten(node)

    def _rewritten(self, node: Node) -> Node:
        own = self._shards.slices.get(node)
        if own is not None and not own.is_whole:
            return self._sliced(node, own)
        if node in self._shards.sums:
            return self._sum_of_slice(node)
        inputs = [self._read(source) for source in node.inputs]
        # A new node also where nothing changed, for the order in which nodes are made is that in which they run.
        return node if not node.inputs else reapply(node, inputs)

    def _read(self, node: Node) -> Node:
        """The whole value, or of one that is split the worker's rows."""
        if node in self._products and node not in self._whole:
            self._whole[node] = reapply(node, list(map(self._gather, node.inputs)))
        return self._whole[node] if node in self._whole else self._new[node]

    def _gather(self, factor: Node) -> Node:
        """A factor of a product with the rows of all workers."""
        if factor not in self._gathered:
            inputs = list(map(self._gather, factor.inputs[:1]))
            self._gathered[factor] = inputs[0] if factor.op is _again else reapply(factor, inputs)
        return self._gathered[factor]

    def _sliced(self, node: Node, own: Slice) -> Node:
        if node.op is _broadcast_to:
            number = self._read(node.inputs[0])
            single = derive(number, _reshape, [number], {"shape": ()}, node.phase) if number.ndim else number
            return reapply(node, [single], {"shape": (own.stop - own.start,)})
        return reapply(node, [self._read_slice(source, own) for source in node.inputs])

    def _sum_of_slice(self, node: Node) -> Node:
        (source,) = node.inputs
        own = self._shards.slices[source]
        if own.is_whole:
            return reapply(node, [self._new[source]])
        total = derive(node, _sum, [self._new[source]], {"axes": (0,)}, node.phase)
        return derive(node, _reshape, [total], {"shape": node.type.shape}, node.phase)

    def _read_slice(self, node: Node, own: Slice) -> Node:
        """A slice of a value as one row."""
        if node in self._shards.slices:
            return self._new[node]
        if (node, own) not in self._cut:
            if node in self._products:
                self._cut[node, own] = self._product_slice(node, own)
            elif node in self._owed:
                self._cut[node, own] = self._reduced_slice(node, own)
            else:
                self._cut[node, own] = self._view(node, own)
        return self._cut[node, own]

    def _product_slice(self, node: Node, own: Slice) -> Node:
        """Some rows of a product, computed from the rows of all workers."""
        left, right = map(self._gather, node.inputs)
        _, columns = int_dims(node.type.shape)
        key = (own.start // columns, own.stop // columns, 1), (None, None, 1)
        product = reapply(node, [derive(left, _slice, [left], {"key": key}, node.phase), right])
        return derive(node, _reshape, [product], {"shape": (own.stop - own.start,)}, node.phase)

    def _reduced_slice(self, node: Node, own: Slice) -> Node:
        export, level = self._new[node], self._levels[node]
        attributes = {"reduction": self._reduction(node), "start": own.start, "stop": own.stop}
        return derive(export, _reduce_scatter, [export, self._barriers[level]], attributes, COMMUNICATION)

    def _view(self, node: Node, own: Slice) -> Node:
        row = derive(self._new[node], _reshape, [self._new[node]], {"shape": (own.size,)}, node.phase)
        return derive(row, _slice, [row], {"key": ((own.start, own.stop, 1),)}, node.phase)

    def _updates(self) -> Mapping[Node, Node]:
        result: dict[Node, Node] = {}
        for target, value in self._graph.updates.items():
            if target not in self._shards.updates:
                continue
            own = self._shards.slices.get(value)
            if own is None or own.is_whole:
                result[target] = self._read(value)
            else:
                attributes = {"shape": target.type.shape, "start": own.start}
                result[target] = derive(target, _all_gather, [self._new[value]], attributes, COMMUNICATION)
        return result
