"""`BatchNormalization(synchronized=False)`: each part of a batch is normalized with its own mean and variance.

What that is said to be, here: the parts are batches of their own, whose gradients are added up.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from logical_stages import ByStages, check_per_part, evaluate_by_stages
from logical_workers import ByWorkers
from reference_executor import Reference
from sampling import assert_close
from test_executor_conformance import hosts_here
from test_reproducible import assert_equal_bits, reproducible, trained

import miai_graph as mg
from executors import Hosts, Processes, Serial
from executors.hosts.in_process import InProcessCluster
from miai_graph import layers
from miai_graph.errors import ArgumentError, NotSplittableError, ShapeError
from miai_graph.executor import Executor
from miai_graph.interpreter import evaluate
from miai_graph.ops.leaves import batch_size, part_size
from miai_graph.ops.parts import _sum_of_part, _sum_over_parts, average_over_parts, each_part, mean_of_part
from miai_graph.passes.batch_analysis import analyse_batch
from miai_graph.passes.pipeline import Pipeline
from miai_graph.passes.simplify import simplify
from miai_graph.passes.stages import lay_out
from miai_graph.placement import LOCAL, Partial
from miai_graph.plan.parts import cut_batch
from miai_graph.split_interpreter import evaluate_split

FLOAT64 = {"dtype": "float64"}


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


class Network:
    """Dense layers with normalization between, a loss that is a sum over the rows, its gradients, moving averages."""

    def __init__(self, *, synchronized: bool, scale: bool = True, shared: bool = False) -> None:
        mg.set_seed(3)
        self.x, self.y = mg.input("x", (None, 5), "float64"), mg.input("y", (None, 2), "float64")
        norms = [
            layers.BatchNormalization(
                momentum=0.8, scale=scale, synchronized=synchronized, name=f"norm_{place}", **FLOAT64
            )
            for place in range(1 if shared else 2)
        ]
        parts: list[Any] = [
            layers.Dense(6, **FLOAT64),
            norms[0],
            layers.Activation("tanh", **FLOAT64),
            layers.Dense(6, **FLOAT64),
        ]
        parts += [norms[-1], layers.Dense(2, **FLOAT64)]
        with layers.layer.collect_updates_and_losses() as left, layers.layer.training_mode(True):
            h = self.x
            for part in parts:
                h = part(h)
        self.loss = mg.sum(mg.square(h - self.y) * mg.exp(h))
        self.parameters = list({weight: None for part in parts for weight in part.trainable_weights})
        for place, weight in enumerate(self.parameters):
            mg.assign(weight, 0.5 * numbers(*weight.shape, seed=place) + ("gamma" in weight.name))
        self.outputs = [h, self.loss, *mg.grad(self.loss, self.parameters), *mg.grad(self.loss, [self.x])]
        self.updates = left.updates

    @property
    def graph(self) -> mg.Graph:
        return mg.Graph(self.outputs, self.updates)

    def feeds(self, size: int) -> dict[mg.Node, np.ndarray]:
        return {self.x: 2 + numbers(size, 5, seed=8), self.y: numbers(size, 2, seed=9)}

    def figures(self, executor: Executor, size: int) -> list[np.ndarray]:
        """The outputs, and the moving averages after one step."""
        before = {node: node.value for node in self.updates}
        found = mg.function([self.x, self.y], self.outputs, self.updates, executor)(*self.feeds(size).values())
        moved = [node.value for node in self.updates]
        for node, value in before.items():
            mg.assign(node, value)
        return [*found, *moved]


def by_definition(sizes: Sequence[int], **options: Any) -> list[np.ndarray]:
    """Each part as a batch of its own."""
    network = Network(synchronized=True, **options)
    feeds = network.feeds(sum(sizes))
    found, start = [], 0
    for size in sizes:
        part = {node: array[start : start + size] for node, array in feeds.items()}
        outputs, updates = evaluate(network.graph, part, batch_size=size)
        found.append([*outputs, *updates.values()])
        start += size
    result = []
    for place, values in enumerate(zip(*found, strict=True)):
        if place in (0, len(network.outputs) - 1):
            result.append(np.concatenate(values))
        elif place < len(network.outputs):
            result.append(np.sum(values, 0))
        else:
            result.append(np.average(values, 0, weights=sizes))
    return result


def assert_same(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
    for value, wanted in zip(found, expected, strict=True):
        assert_close(value, wanted, times=1000)


def sizes_of(size: int, parts: int) -> list[int]:
    return [part.size for part in cut_batch(size, parts)]


OPTIONS: dict[str, dict[str, bool]] = {"plain": {}, "without gamma": {"scale": False}, "called twice": {"shared": True}}
of_each_network = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def test_the_outputs_are_those_of_numpy() -> None:
    layer = layers.BatchNormalization(1, momentum=0.9, epsilon=0.01, synchronized=False, **FLOAT64)
    x = mg.input("x", (None, 3, 4), "float64")
    output = layer(x, training=True)
    gamma, beta, mean, variance = 1 + numbers(4, 3, seed=1) ** 2
    layer.set_weights([gamma, beta, mean, variance])
    value = 3 + 2 * numbers(7, 3, 4)
    (found,), updates = evaluate_split(mg.Graph([output], layer.updates), {x: value}, [1, 4, 2])
    parts = np.split(value.swapaxes(1, 2), [1, 5])
    expected = [(part - part.mean((0, 1))) / np.sqrt(part.var((0, 1)) + 0.01) * gamma + beta for part in parts]
    assert_close(found, np.concatenate(expected).swapaxes(1, 2))
    means = np.average([part.mean((0, 1)) for part in parts], 0, weights=[1, 4, 2])
    variances = np.average([part.var((0, 1)) for part in parts], 0, weights=[1, 4, 2])
    assert_close(updates[layer.moving_mean], 0.9 * mean + 0.1 * means)
    assert_close(updates[layer.moving_variance], 0.9 * variance + 0.1 * variances)


@of_each_network
@pytest.mark.parametrize("sizes", [(7,), (3, 4), (2, 5, 4, 3)])
def test_parts_are_batches_of_their_own(options: dict[str, bool], sizes: tuple[int, ...]) -> None:
    network = Network(synchronized=False, **options)
    expected = by_definition(sizes, **options)
    for graph in (network.graph, simplify(network.graph)):
        outputs, updates = evaluate_split(graph, network.feeds(sum(sizes)), sizes)
        assert_same([*outputs, *updates.values()], expected)


EXECUTORS: dict[str, tuple[Callable[[], Executor], int]] = {
    "reference": (Reference, 1),
    "serial": (Serial, 1),
    "serial, reproducible": (lambda: Serial(reproducible=True, shards=4), 4),
    "logical workers": (lambda: ByWorkers(3), 3),
    "logical stages": (lambda: ByStages((0.3, 0.6), 4), 4),
    "logical stages and replicas": (lambda: ByStages((0.5,), 4, replicas=2), 4),
    "two workers": (lambda: Processes(2, wait_for_workers=True), 2),
    "two workers, reproducible": (lambda: Processes(2, reproducible=True, shards=4, wait_for_workers=True), 4),
    "four micro-batches": (lambda: Hosts(InProcessCluster(2), micro_batches=4), 4),
    "gpipe": (lambda: hosts_here(3, 1, micro_batches=3, schedule="gpipe"), 3),
    "replicas, reproducible": (lambda: hosts_here(2, 2, reproducible=True, shards=4), 4),
}


@pytest.fixture(params=EXECUTORS.values(), ids=EXECUTORS)
def executor_and_parts(request: pytest.FixtureRequest) -> Iterator[tuple[Executor, int]]:
    make, parts = request.param
    with make() as made:
        yield made, parts


@of_each_network
def test_executors_do_what_the_definition_says(
    options: dict[str, bool], executor_and_parts: tuple[Executor, int], recwarn: pytest.WarningsRecorder
) -> None:
    executor, parts = executor_and_parts
    network = Network(synchronized=False, **options)
    for size in (12, 10, 3, 12):
        assert_same(network.figures(executor, size), by_definition(sizes_of(size, parts), **options))
    assert not [warning for warning in recwarn if "micro-batches" in str(warning.message)]


@of_each_network
def test_uncut_batches_give_the_bits_of_synchronized_statistics(options: dict[str, bool]) -> None:
    with Serial() as executor:
        found, expected = (
            Network(synchronized=synchronized, **options).figures(executor, 9) for synchronized in (False, True)
        )
    assert_equal_bits(found, expected)


@of_each_network
def test_gradients_of_first_and_second_order(options: dict[str, bool]) -> None:
    network = Network(synchronized=False, **options)
    mg.check_gradients(network.loss, [*network.parameters, network.x], network.feeds(4), order=2)


@pytest.mark.parametrize("sizes", [(2, 5), (3, 3, 4)])
def test_second_derivatives_are_those_of_parts_too(sizes: tuple[int, ...]) -> None:
    """Of gradients with respect to rows, so that they too add up over the parts."""

    def second(network: Network) -> mg.Graph:
        (rows,) = mg.grad(network.loss, [network.x])
        return mg.Graph(mg.grad(mg.sum(mg.tanh(rows)), network.parameters))

    whole = Network(synchronized=True)
    feeds, expected, start = whole.feeds(sum(sizes)), [], 0
    for size in sizes:
        part = {node: array[start : start + size] for node, array in feeds.items()}
        expected.append(evaluate(second(whole), part, batch_size=size)[0])
        start += size
    network = Network(synchronized=False)
    found, _ = evaluate_split(simplify(second(network)), network.feeds(sum(sizes)), sizes)
    assert_same(found, [np.sum(values, 0) for values in zip(*expected, strict=True)])


@pytest.mark.parametrize("is_reproducible", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_nodes_may_be_on_any_stages(seed: int, is_reproducible: bool) -> None:
    """Statistics of parts are sent for each part."""
    network, generator = Network(synchronized=False), random.Random(seed)
    graph = simplify(network.graph)
    positions = lay_out(graph, analyse_batch(graph)).positions
    stages = {node: None if place is None else generator.randrange(3) for node, place in positions.items()}
    pipeline = Pipeline(graph, stages, 3, is_reproducible=is_reproducible)
    check_per_part(pipeline)
    outputs, updates = evaluate_by_stages(pipeline, network.feeds(11), 11, 4, replicas=2)
    assert_same([*outputs, *updates.values()], by_definition(sizes_of(11, 4)))


def classifier(*, synchronized: bool = False) -> mg.Model:
    options = {"synchronized": synchronized, "momentum": 0.9}
    return mg.Sequential(
        [
            layers.Input((20,)),
            layers.Reshape((5, 4, 1)),
            layers.Conv2D(6, 3, padding="same"),
            layers.BatchNormalization(**options),
            layers.ReLU(),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dropout(0.2),
            layers.Dense(16),
            layers.BatchNormalization(**options, scale=False),
            layers.Dense(5),
        ]
    )


def data() -> tuple[np.ndarray, np.ndarray]:
    x = numbers(64, 20)
    return x.astype("f4"), (x @ numbers(20, 5, seed=1)).argmax(1)


def compiled(synchronized: bool, executor: Executor) -> mg.Model:
    mg.set_seed(0)
    model = classifier(synchronized=synchronized)
    loss = mg.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(mg.optimizers.Adam(0.01, global_clipnorm=1.0), loss, metrics=["accuracy"], executor=executor)
    return model


def test_a_pipeline_does_not_run_empty() -> None:
    for synchronized, expected in ((True, 8), (False, 0)):
        executor = ByStages((0.4, 0.7), 4)
        compiled(synchronized, executor).train_on_batch(*data())
        assert len(executor.pipelines[-1].mid_step_reductions) == expected


def test_what_a_pipeline_with_synchronized_statistics_is_told() -> None:
    with hosts_here(2, 1, micro_batches=4) as executor:
        with pytest.warns(UserWarning, match=r"BatchNormalization\(synchronized=False\)"):
            compiled(True, executor).train_on_batch(*data())
        compiled(False, executor).train_on_batch(*data())


@pytest.mark.filterwarnings("error:expected micro-batches")
def test_a_pipeline_learns_as_one_process_does_in_as_many_parts() -> None:
    histories = []
    for executor in (hosts_here(2, 1, micro_batches=4), Serial(reproducible=True, shards=4)):
        with executor:
            model = compiled(False, executor)
            losses = model.fit(*data(), batch_size=32, epochs=40, verbose=0).history["loss"]
            histories.append([*losses, *model.evaluate(*data(), verbose=0)])
    np.testing.assert_allclose(*histories, rtol=0.02)
    *losses, tested, accuracy = histories[0]
    assert losses[-1] < 0.5 * losses[0]
    assert tested < 0.5 * losses[0]
    assert accuracy > 0.8


def test_reproducible_bits_are_the_same_everywhere() -> None:
    expected = trained(classifier, reproducible())
    for executor in (
        Processes(2, reproducible=True, wait_for_workers=True),
        hosts_here(2, 1, reproducible=True),
        hosts_here(3, 2, reproducible=True, schedule="gpipe"),
    ):
        assert_equal_bits(trained(classifier, executor), expected)


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    x, y = data()
    with Serial(reproducible=True, shards=4) as executor:
        model = compiled(False, executor)
        model.fit(x, y, 16, verbose=0)
        model.save(tmp_path / "model.miai")
        again = mg.load_model(tmp_path / "model.miai")
        assert [layer.synchronized for layer in again.layers if isinstance(layer, layers.BatchNormalization)] == [
            False
        ] * 2
        for each in (model, again):
            each.fit(x, y, 16, executor=executor, verbose=0)
        assert_equal_bits(again.get_weights(), model.get_weights())


def test_the_config_tells_it() -> None:
    assert "synchronized" in layers.BatchNormalization(synchronized=False).get_config()
    assert layers.BatchNormalization.from_config({"synchronized": False}).synchronized is False
    assert layers.BatchNormalization().synchronized is True
    with pytest.raises(ArgumentError, match="synchronized to be True or False; found 'no'"):
        layers.BatchNormalization(synchronized="no")


def test_inputs_without_a_batch_are_one_part() -> None:
    layer, x = layers.BatchNormalization(synchronized=False, **FLOAT64), mg.input("x", (4, 3), "float64")
    graph = mg.Graph([layer(x, training=True)], layer.updates)
    assert not analyse_batch(graph).obstacles
    value = numbers(4, 3)
    (found,), _ = evaluate(graph, {x: value}, batch_size=1)
    assert_close(found, (value - value.mean(0)) / np.sqrt(value.var(0) + 1e-3))


def test_sums_of_parts_and_of_the_whole_are_kept_apart() -> None:
    """The same rows added up for each part, and for all."""
    x = mg.input("x", (None, 3), "float64")
    whole, own = mg.sum(x, 0), mg.reshape(_sum_of_part(x, axes=(0,)), (1, 3))
    graph = simplify(mg.Graph([whole, x * own, mg.sum(mg.square(x * own), 0) * whole]))
    value = numbers(5, 3)
    found, _ = evaluate_split(graph, {x: value}, [2, 3])
    own_sums = np.repeat([value[:2].sum(0), value[2:].sum(0)], [2, 3], axis=0)
    assert_same(found, [value.sum(0), value * own_sums, ((value * own_sums) ** 2).sum(0) * value.sum(0)])


def test_placements() -> None:
    x, w = mg.input("x", (None, 3), "float64"), mg.parameter(np.ones(3), "w")
    own, total = _sum_of_part(x, axes=(0,)), mg.sum(x, 0)
    mixed, summed = own * total, _sum_over_parts(own * w)
    graph = mg.Graph([x * mg.exp(mixed), summed, x * each_part(w)])
    analysis = analyse_batch(graph)
    placements = analysis.placements
    assert [placements[node] for node in (own, total, mixed, summed)] == [LOCAL, Partial("sum"), LOCAL, Partial("sum")]
    assert analysis.reduced == {total, summed}
    assert str(LOCAL) == "local"


@pytest.mark.filterwarnings("ignore:expected micro-batches")
def test_the_sum_over_parts_of_a_constant_counts_the_parts() -> None:
    x = mg.input("x", (None,), "float64")
    graph = simplify(mg.Graph([x + _sum_over_parts(mg.cast(1, "float64"))]))
    assert_close(evaluate_split(graph, {x: np.zeros(6)}, [1, 2, 3])[0][0], np.full(6, 3.0))
    with Hosts(InProcessCluster(2), micro_batches=3) as hosts, Processes(2, wait_for_workers=True) as processes:
        for executor, parts in ((hosts, 3), (processes, 2)):
            (found,) = mg.function([x], graph.outputs, executor=executor)(np.zeros(6))
            assert_close(found, np.full(6, float(parts)))


def test_sizes_of_parts() -> None:
    x = mg.input("x", (None,), "float64")
    outputs = [
        x + part_size(),
        _sum_over_parts(part_size()),
        x * 0.0 + batch_size(),
        average_over_parts(mean_of_part(x, [0])),
    ]
    value = numbers(7)
    for executor, parts in ((Hosts(InProcessCluster(2), micro_batches=3), 3), (Processes(2, wait_for_workers=True), 2)):
        with executor:
            found = mg.function([x], outputs, executor=executor)(value)
        sizes = sizes_of(7, parts)
        assert_same(found, [value + np.repeat(sizes, sizes), np.array(7), np.full(7, 7.0), value.mean(keepdims=True)])


def test_a_value_of_each_part_is_no_result() -> None:
    """It would be another one for each part; uncut, there is one."""
    x, w = mg.input("x", (None, 3), "float64"), mg.variable(np.zeros(3), "w")
    own = _sum_of_part(x, axes=(0,))
    for graph in (mg.Graph([own]), mg.Graph([], {w: own})):
        with pytest.raises(NotSplittableError, match=r"each part of the batch has its own.*sum_over_parts"):
            analyse_batch(graph).require_splittable()
    value = numbers(5, 3)
    with Serial(reproducible=True) as executor:
        assert_close(mg.function([x], [own], executor=executor)(value)[0], value.sum(0))


@pytest.mark.parametrize("cross", [each_part, _sum_over_parts])
def test_only_what_has_no_batch_goes_from_all_to_each(cross: Callable[[mg.Node], mg.Node]) -> None:
    with pytest.raises(ShapeError, match=r"without the batch axis; found f32\[B,3\]"):
        cross(mg.input("x", (None, 3)))
