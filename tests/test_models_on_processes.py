"""Every layer, loss, metric and optimizer, trained and evaluated by one to three workers as by this process alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from layer_samples import SAMPLES, LayerSample

import miai_graph as mg
from executors import Processes, Serial
from executors.processes import executor as executor_module
from executors.processes.choice import STEPS_WITH_FEWER, TRIAL_STEPS, WorkerChoice, candidates
from executors.processes.pool import Pool
from miai_graph import layers, losses, metrics, optimizers
from miai_graph.executor import Executor

SIZE = 14
"""Samples: an uneven last batch of 2 behind three of 4, which is fewer than three workers."""


@pytest.fixture(scope="module", params=[1, 2, 3])
def pool(request: pytest.FixtureRequest) -> Iterator[Executor]:
    with Processes(request.param, wait_for_workers=True) as made:
        yield made


def trained(model: mg.Model, x: Any, y: Any, executor: Executor, **options: Any) -> list[np.ndarray]:
    """The figures of training, evaluation and prediction, and the weights after two epochs."""
    history = model.fit(x, y, batch_size=4, epochs=2, validation_split=0.2, executor=executor, verbose=0, **options)
    figures = [np.asarray(values) for values in history.history.values()]
    found = model.evaluate(x, y, batch_size=5, executor=executor, verbose=0)
    predicted = model.predict(x, batch_size=3, executor=executor, verbose=0)
    return [*figures, np.asarray(found), predicted, *model.get_weights()]


def assert_same(make: Callable[[], mg.Model], x: Any, y: Any, pool: Executor, **options: Any) -> None:
    """Training on the pool gives what it gives on one thread, in float64."""
    results = []
    for executor in (Serial(threads=1), pool):
        mg.set_seed(3)
        results.append(trained(make(), x, y, executor, **options))
        if executor is not pool:
            executor.close()
    for found, expected in zip(*reversed(results), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9)


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def classifier(**compiling: Any) -> mg.Model:
    model = mg.Sequential(
        [
            layers.Input((6,), dtype="float64"),
            layers.Dense(8, activation="tanh", kernel_regularizer="l2", dtype="float64"),
            layers.BatchNormalization(dtype="float64"),
            layers.Dropout(0.3),
            layers.Dense(3, activation="softmax", dtype="float64"),
        ]
    )
    options = {"optimizer": "sgd", "loss": "sparse_categorical_crossentropy"} | compiling
    model.compile(**options)
    return model


X, LABELS = numbers(SIZE, 6), np.random.default_rng(1).integers(0, 3, SIZE)
ONE_HOT = np.eye(3)[LABELS]


def trainable_samples() -> list[LayerSample]:
    return [sample for sample in SAMPLES if all(value.dtype == "float" for value in sample.values)]


@pytest.mark.parametrize("sample", trainable_samples(), ids=lambda sample: sample.title)
def test_layers(sample: LayerSample, pool: Executor) -> None:
    def make() -> mg.Model:
        inputs = [layers.Input(value.shape[1:], dtype="float64") for value in sample.values]
        layer = sample.layer()
        output = layer(inputs[0] if len(inputs) == 1 else inputs)
        model = mg.Model(inputs, layers.Dense(1, dtype="float64")(layers.Flatten()(output)))
        model.compile(optimizer=optimizers.SGD(0.01), loss="mse")
        return model

    x = sample.arrays(SIZE)
    assert_same(make, x, numbers(SIZE, 1, seed=9), pool)


OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "SGD": lambda: optimizers.SGD(0.1),
    "SGD Nesterov": lambda: optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "RMSprop centered": lambda: optimizers.RMSprop(0.01, momentum=0.5, centered=True),
    "Adam": lambda: optimizers.Adam(0.01),
    "Adam amsgrad, weight decay": lambda: optimizers.Adam(0.01, amsgrad=True, weight_decay=0.1),
    "clipnorm": lambda: optimizers.SGD(0.1, clipnorm=0.1),
    "clipvalue": lambda: optimizers.SGD(0.1, clipvalue=0.05),
    "global_clipnorm": lambda: optimizers.Adam(0.01, global_clipnorm=0.2),
    "averages": lambda: optimizers.SGD(0.1, use_ema=True, ema_overwrite_frequency=3),
    "accumulation": lambda: optimizers.Adam(0.01, gradient_accumulation_steps=2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name: str, pool: Executor) -> None:
    assert_same(lambda: classifier(optimizer=OPTIMIZERS[name]()), X, LABELS, pool)


LOSSES: dict[str, tuple[Any, np.ndarray]] = {
    "SparseCategoricalCrossentropy": (losses.SparseCategoricalCrossentropy(), LABELS),
    "CategoricalCrossentropy": (losses.CategoricalCrossentropy(label_smoothing=0.1), ONE_HOT),
    "BinaryCrossentropy": (losses.BinaryCrossentropy(), ONE_HOT),
    "MeanSquaredError": (losses.MeanSquaredError(), ONE_HOT),
    "MeanAbsoluteError": (losses.MeanAbsoluteError(), ONE_HOT),
    "Huber": (losses.Huber(0.2), ONE_HOT),
    "a sum": (losses.MeanSquaredError(reduction="sum"), ONE_HOT),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str, pool: Executor) -> None:
    loss, y = LOSSES[name]
    assert_same(lambda: classifier(loss=loss), X, y, pool)


def test_metrics(pool: Executor) -> None:
    def make() -> mg.Model:
        found = [metrics.CategoricalAccuracy(), metrics.TopKCategoricalAccuracy(2), metrics.MeanSquaredError()]
        found += [metrics.CategoricalCrossentropy(), metrics.BinaryAccuracy(), metrics.MeanAbsoluteError()]
        return classifier(loss="categorical_crossentropy", metrics=found, weighted_metrics=["accuracy"])

    assert_same(make, X, ONE_HOT, pool, sample_weight=np.linspace(0.1, 2, SIZE))


def test_class_weights(pool: Executor) -> None:
    assert_same(classifier, X, LABELS, pool, class_weight={0: 3.0, 2: 0.5})


def test_constraints_and_shared_weights(pool: Executor) -> None:
    def make() -> mg.Model:
        shared = layers.Dense(6, kernel_constraint="max_norm", bias_constraint="non_neg", dtype="float64")
        x = layers.Input((6,), dtype="float64")
        model = mg.Model(x, layers.Dense(3, activation="softmax", dtype="float64")(shared(shared(x))))
        model.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
        return model

    assert_same(make, X, LABELS, pool)


def test_large_parameters_are_cut_between_workers(pool: Executor) -> None:
    def make() -> mg.Model:
        model = mg.Sequential(
            [
                layers.Input((6,), dtype="float64"),
                layers.Dense(150, activation="relu", dtype="float64"),
                layers.Dense(150, activation="relu", dtype="float64"),
                layers.Dense(3, dtype="float64"),
            ]
        )
        model.compile(
            optimizer=optimizers.Adam(0.01, global_clipnorm=1.0),
            loss=losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        return model

    assert_same(make, X, LABELS, pool)


def test_batches_from_a_generator(pool: Executor) -> None:
    results = []
    for executor in (Serial(threads=1), pool):
        mg.set_seed(3)
        model = classifier()
        batches = ((X[start : start + 5], LABELS[start : start + 5]) for _ in range(4) for start in (0, 5, 10))
        history = model.fit(batches, steps_per_epoch=6, epochs=2, executor=executor, verbose=0)
        results.append([np.asarray(history.history["loss"]), *model.get_weights()])
        if executor is not pool:
            executor.close()
    for found, expected in zip(*reversed(results), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)


def test_arrays_changed_between_two_calls_are_seen(pool: Executor) -> None:
    model, x = classifier(), X.copy()
    first = model.predict(x, executor=pool, verbose=0)
    x *= -1
    second = model.predict(x, executor=pool, verbose=0)
    with Serial(threads=1) as alone:
        np.testing.assert_allclose(second, model.predict(x, executor=alone, verbose=0), rtol=1e-9)
    assert abs(first - second).max() > 1e-3


def test_executors_take_turns_on_one_model(pool: Executor) -> None:
    """Values move between the memory of this process and that of the workers, with or without a second array."""
    results = []
    with Serial(threads=1) as alone:
        for executors in ((alone, alone, alone, alone), (pool, alone, pool, alone)):
            mg.set_seed(3)
            model = classifier()
            found = [model.predict(X, executor=executors[0], verbose=0)]
            for executor in executors[1:]:
                model.fit(X, LABELS, batch_size=4, executor=executor, verbose=0)
                found.append(model.predict(X, executor=executor, verbose=0))
            results.append([*found, *model.get_weights()])
    for found, expected in zip(*reversed(results), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


def test_where_memory_has_names_and_there_are_no_bells(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS and Windows."""
    monkeypatch.setattr(executor_module, "Pool", partial(Pool, kind="named", has_bells=False))
    with Processes(2, wait_for_workers=True) as made:
        assert_same(classifier, X, LABELS, made)


