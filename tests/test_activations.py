"""Activation functions: values by their formulas, gradients, extreme inputs, names."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import miai_graph as mg
from miai_graph import activations
from miai_graph.errors import ArgumentError
from miai_graph.graph import Graph, check_graph
from miai_graph.interpreter import evaluate
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.ops.special import erf, expm1
from miai_graph.split_interpreter import evaluate_split

X = np.array([-3.5, -2.0, -0.75, -1e-3, 1e-3, 0.3, 1.25, 2.0, 4.0])
"""Away from kinks."""

Options = dict[str, Any]
CASES: dict[str, tuple[str, Options, Any]] = {
    "linear": ("linear", {}, lambda x: x),
    "relu": ("relu", {}, lambda x: np.maximum(x, 0)),
    "relu slope": ("relu", {"negative_slope": 0.1}, lambda x: np.where(x > 0, x, 0.1 * x)),
    "relu bound": ("relu", {"max_value": 1.5}, lambda x: np.clip(x, 0, 1.5)),
    "relu threshold": ("relu", {"threshold": 0.5}, lambda x: np.where(x > 0.5, x, 0)),
    "relu all": (
        "relu",
        {"negative_slope": 0.2, "max_value": 1.5, "threshold": 0.5},
        lambda x: np.where(x > 0.5, np.minimum(x, 1.5), 0.2 * (x - 0.5)),
    ),
    "leaky_relu": ("leaky_relu", {}, lambda x: np.where(x > 0, x, 0.2 * x)),
    "sigmoid": ("sigmoid", {}, lambda x: 1 / (1 + np.exp(-x))),
    "softmax": ("softmax", {}, lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)),
    "softmax axis": ("softmax", {"axis": 0}, lambda x: np.exp(x) / np.exp(x).sum(0, keepdims=True)),
    "log_softmax": ("log_softmax", {}, lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True))),
    "tanh": ("tanh", {}, np.tanh),
    "elu": ("elu", {}, lambda x: np.where(x > 0, x, np.exp(x) - 1)),
    "elu alpha": ("elu", {"alpha": 0.3}, lambda x: np.where(x > 0, x, 0.3 * (np.exp(x) - 1))),
    "selu": (
        "selu",
        {},
        lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * (np.exp(x) - 1)),
    ),
    "gelu": ("gelu", {}, lambda x: x * np.vectorize(lambda v: 0.5 * (1 + math.erf(v / math.sqrt(2))))(x)),
    "gelu tanh": (
        "gelu",
        {"approximate": True},
        lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    ),
    "softplus": ("softplus", {}, lambda x: np.log1p(np.exp(x))),
    "softsign": ("softsign", {}, lambda x: x / (1 + np.abs(x))),
    "silu": ("silu", {}, lambda x: x / (1 + np.exp(-x))),
    "swish": ("swish", {}, lambda x: x / (1 + np.exp(-x))),
    "exponential": ("exponential", {}, np.exp),
    "hard_sigmoid": ("hard_sigmoid", {}, lambda x: np.clip(x / 6 + 0.5, 0, 1)),
}
of_each_case = pytest.mark.parametrize("case", CASES)


@pytest.fixture(autouse=True)
def _seed() -> None:
    mg.set_seed(3)


def value_of(node: Node, feeds: dict[Node, Array]) -> Array:
    graph = Graph([node])
    check_graph(graph)
    return evaluate(graph, feeds, batch_size=len(next(iter(feeds.values()))))[0][0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@of_each_case
def test_values_follow_the_formula(case: str, dtype: str) -> None:
    name, options, formula = CASES[case]
    x = mg.input("x", (3, 3), dtype)
    value = value_of(getattr(activations, name)(x, **options), {x: X.reshape(3, 3).astype(dtype)})
    assert value.dtype == dtype
    np.testing.assert_allclose(value, formula(X.reshape(3, 3)), rtol=1e-12 if dtype == "float64" else 2e-5, atol=1e-7)


@of_each_case
def test_gradients_of_both_orders_agree_with_differences(case: str) -> None:
    name, options, _ = CASES[case]
    x = mg.input("x", (3, 3), "float64")
    y = getattr(activations, name)(x, **options)
    mg.check_gradients((y * np.linspace(-1.0, 2.0, 9).reshape(3, 3)).sum(), [x], {x: X.reshape(3, 3)}, order=2)


@pytest.mark.parametrize("name", sorted({name for name, *_ in CASES.values()} - {"exponential"}))
def test_extreme_inputs_give_finite_values_and_gradients(name: str) -> None:
    x = mg.input("x", (None, 3))
    y = getattr(activations, name)(x)
    feeds = {x: np.array([[-1e4, 0.0, 1e4], [1e4, 1e4, -1e4]], np.float32)}
    assert np.isfinite(value_of(y, feeds)).all()
    assert np.isfinite(value_of(mg.grad(y.sum(), [x])[0], feeds)).all()


@of_each_case
def test_parts_of_a_batch_give_what_the_whole_does(case: str) -> None:
    name, options, _ = CASES[case]
    x = mg.input("x", (None, 2), "float64")
    y = getattr(activations, name)(x, **options).sum(0)
    feeds = {x: np.random.default_rng(0).standard_normal((7, 2))}
    graph = Graph([y, mg.grad(y.sum(), [x])[0]])
    for found, expected in zip(
        evaluate_split(graph, feeds, [4, 1, 2])[0], evaluate(graph, feeds, batch_size=7)[0], strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


def test_derivatives_at_zero() -> None:
    x = mg.input("x", (None,))
    expected = {"relu": 0.0, "leaky_relu": 0.2, "elu": 1.0, "softplus": 0.5, "softsign": 1.0, "gelu": 0.5}
    for name, slope in expected.items():
        (gradient,) = mg.grad(getattr(activations, name)(x).sum(), [x])
        assert value_of(gradient, {x: np.zeros(1, np.float32)}).item() == pytest.approx(slope)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_erf_is_exact_to_a_few_last_digits(dtype: str) -> None:
    values = np.concatenate([np.linspace(-7, 7, 2001), np.logspace(-30, 0, 301), [0.0, 1e30, np.inf, -np.inf]])
    values = values.astype(dtype)
    x = mg.input("x", (None,), dtype)
    expected = np.array([math.erf(float(value)) for value in values])
    np.testing.assert_allclose(value_of(erf(x), {x: values}), expected, rtol=4 * np.finfo(dtype).eps)
    assert np.isnan(value_of(erf(x), {x: np.array([np.nan], dtype)}))


def test_expm1_keeps_the_digits_of_small_values() -> None:
    x = mg.input("x", (None,))
    values = np.array([1e-8, -1e-20, 0.0, 3.0], np.float32)
    np.testing.assert_array_equal(value_of(expm1(x), {x: values}), np.expm1(values))


@pytest.mark.parametrize("function", [erf, expm1])
def test_special_functions_have_gradients_of_both_orders(function: Any) -> None:
    x = mg.input("x", (None,), "float64")
    mg.check_gradients(function(x).sum(), [x], {x: X}, order=2)


def test_integers_become_floats() -> None:
    x = mg.input("x", (None,), "int32")
    for name in {name for name, *_ in CASES.values()} - {"linear"}:
        node = getattr(activations, name)(x)
        assert node.dtype == "float64", name


def test_names_and_configs() -> None:
    assert activations.get(None) is activations.linear
    assert activations.get("swish") is activations.get("silu") is activations.silu
    assert activations.get("log_softmax") is activations.log_softmax
    assert activations.get(activations.relu) is activations.relu
    assert activations.serialize(activations.gelu) == "gelu"
    assert activations.get(activations.serialize(activations.gelu)) is activations.gelu

    def double(x: Any) -> Any:
        return 2.0 * x

    assert activations.get(double) is double
    assert activations.get("double", {"double": double}) is double


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"activation function, one of .*hard_sigmoid.*found 'rleu'"):
        activations.get("rleu")
    with pytest.raises(ArgumentError, match="found 7"):
        activations.get(7)
    x = mg.input("x", (None,))
    with pytest.raises(ArgumentError, match="negative_slope of at least 0"):
        activations.relu(x, negative_slope=-1.0)
    with pytest.raises(ArgumentError, match="max_value"):
        activations.relu(x, max_value=-1.0)
