"""Who reads what a program computes, and when."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from miai_graph.node import Node
from miai_graph.ops.communication import FROM_ALL


class Use(NamedTuple):
    """That a step reads a node's value, itself or a view of it.

    Attributes
    ----------
    place : of the reader among the steps; after all steps for what outlives them
    reader : None for what is read through a view, or after the steps
    """

    place: int
    reader: Node | None


def uses_of(steps: Sequence[Node], roots: Mapping[Node, Node], kept: Iterable[Node]) -> dict[Node, list[Use]]:
    """The uses of each step. What reads the values of all workers uses the barrier behind which they are there.

    Parameters
    ----------
    roots : the node whose memory a node's value lies in
    kept : what is read after the steps
    """
    uses: dict[Node, list[Use]] = {node: [] for node in steps}
    for place, node in enumerate(steps):
        for source in node.inputs:
            root = roots[source]
            if root.op in FROM_ALL:
                uses[root.inputs[-1]].append(Use(place, None))
            elif root in uses:
                uses[root].append(Use(place, node if source is root else None))
    for node in kept:
        if roots[node] in uses:
            uses[roots[node]].append(Use(len(steps), None))
    return uses
