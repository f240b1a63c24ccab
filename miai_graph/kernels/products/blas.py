"""Matrix products by the BLAS library that NumPy has loaded, called without NumPy.

Such a call is native code like that of other kernels, so that several of them can follow each other without Python.
Where the library's functions are not found, NumPy calls it.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Iterator, Mapping
from ctypes import c_void_p, cast
from functools import partial
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from miai_graph.kernels.compiler import native
from miai_graph.kernels.compiler.loops import ELEMENTS, Loops, call
from miai_graph.kernels.compiler.vectors import FLOAT32, FLOAT64
from miai_graph.kernels.kernel import Kernel, Several
from miai_graph.op import Array

NAMES: Mapping[np.dtype[Any], str] = {FLOAT32: "sgemm", FLOAT64: "dgemm"}
"""Of the functions, in the standard of BLAS (Dongarra et al., A set of level 3 basic linear algebra subprograms)."""

PATTERNS = ("scipy_cblas_{}64_", "cblas_{}64_", "scipy_cblas_{}", "cblas_{}")
"""What libraries call them; 64 tells that integers have as many bits."""

MOST_ELEMENTS = (1 << 31) - 1
"""From a row to the next: what libraries with integers of 32 bits can count."""

ROWS_FIRST, AS_IT_IS, TRANSPOSED = 101, 111, 112
"""CBLAS's words for how matrices lie in memory."""

MOST_CALLS = 1 << 10
"""Products of more stacks of matrices, that do not lie at equal distances, are left to NumPy."""

_numpy_product: Any = np.matmul


def product(a: Array, b: Array, out: Array) -> Kernel:
    """What computes `out` = a @ b, of matrices or stacks of them."""
    address = _functions().get(out.dtype)
    if address is None or not all(map(_suits, (a, b, out))) or out.strides[-1] != out.itemsize:
        return partial(_numpy_product, a, b, out)
    return _calls(address, a, b, out) or partial(_numpy_product, a, b, out)


def _suits(array: Array) -> bool:
    """Whether these matrices, of more than a row and a column, lie in memory as BLAS takes them."""
    if array.ndim < 2 or min(array.shape) < 1 or min(array.shape[-2:]) < 2 or not array.flags.aligned:
        return False
    (rows, columns), (down, across) = array.shape[-2:], array.strides[-2:]
    item = array.itemsize
    if (down | across) % item or max(rows, columns, down // item, across // item) > MOST_ELEMENTS:
        return False
    return (across == item and down >= columns * item) or (down == item and across >= rows * item)


def _calls(address: int, a: Array, b: Array, out: Array) -> Kernel | None:
    """A call for each row of a stack of stacks: along the last axis of a stack matrices lie at equal distances."""
    item, processor = out.itemsize, native.processor()
    if processor is None or any(array.dtype != out.dtype for array in (a, b)):
        return None
    stack = (1,) if out.ndim == 2 else out.shape[:-2]
    if math.prod(stack[:-1]) > MOST_CALLS:
        return None
    rows, columns = out.shape[-2:]
    sizes = (rows, columns, a.shape[-1])
    each = [np.broadcast_to(array, (*stack, *array.shape[-2:])) for array in (a, b, out)]
    steps = [array.strides[-3] if stack[-1] > 1 else 0 for array in each]
    flips = [array.strides[-1] != item for array in (a, b)]
    leading = [array.strides[-1 if is_flipped else -2] // item for array, is_flipped in zip((a, b), flips, strict=True)]
    leading.append(out.strides[-2] // item)
    words = [TRANSPOSED if is_flipped else AS_IT_IS for is_flipped in flips]

    def calls() -> Iterator[Kernel]:
        for place in np.ndindex(stack[:-1]):
            first_a, first_b, first_out = (array[place] for array in each)
            places: list[Array | int] = [first_a, leading[0], first_b, leading[1], first_out, leading[2]]
            yield call(_module_text(out.dtype), [address, *words, *sizes, *places, stack[-1], *steps], "C = A B")

    every = tuple(calls())
    return every[0] if len(every) == 1 else Several(every)


@functools.cache
def _module_text(dtype: np.dtype[Any]) -> str:
    """Code that calls BLAS for one product after another."""
    lines, number = Loops(1), ELEMENTS[dtype]
    (function,) = lines.pointers(1)
    flips = [lines.value(f"trunc i64 {word} to i32") for word in lines.words(2)]
    sizes = lines.words(3)
    operands = [(*lines.pointers(1), *lines.words(1)) for _ in range(3)]
    (count,) = lines.words(1)
    steps = lines.words(3)
    with lines.loop(0, count) as round:
        a, b, c = (
            f"ptr {lines.stepped(pointer, round.index, step)}, i64 {leading}"
            for (pointer, leading), step in zip(operands, steps, strict=True)
        )
        integers = ", ".join([f"i32 {word}" for word in (ROWS_FIRST, *flips)] + [f"i64 {size}" for size in sizes])
        lines.do(f"call void {function}({integers}, {number} 1.0, {a}, {b}, {number} 0.0, {c})")
    return lines.module()


@functools.cache
def _functions() -> Mapping[np.dtype[Any], int]:
    """The addresses of the functions for each dtype, of a library that was seen to give the right results."""
    if native.processor() is None:
        return {}
    found = ThreadpoolController().select(user_api="blas").lib_controllers
    for controller in sorted(found, key=lambda one: "numpy" not in one.filepath):
        addresses = {dtype: _address(controller.dynlib, name) for dtype, name in NAMES.items()}
        known = {dtype: address for dtype, address in addresses.items() if address is not None}
        if len(known) == len(NAMES) and all(_is_right(address, dtype) for dtype, address in known.items()):
            return known
    return {}


def _address(library: Any, name: str) -> int | None:
    for pattern in PATTERNS:
        # Apple's processors pass integers of 32 bits on the stack in another way than longer ones.
        function = getattr(library, pattern.format(name), None) if "64" in pattern or sys.platform != "darwin" else None
        if function is not None:
            return cast(function, c_void_p).value
    return None


def _is_right(address: int, dtype: np.dtype[Any]) -> bool:
    """Whether products come out as NumPy's do, for matrices that lie either way."""
    a, b = (np.arange(size, dtype=dtype).reshape(shape) for size, shape in ((30, (2, 3, 5)), (40, (2, 5, 4))))
    flipped = (_by_columns(a), _by_columns(b))
    out = np.empty((2, 3, 4), dtype)
    for first, second in ((a, b), flipped):
        out.fill(np.nan)
        compute = _calls(address, first, second, out)
        assert compute is not None
        compute()
        if not np.array_equal(out, a @ b):
            return False
    return True


def _by_columns(array: Array) -> Array:
    """The same matrices, with columns of neighbouring elements."""
    return np.ascontiguousarray(array.swapaxes(1, 2)).swapaxes(1, 2)
