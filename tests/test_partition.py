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
    x = layers.Input((5,), dtype="float64")
    h = layers.Dense(
        96,
        activation="tanh",
        kernel_regularizer=regularizers.L2(1e-2),
        kernel_constraint=MaxNorm(0.5),
        **FLOAT64,
    )(x)
    h = layers.Dropout(0.3, **FLOAT64)(layers.BatchNormalization(**FLOAT64)(h))
    h = layers.Dense(110, kernel_constraint=MaxNorm(0.5), bias_regularizer=regularizers.L1(1e-2), **FLOAT64)(h)
    h = layers.BatchNormalization(**FLOAT64)(h)
    return mg.Model(x, layers.Dense(3, activity_regularizer=regularizers.L2(1e-2), **FLOAT64)(mg.relu(h)))


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


def trained(make: Callable[[], mg.Model], make_optimizer, executor, **options) -> list[np.ndarray]:
    """What a model has after two epochs with an uneven last batch."""
    mg.set_seed(0)
    model = make()
    rng = np.random.default_rng(1)
    x = rng.integers(0, 700, (23, 5)) if model.inputs[0].dtype.kind == "i" else rng.normal(size=(23, 5))
    loss = "sparse_categorical_crossentropy_from_logits"
    model.compile(make_optimizer(), mg.losses.SparseCategoricalCrossentropy(from_logits=True), ["accuracy"], **options)
    weights = rng.uniform(0.5, 2, 23)
    history = model.fit(
        x, rng.integers(0, 3, 23), 10, 2, sample_weight=weights, verbose=0, executor=executor
    )
    return [*map(np.asarray, history.history.values()), *(node.value for node in model.variables)]
