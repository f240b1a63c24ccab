"""Rows found by their numbers, by native code: as the definitions say, for every width of vectors."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from native_samples import PROCESSORS, check, request_for

import miai_graph as mg
from miai_graph.kernels.compiler import native
from miai_graph.kernels.compiler.native import Processor
from miai_graph.kernels.numpy_kernels import NATIVE_KERNELS
from miai_graph.kernels.rows.indexing import copy_of_rows, search_for_others
from miai_graph.op import as_node
from miai_graph.ops.indexing import _scatter_add

SHAPES = [(1,), (7,), (5, 16), (7, 33), (3, 5, 70), (4, 6, 0), (0, 6, 3)]


@pytest.fixture(params=PROCESSORS, ids=str)
def processor(request, monkeypatch) -> Iterator[Processor]:
    """Vectors of each width: LLVM takes those apart that the processor does not have."""
    if native.processor() is None:
        pytest.skip("no native code on this machine")
    monkeypatch.setattr(native, "processor", lambda: request.param)
    return request.param


@pytest.fixture(params=[np.float32, np.float64])
def dtype(request) -> np.dtype[Any]:
    return np.dtype(request.param)


@pytest.fixture(params=[np.int32, np.int64])
def index_dtype(request) -> np.dtype[Any]:
    return np.dtype(request.param)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [0, 1, 30])
def test_rows_picked_and_added_up(processor, dtype, index_dtype, shape, count):
    rng = np.random.default_rng(1)
    for axis, length in enumerate(shape):
        if length == 0:
            continue
        indices = rng.integers(-length, length, (count, 2)).astype(index_dtype)
        x = rng.standard_normal(shape).astype(dtype)
        check(functools.partial(mg.take, axis=axis), x, indices, scale=0)
        rows = rng.standard_normal((*shape[:axis], count, 2, *shape[axis + 1 :])).astype(dtype)
        check(functools.partial(_scatter_add, length=length, axis=axis), indices, rows, scale=0)


@pytest.mark.parametrize("row", [(), (1,), (7,), (5, 13), (0,)])
def test_rows_of_batches(processor, row):
    rng = np.random.default_rng(1)
    for dtype in (np.float32, np.int64, np.uint32):
        source = rng.integers(0, 2**31, (20, *row)).astype(dtype)
        for count in (0, 1, 30):
            numbers, target = rng.integers(0, 20, count), np.zeros((count, *row), dtype)
            kernel = copy_of_rows(source, numbers, target)
            assert kernel is not None
            kernel()
            np.testing.assert_array_equal(target, source[numbers])


def test_numbers_of_no_row_are_found(processor):
    numbers, found = np.zeros(20, np.int64), np.zeros(1, np.int64)
    search = search_for_others(numbers, 20, found)
    assert search is not None
    for number, is_other in ((0, 0), (19, 0), (20, 1), (-1, 1), (2**62, 1), (-(2**63), 1)):
        for place in (0, 7, 19):
            numbers[...], found[...] = 3, 0
            numbers[place] = number
            search()
            assert found[0] == is_other


@pytest.mark.parametrize("depth", [0, 1, 10, 65])
def test_one_hot(processor, dtype, index_dtype, depth):
    indices = np.arange(-3, 70).astype(index_dtype)
    check(lambda indices: mg.one_hot(indices, depth, dtype), indices, scale=0)
    check(lambda indices: mg.one_hot(indices, depth, dtype), indices[:0], scale=0)


@pytest.mark.parametrize("wrong", [-6, 5, 2**40, -(2**62)])
def test_indices_outside_are_refused_each_time(processor, wrong):
    indices = np.array([0, -5, wrong, 4])
    for node, inputs in [
        (mg.take(as_node(np.ones((5, 3))), as_node(indices), 0), [np.ones((5, 3)), indices]),
        (_scatter_add(as_node(indices), as_node(np.ones((4, 3))), length=5, axis=0), [indices, np.ones((4, 3))]),
    ]:
        output = np.empty([int(dim) for dim in node.type.shape])
        kernel = NATIVE_KERNELS[node.op.name](request_for(node, inputs, output))
        for _ in range(2):
            with pytest.raises(IndexError, match=rf"from -5 to 4; found {wrong} at position \(2,\)"):
                kernel()
        indices[2] = 1
        kernel()
        np.testing.assert_array_equal(output, node.op.forward(*inputs, **node.attributes))
        indices[2] = wrong
