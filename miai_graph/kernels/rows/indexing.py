"""Rows found by their numbers, by native code, in arrays that lie contiguous."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from miai_graph.kernels.compiler import native
from miai_graph.kernels.compiler.loops import are_floats, call
from miai_graph.kernels.kernel import Kernel, checked
from miai_graph.kernels.numpy_kernels import Request, native_for
from miai_graph.kernels.rows.indexing_code import Variant, module_text
from miai_graph.op import Array
from miai_graph.ops.indexing import checked_indices


@native_for("take")
def _take(request: Request) -> Kernel | None:
    x, indices = request.inputs
    axis = request.attributes["axis"]
    return _of_rows(request, indices, x, (math.prod(x.shape[:axis]), x.shape[axis], math.prod(x.shape[axis + 1 :])))


@native_for("scatter_add")
def _scatter_add(request: Request) -> Kernel | None:
    indices, rows = request.inputs
    axis, shape = request.attributes["axis"], request.output.shape
    return _of_rows(request, indices, rows, (math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])))


@native_for("one_hot")
def _one_hot(request: Request) -> Kernel | None:
    indices, depth = request.inputs[0], request.attributes["depth"]
    return _kernel(request, indices, request.output, (indices.size, depth, 1), np.zeros(1, np.int64))


def _of_rows(request: Request, indices: Array, source: Array, size: tuple[int, int, int]) -> Kernel | None:
    """The kernel, and after it the error if an index was outside."""
    failed = np.zeros(1, np.int64)
    kernel = _kernel(request, indices, source, size, failed)
    if kernel is None:
        return None
    return checked(kernel, failed, partial(checked_indices, indices, size[1]))


def _kernel(
    request: Request, indices: Array, source: Array, size: tuple[int, int, int], failed: Array
) -> Kernel | None:
    """`size`: matrices, rows to choose from, elements in a row."""
    processor, output = native.processor(), request.output
    if processor is None or not are_floats(source, output) or indices.dtype not in (np.int32, np.int64):
        return None
    if not (indices.flags.aligned and all(array.flags.c_contiguous for array in (indices, source, output))):
        return None
    variant = Variant(request.node.op.name, source.dtype, 8 * indices.itemsize)
    matrices, length, elements = size
    words: list[Array | int] = [indices, source, output, failed, matrices, indices.size, length, elements]
    return call(module_text(variant, processor), words, f"{request.node.op.name} {request.node.name}")


WORD = np.dtype(np.float32)
"""What rows are copied in; their elements are as long as some of these."""


def copy_of_rows(source: Array, numbers: Array, target: Array) -> Kernel | None:
    """Copies the rows of an array that have these numbers, none of which may be outside. None: native code cannot.

    Neither the source nor its address is known to anybody else: the caller sees to it that it lives.
    """
    if native.processor() is None or source.dtype != target.dtype or source.itemsize % WORD.itemsize:
        return None
    if not all(array.flags.c_contiguous and array.flags.aligned for array in (source, target)):
        return None
    words = math.prod(source.shape[1:]) * source.itemsize // WORD.itemsize
    return _rows(numbers, [source.ctypes.data, target], np.zeros(1, np.int64), len(source), words)


def search_for_others(numbers: Array, length: int, found: Array) -> Kernel | None:
    """Sets a flag, one number, to 1 if any of these is not that of one of so many rows. None: native code cannot."""
    return None if native.processor() is None else _rows(numbers, [0, 0], found, length, 0)


def _rows(numbers: Array, arrays: Sequence[Array | int], failed: Array, length: int, words: int) -> Kernel:
    processor = native.processor()
    assert processor is not None
    variant = Variant("rows", WORD, 8 * numbers.itemsize)
    return call(
        module_text(variant, processor), [numbers, *arrays, failed, 1, len(numbers), length, words], "rows of a batch"
    )
