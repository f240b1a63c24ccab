"""A stage on a host: its graph, its plan for a batch size, and the values of its variables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from time import perf_counter_ns
from typing import Any

import numpy as np

from executors.hosts.cluster import Message
from executors.hosts.links import Post, StageLinks
from executors.hosts.mailbox import Mailbox
from executors.threads import kernel_threads, limited_blas
from miai_graph.graph_data import GraphData, graph_from_data
from miai_graph.op import Array
from miai_graph.ops.communication import EFFECTS
from miai_graph.passes.pipeline import Segment
from miai_graph.plan.bound import BoundPlan
from miai_graph.plan.deferral import NO_DEFERRAL, find_deferral
from miai_graph.plan.exchange import Accumulation, split_outputs
from miai_graph.plan.memory import Workspace
from miai_graph.plan.order import scheduled_positions
from miai_graph.plan.parts import Part, rows_along
from miai_graph.plan.program import make_program
from miai_graph.plan.schedule import Task
from miai_graph.state import State, Variable, aligned_bytes
from miai_graph.timing.recorder import Member, Work
from miai_graph.types import int_dims

GROUPS_BELOW = 2
"""Stages below the last wait for it now and then, and can compute the first half of their weights' gradients then."""

COPIED_BYTES = 1 << 12
"""Values of which the next one may be computed before the step before is committed, and is copied."""

FEED = ("feed",)
"""The key under which a batch arrives."""


class Values:
    """Values of variables by the client's keys. Even versions lie in one array and odd ones in another."""

    def __init__(self) -> None:
        self._arrays: dict[int, tuple[Array, Array]] = {}

    def __contains__(self, key: int) -> bool:
        return key in self._arrays

    def arrays(self, key: int, variable: Variable) -> tuple[Array, Array]:
        """Both arrays of a variable."""
        if key not in self._arrays:
            even, odd = (
                aligned_bytes(variable.type.size_bytes).view(variable.type.dtype).reshape(int_dims(variable.type.shape))
                for _ in range(2)
            )
            self._arrays[key] = even, odd
        return self._arrays[key]

    def forget(self, keys: Iterable[int]) -> None:
        for key in keys:
            self._arrays.pop(key, None)

    def set(self, key: int, version: int, value: Array) -> None:
        np.copyto(self._arrays[key][version & 1], value)

    def get(self, key: int, version: int) -> Array:
        return self._arrays[key][version & 1]


class HostProgram:
    """A stage's graph as a program.

    Attributes
    ----------
    number : by which the client knows it
    """

    def __init__(self, message: Message, values: Values) -> None:
        content = message.content
        self.number: int = content["program"]
        graph, self.variables = graph_from_data(GraphData(content["graph"], tuple(message.arrays)))
        nodes = graph.nodes
        self.segments = {
            node: Segment(level, sweep) for node, (level, sweep) in zip(nodes, content["segments"], strict=True)
        }
        self.program = make_program(
            graph,
            [nodes[number] for number in content["exports"]],
            frozenset(nodes[number] for number in content["per_part"]),
            adds_up_alone=content["adds_up_alone"],
            copied_bytes=COPIED_BYTES,
            kind=self.segments.__getitem__,
        )
        self.state = State()
        for key, variable in zip(content["variables"], self.variables, strict=True):
            self.state.adopt(variable, values.arrays(key, variable))
        self.numbers = self.state.numbers(self.variables)


