"""The main function of a worker process: prepares plans as it is told, and runs its part of each step."""

from __future__ import annotations

import gc
import pickle
import traceback
from multiprocessing.connection import Connection
from time import perf_counter_ns
from typing import Any

import numpy as np

from executors.processes import confinement
from executors.processes.bells import Bell
from executors.processes.control import Follower, Words
from executors.processes.lifeline import end_with_parent
from executors.processes.memory import Segment
from executors.processes.messages import (
    AreYouReady,
    DropExecutable,
    DropSegments,
    DropTable,
    Failed,
    Location,
    NewBinding,
    NewGraph,
    NewPlan,
    NewTable,
    Ready,
    Received,
    ResetTiming,
    SegmentFollows,
    SetUp,
    TellTiming,
)
from miai_graph.errors import ExecutionError
from miai_graph.garbage import no_search_for_garbage
from miai_graph.graph_data import graph_from_data
from miai_graph.op import Array
from miai_graph.plan.binding import Binding
from miai_graph.plan.bound import BoundPlan
from miai_graph.plan.exchange import Exchange
from miai_graph.plan.memory import Workspace
from miai_graph.plan.parts import cut_batch, parts_of
from miai_graph.plan.row_feed import RowFeed
from miai_graph.plan.worker_programs import WorkerPrograms
from miai_graph.state import State
from miai_graph.timing.recorder import Recorder, Timed, timed_by


def main(connection: Connection) -> None:
    """Serve the pool at the other end of the connection, until it is closed."""
    confinement.enter_worker()
    end_with_parent(connection)
    # What was imported stays: garbage is looked for elsewhere.
    gc.freeze()
    with np.errstate(all="ignore"):
        worker = _Worker(connection)
        while True:
            worker.take_part()


class _Executable:
    """A graph, with the plans that were asked for and what they were timed at."""

    def __init__(self, message: NewGraph, worker: int) -> None:
        graph, self.variables = graph_from_data(message.graph)
        self.programs = WorkerPrograms(graph, worker, is_reproducible=message.is_reproducible)
        self.inputs = message.inputs
        self.state = State()
        self.workspace = Workspace()
        self.recorders: dict[Any, Recorder] = {}
        self.peak_bytes = 0


class _Plan:
    """A plan with the memory through which a step is told."""

    def __init__(self, message: NewPlan, executable: _Executable, worker: _Worker) -> None:
        found = worker.array
        self.executable = executable
        self.workers = message.workers
        self._turns, self._indices = found(message.turns), found(message.indices)
        self.slots = [[found(location) for location in slot] for slot in message.slots]
        state = executable.state
        for variable, (even, odd) in zip(executable.variables, message.variables, strict=True):
            state.adopt(variable, (found(even), found(odd)))
        self._numbers = state.numbers(executable.variables)
        program = executable.programs.program(message.workers, message.batch_size)
        parts = cut_batch(message.batch_size, message.parts)
        exchange = Exchange(program, message.batch_size, message.parts, lambda _: found(message.exchange))
        self.bound = BoundPlan(
            program,
            message.batch_size,
            state,
            executable.workspace,
            parts_of(worker.index, message.workers, parts),
            exchange,
            worker.follower.barrier,
            threads=message.threads,
        )
        stamps = found(message.stamps)[worker.index]
        if stamps.size >= self.bound.stamps.size:
            self.bound.stamp_into(stamps[: self.bound.stamps.size])
        key = message.batch_size, self.bound.nodes
        self.recorder = executable.recorders.setdefault(key, self.bound.recorder)
        executable.peak_bytes = max(executable.peak_bytes, self.bound.buffer_bytes + self.bound.scratch_bytes)
        inputs = {node.name: node for node in program.graph.inputs}
        self._inputs = [inputs.get(name) for name in executable.inputs]
        self._feed_rows = RowFeed(self.bound, self._inputs, self._indices)

    def prepared(self, versions: Array) -> Binding:
        """What is ready to be run with these versions of the graph's variables."""
        self.executable.state.versions[self._numbers] = versions
        turns = self.bound.turns()
        return self.bound.bindings.get(turns) or self.bound.bind(turns)

    def run(self, step: int, batch: list[Array], is_table: bool, ordered_ns: int, number: int, is_traced: bool) -> None:
        """Compute this worker's part of a step on a batch, given whole or as rows of a table.

        Parameters
        ----------
        ordered_ns : the time of the order
        number, is_traced : of the step, since timing began, and whether its trace is kept
        """
        began_ns = perf_counter_ns()
        bound, binding = self.bound, self.prepared(self._turns)
        if is_table:
            self._feed_rows(batch)
        else:
            self._feed(batch)
        bound.run(step, binding)
        waited_ns = began_ns - ordered_ns
        self.recorder.add(ordered_ns, bound.stamps, perf_counter_ns(), waited_ns, 0, number, is_traced)

    def _feed(self, batch: list[Array]) -> None:
        for node, source in zip(self._inputs, batch, strict=True):
            if node is None:
                continue
            whole = self.bound.feeds.get(node)
            if whole is not None:
                np.copyto(whole, source)
                continue
            for part, feeds in zip(self.bound.parts, self.bound.part_feeds, strict=True):
                np.copyto(feeds[node], source[part.rows])


