"""Sums that can be computed along with what they add up, and their place in the order.

Such a sum adds in the same order alone and with others, so that bits do not depend on how a graph is cut.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from miai_graph.kernels.compiler.vectors import FLOAT32, FLOAT64
from miai_graph.node import Node
from miai_graph.ops.parts import _sum_of_part
from miai_graph.ops.structure import _sum
from miai_graph.plan.uses import Use

MOST_COLUMNS = 1 << 13
"""Of a sum over rows: it gathers in memory as wide, which should stay in a core's own cache."""


@dataclass(frozen=True)
class SummedAxes:
    """Which axes are added up: those before one of them, or those from it on.

    Attributes
    ----------
    first_column_axis : the axis
    along_rows : whether it is those from it on
    """

    first_column_axis: int
    along_rows: bool


def summed_axes(node: Node) -> SummedAxes | None:
    """Which axes a node adds up; None for what is no sum, and for sums that have to be computed alone."""
    if node.op not in (_sum, _sum_of_part) or node.dtype not in (FLOAT32, FLOAT64):
        return None
    axes, ndim = node.attributes["axes"], node.inputs[0].ndim
    if not 0 < len(axes) < ndim:
        return None
    if axes == tuple(range(ndim - len(axes), ndim)):
        return SummedAxes(ndim - len(axes), along_rows=True)
    is_leading = axes == tuple(range(len(axes)))
    if not is_leading or node.type.batch_axes or node.type.size > MOST_COLUMNS:
        return None
    return SummedAxes(len(axes), along_rows=False)


def with_sums_early(
    steps: Sequence[Node], uses: Mapping[Node, Sequence[Use]], iterations: Mapping[Node, Hashable]
) -> list[Node]:
    """The steps in an order in which sums, and what is computed for nothing but sums, follow right behind what they are
    computed from.

    Parameters
    ----------
    uses : of each of the steps
    iterations : of each of the steps; nodes for which they differ, or are None, are not computed together
    """

    def goes_with(node: Node, reader: Node) -> bool:
        return (
            reader in for_sums
            and node.phase == reader.phase
            and iterations[node] is not None
            and iterations[node] == iterations[reader]
        )

    for_sums: set[Node] = set()
    for node in reversed(steps):
        is_for_sums = uses[node] and all(use.reader is not None and goes_with(node, use.reader) for use in uses[node])
        if is_for_sums or summed_axes(node) is not None:
            for_sums.add(node)
    waits = [0] * (len(steps) + 1)
    """For how many uses of what is not there yet, by the reader's place."""
    for node in steps:
        for use in uses[node]:
            waits[use.place] += 1
    result: dict[Node, None] = {}
    for node in steps:
        ready = [node]
        while ready:
            latest = ready.pop()
            if latest in result:
                continue
            result[latest] = None
            for use in uses[latest]:
                waits[use.place] -= 1
            ready += [
                use.reader
                for use in reversed(uses[latest])
                if use.reader is not None and not waits[use.place] and goes_with(latest, use.reader)
            ]
    return list(result)
