"""Element-wise kernels of native code: right for every op, size and layout; and plans that compute chains by them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from drawn_graphs import DrawnGraph, drawn_graphs
from guarded_memory import placed
from hypothesis import given, settings
from hypothesis import strategies as st
from native_samples import SENTINEL, among_others

import miai_graph as mg
from executors import Processes, Serial
from miai_graph import layers, losses, optimizers
from miai_graph.executor import Executor
from miai_graph.kernels.compiler import native
from miai_graph.kernels.compiler.native import Processor, library, processor_with
from miai_graph.kernels.elementwise import kernels as elementwise_kernels
from miai_graph.kernels.elementwise.code import OPERATIONS, module_text
from miai_graph.kernels.elementwise.formulas import Formula, Operand, Step
from miai_graph.kernels.elementwise.kernels import FormulaKernels
from miai_graph.kernels.elementwise.stretches import Layout, Stretch, shared, shared_each
from miai_graph.op import ops
from miai_graph.plan.program import Storage, make_program

pytestmark = pytest.mark.skipif(native.processor() is None, reason="there is no native code for this processor")

FLOATS = (np.dtype("f4"), np.dtype("f8"))
PROCESSORS = [Processor(64, 32), Processor(32, 16), Processor(16, 32)]
"""LLVM takes vectors apart that this processor does not have."""

ARITHMETIC = ("add", "subtract", "multiply", "divide", "negative", "absolute", "square", "sqrt", "rsqrt")


@pytest.fixture(params=PROCESSORS, ids=lambda processor: f"{processor.vector_bytes} bytes")
def made_for(request, monkeypatch: pytest.MonkeyPatch) -> Processor:
    monkeypatch.setattr(native, "processor", lambda: request.param)
    return request.param


def inputs_of(name: str, dtype: np.dtype, shape: tuple[int, ...], rng: np.random.Generator) -> list[np.ndarray]:
    """Arrays that an op takes, special values among them."""
    count = {"where": 3}.get(name, getattr(ops[name], "arity", 1))
    limits = np.finfo(dtype)
    special = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, limits.tiny, limits.max, -limits.max, 88.0, -88.0]
    arrays = [np.asarray(rng.standard_normal(shape) * 3, dtype) for _ in range(count)]
    for array in arrays:
        flat = array.reshape(-1)
        chosen = rng.choice(special, size=flat.shape).astype(dtype)
        flat[:] = np.where(rng.random(flat.shape) < 0.2, chosen, flat)
    if name == "where":
        arrays[0] = arrays[0] > 0
    return arrays


def computed(step: Step, operands: Sequence[np.ndarray], shape: tuple[int, ...], threads: int = 1) -> np.ndarray:
    """What the kernel of one step gives; the memory around the result stays as it is."""
    result, memory = among_others(shape, step.dtype)
    kernels = FormulaKernels([step], [len(operands)], np.empty, "")
    kernels.add([placed(each) for each in operands], [result])
    kernels.kernel(threads)()
    assert memory[0] == memory[-1] == np.asarray(SENTINEL).astype(step.dtype)
    return result


def assert_same(found: np.ndarray, expected: np.ndarray, name: str) -> None:
    if name in ARITHMETIC or expected.dtype == bool:
        np.testing.assert_array_equal(found, expected)
    else:
        tolerance = 8 * np.finfo(expected.dtype).eps
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_each_operation_gives_what_its_op_does(
    name: str, dtype: np.dtype, made_for: Processor, rng: np.random.Generator
) -> None:
    for size in (0, 1, 2, 15, 16, 17, 63, 200):
        operands = inputs_of(name, dtype, (size,), rng)
        with np.errstate(all="ignore"):
            expected = np.asarray(ops[name].forward(*operands))
        step = Step(name, tuple(range(len(operands))), expected.dtype)
        if size:
            assert_same(computed(step, operands, (size,)), expected, name)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", ["exp", "expm1", "log", "tanh"])
def test_curves_are_right_over_their_whole_range(name: str, dtype: np.dtype, rng: np.random.Generator) -> None:
    limits = np.finfo(dtype)
    sizes = np.exp(rng.uniform(np.log(float(limits.smallest_subnormal)), np.log(float(limits.max)), 20_000))
    x = np.concatenate([sizes, -sizes, rng.uniform(-120, 120, 20_000), rng.uniform(-800, 800, 20_000)]).astype(dtype)
    x = np.concatenate([x, np.array([0, -0.0, np.inf, -np.inf, np.nan], dtype)])
    found = computed(Step(name, (0,), dtype), [x], x.shape)
    with np.errstate(all="ignore"):
        expected = getattr(np, name)(x.astype("f8") if dtype == "f4" else x).astype(dtype)
        spacing = np.spacing(np.abs(expected).clip(limits.tiny, limits.max))
        is_same = (found == expected) | (np.isnan(found) & np.isnan(expected))
        assert (is_same | (np.abs(found - expected) <= 3 * spacing)).all()


@pytest.mark.parametrize("source", ["f4", "f8", "?"])
@pytest.mark.parametrize("target", ["f4", "f8", "?"])
def test_casts(source: str, target: str, rng: np.random.Generator) -> None:
    x = np.array([0, 1, -2.5, np.nan, np.inf, 1e-30, *rng.standard_normal(40)]).astype(source)
    step = Step("cast", (0,), np.dtype(target))
    np.testing.assert_array_equal(computed(step, [x], x.shape), x.astype(target))


LAYOUTS = {
    "a number": lambda array: np.broadcast_to(array[:1, :1], array.shape),
    "a row": lambda array: np.broadcast_to(array[:1], array.shape),
    "a column": lambda array: np.broadcast_to(array[:, :1], array.shape),
    "transposed": lambda array: np.ascontiguousarray(array.T).T,
    "every other column": lambda array: np.repeat(array, 2, axis=1)[:, ::2],
    "every other row": lambda array: np.repeat(array, 2, axis=0)[::2],
    "backwards": lambda array: np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1],
    "unaligned": lambda array: np.concatenate([array.reshape(-1)[:1], array.reshape(-1)])[1:].reshape(array.shape),
}


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (3, 5), (7, 33), (130, 6)])
@pytest.mark.parametrize("second", LAYOUTS)
@pytest.mark.parametrize("first", LAYOUTS)
def test_operands_may_lie_in_any_way(first: str, second: str, shape: tuple[int, int], rng: np.random.Generator) -> None:
    operands = [LAYOUTS[layout](rng.standard_normal(shape).astype("f4")) for layout in (first, second)]
    for name in ("subtract", "divide"):
        step = Step(name, (0, 1), np.dtype("f4"))
        expected = ops[name].forward(*operands)
        np.testing.assert_array_equal(computed(step, operands, shape), expected)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_operands_of_more_axes(threads: int, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    monkeypatch.setattr(elementwise_kernels, "BYTES_WORTH_SHARING", 64)
    shape = (5, 1, 3, 4, 6)
    x = rng.standard_normal(shape)
    for axes in ((0,), (2,), (3,), (4,), (0, 3), (2, 4), (0, 2, 4), (0, 2, 3, 4)):
        small = rng.standard_normal(tuple(1 if axis in axes else length for axis, length in enumerate(shape)))
        operands = [x, np.broadcast_to(small, shape)]
        step = Step("multiply", (0, 1), np.dtype("f8"))
        np.testing.assert_array_equal(computed(step, operands, shape, threads), x * small)


def test_a_result_may_lie_where_an_operand_does(rng: np.random.Generator) -> None:
    x, y = rng.standard_normal((2, 9, 21))
    steps = [Step("add", (0, 1), x.dtype), Step("multiply", (2, 1), x.dtype)]
    expected = x + y, (x + y) * y
    kernels = FormulaKernels(steps, [2, 3], np.empty, "")
    kernels.add([x, y], [x, y])
    kernels.kernel()()
    np.testing.assert_array_equal(x, expected[0])
    np.testing.assert_array_equal(y, expected[1])


def test_results_are_streamed_past_the_caches_where_they_are_large(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    monkeypatch.setattr(elementwise_kernels, "STREAMED_BYTES", 100)
    step = Step("multiply", (0, 0), np.dtype("f4"))
    memory = np.zeros(4 * 1000 + 64, np.uint8)
    start = -memory.ctypes.data % 64
    x = rng.standard_normal(1000).astype("f4")
    for offset in (0, 4):
        result = memory[start + offset : start + offset + 4 * 999].view("f4")
        kernels = FormulaKernels([step], [1], np.empty, "")
        kernels.add([x[:999]], [result])
        kernel = kernels.kernel()
        kernel()
        np.testing.assert_array_equal(result, x[:999] ** 2)


@pytest.mark.parametrize("share_out", [shared, shared_each])
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 2000)), min_size=1, max_size=6), st.integers(1, 5))
def test_threads_share_all_elements_once(share_out, sizes: list[tuple[int, int]], shares: int) -> None:
    formula = Formula((Operand(np.dtype("f4"), False),), (Step("negative", (0,), np.dtype("f4")),), (1,))
    stretches, start = [], 0
    for rows, columns in sizes:
        stretches.append(Stretch(rows, columns, (start, start), (4 * columns, 4 * columns)))
        start += 4 * rows * columns
    found = share_out(stretches, formula, shares)
    assert len(found) <= shares
    covered = [
        place
        for share in found
        for stretch in share
        for row in range(stretch.rows)
        for place in range(
            stretch.addresses[0] + row * stretch.row_strides[0],
            stretch.addresses[0] + row * stretch.row_strides[0] + 4 * stretch.columns,
            4,
        )
    ]
    assert sorted(covered) == list(range(0, start, 4))


def test_processors_are_told_by_their_features() -> None:
    assert processor_with({"avx512f": True, "avx512vl": True, "avx2": True, "fma": True}) == Processor(64, 32)
    assert processor_with({"avx512f": False, "avx2": True, "fma": True}) == Processor(32, 16)
    assert processor_with({"avx2": True}) is None
    assert processor_with({"neon": True}) == Processor(16, 32)


def test_code_is_kept_on_the_disk(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(native, "_libraries", {})
    formula = Formula((Operand(np.dtype("f4"), False),), (Step("tanh", (0,), np.dtype("f4")),), (1,))
    text = module_text(formula, PROCESSORS[1])
    assert not native.kept()
    made = library(text, elementwise_kernels.SIGNATURES, "y = tanh(x)")
    assert made.seconds > 0
    (source,) = (tmp_path / "native").glob("*.ll")
    assert source.read_text().startswith("; y = tanh(x)\n")
    assert os.name == "nt" or (tmp_path / "native").stat().st_mode & 0o077 == 0
    monkeypatch.setattr(native, "_libraries", {})
    assert len(native.kept()) == 1
    assert library(text, elementwise_kernels.SIGNATURES).seconds == 0


def test_a_copy_goes_over_few_stretches() -> None:
    source = np.arange(3 * 50 * 2 * 4, dtype="f4").reshape(3, 2, 50, 4).transpose(0, 2, 1, 3)
    target = np.zeros((3, 50, 2, 4), "f4")
    found = list(Layout.of([source, target]).with_most_rows().stretches())
    assert [(stretch.rows, stretch.columns) for stretch in found] == [(50, 4)] * 6
    starts = {stretch.addresses for stretch in found}
    assert starts == {(source[i, 0, j].ctypes.data, target[i, 0, j].ctypes.data) for i in range(3) for j in range(2)}


def test_code_that_was_damaged_on_the_disk_is_compiled_again(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(native, "_libraries", {})
    formula = Formula((Operand(np.dtype("f4"), False),), (Step("exp", (0,), np.dtype("f4")),), (1,))
    text = module_text(formula, PROCESSORS[1])
    library(text, elementwise_kernels.SIGNATURES)
    (path,) = (tmp_path / "native").glob("*.code")
    whole = path.read_bytes()
    for damaged in (b"", whole[:100], whole[: len(whole) // 2], b"x" * len(whole)):
        path.write_bytes(damaged)
        monkeypatch.setattr(native, "_libraries", {})
        assert library(text, elementwise_kernels.SIGNATURES).seconds > 0
        assert path.read_bytes() == whole


@settings(max_examples=150)
@given(drawn_graphs())
def test_fused_programs_compute_every_node_once_and_before_it_is_read(drawn: DrawnGraph) -> None:
    program = make_program(drawn.graph)
    done: set = set()
    for node in program.steps:
        for source in program.operands_of(node):
            root = program.roots[source]
            assert program.storage[root] is not Storage.PASSING
            assert root in done or program.storage[root] not in (Storage.OWN, Storage.NEXT)
        assert done.isdisjoint(program.results_of(node))
        done.update(program.results_of(node))
    for node, storage in program.storage.items():
        assert (node in done) == (storage in (Storage.OWN, Storage.NEXT, Storage.EXPORT))


def test_an_optimizer_s_update_is_one_kernel_for_all_parameters() -> None:
    model = mg.Sequential([layers.Input((6,)), layers.Dense(5, activation="relu"), layers.Dense(3)])
    model.compile(optimizers.Adam(), losses.MeanSquaredError())
    timing = model.fit(np.ones((4, 6), "f4"), np.ones((4, 3), "f4"), verbose=0).timing
    kernels = {
        record.kernel or record.node
        for record in timing.records
        if record.phase == "update" and record.node.endswith(tuple("0123456789")) and record.bytes > 4 * 3 * 3
    }
    assert len(kernels) == 1


@pytest.mark.parametrize("threads", [1, 2])
def test_a_training_step_is_the_interpreter_s(threads: int, rng: np.random.Generator) -> None:
    x, w, b = (
        mg.input("x", (None, 40)),
        *(
            mg.parameter(rng.standard_normal(shape).astype("f4") / 6, name)
            for shape, name in (((40, 30), "w"), ((30,), "b"))
        ),
    )
    hidden = mg.sigmoid(x @ w + b) * mg.exp(-mg.square(x @ w)) + mg.maximum(mg.tanh(x @ w), 0.1)
    loss = mg.mean(mg.log(1.0 + mg.square(hidden)))
    updates = dict(zip((w, b), (p - 0.1 * g for p, g in zip((w, b), mg.grad(loss, [w, b]), strict=True)), strict=True))
    batch = rng.standard_normal((17, 40)).astype("f4")
    (expected,), new = mg.interpreter.evaluate(mg.Graph([loss], updates), {x: batch}, batch_size=17)
    with Serial(threads=threads) as executor:
        (found,) = mg.function([x], [loss], updates, executor=executor)(batch)
    np.testing.assert_allclose(found, expected, rtol=2e-6)
    for parameter, value in new.items():
        np.testing.assert_allclose(parameter.value, value, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("make", [Serial, lambda: Processes(2, wait_for_workers=True)], ids=["serial", "processes"])
def test_the_text_of_kernels_shows_what_is_computed_at_once(make: Callable[[], Executor]) -> None:
    x, w = mg.input("x", (None, 3)), mg.parameter(np.eye(3, dtype="f4"), "w")
    with make() as executor:
        step = mg.function([x], [mg.tanh(x @ w + 1.0) * 2.0], {w: w * 0.9}, executor=executor)
        lines = step.kernels.splitlines()
    assert lines[0] == "3 kernels:"
    at = lines.index("  3 nodes at once:")
    assert [line.strip().split(" = ")[0] for line in lines[at + 1 : at + 4]] == ["|   %add", "|   %tanh", "%multiply"]
    assert any(line.startswith("  %matmul = matmul(%x, %w) : f32[B,3]") for line in lines)


def test_without_native_code_nothing_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("miai_graph.plan.program.processor", lambda: None)
    x = mg.input("x", (None, 3))
    program = make_program(mg.Graph([mg.tanh(x + 1.0) * 2.0]))
    assert not program.fusions
    assert len(program.steps) == 3
