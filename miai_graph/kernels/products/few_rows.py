"""Products of a matrix of few rows and a large one, which BLAS would copy for each.

Their results may differ from BLAS's in the last bits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from ctypes import c_int64, c_void_p
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from miai_graph.kernels.compiler.llvm_code import FLOAT_BYTES
from miai_graph.kernels.compiler.native import library, processor
from miai_graph.kernels.kernel import Kernel, Scratch
from miai_graph.kernels.products.few_rows_code import Target, module_text
from miai_graph.kernels.running.crew import spans, together
from miai_graph.op import Array

LEAST_ELEMENTS = 1 << 16
"""Products with smaller matrices are BLAS's."""

VERY_FEW_ROWS, LEAST_ELEMENTS_OF_VERY_FEW_ROWS = 16, 1 << 19
"""And those of fewer rows with matrices that the nearer caches hold."""

MOST_ROWS = {16: 64, 8: 48}
"""Up to how many rows the products were measured to be faster than BLAS, by the width of vectors."""

BLOCK_BYTES = 1 << 18
"""What is in use at a time may take so much of the second cache."""

COLUMNS_OF_A_THREAD = 64
"""Threads share columns by so many at a time."""

FEWEST_AT_A_TIME, MOST_AT_A_TIME = 16, 64
"""Rows of a matrix that is read down its columns: each may lie on a page of its own."""


@dataclass(frozen=True, eq=False)
class Products:
    """The native code.

    Attributes
    ----------
    target : what it was made for
    """

    target: Target
    _multiply: Callable[..., None] = field(repr=False)

    def suits(self, a: Array, b: Array, out: Array) -> bool:
        """Can they compute `out` = a @ b, and faster than BLAS?"""
        rows = len(a)
        least_elements = LEAST_ELEMENTS_OF_VERY_FEW_ROWS if rows < VERY_FEW_ROWS else LEAST_ELEMENTS
        most_rows = MOST_ROWS.get(self.target.width, 0)
        return 2 <= rows <= most_rows and b.size >= least_elements and self.can(a, b, out)

    def can(self, a: Array, b: Array, out: Array) -> bool:
        """Can they compute `out` = a @ b?"""
        arrays, least = (a, b, out), self.target.least
        return (
            all(array.dtype == np.float32 and array.ndim == 2 and array.flags.aligned for array in arrays)
            and a.strides[1] == out.strides[1] == FLOAT_BYTES
            and FLOAT_BYTES in b.strides
            and len(a) >= 1
            and min(b.shape) >= least
        )

    def kernel(
        self,
        a: Array,
        b: Array,
        out: Array,
        scratch: Scratch = np.empty,
        threads: int = 1,
    ) -> Kernel:
        """What computes `out` = a @ b, of arrays for which `can` is True. `out` shares no memory with the others.

        Parameters
        ----------
        scratch : gives memory of a shape and dtype, for use while the kernel runs
        threads : among how many the columns are shared
        """
        columns = b.shape[1]
        parts = spans(columns, max(1, min(threads, columns // COLUMNS_OF_A_THREAD)))
        return together([self._kernel(a, b[:, part], out[:, part], scratch) for part in parts])

    def _kernel(self, a: Array, b: Array, out: Array, scratch: Scratch) -> Kernel:
        (rows, depth), columns = a.shape, b.shape[1]
        memory = scratch((self.target.scratch_floats(rows, depth, columns),), np.float32)
        down, across = b.strides
        if across == FLOAT_BYTES:
            fitting = BLOCK_BYTES // (columns * FLOAT_BYTES)
            block = min(max(fitting, FEWEST_AT_A_TIME), MOST_AT_A_TIME)
            fetch, fetch_stride = block * down, block * FLOAT_BYTES
        else:
            block = max(BLOCK_BYTES // (rows * FLOAT_BYTES), MOST_AT_A_TIME)
            fetch, fetch_stride = self.target.least * across, across
        numbers = (a.strides[0], down, across, out.strides[0], rows, depth, columns, block, fetch, fetch_stride)
        # These pointers keep their arrays.
        pointers = (array.ctypes.data_as(c_void_p) for array in (a, b, out, memory))
        return partial(self._multiply, *pointers, *map(c_int64, numbers))


@functools.cache
def products() -> Products | None:
    """The products for this processor; None where they would not be faster."""
    found = processor()
    if found is None or found.width(FLOAT_BYTES) not in MOST_ROWS:
        return None
    return products_for(Target(found.width(FLOAT_BYTES), found.registers))


def products_for(target: Target) -> Products:
    """The products for vectors of any width: LLVM makes do with the instructions that there are."""
    code = library(module_text(target), {"multiply": (c_void_p,) * 4 + (c_int64,) * 10}, "C = A B, of few rows")
    return Products(target, code.functions["multiply"])
