"""The gradient of a variance, which leaves out that of its mean: right, for any order, and cheaper."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

import miai_graph as mg
from miai_graph import layers
from miai_graph.errors import GradientError
from miai_graph.graph import Graph
from miai_graph.interpreter import evaluate
from miai_graph.kernels.compiler import native
from miai_graph.node import Node
from miai_graph.passes.partition import partition
from miai_graph.passes.simplify import simplify
from miai_graph.plan.program import make_program
from miai_graph.split_interpreter import evaluate_split

AXES = [(0,), (1,), (0, 2), (1, 2), (0, 1, 2)]


def plain_variance(x: Node, axes: Sequence[int]) -> Node:
    """With a gradient of the mean."""
    return mg.mean(mg.square(x - mg.mean(x, axes, keepdims=True)), axes)


def derivatives(variance: Node, x: Node) -> list[Node]:
    """First, second and third ones, along some directions."""
    results, value = [], mg.sum(variance * variance * variance)
    for _ in range(3):
        (gradient,) = mg.grad(value, [x])
        results.append(gradient)
        value = mg.sum(gradient * gradient * gradient * 100.0)
    return results


@pytest.mark.parametrize("axes", AXES, ids=str)
def test_derivatives_are_those_with_the_gradient_of_the_mean(axes: tuple[int, ...], rng: np.random.Generator) -> None:
    x, batch = mg.input("x", (None, 4, 3), "float64"), rng.standard_normal((5, 4, 3))
    pairs = [derivatives(mg.var(x, axes), x), derivatives(plain_variance(x, axes), x)]
    found, expected = (evaluate(Graph(nodes), {x: batch}, batch_size=5)[0] for nodes in pairs)
    for value, true in zip(found, expected, strict=True):
        assert np.abs(true).max() > 1e-6
        np.testing.assert_allclose(value, true, rtol=0, atol=1e-12 * np.abs(true).max())


@pytest.mark.parametrize("axes", AXES, ids=str)
def test_gradients_of_both_orders_are_those_of_differences(axes: tuple[int, ...], rng: np.random.Generator) -> None:
    x = mg.input("x", (None, 4, 3), "float64")
    loss = mg.sum(mg.tanh((x - mg.mean(x, axes, keepdims=True)) * mg.rsqrt(mg.var(x, axes, keepdims=True) + 0.1)))
    mg.check_gradients(loss, [x], {x: rng.standard_normal((5, 4, 3))}, order=2)


def test_what_it_leaves_out_is_not_blamed_for_others(rng: np.random.Generator) -> None:
    x = mg.parameter(rng.standard_normal((4, 3)), "x")
    loss = mg.sum(mg.stop_gradient(mg.var(x, 0)) * mg.var(x, 0))
    with pytest.raises(GradientError, match="op to blame: stop_gradient"):
        mg.check_gradients(loss, [x])


class Normalized:
    """A layer between products, in a step that trains all weights."""

    def __init__(self, layer: layers.Layer, shape: tuple[int | None, ...]) -> None:
        mg.set_seed(3)
        self.x = mg.input("x", shape)
        first, last = layers.Dense(6, use_bias=False), layers.Dense(6)
        normalized = layer(first(self.x), training=True)
        loss = mg.mean(mg.square(last(mg.relu(normalized)) - 0.3))
        self.wrt = [weight for each in (first, layer, last) for weight in each.trainable_weights]
        self.graph = Graph([loss, *mg.grad(loss, self.wrt)])


LAYERS: dict[str, Callable[[], layers.Layer]] = {
    "batch": layers.BatchNormalization,
    "batch of each part": lambda: layers.BatchNormalization(synchronized=False),
    "sample": layers.LayerNormalization,
}


@pytest.mark.skipif(native.processor() is None, reason="there is no native code for this processor")
@pytest.mark.parametrize("kind", LAYERS)
def test_the_backward_pass_goes_over_the_elements_twice(kind: str) -> None:
    network = Normalized(LAYERS[kind](), (None, 6))
    graph = simplify(network.graph)
    program = make_program(graph)
    (large,) = (node for node in graph.nodes if node.op.name == "squared_deviation")
    backward = [
        fusion
        for fusion in program.fusions.values()
        if fusion.nodes[-1].phase == "backward" and any("normalization" in node.name for node in fusion.nodes)
        if any(operand.type.shape == large.type.shape for operand in fusion.operands)
    ]
    assert len(backward) == 2


def test_batches_in_parts_wait_once_for_what_the_gradient_needs_of_all() -> None:
    graph = simplify(Normalized(layers.BatchNormalization(), (None, 6)).graph)
    barriers = [node for node in partition(graph, 0, 2).graph.nodes if node.op.name == "barrier"]
    # For the mean, for the variance, for the sums of the gradient, and for the gradients of the weights.
    assert len(barriers) == 4


@pytest.mark.parametrize("kind", LAYERS)
def test_batches_in_parts_give_the_same(kind: str, rng: np.random.Generator) -> None:
    network = Normalized(LAYERS[kind](), (None, 6))
    batch = rng.standard_normal((7, 6)).astype("f4")
    whole, _ = evaluate(network.graph, {network.x: batch}, batch_size=7)
    simpler, _ = evaluate(simplify(network.graph), {network.x: batch}, batch_size=7)
    for value, true in zip(simpler, whole, strict=True):
        np.testing.assert_allclose(value, true, rtol=2e-5, atol=2e-6)
    sizes = (3, 4)
    plain, scaled = (
        evaluate_split(graph, {network.x: batch}, sizes)[0] for graph in (network.graph, simplify(network.graph))
    )
    for value, true in zip(scaled, plain, strict=True):
        np.testing.assert_allclose(value, true, rtol=2e-5, atol=2e-6)


class TestSumsOfMultiples:
    x = mg.input("x", (None, 4, 3), "float64")
    rows, columns = mg.input("rows", (None, 4, 1), "float64"), mg.input("columns", (1, 3), "float64")

    def check(self, outputs: Sequence[Node], sums: int, rng: np.random.Generator) -> None:
        graph = Graph(outputs)
        simpler = simplify(graph)
        assert sum(node.op.name == "sum" for node in simpler.nodes) == sums
        values = {
            node: rng.standard_normal([5 if dim is None else dim for dim in node.shape])
            for node in (self.x, self.rows, self.columns)
        }
        used = {node: value for node, value in values.items() if node in set(graph.nodes)}
        expected, found = (evaluate(each, used, batch_size=5)[0] for each in (graph, simpler))
        for value, true in zip(found, expected, strict=True):
            np.testing.assert_allclose(value, true, rtol=1e-12, atol=1e-13)

    def test_are_multiples_of_sums_that_are_there(self, rng: np.random.Generator) -> None:
        x, columns = self.x, self.columns
        self.check([mg.sum(x, (0, 1)), mg.sum(-(x * columns), (0, 1)), mg.sum(2.0 * -x, (0, 1))], 1, rng)
        self.check([mg.sum(x * self.rows, 2), mg.sum(x, 2)], 1, rng)
        self.check([mg.sum(-x, 2, keepdims=True), mg.sum(x * columns * self.rows, 2), mg.sum(x * columns, 2)], 2, rng)

    def test_are_left_where_nothing_else_is_added_up(self, rng: np.random.Generator) -> None:
        x = self.x
        self.check([mg.sum(-(x * self.columns), (0, 1)), mg.sum(x, 1)], 2, rng)

    def test_need_factors_that_are_the_same_along_the_axes(self, rng: np.random.Generator) -> None:
        x = self.x
        self.check([mg.sum(x, 2), mg.sum(x * self.columns, 2)], 2, rng)
        self.check([mg.sum(x, (0, 1)), mg.sum(x * self.rows, (0, 1))], 2, rng)
