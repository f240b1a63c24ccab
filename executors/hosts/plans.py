"""How a graph's batches are computed by the hosts there are: the cut, and a plan for each size of batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from executors.hosts.layout import (
    Dealing,
    HostOfStage,
    Layout,
    Planner,
    as_tasks,
    deal,
    deal_shards,
    shares_by_time,
    tasks_of_stages,
)
from executors.hosts.measuring import HostsTiming, TimedHost
from miai_graph.context import COMMUNICATION, WAIT, warn_user
from miai_graph.graph import Graph
from miai_graph.messages import describe
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.passes.batch_analysis import BatchAnalysis
from miai_graph.passes.pipeline import Pipeline
from miai_graph.passes.reasons import in_words, why_parts
from miai_graph.plan.schedule import choose_ahead, choose_parts
from miai_graph.state import Variable, state
from miai_graph.timing import TimingRecord

if TYPE_CHECKING:
    from executors.hosts.executor import Hosts

MICRO_BATCH_SECONDS = 2e-3
"""What a micro-batch costs beside its computing: calls of small kernels, and messages."""

WORTH_CUTTING_AGAIN = 0.9
"""Another cut is taken if its slowest stage takes no more than this share of the present one's."""

SENDING_SHARE = 0.25
"""Of the time of a stage, for sending: with as much, schedules go one forward pass ahead."""

NEVER = -1


@dataclass(frozen=True)
class StepPlan:
    """How batches of one size are computed.

    number : by which hosts know it
    layout, dealing : of the graph, and of the batch
    hosts : those that take part
    timed : what each of them was timed at
    inputs : for each stage the positions of the inputs that it reads
    """

    number: int
    layout: Layout
    dealing: Dealing
    hosts: Sequence[HostOfStage]
    timed: Sequence[TimedHost]
    inputs: Sequence[Sequence[int]]

    @cached_property
    def read(self) -> Mapping[str, Sequence[Variable]]:
        """By address, the variables that a host reads or updates."""
        return {host.address: self.layout.variables[host.stage] for host in self.hosts}

    @cached_property
    def read_numbers(self) -> Mapping[str, Array]:
        """Those of `read`, as the state counts."""
        return {address: state.numbers(variables) for address, variables in self.read.items()}

    @cached_property
    def updated(self) -> Mapping[str, Sequence[Variable]]:
        """By address, the variables of which a host computes the next value."""
        return {host.address: self.layout.updated[host.stage] for host in self.hosts}


