"""What may be fed to a function, and what is refused before anything is computed."""

from __future__ import annotations

import weakref

import numpy as np
import pytest

import miai_graph as mg
from executors import Serial
from miai_graph.errors import FeedError
from miai_graph.feeding import Rows, Table
from miai_graph.kernels.compiler import native
from miai_graph.plan.row_feed import RowFeed

needs_native_code = pytest.mark.skipif(native.processor() is None, reason="no native code on this machine")

X = {"shape": (None, 3), "dtype": "float32"}


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ([np.ones((2, 4)), np.ones(2, int)], r"shape \(None, 3\) for input f32\[B,3\] x .*found \(2, 4\)"),
        ([np.ones(3), np.ones(2, int)], r"found \(3,\)"),
        ([np.ones((2, 3, 1)), np.ones(2, int)], r"found \(2, 3, 1\)"),
        ([np.ones((2, 3)), np.ones(2)], r"dtype int64 for input i64\[B\] y .*found float64. Convert it"),
        ([np.ones((2, 3), complex), np.ones(2, int)], "expected numbers"),
        ([np.array([["a", "b", "c"]]), np.ones(1, int)], "expected numbers"),
        ([np.array([[None, 1, 2]]), np.ones(1, int)], "expected numbers"),
        ([[[1, 2, 3], [1, 2]], np.ones(2, int)], "found list"),
        ([np.ones((0, 3)), np.ones(0, int)], "at least one sample"),
        ([np.ones((2, 3)), np.ones(3, int)], "as many samples in each array; found 2 .* and 3"),
        ([np.ones((2, 3))], "expected 2 arrays, for x, y; found 1"),
        ([np.ones((2, 3))] * 3, "found 3"),
        ([], "found 0"),
        ([None, np.ones(2, int)], "expected numbers"),
    ],
)
def test_wrong_feeds_are_refused(arrays, text: str) -> None:
    x, y = mg.input("x", **X), mg.input("y", (None,), "int64")
    counter = mg.variable(0, "counter")
    step = mg.function([x, y], [mg.sum(x) + mg.sum(y)], {counter: counter + 1})
    with pytest.raises(FeedError, match=text):
        step(*arrays)
    assert counter.value == 0
    with pytest.raises(FeedError, match="found node x"):
        step(x, y)


@pytest.mark.parametrize(
    "array",
    [
        [[1, 2, 3], [4, 5, 6]],
        ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0)),
        np.arange(1, 7, dtype="f8").reshape(3, 2).T.reshape(2, 3),
        np.arange(12, dtype="f4").reshape(4, 3)[::2],
        np.asfortranarray(np.arange(6, dtype="f4").reshape(2, 3)),
        np.arange(6, dtype=">f4").reshape(2, 3),
        np.arange(6, dtype=">i2").reshape(2, 3),
        np.arange(6, dtype="f2").reshape(2, 3),
        np.arange(6, dtype="u1").reshape(2, 3),
        np.array([[True, False, True]] * 2),
        np.broadcast_to(np.ones(3, "f4"), (2, 3)),
        np.array([[np.nan, np.inf, -0.0], [1e-45, 3e38, 1.0]], "f4"),
        np.ma.array(np.ones((2, 3), "f4")),
    ],
)
def test_all_that_fits_may_be_fed(array) -> None:
    x = mg.input("x", **X)
    expected = np.array(array, dtype="f4")
    if isinstance(array, np.ndarray):
        array.setflags(write=False)
    (found,) = mg.function([x], [x])(array)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous


def test_inputs_without_a_batch_need_none() -> None:
    x, y = mg.input("x", (2,)), mg.input("y", (), "int64")
    (found,) = mg.function([x, y], [x * y])(np.ones(2), 3)
    np.testing.assert_array_equal(found, [3, 3])
    with pytest.raises(FeedError, match="depends on the batch"):
        mg.function([x], [mg.random.uniform((None, 2)) + x])


def summed(executor: Serial) -> mg.Function:
    x, y = mg.input("x", **X), mg.input("y", (None,), "int64")
    return mg.function([x, y], [mg.sum(x, axis=1) + mg.cast(y, "float32")], executor=executor)


def table(rows: int, seed: int, dtype: str = "f4") -> Table:
    rng = np.random.default_rng(seed)
    return Table([rng.integers(0, 9, (rows, 3)).astype(dtype), rng.integers(0, 9, rows)])


