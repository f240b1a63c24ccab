"""Pipelining as a rewrite: from a graph to the graphs of stages, which send each other what they need.

Work is ordered by *level*, the number of reductions over the batch that come before, and within a level by *sweep*: in
sweep 0 data goes up through the stages (the forward pass), in sweep 1 down (the backward pass), and so on in turn. A
stage's nodes of one level and sweep that depend on the batch are one task, done for each part of the batch (each
micro-batch), in an order that a schedule gives. What does not depend on the batch is done once, at the start of its
level.

All stages do what they do in the order of one sequence, so no two of them ever wait for each other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from miai_graph.context import COMMUNICATION, WAIT
from miai_graph.graph import Graph
from miai_graph.node import Node, derive, reapply
from miai_graph.ops.communication import _all_reduce, _await_commit, _barrier, _contribute, _receive, _send
from miai_graph.passes.batch_analysis import analyse_batch
from miai_graph.placement import Partial, Replicated

BUCKET_BYTES = 1 << 21
"""What is owed to other replicas is sent in messages of about this size, as soon as it is there."""

Turn = tuple[int, bool, int, int]
"""When a node has its turn: level, whether it depends on the batch, sweep, and place in the whole graph."""


@dataclass(frozen=True)
class Segment:
    """When a node of a stage is computed.

    level : after how many reductions
    sweep : in which sweep, for each part of the batch; None: once, at the start of the level
    """

    level: int
    sweep: int | None


@dataclass(frozen=True)
class StageGraph:
    """What one stage computes.

    Attributes
    ----------
    graph : its outputs are those at `outputs` and then what is done for its effect; its updates those of the variables
        that this stage has
    outputs : places of the whole graph's outputs that this stage has
    exports : what is owed to reductions
    per_part : the nodes that are computed for each part of the batch
    segments : of each node
    """

    graph: Graph
    outputs: tuple[int, ...]
    exports: tuple[Node, ...]
    per_part: frozenset[Node]
    segments: Mapping[Node, Segment]


class Pipeline:
    """A graph dealt out to stages.

    Parameters
    ----------
    graph : on the whole batch; it must be possible to split it
    stage_of : the stage of each node; None: each stage that wants it
    stages : how many there are
    is_reproducible : whether reductions must be over the parts of the batch and nothing else, in their order; else what
        is owed is reduced on its stage before another one gets it

    Attributes
    ----------
    analysis : how nodes depend on the batch
    levels : of each node
    """

    def __init__(
        self, graph: Graph, stage_of: Mapping[Node, int | None], stages: int, *, is_reproducible: bool = False
    ) -> None:
        self.graph = graph
        self.stages = stages
        self.stage_of = stage_of
        self.analysis = analyse_batch(graph)
        if not is_reproducible:
            self.analysis = analyse_batch(graph, self._owed_across_stages())
        self.analysis.require_splittable()
        self.levels = self._levels()
        self._places = {node: place for place, node in enumerate(graph.nodes)}
        self._sweeps = self._find_sweeps()
        self._local, self._received = self._find_wanted()
        self.values = {
            wanted: number
            for number, wanted in enumerate(
                sorted(
                    ((node, stage) for stage in range(stages) for node in self._received[stage]),
                    key=lambda wanted: (self._places[wanted[0]], wanted[1]),
                )
            )
        }
        """A number for each value that is sent, by node and receiving stage."""

    def _owed_across_stages(self) -> set[Node]:
        """What is owed to a reduction, and read by another stage."""
        placements, stage_of = self.analysis.placements, self.stage_of
        return {
            source
            for node in self.graph.nodes
            for source in node.inputs
            if isinstance(placements[source], Partial) and stage_of[source] != stage_of[node]
        }

    def _levels(self) -> dict[Node, int]:
        levels: dict[Node, int] = {}
        for node in self.graph.nodes:
            levels[node] = max((levels[s] + (s in self.analysis.reduced) for s in node.inputs), default=0)
        return levels

    def is_per_part(self, node: Node) -> bool:
        return not isinstance(self.analysis.placements[node], Replicated)

    def is_split(self, node: Node) -> bool:
        """Whether each part of the batch has its own rows of the value."""
        return self.is_per_part(node) and node not in self.analysis.reduced

    def _is_whole(self, node: Node) -> bool:
        """Whether what others read of it is one value for the whole batch."""
        return not self.is_split(node)

    def _find_sweeps(self) -> dict[Node, int]:
        """In which sweep of its level each node is computed that depends on the batch and has a stage."""
        sweeps: dict[Node, int] = {}
        for node in self.graph.nodes:
            here = self.stage_of[node]
            if here is None or not self.is_per_part(node):
                continue
            sweeps[node] = max(
                (
                    _next_sweep(sweeps[source], there, here)
                    for source in node.inputs
                    if (there := self.stage_of[source]) is not None
                    and not self._is_whole(source)
                    and self.levels[source] == self.levels[node]
                ),
                default=0,
            )
        return sweeps

    def _find_wanted(self) -> tuple[list[set[Node]], list[set[Node]]]:
        """For each stage the nodes that it computes, and those that it receives."""
        local: list[set[Node]] = [set() for _ in range(self.stages)]
        received: list[set[Node]] = [set() for _ in range(self.stages)]

        def want(node: Node, stage: int) -> None:
            waiting = [node]
            while waiting:
                node = waiting.pop()
                if self.stage_of[node] not in (None, stage):
                    received[stage].add(node)
                elif node not in local[stage]:
                    local[stage].add(node)
                    waiting += node.inputs

        for node in self.graph.nodes:
            stage = self.stage_of[node]
            if stage is not None:
                want(node, stage)
        for node in self.graph.outputs:
            want(node, self.stage_of[node] or 0)
        before = -1
        while before != (before := sum(map(len, local))):
            for target, value in self.graph.updates.items():
                home = self.stage_of[value]
                if home is not None:
                    want(target, home)
                elif not any(target in nodes for nodes in local):
                    want(target, 0)
                for stage in range(self.stages):
                    if target in local[stage]:
                        want(value, stage)
        return local, received

    @property
    def mid_step_reductions(self) -> list[Node]:
        """The values that the whole batch must be known for, before any of it can go on: batch statistics, say. At each
        level of them the pipeline runs empty once."""
        wanted: set[Node] = set()
        for node in reversed(self.graph.nodes):
            if node in wanted or (self.is_per_part(node) and self.stage_of[node] is not None):
                wanted.update(node.inputs)
        return [node for node in self.graph.nodes if node in self.analysis.reduced and node in wanted]

    def stage(self, stage: int, *, is_replicated: bool = False) -> StageGraph:
        """What one stage computes.

        Parameters
        ----------
        is_replicated : whether there are replicas, to which what is owed must be sent
        """
        return _StageWriter(self, stage, self._local[stage], self._received[stage], is_replicated).result()

    def turns(self, stage: int) -> dict[Node, Turn]:
        """When a stage has or needs each of the nodes that it computes or receives. What has no stage of its own, and
        what is received, is due when it is first read."""
        turns: dict[Node, Turn] = {}
        nodes = sorted(self._local[stage] | self._received[stage], key=self._places.__getitem__)
        users: dict[Node, list[Node]] = defaultdict(list)
        for node in nodes:
            if node in self._local[stage]:
                for source in node.inputs:
                    users[source].append(node)
        for node in reversed(nodes):
            place = self._places[node]
            per_part = self.is_per_part(node) and not (node in self._received[stage] and self._is_whole(node))
            if self.stage_of[node] == stage:
                turns[node] = self.levels[node], per_part, self._sweeps.get(node, 0), place
                continue
            read = min((turns[user] for user in users[node]), default=None)
            level = self._ready_level(node) if read is None else read[0]
            sweep = read[2] if read is not None and read[1] and per_part else 0
            turns[node] = level, per_part, sweep, place
        return turns

    def sweeps(self, stage: int) -> dict[int, set[int]]:
        """For each level the sweeps in which a stage has something to do for each part of the batch."""
        result: dict[int, set[int]] = defaultdict(set)
        for node, (level, is_per_part, sweep, _) in self.turns(stage).items():
            if is_per_part and (node.inputs or node in self._received[stage]):
                result[level].add(sweep)
        return result

    def _ready_level(self, node: Node) -> int:
        return self.levels[node] + (node in self.analysis.reduced)


def _next_sweep(sweep: int, source: int, target: int) -> int:
    """The sweep in which data that was there in one arrives at another stage."""
    goes_up = sweep % 2 == 0
    fits = target >= source if goes_up else target <= source
    return sweep if fits else sweep + 1


class _StageWriter:
    def __init__(
        self, pipeline: Pipeline, stage: int, local: set[Node], received: set[Node], is_replicated: bool
    ) -> None:
        self._pipeline = pipeline
        self._graph = pipeline.graph
        self._stage = stage
        self._local, self._received = local, received
        self._is_replicated = is_replicated
        self._turns = pipeline.turns(stage)
        self._owed = {node for node in local & pipeline.analysis.reduced if pipeline.stage_of[node] == stage}
        self._waiting: list[Node] = []
        """What is owed since the last barrier."""
        self._receivers: dict[Node, list[int]] = defaultdict(list)
        for node, receiver in pipeline.values:
            if pipeline.stage_of[node] == stage:
                self._receivers[node].append(receiver)
        self._new: dict[Node, Node] = {}
        self._whole: dict[Node, Node] = {}
        self._level = 0
        self._exports: list[Node] = []
        self._effects: list[Node] = []
        self._bucket: list[Node] = []
        self._bucket_turn: Turn | None = None
        self._contributions: list[Node] = []
        self._per_part: set[Node] = set()
        self._segments: dict[Node, Segment] = {}

    def result(self) -> StageGraph:
        nodes = sorted(self._turns, key=self._turns.__getitem__)
        for node in nodes:
            self._reach(self._turns[node][0])
            self._write(node)
        self._reach(max((self._turns[node][0] + (node in self._owed) for node in nodes), default=0))
        places = tuple(
            place
            for place, node in enumerate(self._graph.outputs)
            if (self._pipeline.stage_of[node] or 0) == self._stage
        )
        outputs = [self._read(self._graph.outputs[place]) for place in places]
        updates = {target: self._read(value) for target, value in self._graph.updates.items() if target in self._local}
        self._hold_back(updates)
        graph = Graph([*outputs, *self._effects], updates)
        return StageGraph(graph, places, tuple(self._exports), frozenset(self._per_part), self._segments)

    def _hold_back(self, updates: Mapping[Node, Node]) -> None:
        """Values that hold must not be overwritten before those of the step before do."""
        if updates:
            first = min(updates.values(), key=lambda value: self._segments[value].level)
            turn: Turn = (self._segments[first].level, False, 0, 0)
            self._effects.append(self._add(derive(first, _await_commit, [], {}, WAIT), turn))

    def _add(self, node: Node, turn: Turn) -> Node:
        level, is_per_part, sweep, _ = turn
        self._segments[node] = Segment(level, sweep if is_per_part else None)
        if is_per_part:
            self._per_part.add(node)
        return node

    def _write(self, node: Node) -> None:
        turn = self._turns[node]
        if node in self._received:
            attributes = {
                "type": node.type,
                "stage": self._pipeline.stage_of[node],
                "value": self._pipeline.values[node, self._stage],
            }
            self._new[node] = self._add(derive(node, _receive, [], attributes, WAIT), turn)
            return
        inputs = [self._read(source) for source in node.inputs]
        self._new[node] = self._add(node if not node.inputs else reapply(node, inputs), turn)
        if node in self._owed:
            self._owe(node, turn)
        else:
            self._send(node, turn)

    def _send(self, node: Node, turn: Turn) -> None:
        for receiver in self._receivers[node]:
            attributes = {"stage": receiver, "value": self._pipeline.values[node, receiver]}
            self._effects.append(self._add(derive(node, _send, [self._read(node)], attributes, COMMUNICATION), turn))

    def _owe(self, node: Node, turn: Turn) -> None:
        """What is owed goes to the other replicas together with what is owed next to it."""
        self._waiting.append(node)
        if not self._is_replicated:
            return
        if self._bucket_turn is not None and self._bucket_turn[:3] != turn[:3]:
            self._contribute()
        self._bucket.append(self._new[node])
        self._bucket_turn = turn
        if sum(export.type.size_bytes for export in self._bucket) >= BUCKET_BYTES:
            self._contribute()

    def _contribute(self) -> None:
        if self._bucket and self._bucket_turn is not None:
            node = derive(self._bucket[-1], _contribute, self._bucket, {}, COMMUNICATION)
            self._contributions.append(self._add(node, self._bucket_turn))
        self._bucket, self._bucket_turn = [], None

    def _reach(self, level: int) -> None:
        """Put reductions between each level before this one and the next."""
        while self._level < level:
            owed, self._waiting = self._waiting, []
            self._contribute()
            self._level += 1
            if not owed:
                continue
            turn: Turn = (self._level, False, 0, 0)
            exports = [self._new[node] for node in owed]
            self._exports += exports
            barrier = derive(exports[-1], _barrier, [*exports, *self._contributions], {}, WAIT)
            self._effects.append(self._add(barrier, turn))
            self._contributions = []
            for node, export in zip(owed, exports, strict=True):
                reduction = {"reduction": self._reduction(node)}
                inputs = [export, barrier]
                self._whole[node] = self._add(derive(export, _all_reduce, inputs, reduction, COMMUNICATION), turn)
            for node in owed:
                self._send(node, turn)

    def _reduction(self, node: Node) -> str:
        placement = self._pipeline.analysis.placements[node]
        assert isinstance(placement, Partial)
        return placement.reduction

    def _read(self, node: Node) -> Node:
        return self._whole.get(node, self._new[node])
