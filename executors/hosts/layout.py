"""A graph on a grid of hosts: which stage computes what, on which host, and what each is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from executors.hosts.cluster import Message
from executors.hosts.crew import Host
from miai_graph.context import BACKWARD
from miai_graph.errors import ArgumentError
from miai_graph.graph import Graph
from miai_graph.graph_data import graph_to_data
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.ops.leaves import variable_of
from miai_graph.passes.batch_analysis import BatchAnalysis
from miai_graph.passes.cutting import Links, stage_seconds
from miai_graph.passes.named_stages import cut_by_names
from miai_graph.passes.pipeline import Pipeline, StageGraph
from miai_graph.passes.replicas import GridCut, cut_grid, grid, rows, shares
from miai_graph.passes.stage_recomputation import recompute_within_stages
from miai_graph.passes.stages import Row, lay_out
from miai_graph.plan.parts import Part, cut_batch, parts_of
from miai_graph.plan.schedule import Task, schedules
from miai_graph.state import Variable
from miai_graph.types import bind_type

CALL_SECONDS = 2e-6
BYTES_PER_SECOND = 1e10
"""What a kernel's call takes, and how fast memory is, until steps have been timed."""


@dataclass(frozen=True)
class HostOfStage:
    """A host's place in a grid."""

    address: str
    replica: int
    stage: int


@dataclass(frozen=True)
class Layout:
    """A graph dealt out to a grid of hosts.

    Attributes
    ----------
    grid : by replica and stage, the address
    shares : of the batch, by replica
    pipeline : the stages' graphs as a whole
    stages : the graph of each
    programs : for each stage the number by which its hosts know it
    cut : why it is cut as it is
    """

    grid: Sequence[Sequence[str]]
    shares: Sequence[float]
    pipeline: Pipeline
    stages: Sequence[StageGraph]
    programs: Sequence[int]
    cut: GridCut

    @cached_property
    def variables(self) -> Sequence[Sequence[Variable]]:
        """For each stage those that it reads or updates."""
        return [[variable_of(node) for node in stage.graph.variables] for stage in self.stages]

    @cached_property
    def updated(self) -> Sequence[Sequence[Variable]]:
        """For each stage those that it computes the next values of."""
        return [[variable_of(node) for node in stage.graph.updates] for stage in self.stages]

    @property
    def hosts(self) -> Iterator[HostOfStage]:
        """All places of the grid."""
        for replica, addresses in enumerate(self.grid):
            for stage, address in enumerate(addresses):
                yield HostOfStage(address, replica, stage)

    def program_message(self, stage: int, key: Callable[[Variable], int], adds_up_alone: bool) -> Message:
        """What a host must know of its stage."""
        own = self.stages[stage]
        data = graph_to_data(own.graph)
        numbers = {node: number for number, node in enumerate(own.graph.nodes)}
        content = {
            "program": self.programs[stage],
            "graph": data.content,
            "exports": [numbers[node] for node in own.exports],
            "per_part": sorted(numbers[node] for node in own.per_part if node in numbers),
            "segments": [[own.segments[node].level, own.segments[node].sweep] for node in own.graph.nodes],
            "variables": [key(variable) for variable in self.variables[stage]],
            "adds_up_alone": adds_up_alone,
        }
        return Message(content, data.arrays)


