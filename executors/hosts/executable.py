"""A graph that is computed by hosts, each with its stage and its rows of the batch."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any
from weakref import ref

import numpy as np

from executors.hosts.cluster import Message
from executors.hosts.layout import Dealing, HostOfStage, Layout, Planner, as_tasks, deal, deal_shards, tasks_of_stages
from executors.hosts.session import Entry, HostsLost, Session
from executors.serial import Serial
from miai_graph.executor import Executable, VariableValues
from miai_graph.feeding import Batch, CheckedBatch, Table, check_batch, check_inputs
from miai_graph.graph import Graph
from miai_graph.graph_data import unportable_ops
from miai_graph.messages import describe
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.ops.leaves import variable_of
from miai_graph.passes.batch_analysis import analyse_batch
from miai_graph.passes.simplify import simplify
from miai_graph.plan.schedule import choose_ahead, choose_parts
from miai_graph.state import state
from miai_graph.timing import Timing, TimingRecord, merge_calls
from miai_graph.types import bind_type

if TYPE_CHECKING:
    from executors.hosts.executor import Hosts

IDLE = "idle"
MICRO_BATCH_SECONDS = 2e-3
"""What a micro-batch costs beside its computing: calls of small kernels, and messages."""


@dataclass(frozen=True)
class StepPlan:
    """How batches of one size are computed.

    number : by which hosts know it
    layout, dealing : of the graph, and of the batch
    hosts : those that take part
    inputs : for each stage the positions of the inputs that it reads
    """

    number: int
    layout: Layout
    dealing: Dealing
    hosts: Sequence[HostOfStage]
    inputs: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Fed:
    """A batch that was sent to the hosts ahead of its step."""

    ticket: int
    plan: StepPlan
    source: object
    sent: Mapping[Future[None], str]


class HostsExecutable(Executable):
    """Plans for each size of batch, on a grid of hosts.

    A graph that cannot be computed from parts of the batch, or that hosts cannot get, is computed by this process alone;
    a warning names the node.

    Attributes
    ----------
    graph : what it computes, simplified
    """

    def __init__(self, executor: Hosts, graph: Graph, inputs: Sequence[Node]) -> None:
        start = perf_counter()
        check_inputs(graph, inputs)
        self._owner = executor
        self._inputs = tuple(inputs)
        self.variables = graph.variables
        self.graph = simplify(graph)
        self._alone = (
            None if self._can_be_distributed() else Serial().compile(graph, inputs, graph.outputs, graph.updates)
        )
        self._updated = tuple(map(variable_of, graph.updates))
        self._counter = state.new_number()
        self._committed = np.append(state.numbers(map(variable_of, graph.updates)), self._counter)
        self._layout: Layout | None = None
        self._generation = -1
        self._plans: dict[int, StepPlan] = {}
        self._fed: Fed | None = None
        self._steps = 0
        self._steps_ns = 0
        self._notes: list[str] = []
        if self._alone is None:
            self._planner = Planner(self.graph, analyse_batch(self.graph), executor.stages_by_hand)
        self._start_up_seconds = perf_counter() - start

    def _can_be_distributed(self) -> bool:
        if not any(node.type.batch_axes for node in self._inputs):
            return False
        analysis = analyse_batch(self.graph)
        reasons = {node: str(analysis.placements[node]) for node in analysis.obstacles} | dict(
            unportable_ops(self.graph)
        )
        if reasons:
            lines = "\n  ".join(f"{describe(node)}: {reason}" for node, reason in reasons.items())
            warnings.warn(
                f"expected a graph that workers can compute parts of; found nodes that they cannot:\n  {lines}\n"
                "  The whole graph is computed by this process alone",
                stacklevel=5,
            )
        return not reasons

    @property
    def step(self) -> int:
        return int(state.versions[self._counter]) if self._alone is None else self._alone.step

    @step.setter
    def step(self, step: int) -> None:
        if self._alone is not None:
            self._alone.step = step
        state.versions[self._counter] = step

    @property
    def _session(self) -> Session:
        return self._owner.session

    def __call__(self, *arrays: Any) -> list[Array]:
        return self._run(arrays)

    def run(self, batches: Iterable[Batch]) -> Iterator[list[Array]]:
        self._owner.require_open()
        if self._alone is not None:
            yield from self._alone.run(batches)
            return
        self._owner.welcome()
        iterator = iter(batches)
        batch, error = _next(iterator)
        while batch is not None:
            upcoming, error = _next(iterator)
            yield self._run(batch, upcoming)
            batch = upcoming
        if error is not None:
            raise error

    def warmup(self, batch_size: int) -> None:
        self._owner.require_open()
        if self._alone is not None:
            self._alone.warmup(batch_size)
            return
        with state.lock:
            while True:
                try:
                    self._push(self._plan(batch_size))
                    return
                except HostsLost:
                    self._owner.recover()

    def _run(self, batch: Batch, upcoming: Batch | None = None) -> list[Array]:
        self._owner.require_open()
        if self._alone is not None:
            return next(iter(self._alone.run([batch])))
        with state.lock:
            checked = check_batch(self._inputs, batch)
            while True:
                try:
                    return self.attempt(checked, upcoming)
                except HostsLost:
                    self._fed = None
                    self._owner.recover()

    def attempt(self, batch: CheckedBatch, upcoming: Batch | None = None) -> list[Array]:
        """Compute a step once.

        Raises
        ------
        HostsLost
            if a host is lost before the step is done; nothing of it is applied.
        """
        planning = perf_counter()
        state.about_to_change(self._updated, by=self._session.fetch)
        plan = self._plan(batch.size)
        self._push(plan)
        start = perf_counter()
        self._start_up_seconds += start - planning
        fed = self._fed
        if fed is None or fed.source is not batch.source or fed.plan is not plan:
            fed = self._feed(plan, batch)
        self._fed = None
        answers = self._compute(plan, fed, upcoming)
        outputs = self._outputs(plan, answers)
        seconds = perf_counter() - start
        readers = {host.address: plan.layout.variables[host.stage] for host in plan.hosts}
        holders = {host.address: plan.layout.updated(host.stage) for host in plan.hosts}
        self._session.commit(readers, holders, self._committed, self._entry(batch), seconds)
        self._steps += 1
        self._steps_ns += int(seconds * 1e9)
        return outputs

    def _entry(self, batch: CheckedBatch) -> Entry:
        """What repeats the step. Arrays that are not known to stay as they are, are copied."""
        if not isinstance(batch.source, Table):
            arrays = [
                array if batch.indices is None or not node.type.batch_axes else array[batch.indices]
                for node, array in zip(self._inputs, batch.arrays, strict=True)
            ]
            batch = CheckedBatch([array.copy() for array in arrays], batch.size)
        size_bytes = 0 if batch.indices is not None else sum(array.nbytes for array in batch.arrays)
        itself = ref(self)

        def repeat() -> None:
            executable = itself()
            if executable is not None:
                executable.attempt(batch)

        return Entry(repeat, size_bytes)

    def _compute(self, plan: StepPlan, fed: Fed, upcoming: Batch | None) -> list[Message]:
        """Let all hosts run the step, and send them the next batch meanwhile."""
        session, ticket = self._session, fed.ticket
        calls: dict[Future[Message], str] = {}
        for host in plan.hosts:
            content = {
                "plan": plan.number,
                "ticket": ticket,
                "step": self.step,
                "versions": session.versions(plan.layout.variables[host.stage]),
            }
            calls[session.call(host.address, "run", content)] = host.address
        try:
            if upcoming is not None:
                self._fed = self._feed_ahead(upcoming)
            answers = session.gather_step(calls, ticket)
            session.gather(fed.sent)
        except BaseException as error:
            reason = "the step was given up" if isinstance(error, HostsLost) else str(error) or type(error).__name__
            session.abort(calls, self._fed.ticket if self._fed is not None else ticket, reason)
            self._fed = None
            if isinstance(error, HostsLost):
                self._owner.name_losses(plan.layout, self.step)
            raise
        return answers

    def _feed_ahead(self, batch: Batch) -> Fed | None:
        """Send the next batch, if it is of a size for which there is a plan. What is wrong with it is told at its turn."""
        try:
            checked = check_batch(self._inputs, batch)
        except Exception:
            return None
        plan = self._plans.get(checked.size)
        return None if plan is None or self._is_stale() else self._feed(plan, checked)

    def _feed(self, plan: StepPlan, batch: CheckedBatch) -> Fed:
        """Send each host its rows of the inputs that its stage reads."""
        session = self._session
        ticket = next(session.numbers)
        sent: dict[Future[None], str] = {}
        for host in plan.hosts:
            rows = plan.dealing.rows(host.replica)
            arrays = []
            for position in plan.inputs[host.stage]:
                type = self._inputs[position].type
                is_split = bool(type.batch_axes)
                bound = bind_type(type, rows.stop - rows.start)
                array = np.empty(bound.shape, bound.dtype)
                batch.copy_to(position, array, rows if is_split else None)
                arrays.append(array)
            message = Message({"session": session.name, "ticket": ticket, "key": ("feed",)}, arrays)
            sent[session.cluster.post(host.address, message)] = host.address
        return Fed(ticket, plan, batch.source, sent)

    def _outputs(self, plan: StepPlan, answers: Sequence[Message]) -> list[Array]:
        """Put the outputs together from what the hosts have."""
        pieces: dict[int, list[Array]] = {}
        for host, answer in zip(plan.hosts, answers, strict=True):
            places = plan.layout.stages[host.stage].outputs
            for place, array in zip(places, answer.arrays, strict=True):
                pieces.setdefault(place, []).append(array)
        pipeline = plan.layout.pipeline
        result = []
        for place, node in enumerate(self.graph.outputs):
            found = pieces[place]
            is_split = pipeline.is_per_part(node) and node not in pipeline.analysis.reduced
            result.append(np.concatenate(found, node.type.batch_axes[0]) if is_split else np.array(found[0]))
        return result

    def _push(self, plan: StepPlan) -> None:
        self._session.push({host.address: plan.layout.variables[host.stage] for host in plan.hosts})

    def _is_stale(self) -> bool:
        return self._generation != self._owner.generation

    def _plan(self, batch_size: int) -> StepPlan:
        if self._is_stale():
            self._forget()
            self._layout = None
        if batch_size not in self._plans:
            if self._layout is None:
                self._layout = self._lay_out(batch_size)
                self._generation = self._owner.generation
            self._plans[batch_size] = self._make_plan(self._layout, batch_size)
        return self._plans[batch_size]

    def _lay_out(self, batch_size: int) -> Layout:
        """Cut the graph for the hosts that are there, and give each its stage."""
        owner, session = self._owner, self._session
        crew = owner.crew()
        stages, replicas = owner.grid_size(len(crew), self._planner.most_stages)
        cut = self._planner.cut(
            batch_size,
            stages,
            replicas,
            [host.name for host in crew],
            [host.flops_per_second for host in crew],
            owner.links(crew),
        )
        pipeline = self._planner.pipeline(cut.bounds, is_reproducible=owner.shards is not None)
        stages = len(cut.bounds) - 1
        graphs = [pipeline.stage(stage, is_replicated=replicas > 1) for stage in range(stages)]
        grid = [[crew[number].address for number in hosts] for hosts in cut.hosts]
        layout = Layout(grid, cut.shares, pipeline, graphs, [next(session.numbers) for _ in graphs], cut)
        adds_up_alone = replicas == 1 and owner.shards is None
        messages = [layout.program_message(stage, session.key, adds_up_alone=adds_up_alone) for stage in range(stages)]
        session.gather(
            {
                session.call(
                    host.address, "program", messages[host.stage].content, messages[host.stage].arrays
                ): host.address
                for host in layout.hosts
            }
        )
        return layout

    def _make_plan(self, layout: Layout, batch_size: int) -> StepPlan:
        owner, session = self._owner, self._session
        shards = owner.shards
        if shards is not None:
            dealing = deal_shards(batch_size, len(layout.grid), shards)
        else:
            dealing = deal(batch_size, layout.shares, self._micro_batches(layout, batch_size))
        number = next(session.numbers)
        stages = len(layout.stages)
        hosts = [host for host in layout.hosts if host.replica < dealing.replicas]
        names = [node.name for node in self._inputs]
        inputs = [[names.index(node.name) for node in stage.graph.inputs] for stage in layout.stages]
        grid = layout.grid[: dealing.replicas]
        calls = {}
        for host in hosts:
            parts = dealing.parts[host.replica]
            tasks = tasks_of_stages(
                layout.pipeline, stages, owner.schedule, len(parts), self._ahead(layout, batch_size, len(parts))
            )
            content = {
                "plan": number,
                "program": layout.programs[host.stage],
                "batch_size": batch_size,
                "parts": [[part.number, part.first_row, part.size] for part in parts],
                "tasks": as_tasks(tasks[host.stage]),
                "stages": list(grid[host.replica]),
                "replicas": [addresses[host.stage] for addresses in grid],
                "replica": host.replica,
                "keeps_parts": None if shards is None else [len(parts) for parts in dealing.parts],
                "inputs": [names[position] for position in inputs[host.stage]],
                "threads": None if shards is None else 1,
            }
            calls[session.call(host.address, "plan", content)] = host.address
        session.gather(calls)
        return StepPlan(number, layout, dealing, hosts, inputs)

    def _micro_batches(self, layout: Layout, batch_size: int) -> int:
        """How many micro-batches each replica has."""
        stages, reductions = len(layout.stages), layout.pipeline.mid_step_reductions
        if self._owner.micro_batches != "auto":
            return self._owner.micro_batches
        if stages == 1 or reductions:
            return 1
        rows = max(1, batch_size // len(layout.grid))
        seconds = max(max(times) for times in layout.cut.stage_seconds)
        return choose_parts(stages, rows, seconds, MICRO_BATCH_SECONDS)

    def _ahead(self, layout: Layout, batch_size: int, parts: int) -> int:
        """How many forward passes ahead hide what sending takes."""
        return choose_ahead(len(layout.stages), parts, 1.0, 0.25) if len(layout.stages) > 1 else 0

    def _forget(self) -> None:
        """Let hosts forget programs and plans that are not used any more."""
        layout, self._layout, self._plans, self._fed = self._layout, None, {}, None
        if layout is not None:
            for host in layout.hosts:
                if self._owner.is_usable(host.address):
                    content = {"programs": [layout.programs[host.stage]], "plans": []}
                    self._session.call(host.address, "forget", content)

    @property
    def timing(self) -> Timing:
        if self._alone is not None:
            return self._alone.timing
        with state.lock:
            records: list[TimingRecord] = []
            peak = 0
            layout = self._layout
            if layout is not None and not self._is_stale():
                answers = self._ask_timing(layout)
                for index, (host, answer) in enumerate(answers):
                    own = [TimingRecord(**record) for record in answer.content["records"]]
                    own = [replace(record, worker=index, stage=host.stage) for record in own]
                    records += merge_calls([*own, *self._idle(index, host, own)])
                    peak = max(peak, answer.content["peak_bytes"])
            return Timing(records, self._steps, self._start_up_seconds, peak, self._describe())

    def _ask_timing(self, layout: Layout) -> list[tuple[HostOfStage, Message]]:
        session = self._session
        hosts = list(layout.hosts)
        calls = {
            session.call(host.address, "timing", {"programs": [layout.programs[host.stage]]}): host.address
            for host in hosts
        }
        try:
            return list(zip(hosts, session.gather(calls), strict=True))
        except HostsLost:
            return []

    def _idle(self, worker: int, host: HostOfStage, records: Sequence[TimingRecord]) -> list[TimingRecord]:
        """The time of the steps in which a host had nothing to do with them: orders and results were under way."""
        rest = self._steps_ns / 1e9 - sum(record.seconds for record in records)
        if not records or rest <= 0:
            return []
        first = records[0]
        mean = rest / max(self._steps, 1)
        return [TimingRecord(IDLE, IDLE, "", IDLE, worker, first.host, self._steps, rest, mean, mean, 0, 0, host.stage)]

    def _describe(self) -> list[str]:
        layout = self._layout
        if layout is None:
            return []
        notes = [layout.cut.reason, *self._owner.notes]
        for batch_size, plan in self._plans.items():
            counts = "/".join(str(len(parts)) for parts in plan.dealing.parts)
            notes.append(f"at batch size {batch_size}: {counts} micro-batches, schedule {self._owner.schedule}")
        reductions = layout.pipeline.mid_step_reductions
        if reductions and len(layout.stages) > 1:
            notes.append(
                f"the pipeline runs empty {len({layout.pipeline.levels[node] for node in reductions})} times in each "
                f"step, for {describe(reductions[0])} needs the whole batch"
            )
        return notes

    def reset_timing(self) -> None:
        if self._alone is not None:
            self._alone.reset_timing()
            return
        with state.lock:
            self._steps = self._steps_ns = 0
            self._start_up_seconds = 0.0
            layout = self._layout
            if layout is not None and not self._is_stale():
                for host in layout.hosts:
                    self._session.call(host.address, "reset_timing", {"programs": [layout.programs[host.stage]]})

    @property
    def state(self) -> MutableMapping[Node, Array]:
        return VariableValues(self.variables)


def _next(batches: Iterator[Batch]) -> tuple[Batch | None, Exception | None]:
    """The next batch, if there is one, or what was raised instead, for after the steps before."""
    try:
        return next(batches, None), None
    except Exception as error:
        return None, error
