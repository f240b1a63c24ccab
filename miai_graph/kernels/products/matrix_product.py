"""Products of matrices: by native code or by BLAS, whichever is faster, in one thread or several."""

from __future__ import annotations

from miai_graph.kernels.compiler.native import processor
from miai_graph.kernels.elementwise.kernels import adding, copying
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


def matrix_product(a: Array, b: Array, out: Array, scratch: Scratch, threads: int | None) -> Kernel:
    """What computes `out` = a @ b, of matrices or stacks of them.

    Parameters
    ----------
    scratch : gives memory of a shape and dtype, for use while the kernel runs
    threads : how many there are to use; None: as many as BLAS takes, and BLAS alone
    """
    if _is_deep(a, b, out, threads or 1):
        return _by_depth(a, b, out, scratch, threads or 1)
    if threads is not None:
        few_rows, found = products(), processor()
        if few_rows is not None and few_rows.suits(a, b, out):
            return few_rows.kernel(a, b, out, scratch, threads)
        if found is not None and suits(a, b, out, found):
            return together([product(*share, found, scratch) for share in _shares(a, b, out, threads)])
    copies: list[tuple[Array, Array]] = []
    operands = []
    for array in (a, b):
        if _fits_blas(array):
            operands.append(array)
        else:
            copies.append((scratch(array.shape, array.dtype), array))
            operands.append(copies[-1][0])
    if not copies:
        return together([blas.product(*share) for share in _shares(a, b, out, threads or 1)])
    before = (copying(copy, source, threads or 1) for copy, source in copies)
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


def _shares(a: Array, b: Array, output: Array, threads: int) -> list[tuple[Array, Array, Array]]:
    """The factors and the product; or for each thread those of some matrices of a stack, or of some rows or columns."""
    flops = 2 * output.size * a.shape[-1]
    threads = min(threads, flops // FLOPS_WORTH_SHARING + 1)
    if threads > 1 and output.ndim > 2 and len(output) >= threads and len(a) == len(b) == len(output):
        return [(a[part], b[part], output[part]) for part in spans(len(output), threads)]
    rows, columns = output.shape[-2:]
    if threads == 1 or output.ndim > 2 or max(rows, columns) < threads * FEWEST_OF_A_THREAD:
        return [(a, b, output)]
    if rows > columns:
        return [(a[part], b, output[part]) for part in spans(rows, threads, FEWEST_OF_A_THREAD)]
    return [(a, b[:, part], output[:, part]) for part in spans(columns, threads, FEWEST_OF_A_THREAD)]


def _fits_blas(array: Array) -> bool:
    """BLAS takes matrices with one axis contiguous, transposed or not; others are copied first."""
    rows, columns = array.shape[-2:]
    row_stride, column_stride = array.strides[-2:]
    item = array.itemsize
    by_rows = column_stride == item and row_stride >= columns * item
    by_columns = row_stride == item and column_stride >= rows * item
    return array.dtype.kind != "f" or by_rows or by_columns
