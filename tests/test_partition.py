"""Workers' graphs: together they compute what the whole graph does, and each element of an update is written once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from drawn_graphs import DrawnGraph, drawn_graphs
from hypothesis import given, settings
from logical_workers import ByWorkers, barriers_of, evaluate_by_workers, partitions_of
from reference_executor import Reference
from test_executor_conformance import Classifier, batches

import miai_graph as mg
from miai_graph import layers, optimizers, regularizers
from miai_graph.constraints import MaxNorm
from miai_graph.errors import NotSplittableError
from miai_graph.interpreter import evaluate
from miai_graph.passes.batch_analysis import analyse_batch
from miai_graph.passes.partition import partition
from miai_graph.passes.simplify import simplify

COUNTS = (1, 2, 3, 5)
of_each_count = pytest.mark.parametrize("workers", COUNTS)
of_both_modes = pytest.mark.parametrize("is_reproducible", [False, True], ids=["fast", "reproducible"])


def assert_same(found, expected, tolerance: float = 1e-9) -> None:
    for value, wanted in zip(found, expected, strict=True):
        assert value.dtype == wanted.dtype
        assert value.shape == wanted.shape
        np.testing.assert_allclose(value, wanted, rtol=tolerance, atol=tolerance)


def assert_workers_agree(graph: mg.Graph, feeds, batch_size: int, workers: int, tolerance: float = 1e-9, **options):
    outputs, updates = evaluate(graph, feeds, batch_size=batch_size)
    found, changed = evaluate_by_workers(graph, feeds, batch_size, workers, **options)
    assert_same(found, outputs, tolerance)
    assert_same(changed.values(), updates.values(), tolerance)


@of_both_modes
@of_each_count
@pytest.mark.parametrize("batch_size", [7, 3])
def test_a_classifier_with_statistics_noise_and_slots(workers: int, batch_size: int, is_reproducible: bool) -> None:
    model = Classifier()
    graph = mg.Graph([model.loss, model.hits], model.updates)
    feeds = dict(zip([model.x, model.y], batches(batch_size)[0], strict=True))
    assert_workers_agree(graph, feeds, batch_size, workers, 2e-5, is_reproducible=is_reproducible)


@settings(max_examples=100)
@given(drawn_graphs())
def test_drawn_graphs(drawn: DrawnGraph) -> None:
    for graph in (drawn.graph, simplify(drawn.graph)):
        if analyse_batch(graph).obstacles:
            with pytest.raises(NotSplittableError):
                partition(graph, 0, 2)
            continue
        for workers in COUNTS:
            assert_workers_agree(graph, drawn.feeds(7), 7, workers)
            assert_workers_agree(graph, drawn.feeds(7), 7, workers, is_reproducible=True)


FLOAT64 = {"dtype": "float64"}


def dense_model() -> mg.Model:
    """One parameter is large enough to be cut into slices."""
    return mg.Sequential(
        [
            layers.Input((5,), dtype="float64"),
            layers.Dense(96, activation="tanh", **FLOAT64),
            layers.Dense(110, activation="relu", **FLOAT64),
            layers.Dense(3, **FLOAT64),
        ]
    )


def rich_model() -> mg.Model:
    """Without biases that batch normalization takes out again, for their gradients are rounding and nothing else."""
    x = layers.Input((5,), dtype="float64")
    first = {"kernel_regularizer": regularizers.L2(1e-2), "kernel_constraint": MaxNorm(0.5), "use_bias": False}
    h = mg.tanh(layers.Dense(96, **first, **FLOAT64)(x))
    h = layers.Dropout(0.3, **FLOAT64)(layers.BatchNormalization(**FLOAT64)(h))
    h = layers.Dense(110, kernel_constraint=MaxNorm(0.5), use_bias=False, **FLOAT64)(h)
    h = mg.relu(layers.BatchNormalization(**FLOAT64)(h))
    last = {"bias_regularizer": regularizers.L1(1e-2), "activity_regularizer": regularizers.L2(1e-2)}
    return mg.Model(x, layers.Dense(3, **last, **FLOAT64)(h))


def shared_weights() -> mg.Model:
    x = layers.Input((5,), dtype="float64")
    narrow, square = layers.Dense(100, activation="tanh", **FLOAT64), layers.Dense(100, **FLOAT64)
    h = square(mg.tanh(square(narrow(x)))) + mg.sum(narrow.kernel, 0)
    return mg.Model(x, layers.Dense(3, **FLOAT64)(h))


def embedding_model() -> mg.Model:
    x = layers.Input((5,), dtype="int64")
    h = layers.Embedding(700, 20, **FLOAT64)(x)
    h = layers.LayerNormalization(**FLOAT64)(h)
    return mg.Model(x, layers.Dense(3, **FLOAT64)(layers.Flatten()(h)))


def image_model() -> mg.Model:
    x = layers.Input((5,), dtype="float64")
    h = layers.Reshape((5, 1, 1))(x)
    h = layers.Conv2D(6, (3, 1), activation="relu", **FLOAT64)(h)
    h = layers.BatchNormalization(**FLOAT64)(h)
    h = layers.MaxPooling2D((2, 1), strides=1)(h)
    return mg.Model(x, layers.Dense(3, **FLOAT64)(layers.Flatten()(h)))


MODELS: dict[str, Callable[[], mg.Model]] = {
    "dense": dense_model,
    "rich": rich_model,
    "shared": shared_weights,
    "embedding": embedding_model,
    "image": image_model,
}
OPTIMIZERS: dict[str, Callable[[], optimizers.Optimizer]] = {
    "sgd": lambda: optimizers.SGD(0.05),
    "momentum": lambda: optimizers.SGD(0.05, momentum=0.9),
    "nesterov, decay": lambda: optimizers.SGD(0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "rmsprop": lambda: optimizers.RMSprop(0.01, momentum=0.5, centered=True, clipvalue=0.01),
    "adam": lambda: optimizers.Adam(0.01),
    "amsgrad, clipnorm": lambda: optimizers.Adam(0.01, amsgrad=True, clipnorm=0.1),
    "global_clipnorm": lambda: optimizers.Adam(0.01, global_clipnorm=0.2, weight_decay=0.01),
    "average": lambda: optimizers.SGD(0.05, use_ema=True, ema_momentum=0.8, ema_overwrite_frequency=2),
    "accumulation": lambda: optimizers.Adam(
        0.01, gradient_accumulation_steps=2, global_clipnorm=0.3, use_ema=True, loss_scale_factor=8.0
    ),
}


def data_for(model: mg.Model, count: int = 23) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    is_text = model.inputs[0].dtype.kind == "i"
    x = rng.integers(0, 700, (count, 5)) if is_text else rng.normal(size=(count, 5))
    return x, rng.integers(0, 3, count), rng.uniform(0.5, 2, count)


def compiled(make: Callable[[], mg.Model], optimizer: str, executor) -> mg.Model:
    mg.set_seed(0)
    model = make()
    loss = mg.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(OPTIMIZERS[optimizer](), loss, metrics=["accuracy"], weighted_metrics=["accuracy"], executor=executor)
    return model


def trained(make: Callable[[], mg.Model], optimizer: str, executor) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The figures, which are counted in float32, and all variables after two epochs with a last batch of three."""
    model = compiled(make, optimizer, executor)
    x, y, weights = data_for(model)
    history = model.fit(x, y, 10, 2, verbose=0, sample_weight=weights)
    figures = [np.asarray(values) for values in history.history.values()]
    return figures, [node.value for node in (*model.weights, *model.optimizer.variables)]


