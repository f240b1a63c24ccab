"""Native code that runs one kernel after another: in order, timed by Python's clock, and stopped by what is wrong."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import textwrap
import timeit
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import perf_counter_ns

import numpy as np
import pytest

import miai_graph as mg
from executors import Serial
from miai_graph import layers, losses
from miai_graph.errors import ExecutionError
from miai_graph.kernels.compiler.denormals import FlushedDenormals
from miai_graph.kernels.compiler.native import processor
from miai_graph.kernels.elementwise.formulas import Step
from miai_graph.kernels.elementwise.kernels import FormulaKernels, adding, copying, filling
from miai_graph.kernels.kernel import NOTHING, Kernel, Several, checked
from miai_graph.kernels.products.blas import product
from miai_graph.kernels.products.matrix_product import matrix_product
from miai_graph.kernels.running import team as team_module
from miai_graph.kernels.running.crew import together
from miai_graph.kernels.running.run import joined, native_phases
from miai_graph.kernels.running.run_code import HELPER_WORDS
from miai_graph.kernels.running.team import functions, has_counter, team
from miai_graph.ops.leaves import variable_of
from miai_graph.plan.bound import BoundPlan
from miai_graph.plan.memory import Workspace
from miai_graph.plan.program import make_program
from miai_graph.state import state

pytestmark = pytest.mark.skipif(processor() is None, reason="there is no native code for this processor")

in_runs = pytest.mark.skipif(len(joined([NOTHING, NOTHING], None)) > 1, reason="native code finds no clock here")

FLOAT = np.dtype("f4")


def doubling(array: np.ndarray) -> Kernel:
    """Native code that adds an array to itself, in place."""
    kernels = FormulaKernels([Step("add", (0, 0), FLOAT)], [1], np.empty, "x + x")
    kernels.add([array], [array])
    return kernels.kernel()


class Stamps:
    """Times, and where they are."""

    def __init__(self, count: int) -> None:
        self.times = np.zeros(count, np.int64)
        self.place = np.array([self.times.ctypes.data], np.int64)


@pytest.fixture(params=["by the processor's counter", "by the clock"])
def _timing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Times are taken in one of two ways."""
    counts = request.param == "by the processor's counter"
    if counts and not has_counter():
        pytest.skip("the processor's counter is not known to be a clock")
    monkeypatch.setattr(team_module, "has_counter", lambda: counts)
    functions.cache_clear()
    yield
    functions.cache_clear()


@in_runs
@pytest.mark.usefixtures("_timing")
def test_times_are_as_long_as_the_kernels() -> None:
    """Of four kernels, two of which take hundreds of times as long."""
    long, short = np.zeros(2_000_000, "f4"), np.zeros(3, "f4")
    stamps = Stamps(5)
    kernels = [doubling(array) for array in (long, short, long, short)]
    (run,) = joined(kernels, stamps.place)
    best = np.full(4, np.inf)
    for _ in range(20):
        before = perf_counter_ns()
        run.kernel()
        after = perf_counter_ns()
        taken = np.diff(stamps.times)
        best = np.minimum(best, taken)
        assert 0 <= stamps.times[0] - before
        assert 0 <= after - stamps.times[-1]
        assert np.all(taken >= 0)
        assert taken.sum() <= after - before
    alone = min(timeit.repeat(kernels[0], number=1, repeat=20)) * 1e9
    # Other programs may slow down all that goes on, but not by as much each time.
    assert best[0] / 3 < best[2] < best[0] * 3
    assert best[0] / 3 < alone < best[0] * 3
    assert best[1] < best[0] / 20


@in_runs
@pytest.mark.usefixtures("_timing")
def test_a_run_computes_in_order_and_is_timed_by_python_s_clock() -> None:
    x, stamps = np.ones(100, "f4"), Stamps(6)
    kernels = [doubling(x), doubling(x), partial(np.add, x, 1, x), doubling(x), Several((doubling(x), doubling(x)))]
    runs = joined(kernels, stamps.place)
    assert [(run.last, run.is_timed) for run in runs] == [(1, True), (2, False), (4, True)]
    before = perf_counter_ns()
    for run in runs:
        run.kernel()
    after = perf_counter_ns()
    assert np.all(x == 40)
    assert [before, *stamps.times, after] == sorted([before, *stamps.times, after])


