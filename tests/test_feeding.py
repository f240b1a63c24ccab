"""What may be fed to a function, and what is refused before anything is computed."""

from __future__ import annotations

import numpy as np
import pytest

import miai_graph as mg
from miai_graph.errors import FeedError

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
