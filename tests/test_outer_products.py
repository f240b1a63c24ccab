"""Workers share the factors of large matrices' gradients, where these are smaller than the gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from logical_workers import partitions_of

import miai_graph as mg
from executors import Processes, Serial
from miai_graph import layers, losses, optimizers
from miai_graph.ops.linalg import _matmul
from miai_graph.passes.batch_analysis import analyse_batch
from miai_graph.passes.outer_products import outer_products
from miai_graph.passes.partition import Partition
from miai_graph.passes.simplify import simplify
from miai_graph.plan.exchange import Exchange
from miai_graph.plan.worker_programs import WorkerPrograms
from miai_graph.state import aligned_bytes

FLOAT64 = {"dtype": "float64"}
INPUTS, HIDDEN = 96, 160
SMALL, LARGE = 16, 4096
"""Batches for which the factors are smaller than the gradient, and larger."""


def network() -> mg.Model:
    return mg.Sequential(
        [
            layers.Input((INPUTS,), **FLOAT64),
            layers.Dense(HIDDEN, "relu", **FLOAT64),
            layers.Dense(HIDDEN, "tanh", **FLOAT64),
            layers.Dense(3, **FLOAT64),
        ]
    )


def nothing(gradients: list[mg.Node]) -> list[mg.Node]:
    return []


def training_graph(model: mg.Model, outputs: Callable[[list[mg.Node]], list[mg.Node]] = nothing) -> mg.Graph:
    x, y = mg.input("x", model.inputs[0].type.shape, "float64"), mg.input("y", (None, 3), "float64")
    loss = mg.mean(mg.square(model(x) - y))
    parameters = model.trainable_variables
    gradients = mg.grad(loss, parameters)
    updates = {node: node - 0.1 * gradient for node, gradient in zip(parameters, gradients, strict=True)}
    return simplify(mg.Graph([loss, *outputs(gradients)], updates))


def products_of(graph: mg.Graph, batch_size: int) -> list[tuple[int, ...]]:
    return [node.shape for node in outer_products(graph, analyse_batch(graph), batch_size)]


def product_flops(own: Partition, batch_size: int, part: int) -> int:
    """Of all products of matrices that a worker computes."""
    result = 0
    for node in own.graph.nodes:
        if node.op is _matmul:
            size = part if node in own.per_part else batch_size
            rows, columns = (dim if isinstance(dim, int) else dim.multiple * size for dim in node.type.shape)
            depth = node.inputs[0].type.shape[1]
            result += 2 * rows * columns * (depth if isinstance(depth, int) else depth.multiple * size)
    return result


def test_products_are_found_where_their_factors_are_smaller() -> None:
    graph = training_graph(network())
    assert products_of(graph, SMALL) == [(HIDDEN, HIDDEN), (INPUTS, HIDDEN)]
    assert products_of(graph, 70) == [(HIDDEN, HIDDEN)]
    assert products_of(graph, LARGE) == []


def test_what_is_needed_whole_is_added_up() -> None:
    graph = training_graph(network(), lambda gradients: gradients[:1])
    assert products_of(graph, SMALL) == [(HIDDEN, HIDDEN)]
    graph = training_graph(network(), lambda gradients: [mg.sum(gradients[2], 0)])
    assert products_of(graph, SMALL) == [(INPUTS, HIDDEN)]


def test_a_gradient_from_two_uses_of_a_matrix_is_added_up() -> None:
    x = layers.Input((HIDDEN,), **FLOAT64)
    twice = layers.Dense(HIDDEN, "tanh", **FLOAT64)
    graph = training_graph(mg.Model(x, layers.Dense(3, **FLOAT64)(twice(twice(x)))))
    assert products_of(graph, SMALL) == []


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_no_worker_computes_more_than_its_share(workers: int) -> None:
    graph, batch_size = training_graph(network()), 4 * 3
    whole = product_flops(partitions_of(graph, 1)[0], batch_size, batch_size)
    for own in partitions_of(graph, workers, batch_size=batch_size):
        flops = product_flops(own, batch_size, batch_size // workers)
        assert flops < 1.2 * whole / workers
        assert {node.type.shape for node in own.exports}.isdisjoint([(HIDDEN, HIDDEN), (INPUTS, HIDDEN)])
        assert own.rows


def test_less_memory_is_shared() -> None:
    def shared_bytes(batch_size: int, workers: int) -> int:
        taken = []

        def memory(size_bytes: int) -> np.ndarray:
            taken.append(size_bytes)
            return aligned_bytes(size_bytes)

        program = WorkerPrograms(training_graph(network()), 0, is_reproducible=False).program(workers, batch_size)
        Exchange(program, batch_size, workers, memory)
        return taken[0]

    gradients = 8 * (INPUTS + HIDDEN) * HIDDEN
    assert shared_bytes(LARGE, 2) > 2 * gradients
    assert shared_bytes(SMALL, 2) < gradients / 2


def test_reproducible_workers_add_up() -> None:
    """Their results must not depend on how a product is cut."""
    program = WorkerPrograms(training_graph(network()), 0, is_reproducible=True).program(2, SMALL)
    assert not program.rows


def test_batches_of_about_one_size_have_one_program() -> None:
    programs = WorkerPrograms(training_graph(network()), 0, is_reproducible=False)
    assert programs.program(2, 20) is programs.program(2, 24)
    assert programs.program(2, 20) is not programs.program(2, LARGE)


def flattened() -> mg.Model:
    """The first matrix reads rows of which a view is shared; statistics of the batch come before."""
    x = layers.Input((6, 6, 1), **FLOAT64)
    h = layers.BatchNormalization(**FLOAT64)(layers.Conv2D(8, 3, padding="same", activation="relu", **FLOAT64)(x))
    h = layers.Dense(HIDDEN, "relu", **FLOAT64)(layers.Flatten()(h))
    return mg.Model(x, layers.Dense(3, **FLOAT64)(layers.Dropout(0.2, **FLOAT64)(h)))


def branching() -> mg.Model:
    """Two matrices share the rows of one factor, a slice of which a third one reads."""
    x = layers.Input((INPUTS,), **FLOAT64)
    left, right = (layers.Dense(HIDDEN, activation, **FLOAT64)(x) for activation in ("tanh", "relu"))
    third = layers.Dense(HIDDEN, **FLOAT64)(left[:, : HIDDEN // 2] * 2.0)
    return mg.Model(x, layers.Dense(3, **FLOAT64)(left * right + third))


MODELS = {"dense": network, "flattened": flattened, "branching": branching}
OPTIMIZERS = {
    "momentum": lambda: optimizers.SGD(0.05, momentum=0.9),
    "rmsprop, global_clipnorm": lambda: optimizers.RMSprop(0.01, global_clipnorm=0.5),
    "adam, average": lambda: optimizers.Adam(0.01, use_ema=True),
}


@pytest.mark.parametrize("is_table", [True, False], ids=["arrays", "generator"])
@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", MODELS)
def test_training_is_that_of_one_process(
    name: str, optimizer: str, workers: int, is_table: bool, pools: Mapping[int, Processes]
) -> None:
    """With an uneven last batch, and one of fewer samples than there are workers."""
    rng = np.random.default_rng(0)
    shape = MODELS[name]().inputs[0].shape[1:]
    x, y = rng.normal(size=(29, *shape)), rng.normal(size=(29, 3))

    def trained(executor: mg.Executor) -> list[np.ndarray]:
        mg.set_seed(5)
        model = MODELS[name]()
        model.compile(OPTIMIZERS[optimizer](), losses.MeanSquaredError())
        if is_table:
            model.fit(x, y, batch_size=9, epochs=3, shuffle=True, verbose=0, executor=executor)
        else:
            batches = [(x[row : row + 9], y[row : row + 9]) for row in range(0, 29, 9)]
            model.fit(iter(batches * 3), verbose=0, executor=executor)
        return model.get_weights()

    for found, expected in zip(trained(pools[workers]), trained(Serial(threads=1)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9)
