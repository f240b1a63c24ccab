"""Counters, such as an optimizer's of steps: single integers that are added up."""

from __future__ import annotations

import functools

import numpy as np

from miai_graph.kernels import native
from miai_graph.kernels.kernel import Kernel
from miai_graph.kernels.loops import Loops, call
from miai_graph.kernels.numpy_kernels import Request, native_for


@native_for("add")
def _add(request: Request) -> Kernel | None:
    """Numbers of other dtypes are computed together with others; see `plan.fusion`."""
    arrays = (*request.inputs, request.output)
    if native.processor() is None or any(
        array.dtype != np.int64 or array.size != 1 or not array.flags.aligned for array in arrays
    ):
        return None
    return call(_module_text(), arrays, f"add {request.node.name}")


@functools.cache
def _module_text() -> str:
    lines = Loops(1)
    a, b, output = lines.pointers(3)
    first, second = (lines.value(f"load i64, ptr {pointer}") for pointer in (a, b))
    lines.do(f"store i64 {lines.add(first, second)}, ptr {output}")
    return lines.module()
