"""Native products: right at every shape and layout, for every width of vectors, and in plans that use them."""

from __future__ import annotations

import numpy as np
import pytest
from guarded_memory import placed
from native_samples import GUARD, PROCESSORS, SENTINEL, beside_others

import miai_graph as mg
from miai_graph.interpreter import evaluate
from miai_graph.kernels.compiler.native import Processor, processor
from miai_graph.kernels.kernel import Kernel
from miai_graph.kernels.products.blocked import can_multiply, product, stack_of, suits, variant_for
from miai_graph.kernels.running.run import native_phases
from miai_graph.ops.leaves import variable_of
from miai_graph.plan.bound import BoundPlan
from miai_graph.plan.memory import Workspace
from miai_graph.plan.program import make_program
from miai_graph.state import state

KINDS = [(each, dtype) for each in PROCESSORS for dtype in ("f4", "f8")]
ROUNDING = {"f4": 1e-6, "f8": 2e-15}


@pytest.fixture(params=KINDS, ids=str)
def kind(request) -> tuple[Processor, str]:
    """For vectors of each width: LLVM takes those apart that the processor does not have."""
    return request.param


def guarded_scratch(memories: list[np.ndarray]):
    def scratch(shape, dtype) -> np.ndarray:
        array, memory = beside_others(np.full(shape, np.nan, dtype))
        memories.append(memory)
        return array

    return scratch


