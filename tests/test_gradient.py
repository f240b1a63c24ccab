"""Differentiation from graph to graph, and the checker that compares it with differences."""

from __future__ import annotations

import numpy as np
import pytest

import miai_graph as mg
from miai_graph.errors import ArgumentError, GradientError, ShapeError
from miai_graph.interpreter import evaluate
from miai_graph.op import ops


def values(nodes, feeds=None, batch_size: int = 1):
    graph = mg.Graph(nodes)
    mg.check_graph(graph)
    return evaluate(graph, feeds or {}, batch_size=batch_size)[0]


def test_shared_subgraphs_are_differentiated_once() -> None:
    w = mg.parameter(np.array([0.3, -0.7]), "w")
    y = w
    for _ in range(30):
        y = y + y * 0.1
    (gradient,) = mg.grad(mg.sum(y), [w])
    np.testing.assert_allclose(values([gradient])[0], np.full(2, 1.1**30))
    assert len(mg.Graph([gradient])) < 30 * 12


def test_any_order_of_a_polynomial() -> None:
    x = mg.parameter(2.0, "x", dtype="float64")
    derivative = x**4 - 3 * x**3 + x
    found = []
    for _ in range(5):
        (derivative,) = mg.grad(derivative, [x])
        found.append(values([derivative])[0].item())
    np.testing.assert_allclose(found, [4 * 8 - 9 * 4 + 1, 12 * 4 - 18 * 2, 24 * 2 - 18, 24, 0], atol=1e-12)


def test_hessian_vector_products() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((4, 4))
    symmetric = matrix + matrix.T
    w = mg.parameter(rng.standard_normal(4), "w")
    v = mg.input("v", (4,), "float64")
    loss = 0.5 * mg.sum(w * (symmetric @ w)) + mg.sum(w**3)
    (gradient,) = mg.grad(loss, [w])
    (product,) = mg.grad(mg.sum(gradient * v), [w])
    direction = rng.standard_normal(4)
    np.testing.assert_allclose(
        values([product], {v: direction})[0], symmetric @ direction + 6 * w.value * direction, rtol=1e-10
    )


def test_derivatives_with_respect_to_nodes_between() -> None:
    w = mg.parameter(np.array([1.0, 2.0]), "w")
    h = w * 3.0
    loss = mg.sum(h * h)
    dw, dh, dloss = values(mg.grad(loss, [w, h, loss]))
    np.testing.assert_allclose(dh, 2 * 3 * w.value)
    np.testing.assert_allclose(dw, 3 * dh)
    assert dloss == 1


def test_a_cotangent_weighs_a_loss_that_is_no_scalar() -> None:
    x = mg.input("x", (None, 2), "float64")
    array = np.array([[1.0, 2.0], [3.0, 4.0]])
    with pytest.raises(GradientError, match=r"expected a scalar as loss; found f64\[B,2\] square.*mg.mean or mg.sum"):
        mg.grad(mg.square(x), [x])
    (gradient,) = mg.grad(mg.square(x), [x], x + 1.0)
    np.testing.assert_allclose(values([gradient], {x: array}, 2)[0], 2 * array * (array + 1))
    with pytest.raises(ShapeError, match="cotangent of the loss's shape"):
        mg.grad(mg.square(x), [x], np.ones(2))
    (gradient,) = mg.grad(mg.square(x), x, mg.cast(mg.ones_like(x), "float32"))
    assert gradient.dtype == np.float64


def test_unconnected_nodes_give_zeros_or_an_error() -> None:
    w, other = mg.parameter(np.ones(2), "w"), mg.parameter(np.ones((3, 2), "f4"), "other")
    loss = mg.sum(w) + mg.sum(mg.sign(other)) + mg.sum(mg.cast(other, "int64"))
    zeros = mg.grad(loss, [other])[0]
    assert zeros.type == other.type
    assert not values([zeros])[0].any()
    with pytest.raises(GradientError, match="other"):
        mg.grad(loss, [w, other], unconnected="error")
    with pytest.raises(ArgumentError, match="unconnected"):
        mg.grad(loss, [w], unconnected="none")


def test_what_cannot_be_differentiated_is_refused() -> None:
    w = mg.parameter(np.ones(2), "w")
    n = mg.input("n", (2,), "int64")
    for loss, wrt, text in (
        (mg.sum(n), w, "loss of floats"),
        (mg.sum(w), n, "nodes of floats"),
        (mg.sum(w) > 0, w, "loss of floats"),
    ):
        with pytest.raises(GradientError, match=text):
            mg.grad(loss, [wrt])
    with pytest.raises(ArgumentError, match="a node as loss"):
        mg.grad(1.0, [w])
    with pytest.raises(ArgumentError, match="nodes to differentiate"):
        mg.grad(mg.sum(w), ["w"])


