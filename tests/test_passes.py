"""Rewrites keep values, and the batch analysis says what may be computed on parts of the batch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from drawn_graphs import DrawnGraph, drawn_graphs
from hypothesis import given, settings

import miai_graph as mg
from miai_graph.errors import ArgumentError, NotSplittableError
from miai_graph.interpreter import evaluate
from miai_graph.node import Node
from miai_graph.op import Op
from miai_graph.ops.elementwise import identity
from miai_graph.passes import simplify as simplifying
from miai_graph.passes.batch_analysis import analyse_batch
from miai_graph.passes.rewrite import substitute
from miai_graph.passes.simplify import simplify
from miai_graph.placement import REPLICATED, Partial, Split, Unsplittable
from miai_graph.split_interpreter import evaluate_split

SUM = Partial("sum")


@pytest.fixture
def x() -> Node:
    return mg.input("x", (None, 3), "float64")


def names_of_ops(graph: mg.Graph) -> list[str]:
    return [node.op.name for node in graph.nodes]


@pytest.mark.parametrize(
    ("build", "left"),
    [
        (lambda x: x + (mg.exp(np.zeros(3)) * 2.0 - 1.0), ["input", "constant", "broadcast_to", "add"]),
        (lambda x: x * 1.0, ["input"]),
        (lambda x: mg.ones_like(x) * x, ["input"]),
        (lambda x: mg.grad(mg.sum(x * 3.0), [x])[0], ["constant", "broadcast_to"]),
        (lambda x: mg.reshape(mg.reshape(x, -1), (-1, 3)), ["input"]),
        (lambda x: mg.reshape(mg.reshape(x, -1), (-1, 3, 1)), ["input", "reshape"]),
        (lambda x: mg.transpose(mg.transpose(x)), ["input"]),
        (lambda x: mg.transpose(x, (0, 1)), ["input"]),
        (lambda x: identity(x), ["input"]),
        (lambda x: mg.exp(x) + mg.exp(x), ["input", "exp", "add"]),
        (lambda x: mg.broadcast_to(mg.broadcast_to(mg.sum(x), (3, 1)), (2, 3, 4)), ["input", "sum", "broadcast_to"]),
        (lambda x: mg.tanh(mg.broadcast_to(mg.sum(x, 0), (5, 3))), ["input", "sum", "tanh", "broadcast_to"]),
        (lambda x: mg.transpose(mg.zeros_like(x)), ["constant", "broadcast_to"]),
        (lambda x: mg.cast(x, "float64"), ["input"]),
        (lambda x: mg.transpose(x @ mg.transpose(x)), ["input", "transpose", "matmul"]),
    ],
)
def test_each_rule_leaves_what_it_says(x: Node, build, left: list[str]) -> None:
    graph = mg.Graph([build(x)])
    simpler = simplify(graph)
    mg.check_graph(simpler)
    assert names_of_ops(simpler) == left
    feeds = {x: np.arange(12.0).reshape(4, 3)}
    for found, expected in zip(
        evaluate(simpler, feeds, batch_size=4)[0], evaluate(graph, feeds, batch_size=4)[0], strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_a_product_that_is_transposed_is_computed_that_way(rng: np.random.Generator) -> None:
    a, b = mg.input("a", (None, 4, 5), "float64"), mg.input("b", (None, 5, 6), "float64")
    feeds = {a: rng.standard_normal((2, 4, 5)), b: rng.standard_normal((2, 5, 6))}
    for axes, is_turned in {(0, 2, 1): True, (2, 0, 1): True, (2, 1, 0): False, (1, 0, 2): False}.items():
        graph = mg.Graph([mg.transpose(a @ b, axes)])
        simpler = simplify(graph)
        (product,) = (node for node in simpler.nodes if node.op.name == "matmul")
        assert (product.shape == (None, 6, 4)) == is_turned, axes
        found, expected = (evaluate(each, feeds, batch_size=2)[0][0] for each in (simpler, graph))
        np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_a_product_that_is_needed_both_ways_is_computed_once() -> None:
    a = mg.input("a", (3, 3), "float64")
    product = a @ mg.exp(a)
    for needed in ([product], [mg.sum(product)], []):
        simpler = simplify(mg.Graph([mg.transpose(product), *needed]))
        assert names_of_ops(simpler).count("matmul") == 1


def test_every_rule_was_tried() -> None:
    assert {rule.__name__ for rule in simplifying.RULES} >= {
        "fold_constants",
        "drop_multiplication_by_one",
        "drop_changes_of_nothing",
        "join_reshapes",
        "join_transposes",
        "join_broadcasts",
        "rearrange_before_repeating",
        "compute_before_repeating",
    }


def test_large_constants_are_not_folded_into_larger_ones() -> None:
    small = np.ones((100, 1))
    graph = simplify(mg.Graph([mg.concatenate([mg.exp(small)] * 100, 1)]))
    assert names_of_ops(graph)[-1] == "concatenate"
    assert all(node.type.size <= 100 for node in graph.nodes if node.op.name == "constant")


def test_what_must_not_change_does_not(x: Node) -> None:
    for node in (x * -1.0, x + 0.0, x - x, x * 0.0, mg.negative(-x), x * np.ones((1, 3)) * 2.0):
        graph = mg.Graph([node])
        array = np.array([[np.nan, -0.0, np.inf]])
        (found,), _ = evaluate(simplify(graph), {x: array}, batch_size=1)
        (expected,), _ = evaluate(graph, {x: array}, batch_size=1)
        np.testing.assert_array_equal(found, expected)
        assert (np.signbit(found) == np.signbit(expected))[~np.isnan(expected)].all()


def test_two_random_nodes_never_merge(x: Node) -> None:
    first, second = mg.random.normal((None, 3)), mg.random.normal((None, 3))
    simpler = simplify(mg.Graph([first - second, first - first]))
    assert names_of_ops(simpler).count("random_normal") == 2
    (found, zeros), _ = evaluate(simpler, {}, batch_size=2)
    assert found.all()
    assert not zeros.any()


def test_two_reads_of_a_variable_stay_one_variable() -> None:
    w = mg.parameter(np.ones(2), "w")
    other = mg.ops.leaves.variable_node(w.attributes["variable"])
    graph = simplify(mg.Graph([w + other], {w: other * 2.0}))
    assert len(graph.variables) == 1
    (total,), updates = evaluate(graph, {}, batch_size=1)
    np.testing.assert_array_equal(total, [2, 2])
    np.testing.assert_array_equal(updates[w], [2, 2])


def test_a_constant_that_fails_fails_when_the_graph_runs(x: Node) -> None:
    node = mg.sum(x) + mg.take(np.arange(3.0), [5], 0)
    step = mg.function([x], [node])
    with pytest.raises(mg.errors.ExecutionError, match=r"take failed[\s\S]*test_passes.py"):
        step(np.ones((1, 3)))


def test_rewrites_keep_names_scopes_phases_and_lines(x: Node) -> None:
    with mg.name_scope("layer"):
        y = mg.exp(x * 1.0)
    (kept,) = simplify(mg.Graph([y])).outputs
    assert (kept.name, kept.scope, kept.phase, kept.source) == (y.name, "layer", "forward", y.source)


def test_substitution(x: Node) -> None:
    y = mg.exp(x) + 1.0
    z = mg.input("z", (None, 3), "float64")
    (replaced,) = substitute([y], {x: z})
    assert mg.Graph([replaced]).inputs == (z,)
    assert mg.same_graph(mg.Graph([substitute([replaced], {z: x})[0]]), mg.Graph([y]))


@settings(max_examples=80)
@given(drawn_graphs())
def test_random_graphs_are_simplified_to_the_same_values(drawn: DrawnGraph) -> None:
    simpler = simplify(drawn.graph)
    mg.check_graph(drawn.graph)
    mg.check_graph(simpler)
    assert mg.same_graph(simplify(simpler), simpler)
    for found, expected in zip(drawn.values(simpler, 3), drawn.values(drawn.graph, 3), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@settings(max_examples=80)
@given(drawn_graphs())
def test_random_graphs_on_parts_of_the_batch(drawn: DrawnGraph) -> None:
    for graph in (drawn.graph, simplify(drawn.graph)):
        if analyse_batch(graph).obstacles:
            continue
        outputs, updates = evaluate_split(graph, drawn.feeds(6), [3, 1, 2])
        for found, expected in zip([*outputs, *updates.values()], drawn.values(graph, 6), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def perceptron(*, penalty: float = 0.0):
    mg.set_seed(0)
    rng = np.random.default_rng(0)
    x, y = mg.input("x", (None, 4), "float64"), mg.input("y", (None,), "int64")
    w = mg.parameter(rng.standard_normal((4, 5)), "w")
    v = mg.parameter(rng.standard_normal((5, 3)), "v")
    loss = mg.mean(mg.sparse_softmax_cross_entropy(mg.tanh(x @ w) @ v, y))
    if penalty:
        loss = loss + penalty * (mg.sum(w**2) + mg.sum(v**2))
    gradients = mg.grad(loss, [w, v])
    graph = mg.Graph([loss], {p: p - 0.1 * g for p, g in zip((w, v), gradients, strict=True)})
    feeds = {x: rng.standard_normal((7, 4)), y: rng.integers(0, 3, 7)}
    return graph, feeds, gradients


@pytest.mark.parametrize("penalty", [0.0, 0.3])
def test_a_perceptron_on_parts_is_the_perceptron(penalty: float) -> None:
    graph, feeds, _ = perceptron(penalty=penalty)
    for each in (graph, simplify(graph)):
        (loss,), updates = evaluate(each, feeds, batch_size=7)
        (split_loss,), split_updates = evaluate_split(each, feeds, [4, 1, 2])
        np.testing.assert_allclose(split_loss, loss, rtol=1e-12)
        for target, value in updates.items():
            np.testing.assert_allclose(split_updates[target], value, rtol=1e-10)


def test_what_a_perceptron_reduces() -> None:
    graph, _, gradients = perceptron(penalty=0.3)
    analysis = analyse_batch(graph)
    analysis.require_splittable()
    assert all(isinstance(analysis.placements[node], Partial) for node in analysis.reduced)
    assert {node.op.name for node in analysis.reduced} <= {"divide", "matmul", "sum"}
    # One for the loss, and one for each gradient.
    assert len(analysis.reduced) == 3
    assert all(analysis.placements[node] == REPLICATED for node in graph.updates.values())
    assert all(analysis.placements[node] in (REPLICATED, SUM) for node in gradients)


def test_a_value_that_one_user_needs_whole_is_whole_for_all(x: Node) -> None:
    total = mg.sum(x)
    graph = mg.Graph([total + total, mg.exp(total), total * 2.0, mg.sum(x - mg.mean(x, 0))])
    feeds = {x: np.arange(12.0).reshape(4, 3) / 10}
    whole, _ = evaluate(graph, feeds, batch_size=4)
    for found, expected in zip(evaluate_split(graph, feeds, [1, 3])[0], whole, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_what_is_whole_for_one_user_is_placed_again_for_those_before() -> None:
    x = mg.input("x", (None,), "float64")
    totals = [mg.sum(x * float(number)) for number in range(2, 1002)]
    pairs = [first + second for first, second in itertools.pairwise(totals)][::-1]
    # Each pair is built before the one that makes the first of its totals whole.
    backwards = [totals[place] + totals[place + 1] for place in reversed(range(len(totals) - 1))]
    graph = mg.Graph([*pairs, *backwards, mg.exp(totals[0])])
    analysis = analyse_batch(graph)
    assert analysis.reduced >= set(totals)
    assert all(analysis.placements[pair] == REPLICATED for pair in (*pairs, *backwards))


def test_placements_print() -> None:
    assert [str(placement) for placement in (Split(1, 2), REPLICATED, SUM, Unsplittable("why"))] == [
        "split(axis 1, 2 a sample)",
        "replicated",
        "partial(sum)",
        "unsplittable: why",
    ]


def test_what_is_in_the_way_is_named(x: Node) -> None:
    position = mg.argmax(x, 0)
    graph = mg.Graph([mg.exp(mg.cast(position, "float64")) + 1.0, mg.sum(x)])
    analysis = analyse_batch(graph)
    assert analysis.obstacles == [position]
    with pytest.raises(NotSplittableError, match=r"argmax \(.*test_passes.py.*mixes the samples"):
        evaluate_split(graph, {x: np.ones((2, 3))}, [1, 1])
    for sizes in ([], [0, 2], [-1]):
        with pytest.raises(ArgumentError, match="at least one sample"):
            evaluate_split(graph, {x: np.ones((2, 3))}, sizes)


def test_what_only_looks_the_same_is_not_shared(x: Node) -> None:
    def scaling(factor: float) -> Op:
        class scaled_by_its_version:
            def infer(x):
                return x

            def forward(x):
                return x * factor

        return mg.op(scaled_by_its_version)

    @mg.op
    class plus_last:
        def infer(x, *, tables):
            return x

        def forward(x, *, tables):
            return x + tables[0][-1]

    # Too long to be printed in full.
    tables = [np.full(3000, value) for value in (1.0, 1.0, 2.0)]
    tables[1][1500] = 5.0
    nodes = [scaling(2.0)(x), scaling(3.0)(x), *(plus_last(x, tables=(table,)) for table in tables)]
    assert len(simplify(mg.Graph(nodes))) == 1 + len(nodes)
    assert not mg.same_graph(mg.Graph(nodes[0]), mg.Graph(nodes[1]))
    found = mg.function([x], nodes)(np.ones((1, 3)))
    assert [value[0, 0] for value in found] == [2, 3, 2, 2, 3]
