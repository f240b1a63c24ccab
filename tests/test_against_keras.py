"""The same numbers as Keras 3 on its torch backend; skipped where these are not installed.

Losses, metrics and optimizers so far; each is compared in float64 and float32 by `assert_close`.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import miai_graph
import miai_graph as mg
from miai_graph import activations, losses, metrics, optimizers
from miai_graph.graph import Graph
from miai_graph.interpreter import evaluate
from miai_graph.node import Node
from miai_graph.op import Array

pytestmark = pytest.mark.filterwarnings("ignore")
os.environ["KERAS_BACKEND"] = "torch"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch")
    keras = pytest.importorskip("keras")

TOLERANCES = {"float64": 1e-9, "float32": 1e-4}
ROWS, CLASSES = 7, 5


def difference(found: Any, expected: Any) -> float:
    """The Euclidean norm of the difference, relative to that of what is expected."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-12))


def assert_close(found: Any, expected: Any, dtype: str, what: str = "") -> None:
    """Close in norm, by the tolerance of the dtype."""
    apart = difference(found, expected)
    assert apart <= TOLERANCES[dtype], f"{what}: {apart:.3g} apart"


@pytest.fixture(params=sorted(TOLERANCES))
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Keras set to compute in a dtype. On torch it takes means of float64 in float32, unless its table is changed."""
    monkeypatch.setitem(keras.src.backend.common.dtypes.BIT64_TO_BIT32_DTYPE, "float64", "float64")
    before = keras.config.floatx()
    keras.config.set_floatx(request.param)
    mg.set_seed(0)
    yield request.param
    keras.config.set_floatx(before)


def random(*shape: int, dtype: str, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def as_numpy(value: Any) -> Array:
    return np.asarray(keras.ops.convert_to_numpy(value))


def run(nodes: list[Node], feeds: dict[Node, Array]) -> list[Array]:
    size = len(next(iter(feeds.values())))
    return evaluate(Graph(nodes), feeds, batch_size=size)[0]


ACTIVATIONS: dict[str, dict[str, Any]] = {
    "relu": {},
    "relu sloped": {"negative_slope": 0.1},
    "relu bounded": {"max_value": 1.0},
    "relu from threshold": {"threshold": 0.5},
    "relu with all": {"negative_slope": 0.2, "max_value": 1.5, "threshold": 0.3},
    "leaky_relu": {},
    "sigmoid": {},
    "softmax": {},
    "softmax axis": {"axis": 0},
    "log_softmax": {},
    "tanh": {},
    "linear": {},
    "elu": {},
    "elu alpha": {"alpha": 0.7},
    "selu": {},
    "gelu": {},
    "gelu approximate": {"approximate": True},
    "softplus": {},
    "softsign": {},
    "silu": {},
    "exponential": {},
    "hard_sigmoid": {},
}


@pytest.mark.parametrize("case", ACTIVATIONS)
def test_activations(case: str, dtype: str) -> None:
    name, options = case.split()[0], ACTIVATIONS[case]
    value, weights = 3 * random(ROWS, CLASSES, dtype=dtype), random(ROWS, CLASSES, dtype=dtype, seed=1)
    x = mg.input("x", (ROWS, CLASSES), dtype)
    y = getattr(activations, name)(x, **options)
    found, gradient = run([y, mg.grad(y, [x], weights)[0]], {x: value})
    point = torch.tensor(value, requires_grad=True)
    expected = getattr(keras.activations, name)(point, **options)
    expected.backward(torch.tensor(weights))
    assert found.dtype == gradient.dtype == dtype
    assert_close(found, as_numpy(expected.detach()), dtype, "value")
    # Torch rounds 1/6, the slope of this one, to float32.
    assert_close(gradient, as_numpy(point.grad), "float32" if name == "hard_sigmoid" else dtype, "gradient")


def probabilities(*shape: int, dtype: str, seed: int = 0) -> Array:
    exponentials = np.exp(random(*shape, dtype="float64", seed=seed))
    return (exponentials / exponentials.sum(-1, keepdims=True)).astype(dtype)


def labels(*shape: int, seed: int = 5) -> Array:
    return np.random.default_rng(seed).integers(0, CLASSES, shape)


LOSSES: dict[str, tuple[str, dict[str, Any], Callable[[str], tuple[Array, Array]]]] = {
    "mse": ("MeanSquaredError", {}, lambda t: (random(ROWS, 3, dtype=t), random(ROWS, 3, dtype=t, seed=1))),
    "mse expanded": ("MeanSquaredError", {}, lambda t: (random(ROWS, dtype=t), random(ROWS, 1, dtype=t, seed=1))),
    "mse one axis": ("MeanSquaredError", {}, lambda t: (random(ROWS, dtype=t), random(ROWS, dtype=t, seed=1))),
    "mse squeezed": ("MeanSquaredError", {}, lambda t: (random(ROWS, 4, 1, dtype=t), random(ROWS, 4, dtype=t, seed=1))),
    "mae": ("MeanAbsoluteError", {}, lambda t: (random(ROWS, 3, dtype=t), random(ROWS, 3, dtype=t, seed=1))),
    "huber": ("Huber", {}, lambda t: (random(ROWS, 3, dtype=t), 2 * random(ROWS, 3, dtype=t, seed=1))),
    "huber delta": ("Huber", {"delta": 0.3}, lambda t: (random(ROWS, 3, dtype=t), random(ROWS, 3, dtype=t, seed=1))),
    "binary": ("BinaryCrossentropy", {}, lambda t: (labels(ROWS, 3) % 2, probabilities(ROWS, 3, dtype=t))),
    "binary axis": (
        "BinaryCrossentropy",
        {"axis": 1},
        lambda t: (labels(ROWS, 3, 2) % 2, probabilities(ROWS, 3, 2, dtype=t)),
    ),
    "binary expanded": ("BinaryCrossentropy", {}, lambda t: (labels(ROWS) % 2, probabilities(ROWS, 3, dtype=t)[:, :1])),
    "binary logits": (
        "BinaryCrossentropy",
        {"from_logits": True, "label_smoothing": 0.2},
        lambda t: (labels(ROWS, 3) % 2, 3 * random(ROWS, 3, dtype=t)),
    ),
    "binary smoothed": (
        "BinaryCrossentropy",
        {"label_smoothing": 0.2},
        lambda t: (labels(ROWS, 3) % 2, probabilities(ROWS, 3, dtype=t)),
    ),
    "categorical": (
        "CategoricalCrossentropy",
        {},
        lambda t: (probabilities(ROWS, CLASSES, dtype=t, seed=1), probabilities(ROWS, CLASSES, dtype=t)),
    ),
    "categorical unnormalized": (
        "CategoricalCrossentropy",
        {"label_smoothing": 0.1},
        lambda t: (np.eye(CLASSES)[labels(ROWS)], 3 * probabilities(ROWS, CLASSES, dtype=t)),
    ),
    "categorical logits": (
        "CategoricalCrossentropy",
        {"from_logits": True, "label_smoothing": 0.1},
        lambda t: (np.eye(CLASSES)[labels(ROWS)], 3 * random(ROWS, CLASSES, dtype=t)),
    ),
    "categorical axis": (
        "CategoricalCrossentropy",
        {"axis": 1, "from_logits": True},
        lambda t: (probabilities(ROWS, 3, CLASSES, dtype=t), random(ROWS, 3, CLASSES, dtype=t)),
    ),
    "sparse": ("SparseCategoricalCrossentropy", {}, lambda t: (labels(ROWS), probabilities(ROWS, CLASSES, dtype=t))),
    "sparse column": (
        "SparseCategoricalCrossentropy",
        {},
        lambda t: (labels(ROWS, 1), 2 * probabilities(ROWS, CLASSES, dtype=t)),
    ),
    "sparse logits": (
        "SparseCategoricalCrossentropy",
        {"from_logits": True},
        lambda t: (labels(ROWS), 3 * random(ROWS, CLASSES, dtype=t)),
    ),
    "sparse float labels": (
        "SparseCategoricalCrossentropy",
        {"from_logits": True},
        lambda t: (labels(ROWS, 2).astype(t), 3 * random(ROWS, 2, CLASSES, dtype=t)),
    ),
    "sparse axis": (
        "SparseCategoricalCrossentropy",
        {"from_logits": True, "axis": 1},
        lambda t: (labels(ROWS, 3), 3 * random(ROWS, CLASSES, 3, dtype=t)),
    ),
    "sparse ignoring": (
        "SparseCategoricalCrossentropy",
        {"from_logits": True, "ignore_class": 2},
        lambda t: (labels(ROWS, 3), 3 * random(ROWS, 3, CLASSES, dtype=t)),
    ),
    "sparse ignoring -1": (
        "SparseCategoricalCrossentropy",
        {"from_logits": True, "ignore_class": -1},
        lambda t: (labels(ROWS, 3) - 1, 3 * random(ROWS, 3, CLASSES, dtype=t)),
    ),
}
REDUCTIONS = ["sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", None]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("case", LOSSES)
def test_losses(case: str, reduction: str | None, weighted: bool, dtype: str) -> None:
    name, options, data = LOSSES[case]
    true, predicted = data(dtype)
    theirs = getattr(keras.losses, name)(**options, reduction=reduction)
    point = torch.tensor(predicted, requires_grad=True)
    per_sample = theirs.call(torch.tensor(true), point)
    weight = np.abs(random(*(per_sample.shape or (ROWS,)), dtype=dtype, seed=9)) if weighted else None
    expected = theirs(torch.tensor(true), point, sample_weight=None if weight is None else torch.tensor(weight))
    expected.backward(torch.ones_like(expected))

    y_true = mg.input("y_true", (None, *true.shape[1:]), true.dtype)
    y_pred = mg.input("y_pred", (None, *predicted.shape[1:]), dtype)
    feeds = {y_true: true, y_pred: predicted}
    y_weight = None
    if weight is not None:
        y_weight = mg.input("weight", (None, *weight.shape[1:]), dtype)
        feeds[y_weight] = weight
    loss = getattr(losses, name)(**options, reduction=reduction)(y_true, y_pred, y_weight)
    found, gradient = run([loss, mg.grad(mg.sum(loss), [y_pred])[0]], feeds)
    assert found.dtype == gradient.dtype == dtype
    assert_close(found, as_numpy(expected.detach()), dtype, "value")
    assert_close(gradient, as_numpy(point.grad), dtype, "gradient")


@pytest.mark.parametrize(
    ("name", "activation", "true"),
    [
        ("BinaryCrossentropy", "sigmoid", labels(ROWS, CLASSES) % 2),
        ("CategoricalCrossentropy", "softmax", np.eye(CLASSES)[labels(ROWS)]),
        ("SparseCategoricalCrossentropy", "softmax", labels(ROWS)),
    ],
)
def test_losses_of_activations_that_are_fused(name: str, activation: str, true: Array, dtype: str) -> None:
    value = 2 * random(ROWS, CLASSES, dtype=dtype)
    x = mg.input("x", (ROWS, CLASSES), dtype)
    loss = getattr(losses, name)()(true, getattr(activations, activation)(x))
    found, gradient = run([loss, mg.grad(loss, [x])[0]], {x: value})
    point = torch.tensor(value, requires_grad=True)
    expected = getattr(keras.losses, name)()(torch.tensor(true), getattr(keras.activations, activation)(point))
    expected.backward()
    assert_close(found, as_numpy(expected.detach()), dtype, "value")
    assert_close(gradient, as_numpy(point.grad), dtype, "gradient")


METRICS: dict[str, tuple[str, dict[str, Any], Callable[[int], tuple[Array, Array]]]] = {
    "accuracy": ("Accuracy", {}, lambda n: (labels(n, 2), labels(n, 2, seed=1))),
    "binary": ("BinaryAccuracy", {}, lambda n: (labels(n, 2) % 2, probabilities(n, 2, dtype="f4"))),
    "binary threshold": (
        "BinaryAccuracy",
        {"threshold": 0.3},
        lambda n: (labels(n, 1) % 2, probabilities(n, 2, dtype="f4")[:, :1]),
    ),
    "binary expanded": ("BinaryAccuracy", {}, lambda n: (labels(n) % 2, probabilities(n, 2, dtype="f4")[:, :1])),
    "categorical": (
        "CategoricalAccuracy",
        {},
        lambda n: (np.eye(CLASSES)[labels(n)], probabilities(n, CLASSES, dtype="f4")),
    ),
    "sparse": ("SparseCategoricalAccuracy", {}, lambda n: (labels(n), probabilities(n, CLASSES, dtype="f4"))),
    "sparse column": ("SparseCategoricalAccuracy", {}, lambda n: (labels(n, 1), probabilities(n, CLASSES, dtype="f4"))),
    "sparse images": (
        "SparseCategoricalAccuracy",
        {},
        lambda n: (labels(n, 3), probabilities(n, 3, CLASSES, dtype="f4")),
    ),
    "top k": (
        "TopKCategoricalAccuracy",
        {"k": 2},
        lambda n: (np.eye(CLASSES)[labels(n)], probabilities(n, CLASSES, dtype="f4")),
    ),
    "sparse top k": (
        "SparseTopKCategoricalAccuracy",
        {"k": 2},
        lambda n: (labels(n), probabilities(n, CLASSES, dtype="f4")),
    ),
    "sparse sorted": (
        "SparseTopKCategoricalAccuracy",
        {"k": 2, "from_sorted_ids": True},
        lambda n: (labels(n), np.argsort(probabilities(n, CLASSES, dtype="f4"))),
    ),
    "binary crossentropy": ("BinaryCrossentropy", {}, lambda n: (labels(n, 2) % 2, probabilities(n, 2, dtype="f4"))),
    "crossentropy": (
        "CategoricalCrossentropy",
        {"label_smoothing": 0.1},
        lambda n: (np.eye(CLASSES)[labels(n)], probabilities(n, CLASSES, dtype="f4")),
    ),
    "sparse crossentropy": (
        "SparseCategoricalCrossentropy",
        {"from_logits": True},
        lambda n: (labels(n), random(n, CLASSES, dtype="f4")),
    ),
    "sparse crossentropy ignoring": (
        "SparseCategoricalCrossentropy",
        {"ignore_class": 1},
        lambda n: (labels(n), probabilities(n, CLASSES, dtype="f4")),
    ),
    "mse": ("MeanSquaredError", {}, lambda n: (random(n, 3, dtype="f4"), random(n, 3, dtype="f4", seed=2))),
    "mae": ("MeanAbsoluteError", {}, lambda n: (random(n, dtype="f4"), random(n, 1, dtype="f4", seed=2))),
    "rmse": ("RootMeanSquaredError", {}, lambda n: (random(n, 3, dtype="f4"), random(n, 3, dtype="f4", seed=2))),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("case", METRICS)
def test_metrics(case: str, weighted: bool) -> None:
    name, options, data = METRICS[case]
    ours, theirs = getattr(metrics, name)(**options), getattr(keras.metrics, name)(**options)
    for rows in (7, 4):
        true, predicted = data(rows)
        weight = np.abs(random(rows, dtype="float32", seed=3)) if weighted else None
        ours.update_state(true, predicted, weight)
        theirs.update_state(true, predicted, weight)
        assert_close(ours.result(), float(theirs.result()), "float32", name)
    assert ours.name == theirs.name


COMMON_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "learning rate": {"learning_rate": 0.07},
    "weight decay": {"weight_decay": 0.05},
    "clipnorm": {"clipnorm": 0.7},
    "clipvalue": {"clipvalue": 0.4},
    "global clipnorm": {"global_clipnorm": 0.9},
    "average": {"use_ema": True, "ema_momentum": 0.8},
    "overwriting": {"use_ema": True, "ema_momentum": 0.6, "ema_overwrite_frequency": 2},
    "scaled": {"loss_scale_factor": 8.0},
    "accumulating": {"gradient_accumulation_steps": 2},
    "accumulating and all": {
        "gradient_accumulation_steps": 2,
        "use_ema": True,
        "ema_overwrite_frequency": 2,
        "ema_momentum": 0.7,
        "weight_decay": 0.1,
        "global_clipnorm": 0.5,
        "loss_scale_factor": 2.0,
    },
}
RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {}),
    "sgd momentum": ("SGD", {"momentum": 0.9}),
    "sgd nesterov": ("SGD", {"momentum": 0.8, "nesterov": True}),
    "rmsprop": ("RMSprop", {}),
    "rmsprop momentum": ("RMSprop", {"rho": 0.8, "momentum": 0.7, "epsilon": 1e-5}),
    "rmsprop centered": ("RMSprop", {"centered": True}),
    "rmsprop centered momentum": ("RMSprop", {"centered": True, "momentum": 0.5}),
    "adam": ("Adam", {}),
    "adam amsgrad": ("Adam", {"amsgrad": True, "beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-4}),
}


@pytest.mark.parametrize("options", COMMON_OPTIONS)
@pytest.mark.parametrize("rule", RULES)
def test_five_steps_of_optimizers(rule: str, options: str, dtype: str) -> None:
    name, arguments = RULES[rule]
    arguments = {"name": "rule", **arguments, **COMMON_OPTIONS[options]}
    values = {"kernel": random(4, 3, dtype=dtype), "bias": random(3, dtype=dtype, seed=1)}
    steps = [
        {key: random(*value.shape, dtype=dtype, seed=7 + 2 * n + len(value)) for key, value in values.items()}
        for n in range(5)
    ]

    theirs = getattr(keras.optimizers, name)(**arguments)
    variables = [keras.Variable(value, name=key, dtype=dtype) for key, value in values.items()]
    ours = getattr(optimizers, name)(**arguments)
    parameters = [mg.parameter(value, name=key) for key, value in values.items()]
    gradients = [mg.input(f"d_{key}", value.shape, dtype) for key, value in values.items()]
    step = mg.function(gradients, [], ours.updates(gradients, parameters))
    slots = {node.name: node for node in ours.variables}
    for number, given in enumerate(steps):
        theirs.apply([torch.tensor(gradient) for gradient in given.values()], variables)
        step(*given.values())
        for key, parameter, variable in zip(values, parameters, variables, strict=True):
            assert_close(parameter.value, as_numpy(variable), dtype, f"{key} after step {number}")
    for variable in theirs.variables:
        found = slots[_slot_name(variable.path, values)]
        assert_close(found.value, as_numpy(variable), dtype, found.name)
    assert len(slots) == len(theirs.variables)


def _slot_name(path: str, parameters: Any) -> str:
    """Our name of the variable that Keras calls ``rule/kernel_momentum``."""
    scope, _, name = path.rpartition("/")
    for parameter in parameters:
        name = name.replace(f"{parameter}_", f"{parameter}/", 1) if name.startswith(parameter) else name
    return f"{scope}/{name}"


SIGNATURES = [
    *(("losses", name) for name in sorted({entry[0] for entry in LOSSES.values()})),
    *(("metrics", name) for name in sorted({"Mean", *(entry[0] for entry in METRICS.values())})),
    *(("optimizers", name) for name in sorted({entry[0] for entry in RULES.values()})),
    *(("activations", name) for name in sorted({case.split()[0] for case in ACTIVATIONS})),
]


@pytest.mark.parametrize(("module", "name"), SIGNATURES)
def test_arguments_have_the_names_order_and_defaults_of_keras(module: str, name: str) -> None:
    ours, theirs = (
        [
            (parameter.name, parameter.default)
            for parameter in inspect.signature(getattr(getattr(library, module), name)).parameters.values()
            if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        ]
        for library in (miai_graph, keras)
    )
    assert ours == theirs
