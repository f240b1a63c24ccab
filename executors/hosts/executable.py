"""A graph that is computed by hosts, each with its stage and its rows of the batch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, MutableMapping, Sequence
from concurrent.futures import Future
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from executors.hosts.batches import Fed, OrderedBatch, Upcoming
from executors.hosts.cluster import Message
from executors.hosts.conversation import HostsLost
from executors.hosts.foresight import Foresight
from executors.hosts.journal import Entry
from executors.hosts.links import COMMITTED
from executors.hosts.measuring import HostsTiming
from executors.hosts.plans import Plans, StepPlan
from executors.hosts.session import Session
from executors.hosts.stage import FEED
from miai_graph.errors import MiaiGraphError
from miai_graph.executor import Executable, VariableValues
from miai_graph.feeding import EVERY_ROW, Batch, CheckedBatch, check_batch
from miai_graph.graph import Graph
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.ops.leaves import variable_of
from miai_graph.passes.batch_analysis import BatchAnalysis
from miai_graph.state import state
from miai_graph.timing import Timing
from miai_graph.types import bind_type, int_dims

if TYPE_CHECKING:
    from executors.hosts.executor import Hosts

RECONSIDER_AFTER_STEPS = (8, 64)
"""So many steps are timed before it is looked at whether another cut is better."""


class HostsExecutable(Executable):
    """Plans for each size of batch, on a grid of hosts.

    Parameters
    ----------
    graph : as the user built it
    simpler, analysis : the same simplified, and what is known of its dependence on the batch
    start : when compiling began

    Attributes
    ----------
    graph : what it computes, simplified
    variables : the nodes of those that it reads or updates
    """

    def __init__(
        self,
        executor: Hosts,
        graph: Graph,
        inputs: Sequence[Node],
        simpler: Graph,
        analysis: BatchAnalysis,
        start: float,
    ) -> None:
        self._owner = executor
        self._inputs = tuple(inputs)
        self.variables = graph.variables
        self._updated = tuple(map(variable_of, graph.updates))
        self.graph = simpler
        self._counter = state.new_number()
        self._committed = np.append(state.numbers(self._updated), self._counter)
        self._fed: Fed | None = None
        self._ahead: OrderedBatch | None = None
        self._foresight = Foresight()
        self._ended_at = 0.0
        self._timing = HostsTiming(executor.crew)
        self._plans = Plans(executor, simpler, analysis, self._inputs, self._timing)
        self._timing.start_up_seconds = perf_counter() - start

    @property
    def step(self) -> int:
        return int(state.versions[self._counter])

    @step.setter
    def step(self, step: int) -> None:
        if step != self.step:
            # Steps since the last snapshot would be repeated under other numbers.
            self._session.fetch()
        self._timing.shift_numbers(step - self.step)
        state.versions[self._counter] = step

    @property
    def _session(self) -> Session:
        return self._owner.session

    def __call__(self, *arrays: Any) -> list[Array]:
        return self._run(arrays)

    def run(self, batches: Iterable[Batch]) -> Iterator[list[Array]]:
        self._owner.require_open()
        self._owner.welcome()
        upcoming = Upcoming(batches)
        try:
            while (batch := upcoming.take()) is not None:
                yield self._run(batch, upcoming)
        finally:
            with state.lock:
                self._give_up_ahead("the iteration ended")
                self._fed = None
        if upcoming.error is not None:
            raise upcoming.error

    def warmup(self, batch_size: int) -> None:
        self._owner.require_open()
        with state.lock:
            self._owner.despite_losses(lambda: self._ready_plan(batch_size))

    def _run(self, batch: Batch, upcoming: Upcoming | None = None) -> list[Array]:
        self._owner.require_open()
        with state.lock:
            checked = check_batch(self._inputs, batch)
            return self._owner.despite_losses(lambda: self.attempt(checked, upcoming))

    def attempt(self, batch: CheckedBatch, upcoming: Upcoming | None = None) -> list[Array]:
        """Compute a step once.

        Parameters
        ----------
        upcoming : from which the next batch is drawn, and sent, while this one is computed

        Raises
        ------
        HostsLost
            if a host is lost before the step is done; nothing of it is applied.
        """
        start = perf_counter()
        state.about_to_change(self._updated, by=self._session.fetch)
        ordered = self._take_ahead(batch)
        if ordered is not None:
            start = self._ended_at
        else:
            planning = perf_counter()
            plan = self._ready_plan(batch.size)
            now = perf_counter()
            start += now - planning
            self._timing.start_up_seconds += now - planning
            ordered = self._ordered(self._fed_of(plan, batch))
        plan, fed = ordered.fed.plan, ordered.fed
        answers = self._compute(ordered, upcoming)
        outputs = self._outputs(plan, answers)
        seconds = perf_counter() - start
        self._session.commit(plan.read, plan.updated, self._committed, self._entry(fed.kept), seconds)
        self._let_ahead_commit()
        self._timing.book(plan.timed, answers, ordered.step, batch.size, len(self.graph) * len(plan.hosts))
        try:
            self._session.take_snapshot_if_due()
        finally:
            self._ended_at = perf_counter()
            self._timing.seconds += self._ended_at - start
        if self._timing.steps in RECONSIDER_AFTER_STEPS:
            self._plans.reconsider(batch.size)
        return outputs

    def _ready_plan(self, batch_size: int) -> StepPlan:
        """A plan of which the hosts have all values."""
        plan = None
        # Values that are missing can be on lost hosts; then the plan is another one when they have been computed anew.
        while plan is None or self._plans.find(batch_size) is not plan:
            plan = self._plans.get(batch_size)
            self._session.push(plan.read)
        return plan

    def _entry(self, kept: CheckedBatch) -> Entry:
        """What repeats the step."""
        return Entry(partial(self.attempt, kept), sum(array.nbytes for array in kept.arrays))

    def _fed_of(self, plan: StepPlan, batch: CheckedBatch) -> Fed:
        """A batch on its way; it may have been sent already."""
        fed, self._fed = self._fed, None
        if fed is None or not fed.is_of(batch) or fed.plan is not plan or fed.ticket <= self._session.aborted:
            return self._feed(plan, batch)
        return fed

    def _ordered(self, fed: Fed, *, is_ahead: bool = False) -> OrderedBatch:
        """The step of a batch, for hosts to run, with the values as they are now or, ahead, after the next commit."""
        versions = state.versions
        if is_ahead:
            versions = versions.copy()
            versions[self._committed] += 1
        found = {address: versions[numbers].tolist() for address, numbers in fed.plan.read_numbers.items()}
        return OrderedBatch(fed.ticket, fed=fed, step=int(versions[self._counter]), versions=found)

    def _order(self, ordered: OrderedBatch, *, is_ahead: bool) -> None:
        """Tell all hosts to run a step."""
        plan = ordered.fed.plan
        for address, versions in ordered.versions.items():
            content = {
                "plan": plan.number,
                "oldest": self._session.oldest(ordered.ticket),
                "step": ordered.step,
                "versions": versions,
                "is_ahead": is_ahead,
            }
            self._session.order(ordered, address, content)

    def _order_ahead(self, batch: Batch | None) -> None:
        """Send the next batch and, if nothing is against it, let hosts go on with it without being told again."""
        self._fed = self._feed_ahead(batch)
        is_reconsidered = self._timing.steps + 1 in RECONSIDER_AFTER_STEPS
        if self._fed is not None and not is_reconsidered and self._foresight.allows():
            self._ahead = self._ordered(self._fed, is_ahead=True)
            self._session.ahead.append(self._ahead)
            self._order(self._ahead, is_ahead=True)

    def _let_ahead_commit(self) -> None:
        """Tell hosts that the values hold with which they have begun the next step."""
        if self._ahead is not None and self._updated:
            content = {"session": self._session.name, "ticket": self._ahead.ticket, "key": COMMITTED}
            for address in self._ahead.versions:
                self._session.cluster.post(address, Message(content))

    def _take_ahead(self, batch: CheckedBatch) -> OrderedBatch | None:
        """The step of this batch if it was ordered, and values and plans are still those that it was ordered for."""
        ahead = self._ahead
        if ahead is None:
            return None
        plan = ahead.fed.plan
        is_held = ahead.ticket > self._session.aborted and self._plans.find(batch.size) is plan
        if is_held and ahead.fed.is_of(batch) and self._ordered(ahead.fed).is_like(ahead):
            self._ahead = self._fed = None
            self._session.ahead.remove(ahead)
            self._foresight.was_right()
            return ahead
        if is_held:
            self._foresight.was_wrong()
        self._give_up_ahead("values have changed")
        return None

    def _give_up_ahead(self, reason: str) -> None:
        """End a step that was ordered ahead, wherever hosts are with it."""
        if self._ahead is not None:
            ahead, self._ahead, self._fed = self._ahead, None, None
            if self._owner.closed:
                return
            self._session.ahead.remove(ahead)
            self._session.abort(ahead.calls, ahead.ticket, reason, ahead.versions)

    def _compute(self, ordered: OrderedBatch, upcoming: Upcoming | None) -> list[Message]:
        """Let all hosts run the step, and draw, send and order the next batch meanwhile."""
        session, plan = self._session, ordered.fed.plan
        try:
            if not ordered.calls:
                self._order(ordered, is_ahead=False)
            if upcoming is not None:
                self._order_ahead(upcoming.look())
            answers = session.gather_step(ordered)
            session.gather(ordered.fed.sent)
        except BaseException as error:
            last = ordered.ticket if self._fed is None else self._fed.ticket
            reason = "a host was lost" if isinstance(error, HostsLost) else str(error) or type(error).__name__
            session.abort(ordered.calls, last, reason, ordered.versions)
            self._give_up_ahead(reason)
            self._fed = None
            if isinstance(error, HostsLost):
                self._owner.name_losses(plan.layout, self.step)
            raise
        return answers

    def _feed_ahead(self, batch: Batch | None) -> Fed | None:
        """Send the next batch, if there is a plan for its size. What is wrong with it is told when its turn comes."""
        if batch is None:
            return None
        try:
            checked = check_batch(self._inputs, batch)
        except MiaiGraphError:
            return None
        plan = self._plans.find(checked.size)
        return None if plan is None else self._feed(plan, checked)

    def _feed(self, plan: StepPlan, batch: CheckedBatch) -> Fed:
        """Send each host its rows of the inputs that its stage reads."""
        session = self._session
        ticket = next(session.numbers)
        kept = self._copy(batch)
        sent: dict[Future[None], str] = {}
        for host in plan.hosts:
            rows = plan.dealing.rows(host.replica)
            arrays = [
                kept.arrays[position][rows] if self._inputs[position].type.batch_axes else kept.arrays[position]
                for position in plan.inputs[host.stage]
            ]
            message = Message({"session": session.name, "ticket": ticket, "key": FEED}, arrays)
            sent[session.cluster.post(host.address, message)] = host.address
        fed = Fed(ticket, plan, batch, kept, sent)
        session.feeds.add(fed)
        return fed

    def _copy(self, batch: CheckedBatch) -> CheckedBatch:
        """The batch as arrays of the inputs' types, which nobody else changes."""
        arrays = []
        for position, node in enumerate(self._inputs):
            bound = bind_type(node.type, batch.size)
            arrays.append(np.empty(int_dims(bound.shape), bound.dtype))
            batch.copy_to(position, arrays[-1], EVERY_ROW if node.type.batch_axes else None)
        return CheckedBatch(arrays, batch.size)

    def _outputs(self, plan: StepPlan, answers: Sequence[Message]) -> list[Array]:
        """Put the outputs together from what the hosts have."""
        pieces: dict[int, list[Array]] = {}
        for host, answer in zip(plan.hosts, answers, strict=True):
            *arrays, _ = answer.arrays
            for place, array in zip(plan.layout.stages[host.stage].outputs, arrays, strict=True):
                pieces.setdefault(place, []).append(array)
        return [
            np.concatenate(pieces[place], node.type.batch_axes[0])
            if plan.layout.pipeline.is_split(node)
            else np.array(pieces[place][0])
            for place, node in enumerate(self.graph.outputs)
        ]

    @property
    def caller(self) -> int:  # type: ignore[override]
        return self._timing.host_count

    @property
    def timing(self) -> Timing:
        with state.lock:
            return self._timing.timing(self._plans.describe(), self.graph)

    def reset_timing(self, trace_steps: Collection[int] = ()) -> None:
        with state.lock:
            self._timing.reset(self.step, trace_steps)

    @property
    def state(self) -> MutableMapping[Node, Array]:
        return VariableValues(self.variables)
