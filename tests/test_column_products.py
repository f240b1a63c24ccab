"""Workers cut products of few rows with large matrices up by columns."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from drawn_graphs import DrawnGraph, drawn_graphs
from hypothesis import HealthCheck, given, settings
from logical_workers import ByWorkers, partitions_of
from reference_executor import Reference
from test_partition import MODELS, OPTIMIZERS, assert_same_training, assert_workers_agree, trained, training_graph

import miai_graph as mg
from executors import Processes, Serial
from miai_graph import layers, losses, optimizers
from miai_graph.ops.communication import FROM_ALL
from miai_graph.ops.leaves import is_variable
from miai_graph.ops.linalg import _matmul
from miai_graph.passes import column_products as module
from miai_graph.passes.batch_analysis import analyse_batch
from miai_graph.passes.column_products import column_products, own_columns
from miai_graph.passes.outer_products import outer_products, shared_rows
from miai_graph.passes.partition import Partition
from miai_graph.passes.simplify import simplify
from miai_graph.plan.program import Program
from miai_graph.plan.worker_programs import WorkerPrograms

FLOAT64 = {"dtype": "float64"}
WIDTH = 400
"""Of matrices of more than a MiB."""


@pytest.fixture
def any_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small matrices are cut up too."""
    monkeypatch.setattr(module, "LARGE_BYTES", 1)
    monkeypatch.setattr(module, "CUT_COLUMNS", 1)


def network() -> mg.Model:
    return mg.Sequential(
        [
            layers.Input((WIDTH,), **FLOAT64),
            layers.Dense(WIDTH, "relu", **FLOAT64),
            layers.Dense(WIDTH + 3, "tanh", **FLOAT64),
            layers.Dense(3, **FLOAT64),
        ]
    )


def normalized() -> mg.Model:
    """With barriers of statistics between those of products, and a value that meets a product behind its barriers."""
    x = layers.Input((WIDTH,), **FLOAT64)
    h = layers.BatchNormalization(**FLOAT64)(layers.Dense(WIDTH, use_bias=False, **FLOAT64)(x))
    h = layers.Dense(WIDTH, **FLOAT64)(mg.relu(h)) + x
    return mg.Model(x, layers.Dense(3, **FLOAT64)(layers.Dropout(0.2, **FLOAT64)(h)))


def linear() -> mg.Model:
    """Products of products, with nothing between."""
    x = layers.Input((WIDTH,), **FLOAT64)
    first, second, third = (layers.Dense(width, use_bias=False, **FLOAT64) for width in (WIDTH, WIDTH, 3))
    return mg.Model(x, third(second(first(x))))


def step_of(model: mg.Model) -> mg.Graph:
    x, y = mg.input("x", (None, WIDTH), "float64"), mg.input("y", (None, 3), "float64")
    loss = mg.mean(mg.square(model(x) - y))
    parameters = model.trainable_variables
    updates = {node: node - 0.1 * g for node, g in zip(parameters, mg.grad(loss, parameters), strict=True)}
    return simplify(mg.Graph([loss], updates))


def found_in(graph: mg.Graph, batch_size: int, workers: int) -> frozenset[mg.Node]:
    analysis = analyse_batch(graph)
    return column_products(graph, analysis, batch_size, workers, outer_products(graph, analysis, batch_size))


def test_products_of_few_rows_with_large_matrices_are_found() -> None:
    graph = step_of(network())
    # Two forward, and one backward: nobody needs the gradient of the data.
    assert sorted(node.type.shape[1] for node in found_in(graph, 8, 2)) == [WIDTH, WIDTH, WIDTH + 3]
    assert len(found_in(graph, 24 * 2, 2)) == 3
    assert not found_in(graph, 24 * 2 + 1, 2)
    assert len(found_in(graph, 24 * 2 + 1, 3)) == 3


def test_what_is_multiplied_as_it_is_has_its_rows_first() -> None:
    """The rows of a product that is a factor of another one are shared, so it is not cut up."""
    graph = step_of(linear())
    found = found_in(graph, 8, 2)
    assert found
    for node in graph.nodes:
        if node.op is _matmul and node in found:
            assert shared_rows(node.inputs[0]) not in found


