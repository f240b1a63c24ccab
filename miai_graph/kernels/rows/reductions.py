"""Sums and extremes by native code, along axes that follow each other, of arrays that lie contiguous."""

from __future__ import annotations

import math

from miai_graph.kernels.compiler import native
from miai_graph.kernels.compiler.loops import are_floats, call
from miai_graph.kernels.kernel import Kernel
from miai_graph.kernels.numpy_kernels import Request, native_for
from miai_graph.kernels.rows.reduction_code import CHAINS, Variant, module_text

MOST_WIDE_BYTES = 1 << 20
"""Larger matrices, of rows so wide that they take several passes, BLAS adds up faster."""


@native_for("sum", "sum_of_part", "max", "min")
def _reduce(request: Request) -> Kernel | None:
    x, y, axes = request.inputs[0], request.output, request.attributes["axes"]
    processor = native.processor()
    if processor is None or not are_floats(x, y) or not (x.flags.c_contiguous and y.flags.c_contiguous):
        return None
    first = axes[0] if axes else x.ndim
    if tuple(axes) != tuple(range(first, first + len(axes))):
        return None
    outer, length = math.prod(x.shape[:first]), math.prod(x.shape[first : first + len(axes)])
    columns = math.prod(x.shape[first + len(axes) :])
    operation = "sum" if request.node.op.name == "sum_of_part" else request.node.op.name
    is_wide = outer == 1 and columns > CHAINS * processor.width(x.itemsize)
    if operation == "sum" and is_wide and x.nbytes > MOST_WIDE_BYTES:
        return None
    variant = Variant(operation, x.dtype, along_rows=columns == 1)
    size = [outer, length] if variant.along_rows else [outer, length, columns]
    return call(module_text(variant, processor), [x, y, *size], f"{request.node.op.name} {request.node.name}")