@pytest.mark.parametrize("shards", [None, 3])
def test_rows_of_one_table_after_another(shards: int | None) -> None:
    step = summed(Serial() if shards is None else Serial(reproducible=True, shards=shards))
    batches = [(table(rows, seed), seed) for seed, rows in enumerate((10, 7, 12, 7))]
    batches += [(batches[0][0], 0), (table(10, 5, "f8"), 5), (Table([array[::2] for array in table(20, 6)]), 6)]
    for arrays, seed in batches:
        for numbers in (np.arange(5), np.array([6, 0, 6, 1]), np.array([3, 2], np.int32), np.arange(10)[1:7:2]):
            ((found,),) = step.executable.run([Rows(arrays, numbers)])
            np.testing.assert_array_equal(found, arrays[0][numbers].sum(axis=1) + arrays[1][numbers], str(seed))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("dtype", "given"),
    [
        (dtype, given)
        for dtype in ("float32", "float64", "int8", "int64", "bool")
        for given in ("f4", "f8", "i4", "u1", ">f4", "?")
        if np.can_cast(given, dtype, "same_kind")
    ],
)
def test_rows_of_all_dtypes(dtype: str, given: str, threads: int) -> None:
    x, whole, y = mg.input("x", (None, 3, 50), dtype), mg.input("whole", (2,), dtype), mg.input("y", (None,), dtype)
    rng = np.random.default_rng(1)
    arrays = Table([rng.integers(-99, 99, shape).astype(given) for shape in ((500, 3, 50), 2, 500)])
    with Serial(threads=threads) as executor:
        step = mg.function([x, whole, y], [x, whole, y], executor=executor)
        for numbers in (np.arange(9), rng.integers(0, 500, 400), rng.integers(0, 500, 400), np.array([499])):
            ((*found,),) = step.executable.run([Rows(arrays, numbers)])
            expected = [arrays[0][numbers], arrays[1], arrays[2][numbers]]
            for array, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(array, other.astype(dtype))


def test_arrays_that_were_fed_are_let_go() -> None:
    step, arrays = summed(Serial()), table(10, 1)
    for _ in range(3):
        list(step.executable.run([Rows(arrays, np.arange(3))]))
    gone = [weakref.ref(array) for array in arrays]
    del arrays
    assert [reference() for reference in gone] == [None, None]
    other = table(10, 2)
    for _ in range(2):
        ((found,),) = step.executable.run([Rows(other, np.arange(3))])
        np.testing.assert_array_equal(found, other[0][:3].sum(axis=1) + other[1][:3])


def test_what_was_prepared_serves_batches_of_several_sizes_in_turn() -> None:
    step, arrays = summed(Serial()), table(10, 1)
    for size in (4, 3, 4):
        list(step.executable.run([Rows(arrays, np.arange(size))]))
    before = list(step.executable._row_feeds.values())
    for size in (3, 4, 3):
        ((found,),) = step.executable.run([Rows(arrays, np.arange(size))])
        np.testing.assert_array_equal(found, arrays[0][:size].sum(axis=1) + arrays[1][:size])
    assert list(step.executable._row_feeds.values()) == before


class Interrupting(np.ndarray):
    @property
    def ctypes(self):
        raise KeyboardInterrupt


@needs_native_code
def test_what_is_interrupted_while_it_prepares_is_prepared_again() -> None:
    step, arrays, numbers = summed(Serial()), table(10, 1), np.arange(3)
    list(step.executable.run([arrays[0][:3], arrays[1][:3]] for _ in range(1)))
    (plan,) = step.executable._plans.values()
    feed = RowFeed(plan, step.executable._inputs, numbers)
    feed(arrays)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            feed([table(10, 2)[0].view(Interrupting), arrays[1]])
    feed(arrays)
    np.testing.assert_array_equal(next(iter({**plan.feeds, **plan.part_feeds[0]}.values())), arrays[0][:3])


def test_each_batch_s_row_numbers_are_checked() -> None:
    step, arrays = summed(Serial()), table(10, 1)
    for _ in range(2):
        for numbers in ([10], [3, -1], [2**62]):
            with pytest.raises(FeedError, match="row numbers from 0 to 9"):
                list(step.executable.run([Rows(arrays, np.array(numbers))]))
        with pytest.raises(FeedError, match="at least one sample"):
            list(step.executable.run([Rows(arrays, np.array([], int))]))
        list(step.executable.run([Rows(arrays, np.array([9]))]))


def test_a_table_that_does_not_fit_is_refused_after_one_that_did() -> None:
    step, arrays = summed(Serial()), table(10, 1)
    list(step.executable.run([Rows(arrays, np.arange(3))]))
    wrong = Table([arrays[0][:, :2].copy(), arrays[1]])
    with pytest.raises(FeedError, match=r"found \(10, 2\)"):
        list(step.executable.run([Rows(wrong, np.arange(3))]))


def test_rows_where_no_input_has_a_batch_axis() -> None:
    x = mg.input("x", (3,))
    step, rows = mg.function([x], [mg.sum(x)], executor=Serial()), Rows(Table([np.ones(3, "f4")]), np.array([0]))
    for _ in range(2):
        ((found,),) = step.executable.run([rows])
        assert found == 3
