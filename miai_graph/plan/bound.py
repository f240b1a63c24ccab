"""A program for one batch size: memory laid out, kernels prepared, and the loop that runs them.

There is one loop over nodes, `BoundPlan.run`, for all executors. It stamps the time after each kernel: timing is not a
mode.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Callable
from itertools import repeat
from operator import setitem
from time import perf_counter_ns
from typing import Any

import numpy as np

from miai_graph.errors import MiaiGraphError
from miai_graph.interpreter import bind_attributes, evaluate_node, execution_error
from miai_graph.kernels.numpy_kernels import Kernel, Request, prepare
from miai_graph.node import Node
from miai_graph.op import Array, Cost
from miai_graph.ops.leaves import RUN_NUMBERS, variable_of
from miai_graph.plan.memory import Lifetime, assign_offsets
from miai_graph.plan.program import Program, Storage
from miai_graph.state import State, aligned_bytes
from miai_graph.types import bind_type


class Workspace:
    """Memory that plans of one executable share, for only one of them runs at a time."""

    def __init__(self) -> None:
        self._blocks: dict[str, Array] = {}

    def block(self, purpose: str, size_bytes: int) -> Array:
        """At least the largest number of bytes asked for so far; earlier, smaller blocks stay valid."""
        block = self._blocks.get(purpose)
        if block is None or block.size < size_bytes:
            block = self._blocks[purpose] = aligned_bytes(size_bytes)
        return block

    @property
    def size_bytes(self) -> int:
        """All that is asked for so far."""
        return sum(block.size for block in self._blocks.values())


class BoundPlan:
    """What it takes to run a program on batches of one size.

    Attributes
    ----------
    feeds : the array to fill for each input
    outputs : the arrays in which the results are found after `run`, until `commit`
    nodes : those that kernels compute, in order
    buffer_bytes : the memory for all values that are computed, where those that live at different times share
    unshared_bytes : what it would be if they did not share
    scratch_bytes : the memory that kernels use for themselves
    node_bytes : the size of each computed value
    """

    def __init__(self, program: Program, batch_size: int, state: State, workspace: Workspace) -> None:
        self.program = program
        self.batch_size = batch_size
        self.state_generation = state.generation
        self.nodes = program.steps
        self._run_numbers = {name: np.zeros((), np.int64) for name in RUN_NUMBERS}
        self._run_numbers["batch_size"][...] = batch_size
        self._arrays = self._lay_out(state, workspace)
        self.scratch_bytes = 0
        kernels = [self._prepare(node, workspace) for node in self.nodes]
        self._kernels = kernels
        graph = program.graph
        self.feeds = {node: self._arrays[node] for node in graph.inputs}
        self.outputs = [self._arrays[node] for node in graph.outputs]
        self._snapshots: list[tuple[Array, Array]] = []
        self._targets = [state.array(variable_of(target)) for target in graph.updates]
        self._new_values = [self._staged(node) for node in graph.updates.values()]
        self._stamps = array("q", bytes(8 * (len(kernels) + 1)))
        self.stamps = np.frombuffer(self._stamps, np.int64)

    def _lay_out(self, state: State, workspace: Workspace) -> dict[Node, Array]:
        """An array for each node of the graph."""
        program = self.program
        own = self._place_own(workspace)
        arrays: dict[Node, Array] = {}
        for node in program.graph.nodes:
            type = bind_type(node.type, self.batch_size)
            match program.storage[node]:
                case Storage.FED:
                    block = workspace.block(f"input {node.name}", type.size_bytes)
                    arrays[node] = block[: type.size_bytes].view(type.dtype).reshape(type.shape)
                case Storage.STATE:
                    arrays[node] = state.array(variable_of(node))
                case Storage.CONSTANT:
                    arrays[node] = node.attributes["value"]
                case Storage.RUN_NUMBER:
                    arrays[node] = self._run_numbers[node.op.name]
                case Storage.BOUND | Storage.VIEW:
                    arrays[node] = evaluate_node(node, [arrays[source] for source in node.inputs], self.batch_size)
                case Storage.OWN:
                    arrays[node] = own[node]
        return arrays

    def _place_own(self, workspace: Workspace) -> dict[Node, Array]:
        program = self.program
        types = {node: bind_type(node.type, self.batch_size) for node in self.nodes}
        holders: dict[Node, Node] = {}
        lifetimes: dict[Node, list[int]] = {}
        for position, node in enumerate(self.nodes):
            root = program.takes_over.get(node)
            holder = node if root is None else holders[root]
            holders[node] = holder
            lifetimes.setdefault(holder, [position, 0])[1] = program.last_use[node]
        spans = [Lifetime(first, last, types[node].size_bytes) for node, (first, last) in lifetimes.items()]
        offsets, self.buffer_bytes = assign_offsets(spans)
        self.node_bytes = {node: type.size_bytes for node, type in types.items()}
        self.unshared_bytes = sum(self.node_bytes.values())
        block = workspace.block("values", self.buffer_bytes)
        places = dict(zip(lifetimes, offsets, strict=True))
        return {
            node: block[places[holders[node]] : places[holders[node]] + type.size_bytes]
            .view(type.dtype)
            .reshape(type.shape)
            for node, type in types.items()
        }

    def _prepare(self, node: Node, workspace: Workspace) -> Kernel:
        used = 0

        def scratch(shape: tuple[int, ...], dtype: Any) -> Array:
            nonlocal used
            size_bytes = math.prod(shape) * np.dtype(dtype).itemsize
            # Kernels run one at a time, so each starts at the beginning of the same block.
            start, used = used, -(-(used + size_bytes) // 64) * 64
            return workspace.block("scratch", used)[start : start + size_bytes].view(dtype).reshape(shape)

        inputs = [self._arrays[source] for source in node.inputs]
        kernel = prepare(Request(node, inputs, self._arrays[node], bind_attributes(node, self.batch_size), scratch))
        self.scratch_bytes = max(self.scratch_bytes, used)
        return kernel

    def costs(self) -> list[Cost]:
        """The work of each of `nodes`."""
        return [
            node.op.cost(
                bind_type(node.type, self.batch_size),
                *(bind_type(source.type, self.batch_size) for source in node.inputs),
                **node.attributes,
            )
            for node in self.nodes
        ]

    def _staged(self, node: Node) -> Array:
        """The array of an update's value, apart from the state, so that all updates see the values before."""
        value = self._arrays[node]
        if self.program.storage[self.program.roots[node]] is Storage.OWN:
            return value
        copy = np.empty_like(value)
        self._snapshots.append((copy, value))
        return copy

    def run(self, step: int, first_row: int = 0, whole_batch_size: int | None = None) -> None:
        """Compute all nodes from what is in `feeds` and in the state, and stamp the time after each.

        Raises
        ------
        ExecutionError
            if a kernel fails, with its node. The state is as before.
        """
        numbers = self._run_numbers
        numbers["step"][...] = step
        numbers["first_row"][...] = first_row
        stamps, position = self._stamps, 0
        clock: Callable[[], int] = perf_counter_ns
        stamps[0] = clock()
        try:
            for kernel in self._kernels:
                kernel()
                position += 1
                stamps[position] = clock()
        except MiaiGraphError:
            raise
        except Exception as error:
            node = self.nodes[position]
            raise execution_error(node, [self._arrays[source] for source in node.inputs], error) from error
        for copy, value in self._snapshots:
            np.copyto(copy, value)

    def commit(self, counter: Array) -> None:
        """Copy the updates into the state, and add one to a counter: all of it or, if interrupted before, nothing.

        A signal, such as Ctrl-C, is handled between two instructions of Python. There is none between the copies.
        """
        targets = [*self._targets, counter]
        values = [*self._new_values, counter + 1]
        assign: Any = setitem
        deque(map(assign, targets, repeat(...), values), maxlen=0)