@pytest.mark.parametrize("columns", [64, 400, 403, 1000])
@pytest.mark.parametrize("workers", [2, 3, 4])
def test_each_column_is_one_worker_s(columns: int, workers: int) -> None:
    product = mg.input("x", (None, 5)) @ mg.parameter(np.zeros((5, columns), "f4"), "w")
    spans = [own_columns(product, worker, workers) for worker in range(workers)]
    assert [column for span in spans for column in range(*span)] == list(range(columns))
    assert all(stop > start for start, stop in spans)


@pytest.mark.parametrize("workers", [2, 3])
def test_a_worker_reads_its_columns_of_a_matrix_only(workers: int) -> None:
    for own in partitions_of(step_of(network()), workers, batch_size=8):
        assert len(own.columns) == 3
        for node in own.graph.nodes:
            if node.op is _matmul and is_variable(shared_rows(node.inputs[1])):
                # What is not cut up is the last, small one.
                assert 3 in node.inputs[1].type.shape


def read_elements(own: Partition) -> int:
    """Of the parameters, by products of a worker."""
    return sum(
        node.inputs[1].type.size
        for node in own.graph.nodes
        if node.op is _matmul and not node.inputs[1].type.batch_axes
    )


def test_together_they_read_each_matrix_once() -> None:
    graph = step_of(network())
    (alone,) = partitions_of(graph, 1)
    together = partitions_of(graph, 2, batch_size=8)
    assert sum(map(read_elements, together)) == read_elements(alone) + 2 * 3 * (WIDTH + 3)


@pytest.mark.parametrize("workers", [2, 3, 5])
@pytest.mark.parametrize("optimizer", ["adam", "global_clipnorm", "accumulation"])
@pytest.mark.parametrize("name", MODELS)
def test_workers_agree_with_the_whole_graph(name: str, optimizer: str, workers: int, any_matrix: None) -> None:
    expected = trained(MODELS[name], optimizer, Reference())
    assert_same_training(trained(MODELS[name], optimizer, ByWorkers(workers)), expected)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=drawn_graphs())
def test_drawn_graphs(drawn: DrawnGraph, any_matrix: None) -> None:
    graph = simplify(drawn.graph)
    if not analyse_batch(graph).obstacles:
        for workers in (2, 3):
            assert_workers_agree(graph, drawn.feeds(7), 7, workers)


def assert_read_behind_barriers(program: Program) -> None:
    places = {node: place for place, node in enumerate(program.steps)}
    for place, node in enumerate(program.steps):
        for source in program.operands_of(node):
            root = program.roots[source]
            if root.op in FROM_ALL:
                assert places[root.inputs[-1]] < place


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_nobody_reads_what_others_write_before_the_barrier(name: str, optimizer: str, any_matrix: None) -> None:
    graph = training_graph(MODELS[name], optimizer)
    for worker in range(2):
        assert_read_behind_barriers(WorkerPrograms(graph, worker, is_reproducible=False).program(2, 7))


def test_sums_that_are_taken_early_wait_for_what_others_write(any_matrix: None) -> None:
    """What is computed for nothing but a sum moves up to what it is computed from: not to the first of it."""
    x = mg.input("x", (None, 30))
    early, product = mg.tanh(x), x @ mg.parameter(np.ones((30, 30), "f4"), "w")
    program = WorkerPrograms(mg.Graph([mg.sum(early * product, 0)]), 0, is_reproducible=False).program(2, 7)
    assert program.columns
    assert_read_behind_barriers(program)


@pytest.mark.parametrize("recompute", [None, "all"])
@pytest.mark.parametrize("is_table", [True, False], ids=["arrays", "generator"])
@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("make", [network, normalized, linear])
def test_training_is_that_of_one_process(
    make, workers: int, is_table: bool, recompute: str | None, pools: Mapping[int, Processes]
) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(21, WIDTH)), rng.normal(size=(21, 3))

    def results(executor: mg.Executor) -> list[np.ndarray]:
        mg.set_seed(5)
        model = make()
        model.compile(optimizers.SGD(0.01, momentum=0.9), losses.MeanSquaredError(), recompute=recompute)
        if is_table:
            model.fit(x, y, batch_size=8, epochs=3, verbose=0, executor=executor)
        else:
            batches = [(x[row : row + 8], y[row : row + 8]) for row in range(0, 21, 8)]
            model.fit(iter(batches * 3), verbose=0, executor=executor)
        return [*model.get_weights(), model.predict(x, batch_size=8, executor=executor)]

    for found, expected in zip(results(pools[workers]), results(Serial(threads=1)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9)