@in_runs
def test_times_go_where_the_place_says_later() -> None:
    x, stamps, others = np.ones(3, "f4"), Stamps(3), np.zeros(3, np.int64)
    (run,) = joined([doubling(x), doubling(x)], stamps.place)
    stamps.place[0] = others.ctypes.data
    run.kernel()
    assert np.all(others > 0)
    assert not stamps.times.any()


@in_runs
def test_a_run_without_times() -> None:
    x = np.ones(3, "f4")
    (run,) = joined([doubling(x), NOTHING, doubling(x)], None)
    run.kernel()
    assert run.last == 2
    assert not run.is_timed
    assert np.all(x == 4)


@in_runs
def test_what_is_wrong_ends_a_run_and_is_told_each_time() -> None:
    x, flag, stamps = np.ones(3, "f4"), np.zeros(1, np.int64), Stamps(4)

    def explain() -> None:
        raise ValueError("a label is wrong")

    runs = joined([doubling(x), checked(doubling(x), flag, explain), doubling(x)], stamps.place)
    assert [run.last for run in runs] == [1, 2]
    run = runs[0].kernel
    for _ in range(2):
        flag[0] = 1
        with pytest.raises(ValueError, match="a label is wrong"):
            run()
        assert not flag[0]
    run()
    assert np.all(x == 2**6)


@pytest.mark.parametrize(
    "kernel", [lambda: None, partial(np.add, 1, 2), Several((NOTHING, print)), partial(doubling, np.ones(1, "f4"))]
)
def test_what_is_python_s_is_not_in_a_run(kernel: Kernel) -> None:
    assert native_phases(kernel) is None


def test_native_calls_of_what_consists_of_others() -> None:
    x = np.ones(3, "f4")
    phases = native_phases(Several((doubling(x), Several((doubling(x), doubling(x))), NOTHING)))
    assert phases is not None
    assert [[len(share) for share in phase] for phase in phases] == [[1]] * 3
    assert len({call.address for phase in phases for share in phase for call in share}) == 1


MATRICES = {
    "square": ((4, 4), (4, 4)),
    "odd": ((3, 5), (5, 7)),
    "larger": ((65, 33), (33, 129)),
    "a row": ((1, 5), (5, 7)),
    "a column": ((5, 7), (7, 1)),
    "deep by one": ((5, 1), (1, 7)),
    "nothing": ((0, 5), (5, 7)),
    "of nothing": ((3, 0), (0, 7)),
    "a stack": ((6, 3, 5), (6, 5, 7)),
    "a stack and one": ((6, 3, 5), (5, 7)),
    "a stack of stacks": ((2, 3, 4, 5), (2, 3, 5, 6)),
    "a stack that is repeated": ((2, 3, 4, 5), (2, 1, 5, 6)),
    "an empty stack": ((0, 3, 5), (0, 5, 7)),
}


def by_columns(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.swapaxes(-1, -2)).swapaxes(-1, -2)


def with_gaps(array: np.ndarray) -> np.ndarray:
    """In a larger array, whose rows and matrices lie apart."""
    larger = np.full([length + 2 for length in array.shape], np.nan if array.dtype.kind == "f" else 1, array.dtype)
    view = larger[tuple(slice(1, length + 1) for length in array.shape)]
    view[...] = array
    return view


LAYOUTS = {"rows": np.ascontiguousarray, "columns": by_columns, "gaps": with_gaps}


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("layouts", list(itertools.product(LAYOUTS, LAYOUTS)), ids="-".join)
@pytest.mark.parametrize("shapes", MATRICES.values(), ids=MATRICES)
def test_products_are_numpy_s(rng: np.random.Generator, shapes, layouts: tuple[str, str], dtype: str) -> None:
    a, b = (
        LAYOUTS[layout](rng.standard_normal(shape).astype(dtype)) for shape, layout in zip(shapes, layouts, strict=True)
    )
    expected = np.matmul(a, b)
    for made in (np.ascontiguousarray, with_gaps):
        out = made(np.full_like(expected, np.nan))
        around = np.array(out.base) if made is with_gaps else None
        product(a, b, out)()
        np.testing.assert_allclose(out, expected, rtol=1e-5 if dtype == "f4" else 1e-13, atol=1e-5)
        if around is not None:
            out[...] = np.nan
            np.testing.assert_array_equal(out.base, around)


