"""Sums that are taken while what they add up is computed: right for every size and layout, and in plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from guarded_memory import placed
from hypothesis import given, settings
from hypothesis import strategies as st
from native_samples import SENTINEL, among_others

import miai_graph as mg
from executors import Processes, Serial
from miai_graph.executor import Executor
from miai_graph.kernels.compiler import native
from miai_graph.kernels.compiler.native import Processor
from miai_graph.kernels.elementwise import kernels as elementwise_kernels
from miai_graph.kernels.elementwise.formulas import Step, Total
from miai_graph.kernels.elementwise.totals import SummedFormula
from miai_graph.node import Node
from miai_graph.plan.program import Program, Storage, make_program

pytestmark = pytest.mark.skipif(native.processor() is None, reason="there is no native code for this processor")

FLOATS = (np.dtype("f4"), np.dtype("f8"))
PROCESSORS = [Processor(64, 32), Processor(32, 16), Processor(16, 32)]
"""LLVM takes vectors apart that this processor does not have."""

SHAPES = [(1, 1), (1, 40), (300, 1), (7, 5), (65, 16), (64, 130), (129, 6), (2, 3, 4, 33), (3, 1, 5, 2), (70, 2, 1500)]


@pytest.fixture(params=PROCESSORS, ids=lambda processor: f"{processor.vector_bytes} bytes")
def made_for(request, monkeypatch: pytest.MonkeyPatch) -> Processor:
    monkeypatch.setattr(native, "processor", lambda: request.param)
    return request.param


class Products:
    """p = x · y, and sums of p over rows, of p + x along them, of x over rows, and of y over rows."""

    def __init__(self, x: np.ndarray, y: np.ndarray, axis: int, threads: int = 1) -> None:
        shape, dtype = x.shape, x.dtype
        steps = [Step("multiply", (0, 1), dtype), Step("add", (2, 0), dtype)]
        totals = [Total(2, False), Total(3, True), Total(0, False), Total(1, False)]
        places = [shape, shape[axis:], shape[:axis], shape[axis:], shape[axis:]]
        arrays, memories = zip(*(among_others(place, dtype) for place in places), strict=True)
        kernel = SummedFormula(steps, [2], totals, axis).kernel(
            [placed(x), placed(y)], arrays[:1], arrays[1:], np.empty, "", threads
        )
        kernel()
        kernel()
        assert all(memory[0] == memory[-1] == SENTINEL for memory in memories)
        self.product, *self.sums = arrays
        rows, columns = tuple(range(axis)), tuple(range(axis, x.ndim))
        wide, other = x.astype("f8"), y.astype("f8")
        self.expected = [
            np.multiply(x, y).sum(rows, "f8"),
            (np.multiply(x, y) + x).sum(columns, "f8"),
            wide.sum(rows),
            other.sum(rows),
        ]
        self.sizes = [np.abs(x * y).sum(rows), np.abs(x * y + x).sum(columns), np.abs(x).sum(rows), np.abs(y).sum(rows)]

    def check(self, x: np.ndarray, y: np.ndarray) -> None:
        np.testing.assert_array_equal(self.product, x * y)
        for found, expected, size in zip(self.sums, self.expected, self.sizes, strict=True):
            # Some roundings of parts, however much is added up.
            assert (np.abs(found - expected) <= 8 * np.finfo(x.dtype).eps * size + 1e-300).all()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_of_any_size(
    shape: tuple[int, ...], dtype: np.dtype, made_for: Processor, rng: np.random.Generator
) -> None:
    x, y = rng.standard_normal((2, *shape)).astype(dtype)
    for axis in range(1, len(shape)):
        Products(x, y, axis).check(x, y)


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "a number": lambda array: np.broadcast_to(array[:1, :1, :1], array.shape),
    "a row": lambda array: np.broadcast_to(array[:1, :1], array.shape),
    "rows of a matrix": lambda array: np.broadcast_to(array[:1], array.shape),
    "a column": lambda array: np.broadcast_to(array[:, :, :1], array.shape),
    "matrices": lambda array: np.broadcast_to(array[:, :1], array.shape),
    "numbers of matrices": lambda array: np.broadcast_to(array[:, :1, :1], array.shape),
    "transposed": lambda array: np.ascontiguousarray(array.T).T,
    "every other column": lambda array: np.repeat(array, 2, axis=2)[:, :, ::2],
    "every other row": lambda array: np.repeat(array, 2, axis=1)[:, ::2],
    "backwards": lambda array: np.ascontiguousarray(array[::-1, ::-1, ::-1])[::-1, ::-1, ::-1],
}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("second", LAYOUTS)
@pytest.mark.parametrize("first", ["every other row", *LAYOUTS])
def test_operands_may_lie_in_any_way(
    first: str, second: str, threads: int, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    monkeypatch.setattr(elementwise_kernels, "BYTES_WORTH_SHARING", 512)
    for shape in ((4, 5, 6), (3, 70, 20), (1, 1, 40), (9, 1, 1), (130, 2, 3)):
        array, other = rng.standard_normal((2, *shape)).astype("f4")
        x, y = LAYOUTS[first](array), LAYOUTS[second](other)
        for axis in (1, 2):
            Products(x, y, axis, threads).check(x, y)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 300), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_sums_over_rows_alone(rows: int, columns: int, threads: int, seed: int) -> None:
    """Short rows are joined then."""
    x = np.random.default_rng(seed).standard_normal((rows, columns)).astype("f4")
    row = np.random.default_rng(seed + 1).standard_normal(columns).astype("f4")
    formula = SummedFormula(
        [Step("subtract", (0, 1), x.dtype), Step("square", (2,), x.dtype)], [], [Total(3, False)], 1
    )
    total, memory = among_others((columns,), x.dtype)
    formula.kernel([x, np.broadcast_to(row, x.shape)], [], [total], np.empty, "", threads)()
    expected = np.square(x - row).sum(0, "f8")
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    assert memory[0] == memory[-1] == SENTINEL


@pytest.mark.parametrize("shape", [(0, 5), (4, 0), (0, 0), (2, 0, 3), (0, 3, 4)])
def test_sums_of_nothing_are_zero(shape: tuple[int, ...]) -> None:
    x = np.ones(shape, "f4")
    for axis in range(1, x.ndim):
        sums = Products(x, x, axis).sums
        assert all((total == 0).all() for total in sums)


def test_sums_of_other_dtypes(made_for: Processor, rng: np.random.Generator) -> None:
    """What a row is compared and cast to has vectors of as many numbers."""
    x = rng.standard_normal((77, 19)).astype("f4")
    steps = [
        Step("cast", (0,), np.dtype("f8")),
        Step("greater", (1, 2), np.dtype("?")),
        Step("cast", (3,), np.dtype("f4")),
    ]
    totals = [Total(2, False), Total(4, True), Total(4, False), Total(2, True)]
    sums = [np.empty(19), np.empty(77, "f4"), np.empty(19, "f4"), np.empty(77)]
    y = rng.standard_normal((77, 1))
    SummedFormula(steps, [], totals, 1).kernel([x, np.broadcast_to(y, x.shape)], [], sums, np.empty, "")()
    larger = y > x
    for found, expected in zip(sums, [x.sum(0, "f8"), larger.sum(1), larger.sum(0), x.sum(1, "f8")], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("axis", [0, 1])
def test_errors_do_not_grow_with_the_length(axis: int, made_for: Processor, rng: np.random.Generator) -> None:
    """As the sum of 70,000 numbers of one sign by NumPy, which adds in pairs."""
    x = np.square(rng.standard_normal((70_001, 3))).astype("f4")
    x = x if axis == 0 else np.ascontiguousarray(x.T)
    total = np.empty(3, "f4")
    formula = SummedFormula([Step("multiply", (0, 0), x.dtype)], [], [Total(1, axis == 1)], 1)
    formula.kernel([x], [], [total], np.empty, "")()
    np.testing.assert_allclose(total, np.multiply(x, x).sum(axis, "f8"), rtol=2 * np.finfo("f4").eps)


def test_numbers_that_are_not_finite_stay_in_their_rows_and_columns() -> None:
    x = np.ones((200, 37), "f4")
    x[3, 4], x[150, 36], x[7, 9], x[8, 9] = np.nan, np.inf, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        found = Products(x, np.ones_like(x), 1)
        for total, expected in zip(found.sums, found.expected, strict=True):
            np.testing.assert_array_equal(total, expected)


@pytest.mark.parametrize("threads", [1, 2])
def test_results_are_the_same_wherever_arrays_lie(
    threads: int, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    monkeypatch.setattr(elementwise_kernels, "BYTES_WORTH_SHARING", 1 << 12)
    values = rng.standard_normal((2, 501, 43)).astype("f4")
    found = []
    for offset in (0, 1, 5):
        memory = np.empty(values.size + offset, "f4")
        x, y = memory[offset:].reshape(values.shape)
        x[:], y[:] = values
        found.append(Products(x, y, 1, threads).sums)
    for sums in found[1:]:
        for total, first in zip(sums, found[0], strict=True):
            assert total.tobytes() == first.tobytes()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 700, 20), (2, 5, 9), (33, 70, 1), (40, 65, 6), (9, 2, 130)], ids=str)
def test_bits_do_not_depend_on_what_else_is_computed(
    shape: tuple[int, ...], layout: str, dtype: np.dtype, rng: np.random.Generator
) -> None:
    x, other = rng.standard_normal((2, *shape)).astype(dtype)
    y = LAYOUTS[layout](other)
    for axis in (1, 2):
        together = Products(x, y, axis)
        alone = [np.empty_like(total) for total in together.sums]
        sources = [(x * y, False), (x * y + x, True), (x, False), (np.ascontiguousarray(y), False)]
        for (source, along_rows), total in zip(sources, alone, strict=True):
            SummedFormula([], [], [Total(0, along_rows)], axis).kernel([source], [], [total], np.empty, "")()
        for total, own in zip(together.sums, alone, strict=True):
            assert total.tobytes() == own.tobytes()


def kernel_of(program: Program, node: Node) -> list[str]:
    """The ops that are computed together with a node."""
    fusion = program.fusions.get(program.steps[program.computed_at[node]])
    return [node.op.name] if fusion is None else [member.op.name for member in fusion.nodes]


def test_sums_are_taken_where_values_are_computed() -> None:
    x, w = mg.input("x", (None, 6)), mg.input("w", (6, 6))
    y = mg.relu(x @ w)
    after = y @ w
    rows, columns = mg.sum(y, 0), mg.sum(mg.square(y), 1)
    program = make_program(mg.Graph([after, rows, columns]))
    assert kernel_of(program, rows) == ["relu", "sum", "square", "sum"]
    assert program.computed_at[rows] == program.computed_at[columns] == program.computed_at[y]
    square = columns.inputs[0]
    assert program.storage[square] is Storage.PASSING


def test_sums_of_other_axes_are_computed_alone() -> None:
    x = mg.input("x", (None, 4, 6))
    y = mg.tanh(x)
    middle, apart, whole = mg.sum(y, 1), mg.sum(y, (0, 2)), mg.sum(y)
    program = make_program(mg.Graph([middle, apart, whole]))
    assert all(kernel_of(program, total) == ["sum"] for total in (middle, apart, whole))


def test_sums_that_split_axes_elsewhere_are_in_no_kernel_together() -> None:
    x = mg.input("x", (None, 4, 6))
    y = mg.tanh(x)
    first, last = mg.sum(y, 0), mg.sum(y, 2)
    program = make_program(mg.Graph([first, last]))
    assert sorted((kernel_of(program, first), kernel_of(program, last)), key=len) == [["sum"], ["tanh", "sum"]]


def test_sums_of_values_that_are_computed_in_another_precision_are_computed_alone() -> None:
    x = mg.input("x", (None, 6))
    y = mg.cast(mg.tanh(mg.cast(x, "f8")), "f4")
    total = mg.sum(y, 1)
    program = make_program(mg.Graph([total]))
    assert kernel_of(program, total) == ["sum"]


def test_what_costs_nothing_is_computed_again_by_those_who_read_it() -> None:
    x, w = mg.input("x", (None, 6)), mg.input("w", (6, 6))
    y = x @ w
    differences = y - mg.mean(y, 0)
    variance = mg.mean(mg.square(differences), 0)
    normal = differences * mg.rsqrt(variance + 1e-3)
    program = make_program(mg.Graph([normal @ w]))
    assert program.storage[differences] is Storage.PASSING
    assert kernel_of(program, normal) == ["subtract", "multiply"]
    holders = [fusion for fusion in program.fusions.values() if differences in set(fusion.nodes)]
    assert [differences in fusion.chains[0].repeated for fusion in holders] == [False, True]


def test_what_others_read_too_is_kept() -> None:
    x, w = mg.input("x", (None, 6)), mg.input("w", (6, 6))
    y = x @ w
    differences = y - mg.mean(y, 0)
    normal = differences * mg.rsqrt(mg.mean(mg.square(differences), 0) + 1e-3)
    program = make_program(mg.Graph([normal @ w, differences @ w]))
    assert program.storage[differences] is Storage.OWN
    assert kernel_of(program, normal) == ["multiply"]


def normalized(x: Node, axes: tuple[int, ...], gamma: Node, beta: Node) -> Node:
    differences = x - mg.mean(x, axes, keepdims=True)
    variance = mg.mean(mg.square(differences), axes, keepdims=True)
    return differences * (mg.rsqrt(variance + 1e-3) * gamma) + beta


def convolutional(x: Node, weights: Sequence[Node]) -> Node:
    kernel, other, *rest = weights
    hidden = mg.relu(normalized(mg.conv2d(x, kernel, padding="same"), (0, 1, 2), *rest[:2]))
    again = normalized(mg.conv2d(hidden, other, padding="same"), (0, 1, 2), *rest[2:])
    return mg.relu(again + hidden)


def by_rows(x: Node, weights: Sequence[Node]) -> Node:
    kernel, other, *rest = weights
    hidden = x @ mg.reshape(kernel, (-1, 6))[:5] + rest[3]
    hidden = mg.relu(normalized(hidden, (3,), *rest[:2]) @ mg.reshape(other, (-1, 6))[:6] + rest[3])
    return normalized(hidden + mg.softmax(hidden), (3,), *rest[2:])


EXECUTORS: dict[str, Callable[[], Executor]] = {
    "one thread": lambda: Serial(threads=1),
    "two threads": lambda: Serial(threads=2),
    "processes": lambda: Processes(2, wait_for_workers=True),
    "shards": lambda: Serial(reproducible=True, shards=3),
}


@pytest.mark.parametrize("make", EXECUTORS.values(), ids=EXECUTORS)
@pytest.mark.parametrize("network", [convolutional, by_rows])
def test_networks_that_normalize_are_the_interpreter_s(
    network: Callable[[Node, Sequence[Node]], Node],
    make: Callable[[], Executor],
    monkeypatch: pytest.MonkeyPatch,
    rng: np.random.Generator,
) -> None:
    monkeypatch.setattr(elementwise_kernels, "BYTES_WORTH_SHARING", 1 << 10)
    shapes = [(3, 3, 5, 6), (3, 3, 6, 6), (6,), (6,), (6,), (6,)]
    weights = [
        mg.parameter(rng.standard_normal(shape).astype("f4"), name)
        for shape, name in zip(shapes, "abcdef", strict=True)
    ]
    x = mg.input("x", (None, 7, 9, 5))
    loss = mg.mean(mg.square(network(x, weights) - 0.3))
    results = [loss, *mg.grad(loss, weights)]
    batch = rng.standard_normal((11, 7, 9, 5)).astype("f4")
    expected, _ = mg.interpreter.evaluate(mg.Graph(results), {x: batch}, batch_size=11)
    with make() as executor:
        step = mg.function([x], results, executor=executor)
        found = step(batch)
        again = step(batch)
    for value, other, true in zip(found, again, expected, strict=True):
        np.testing.assert_allclose(value, true, rtol=2e-5, atol=2e-6)
        assert value.tobytes() == other.tobytes()


def test_the_text_and_the_timing_tell_of_each_node(rng: np.random.Generator) -> None:
    x, w = mg.input("x", (None, 6)), mg.parameter(rng.standard_normal((6, 6)).astype("f4"), "w")
    y = x @ w
    differences = y - mg.mean(y, 0)
    normal = differences * mg.rsqrt(mg.mean(mg.square(differences), 0) + 1e-3)
    with Serial(threads=1) as executor:
        step = mg.function([x], [normal @ w], executor=executor)
        lines = [line.strip() for line in step.kernels.splitlines()]
        step(np.ones((50, 6), "f4"))
        records = step.timing.records
    at = lines.index("3 nodes at once:")
    assert [line.split(" = ")[0] for line in lines[at + 1 : at + 4]] == ["|   %subtract", "|   %square", "%sum_1"]
    (subtraction,) = (record for record in records if record.op == "subtract")
    assert subtraction.calls == 1
    assert subtraction.flops == 50 * 6
    sums = {record.node: record for record in records if record.op == "sum"}
    assert sums["sum_1"].kernel == "sum_1"
    assert sums["sum_1"].flops == 50 * 6
