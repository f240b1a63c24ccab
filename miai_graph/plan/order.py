"""In which order a worker computes: nodes once, or for each part of the batch in turn."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from miai_graph.node import Node
from miai_graph.ops.communication import _await_commit, _contribute
from miai_graph.passes.pipeline import Segment
from miai_graph.plan.deferral import NO_DEFERRAL, Deferral
from miai_graph.plan.program import Program, Storage
from miai_graph.plan.schedule import Task

Position = tuple[Node, int]
"""What one kernel computes: a node, and for which of a plan's parts. Numbers behind those of the parts are groups of
them."""


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
    deferral: Deferral = NO_DEFERRAL,
) -> list[Position]:
    """What a stage computes, in order: at each level what is done once, then the tasks, and between and behind them
    what was deferred.

    Parameters
    ----------
    segments : of the program's nodes
    tasks : by level
    deferral : its groups of parts have the numbers after those of the parts
    """
    nodes: dict[Segment, list[Node]] = defaultdict(list)
    late: dict[int, list[Node]] = defaultdict(list)
    for node in program.steps:
        waits = node in deferral.nodes or (node.op is _contribute and not deferral.nodes.isdisjoint(node.inputs))
        (late[segments[node].level] if waits else nodes[segments[node]]).append(node)
    result: list[Position] = []
    for level in sorted({segment.level for segment in nodes} | set(late)):
        result += [(node, 0) for node in nodes[Segment(level, None)]]
        listed = tasks.get(level, ())
        between = _deferred_between(late[level], listed, deferral)
        for place, task in enumerate(listed):
            result += [(node, task.part) for node in nodes[Segment(level, task.sweep)]]
            result += between[place]
        result += [(node, deferral.last_group) for node in late[level]]
    return _held_back(result, program)


def _held_back(order: Sequence[Position], program: Program) -> list[Position]:
    """The same with what waits for the commit of the step before right before the first new value of a variable."""
    waiting = [position for position in order if position[0].op is _await_commit]
    others = [position for position in order if position[0].op is not _await_commit]
    stored = [any(program.storage[result] is Storage.NEXT for result in program.results_of(node)) for node, _ in others]
    place = stored.index(True) if True in stored else len(others)
    return [*others[:place], *waiting, *others[place:]]


def _deferred_between(late: Sequence[Node], tasks: Sequence[Task], deferral: Deferral) -> list[list[Position]]:
    """What is computed behind each task, of groups of parts that are complete then. It is spread over the tasks that
    follow, so that no other stage waits long for one of them."""
    result: list[list[Position]] = [[] for _ in tasks]
    last_sweep = max((task.sweep for task in tasks), default=0)
    for number, last_part in enumerate(deferral.last_parts[:-1] if late else ()):
        group = deferral.first_group + number
        waiting = [(node, group) for node in late if node.op is not _contribute]
        done = tasks.index(Task(last_sweep, last_part))
        places = [place for place in range(done, len(tasks)) if tasks[place].sweep == last_sweep]
        for turn, place in enumerate(places):
            share = -(-len(waiting) // (len(places) - turn))
            result[place] += waiting[:share]
            del waiting[:share]
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