def test_stop_gradient_is_a_constant() -> None:
    w = mg.parameter(np.array([2.0, 3.0]), "w")
    (gradient,) = mg.grad(mg.sum(w * mg.stop_gradient(w)), [w])
    np.testing.assert_array_equal(values([gradient])[0], w.value)


def test_gradients_of_an_indexed_loss_over_the_batch() -> None:
    x = mg.input("x", (None, 3), "float64")
    w = mg.parameter(np.arange(6.0).reshape(3, 2) / 7, "w")
    y = mg.input("y", (None,), "int64")
    loss = mg.mean(mg.sparse_softmax_cross_entropy(x @ w, y)) + 0.01 * mg.sum(w**2)
    feeds = {x: np.random.default_rng(0).standard_normal((5, 3)), y: [0, 1, 1, 0, 1]}
    mg.check_gradients(loss, [w, x], feeds, order=2)


@pytest.fixture
def wrong_op():
    """Make an op whose vjp is given: y = x @ m for a fixed, not symmetric matrix."""
    matrix = np.array([[1.0, 2.0], [-0.5, 0.3]])

    def make(rule):
        class crooked:
            def infer(x):
                return x

            def forward(x):
                return np.tanh(x @ matrix)

            def vjp(g, output, x):
                return rule(g, output, x, matrix)

        return mg.op(crooked)

    yield make
    ops.pop("crooked", None)


def right(g, output, x, matrix):
    return [(g * (1.0 - output * output)) @ matrix.T]


WRONG = {
    "sign flipped": lambda g, y, x, m: [-right(g, y, x, m)[0]],
    "factor 1.001": lambda g, y, x, m: [1.001 * right(g, y, x, m)[0]],
    "missing term": lambda g, y, x, m: [g @ m.T],
    "transposed": lambda g, y, x, m: [(g * (1.0 - y * y)) @ m],
    "nothing": lambda g, y, x, m: [None],
    "one element": lambda g, y, x, m: [right(g, y, x, m)[0] * np.array([1.0, 1.01])],
}


@pytest.mark.parametrize("rule", WRONG.values(), ids=WRONG)
def test_the_checker_catches_wrong_rules_and_names_the_op(wrong_op, rule) -> None:
    op = wrong_op(rule)
    w = mg.parameter(np.array([[0.3, -0.2], [0.1, 0.4]]), "w")
    loss = mg.sum(mg.square(op(mg.exp(w))))
    with pytest.raises(
        GradientError, match=r"expected a derivative of[\s\S]*op to blame: crooked[\s\S]*test_gradient.py"
    ):
        mg.check_gradients(loss, [w])


def test_the_checker_passes_right_rules(wrong_op) -> None:
    op = wrong_op(right)
    x = mg.input("x", (None, 2))
    w = mg.parameter(np.array([[0.3, -0.2], [0.1, 0.4]]), "w")
    mg.check_gradients(mg.mean(op(x @ w)), [w, x], {x: np.random.default_rng(0).standard_normal((3, 2))}, order=2)


def test_the_checker_catches_a_rule_that_is_wrong_in_second_order_only(wrong_op) -> None:
    op = wrong_op(lambda g, y, x, m: [(g * mg.stop_gradient(1.0 - y * y)) @ m.T])
    w = mg.parameter(np.array([[0.3, -0.2], [0.1, 0.4]]), "w")
    loss = mg.sum(op(w))
    mg.check_gradients(loss, [w])
    with pytest.raises(GradientError, match="second order: expected a derivative"):
        mg.check_gradients(loss, [w], order=2)


@pytest.mark.parametrize(
    ("contributions", "text"),
    [
        (lambda g, y, x, m: [g, g], "found 2"),
        (lambda g, y, x, m: [mg.sum(g, 0)], r"type f64\[2,2\] from the vjp of crooked; found f64\[2\]"),
        (lambda g, y, x, m: [mg.cast(g, "float32")], "found f32"),
    ],
)
def test_cotangents_of_other_types_are_refused(wrong_op, contributions, text: str) -> None:
    w = mg.parameter(np.ones((2, 2)), "w")
    with pytest.raises(GradientError, match=text):
        mg.grad(mg.sum(wrong_op(contributions)(w)), [w])


def test_a_loss_that_depends_on_nothing_is_checked_too() -> None:
    x, w = mg.input("x", (None, 2)), mg.parameter(np.ones(2), "w")
    with pytest.raises(GradientError, match="expected a scalar as loss"):
        mg.grad(x, [w])
    with pytest.raises(ShapeError, match="cotangent of the loss's shape"):
        mg.grad(x, [w], np.ones((7, 9)))


