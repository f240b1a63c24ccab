"""`reproducible=True`: a batch is computed in shards, and bits do not depend on which worker computes which shard."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from drawn_graphs import DrawnGraph, drawn_graphs
from hypothesis import given, settings
from reference_executor import Reference, ReferenceExecutable
from test_partition import updates_of_all_kinds

import miai_graph as mg
from executors import Processes, Serial
from executors.threads import limited_blas
from miai_graph import layers, losses, optimizers
from miai_graph.errors import ArgumentError
from miai_graph.feeding import check_batch, check_inputs
from miai_graph.interpreter import evaluate
from miai_graph.ops.leaves import variable_of
from miai_graph.passes.batch_analysis import analyse_batch
from miai_graph.passes.partition import partition
from miai_graph.passes.simplify import simplify
from miai_graph.plan.bound import BoundPlan
from miai_graph.plan.exchange import Exchange
from miai_graph.plan.memory import Workspace
from miai_graph.plan.parts import cut_batch, parts_of
from miai_graph.plan.program import make_program
from miai_graph.state import aligned_bytes, state


def mlp() -> mg.Model:
    """One kernel is large enough to be updated in slices."""
    return mg.Sequential(
        [
            layers.Input((20,)),
            layers.Dense(96, activation="relu"),
            layers.Dense(130, activation="tanh", kernel_regularizer="l2"),
            layers.Dense(5),
        ]
    )


def cnn() -> mg.Model:
    return mg.Sequential(
        [
            layers.Input((20,)),
            layers.Reshape((5, 4, 1)),
            layers.Conv2D(8, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.Activation("relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(16, 2, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dropout(0.3),
            layers.Dense(300, activation="relu"),
            layers.Dense(5),
        ]
    )


class SelfAttention(layers.Layer):
    def __init__(self, heads: int, **options):
        super().__init__(**options)
        self.heads = heads

    def build(self, input_shape):
        self.project_in = layers.Dense(3 * input_shape[-1], name="project_in")
        self.project_out = layers.Dense(input_shape[-1], name="project_out")

    def call(self, x):
        _, length, width = x.shape
        size = width // self.heads
        parts = self.project_in(x).reshape((None, length, 3, self.heads, size))
        q, k, v = (mg.transpose(parts[:, :, part], (0, 2, 1, 3)) for part in range(3))
        weights = mg.softmax(q @ mg.transpose(k, (0, 1, 3, 2)) * (1 / math.sqrt(size)))
        return self.project_out(mg.transpose(weights @ v, (0, 2, 1, 3)).reshape((None, length, width)))


def transformer() -> mg.Model:
    x = layers.Input((20,), dtype="int64")
    h = layers.Embedding(300, 32)(x)
    h = h + SelfAttention(4)(layers.LayerNormalization()(h))
    h = h + layers.Dense(32)(layers.Dense(64, activation="relu")(layers.LayerNormalization()(h)))
    return mg.Model(x, layers.Dense(5)(layers.LayerNormalization()(mg.mean(h, 1))))


MODELS: dict[str, Callable[[], mg.Model]] = {"mlp": mlp, "cnn": cnn, "transformer": transformer}
of_each_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
SAMPLES = 53
"""Five batches of 11, the last one of 9."""


def data_for(model: mg.Model) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    is_text = model.inputs[0].dtype.kind == "i"
    x = rng.integers(0, 300, (SAMPLES, 20)) if is_text else rng.normal(size=(SAMPLES, 20)).astype("f4")
    return x, rng.integers(0, 5, SAMPLES)


def trained(make: Callable[[], mg.Model], executor, batch_size: int = 11) -> list[np.ndarray]:
    """Loss and metrics of an epoch, those of a test, predictions, and all variables."""
    mg.set_seed(0)
    model = make()
    loss = mg.losses.SparseCategoricalCrossentropy(from_logits=True)
    with executor:
        model.compile(optimizers.Adam(0.003, global_clipnorm=1.0), loss, metrics=["accuracy"], executor=executor)
        x, y = data_for(model)
        history = model.fit(x, y, batch_size, verbose=0).history
        figures = [*(np.asarray(values) for values in history.values()), *model.evaluate(x, y, batch_size, verbose=0)]
        predicted = model.predict(x, batch_size, verbose=0)
    return [*map(np.asarray, figures), predicted, *(n.value for n in (*model.weights, *model.optimizer.variables))]


def reproducible(shards: int = 8) -> Serial:
    return Serial(reproducible=True, shards=shards)


def assert_equal_bits(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for value, wanted in zip(found, expected, strict=True):
        assert value.dtype == wanted.dtype
        assert value.tobytes() == wanted.tobytes()


class Threads(Reference):
    """Runs the plans of so many workers in threads, over one exchange."""

    def __init__(self, count: int, shards: int = 8) -> None:
        self.count, self.shards = count, shards

    def compile(self, graph, inputs, outputs, updates):
        self.require_open()
        check_inputs(graph, inputs)
        return ThreadsExecutable(self, simplify(graph), inputs)


class Crew:
    """The plans for one batch size."""

    def __init__(self, graph: mg.Graph, batch_size: int, count: int, shards: int) -> None:
        self.parts = cut_batch(batch_size, shards)
        count = min(count, len(self.parts))
        self.barrier = threading.Barrier(count)
        memory: list[np.ndarray] = []

        def shared(size_bytes: int) -> np.ndarray:
            memory.append(memory[0] if memory else aligned_bytes(size_bytes))
            assert memory[0].size == size_bytes
            return memory[0]

        self.plans = []
        for worker in range(count):
            own = partition(graph, worker, count, is_reproducible=True)
            program = make_program(own.graph, own.exports, own.per_part)
            exchange = Exchange(program, batch_size, len(self.parts), shared)
            parts = parts_of(worker, count, self.parts)
            self.plans.append(BoundPlan(program, batch_size, state, Workspace(), parts, exchange, self.barrier.wait))

    def run(self, inputs, batch, step: int) -> list[np.ndarray]:
        with limited_blas(1), ThreadPoolExecutor(len(self.plans)) as pool:
            list(pool.map(lambda plan: self._run_one(plan, inputs, batch, step), self.plans))
        return [array.copy() for array in self.plans[0].bind(self.plans[0].turns()).outputs]

    def _run_one(self, plan: BoundPlan, inputs, batch, step: int) -> None:
        for position, node in enumerate(inputs):
            if node in plan.feeds:
                batch.copy_to(position, plan.feeds[node], slice(None) if node.type.batch_axes else None)
            for part, feeds in zip(plan.parts, plan.part_feeds, strict=True):
                if node in feeds:
                    batch.copy_to(position, feeds[node], part.rows)
        try:
            with np.errstate(all="ignore"):
                plan.run(step, plan.bind(plan.turns()))
        except BaseException:
            self.barrier.abort()
            raise


class ThreadsExecutable(ReferenceExecutable):
    def run(self, batches):
        variables, updated = map(variable_of, self.graph.variables), map(variable_of, self.graph.updates)
        state.place(variables, updated)
        generation, crews = state.generation, {}
        for batch in batches:
            assert state.generation == generation
            checked = check_batch(self.inputs, batch)
            if checked.size not in crews:
                crews[checked.size] = Crew(self.graph, checked.size, self.executor.count, self.executor.shards)
            outputs = crews[checked.size].run(self.inputs, checked, self.step)
            state.commit(state.numbers(map(variable_of, self.graph.updates)))
            self.step += 1
            yield outputs


@of_each_model
@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_bits_do_not_depend_on_the_number_of_workers(make: Callable[[], mg.Model], workers: int) -> None:
    assert_equal_bits(trained(make, Threads(workers)), trained(make, reproducible()))


@pytest.mark.parametrize(("workers", "shards", "batch_size"), [(2, 3, 11), (3, 3, 11), (2, 8, 3), (4, 5, 2), (2, 8, 1)])
def test_nor_do_they_with_other_shards_and_few_samples(workers: int, shards: int, batch_size: int) -> None:
    found = trained(mlp, Threads(workers, shards), batch_size)
    assert_equal_bits(found, trained(mlp, reproducible(shards), batch_size))


@of_each_model
def test_fifty_steps_in_processes_give_the_same_bits(make: Callable[[], mg.Model]) -> None:
    """Serial, and 1, 2, 3 and 4 workers; the last batch of each epoch is smaller."""

    def fifty_steps(executor) -> list[np.ndarray]:
        mg.set_seed(4)
        model = make()
        model.compile("adam", losses.SparseCategoricalCrossentropy(from_logits=True))
        x, y = data_for(model)
        history = model.fit(x, y, batch_size=11, epochs=10, executor=executor, verbose=0)
        assert model.optimizer.iterations.value == 50
        return [np.asarray(history.history["loss"]), *model.get_weights()]

    expected = fifty_steps(reproducible())
    for workers in (1, 2, 3, 4):
        with Processes(workers, reproducible=True, wait_for_workers=True) as pool:
            assert_equal_bits(fifty_steps(pool), expected)


@of_each_model
@pytest.mark.parametrize("shards", [1, 3, 8])
def test_results_are_those_of_whole_batches(make: Callable[[], mg.Model], shards: int) -> None:
    for found, wanted in zip(trained(make, reproducible(shards)), trained(make, Serial()), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=5e-5)


@of_each_model
def test_twice_gives_equal_bits(make: Callable[[], mg.Model]) -> None:
    assert_equal_bits(trained(make, reproducible()), trained(make, reproducible()))


@pytest.mark.parametrize("batch_size", [1, 3, 8, 53, 100])
def test_batches_smaller_than_the_shards_are_many(batch_size: int) -> None:
    for found, wanted in zip(trained(mlp, reproducible(), batch_size), trained(mlp, Serial(), batch_size), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=5e-5)


def test_what_cannot_be_split_is_run_whole() -> None:
    x, w = mg.input("x", (None, 3)), mg.parameter(np.ones(3, "f4"), "w")
    array = np.random.default_rng(0).normal(size=(9, 3)).astype("f4")
    order = mg.softmax(x * w, 0)
    with reproducible() as executor:
        step = mg.function([x], [order], {w: w + mg.sum(order, 0)}, executor)
        (found,) = step(array)
    np.testing.assert_allclose(found, np.exp(array) / np.exp(array).sum(0), rtol=1e-5)
    np.testing.assert_allclose(w.value, 2, rtol=1e-5)


def test_what_has_no_batch_is_run_whole() -> None:
    row, w = mg.input("row", (4,)), mg.parameter(np.ones(4, "f4"), "w")
    with reproducible() as executor:
        (found,) = mg.function([row], [mg.sum(row * w)], {w: w * 2.0}, executor)(np.arange(4, dtype="f4"))
    assert found == 6
    np.testing.assert_array_equal(w.value, 2)


def test_batches_on_another_axis_and_inputs_that_are_whole() -> None:
    x, row, y = mg.input("x", (None, 3)), mg.input("row", (4,)), mg.input("y", (None, 4))
    turned = mg.transpose(x)
    outputs = [mg.exp(turned), y + row, mg.sum(x), mg.max(y, 0), x @ (turned @ y), x, turned, row, y + row]
    outputs += [mg.reshape(y, (-1, 2)), mg.reshape(mg.exp(y), -1)]
    rng = np.random.default_rng(0)
    for size in (1, 7, 30):
        arrays = [rng.normal(size=shape).astype("f4") for shape in ((size, 3), (4,), (size, 4))]
        expected = mg.function([x, row, y], outputs)(*arrays)
        for shards in (1, 4, 8):
            with reproducible(shards) as executor:
                found = mg.function([x, row, y], outputs, executor=executor)(*arrays)
            for value, wanted in zip(found, expected, strict=True):
                np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-5)


@settings(max_examples=60)
@given(drawn_graphs())
def test_drawn_graphs(drawn: DrawnGraph) -> None:
    before = drawn.parameter.value
    for executor in (reproducible(3), reproducible(8), Threads(2, 5)):
        if isinstance(executor, Threads) and analyse_batch(drawn.graph).obstacles:
            continue
        step = mg.function(drawn.inputs, drawn.graph.outputs, drawn.graph.updates, executor)
        for batch_size in (7, 1, 4, 7):
            expected = drawn.values(drawn.graph, batch_size)
            found = step(*drawn.arrays(batch_size))
            for value, wanted in zip([*found, drawn.parameter.value], expected, strict=True):
                np.testing.assert_allclose(value, wanted, rtol=1e-6, atol=1e-7)
            mg.assign(drawn.parameter, before)


@pytest.mark.parametrize("executor", [reproducible(3), Threads(2), Threads(3, 5)], ids=["serial", "two", "three"])
def test_updates_of_all_kinds(executor) -> None:
    graph, inputs, arrays = updates_of_all_kinds()
    step = mg.function(inputs, graph.outputs, graph.updates, executor)
    for _ in range(3):
        outputs, updates = evaluate(graph, dict(zip(inputs, arrays, strict=True)), batch_size=7)
        found = [*step(*arrays), *(target.value for target in updates)]
        for value, wanted in zip(found, [*outputs, *updates.values()], strict=True):
            np.testing.assert_allclose(value, wanted, rtol=1e-9, atol=1e-9)


def test_bits_of_drawn_numbers_are_those_of_whole_batches() -> None:
    x = mg.input("x", (None, 3))
    outputs = [x + mg.random.uniform((None, 3)), mg.random.normal((None,)) + x[:, 0]]
    array = np.zeros((13, 3), "f4")
    expected = mg.function([x], outputs)(array)
    with reproducible() as executor:
        assert_equal_bits(mg.function([x], outputs, executor=executor)(array), expected)


@pytest.mark.parametrize("options", [{"shards": 0}, {"shards": 2.0}, {"threads": 2}, {"reproducible": "yes"}])
def test_arguments_are_checked(options: dict) -> None:
    with pytest.raises(ArgumentError, match="found"):
        Serial(**({"reproducible": True} | options))