def test_products_of_more_than_a_row_are_native() -> None:
    a, b, out = np.ones((3, 5), "f4"), np.ones((5, 4), "f4"), np.ones((3, 4), "f4")
    if native_phases(product(a, b, out)) is None:
        pytest.skip("the BLAS library of this NumPy does not show its functions")
    assert native_phases(product(a, by_columns(b), with_gaps(out))) is not None
    assert native_phases(product(a[::-1], b, out)) is None
    assert native_phases(product(a, b[:, ::-1], out)) is None
    assert native_phases(product(a, b, by_columns(out))) is None
    assert native_phases(product(a, b.astype("f8"), out)) is None
    far = np.lib.stride_tricks.as_strided(b, b.shape, (4 << 31, 4))
    assert native_phases(product(a, far, out)) is None


def test_denormal_numbers_are_zero_within_a_block_alone() -> None:
    small, half = np.full(100, 1e-40, "f4"), np.float32(0.5)
    block = FlushedDenormals()
    with ThreadPoolExecutor(1) as another:
        assert another.submit(lambda: (small * half).all()).result()
        for _ in range(2):
            with suppress(KeyError), block:
                inside = small.copy()
                doubling(inside)()
                seen_by_another = another.submit(lambda: (small * half).all()).result()
                raise KeyError
            assert not inside.any()
            assert seen_by_another
            assert (small * half).all(), "expected denormal numbers after the block"


def test_what_decays_ends_at_zero() -> None:
    decaying = mg.variable(np.full(8, 1e-37, "f4"), "decaying")
    step = mg.function([], [], updates={decaying: decaying * np.float32(0.5)}, executor=Serial(threads=1))
    for _ in range(5):
        step()
    assert not decaying.value.any()


def test_a_wrong_label_changes_nothing_and_the_next_step_works(rng: np.random.Generator) -> None:
    x, labels = mg.input("x", (None, 6)), mg.input("labels", (None,), "int64")
    weights = mg.parameter(rng.standard_normal((6, 3)).astype("f4"), "weights")
    loss = mg.mean(mg.sparse_softmax_cross_entropy(x @ weights, labels))
    (gradient,) = mg.grad(loss, [weights])
    step = mg.function([x, labels], [loss], updates={weights: weights - gradient}, executor=Serial(threads=1))
    batch, right = rng.standard_normal((8, 6)).astype("f4"), rng.integers(0, 3, 8)
    wrong = np.where(np.arange(8) == 3, 7, right)
    step(batch, right)
    before = weights.value
    with pytest.raises(ExecutionError, match="sparse_softmax_cross_entropy"):
        step(batch, wrong)
    np.testing.assert_array_equal(weights.value, before)
    step(batch, right)
    assert not np.array_equal(weights.value, before)


@in_runs
def test_each_node_of_a_run_has_its_time(rng: np.random.Generator) -> None:
    x = mg.input("x", (None, 30))
    weights = mg.parameter(rng.standard_normal((30, 40)).astype("f4"), "weights")
    loss = mg.mean(mg.square(mg.tanh(x @ weights)))
    graph = mg.Graph([loss, *mg.grad(loss, [weights])])
    state.place(map(variable_of, graph.variables))
    plan = BoundPlan(make_program(graph), 16, state, Workspace(), threads=1)
    binding = plan.bind(plan.turns())
    assert len(binding.runs) < len(binding.kernels)
    plan.feeds[x][...] = rng.standard_normal((16, 30))
    before = perf_counter_ns()
    plan.run(0, binding)
    after = perf_counter_ns()
    times = [before, *plan.stamps.tolist(), after]
    assert times == sorted(times)
    assert len(set(times)) == len(times), "expected each kernel to take time"


