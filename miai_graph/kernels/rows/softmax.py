"""Softmax, its logarithm, and the cross-entropies by native code, for arrays that lie contiguous."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from miai_graph.kernels.compiler import native
from miai_graph.kernels.compiler.loops import are_floats, call
from miai_graph.kernels.kernel import Kernel, checked
from miai_graph.kernels.numpy_kernels import Request, native_for
from miai_graph.kernels.rows.softmax_code import Variant, columns_text, kept_vectors, rows_text
from miai_graph.op import Array
from miai_graph.ops.softmax import check_labels


@native_for("softmax", "log_softmax")
def _along_axis(request: Request) -> Kernel | None:
    x, axis = request.inputs[0], request.attributes["axis"]
    matrices, rows, columns = math.prod(x.shape[:axis]), x.shape[axis], math.prod(x.shape[axis + 1 :])
    if columns == 1:
        return _along_rows(request, x, request.output, (matrices, rows), (rows, rows, 0))
    processor = native.processor()
    if processor is None or not _suit(x, request.output):
        return None
    strides = [rows * columns * x.itemsize, columns * x.itemsize]
    words = [x, request.output, matrices, rows, columns, *strides, *strides]
    return call(columns_text(Variant(request.node.op.name, x.dtype), processor), words, _source(request))


@native_for("logsumexp")
def _logsumexp(request: Request) -> Kernel | None:
    x, axes = request.inputs[0], request.attributes["axes"]
    length = math.prod(x.shape[axis] for axis in axes)
    if axes != tuple(range(x.ndim - len(axes), x.ndim)):
        return None
    return _along_rows(request, x, request.output, (request.output.size, length), (length, 1, 0))


@native_for("softmax_cross_entropy")
def _cross_entropy(request: Request) -> Kernel | None:
    x, probabilities = request.inputs
    if not _suit(x, probabilities):
        return None
    classes = x.shape[-1]
    return _along_rows(request, probabilities, request.output, (request.output.size, classes), (classes, 1, classes))


@native_for("sparse_softmax_cross_entropy")
def _sparse_cross_entropy(request: Request) -> Kernel | None:
    logits, labels = request.inputs
    is_suited = labels.dtype in (np.int64, np.int32) and labels.flags.c_contiguous and labels.flags.aligned
    if not is_suited:
        return None
    classes = logits.shape[-1]
    failed = np.zeros(1, np.int64)
    kernel = _along_rows(request, labels, request.output, (labels.size, classes), (classes, 1, 1), failed)
    if kernel is None:
        return None
    return checked(kernel, failed, partial(check_labels, labels, classes))


def _along_rows(
    request: Request,
    other: Array,
    result: Array,
    size: tuple[int, int],
    steps: Sequence[int],
    failed: Array | None = None,
) -> Kernel | None:
    """The kernel for so many rows of such a length; `steps` are elements from row to row: of each array."""
    processor, x = native.processor(), request.inputs[0]
    if processor is None or not _suit(x, result):
        return None
    kept = kept_vectors(size[1], x.dtype, processor)
    variant = Variant(request.node.op.name, x.dtype, 8 * other.itemsize, kept)
    strides = [step * array.itemsize for step, array in zip(steps, (x, result, other), strict=True)]
    words: list[Array | int] = [x, result, other, x if failed is None else failed, *size, *strides]
    return call(rows_text(variant, processor), words, _source(request))


def _suit(*arrays: Array) -> bool:
    return are_floats(*arrays) and all(array.flags.c_contiguous for array in arrays)


def _source(request: Request) -> str:
    return f"{request.node.op.name} {request.node.name}"