class HostPlan:
    """A stage's plan for the batches of one size.

    Parameters
    ----------
    content : of the client's message (see `plans.Plans`)
    program : what is run
    post, mailbox : how it sends and receives

    Attributes
    ----------
    peers : the addresses of hosts that it needs
    """

    def __init__(
        self,
        content: Mapping[str, Any],
        program: HostProgram,
        values: Values,
        workspace: Workspace,
        session: str,
        post: Post,
        mailbox: Mailbox,
    ) -> None:
        self.program = program
        self._mailbox = mailbox
        self._is_reproducible = content["keeps_parts"] is not None
        parts = [Part(*numbers) for numbers in content["parts"]]
        self._first_row = parts[0].first_row
        self._all_parts = Part(0, self._first_row, sum(part.size for part in parts))
        own = content["replica"]
        self.peers = frozenset([*content["stages"], *content["replicas"]])
        exchange = Accumulation(
            program.program, content["batch_size"], parts, len(content["replicas"]), own, content["keeps_parts"]
        )
        self._links = StageLinks(
            program.program,
            session,
            post,
            mailbox,
            content["stages"],
            content["replicas"],
            own,
            exchange,
            parts[-1].number,
        )
        tasks = {level: [Task(*task) for task in listed] for level, listed in content["tasks"]}
        deferral = NO_DEFERRAL
        if content["keeps_parts"] is None:
            deferral = find_deferral(program.program, parts, GROUPS_BELOW if content["is_below"] else 1)
        order = scheduled_positions(program.program, program.segments, tasks, deferral)
        self.bound = BoundPlan(
            program.program,
            content["batch_size"],
            program.state,
            workspace,
            parts,
            exchange,
            links=self._links,
            order=order,
            deferral=deferral,
            threads=None if self._is_reproducible else kernel_threads(),
        )
        self._split = set(split_outputs(program.program))
        inputs = {node.name: node for node in program.program.graph.inputs}
        self._inputs = [inputs[name] for name in content["inputs"]]

    @property
    def description(self) -> Message:
        """What the client must know to book steps: the memory for values, and the work between one stamp and the next,
        with nodes by their numbers in the graph."""
        bound = self.bound
        numbers = {node: number for number, node in enumerate(self.program.program.graph.nodes)}

        def plain(part: Work | Member) -> list[int]:
            return [numbers[part.node], part.cost.flops, part.cost.bytes, part.memory_bytes]

        work = [
            [plain(item), item.micro_batch, item.link, list(map(plain, item.members))] for item in bound.recorder.work
        ]
        return Message({"peak_bytes": bound.buffer_bytes + bound.scratch_bytes, "work": work})

    def run(self, order: Mapping[str, Any]) -> Message:
        """Compute this stage's part of a step, on what the client has fed. Returns the outputs, and behind them the
        stamps; besides when the step began, how long it waited then, and when it ended.

        Parameters
        ----------
        order : what the client says of the step: its ticket and number, the versions of the values that it reads, and
            whether the step before has yet to be committed
        """
        start_ns = perf_counter_ns()
        arrays = self._mailbox.take(order["ticket"], FEED)
        waited_ns = perf_counter_ns() - start_ns
        program, bound = self.program, self.bound
        program.state.versions[program.numbers] = order["versions"]
        turns = bound.turns()
        binding = bound.bindings.get(turns) or bound.bind(turns)
        self._links.ticket, self._links.is_ahead = order["ticket"], order["is_ahead"]
        self._feed(arrays)
        with limited_blas(1) if self._is_reproducible or (bound.threads or 1) > 1 else nullcontext():
            bound.run(order["step"], binding)
        outputs = [array[self._rows_of(node)] for node, array in zip(self._outputs(), binding.outputs, strict=True)]
        clock = [start_ns, waited_ns, perf_counter_ns()]
        return Message({"clock": clock}, [array.copy() for array in (*outputs, bound.stamps)])

    def _outputs(self) -> list[Any]:
        nodes = self.program.program.graph.outputs
        return [node for node in nodes if node.op not in EFFECTS]

    def _rows_of(self, node: Any) -> Any:
        if node not in self._split:
            return ()
        (axis,) = node.type.batch_axes
        return (slice(None),) * axis + (rows_along(node.type.shape[axis], self._all_parts),)

    def _feed(self, arrays: Sequence[Array]) -> None:
        """Copy this replica's rows, or whole arrays, to where the kernels look for them."""
        bound = self.bound
        for node, array in zip(self._inputs, arrays, strict=True):
            if node in bound.feeds:
                np.copyto(bound.feeds[node], array)
                continue
            for part, feeds in zip(bound.parts, bound.part_feeds, strict=True):
                first = part.first_row - self._first_row
                np.copyto(feeds[node], array[first : first + part.size])
