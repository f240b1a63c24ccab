"""Single numbers, such as an optimizer's counter of steps and what follows from it.

Other elements are computed together with others; see `plan.fusion`.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from miai_graph.kernels.compiler import native
from miai_graph.kernels.compiler.c_library import address_in_c
from miai_graph.kernels.compiler.loops import ELEMENTS, Loops, call
from miai_graph.kernels.compiler.vectors import FLOAT32, FLOAT64
from miai_graph.kernels.kernel import Kernel
from miai_graph.kernels.numpy_kernels import Request, native_for
from miai_graph.op import Array

INTEGER = np.dtype(np.int64)

POWERS = {FLOAT32: "powf", FLOAT64: "pow"}
"""The functions of C for each dtype."""


@native_for("add")
def _add(request: Request) -> Kernel | None:
    arrays = (*request.inputs, request.output)
    if not _are_numbers(*arrays) or any(array.dtype != INTEGER for array in arrays):
        return None
    return call(_sum_text(), arrays, f"add {request.node.name}")


@native_for("cast")
def _cast(request: Request) -> Kernel | None:
    source, output = request.inputs[0], request.output
    if not _are_numbers(source, output) or source.dtype != INTEGER or output.dtype not in ELEMENTS:
        return None
    return call(_cast_text(output.dtype), (source, output), f"cast {request.node.name}")


@native_for("power")
def _power(request: Request) -> Kernel | None:
    arrays, dtype = (*request.inputs, request.output), request.output.dtype
    function = address_in_c(POWERS.get(dtype, ""))
    if function is None or not _are_numbers(*arrays) or any(array.dtype != dtype for array in arrays):
        return None
    return call(_power_text(dtype), (function, *arrays), f"power {request.node.name}")


def _are_numbers(*arrays: Array) -> bool:
    return native.processor() is not None and all(array.size == 1 and array.flags.aligned for array in arrays)


@functools.cache
def _sum_text() -> str:
    lines = Loops(1)
    a, b, output = lines.pointers(3)
    first, second = (lines.value(f"load i64, ptr {pointer}") for pointer in (a, b))
    lines.do(f"store i64 {lines.add(first, second)}, ptr {output}")
    return lines.module()


@functools.cache
def _cast_text(dtype: np.dtype[Any]) -> str:
    lines, element = Loops(1), ELEMENTS[dtype]
    source, output = lines.pointers(2)
    number = lines.value(f"load i64, ptr {source}")
    lines.do(f"store {element} {lines.value(f'sitofp i64 {number} to {element}')}, ptr {output}")
    return lines.module()


@functools.cache
def _power_text(dtype: np.dtype[Any]) -> str:
    lines, element = Loops(1), ELEMENTS[dtype]
    function, base, exponent, output = lines.pointers(4)
    a, b = (lines.value(f"load {element}, ptr {place}") for place in (base, exponent))
    result = lines.value(f"call {element} {function}({element} {a}, {element} {b})")
    lines.do(f"store {element} {result}, ptr {output}")
    return lines.module()
