"""Every layer, loss, metric and optimizer, trained and evaluated by stages and replicas as by this process alone."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
from layer_samples import LayerSample
from test_executor_conformance import hosts_here
from test_models_on_processes import (
    LABELS,
    LOSSES,
    ONE_HOT,
    OPTIMIZERS,
    SIZE,
    X,
    assert_same,
    classifier,
    numbers,
    trainable_samples,
)

import miai_graph as mg
from executors import Serial
from miai_graph import callbacks, layers, losses, metrics, optimizers
from miai_graph.digits import load_digits
from miai_graph.executor import Executor

# Batch normalization in micro-batches gives the right numbers, and is slow: what is said of that is tested below.
pytestmark = pytest.mark.filterwarnings("ignore:expected micro-batches that go through the stages")

GRIDS = {
    "2 stages, 4 micro-batches": (2, 1, 4),
    "3 stages, gpipe": (3, 1, 3, "gpipe"),
    "2 replicas": (1, 2, 1),
    "3 stages, 2 replicas, 4 micro-batches": (3, 2, 4),
}
"""Stages, replicas, micro-batches, schedule. A last batch of 2 has fewer rows than there are micro-batches."""

TWO_GRIDS = "2 stages, 4 micro-batches", "3 stages, 2 replicas, 4 micro-batches"
of_two_grids = pytest.mark.parametrize("grid", [GRIDS[name] for name in TWO_GRIDS], ids=TWO_GRIDS, indirect=True)
"""For what grids differ little in."""

EXAMPLES = Path(__file__).parent.parent / "examples"


def grid_of(stages: int, replicas: int, micro_batches: int, schedule: str = "1f1b") -> Executor:
    return hosts_here(stages, replicas, micro_batches=micro_batches, schedule=schedule)


@pytest.fixture(scope="module", params=GRIDS.values(), ids=GRIDS)
def grid(request: pytest.FixtureRequest) -> Iterator[Executor]:
    with grid_of(*request.param) as made:
        yield made


@pytest.fixture(scope="module")
def pipeline() -> Iterator[Executor]:
    """One grid, for what all of them do alike."""
    with grid_of(2, 1, 2) as made:
        yield made


@of_two_grids
@pytest.mark.parametrize("sample", trainable_samples(), ids=lambda sample: sample.title)
def test_layers(sample: LayerSample, grid: Executor) -> None:
    def make() -> mg.Model:
        inputs = [layers.Input(value.shape[1:], dtype="float64") for value in sample.values]
        output = sample.layer()(inputs[0] if len(inputs) == 1 else inputs)
        model = mg.Model(inputs, layers.Dense(1, dtype="float64")(layers.Flatten()(output)))
        model.compile(optimizer=optimizers.SGD(0.01), loss="mse")
        return model

    assert_same(make, sample.arrays(SIZE), numbers(SIZE, 1, seed=9), grid)


MORE_OPTIMIZERS: dict[str, Callable[[], Any]] = OPTIMIZERS | {
    "all at once": lambda: optimizers.Adam(
        0.01, gradient_accumulation_steps=3, global_clipnorm=0.2, weight_decay=0.1, use_ema=True, loss_scale_factor=4.0
    ),
}


@of_two_grids
@pytest.mark.parametrize("name", MORE_OPTIMIZERS)
def test_optimizers(name: str, grid: Executor) -> None:
    assert_same(lambda: classifier(optimizer=MORE_OPTIMIZERS[name]()), X, LABELS, grid)


@of_two_grids
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str, grid: Executor) -> None:
    loss, y = LOSSES[name]
    assert_same(lambda: classifier(loss=loss), X, y, grid)


def test_metrics(grid: Executor) -> None:
    def make() -> mg.Model:
        found = [metrics.CategoricalAccuracy(), metrics.TopKCategoricalAccuracy(2), metrics.MeanSquaredError()]
        found += [metrics.CategoricalCrossentropy(), metrics.BinaryAccuracy(), metrics.RootMeanSquaredError()]
        return classifier(loss="categorical_crossentropy", metrics=found, weighted_metrics=["accuracy"])

    assert_same(make, X, ONE_HOT, grid, sample_weight=np.linspace(0.1, 2, SIZE))


def test_class_weights(grid: Executor) -> None:
    assert_same(classifier, X, LABELS, grid, class_weight={0: 3.0, 2: 0.5})


def test_constraints_and_shared_weights(grid: Executor) -> None:
    def make() -> mg.Model:
        shared = layers.Dense(6, kernel_constraint="max_norm", bias_constraint="non_neg", dtype="float64")
        x = layers.Input((6,), dtype="float64")
        h = layers.Dense(6, activation="tanh", dtype="float64")(shared(x))
        model = mg.Model(x, layers.Dense(3, activation="softmax", dtype="float64")(shared(h)))
        model.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
        return model

    assert_same(make, X, LABELS, grid)


def test_two_inputs_two_outputs_and_ways_around(grid: Executor) -> None:
    def figures(executor: Executor) -> list[np.ndarray]:
        mg.set_seed(3)
        first, second = (layers.Input((size,), dtype="float64", name=name) for name, size in (("a", 6), ("b", 3)))
        h = around = layers.Dense(8, activation="tanh", dtype="float64")(first)
        for _ in range(2):
            h = layers.Dense(8, activation="relu", activity_regularizer="l2", dtype="float64")(h)
        early = layers.Dense(2, name="early", dtype="float64")(h)
        h = layers.Concatenate()([layers.Add()([h, around]), second])
        model = mg.Model([first, second], [early, layers.Dense(1, name="late", dtype="float64")(h)])
        model.compile("adam", {"early": "mse", "late": "mae"}, {"early": 0.3, "late": 2.0}, ["mse"], executor=executor)
        rows, targets = [X, numbers(SIZE, 3)], [numbers(SIZE, 2, seed=1), numbers(SIZE, 1, seed=2)]
        history = model.fit(rows, targets, 4, 2, verbose=0)
        values = [*history.history.values(), *model.evaluate(rows, targets, 5, verbose=0)]
        return [*map(np.asarray, values), *model.predict(rows, 5, verbose=0), *model.get_weights()]

    with Serial(threads=1) as alone:
        expected = figures(alone)
    for found, wanted in zip(figures(grid), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)


def test_single_batches(grid: Executor) -> None:
    """Of sizes that come and go, trained and tested in turn."""

    def figures(executor: Executor) -> list[np.ndarray]:
        mg.set_seed(3)
        model = classifier(metrics=["accuracy"], executor=executor)
        found = []
        for size in (4, 1, 14, 4, 3):
            found.append(model.train_on_batch(X[:size], LABELS[:size], sample_weight=np.linspace(1, 2, size)))
            found.append(model.test_on_batch(X[:size], LABELS[:size]))
            found.append(model.predict_on_batch(X[:size]))
        return [*map(np.asarray, found), *model.get_weights()]

    with Serial(threads=1) as alone:
        expected = figures(alone)
    for found, wanted in zip(figures(grid), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-7, atol=1e-9)


class LayersAtEpochs(callbacks.Callback):
    """Reads and sets values in the middle of training."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[np.ndarray] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == 1:
            self.seen.append(self.model.get_weights()[0].copy())

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.optimizer.learning_rate = 0.1 / (epoch + 2)
        self.model.set_weights([0.9 * value for value in self.model.get_weights()])


