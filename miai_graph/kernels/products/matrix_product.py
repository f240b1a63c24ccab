"""Products of matrices: by native code or by BLAS, whichever is faster, in one thread or several."""

from __future__ import annotations

from typing import NamedTuple

from miai_graph.kernels.compiler.native import processor
from miai_graph.kernels.elementwise.kernels import adding, copying
from miai_graph.kernels.epilogue import Epilogue, finished
from miai_graph.kernels.kernel import Kernel, Scratch, Several
from miai_graph.kernels.products import blas
from miai_graph.kernels.products.blocked import product, suits
from miai_graph.kernels.products.few_rows import products
from miai_graph.kernels.running.crew import spans, together
from miai_graph.op import Array

FLOPS_WORTH_SHARING = 1 << 20
"""A thread has at least about so many floating-point operations to do."""

DEEP = 4
"""How many times as many rows B must have as A for threads to share them."""

FEWEST_OF_A_THREAD = 16
"""Rows or columns of a product that threads share: whole blocks of BLAS's."""


class _Share(NamedTuple):
    """The product that a thread computes: of some matrices of a stack, of some rows, or of some columns."""

    a: Array
    b: Array
    out: Array
    epilogue: Epilogue | None


def matrix_product(
    a: Array, b: Array, out: Array, scratch: Scratch, threads: int | None, epilogue: Epilogue | None = None
) -> Kernel:
    """What computes `out` = a @ b, of matrices or stacks of them.

    Parameters
    ----------
    scratch : gives memory of a shape and dtype, for use while the kernel runs
    threads : how many there are to use; None: as many as BLAS takes, and BLAS alone
    epilogue : what is computed of the product, and lies in `out` instead of it
    """
    found, few_rows = processor(), products()
    if _is_deep(a, b, out, threads or 1):
        kernel = _by_depth(a, b, out, scratch, threads or 1)
    elif threads is not None and few_rows is not None and few_rows.suits(a, b, out):
        kernel = few_rows.kernel(a, b, out, scratch, threads)
    elif threads is not None and found is not None and suits(a, b, out, found):
        shares = _shares(_Share(a, b, out, epilogue), threads)
        return together([product(own.a, own.b, own.out, found, scratch, own.epilogue) for own in shares])
    else:
        kernel = _by_blas(a, b, out, scratch, threads or 1)
    return finished(kernel, epilogue, out, scratch, threads or 1)


def _by_blas(a: Array, b: Array, out: Array, scratch: Scratch, threads: int) -> Kernel:
    copies: list[tuple[Array, Array]] = []
    operands = []
    for array in (a, b):
        if _fits_blas(array):
            operands.append(array)
        else:
            copies.append((scratch(array.shape, array.dtype), array))
            operands.append(copies[-1][0])
    if not copies:
        shares = _shares(_Share(a, b, out, None), threads)
        return together([blas.product(own.a, own.b, own.out) for own in shares])
    before = (copying(copy, source, threads) for copy, source in copies)
    return Several((*before, blas.product(operands[0], operands[1], out)))


def _is_deep(a: Array, b: Array, out: Array, threads: int) -> bool:
    """Are threads to share the rows of B? Then each reads what it wrote itself when weights were updated, which lies in
    the core's own cache. What has to be added up in the end is small."""
    (rows, depth), columns = a.shape[-2:], b.shape[-1]
    return (
        threads > 1
        and out.ndim == 2
        and out.dtype.kind == "f"
        and b.strides[-1] == b.itemsize
        and depth >= max(DEEP * rows, threads * FEWEST_OF_A_THREAD)
        and rows * depth * columns >= threads * FLOPS_WORTH_SHARING
    )


def _by_depth(a: Array, b: Array, out: Array, scratch: Scratch, threads: int) -> Kernel:
    parts = spans(a.shape[1], threads, FEWEST_OF_A_THREAD)
    others = [scratch(out.shape, out.dtype) for _ in parts[1:]]
    kernels = [
        matrix_product(a[:, part], b[part], target, scratch, 1)
        for part, target in zip(parts, [out, *others], strict=True)
    ]
    return Several((together(kernels), adding(out, others, threads)))


def _shares(whole: _Share, threads: int) -> list[_Share]:
    """What each thread computes; all of it in one if there are not several."""
    a, b, out, epilogue = whole
    flops = 2 * out.size * a.shape[-1]
    threads = min(threads, flops // FLOPS_WORTH_SHARING + 1)
    if threads > 1 and out.ndim > 2 and len(out) >= threads and len(a) == len(b) == len(out):
        return [
            _Share(a[part], b[part], out[part], epilogue and epilogue.at(part)) for part in spans(len(out), threads)
        ]
    rows, columns = out.shape[-2:]
    if threads == 1 or out.ndim > 2 or max(rows, columns) < threads * FEWEST_OF_A_THREAD:
        return [whole]
    if rows > columns:
        parts = spans(rows, threads, FEWEST_OF_A_THREAD)
        return [_Share(a[part], b, out[part], epilogue and epilogue.at(part)) for part in parts]
    parts = spans(columns, threads, FEWEST_OF_A_THREAD)
    return [_Share(a, b[:, part], out[:, part], epilogue and epilogue.at((slice(None), part))) for part in parts]


def _fits_blas(array: Array) -> bool:
    """BLAS takes matrices with one axis contiguous, transposed or not; others are copied first."""
    rows, columns = array.shape[-2:]
    row_stride, column_stride = array.strides[-2:]
    item = array.itemsize
    by_rows = column_stride == item and row_stride >= columns * item
    by_columns = row_stride == item and column_stride >= rows * item
    return array.dtype.kind != "f" or by_rows or by_columns
