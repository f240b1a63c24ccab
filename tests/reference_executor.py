"""The smallest executor there can be, on the reference interpreter: what the conformance suite is measured with."""

from __future__ import annotations

import os

import numpy as np

from miai_graph.executor import Executable, Executor, VariableValues, Worker
from miai_graph.feeding import check_batch, check_inputs
from miai_graph.interpreter import evaluate
from miai_graph.ops.leaves import variable_of
from miai_graph.state import state
from miai_graph.timing import Timing
from miai_graph.types import bind_shape


class Reference(Executor):
    name = "reference"
    workers = (Worker(0, os.getpid(), "here", 1),)

    def compile(self, graph, inputs, outputs, updates):
        self.require_open()
        check_inputs(graph, inputs)
        return ReferenceExecutable(self, graph, inputs)


class ReferenceExecutable(Executable):
    def __init__(self, executor, graph, inputs) -> None:
        self.executor, self.graph, self.inputs = executor, graph, inputs
        self.step, self.calls = 0, 0

    def __call__(self, *arrays):
        return next(self.run([arrays]))

    def run(self, batches):
        for batch in batches:
            self.executor.require_open()
            checked = check_batch(self.inputs, batch)
            feeds = {node: np.empty(bind_shape(node.type.shape, checked.size), node.dtype) for node in self.inputs}
            for position, node in enumerate(self.inputs):
                checked.copy_to(position, feeds[node], slice(None) if node.type.batch_axes else None)
            outputs, updates = evaluate(self.graph, feeds, batch_size=checked.size, step=self.step)
            for target, value in updates.items():
                state.set(variable_of(target), value)
            self.step, self.calls = self.step + 1, self.calls + 1
            yield [value.copy() for value in outputs]

    def warmup(self, batch_size) -> None:
        """Nothing can be prepared."""

    def reset_timing(self, trace_steps=()) -> None:
        self.calls = 0

    @property
    def timing(self):
        return Timing([], self.calls)

    @property
    def state(self):
        return VariableValues(self.graph.variables)