def test_callbacks_that_read_and_set_values(grid: Executor) -> None:
    def figures(executor: Executor) -> list[np.ndarray]:
        mg.set_seed(3)
        model, reader = classifier(executor=executor), LayersAtEpochs()
        stopping = callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True)
        held_out = X[:5], LABELS[:5]
        history = model.fit(X, LABELS, 4, 4, verbose=0, validation_data=held_out, callbacks=[reader, stopping])
        return [np.asarray(history.history["val_loss"]), *reader.seen, *model.get_weights()]

    with Serial(threads=1) as alone:
        expected = figures(alone)
    for found, wanted in zip(figures(grid), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-7, atol=1e-9)


def test_batches_from_a_generator(pipeline: Executor) -> None:
    results = []
    for executor in (Serial(threads=1), pipeline):
        mg.set_seed(3)
        model = classifier()
        made = ((X[start : start + 5], LABELS[start : start + 5]) for _ in range(4) for start in (0, 5, 10))
        history = model.fit(made, steps_per_epoch=6, epochs=2, executor=executor, verbose=0)
        results.append([np.asarray(history.history["loss"]), *model.get_weights()])
        if executor is not pipeline:
            executor.close()
    for found, expected in zip(*reversed(results), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)


def test_arrays_changed_between_two_calls_are_seen(pipeline: Executor) -> None:
    model, x = classifier(), X.copy()
    first = model.predict(x, executor=pipeline, verbose=0)
    x *= -1
    second = model.predict(x, executor=pipeline, verbose=0)
    with Serial(threads=1) as alone:
        np.testing.assert_allclose(second, model.predict(x, executor=alone, verbose=0), rtol=1e-9)
    assert abs(first - second).max() > 1e-3


