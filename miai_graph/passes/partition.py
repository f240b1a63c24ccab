"""Data parallelism as a rewrite: from a graph on a whole batch to the graph of one worker, on some rows of it.

Where the batch analysis says that a reduction is owed, the worker's graph has an `all_reduce`, or a `reduce_scatter` of
what the worker updates. All reductions that can wait for each other share one `barrier`: nodes are ordered by levels,
the number of reductions that come before them, and a barrier stands between one level and the next. So a training step
whose only reductions are those of gradients and loss has one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from miai_graph.context import COMMUNICATION, WAIT
from miai_graph.graph import Graph
from miai_graph.node import Node, derive, reapply
from miai_graph.ops.communication import _all_gather, _all_reduce, _barrier, _reduce_scatter
from miai_graph.ops.slicing import _slice
from miai_graph.ops.structure import _broadcast_to, _reshape, _sum
from miai_graph.passes.batch_analysis import BatchAnalysis, analyse_batch
from miai_graph.passes.sharding import Shards, Slice, shard_updates
from miai_graph.placement import Partial, Replicated, Split


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
    per_part : the nodes that depend on the rows, and so are computed for each part of the batch that a worker has
    """

    graph: Graph
    outputs: tuple[int, ...]
    exports: tuple[Node, ...]
    per_part: frozenset[Node]


def partition(
    graph: Graph, worker: int, workers: int, *, is_reproducible: bool = False, analysis: BatchAnalysis | None = None
) -> Partition:
    """The graph that one of several workers runs.

    Parameters
    ----------
    graph : on the whole batch
    is_reproducible : whether values must not depend on the number of workers, not even in the last bit: reductions over
        anything but parts of the batch are not cut up then
    analysis : of the graph, where it is known already

    Raises
    ------
    NotSplittableError
        if a node needs the whole batch in one place.
    """
    analysis = analyse_batch(graph) if analysis is None else analysis
    analysis.require_splittable()
    levels = _levels(graph, analysis.reduced)
    shards = shard_updates(graph, analysis, levels, worker, workers, sums=not is_reproducible)
    return _Rewriter(graph, analysis, shards, is_first=worker == 0).result()


def _levels(graph: Graph, reduced: frozenset[Node]) -> dict[Node, int]:
    """How many reductions come before each node, one after another."""
    levels: dict[Node, int] = {}
    for node in graph.nodes:
        levels[node] = max((levels[source] + (source in reduced) for source in node.inputs), default=0)
    return levels


class _Rewriter:
    def __init__(self, graph: Graph, analysis: BatchAnalysis, shards: Shards, *, is_first: bool) -> None:
        self._graph = graph
        self._analysis = analysis
        self._shards = shards
        self._is_first = is_first
        self._owed = analysis.reduced | shards.sums
        self._levels = _levels(graph, self._owed)
        self._new: dict[Node, Node] = {}
        """The worker's node for each of the graph's: a slice, a part, or the whole."""
        self._whole: dict[Node, Node] = {}
        """Reduced values."""
        self._cut: dict[tuple[Node, Slice], Node] = {}
        self._barriers: list[Node] = []
        self._exports: list[Node] = []

    def result(self) -> Partition:
        per_part = []
        for node in sorted(self._graph.nodes, key=self._order):
            self._reach(self._levels[node])
            self._new[node] = self._rewritten(node)
            if not isinstance(self._analysis.placements[node], Replicated):
                per_part.append(self._new[node])
        # Outputs and updates may be reductions themselves.
        self._reach(max((self._levels[node] + (node in self._owed) for node in self._graph.nodes), default=0))
        places = tuple(
            place for place, node in enumerate(self._graph.outputs) if self._is_first or self._is_split(node)
        )
        outputs = [self._read(self._graph.outputs[place]) for place in places]
        graph = Graph([*outputs, *self._barriers], self._updates())
        return Partition(graph, places, tuple(self._exports), frozenset(per_part))

    def _order(self, node: Node) -> tuple[int, bool, int]:
        """By level, and in a level first what all parts of the batch share."""
        return self._levels[node], not isinstance(self._analysis.placements[node], Replicated), node.index

    def _is_split(self, node: Node) -> bool:
        return isinstance(self._analysis.placements[node], Split)

    def _reach(self, level: int) -> None:
        """Put a barrier behind each level before this one, and reductions behind the barrier."""
        while len(self._barriers) < level:
            owed = [node for node in self._new if node in self._owed and self._levels[node] == len(self._barriers)]
            exports = [self._new[node] for node in owed]
            self._exports += exports
            self._barriers.append(derive(exports[-1], _barrier, exports, {}, WAIT))
            for node, export in zip(owed, exports, strict=True):
                reduction = {"reduction": self._reduction(node)}
                self._whole[node] = derive(export, _all_reduce, [export, self._barriers[-1]], reduction, COMMUNICATION)

    def _reduction(self, node: Node) -> str:
        placement = self._analysis.placements[node]
        return placement.reduction if isinstance(placement, Partial) else "sum"

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
        return self._whole.get(node, self._new[node])

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
            self._cut[node, own] = self._reduced_slice(node, own) if node in self._owed else self._view(node, own)
        return self._cut[node, own]

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