def assert_product(kind: tuple[Processor, str], a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    memories: list[np.ndarray] = []
    assert can_multiply(a, b, out)
    out[...] = np.nan
    whole, a, b, out = out, placed(a), placed(b), placed(out)
    kernel = product(a, b, out, kind[0], guarded_scratch(memories))
    kernel()
    wide_a, wide_b = a.astype("f8"), b.astype("f8")
    assert (np.abs(out - wide_a @ wide_b) <= ROUNDING[kind[1]] * (np.abs(wide_a) @ np.abs(wide_b))).all()
    first = out.copy()
    kernel()
    np.testing.assert_array_equal(out, first)
    for memory in memories:
        np.testing.assert_array_equal([memory[0], *memory[1 - GUARD :]], np.full(GUARD, SENTINEL))
    whole[...] = out


def matrix(rng: np.random.Generator, dtype: str, rows: int, columns: int, gap: int = 0) -> np.ndarray:
    """Random numbers one element beyond where memory begins; rows lie `gap` elements apart, and there is nan."""
    whole = np.full((rows, columns + gap), np.nan, dtype)
    whole[:, :columns] = rng.standard_normal((rows, columns))
    return beside_others(whole)[0][:, :columns]


@pytest.mark.parametrize("a_is_transposed", [False, True])
@pytest.mark.parametrize("b_is_transposed", [False, True])
def test_any_shape_and_layout(
    kind: tuple[Processor, str], rng: np.random.Generator, a_is_transposed: bool, b_is_transposed: bool
) -> None:
    dtype = kind[1]
    for most in [12] * 10 + [90] * 10:
        rows, depth, columns = map(int, rng.integers(1, most, 3))
        gaps = list(map(int, rng.integers(0, 4, 3)))
        a = matrix(rng, dtype, depth, rows, gaps[0]).T if a_is_transposed else matrix(rng, dtype, rows, depth, gaps[0])
        b = (
            matrix(rng, dtype, columns, depth, gaps[1]).T
            if b_is_transposed
            else matrix(rng, dtype, depth, columns, gaps[1])
        )
        whole, memory = beside_others(np.full((rows, columns + gaps[2]), SENTINEL, dtype))
        assert_product(kind, a, b, whole[:, :columns])
        assert (whole[:, columns:] == SENTINEL).all()
        np.testing.assert_array_equal([memory[0], *memory[1 - GUARD :]], np.full(GUARD, SENTINEL))


@pytest.mark.parametrize(
    "shape",
    [
        (5, 12801, 3),
        (70, 513, 40),
        (1200, 9, 5),
        (900, 460, 401),
        (2, 2, 3000),
        (1201, 37, 390),
        (9, 1000, 803),
        (3, 5, 400),
    ],
    ids=str,
)
@pytest.mark.parametrize("a_is_transposed", [False, True])
@pytest.mark.parametrize("b_is_transposed", [False, True])
def test_blocks_and_what_remains_of_them(
    kind: tuple[Processor, str],
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    a_is_transposed: bool,
    b_is_transposed: bool,
) -> None:
    rows, depth, columns = shape
    a = matrix(rng, kind[1], depth, rows, 3).T if a_is_transposed else matrix(rng, kind[1], rows, depth)
    b = matrix(rng, kind[1], columns, depth).T if b_is_transposed else matrix(rng, kind[1], depth, columns)
    assert_product(kind, a, b, np.empty((rows, columns), kind[1]))


def test_large_matrices_are_fetched_and_cut_into_strips() -> None:
    def kinds(rows: int, depth: int, columns: int) -> tuple[bool, bool]:
        variant = variant_for(np.empty((depth, rows), "f4").T, np.empty((depth, columns), "f4"), Processor(64, 32))
        return variant.fetches, variant.strips

    assert kinds(1000, 400, 383) == (True, True)
    assert kinds(1000, 400, 320) == (True, False)
    assert kinds(64, 64, 512) == (False, True)
    assert kinds(64, 64, 320) == (False, False)


def test_columns_and_rows_may_lie_anywhere(kind: tuple[Processor, str], rng: np.random.Generator) -> None:
    b, out = matrix(rng, kind[1], 30, 50), np.empty((20, 50), kind[1])
    assert_product(kind, matrix(rng, kind[1], 20, 60)[::-1, ::2], b[::-1], out[::-1])
    assert_product(kind, np.broadcast_to(matrix(rng, kind[1], 1, 30), (20, 30)), b, out)
    assert_product(kind, np.broadcast_to(matrix(rng, kind[1], 20, 1), (20, 30)), np.broadcast_to(b[:1], b.shape), out)


def test_heads_of_an_attention_lie_between_each_other(kind: tuple[Processor, str], rng: np.random.Generator) -> None:
    parts = rng.standard_normal((2, 9, 3, 4, 7)).astype(kind[1])
    q, k, v = (parts[:, :, part].transpose(0, 2, 1, 3) for part in range(3))
    scores, mixed = np.empty((2, 4, 9, 9), kind[1]), np.full((2, 9, 4, 8), SENTINEL, kind[1])
    assert_product(kind, q, k.swapaxes(-1, -2), scores)
    assert_product(kind, scores, v, mixed[..., :7].transpose(0, 2, 1, 3))
    assert_product(kind, scores.swapaxes(-1, -2), v, mixed[..., :7].transpose(0, 2, 1, 3))
    assert (mixed[..., 7] == SENTINEL).all()


def test_stacks_are_joined_to_two_directions() -> None:
    x = np.empty((2, 3, 4, 5, 6))
    stack = stack_of((x, x))
    assert stack is not None
    assert stack.lengths == (1, 24)
    assert stack.strides == ((0, 240),) * 2
    swapped = stack_of((x, x.swapaxes(0, 1).reshape(2, 3, 4, 5, 6)[:, :, ::-1]))
    assert swapped is not None
    assert swapped.lengths == (6, 4)
    assert stack_of((x, x[::-1, :, ::-1], np.broadcast_to(x[:, :1], x.shape))) is None
    ones = stack_of((x[:1, :1, :1], x[1:, 2:, 3:]))
    assert ones is not None
    assert ones.lengths == (1, 1)


def test_what_is_not_finite_stays_in_its_row_and_column(kind: tuple[Processor, str], rng: np.random.Generator) -> None:
    a, b, out = matrix(rng, kind[1], 9, 70), matrix(rng, kind[1], 70, 90), np.empty((9, 90), kind[1])
    a[3, 5], b[69, 89] = np.nan, np.inf
    for columns in (b, np.ascontiguousarray(b.T).T):
        product(a, columns, out, kind[0])()
        assert (np.isfinite(out) == np.isfinite(a @ b)).all()
        assert np.isfinite(out).sum() == 8 * 89


def test_what_they_cannot_compute() -> None:
    def can(a: np.ndarray, b: np.ndarray) -> bool:
        return can_multiply(a, b, np.empty((len(a), b.shape[-1]), np.float32))

    a, b = np.ones((20, 64), np.float32), np.ones((64, 64), np.float32)
    assert can(a, b)
    assert not can(a.astype("f8"), b)
    assert not can(a.astype(">f4"), b.astype(">f4"))
    assert not can(a.astype(int), b.astype(int))
    assert not can(a[:0], b)
    assert not can(a[:, :0], b[:0])
    assert not can(a, b[:, :0])
    assert not can(a[:, :32], b[::2, ::2])
    assert not can_multiply(a, b, np.empty((20, 128), np.float32)[:, ::2])
    crooked = np.ones(20 * 64 * 4 + 4, np.uint8)[1:-3].view(np.float32).reshape(20, 64)
    assert not can(crooked, b)


def test_they_suit_what_is_not_large() -> None:
    def can(rows: int, depth: int, columns: int, dtype: str = "f4", orders: str = "CC", registers: int = 32) -> bool:
        a, b = np.empty((rows, depth), dtype, orders[0]), np.empty((depth, columns), dtype, orders[1])
        return suits(a, b, np.empty((rows, columns), dtype), Processor(64, registers))

    assert not can(1, 64, 64)
    assert not can(64, 64, 1)
    assert can(2, 64, 2)
    assert [can(1024, 1024, columns, orders="FC") for columns in (2048, 2049)] == [True, False]
    assert [can(1024, 1024, columns, orders="CF") for columns in (1024, 1025)] == [True, False]
    assert [can(1024, 1024, columns, "f8") for columns in (1024, 1025)] == [True, False]
    for orders in ("CC", "CF", "FC"):
        assert [can(512, 512, columns, orders=orders, registers=16) for columns in (1024, 1025)] == [True, False]


@pytest.mark.skipif(processor() is None, reason="there is no native code")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_step_is_the_interpreter_s(rng: np.random.Generator, threads: int) -> None:
    x = mg.input("x", (None, 24, 40))
    hidden = mg.parameter(rng.standard_normal((40, 48)).astype("f4") / 6, "hidden")
    h = mg.transpose(mg.reshape(x @ hidden, (None, 24, 4, 12)), (0, 2, 1, 3))
    loss = mg.mean(mg.square(mg.tanh(h @ mg.transpose(h, (0, 1, 3, 2))) @ h))
    graph = mg.Graph([loss, *mg.grad(loss, [hidden, x])])
    batch = rng.standard_normal((32, 24, 40)).astype("f4")
    state.place(map(variable_of, graph.variables), map(variable_of, graph.updates))

    def code_of(kernel: Kernel) -> set[int]:
        phases = native_phases(kernel)
        assert phases is not None
        return {call.address for phase in phases for share in phase for call in share}

    def ran(threads: int | None) -> tuple[list[np.ndarray], list[set[int]]]:
        plan = BoundPlan(make_program(graph), 32, state, Workspace(), threads=threads)
        (feed,) = (*plan.feeds.values(), *plan.part_feeds[0].values())
        feed[...] = batch
        binding = plan.bind(plan.turns())
        plan.run(0, binding)
        kernels = zip(plan.nodes, binding.kernels, strict=True)
        return [output.copy() for output in binding.outputs], [
            code_of(kernel) for node, kernel in kernels if node.op.name == "matmul"
        ]

    (by_blas, of_blas), (by_native, of_native) = ran(None), ran(threads)
    assert len(of_native) == 9
    assert all(old.isdisjoint(new) for old, new in zip(of_blas, of_native, strict=True))
    interpreted, _ = evaluate(graph, {x: batch}, batch_size=32)
    for expected, other, result in zip(interpreted, by_blas, by_native, strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(result, other, rtol=1e-4, atol=1e-6)