class Planner:
    """Where a graph can be cut, and what its nodes are thought to take.

    Parameters
    ----------
    graph : simplified
    analysis : of it
    by_hand : the layers of each stage; None: cut by cost
    """

    def __init__(self, graph: Graph, analysis: BatchAnalysis, by_hand: Sequence[Sequence[str]] | None) -> None:
        self._graph = graph
        self._row: Row = lay_out(graph, analysis)
        self._by_hand = by_hand
        self._trains = any(node.phase == BACKWARD for node in graph.nodes)
        self._names = graph.names
        self.measured: dict[str, float] = {}
        """Seconds a step by node, on the first host, once they were timed."""

    def cut(
        self,
        batch_size: int,
        stages: int,
        replicas: int,
        crew: Sequence[Host],
        links: Links | None,
    ) -> GridCut:
        """The best cut for batches of this size, on so many of these hosts."""
        seconds, crossing = self._amounts(batch_size, replicas, crew[0].flops_per_second)
        labels = [node.scope or self._names[node] for node in self._row.items] or ["(nothing)"]
        speeds = _relative_speeds(crew)
        if self._by_hand is not None and stages == len(self._by_hand):
            # Predictions lack layers that training has: what cannot be cut as was said is cut by cost.
            with nullcontext() if self._trains else suppress(ArgumentError):
                return self._cut_by_hand(seconds, crossing, replicas, speeds, links)
        most, names = min(stages, len(seconds)), [host.name for host in crew]
        return cut_grid(seconds, crossing, most, replicas, speeds=speeds, links=links, labels=labels, hosts=names)

    def slowest_seconds(self, cut: GridCut, batch_size: int, crew: Sequence[Host], links: Links | None) -> float:
        """What the slowest stage of a cut takes, by what is known now."""
        seconds, crossing = self._amounts(batch_size, len(cut.hosts), crew[0].flops_per_second)
        speeds = _relative_speeds(crew)
        return max(
            float(stage_seconds(cut.bounds, order, seconds, crossing, speeds, links).max()) for order in cut.hosts
        )

    def _amounts(self, batch_size: int, replicas: int, flops_per_second: float) -> tuple[Array, Array]:
        """For each item its seconds, and for each place between items the bytes that cross it, for one replica."""
        rows_of_replica = max(1, batch_size // replicas)
        seconds = self._row.work(lambda node: self._seconds(node, rows_of_replica, flops_per_second))
        return seconds, self._row.crossing_bytes(self._graph, rows_of_replica)

    def _cut_by_hand(
        self, seconds: Array, crossing: Array, replicas: int, speeds: Sequence[float], links: Links | None
    ) -> GridCut:
        assert self._by_hand is not None
        scopes = [node.scope for node in self._row.items]
        bounds = cut_by_names(scopes, self._by_hand, known={node.scope for node in self._graph.nodes})
        hosts = grid(speeds, links, len(bounds) - 1, replicas)
        times = [tuple(stage_seconds(bounds, order, seconds, crossing, speeds, links).tolist()) for order in hosts]
        paces = shares([1 / max(max(each), 1e-9) for each in times])
        return GridCut(bounds, hosts, paces, tuple(times), f"The {len(bounds) - 1} stages are as they were given.")

    def _seconds(self, node: Node, rows_of_replica: int, flops_per_second: float) -> float:
        if self.measured:
            return self.measured.get(self._names[node], 0.0)
        types = [bind_type(source.type, rows_of_replica) for source in node.inputs]
        cost = node.op.cost(bind_type(node.type, rows_of_replica), *types, **node.attributes)
        return CALL_SECONDS + cost.flops / flops_per_second + cost.bytes / BYTES_PER_SECOND

    def pipeline(self, bounds: Sequence[int], *, is_reproducible: bool) -> Pipeline:
        """The graph as stages with these bounds."""
        graph, stages = recompute_within_stages(self._graph, self._row.stages(bounds))
        return Pipeline(graph, stages, len(bounds) - 1, is_reproducible=is_reproducible)

    @property
    def most_stages(self) -> int:
        """There is nothing to cut beyond."""
        return max(1, len(self._row.items))


def _relative_speeds(crew: Sequence[Host]) -> list[float]:
    """To that of the first host."""
    return [host.flops_per_second / crew[0].flops_per_second for host in crew]


@dataclass(frozen=True)
class Dealing:
    """How a batch is dealt out.

    Attributes
    ----------
    parts : by replica, its parts
    """

    parts: Sequence[Sequence[Part]]

    @property
    def replicas(self) -> int:
        return len(self.parts)

    def first_row(self, replica: int) -> int:
        return self.parts[replica][0].first_row

    def rows(self, replica: int) -> slice:
        """Those of the batch that a replica has."""
        last = self.parts[replica][-1]
        return slice(self.first_row(replica), last.first_row + last.size)


def deal(batch_size: int, shares: Sequence[float], micro_batches: int) -> Dealing:
    """Rows for each replica, each cut into micro-batches; fewer replicas if there are fewer rows than those."""
    shares = shares[:batch_size]
    parts: list[list[Part]] = []
    first_row = number = 0
    for count in rows(batch_size, shares):
        own = cut_batch(count, micro_batches)
        parts.append([Part(number + part.number, first_row + part.first_row, part.size) for part in own])
        first_row += count
        number += len(own)
    return Dealing(parts)


def shares_by_time(shares_before: Sequence[float], seconds: Sequence[float]) -> tuple[float, ...]:
    """Shares of a batch with which all replicas take as long.

    Parameters
    ----------
    shares_before : with which each replica took so many seconds
    """
    return shares([share / max(time, 1e-9) for share, time in zip(shares_before, seconds, strict=True)])


def deal_shards(batch_size: int, replicas: int, shards: int) -> Dealing:
    """Runs of logical shards for each replica."""
    parts = cut_batch(batch_size, shards)
    replicas = min(replicas, len(parts))
    return Dealing([parts_of(replica, replicas, parts) for replica in range(replicas)])


def tasks_of_stages(pipeline: Pipeline, kind: str, parts: int, ahead: int) -> list[list[tuple[int, list[Task]]]]:
    """For each stage, by level, what it does in which order."""
    sweeps = [pipeline.sweeps(stage) for stage in range(pipeline.stages)]
    result: list[list[tuple[int, list[Task]]]] = [[] for _ in sweeps]
    for level in sorted({level for found in sweeps for level in found}):
        listed = schedules(kind, [found.get(level, ()) for found in sweeps], parts, ahead=ahead)
        for stage, tasks in enumerate(listed):
            result[stage].append((level, tasks))
    return result


def check_stages(stages: Any) -> None:
    """Raise ArgumentError unless it is "auto", a positive number, or lists of names of layers."""
    if stages == "auto" or (isinstance(stages, int) and not isinstance(stages, bool) and stages >= 1):
        return
    is_list = isinstance(stages, Sequence) and not isinstance(stages, str) and len(stages) > 0
    if is_list and all(isinstance(names, Sequence) and not isinstance(names, str) and names for names in stages):
        return
    raise ArgumentError(
        "expected stages to be 'auto', a positive number, or for each stage a list of names of layers; "
        f"found {stages!r}"
    )


def as_tasks(tasks: Sequence[tuple[int, Sequence[Task]]]) -> list[list[Any]]:
    """Tasks as plain data."""
    return [[level, [[task.sweep, task.part] for task in listed]] for level, listed in tasks]
