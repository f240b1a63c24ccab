"""Pooling by native code, with any padding and strides, for images whose channels lie one behind the other."""

from __future__ import annotations

import math
from collections.abc import Sequence

from miai_graph.kernels.compiler import native
from miai_graph.kernels.compiler.loops import are_floats, call
from miai_graph.kernels.kernel import Kernel
from miai_graph.kernels.numpy_kernels import Request, native_for
from miai_graph.kernels.rows.pooling_code import Variant, module_text
from miai_graph.op import Array

MOST_UNROLLED = 9
"""The elements of larger windows are gone through by loops."""


@native_for("max_pool2d", "average_pool2d")
def _pool(request: Request) -> Kernel | None:
    return _kernel(request, request.output, request.inputs[0], request.inputs[0])


@native_for("max_pool2d_gradient")
def _max_pool2d_gradient(request: Request) -> Kernel | None:
    return _kernel(request, request.inputs[0], request.inputs[1], request.output)


@native_for("average_pool2d_gradient")
def _average_pool2d_gradient(request: Request) -> Kernel | None:
    return _kernel(request, request.inputs[0], request.output, request.output)


def _kernel(request: Request, pooled: Array, source: Array, target: Array) -> Kernel | None:
    """The kernel for the pooled array, the image that is read and the one that is written to."""
    arrays = (pooled, source, target)
    processor = native.processor()
    if processor is None or not are_floats(*arrays) or not all(map(_has_channels_together, arrays)):
        return None
    if not request.output.flags.c_contiguous:
        return None
    size, steps, padding = (request.attributes[name] for name in ("pool_size", "strides", "padding"))
    lanes = processor.width(pooled.dtype.itemsize)
    is_padded = any(any(pair) for pair in padding)
    overlaps = steps[0] < size[0] or steps[1] < size[1]
    fills = request.output is target and not (steps == size and _is_covered(request, pooled, target))
    reads_image = any(source is each for each in request.inputs)
    is_in_place = reads_image and target is request.output and source.ctypes.data == target.ctypes.data
    copies = is_in_place and not is_padded and source.flags.c_contiguous and pooled.shape[3] % lanes != 0
    is_unrolled = not is_padded and math.prod(size) <= MOST_UNROLLED
    may_spill = is_unrolled and steps == size and (copies or not is_in_place)
    spilling = _spilling_windows(arrays, lanes) if may_spill else 0
    variant = Variant(
        request.node.op.name,
        pooled.dtype,
        size if is_unrolled else None,
        adds=request.output is target and overlaps,
        copies=copies,
        spills=spilling > 0,
    )
    copied = size[0] * math.prod(source.shape[2:]) if copies else 0
    words = [
        *arrays,
        *pooled.shape,
        math.prod(target.shape[1:]) if fills else 0,
        *(stride for array in arrays for stride in array.strides[:3]),
        *source.shape[1:3],
        *(before for before, _ in padding),
        *steps,
        *size,
        request.scratch((copied,), pooled.dtype),
        copied,
        spilling,
    ]
    return call(module_text(variant, processor), words, f"{request.node.op.name} {request.node.name}")


def _spilling_windows(arrays: Sequence[Array], lanes: int) -> int:
    """How many windows of a row, side by side, may write whole vectors, if pixels have fewer channels than that: not
    the last ones, which would reach beyond what is written later."""
    pooled = arrays[0]
    columns, channels = pooled.shape[2:]
    if channels >= lanes or any(array.strides[2] != channels * array.itemsize for array in arrays):
        return 0
    return max(columns + 1 - -(-lanes // channels), 0)


def _has_channels_together(array: Array) -> bool:
    return array.strides[3] == array.itemsize or array.shape[3] == 1


def _is_covered(request: Request, pooled: Array, image: Array) -> bool:
    """Whether windows side by side leave nothing out."""
    size, padding = request.attributes["pool_size"], request.attributes["padding"]
    return all(
        count * length >= pixels + before
        for count, length, pixels, (before, _) in zip(pooled.shape[1:3], size, image.shape[1:3], padding, strict=True)
    )
