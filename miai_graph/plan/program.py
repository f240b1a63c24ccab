"""What can be decided about running a graph before the batch size is known.

Each node is stored in one of these ways: outside the plan (fed, in the state, constant, or a number of the run); as a
view of another node's memory; where the next value of a variable is prepared; where other workers read it; or in memory
of its own, which it may take over from an input that nobody needs any more.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from miai_graph.graph import Graph
from miai_graph.kernels.compiler.native import processor
from miai_graph.node import Node
from miai_graph.op import constant
from miai_graph.ops.again import _again
from miai_graph.ops.communication import FROM_ALL, _all_gather, _all_reduce, _await_commit
from miai_graph.ops.leaves import RUN_NUMBERS, _batch_size, _part_size, is_input, is_variable
from miai_graph.ops.structure import _broadcast_to, _reshape
from miai_graph.plan.fusion import Fusion, find_fusions, iteration_of
from miai_graph.plan.sums import summed_axes, with_sums_early
from miai_graph.plan.takeovers import takeovers
from miai_graph.plan.updates import computed_in_next, with_updates_early
from miai_graph.plan.uses import uses_of
from miai_graph.types import Shape


class Storage(enum.Enum):
    """Where a node's value is kept."""

    FED = "fed"
    STATE = "state"
    CONSTANT = "constant"
    RUN_NUMBER = "run number"
    BOUND = "bound"
    """Computed once, when the batch size gets known."""
    VIEW = "view"
    NEXT = "next"
    """Where a variable's next value is prepared, or a slice of it: that value, or a gradient that becomes it."""
    EXPORT = "export"
    """Where all who reduce it, or who need the rows of all workers, can read it."""
    FROM_ALL = "from all"
    """Where all workers write, each its rows or columns."""
    GATHERED = "gathered"
    """Nowhere in one piece: each worker has its slice in the next value of a variable."""
    OWN = "own"
    PASSING = "passing"
    """Nowhere: a kernel that computes several nodes needs it while it runs."""


COMPUTED = (Storage.OWN, Storage.NEXT, Storage.EXPORT)


@dataclass(frozen=True)
class Update:
    """A variable node with the node of its next value, or of a slice of it from `start` on."""

    target: Node
    value: Node
    start: int = 0


@dataclass(frozen=True)
class Program:
    """A graph with the order, storage and lifetimes of its nodes.

    storage : of each node
    roots : the node whose memory a node's value lies in: itself, unless it is a view
    steps : the nodes that are computed in each step, in order
    last_use : for each root with memory of its own, the position in `steps` after which it is free; outputs stay
    fusions : what one kernel computes, by the node of `steps` in whose place it does
    computed_at : the position in `steps` at which a node is computed, with the others of its fusion
    takes_over : nodes that are computed in the memory of an input
    updates : what the state gets
    prepared : the updates by node, of nodes that are computed where a variable's next value is prepared: that value,
        or what nothing but that value is computed from
    exports : the number of each node that is owed to a reduction
    rows : the nodes of which others read the rows
    columns : the nodes of which others compute columns
    per_part : the nodes that are computed for each part of a batch; the others are computed once
    """

    graph: Graph
    storage: Mapping[Node, Storage]
    roots: Mapping[Node, Node]
    steps: tuple[Node, ...]
    last_use: Mapping[Node, int]
    fusions: Mapping[Node, Fusion]
    computed_at: Mapping[Node, int]
    takes_over: Mapping[Node, Node]
    updates: tuple[Update, ...]
    prepared: Mapping[Node, Update]
    exports: Mapping[Node, int]
    rows: Sequence[Node]
    columns: Sequence[Node]
    per_part: frozenset[Node]

    def results_of(self, node: Node) -> Sequence[Node]:
        """What gets its value where a node of `steps` is computed: it, or the results of its fusion."""
        fusion = self.fusions.get(node)
        return (node,) if fusion is None else fusion.results

    def operands_of(self, node: Node) -> Sequence[Node]:
        """What is read where a node of `steps` is computed."""
        fusion = self.fusions.get(node)
        return node.inputs if fusion is None else fusion.operands