def run_choice(choice: WorkerChoice, seconds: dict[int, float], steps: int, waiting: float = 0.5) -> None:
    for _ in range(steps):
        choice.add(seconds[choice.workers], waiting)


def test_the_number_of_workers_is_that_measured_to_be_fastest() -> None:
    assert candidates(6) == [6, 3, 1]
    choice = WorkerChoice(candidates(4))
    run_choice(choice, {4: 3.0, 2: 1.0, 1: 2.0}, 3 * TRIAL_STEPS)
    assert (choice.is_decided, choice.workers) == (True, 2)
    assert "2 workers of 4 used" in (choice.describe() or "")
    run_choice(choice, {4: 1.0, 2: 1.0, 1: 2.0}, STEPS_WITH_FEWER + 3 * TRIAL_STEPS)
    assert (choice.is_decided, choice.workers) == (True, 4)
    assert choice.describe() is None


def test_nothing_is_tried_where_nobody_waits_in_a_long_step() -> None:
    choice = WorkerChoice(candidates(2))
    run_choice(choice, {2: 1.0}, TRIAL_STEPS, waiting=0.01)
    assert (choice.is_decided, choice.workers) == (True, 2)
    short = WorkerChoice(candidates(2))
    run_choice(short, {2: 1e-4, 1: 5e-5}, 2 * TRIAL_STEPS, waiting=0.01)
    assert (short.is_decided, short.workers) == (True, 1)


def test_a_run_tells_that_fewer_workers_were_used() -> None:
    x, w = mg.input("x", (None, 2)), mg.parameter(np.ones(2, "f4"), "w")
    with Processes(2, wait_for_workers=True) as pool:
        step = mg.function([x], [mg.mean(x * w)], {w: w * 0.5}, pool)
        for _ in range(3 * TRIAL_STEPS + 3):
            step(np.ones((8, 2), "f4"))
        choice = step.executable._choices[8]
        assert choice.is_decided
        assert (choice.workers == 1) == ("at batch size 8: 1 worker of 2 used" in str(step.timing))
