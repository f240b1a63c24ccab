"""Whether workers elsewhere can compute parts of a graph, which is asked before any of them hears of it."""

from __future__ import annotations

from collections.abc import Sequence

from miai_graph.context import warn_user
from miai_graph.graph import Graph
from miai_graph.graph_data import unportable_ops
from miai_graph.messages import describe
from miai_graph.node import Node
from miai_graph.passes.batch_analysis import BatchAnalysis, analyse_batch


def analyse_parts(graph: Graph, inputs: Sequence[Node], consequence: str | None) -> BatchAnalysis | None:
    """How a graph depends on the batch, if workers can compute parts of it; None if not.

    Parameters
    ----------
    inputs : those that are fed; a graph without a batch has no parts
    consequence : what is done instead, as a sentence: with the nodes that are in the way it makes a warning. None: no
        warning
    """
    if not any(node.type.batch_axes for node in inputs):
        return None
    analysis = analyse_batch(graph)
    reasons = {node: str(analysis.placements[node]) for node in analysis.obstacles} | dict(unportable_ops(graph))
    if reasons and consequence is not None:
        lines = "\n  ".join(f"{describe(node)}: {reason}" for node, reason in reasons.items())
        warn_user(
            f"expected a graph that workers can compute parts of; found nodes that they cannot:\n  {lines}\n"
            f"  {consequence}"
        )
    return None if reasons else analysis