def test_the_checker_refuses_what_it_cannot_check() -> None:
    x, w = mg.input("x", (None, 2)), mg.parameter(np.ones(2), "w")
    loss = mg.sum(x * w)
    with pytest.raises(ArgumentError, match=r"an array for each input; found none for f32\[B,2\] x"):
        mg.check_gradients(loss, [w])
    with pytest.raises(ArgumentError, match="parameters or inputs"):
        mg.check_gradients(loss, [loss], {x: np.ones((1, 2))})
    with pytest.raises(ArgumentError, match="order 1 or 2"):
        mg.check_gradients(loss, [w], {x: np.ones((1, 2))}, order=3)
    with pytest.raises(GradientError, match="scalar"):
        mg.check_gradients(x * w, [w], {x: np.ones((1, 2))})
    with pytest.raises(mg.errors.FeedError, match="shape"):
        mg.check_gradients(loss, [w], {x: np.ones(2)})


def test_an_input_and_a_parameter_may_have_one_name() -> None:
    x, w = mg.input("w", (None, 2)), mg.parameter(np.ones(2), "w")
    mg.check_gradients(mg.sum(mg.tanh(x * w)), [x, w], {x: np.ones((3, 2))}, order=2)


def cubes(x: mg.Node) -> mg.Node:
    return mg.sum(mg.square(x) * x)


SLICES = {
    "beside each other": (["concatenate"], lambda w: [w[:, 8:], w[:, :4], w[:, 4:8]]),
    "with gaps": (["pad", "pad", "concatenate"], lambda w: [w[:, 1:4], w[:, -2:-1]]),
    "single ones": (["pad", "concatenate"], lambda w: [w[:, 0], w[:, -1], w[:, 1]]),
    "of part of another axis": (["concatenate", "scatter_slice"], lambda w: [w[1:, :6], w[1:, 6:]]),
    "of nothing": (["pad", "concatenate"], lambda w: [w[:, 3:3], w[:, 8:]]),
    "of everything too": (["concatenate"], lambda w: [w[:, :6], w[:, 6:], w]),
    "that overlap": (["scatter_slice", "scatter_slice"], lambda w: [w[:, :5], w[:, 4:8]]),
    "within each other": (["scatter_slice", "scatter_slice"], lambda w: [w[:, :5], w[:, 1:3]]),
    "the same twice": (["scatter_slice", "scatter_slice"], lambda w: [w[:, :5] * 2.0, w[:, :5]]),
    "with steps": (["scatter_slice", "scatter_slice"], lambda w: [w[:, ::2], w[:, 1::2]]),
    "backwards": (["scatter_slice", "scatter_slice"], lambda w: [w[:, 3::-1], w[:, 4:]]),
    "along different axes": (["scatter_slice", "scatter_slice"], lambda w: [w[:1, :4], w[1:, 4:]]),
    "only one": (["scatter_slice"], lambda w: [w[:, 3:5]]),
}


@pytest.mark.parametrize("case", SLICES)
def test_gradients_of_slices_are_joined(case: str) -> None:
    expected, parts = SLICES[case]
    w = mg.parameter(np.random.default_rng(0).standard_normal((3, 12, 2)), "w")
    loss = 0.0
    for place, part in enumerate(parts(w)):
        loss = (place + 1.0) * cubes(part) + loss
    (gradient,) = mg.grad(loss, [w])
    joins = ("concatenate", "pad", "scatter_slice")
    found = [node.op.name for node in mg.Graph([gradient]).nodes if node.op.name in joins]
    assert sorted(found) == sorted(expected)
    mg.check_gradients(loss, [w], {}, order=2)


def test_gradients_of_many_slices_are_joined_at_once() -> None:
    w = mg.parameter(np.random.default_rng(0).standard_normal((200, 3)), "w")
    loss = 0.0
    for row in range(200):
        loss = loss + cubes(w[row]) * float(row)
    (gradient,) = mg.grad(loss, [w])
    assert [node.op.name for node in mg.Graph([gradient]).nodes].count("concatenate") == 1
    np.testing.assert_allclose(values([gradient])[0], 3 * w.value**2 * np.arange(200.0)[:, None])


def test_gradients_of_slices_of_a_batch_are_joined() -> None:
    x = mg.input("x", (None, 5), "float64")
    loss = cubes(x[:, :2]) + 2.0 * cubes(x[:, 3:])
    array = np.random.default_rng(0).standard_normal((4, 5))
    (gradient,) = values(mg.grad(loss, [x]), {x: array}, 4)
    np.testing.assert_allclose(gradient, 3 * array**2 * [1, 1, 0, 2, 2])
