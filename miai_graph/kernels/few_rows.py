"""Products of a matrix of few rows and a large one, which BLAS would copy for each: native code for one thread.

They are used by plans that are given them: their results may differ from BLAS's in the last bits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from ctypes import CFUNCTYPE, c_int64, c_void_p
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np

from miai_graph.kernels.few_rows_code import Target, module_text
from miai_graph.kernels.llvm_code import FLOAT_BYTES
from miai_graph.op import Array

LEAST_ELEMENTS = 1 << 16
"""Products with smaller matrices are BLAS's."""

VERY_FEW_ROWS, LEAST_ELEMENTS_OF_VERY_FEW_ROWS = 16, 1 << 19
"""And those of fewer rows with matrices that the nearer caches hold."""

MOST_ROWS = {16: 96, 8: 48}
"""Up to how many rows the products were measured to be faster than BLAS, by the width of vectors."""

BLOCK_BYTES = 1 << 18
"""What is in use at a time may take so much of the second cache."""

FEWEST_AT_A_TIME, MOST_AT_A_TIME = 16, 64
"""Rows of a matrix that is read down its columns: each may lie on a page of its own."""


@dataclass(frozen=True, eq=False)
class Products:
    """The native code.

    Attributes
    ----------
    target : what it was made for
    seconds : how long it took to compile
    """

    target: Target
    seconds: float
    _multiply: Callable[..., None] = field(repr=False)
    _engine: Any = field(repr=False)  # owns the code

    def suits(self, a: Array, b: Array, out: Array) -> bool:
        """Can they compute `out` = a @ b, and faster than one thread of BLAS?"""
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
        self, a: Array, b: Array, out: Array, scratch: Callable[[tuple[int, ...], Any], Array] = np.empty
    ) -> Callable[[], None]:
        """What computes `out` = a @ b, of arrays for which `can` is True. `out` shares no memory with the others.

        Parameters
        ----------
        scratch : gives memory of a shape and dtype, for use while the kernel runs
        """
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
def compile_products() -> Products | None:
    """The products for this processor, compiled when they are first asked for; None where they would not be faster."""
    try:
        import llvmlite.binding as llvm

        target = target_for(llvm.get_host_cpu_features())
        return None if target is None else compile_for(target)
    except (ImportError, OSError, RuntimeError):
        return None


def target_for(features: Mapping[str, bool]) -> Target | None:
    """What to compile for a processor with these features, by LLVM's names."""
    if features.get("avx512f"):
        return Target(width=16, registers=32)
    if features.get("avx2") and features.get("fma"):
        return Target(width=8, registers=16)
    return None


def compile_for(target: Target) -> Products:
    """The products for vectors of any width: LLVM makes do with the instructions that there are."""
    import llvmlite.binding as llvm

    start = perf_counter()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=2
    )
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(module_text(target)), machine)
    engine.finalize_object()
    signature = CFUNCTYPE(None, *[c_void_p] * 4, *[c_int64] * 10)
    function = signature(engine.get_function_address("multiply"))
    return Products(target, perf_counter() - start, function, engine)


class Switch:
    """Whether plans may use the products in this process.

    Attributes
    ----------
    products : None until they are enabled, and where there are none
    """

    def __init__(self) -> None:
        self.products: Products | None = None

    def enable(self) -> None:
        """Compile the products: this takes some 50 ms, and the import of llvmlite."""
        self.products = compile_products()

    def disable(self) -> None:
        """Plans that have none go on without."""
        self.products = None


switch = Switch()
"""Off, until a process that computes for nobody else turns it on."""