def assert_same_training(found, expected) -> None:
    assert_same(found[0], expected[0], 1e-6)
    assert_same(found[1], expected[1])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("make", [dense_model, rich_model], ids=["dense", "rich"])
def test_training_with_each_optimizer(make: Callable[[], mg.Model], optimizer: str) -> None:
    expected = trained(make, optimizer, Reference())
    for workers in COUNTS:
        assert_same_training(trained(make, optimizer, ByWorkers(workers)), expected)


@of_both_modes
@of_each_count
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_training_of_each_model(make: Callable[[], mg.Model], workers: int, is_reproducible: bool) -> None:
    expected = trained(make, "accumulation", Reference())
    found = trained(make, "accumulation", ByWorkers(workers, is_reproducible=is_reproducible))
    assert_same_training(found, expected)


def test_several_outputs() -> None:
    def figures(executor) -> list[np.ndarray]:
        mg.set_seed(0)
        x = layers.Input((4,), dtype="float64")
        h = layers.Dense(9, activation="relu", **FLOAT64)(x)
        model = mg.Model(x, [layers.Dense(2, name="a", **FLOAT64)(h), layers.Dense(1, name="b", **FLOAT64)(h)])
        model.compile("adam", {"a": "mse", "b": "mae"}, {"a": 0.3, "b": 2.0}, ["mse", "mae"], executor=executor)
        rng = np.random.default_rng(2)
        rows = rng.normal(size=(7, 4))
        targets = [rng.normal(size=(7, 2)), rng.normal(size=(7, 1))]
        history = model.fit(rows, targets, 5, 2, verbose=0)
        tested = model.evaluate(rows, targets, 5, verbose=0)
        predicted = model.predict(rows, 5, verbose=0)
        values = [np.asarray(value) for value in (*history.history.values(), *tested)]
        return [*values, *predicted, *(node.value for node in model.weights)]

    expected = figures(Reference())
    for workers in COUNTS:
        assert_same(figures(ByWorkers(workers)), expected)


