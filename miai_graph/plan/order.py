"""In which order a worker computes: nodes once, or for each part of the batch in turn."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from miai_graph.node import Node
from miai_graph.ops.communication import _contribute
from miai_graph.passes.pipeline import Segment
from miai_graph.plan.program import Program
from miai_graph.plan.schedule import Task

Position = tuple[Node, int]
"""What one kernel computes: a node, and for which of a plan's parts; their number stands for all of them together."""


def positions(program: Program, parts: int) -> list[Position]:
    """What is computed, in order: each run of nodes that depend on rows for one part after another."""
    result: list[Position] = []
    for is_per_part, run in groupby(program.steps, key=lambda node: node in program.per_part):
        nodes = list(run)
        result += [(node, part) for part in range(parts if is_per_part else 1) for node in nodes]
    return result


def scheduled_positions(
    program: Program,
    segments: Mapping[Node, Segment],
    tasks: Mapping[int, Sequence[Task]],
    deferred: frozenset[Node] = frozenset(),
    parts: int = 1,
) -> list[Position]:
    """What a stage computes, in order: at each level what is done once, then the tasks, then what was deferred.

    Parameters
    ----------
    segments : of the program's nodes
    tasks : by level
    deferred : nodes that are computed for all parts together, under the number `parts`
    """
    nodes: dict[Segment, list[Node]] = defaultdict(list)
    late: dict[int, list[Node]] = defaultdict(list)
    for node in program.steps:
        waits = node in deferred or (node.op is _contribute and not deferred.isdisjoint(node.inputs))
        (late[segments[node].level] if waits else nodes[segments[node]]).append(node)
    result: list[Position] = []
    for level in sorted({segment.level for segment in nodes} | set(late)):
        result += [(node, 0) for node in nodes[Segment(level, None)]]
        for task in tasks.get(level, ()):
            result += [(node, task.part) for node in nodes[Segment(level, task.sweep)]]
        result += [(node, parts) for node in late[level]]
    return result


def share_blocks(spans: Iterable[tuple[int, int]]) -> list[int]:
    """A number for each of some parts, the same for parts that are not under way at the same time.

    Parameters
    ----------
    spans : for each part the places in the order at which it is first and last computed
    """
    numbered = list(enumerate(spans))
    blocks = [0] * len(numbered)
    ends: list[int] = []
    for part, (first, last) in sorted(numbered, key=lambda item: item[1]):
        block = next((block for block, end in enumerate(ends) if end < first), len(ends))
        ends[block : block + 1] = [last]
        blocks[part] = block
    return blocks
