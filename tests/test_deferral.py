"""Gradients of weights that wait for all micro-batches: which do, and that they come out the same."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

import miai_graph as mg
from miai_graph.interpreter import evaluate
from miai_graph.ops.leaves import variable_of
from miai_graph.passes.batch_analysis import analyse_batch
from miai_graph.passes.pipeline import Pipeline
from miai_graph.passes.simplify import simplify
from miai_graph.passes.stages import lay_out
from miai_graph.plan.bound import BoundPlan
from miai_graph.plan.deferral import NO_DEFERRAL, find_deferral
from miai_graph.plan.exchange import Accumulation
from miai_graph.plan.memory import Workspace
from miai_graph.plan.order import scheduled_positions
from miai_graph.plan.parts import Part, cut_batch
from miai_graph.plan.program import make_program
from miai_graph.plan.schedule import schedules
from miai_graph.state import state

ROWS = 12


class OneStage:
    """A multilayer perceptron's training step as the only stage of a pipeline."""

    def __init__(self, widths: tuple[int, ...], activation=mg.tanh) -> None:
        rng = np.random.default_rng(2)
        self.x, self.y = mg.input("x", (None, widths[0]), "float64"), mg.input("y", (None, widths[-1]), "float64")
        self.weights = [
            mg.parameter(rng.standard_normal(shape) / 4, f"w{place}", dtype="float64")
            for place, shape in enumerate(pairwise(widths))
        ]
        h = self.x
        for weight in self.weights:
            h = activation(h @ weight)
        loss = mg.mean((h - self.y) ** 2)
        gradients = mg.grad(loss, self.weights)
        updates = {w: w - 0.1 * g for w, g in zip(self.weights, gradients, strict=True)}
        self.graph = simplify(mg.Graph([loss], updates))
        self.feeds = {node: rng.standard_normal((ROWS, node.shape[1])) for node in (self.x, self.y)}
        pipeline = Pipeline(self.graph, lay_out(self.graph, analyse_batch(self.graph)).stages((0, 1)), 1)
        self.stage = pipeline.stage(0)
        self.program = make_program(self.stage.graph, self.stage.exports, self.stage.per_part, adds_up_alone=True)
        self.sweeps = pipeline.sweeps(0)

    def plan(self, parts: list[Part], *, defers: bool = True, groups: int = 1) -> BoundPlan:
        state.place(map(variable_of, self.weights), map(variable_of, self.weights))
        deferral = find_deferral(self.program, parts, groups) if defers else NO_DEFERRAL
        tasks = {level: schedules("1f1b", [sweeps], len(parts))[0] for level, sweeps in self.sweeps.items()}
        order = scheduled_positions(self.program, self.stage.segments, tasks, deferral)
        exchange = Accumulation(self.program, ROWS, parts)
        return BoundPlan(self.program, ROWS, state, Workspace(), parts, exchange, order=order, deferral=deferral)

    def run(self, plan: BoundPlan) -> list[np.ndarray]:
        """The loss and the new weights."""
        inputs = {node.name: node for node in self.program.graph.inputs}
        for node, array in self.feeds.items():
            for part, feeds in zip(plan.parts, plan.part_feeds, strict=True):
                feeds[inputs[node.name]][...] = array[part.rows]
        binding = plan.bind(plan.turns())
        plan.run(0, binding)
        numbers = state.numbers(map(variable_of, self.weights))
        loss = binding.outputs[0].copy()
        state.commit(numbers)
        return [loss, *(weight.value for weight in self.weights)]


def names(nodes) -> set[str]:
    return {node.name for node in nodes}


def test_gradients_larger_than_what_they_are_computed_from_wait() -> None:
    wide, parts = OneStage((40, 50, 3)), cut_batch(ROWS, 4)
    deferral = find_deferral(wide.program, parts)
    waiting = {node.type.shape for node in deferral.nodes}
    # 40 × 50 numbers from 3 × (40 + 50); but 50 × 3 from 3 × (50 + 3), which is more.
    assert waiting == {(40, 50)}
    assert all(node.type.batch_axes == (0,) for node in deferral.kept)
    assert "x" in names(deferral.kept)


@pytest.mark.parametrize("widths", [(4, 4, 4), (2, 3)])
def test_small_gradients_do_not_wait(widths) -> None:
    assert find_deferral(OneStage(widths).program, cut_batch(ROWS, 2)) == NO_DEFERRAL


def test_with_one_part_there_is_nothing_to_wait_for() -> None:
    assert find_deferral(OneStage((40, 50, 3)).program, cut_batch(ROWS, 1)) == NO_DEFERRAL


@pytest.mark.parametrize("count", [1, 2, 5, 12])
@pytest.mark.parametrize("groups", [0, 1, 2, 3])
@pytest.mark.parametrize("activation", [mg.tanh, mg.relu, lambda x: x], ids=["tanh", "relu", "linear"])
def test_the_step_is_that_of_the_interpreter(count: int, groups: int, activation) -> None:
    stage = OneStage((40, 50, 30, 3), activation)
    (loss,), updates = evaluate(stage.graph, stage.feeds, batch_size=ROWS)
    expected = [loss, *(updates[weight] for weight in stage.weights)]
    plan = stage.plan(cut_batch(ROWS, count), defers=groups > 0, groups=groups)
    for found, wanted in zip(stage.run(plan), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-14)


def test_a_deferred_product_runs_once_and_last() -> None:
    stage = OneStage((40, 50, 3))
    parts = cut_batch(ROWS, 4)
    deferred = names(find_deferral(stage.program, parts).nodes)
    products = [node.name for node in stage.plan(parts, defers=True).nodes if node.op.name == "matmul"]
    assert len(deferred) >= 1
    assert set(products[-len(deferred) :]) == deferred
    assert deferred.isdisjoint(products[: -len(deferred)])
    without = [node.name for node in stage.plan(parts, defers=False).nodes]
    assert {without.count(name) for name in deferred} == {len(parts)}


def test_the_first_of_two_groups_is_computed_while_others_are_waited_for() -> None:
    stage, parts = OneStage((40, 50, 30, 3)), cut_batch(ROWS, 6)
    deferral = find_deferral(stage.program, parts, groups=2)
    assert [(group.first_row, group.size) for group in deferral.groups] == [(0, 6), (6, 6)]
    deferred = names(deferral.nodes)
    products = [node.name for node in stage.plan(parts, groups=2).nodes if node.op.name == "matmul"]
    assert {products.count(name) for name in deferred} == {2}
    # The last group's come last; those of the first are spread over the tasks of the second half.
    assert set(products[-len(deferred) :]) == deferred
    firsts = [products.index(name) for name in deferred]
    assert min(firsts) > len(products) // 3
    assert max(firsts) < len(products) - len(deferred)


def test_memory_of_rows_is_counted() -> None:
    stage, parts = OneStage((40, 50, 3)), cut_batch(ROWS, 4)
    kept = find_deferral(stage.program, parts).kept
    size_bytes = sum(ROWS * node.shape[1] * 8 for node in kept)
    with_rows, without = (stage.plan(parts, defers=defers).buffer_bytes for defers in (True, False))
    assert size_bytes <= with_rows < without + 2 * size_bytes