@pytest.mark.parametrize("start", [0, -1, 2**40, 2**63 - 1])
def test_counters_count_as_numpy_does(start: int) -> None:
    counter = mg.variable(np.array(start), "counter", dtype="int64")
    step = mg.function([], [], updates={counter: counter + 1}, executor=Serial(threads=1))
    step()
    assert counter.value == np.array([start]) + 1


def shares(array: np.ndarray, count: int) -> Kernel:
    return together([doubling(part) for part in np.array_split(array, count)])


@in_runs
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_share_a_run_in_step(threads: int) -> None:
    """Each phase reads what other threads have written in the one before."""
    count = 40 * threads
    a, b = np.arange(count, dtype="f4"), np.zeros(count, "f4")

    def moving(source: np.ndarray, target: np.ndarray) -> Kernel:
        """Native code that writes what is in the source, the other way round."""
        kernels = []
        for part, other in zip(np.array_split(source, threads), np.array_split(target, threads)[::-1], strict=True):
            own = FormulaKernels([Step("add", (0, 0), FLOAT)], [1], np.empty, "x + x")
            own.add([part], [other])
            kernels.append(own.kernel())
        return together(kernels)

    stamps = Stamps(8)
    kernels = [moving(a, b), moving(b, a), doubling(a), doubling(a), moving(a, b), moving(b, a), NOTHING]
    (run,) = joined(kernels, stamps.place)
    assert run.last == 6
    for _ in range(200):
        before = perf_counter_ns()
        run.kernel()
        written = [before, *stamps.times, perf_counter_ns()]
        assert written == sorted(written)
        np.testing.assert_array_equal(a, np.arange(count, dtype="f4") * 64)
        a[:] = np.arange(count)


@in_runs
def test_threads_that_sleep_are_woken() -> None:
    x = np.ones(64, "f4")
    ((_, run, _),) = joined([shares(x, 2), shares(x, 2)], None)
    own = team(2)
    asleep = own._helpers[1, HELPER_WORDS.index("asleep") :]
    for times in range(1, 6):
        run()
        assert np.all(x == 4**times)
        deadline = perf_counter_ns() + 20 * 10**9
        while not asleep[0]:
            assert perf_counter_ns() < deadline, "expected the other thread to sleep after a while"


@in_runs
def test_who_finds_the_team_busy_works_alone() -> None:
    x = np.ones(64, "f4")
    ((_, run, _),) = joined([shares(x, 2), doubling(x), shares(x, 2)], None)
    with team(2).lock:
        run()
    assert np.all(x == 8)


@in_runs
def test_runs_of_several_threads_at_once() -> None:
    arrays = [np.ones(1000, "f4") for _ in range(4)]

    def work(array: np.ndarray) -> None:
        ((_, run, _),) = joined([shares(array, 2), doubling(array), shares(array, 2)], None)
        for _ in range(300):
            array.fill(1)
            run()
            assert np.all(array == 8)

    with ThreadPoolExecutor(len(arrays)) as pool:
        list(pool.map(work, arrays))


FORKING = """
    import os
    import numpy as np
    from test_native_runs import shares
    from miai_graph.kernels.running.run import joined

    x = np.ones(64, "f4")
    ((_, run, _),) = joined([shares(x, 2), shares(x, 2)], None)
    run()
    child = os.fork()
    run()
    assert np.all(x == 16), x
    if not child:
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0, status
    print("both")
"""


@in_runs
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_has_threads_of_its_own() -> None:
    script = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(FORKING)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parent)
    assert (done.stdout, done.returncode) == ("both\n", 0), done.stderr