def test_executors_take_turns_on_one_model(grid: Executor) -> None:
    """Values move between this process and the hosts, also those of a stage that did not change them."""
    results = []
    with Serial(threads=1) as alone, grid_of(2, 1, 1) as other:
        for executors in ((alone,) * 5, (grid, alone, grid, other, grid)):
            mg.set_seed(3)
            model = classifier()
            found = [model.predict(X, executor=executors[0], verbose=0)]
            for executor in executors[1:]:
                model.fit(X, LABELS, batch_size=4, executor=executor, verbose=0)
                found.append(model.predict(X, executor=executor, verbose=0))
            results.append([*found, *model.get_weights()])
    for found, expected in zip(*reversed(results), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


def test_saved_and_loaded_in_the_middle_of_training(pipeline: Executor, tmp_path: Path) -> None:
    results = []
    with Serial(threads=1) as alone:
        for executor in (alone, pipeline):
            mg.set_seed(3)
            model = classifier(optimizer="adam", executor=executor)
            model.fit(X, LABELS, 4, verbose=0)
            model.save(tmp_path / "model.miai")
            again = mg.load_model(tmp_path / "model.miai")
            again.fit(X, LABELS, 4, executor=executor, verbose=0)
            results.append(again.get_weights())
    for found, expected in zip(*reversed(results), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


def test_frozen_layers_and_transfer(pipeline: Executor) -> None:
    def make() -> mg.Model:
        model = classifier()
        model.layers[0].trainable = False
        model.compile("adam", "sparse_categorical_crossentropy")
        return model

    assert_same(make, X, LABELS, pipeline)


def losses_of_example(name: str, executor: Executor) -> list[float]:
    """The loss after each epoch, on a part of the example's data."""
    example = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    mg.set_seed(0)
    if name == "digits_cnn":
        digits = load_digits()
        model, rows = example["make_model"](), (digits.train_images[:176], digits.train_labels[:176])
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], executor=executor)
    else:
        text = "\n".join(topics[key] for key in sorted(topics)).encode("ascii", "ignore").decode()[:20_000]
        alphabet = "".join(sorted(set(text)))
        windows = np.array([[alphabet.index(c) for c in text[start : start + 65]] for start in range(0, 8_800, 100)])
        model, rows = example["make_model"](len(alphabet), 32, 2, heads=4), (windows[:, :-1], windows[:, 1:])
        loss = losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizers.Adam(2e-3), loss, metrics=["accuracy"], executor=executor)
    history = model.fit(*rows, batch_size=32, epochs=3, verbose=0).history
    return [*history["loss"], *history["accuracy"]]


@pytest.mark.parametrize("name", ["digits_cnn", "character_transformer"])
def test_examples_learn_over_two_hosts_as_alone(name: str) -> None:
    with Serial(threads=1) as alone, hosts_here(2, 1) as hosts:
        expected = losses_of_example(name, alone)
        assert expected[2] < 0.9 * expected[0]
        np.testing.assert_allclose(losses_of_example(name, hosts), expected, rtol=2e-3, atol=4e-3)


def test_all_stages_and_replicas_take_part(grid: Executor) -> None:
    model = classifier(executor=grid)
    history = model.fit(X, LABELS, 7, verbose=0)
    computed = {record.worker for record in history.timing.records if record.phase == "backward"}
    assert computed == {worker.index for worker in grid.workers}


def test_what_makes_the_pipeline_run_empty_is_named() -> None:
    with grid_of(2, 1, 2) as hosts, pytest.warns(UserWarning, match=r"whole batch in mid-step[\s\S]*normalization"):
        classifier(executor=hosts).train_on_batch(X, LABELS)