class _Worker:
    """What a worker knows: shared memory, executables, plans and tables, by the numbers that the pool gave them."""

    def __init__(self, connection: Connection) -> None:
        set_up: SetUp = connection.recv()
        self.index = set_up.index
        self._connection = connection
        self._answers = set_up.memory == "named"
        self._segments: dict[int, Array] = {}
        control = self._receive()
        self._words = Words(control, set_up.workers)
        bells = (Bell.receive(connection), Bell.receive(connection)) if set_up.has_bells else None
        self.follower = Follower(
            connection, self._words, set_up.index, self._handle, bells, is_crowded=set_up.is_crowded
        )
        self._messages = 0
        self._executables: dict[int, _Executable] = {}
        self._plans: dict[int, _Plan] = {}
        self._tables: dict[int, list[Array]] = {}

    def array(self, location: Location) -> Array:
        """An array in shared memory."""
        return location.array(self._segments[location.segment])

    def _receive(self) -> Array:
        segment = Segment.receive(self._connection)
        self._segments[segment.number] = segment.bytes
        if self._answers:
            self._connection.send(Received())
        return segment.bytes

    def take_part(self) -> None:
        """Wait for a step, and compute a part of it. A failure is told, and ends the process."""
        self.follower.wait_for_order()
        number, step, source, messages, barriers, *timing = self._words.order.tolist()
        while self._messages < messages:
            self._handle(self._connection.recv_bytes())
        self.follower.barriers = barriers
        try:
            plan = self._plans[number]
            # A table has a number, a slot its place counted from -1 down.
            batch = self._tables[source] if source >= 0 else plan.slots[-1 - source]
            plan.run(step, batch, source >= 0, *timing)
        except (EOFError, ConnectionError):
            raise
        except Exception as error:
            self._fail(error)
        self.follower.arrive()

    def _fail(self, error: Exception) -> None:
        is_execution = isinstance(error, ExecutionError)
        text = str(error) if is_execution else f"{type(error).__name__}: {error}"
        lines = "".join(traceback.format_exception(error.__cause__ or error))
        self._connection.send(Failed(text, is_execution, lines))
        # There is nothing to go on with: the pool ends when it reads this.
        self._connection.recv_bytes()
        raise EOFError

    def _handle(self, message: bytes) -> None:
        if not message:
            return
        self._messages += 1
        try:
            self._obey(pickle.loads(message))
        except (EOFError, ConnectionError):
            raise
        except Exception as error:
            self._fail(error)

    def _obey(self, message: Any) -> None:
        match message:
            case SegmentFollows():
                self._receive()
            case DropSegments(numbers):
                for number in numbers:
                    self._segments.pop(number, None)
            case NewGraph(executable):
                with no_search_for_garbage():
                    made = self._executables[executable] = _Executable(message, self.index)
                    # While worker 0 does the same.
                    made.programs.program(message.workers, message.batch_size)
            case DropExecutable(executable):
                gone = self._executables.pop(executable, None)
                self._plans = {number: plan for number, plan in self._plans.items() if plan.executable is not gone}
            case NewPlan(number, executable) if self.index < message.workers:
                with no_search_for_garbage():
                    self._plans[number] = _Plan(message, self._executables[executable], self)
            case NewBinding(number, versions) if number in self._plans:
                with no_search_for_garbage():
                    self._plans[number].prepared(versions)
            case AreYouReady():
                self._connection.send(Ready())
            case NewTable(table, arrays):
                self._tables[table] = [self.array(location) for location in arrays]
            case DropTable(table):
                self._tables.pop(table, None)
            case TellTiming(executable):
                self._connection.send(self._timed(executable))
            case ResetTiming(executable):
                for recorder in self._executables[executable].recorders.values():
                    recorder.reset()

    def _timed(self, number: int) -> Timed:
        executable = self._executables.get(number)
        if executable is None:
            return Timed()
        return timed_by(executable.recorders.values(), self.index, executable.peak_bytes)