def make_program(
    graph: Graph,
    exports: Sequence[Node] = (),
    per_part: frozenset[Node] = frozenset(),
    *,
    rows: Sequence[Node] = (),
    columns: Sequence[Node] = (),
    adds_up_alone: bool = False,
    copied_bytes: int = 0,
    kind: Callable[[Node], Hashable] = type,
    contributors: int = 0,
) -> Program:
    """Decide all that does not depend on the batch size. The graph should be simplified already.

    Parameters
    ----------
    exports, per_part, rows, columns : of a graph that is one worker's, or one stage's; see `passes.partition` and
        `passes.pipeline`
    adds_up_alone : whether what is owed is complete where it is exported, because nobody else contributes
    copied_bytes : new values up to this size are copied to where they belong when all else is done: counters are raised
        early in a step, and must not be seen before it may change anything
    kind : nodes for which it differs are not computed by one kernel
    contributors : how many owe something to each reduction, if that lies in memory as long as the step takes; else 0
    """
    updates = tuple(_update(target, value) for target, value in graph.updates.items())
    seen_by_others = {*exports, *rows, *(node.inputs[0] for node in columns)}
    storage, roots = _store(graph, seen_by_others, _gathers(graph), adds_up_alone)
    prepared: dict[Node, Update] = {}
    for update in updates:
        is_copied = update.value.type.size_bytes <= copied_bytes
        if storage[update.value] is Storage.OWN and update.value not in per_part and not is_copied:
            storage[update.value] = Storage.NEXT
            prepared[update.value] = update
    computed = [node for node in graph.nodes if storage[node] in COMPUTED]
    every, fusions = _fuse(graph, storage, roots, computed, prepared, exports, per_part, kind, contributors)
    steps, computed_at = _with_fusions(every, fusions, roots, per_part)
    last_use = _last_uses(graph, storage, roots, steps, fusions, computed_at)
    own = {node for node in computed if storage[node] is Storage.OWN}
    if not _awaits_commit(steps):
        in_next = computed_in_next(own - per_part, roots, steps, last_use, fusions, prepared)
        storage.update(dict.fromkeys(in_next, Storage.NEXT))
        prepared |= in_next
        own -= in_next.keys()
    takes_over = takeovers(own, roots, steps, last_use, per_part, fusions)
    return Program(
        graph,
        storage,
        roots,
        steps,
        last_use,
        fusions,
        computed_at,
        takes_over,
        updates,
        prepared,
        {node: number for number, node in enumerate(exports)},
        rows,
        columns,
        per_part,
    )


def _update(target: Node, value: Node) -> Update:
    if value.op is _all_gather:
        return Update(target, value.inputs[0], value.attributes["start"])
    return Update(target, value)


def _gathers(graph: Graph) -> set[Node]:
    """The nodes that put a variable's next value together, and that nothing else reads."""
    read = {source for node in graph.nodes for source in node.inputs}.union(graph.outputs)
    return {value for value in graph.updates.values() if value.op is _all_gather and value not in read}


def _store(
    graph: Graph, exports: set[Node], gathers: set[Node], adds_up_alone: bool
) -> tuple[dict[Node, Storage], dict[Node, Node]]:
    storage: dict[Node, Storage] = {}
    roots: dict[Node, Node] = {}
    contiguous: dict[Node, bool] = {}
    for node in graph.nodes:
        if node in exports and not is_input(node):
            storage[node] = Storage.EXPORT
        elif node in gathers:
            storage[node] = Storage.GATHERED
        elif node.op is _all_reduce and adds_up_alone:
            storage[node] = Storage.VIEW
        else:
            storage[node] = _storage_of(node, storage, contiguous)
        is_view = storage[node] is Storage.VIEW
        roots[node] = roots[node.inputs[0]] if is_view else node
        contiguous[node] = not is_view or (node.op in (_reshape, _all_reduce, _again) and contiguous[node.inputs[0]])
    return storage, roots


def _storage_of(node: Node, storage: Mapping[Node, Storage], contiguous: Mapping[Node, bool]) -> Storage:
    if is_input(node):
        return Storage.FED
    if is_variable(node):
        return Storage.STATE
    if node.op in FROM_ALL:
        return Storage.FROM_ALL
    if node.op is constant:
        return Storage.CONSTANT
    if node.op.name in RUN_NUMBERS:
        return Storage.RUN_NUMBER
    if _is_bound(node, storage):
        return Storage.BOUND
    if node.op.is_view and _can_be_view(node, contiguous):
        return Storage.VIEW
    return Storage.OWN


