"""`Hosts(reproducible=True)`: the bits of `Serial` with as many shards, however graph and rows are dealt out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from test_executor_conformance import hosts_here
from test_reproducible import MODELS, assert_equal_bits, cnn, data_for, mlp, reproducible, trained, transformer

import miai_graph as mg
from executors import Hosts
from miai_graph import layers, losses, optimizers
from miai_graph.errors import ArgumentError
from miai_graph.executor import Executor

pytestmark = pytest.mark.filterwarnings("ignore:expected micro-batches that go through the stages")

GRIDS = {
    "1 stage": (1, 1, "1f1b"),
    "2 stages": (2, 1, "1f1b"),
    "2 replicas": (1, 2, "1f1b"),
    "3 stages, 2 replicas": (3, 2, "1f1b"),
    "3 stages, gpipe": (3, 1, "gpipe"),
    "2 stages, 2 replicas, gpipe": (2, 2, "gpipe"),
}
of_each_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
LARGE_GRIDS = {name: GRIDS[name] for name in ("3 stages, 2 replicas", "2 stages, 2 replicas, gpipe")}
of_large_grids = pytest.mark.parametrize("grid", LARGE_GRIDS.values(), ids=LARGE_GRIDS)


def alike(grid: tuple[int, int, str], shards: int = 8) -> Executor:
    stages, replicas, schedule = grid
    return hosts_here(stages, replicas, schedule=schedule, reproducible=True, shards=shards)


def tied() -> mg.Model:
    """An embedding whose transpose is used again on the last stage, with dropout and batch normalization between."""
    x = layers.Input((20,), dtype="int64")
    embedding = layers.Embedding(300, 24)
    h = layers.BatchNormalization()(layers.Dense(24, activation="relu")(mg.mean(embedding(x), 1)))
    h = layers.Dropout(0.3)(layers.Dense(24, activation="tanh")(h))
    return mg.Model(x, layers.Dense(5)(h @ mg.transpose(embedding.embeddings)))


ALL_MODELS: dict[str, Callable[[], mg.Model]] = MODELS | {"tied": tied}
of_each_model = pytest.mark.parametrize("make", ALL_MODELS.values(), ids=ALL_MODELS)


@pytest.fixture(scope="module")
def known() -> dict[Any, list[np.ndarray]]:
    """What this process alone gives."""
    return {}


@of_each_model
@of_each_grid
def test_bits_are_those_of_one_process(grid, make: Callable[[], mg.Model], known: dict) -> None:
    """Adam with the norm of all gradients, five batches and a smaller one, tests and predictions."""
    if make not in known:
        known[make] = trained(make, reproducible())
    assert_equal_bits(trained(make, alike(grid)), known[make])


@of_large_grids
@pytest.mark.parametrize("shards", [1, 4, 5])
def test_bits_with_other_shards(grid, shards: int, known: dict) -> None:
    if shards not in known:
        known[shards] = trained(cnn, reproducible(shards))
    assert_equal_bits(trained(cnn, alike(grid, shards)), known[shards])


@of_large_grids
@pytest.mark.parametrize(("shards", "batch_size"), [(8, 3), (8, 1), (5, 2), (3, 53)])
def test_batches_smaller_than_the_shards_are_many(grid, shards: int, batch_size: int, known: dict) -> None:
    key = shards, batch_size
    if key not in known:
        known[key] = trained(mlp, reproducible(shards), batch_size)
    assert_equal_bits(trained(mlp, alike(grid, shards), batch_size), known[key])


def thirty_steps(make: Callable[[], mg.Model], executor: Executor, **options: Any) -> list[np.ndarray]:
    mg.set_seed(4)
    model = make()
    model.compile(optimizers.Adam(0.003, **options), losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = data_for(model)
    with executor:
        history = model.fit(x, y, batch_size=11, epochs=6, executor=executor, verbose=0)
    assert model.optimizer.iterations.value == 30
    return [np.asarray(history.history["loss"]), *model.get_weights()]


OPTIONS: dict[str, dict[str, Any]] = {
    "averages, clipped values, decay": {"use_ema": True, "clipvalue": 0.01, "weight_decay": 0.1},
    "accumulation, clipped norms": {"gradient_accumulation_steps": 3, "clipnorm": 0.5},
}


@pytest.mark.parametrize(
    ("make", "options"),
    [
        *(pytest.param(make, {}, id=f"{make.__name__}, plain") for make in (cnn, transformer, tied)),
        *(pytest.param(cnn, options, id=f"cnn, {name}") for name, options in OPTIONS.items()),
    ],
)
def test_thirty_steps(make: Callable[[], mg.Model], options: dict[str, Any]) -> None:
    expected = thirty_steps(make, reproducible(), **options)
    for name in ("2 stages", "3 stages, 2 replicas"):
        assert_equal_bits(thirty_steps(make, alike(GRIDS[name]), **options), expected)


def test_hosts_and_this_process_may_take_turns() -> None:
    def after(executors: list[Executor]) -> list[np.ndarray]:
        mg.set_seed(4)
        model = tied()
        model.compile("adam", losses.SparseCategoricalCrossentropy(from_logits=True))
        x, y = data_for(model)
        for executor in executors:
            with executor:
                model.fit(x, y, batch_size=11, executor=executor, verbose=0)
        return model.get_weights()

    mixed = [reproducible(), alike(GRIDS["2 stages"]), alike(GRIDS["2 replicas"]), reproducible()]
    assert_equal_bits(after(mixed), after([reproducible() for _ in mixed]))


def test_weights_in_rows_of_samples_and_two_outputs() -> None:
    def figures(executor: Executor) -> list[np.ndarray]:
        mg.set_seed(2)
        x = layers.Input((7,))
        h = around = layers.Dense(40, activation="relu")(x)
        early = layers.Dense(2, name="early")(layers.Dropout(0.2)(h))
        h = layers.Dense(40, activation="tanh", kernel_regularizer="l2", kernel_constraint="max_norm")(h)
        model = mg.Model(x, [early, layers.Dense(1, name="late")(layers.Add()([h, around]))])
        rng = np.random.default_rng(3)
        rows, targets = rng.normal(size=(29, 7)), [rng.normal(size=(29, 2)), rng.normal(size=(29, 1))]
        with executor:
            model.compile("rmsprop", ["mse", "mae"], metrics=[["mae"], ["mse"]], executor=executor)
            weights = [rng.uniform(size=29), rng.uniform(size=29)]
            history = model.fit(rows, targets, 10, 3, sample_weight=weights, verbose=0, validation_split=0.2).history
            tested = model.evaluate(rows, targets, 10, verbose=0)
        return [*map(np.asarray, (*history.values(), *tested)), *model.get_weights()]

    expected = figures(reproducible())
    for grid in GRIDS.values():
        assert_equal_bits(figures(alike(grid)), expected)


def test_each_shard_is_a_micro_batch() -> None:
    with pytest.raises(ArgumentError, match=r"micro_batches='auto' with reproducible=True[\s\S]*found 4"):
        Hosts(reproducible=True, shards=8, micro_batches=4)