def updates_of_all_kinds() -> tuple[mg.Graph, list[mg.Node], list[np.ndarray]]:
    """Swapped, fed whole, counted, reduced, put together, and two from one value; with inputs, and arrays for them."""
    x, row = mg.input("x", (None, 4), "float64"), mg.input("row", (9000,), "float64")
    rng = np.random.default_rng(0)
    a, b, c, d, e, f, g = (mg.variable(rng.normal(size=9000), name) for name in "abcdefg")
    total, greatest = mg.variable(np.zeros(4), "total"), mg.variable(np.zeros(4), "greatest")
    scalar, corner = mg.variable(np.array(0.5), "scalar"), mg.variable(np.ones((1, 1)), "corner")
    owed = mg.reshape(mg.broadcast_to(mg.reshape(mg.sum(x * x), (1, 1)), (90, 100)), -1)
    value = mg.tanh(c * 0.5 + owed)
    updates = {
        a: b,
        b: a,
        c: value,
        d: value,
        e: row * mg.sum(x),
        f: f + mg.reshape(mg.broadcast_to(corner, (90, 100)) * mg.sum(value), -1),
        g: mg.concatenate([value[:100], g[100:]]),
        total: total + mg.sum(x, 0),
        greatest: mg.max(x, 0),
        scalar: scalar + mg.mean(x),
        corner: corner * mg.mean(mg.square(value)),
    }
    graph = mg.Graph([mg.sum(value), x * scalar, mg.sum(x, 0), corner], updates)
    return graph, [x, row], [rng.normal(size=(7, 4)), rng.normal(size=9000)]


@of_both_modes
@of_each_count
def test_updates_of_all_kinds(workers: int, is_reproducible: bool) -> None:
    graph, inputs, arrays = updates_of_all_kinds()
    feeds = dict(zip(inputs, arrays, strict=True))
    for each in (graph, simplify(graph)):
        assert_workers_agree(each, feeds, 7, workers, is_reproducible=is_reproducible)


def test_a_slice_can_be_broadcast_from_a_matrix_of_one_element() -> None:
    x = mg.input("x", (None, 4), "float64")
    w = mg.variable(np.ones((100, 100)), "w")
    norm = mg.sum(x * x, keepdims=True)
    graph = mg.Graph([], {w: w * 0.5 + norm})
    assert_workers_agree(graph, {x: np.ones((6, 4))}, 6, 3)


def training_graph(make: Callable[[], mg.Model], optimizer: str) -> mg.Graph:
    executor = ByWorkers(1)
    model = compiled(make, optimizer, executor)
    model.train_on_batch(*data_for(model, 4))
    return executor.graphs[-1]


def normalized(count: int) -> mg.Model:
    model = mg.Sequential([layers.Input((5,), dtype="float64")])
    for _ in range(count):
        model.add(layers.Dense(9, **FLOAT64))
        model.add(layers.BatchNormalization(**FLOAT64))
    model.add(layers.Dense(3, **FLOAT64))
    return model


@pytest.mark.parametrize(
    ("make", "optimizer", "expected"),
    [
        (dense_model, "sgd", 1),
        (dense_model, "adam", 1),
        (dense_model, "rmsprop", 1),
        (dense_model, "average", 1),
        (dense_model, "global_clipnorm", 2),
        (lambda: normalized(1), "adam", 1 + 3),
        (lambda: normalized(2), "adam", 1 + 2 * 3),
    ],
)
def test_the_number_of_barriers(make: Callable[[], mg.Model], optimizer: str, expected: int) -> None:
    graph = training_graph(make, optimizer)
    counts = {len(barriers_of(own)) for own in partitions_of(graph, 3)}
    assert counts == {expected}


@of_both_modes
def test_workers_agree_on_what_they_owe_and_texts_are_readable(is_reproducible: bool) -> None:
    owns = partitions_of(training_graph(rich_model, "global_clipnorm"), 3, is_reproducible=is_reproducible)
    for own in owns:
        text = str(own.graph)
        assert "= barrier(" in text
        assert "= all_reduce(" in text
        assert "reduction='sum'" in text
        assert "update " in text
        names = {node.name: node for node in own.exports}
        assert len(names) == len(own.exports)
    assert "reduce_scatter(" in "".join(str(own.graph) for own in owns) or is_reproducible


@pytest.mark.parametrize("optimizer", ["momentum", "adam", "amsgrad, clipnorm", "global_clipnorm", "accumulation"])
@pytest.mark.parametrize("workers", [2, 3, 5])
def test_work_is_balanced(workers: int, optimizer: str) -> None:
    def uneven_model() -> mg.Model:
        widths = (400, 400, 20, 3)
        dense = [layers.Dense(width, activation="relu", **FLOAT64) for width in widths]
        return mg.Sequential([layers.Input((5,), dtype="float64"), *dense])

    owns = partitions_of(training_graph(uneven_model, optimizer), workers)
    elements = [sum(_prepared(target, value) for target, value in own.graph.updates.items()) for own in owns]
    assert max(elements) < 1.1 * sum(elements) / workers


def _prepared(target: mg.Node, value: mg.Node) -> int:
    return value.inputs[0].type.size if value.op.name == "all_gather" else target.type.size


def test_what_does_not_depend_on_rows_is_computed_first_in_its_level() -> None:
    for own in partitions_of(training_graph(rich_model, "adam"), 3):
        level, is_per_part = 0, False
        for node in own.graph.nodes:
            if node.op.name == "barrier":
                level, is_per_part = level + 1, False
            elif node.inputs:
                assert is_per_part <= (node in own.per_part)
                is_per_part = node in own.per_part