def _is_bound(node: Node, storage: Mapping[Node, Storage]) -> bool:
    """Whether nothing but constants and sizes of batch and part go into it; repeated numbers stay views of one."""
    if not node.inputs or node.op is _broadcast_to:
        return False
    return all(
        storage[source] in (Storage.CONSTANT, Storage.BOUND) or source.op in (_batch_size, _part_size)
        for source in node.inputs
    )


def _can_be_view(node: Node, contiguous: Mapping[Node, bool]) -> bool:
    source = node.inputs[0]
    if node.op is not _reshape or contiguous[source]:
        return True
    return _without_ones(node.type.shape) == _without_ones(source.type.shape)


def _without_ones(shape: Shape) -> Shape:
    return tuple(dim for dim in shape if dim != 1)


def _fuse(
    graph: Graph,
    storage: dict[Node, Storage],
    roots: Mapping[Node, Node],
    steps: Sequence[Node],
    prepared: Mapping[Node, Update],
    exports: Sequence[Node],
    per_part: frozenset[Node],
    kind: Callable[[Node], Hashable],
    contributors: int,
) -> tuple[Sequence[Node], dict[Node, Fusion]]:
    """The steps in a better order, and what is computed by one kernel. Values that nothing else reads are stored
    nowhere from now on."""
    if processor() is None:
        return steps, {}

    owed = frozenset(exports)

    def kind_of(node: Node) -> Hashable:
        return None if node in owed and summed_axes(node) is None else (node in per_part, kind(node))

    iterations = {node: iteration_of(node, kind_of(node), contributors) for node in steps}
    uses = uses_of(steps, roots, _kept(graph))
    ordered = with_sums_early(steps, uses, iterations)
    if any(node is not before for node, before in zip(ordered, steps, strict=True)):
        uses = uses_of(ordered, roots, _kept(graph))
    fusions = find_fusions(ordered, uses, roots, prepared.__contains__, iterations, kind_of, contributors)
    for fusion in fusions.values():
        for node in set(fusion.nodes).difference(fusion.results):
            storage[node] = Storage.PASSING
    return ordered, fusions


def _with_fusions(
    nodes: Sequence[Node],
    fusions: Mapping[Node, Fusion],
    roots: Mapping[Node, Node],
    per_part: frozenset[Node],
) -> tuple[tuple[Node, ...], dict[Node, int]]:
    """Of each fusion only the leader, and where all nodes are computed then."""
    leaders = {member: fusion.leader for fusion in fusions.values() for member in fusion.nodes}
    steps = [node for node in nodes if leaders.get(node, node) is node]
    if not _awaits_commit(steps):
        steps = with_updates_early(steps, fusions, roots, per_part)
    positions = {node: position for position, node in enumerate(steps)}
    return tuple(steps), {node: positions[leaders.get(node, node)] for node in nodes}


def _awaits_commit(steps: Sequence[Node]) -> bool:
    """Whether nothing may be written where next values will be before the step before is known to be done."""
    return any(node.op is _await_commit for node in steps)


def _kept(graph: Graph) -> Iterable[Node]:
    """What is read after all is computed."""
    return (*graph.outputs, *(_update(*update).value for update in graph.updates.items()))


def _last_uses(
    graph: Graph,
    storage: Mapping[Node, Storage],
    roots: Mapping[Node, Node],
    steps: tuple[Node, ...],
    fusions: Mapping[Node, Fusion],
    computed_at: Mapping[Node, int],
) -> dict[Node, int]:
    last_use = {node: position for node, position in computed_at.items() if storage[node] in COMPUTED}
    for position, node in enumerate(steps):
        for source in fusions[node].operands if node in fusions else node.inputs:
            if storage[roots[source]] in COMPUTED:
                last_use[roots[source]] = position
    for node in _kept(graph):
        if storage[roots[node]] in COMPUTED:
            last_use[roots[node]] = len(steps)
    return last_use
