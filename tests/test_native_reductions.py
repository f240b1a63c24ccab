"""Softmax, sums and extremes by native code: as their definitions say, for every width of vectors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from native_samples import PROCESSORS, check, native_result, request_for

import miai_graph as mg
from miai_graph.kernels.compiler import native
from miai_graph.kernels.compiler.native import Processor
from miai_graph.kernels.numpy_kernels import KERNELS, NATIVE_KERNELS, by_definition, works_in_place
from miai_graph.kernels.rows import reductions as native_reductions
from miai_graph.op import as_node

LENGTHS = (0, 1, 3, 8, 16, 17, 63, 64, 65, 128, 130, 5000)


@pytest.fixture(params=PROCESSORS, ids=str)
def processor(request, monkeypatch) -> Iterator[Processor]:
    """Vectors of each width: LLVM takes those apart that the processor does not have."""
    if native.processor() is None:
        pytest.skip("no native code on this machine")
    monkeypatch.setattr(native, "processor", lambda: request.param)
    monkeypatch.setattr(native_reductions, "MOST_WIDE_BYTES", 1 << 40)
    return request.param


@pytest.fixture(params=[np.float32, np.float64])
def dtype(request) -> np.dtype[Any]:
    return np.dtype(request.param)


@pytest.mark.parametrize("function", [mg.softmax, mg.log_softmax])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_softmax_along_each_axis(processor, dtype, function, axis):
    rng = np.random.default_rng(1)
    for shape in [(3, 5, 17), (2, 33, 4), (16, 2, 10), (2, 0, 3), (0, 2, 3), (2, 3, 0)]:
        check(lambda x: function(x, axis), (8 * rng.standard_normal(shape)).astype(dtype))


@pytest.mark.parametrize("function", [mg.softmax, mg.log_softmax])
@pytest.mark.parametrize("length", LENGTHS[1:])
def test_softmax_of_rows_of_each_length(processor, dtype, function, length):
    check(lambda x: function(x, -1), 4 * rng_rows(dtype, length), scale=4)


@pytest.mark.parametrize("function", [mg.softmax, mg.log_softmax])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("kernels", [NATIVE_KERNELS, KERNELS], ids=["native", "NumPy"])
def test_softmax_may_write_where_it_reads(processor, dtype, function, axis, kernels):
    for length in (1, 33, 64, 200):
        x = np.random.default_rng(3).standard_normal((3, 5, length)[axis:] + (3, 5, length)[:axis]).astype(dtype)
        node = function(as_node(x), axis)
        assert works_in_place(node) == (node.type.shape[axis] % 16 == 0)
        apart, here = np.empty_like(x), x.copy()
        for source, output in ((x, apart), (here, here)):
            kernels.get(node.op.name, by_definition)(request_for(node, [source], output))()
        np.testing.assert_array_equal(here, apart)


@pytest.mark.parametrize("function", [mg.softmax, mg.log_softmax, mg.logsumexp])
@pytest.mark.parametrize("length", [20, 64, 1000])
def test_softmax_of_numbers_that_are_not_finite(processor, dtype, function, length):
    rows = rng_rows(dtype, length)
    rows[0, 3], rows[1, 19], rows[2, :], rows[3, 5] = -math.inf, math.nan, -math.inf, math.inf
    rows[4, 2:], rows[5, 0] = -1e9, -80.0
    check(lambda x: function(x, -1), rows)


@pytest.mark.parametrize("length", [5, 64, 1000])
def test_a_nan_anywhere_makes_the_row_nan_and_leaves_the_others(processor, dtype, length):
    rows = np.arange(float(length * length)).astype(dtype).reshape(length, length) % 91
    np.fill_diagonal(rows, math.nan)
    rows[-1] = np.arange(length) % 7
    node = mg.softmax(as_node(rows))
    found = native_result(node, rows)
    assert np.isnan(found[:-1]).all()
    np.testing.assert_allclose(found[-1], node.op.forward(rows, **node.attributes)[-1], 1e-6)


def test_exponentials_that_lose_digits_become_zero(processor, dtype):
    least = math.log(np.finfo(dtype).tiny)
    rows = np.array([[0.0, least * share] for share in (0.3, 0.99, 0.9999, 1.0001, 1.01, 1.5, 3.0, 1e6)], dtype)
    found = native_result(mg.softmax(as_node(rows)), rows)[:, 1]
    np.testing.assert_allclose(found[:3], np.exp(rows[:3, 1]), 1e-6)
    np.testing.assert_array_equal(found[3:], 0.0)


def rng_rows(dtype: np.dtype[Any], length: int) -> np.ndarray:
    return np.random.default_rng(2).standard_normal((6, length)).astype(dtype)


@pytest.mark.parametrize("length", LENGTHS)
def test_logsumexp(processor, dtype, length):
    check(lambda x: mg.logsumexp(x, -1), rng_rows(dtype, length))


@pytest.mark.parametrize("length", LENGTHS[1:])
@pytest.mark.parametrize("labels_dtype", [np.int32, np.int64])
def test_cross_entropy_of_labels(processor, dtype, length, labels_dtype):
    labels = np.random.default_rng(3).integers(0, length, 6).astype(labels_dtype)
    check(mg.sparse_softmax_cross_entropy, rng_rows(dtype, length), labels)


@pytest.mark.parametrize("length", LENGTHS[1:])
def test_cross_entropy_of_probabilities(processor, dtype, length):
    probabilities = np.abs(rng_rows(dtype, length))[::-1] / length
    check(mg.softmax_cross_entropy, rng_rows(dtype, length), probabilities)


@pytest.mark.parametrize("wrong", [-1, 10, 2**40, -(2**62)])
def test_labels_outside_are_refused_each_time(processor, wrong):
    logits = rng_rows(np.dtype(np.float32), 10)
    labels = np.array([0, 1, wrong, 3, 4, 5])
    node = mg.sparse_softmax_cross_entropy(as_node(logits), as_node(labels))
    output = np.empty(6, np.float32)
    kernel = NATIVE_KERNELS[node.op.name](request_for(node, [logits, labels], output))
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"from 0 to 9.*found {wrong} at position \(2,\)"):
            kernel()
    labels[2] = 2
    kernel()
    np.testing.assert_allclose(output, node.op.forward(logits, labels), 1e-6)


@pytest.mark.parametrize("length", LENGTHS)
def test_sums_along_rows_and_down_columns(processor, dtype, length):
    rng = np.random.default_rng(4)
    for other in (1, 5, 16, 67, 0):
        rows = rng.standard_normal((other, length)).astype(dtype)
        check(lambda x: mg.sum(x, 1), rows, scale=10)
        check(lambda x: mg.sum(x), rows, scale=100)
        # Down columns NumPy adds one after another: most of the difference is its own.
        check(lambda x: mg.sum(x, 0), rows.T.copy(), scale=300)
        check(lambda x: mg.sum(x, 1), rng.standard_normal((2, length, other)).astype(dtype), scale=300)


@pytest.mark.parametrize("function", [mg.max, mg.min])
@pytest.mark.parametrize("length", LENGTHS[1:])
def test_extremes(processor, dtype, function, length):
    rng = np.random.default_rng(5)
    for other in (1, 5, 67):
        rows = rng.standard_normal((other, length)).astype(dtype) - 3
        rows[0, length // 2] = math.nan
        rows[-1, -1] += math.inf
        check(lambda x: function(x, 1), rows)
        check(lambda x: function(x, 0), rows.T.copy())


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_sums_of_numbers_that_are_not_finite(processor, dtype, number):
    for length in (3, 100, 20000):
        row = np.ones((2, length), dtype)
        row[0, length // 2] = number
        check(lambda x: mg.sum(x, 1), row)
        check(lambda x: mg.sum(x, 0), row.T.copy())
        row[0, 0] = -number
        check(lambda x: mg.sum(x, 1), row)


def test_errors_of_sums_do_not_grow_with_the_length(processor):
    numbers = np.random.default_rng(6).random(3_000_000, np.float32)
    exact = numbers.astype(np.float64)
    for columns in (1, 3, 100):
        rows = numbers.reshape(-1, columns)
        found = native_result(mg.sum(as_node(rows), 0), rows)
        np.testing.assert_allclose(found, exact.reshape(-1, columns).sum(0), 1e-6)


def test_other_layouts_and_dtypes_are_left_to_numpy():
    x = np.ones((4, 6, 5), np.float32)
    for node, array in [
        (mg.sum(as_node(x), (0, 2)), x),
        (mg.sum(as_node(x), 2), np.ones((4, 5, 6), np.float32).transpose(0, 2, 1)),
        (mg.sum(as_node(x.astype(np.int64)), 2), x.astype(np.int64)),
        (mg.softmax(as_node(x)), np.ones((4, 5, 6), np.float32).transpose(0, 2, 1)),
    ]:
        output = np.empty([int(dim) for dim in node.type.shape], node.dtype)
        assert NATIVE_KERNELS[node.op.name](request_for(node, [array], output)) is None
