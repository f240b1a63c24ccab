"""Products of few rows: right at every shape and layout, for every width of vectors, and in plans that use them."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from guarded_memory import is_guarded, placed
from test_executor_conformance import hosts_here

import miai_graph as mg
from executors import Serial
from executors.hosts.stage import HostPlan
from executors.threads import limited_blas
from miai_graph import layers, losses, optimizers
from miai_graph.executor import Executor
from miai_graph.interpreter import evaluate
from miai_graph.kernels.kernel import Kernel, Several
from miai_graph.kernels.products.few_rows import (
    LEAST_ELEMENTS,
    MOST_ROWS,
    Products,
    products,
    products_for,
)
from miai_graph.kernels.products.few_rows_code import Target
from miai_graph.kernels.running.crew import Together
from miai_graph.ops.leaves import variable_of
from miai_graph.plan.bound import BoundPlan
from miai_graph.plan.memory import Workspace
from miai_graph.plan.program import make_program
from miai_graph.state import state

TARGETS = (Target(4, 16), Target(4, 32), Target(8, 16), Target(16, 32))
SENTINEL = 7.0


@pytest.fixture(params=TARGETS, ids=str)
def few_rows(request) -> Products:
    """For vectors of each width: LLVM takes those apart that the processor does not have."""
    return products_for(request.param)


def matrix(rng: np.random.Generator, rows: int, columns: int, gap: int = 0, offset: int = 0) -> np.ndarray:
    """Random numbers; rows lie `gap` elements apart, and the first one so many beyond where memory begins."""
    memory = np.full(rows * (columns + gap) + offset, SENTINEL, np.float32)
    result = memory[offset:].reshape(rows, columns + gap)[:, :columns]
    result[...] = rng.standard_normal((rows, columns))
    return result


def assert_product(few_rows: Products, a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    assert few_rows.can(a, b, out)
    whole, a, b, out = out, placed(a), placed(b), placed(out)
    few_rows.kernel(a, b, out)()
    whole[...] = out
    magnitude = np.abs(a.astype("f8")) @ np.abs(b.astype("f8"))
    error = np.abs(out - a.astype("f8") @ b.astype("f8"))
    assert (error <= 1e-6 * magnitude).all()


@pytest.mark.parametrize("is_transposed", [False, True])
def test_any_shape_and_layout(few_rows: Products, rng: np.random.Generator, is_transposed: bool) -> None:
    least = few_rows.target.least
    for _ in range(15 if is_guarded() else 60):
        rows, (depth, columns) = int(rng.integers(1, 101)), map(int, rng.integers(least, 200, 2))
        gaps, offset = rng.integers(0, 4, 3), int(rng.integers(0, 16))
        a = matrix(rng, rows, depth, gaps[0], offset)
        b = matrix(rng, *((columns, depth) if is_transposed else (depth, columns)), gaps[1], offset)
        whole = np.full((rows + 1, columns + gaps[2]), SENTINEL, np.float32)
        assert_product(few_rows, a, b.T if is_transposed else b, whole[:rows, :columns])
        assert (whole[rows:] == SENTINEL).all()
        assert (whole[:, columns:] == SENTINEL).all()


@pytest.mark.parametrize("rows", [1, 2, 31, 64, 97])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_large_matrices(few_rows: Products, rng: np.random.Generator, rows: int, is_transposed: bool) -> None:
    for depth, columns in ((1024, 1024), (2500, 301), (130, 5003)):
        b = matrix(rng, *((columns, depth) if is_transposed else (depth, columns)))
        out = np.empty((rows, columns), np.float32)
        assert_product(few_rows, matrix(rng, rows, depth), b.T if is_transposed else b, out)


def test_rows_may_repeat_or_lie_backwards(few_rows: Products, rng: np.random.Generator) -> None:
    b, out = matrix(rng, 100, 100), np.empty((5, 100), np.float32)
    assert_product(few_rows, matrix(rng, 5, 100)[::-1], b[::-1], out)
    assert_product(few_rows, np.broadcast_to(matrix(rng, 1, 100), (5, 100)), b, out)


def test_what_is_not_finite_stays_in_its_row_and_column(few_rows: Products, rng: np.random.Generator) -> None:
    a, b, out = matrix(rng, 9, 70), matrix(rng, 70, 90), np.empty((9, 90), np.float32)
    a[3, 5], b[69, 89] = np.nan, np.inf
    few_rows.kernel(a, b, out)()
    expected = np.isfinite(a @ b)
    assert (np.isfinite(out) == expected).all()
    assert expected.sum() == 8 * 89


def test_what_they_cannot_compute(few_rows: Products) -> None:
    def can(a: np.ndarray, b: np.ndarray) -> bool:
        return few_rows.can(a, b, np.empty((len(a), b.shape[-1]), np.float32))

    a, b = np.ones((20, 64), np.float32), np.ones((64, 64), np.float32)
    assert can(a, b)
    assert not can(a.astype("f8"), b)
    assert not can(a, b.astype(">f4"))
    assert not can(a[:0], b)
    assert not can(a[:, :0], b[:0])
    assert not can(a, b[:, :0])
    assert not can(a[:, :1], b[:1])
    assert not can(a, b[:, :1])
    assert not can(a[:, ::2], b[:32])
    assert not can(a[:, :32], b[::2, ::2])
    assert not can(np.ones((3, 20, 64), np.float32), np.ones((3, 64, 64), np.float32))
    assert not few_rows.can(a, b, np.empty((20, 128), np.float32)[:, ::2])
    crooked = np.ones(20 * 64 * 4 + 4, np.uint8)[1:-3].view(np.float32).reshape(20, 64)
    assert not can(crooked, b)


def test_they_suit_few_rows_and_large_matrices() -> None:
    few_rows = products_for(Target(16, 32))
    b = np.ones((1024, 1024), np.float32)

    def suits(rows: int, b: np.ndarray) -> bool:
        return few_rows.suits(np.ones((rows, len(b)), np.float32), b, np.empty((rows, b.shape[1]), np.float32))

    most = MOST_ROWS[16]
    assert [suits(rows, b) for rows in (1, 2, 32, most, most + 1)] == [False, True, True, True, False]
    assert b[:, :64].size == LEAST_ELEMENTS
    assert [suits(32, b[:, :columns]) for columns in (63, 64)] == [False, True]
    assert not suits(2, b[:, :64])
    assert suits(32, b.T)


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_threads_share_the_columns(rng: np.random.Generator, threads: int) -> None:
    few_rows = products_for(Target(8, 16))
    a, b = matrix(rng, 20, 100), matrix(rng, 100, 333)
    alone, shared = np.empty((20, 333), np.float32), np.empty((20, 333), np.float32)
    few_rows.kernel(a, b, alone)()
    few_rows.kernel(a, b, shared, threads=threads)()
    np.testing.assert_array_equal(shared, alone)


def test_kernels_run_in_threads(few_rows: Products, rng: np.random.Generator) -> None:
    operands = [(matrix(rng, 32, 300), matrix(rng, 300, 200), np.empty((32, 200), np.float32)) for _ in range(4)]
    kernels = [few_rows.kernel(*arrays) for arrays in operands]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(20):
            list(threads.map(lambda kernel: kernel(), kernels))
    for a, b, out in operands:
        np.testing.assert_allclose(out, a @ b, rtol=1e-4, atol=1e-4)


def test_a_kernel_keeps_its_arrays(few_rows: Products, rng: np.random.Generator) -> None:
    a, b, out = matrix(rng, 32, 64), matrix(rng, 64, 64), np.empty((32, 64), np.float32)
    expected = a @ b
    kernel = few_rows.kernel(a.copy(), b.copy(), out, lambda shape, dtype: np.empty(shape, dtype))
    others = [np.full((64, 64), SENTINEL, np.float32) for _ in range(100)]
    kernel()
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)
    del others


def first_call(kernel: Kernel) -> Kernel:
    """Of several threads, or several kernels."""
    return first_call(kernel.kernels[0]) if isinstance(kernel, Together | Several) else kernel


@pytest.mark.skipif(products() is None, reason="this processor has no such products")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_step_is_the_interpreter_s(rng: np.random.Generator, threads: int) -> None:
    x = mg.input("x", (None, 300))
    hidden = mg.parameter(rng.standard_normal((300, 400)).astype("f4") / 17, "hidden")
    last = mg.parameter(rng.standard_normal((400, 300)).astype("f4") / 20, "last")
    loss = mg.mean(mg.square(mg.tanh(x @ hidden) @ last))
    gradients = mg.grad(loss, [hidden, last])
    graph = mg.Graph([loss, *gradients])
    batch = rng.standard_normal((32, 300)).astype("f4")
    state.place(map(variable_of, graph.variables), map(variable_of, graph.updates))

    def results(plan: BoundPlan) -> list[np.ndarray]:
        (feed,) = (*plan.feeds.values(), *plan.part_feeds[0].values())
        feed[...] = batch
        binding = plan.bind(plan.turns())
        plan.run(0, binding)
        return [output.copy() for output in binding.outputs]

    def of_matmul(plan: BoundPlan) -> list[object]:
        (binding,) = plan.bindings.values()
        kernels = (kernel for node, kernel in zip(plan.nodes, binding.kernels, strict=True) if node.op.name == "matmul")
        return [first_call(kernel).func for kernel in kernels]

    blas, native = (BoundPlan(make_program(graph), 32, state, Workspace(), threads=count) for count in (None, threads))
    by_blas, by_native = results(blas), results(native)
    pairs = zip(of_matmul(blas), of_matmul(native), strict=True)
    assert all(old is not new for old, new in pairs)
    interpreted, _ = evaluate(graph, {x: batch}, batch_size=32)
    for expected, other, result in zip(interpreted, by_blas, by_native, strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(result, other, rtol=1e-4, atol=1e-6)


def trained(executor: Executor) -> tuple[list[np.ndarray], set[int | None]]:
    """The weights after two steps, what the model then predicts, and the threads of the plans of hosts here."""
    mg.set_seed(0)
    x = layers.Input((300,))
    hidden = layers.Dense(300, activation="tanh")(layers.Dense(400, activation="relu")(x))
    model = mg.Model(x, layers.Dense(10)(hidden))
    loss = losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizers.SGD(0.1), loss, executor=executor)
    rng = np.random.default_rng(0)
    rows, labels = rng.standard_normal((128, 300)).astype("f4"), rng.integers(0, 10, 128)
    gc.collect()
    with executor:
        model.fit(rows, labels, batch_size=64, epochs=1, verbose=0)
        results = [*model.get_weights(), model.predict(rows[:64], batch_size=64, verbose=0)]
        plans = [found for found in gc.get_objects() if type(found) is HostPlan and found.bound.stamps.any()]
        return results, {plan.bound.threads for plan in plans}


def test_hosts_use_them() -> None:
    with limited_blas(1):
        expected, _ = trained(Serial())
        results, used = trained(hosts_here(2, 1, micro_batches=2))
    assert used == {1}
    for result, value in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, value, rtol=1e-3, atol=1e-5)


def test_reproducible_hosts_do_not() -> None:
    expected, _ = trained(Serial(reproducible=True, shards=2))
    results, used = trained(hosts_here(2, 1, reproducible=True, shards=2))
    assert used == {None}
    for result, value in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result, value)