def test_a_network_s_step_in_threads_is_that_of_one(rng: np.random.Generator) -> None:
    x, y = rng.standard_normal((64, 12, 12, 3)).astype("f4"), rng.integers(0, 5, 64)

    def trained(threads: int) -> list[np.ndarray]:
        mg.set_seed(3)
        pixels = layers.Input((12, 12, 3))
        hidden = layers.MaxPooling2D()(layers.Conv2D(8, 3, activation="relu")(pixels))
        output = layers.Dense(5)(layers.Dense(300, activation="tanh")(layers.Flatten()(hidden)))
        model = mg.Model(pixels, output)
        model.compile("adam", losses.SparseCategoricalCrossentropy(from_logits=True))
        with Serial(threads=threads) as serial:
            model.fit(x, y, batch_size=32, epochs=3, shuffle=False, verbose=0, executor=serial)
        return model.get_weights()

    for one, several in zip(trained(1), trained(2), strict=True):
        np.testing.assert_allclose(several, one, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("exponent", [0, 1, 2, 1000, -3, 2**40])
def test_powers_of_single_numbers(dtype: str, exponent: int) -> None:
    count = mg.variable(np.array(exponent), "count", dtype="int64")
    bases = np.array([0.9, 0.999, 0.0, -0.5, np.nan, np.inf, 1.0], dtype)
    for base in bases:
        power = base ** mg.cast(count, dtype)
        (found,) = mg.function([], [power], executor=Serial(threads=1))()
        with np.errstate(all="ignore"):
            np.testing.assert_allclose(found, base ** np.array(exponent, dtype), rtol=1e-6)


COPIES = {
    "plain": ((5, 7), lambda a: a),
    "one element": ((1, 1), lambda a: a),
    "one channel": ((4, 3, 6), lambda a: a[:, :, :1]),
    "every other": ((6, 8), lambda a: a[::2, ::2]),
    "the other way round": ((6, 8), lambda a: a[::-1, ::-1]),
    "transposed": ((6, 8), lambda a: a.T),
    "heads": ((2, 5, 3, 4), lambda a: a.swapaxes(1, 2)),
    "a row for all": ((1, 9), lambda a: np.broadcast_to(a, (300, 9))),
    "a column for all": ((9, 1), lambda a: np.broadcast_to(a, (9, 40))),
    "a number for all": ((), lambda a: np.broadcast_to(a, (3, 4))),
    "none": ((0, 3), lambda a: a),
    "many pieces": ((1100, 2, 2, 3), lambda a: a[:, ::-1, :, :2]),
}


@pytest.mark.parametrize("dtype", ["f4", "f8", "i8", "?"])
@pytest.mark.parametrize(("shape", "view"), COPIES.values(), ids=COPIES)
def test_copies_are_numpy_s(rng: np.random.Generator, shape, view, dtype: str) -> None:
    source = view((9 * rng.standard_normal(shape)).astype(dtype))
    for layout in (np.array, with_gaps, lambda a: by_columns(a) if a.ndim > 1 else a):
        for threads in (1, 3):
            target = layout(np.zeros(source.shape, source.dtype))
            around = np.array(target.base) if layout is with_gaps and target.size else None
            copying(target, source, threads)()
            np.testing.assert_array_equal(target, source)
            if dtype != "?":
                adding(target, [source])()
                np.testing.assert_array_equal(target, source + source)
            filling(target, 3, threads)()
            assert (target == np.array(3, dtype)).all()
            target[...] = 0
            if around is not None:
                np.testing.assert_array_equal(np.nan_to_num(target.base), np.nan_to_num(around))


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("shape", [(8, 784, 256), (32, 129, 300), (3, 5000, 77), (64, 250, 128), (1, 900, 900)])
def test_threads_share_products_with_many_rows_of_b(rng: np.random.Generator, shape, dtype: str) -> None:
    rows, depth, columns = shape
    a, b = (rng.standard_normal(size).astype(dtype) for size in ((rows, depth), (depth, columns)))
    for threads in (1, 2, 3):
        out = with_gaps(np.full((rows, columns), np.nan, dtype))
        around = np.array(out.base)
        matrix_product(a, b, out, np.empty, threads)()
        np.testing.assert_allclose(out, a @ b, rtol=1e-3 if dtype == "f4" else 1e-11, atol=1e-4)
        out[...] = np.nan
        np.testing.assert_array_equal(out.base, around)
