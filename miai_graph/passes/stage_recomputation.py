"""What stages compute again in the backward pass, each for itself.

A segment that is computed again may reach across a place where a graph is cut. A stage has what it got from the one
below for its forward pass, and starts from there: so nothing is sent twice, and values that are computed again never go
up through the stages while cotangents come down.
"""

from __future__ import annotations

from collections.abc import Mapping

from miai_graph.context import BACKWARD, RECOMPUTE
from miai_graph.graph import Graph, structure_key
from miai_graph.node import Node, derive
from miai_graph.ops.again import _again
from miai_graph.passes.rewrite import with_inputs, with_replaced

Stages = Mapping[Node, int | None]


def recompute_within_stages(graph: Graph, stage_of: Stages) -> tuple[Graph, Stages]:
    """The graph, and the stage of each node, with nothing read by one stage that another one computes again.

    Parameters
    ----------
    stage_of : the stage of each node; None: each stage that wants it
    """
    if not any(_crosses(node, source, stage_of) for node in graph.nodes for source in node.inputs):
        return graph, stage_of
    rewriter = _Rewriter(graph, stage_of)
    return rewriter.result(), rewriter.stage_of


def _crosses(node: Node, source: Node, stage_of: Stages) -> bool:
    return RECOMPUTE in (node.phase, source.phase) and stage_of[node] != stage_of[source] is not None


class _Rewriter:
    """What is computed again is put where the first node of a stage reads it, after the stage's last cotangent.

    Attributes
    ----------
    stage_of : the stage of each node, those that replace others included
    """

    def __init__(self, graph: Graph, stage_of: Stages) -> None:
        self._graph = graph
        self.stage_of = dict(stage_of)
        self._originals = _originals(graph)
        self._new: dict[Node, Node] = {}
        self._again: dict[tuple[Node, int | None], Node] = {}
        self._latest: dict[int | None, Node] = {}
        """The last cotangent that each stage has."""

    def result(self) -> Graph:
        for node in self._graph.nodes:
            if node.phase != RECOMPUTE:
                self._note_cotangents(node)
                stage = self.stage_of[node]
                self._new[node] = self._placed(self._rewritten(node, stage), stage)
        return with_replaced(self._graph, self._new)

    def _note_cotangents(self, node: Node) -> None:
        for source in (node, *node.inputs) if node.phase == BACKWARD else ():
            if source.phase == BACKWARD and source.type.batch_axes and source in self._new:
                self._latest[self.stage_of[node]] = self._new[source]

    def _placed(self, new: Node, stage: int | None) -> Node:
        self.stage_of.setdefault(new, stage)
        return new

    def _rewritten(self, node: Node, stage: int | None) -> Node:
        return with_inputs(node, [self._read(source, stage) for source in node.inputs])

    def _read(self, source: Node, stage: int | None) -> Node:
        """What a stage reads in place of a node."""
        if source.phase != RECOMPUTE:
            return self._new[source]
        for node in self._needed(source, stage):
            self._again[node, stage] = self._placed(self._repeated(node, stage), stage)
        return self._again[source, stage]

    def _needed(self, node: Node, stage: int | None) -> list[Node]:
        """What is computed again for a node on a stage, and was not before, in order."""
        found: set[Node] = set()
        waiting = [node]
        while waiting:
            needed = waiting.pop()
            if needed.phase == RECOMPUTE and needed not in found and (needed, stage) not in self._again:
                found.add(needed)
                waiting += [self._originals[needed]] if self._is_start(needed, stage) else needed.inputs
        return sorted(found, key=lambda needed: needed.index)

    def _is_start(self, node: Node, stage: int | None) -> bool:
        """Whether a stage has the value from its forward pass, or gets it there."""
        is_elsewhere = self.stage_of[node] != stage and self._originals[node].phase != RECOMPUTE
        return node.op is _again or is_elsewhere

    def _repeated(self, node: Node, stage: int | None) -> Node:
        if not self._is_start(node, stage):
            return self._rewritten(node, stage)
        start, after = self._read(self._originals[node], stage), self._latest.get(stage)
        return start if after is None else derive(node, _again, [start, after], {}, RECOMPUTE)


def _originals(graph: Graph) -> dict[Node, Node]:
    """For each node that is computed again the one that computes the same in the forward pass; itself if none does."""
    found: dict[Node, Node] = {}
    known: dict[object, Node] = {}
    for node in graph.nodes:
        key = structure_key(node, [found[source] for source in node.inputs])
        if node.op is _again:
            found[node] = found[node.inputs[0]]
        elif node.phase == RECOMPUTE:
            found[node] = known.get(key, node)
        else:
            found[node] = known.setdefault(key, node) if node.inputs else node
    return found