class Plans:
    """The plans of one graph.

    Parameters
    ----------
    owner : knows the hosts
    graph, analysis : simplified, and what is known of its dependence on the batch
    inputs : in the order in which they are fed
    timing : to which all hosts of all plans are added

    Attributes
    ----------
    layout : the graph on hosts, if it was laid out
    """

    def __init__(
        self, owner: Hosts, graph: Graph, analysis: BatchAnalysis, inputs: Sequence[Node], timing: HostsTiming
    ) -> None:
        self._owner = owner
        self._inputs = inputs
        self._timing = timing
        self._planner = Planner(graph, analysis, owner.stages_by_hand)
        self._generation = NEVER
        self._plans: dict[int, StepPlan] = {}
        self._has_warned = False
        self.layout: Layout | None = None

    def find(self, batch_size: int) -> StepPlan | None:
        """The plan for batches of this size, if there is one that holds."""
        return None if self._is_stale() else self._plans.get(batch_size)

    def get(self, batch_size: int) -> StepPlan:
        """The plan for batches of this size."""
        if self._is_stale():
            self.forget()
        if self.layout is None:
            self.layout = self._lay_out(batch_size)
            self._generation = self._owner.crew.generation
        if batch_size not in self._plans:
            self._plans[batch_size] = self._make(self.layout, batch_size)
        return self._plans[batch_size]

    def _is_stale(self) -> bool:
        return self._generation != self._owner.crew.generation

    def forget(self) -> None:
        """Let go of programs and plans, but for what was timed."""
        self._timing.tidy()
        self.layout, self._plans = None, {}

    def _lay_out(self, batch_size: int) -> Layout:
        """Cut the graph for the hosts that are there, and give each its stage."""
        owner, session = self._owner, self._owner.session
        session.tidy()
        crew = owner.crew.hosts
        stages, replicas = owner.grid_size(len(crew), self._planner.most_stages)
        cut = self._planner.cut(batch_size, stages, replicas, crew, owner.crew.links)
        pipeline = self._planner.pipeline(cut.bounds, is_reproducible=owner.shards is not None)
        self._warn_of_reductions(pipeline)
        graphs = [pipeline.stage(stage, is_replicated=replicas > 1) for stage in range(pipeline.stages)]
        grid = [[crew[number].address for number in hosts] for hosts in cut.hosts]
        layout = Layout(grid, cut.shares, pipeline, graphs, [next(session.numbers) for _ in graphs], cut)
        adds_up_alone = replicas == 1 and owner.shards is None
        messages = [layout.program_message(stage, session.key, adds_up_alone) for stage in range(pipeline.stages)]
        calls = {}
        for host in layout.hosts:
            message = messages[host.stage]
            calls[session.call(host.address, "program", message.content, message.arrays)] = host.address
        session.leftovers.note_programs(layout, {host.address: layout.programs[host.stage] for host in layout.hosts})
        session.gather(calls)
        return layout

    def _warn_of_reductions(self, pipeline: Pipeline) -> None:
        """Say what stands in the way of a pipeline that the user has cut into micro-batches."""
        reductions, asked = pipeline.mid_step_reductions, self._owner.micro_batches
        if pipeline.stages == 1 or asked in ("auto", 1) or not reductions or self._has_warned:
            return
        self._has_warned = True
        warn_user(
            "expected micro-batches that go through the stages one after another; found values that need the whole "
            f"batch in mid-step, for which the pipeline runs empty {_levels(pipeline)} times:\n"
            f"  {describe(reductions[0])}\n"
            "  Use BatchNormalization(synchronized=False) for statistics of micro-batches, LayerNormalization, or "
            "micro_batches=1"
        )

    def _make(self, layout: Layout, batch_size: int) -> StepPlan:
        owner, session, shards = self._owner, self._owner.session, self._owner.shards
        if shards is not None:
            dealing = deal_shards(batch_size, len(layout.grid), shards)
        else:
            dealing = deal(batch_size, layout.shares, self._micro_batches(layout, batch_size))
        number = next(session.numbers)
        hosts = [host for host in layout.hosts if host.replica < dealing.replicas]
        names = [node.name for node in self._inputs]
        inputs = [[names.index(node.name) for node in stage.graph.inputs] for stage in layout.stages]
        grid = layout.grid[: dealing.replicas]
        tasks = {
            count: tasks_of_stages(layout.pipeline, owner.schedule, count, self._ahead(layout, count))
            for count in {len(parts) for parts in dealing.parts}
        }
        calls = {}
        for host in hosts:
            parts = dealing.parts[host.replica]
            content = {
                "plan": number,
                "program": layout.programs[host.stage],
                "batch_size": batch_size,
                "parts": [[part.number, part.first_row, part.size] for part in parts],
                "tasks": as_tasks(tasks[len(parts)][host.stage]),
                "stages": list(grid[host.replica]),
                "replicas": [addresses[host.stage] for addresses in grid],
                "replica": host.replica,
                "is_below": host.stage < layout.pipeline.stages - 1,
                "keeps_parts": None if shards is None else [len(parts) for parts in dealing.parts],
                "inputs": [names[position] for position in inputs[host.stage]],
            }
            calls[session.call(host.address, "plan", content)] = host.address
        answers = session.gather(calls)
        timed = [
            TimedHost.described(host, layout.stages[host.stage].graph, answer)
            for host, answer in zip(hosts, answers, strict=True)
        ]
        self._timing.add(timed)
        return StepPlan(number, layout, dealing, hosts, timed, inputs)

    def _micro_batches(self, layout: Layout, batch_size: int) -> int:
        """How many micro-batches each replica has."""
        asked = self._owner.micro_batches
        if asked != "auto":
            return int(asked)
        if layout.pipeline.stages == 1 or layout.pipeline.mid_step_reductions:
            return 1
        rows = max(1, batch_size // len(layout.grid))
        seconds = max(max(times) for times in layout.cut.stage_seconds)
        return choose_parts(layout.pipeline.stages, rows, seconds, MICRO_BATCH_SECONDS)

    @staticmethod
    def _ahead(layout: Layout, parts: int) -> int:
        """How many forward passes ahead hide what sending takes."""
        stages = layout.pipeline.stages
        return choose_ahead(stages, parts, 1.0, SENDING_SHARE) if stages > 1 else 0

    def reconsider(self, batch_size: int) -> None:
        """Cut anew, or share batches otherwise, if measured times say that the slowest host can be faster."""
        if self.layout is None:
            return
        if self.layout.pipeline.stages > 1 and self._owner.stages_by_hand is None:
            self._cut_again(self.layout, batch_size)
        if not self._is_stale() and len(self.layout.grid) > 1 and self._owner.shards is None:
            self._share_again(self.layout)

    @property
    def _timed(self) -> list[TimedHost]:
        """What hosts were timed at in the plans that hold."""
        return [timed for plan in self._plans.values() for timed in plan.timed]

    def _cut_again(self, layout: Layout, batch_size: int) -> None:
        owner, planner = self._owner, self._planner
        owner.crew.measure_again()
        crew, links = owner.crew.hosts, owner.crew.links
        relative = {host.address: host.flops_per_second / crew[0].flops_per_second for host in crew}
        planner.measured = _measured_seconds(self._timed, relative)
        before = planner.slowest_seconds(layout.cut, batch_size, crew, links)
        cut = planner.cut(batch_size, layout.pipeline.stages, len(layout.grid), crew, links)
        if planner.slowest_seconds(cut, batch_size, crew, links) < WORTH_CUTTING_AGAIN * before:
            self._generation = NEVER

    def _share_again(self, layout: Layout) -> None:
        """Give each replica rows by the time that its slowest stage has taken for those that it had."""
        by_place: dict[HostOfStage, float] = defaultdict(float)
        for timed in self._timed:
            by_place[timed.place] += sum(record.seconds for record in _computing(timed))
        seconds = [0.0] * len(layout.grid)
        for place, total in by_place.items():
            seconds[place.replica] = max(seconds[place.replica], total)
        measured = shares_by_time(layout.shares, seconds)
        if max(new / old for new, old in zip(measured, layout.shares, strict=True)) * WORTH_CUTTING_AGAIN > 1:
            self.layout = replace(layout, shares=measured)
            self._plans.clear()

    def describe(self) -> list[str]:
        """What is to be known of how batches are computed, in sentences."""
        layout, owner = self.layout, self._owner
        if layout is None:
            return []
        notes = [layout.cut.reason, *owner.crew.notes]
        sizes: dict[tuple[int, ...], list[str]] = defaultdict(list)
        for batch_size, plan in self._plans.items():
            sizes[tuple(len(parts) for parts in plan.dealing.parts)].append(str(batch_size))
        schedule = f", schedule {owner.schedule}" if layout.pipeline.stages > 1 else ""
        for counts, found in sizes.items():
            at = f"At batch size{'s' * (len(found) > 1)} {in_words(found)}"
            notes.append(f"{at}: {_micro_batches_in_words(counts)}{schedule}{self._why_so_many(layout, counts)}.")
        reductions = layout.pipeline.mid_step_reductions
        if reductions and layout.pipeline.stages > 1:
            where = f"layer {reductions[0].scope}" if reductions[0].scope else describe(reductions[0])
            notes.append(
                f"The pipeline runs empty {_levels(layout.pipeline)} times in each step, for {where} needs the whole "
                "batch."
            )
        return notes

    def _why_so_many(self, layout: Layout, counts: Sequence[int]) -> str:
        """Why replicas have so many micro-batches, if that was not the user's choice."""
        if self._owner.shards is not None:
            return ", one for each shard"
        if self._owner.micro_batches != "auto":
            return ""
        if layout.pipeline.stages == 1:
            return ", for one stage keeps no other waiting"
        if layout.pipeline.mid_step_reductions:
            return "; more would hardly overlap, for the whole batch is needed in mid-step"
        slowest = max(max(times) for times in layout.cut.stage_seconds)
        return f": {why_parts(layout.pipeline.stages, max(counts), slowest, MICRO_BATCH_SECONDS)}"


def _computing(timed: TimedHost) -> list[TimingRecord]:
    """What a host has computed."""
    return [record for record in timed.records() if record.phase not in (WAIT, COMMUNICATION)]


def _micro_batches_in_words(counts: Sequence[int]) -> str:
    """``4 micro-batches on each replica``, or of how many each one has its own."""
    each = list(map(str, counts)) if len(set(counts)) > 1 else [str(counts[0])]
    noun = "micro-batch" if each == ["1"] else "micro-batches"
    return f"{in_words(each)} {noun}{' on each replica' if len(counts) > len(each) else ''}"


def _levels(pipeline: Pipeline) -> int:
    return len({pipeline.levels[node] for node in pipeline.mid_step_reductions})


def _measured_seconds(found: Iterable[TimedHost], speeds: Mapping[str, float]) -> dict[str, float]:
    """For each node what it takes in a step, if its host is as fast as the first one."""
    seconds: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for timed in found:
        for record in _computing(timed):
            seconds[record.node] += record.seconds * speeds[timed.place.address]
            calls[record.node] += record.calls
    return {node: total / calls[node] for node, total in seconds.items()}
