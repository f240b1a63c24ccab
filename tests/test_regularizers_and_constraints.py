"""Regularizers and constraints: against their formulas in NumPy, in gradients, on parts of the batch, as configs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from miai_graph import constraints, initializers, regularizers
from miai_graph.errors import ArgumentError, ShapeError
from miai_graph.gradient import grad
from miai_graph.graph import Graph, check_graph
from miai_graph.interpreter import evaluate
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.ops.leaves import input

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
RANDOM = np.random.default_rng(12)
MATRIX = RANDOM.normal(size=(5, 3))
KERNEL = RANDOM.normal(size=(3, 3, 2, 4))

REGULARIZERS: dict[str, Any] = {
    "L1": regularizers.L1(0.3),
    "L2": regularizers.L2(0.2),
    "L1L2": regularizers.L1L2(0.3, 0.2),
    "OrthogonalRegularizer": regularizers.OrthogonalRegularizer(0.5, "columns"),
}
CONSTRAINTS: dict[str, Any] = {
    "MaxNorm": constraints.MaxNorm(1.5),
    "NonNeg": constraints.NonNeg(),
    "UnitNorm": constraints.UnitNorm(axis=[0]),
    "MinMaxNorm": constraints.MinMaxNorm(1.2, 1.8, 0.7, axis=1),
}


def run(nodes: list[Node], **arrays: Array) -> list[Array]:
    graph = Graph(nodes)
    check_graph(graph)
    feeds = {node: arrays[node.name] for node in graph.inputs}
    values, _ = evaluate(graph, feeds, batch_size=len(next(iter(arrays.values()))))
    return values


def apply(function: Any, array: Array, dtype: str = "float64") -> Array:
    x = input("x", array.shape, dtype)
    (value,) = run([function(x)], x=array.astype(dtype))
    assert value.dtype == dtype
    return value


def cosines(rows: Array) -> float:
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    products = abs(unit @ unit.T)
    return float(products[~np.eye(len(rows), dtype=bool)].mean())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("regularizer", "expected"),
    [
        (regularizers.L1(0.3), 0.3 * abs(MATRIX).sum()),
        (regularizers.L2(0.2), 0.2 * (MATRIX**2).sum()),
        (regularizers.L1(), 0.01 * abs(MATRIX).sum()),
        (regularizers.L2(), 0.01 * (MATRIX**2).sum()),
        (regularizers.L1L2(0.3, 0.2), 0.3 * abs(MATRIX).sum() + 0.2 * (MATRIX**2).sum()),
        (regularizers.L1L2(l1=0.3), 0.3 * abs(MATRIX).sum()),
        (regularizers.L1L2(l2=0.2), 0.2 * (MATRIX**2).sum()),
        (regularizers.L1L2(), 0.0),
        (regularizers.OrthogonalRegularizer(0.5), 0.5 * cosines(MATRIX)),
        (regularizers.OrthogonalRegularizer(0.5, "columns"), 0.5 * cosines(MATRIX.T)),
    ],
)
def test_penalties(regularizer: Any, expected: float, dtype: str) -> None:
    value = apply(regularizer, MATRIX, dtype)
    assert value.shape == ()
    np.testing.assert_allclose(value, expected, rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("regularizer", REGULARIZERS.values(), ids=REGULARIZERS)
def test_gradients_of_penalties(regularizer: Any) -> None:
    x = input("x", MATRIX.shape, "float64")
    penalty = regularizer(x)
    (derivative,) = grad(penalty, [x])
    direction = RANDOM.normal(size=MATRIX.shape)
    slope = (run([derivative], x=MATRIX)[0] * direction).sum()
    above, below = (run([penalty], x=MATRIX + sign * 1e-6 * direction)[0] for sign in (1, -1))
    np.testing.assert_allclose(slope, (above - below) / 2e-6, rtol=1e-6)


def test_a_row_of_zeros_is_orthogonal_to_all_and_has_a_finite_gradient() -> None:
    rows = np.vstack([MATRIX[:2], np.zeros((1, 3))])
    x = input("x", rows.shape, "float64")
    penalty = regularizers.OrthogonalRegularizer(1.0)(x)
    value, derivative = run([penalty, grad(penalty, [x])[0]], x=rows)
    np.testing.assert_allclose(value, cosines(MATRIX[:2]) / 3)
    assert np.isfinite(derivative).all()
    assert apply(regularizers.OrthogonalRegularizer(), MATRIX[:1]) == 0


def test_penalties_of_outputs_add_up_over_parts_of_the_batch() -> None:
    x = input("x", (None, 3), "float64")
    penalty = regularizers.L1L2(0.3, 0.2)(x)
    parts = [run([penalty], x=part)[0] for part in (MATRIX[:2], MATRIX[2:])]
    np.testing.assert_allclose(np.sum(parts), run([penalty], x=MATRIX)[0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("array", "axis"),
    [(MATRIX, 0), (MATRIX, 1), (MATRIX, -1), (MATRIX[:, 0], 0), (KERNEL, [0, 1, 2]), (KERNEL, (0, 1))],
)
def test_norms_are_held(array: Array, axis: Any, dtype: str) -> None:
    axes = tuple(axis) if isinstance(axis, list) else axis
    norms = np.sqrt((array**2).sum(axis=axes, keepdims=True))
    low, high = np.quantile(norms, [0.3, 0.7])
    tolerance = {"rtol": max(TOLERANCE[dtype], 1e-6)}  # the norms are divided by norm + 1e-7
    unit = apply(constraints.UnitNorm(axis), array, dtype)
    np.testing.assert_allclose(unit, array / norms, **tolerance)
    np.testing.assert_allclose(unit, array / (norms + 1e-7), rtol=TOLERANCE[dtype])
    held = apply(constraints.MaxNorm(high, axis), array, dtype)
    np.testing.assert_allclose(held, array * np.minimum(norms, high) / norms, **tolerance)
    held = apply(constraints.MinMaxNorm(low, high, axis=axis), array, dtype)
    np.testing.assert_allclose(held, array * np.clip(norms, low, high) / norms, **tolerance)
    slowly = apply(constraints.MinMaxNorm(low, high, 0.25, axis), array, dtype)
    np.testing.assert_allclose(slowly, 0.25 * held + 0.75 * array, **tolerance)


def test_negative_weights_become_zero() -> None:
    held = apply(constraints.NonNeg(), MATRIX, "float32")
    np.testing.assert_array_equal(held, np.maximum(MATRIX, 0).astype("f4"))


@pytest.mark.parametrize("constraint", CONSTRAINTS.values(), ids=CONSTRAINTS)
def test_constraints_keep_the_type_and_leave_zeros_alone(constraint: Any) -> None:
    x = input("x", (4, 3), "float32")
    held = constraint(x)
    assert held.type == x.type
    np.testing.assert_array_equal(run([held], x=np.zeros((4, 3), "f4"))[0], 0)


def test_each_known_one_is_tested() -> None:
    assert sorted(REGULARIZERS) == regularizers._registry.names
    assert sorted(CONSTRAINTS) == constraints._registry.names


@pytest.mark.parametrize(
    ("module", "name", "item"),
    [(regularizers, name, item) for name, item in REGULARIZERS.items()]
    + [(constraints, name, item) for name, item in CONSTRAINTS.items()],
    ids=[*REGULARIZERS, *CONSTRAINTS],
)
def test_configs_make_the_same_again(module: Any, name: str, item: Any) -> None:
    saved = module.serialize(item)
    assert saved["class_name"] == name
    again = module.get(saved)
    assert type(again) is type(item)
    assert again.get_config() == item.get_config()
    np.testing.assert_array_equal(apply(again, MATRIX), apply(item, MATRIX))
    if name != "OrthogonalRegularizer":
        assert type(module.get(name)) is type(item)


@pytest.mark.parametrize(
    ("module", "name", "definition"),
    [
        (regularizers, "l1", regularizers.L1),
        (regularizers, "l2", regularizers.L2),
        (regularizers, "l1_l2", regularizers.L1L2),
        (regularizers, "l1l2", regularizers.L1L2),
        (regularizers, "orthogonal_regularizer", regularizers.OrthogonalRegularizer),
        (constraints, "max_norm", constraints.MaxNorm),
        (constraints, "non_neg", constraints.NonNeg),
        (constraints, "unit_norm", constraints.UnitNorm),
        (constraints, "min_max_norm", constraints.MinMaxNorm),
    ],
)
def test_names(module: Any, name: str, definition: type) -> None:
    assert type(module.get(name)) is definition
    if name != "l1l2":
        assert getattr(module, name) is definition


def test_functions_serve_as_well() -> None:
    def penalty(x: Node) -> Node:
        return x.sum()

    assert regularizers.get(penalty) is penalty
    assert constraints.get(None) is None


@pytest.mark.parametrize(
    ("error", "build"),
    [
        (ArgumentError, lambda: regularizers.L1(-0.1)),
        (ArgumentError, lambda: regularizers.L2(float("nan"))),
        (ArgumentError, lambda: regularizers.L1L2(l1=float("inf"))),
        (ArgumentError, lambda: regularizers.L2("0.1")),
        (ArgumentError, lambda: regularizers.OrthogonalRegularizer(mode="both")),
        (ShapeError, lambda: regularizers.OrthogonalRegularizer()(input("x", (2, 3, 4)))),
        (ShapeError, lambda: regularizers.OrthogonalRegularizer()(input("x", (None, 3)))),
        (ArgumentError, lambda: regularizers.get("l3")),
        (ArgumentError, lambda: regularizers.get(initializers.Zeros())),
        (ArgumentError, lambda: constraints.MaxNorm(-1)),
        (ArgumentError, lambda: constraints.MinMaxNorm(2.0, 1.0)),
        (ArgumentError, lambda: constraints.MinMaxNorm(rate=1.5)),
        (ShapeError, lambda: constraints.UnitNorm(axis=2)(input("x", (2, 3)))),
        (ArgumentError, lambda: constraints.get(regularizers.L1())),
    ],
)
def test_what_cannot_be_is_refused(error: type[Exception], build: Any) -> None:
    with pytest.raises(error, match="expected"):
        build()
