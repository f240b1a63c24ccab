"""Products of matrices by native code, which was measured to be faster than BLAS wherever it is used.

Their results may differ from BLAS's in the last bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from miai_graph.kernels.compiler.loops import are_floats, call
from miai_graph.kernels.compiler.native import Processor
from miai_graph.kernels.epilogue import Epilogue, finished
from miai_graph.kernels.kernel import Kernel, Scratch
from miai_graph.kernels.products.blocked_code import Tile, Variant, module_text
from miai_graph.op import Array

MANY_REGISTERS = 32

MOST_ROWS = {True: {1: 8, 2: 8, 3: 8, 4: 6}, False: {1: 8, 2: 6}}
"""How many rows a tile has at most, by the number of its vectors; with many registers, and with fewer."""

PANEL_BYTES = 1 << 15
"""So much of a panel of B is in use at a time: it stays in the nearest cache."""

BLOCK_BYTES, LEAST_BLOCK_ROWS = 1 << 20, 384
"""So much of A and of C is in use at a time: it stays in the next cache. But at least so many rows, for panels of B are
laid out anew for them."""

STRIP_BYTES = 1 << 19
"""So much of A is in use at a time if it is cut into strips."""

FAR_ROWS = 256
"""So many rows are in use at a time if C is fetched: each of them may lie in memory pages of its own."""

FEW_ROWS, FEW_ROW_BYTES = 64, 512
"""B is read where it lies for so few rows, if its own lie no farther from each other than this."""

STRIP_PANELS = 6
"""A is cut into strips if as many panels of B make use of them."""

FAR_BYTES = 3 << 20
"""What is needed soon is fetched if the matrices are as large as this."""

MOST_BYTES = {True: 1 << 33, False: 1 << 30}
"""Up to how many multiplications, counted in bytes, the products were measured to be faster than BLAS; with many
registers, and with fewer. With many they count twice where columns of B are contiguous, which take longer to lay out
anew."""


@dataclass(frozen=True)
class Stack:
    """Matrices one after another, in two directions.

    Attributes
    ----------
    lengths : how many there are in each
    strides : bytes from a matrix to the next one in each, for several arrays
    """

    lengths: tuple[int, int]
    strides: tuple[tuple[int, int], ...]


def stack_of(arrays: Sequence[Array]) -> Stack | None:
    """The stack that the arrays' leading axes are, joined where they can be; None if they are more than two directions.

    The arrays have the same leading axes.
    """
    axes: list[tuple[int, tuple[int, ...]]] = []
    for axis, length in enumerate(arrays[0].shape[:-2]):
        strides = tuple(array.strides[axis] for array in arrays)
        if length == 1:
            continue
        if axes and axes[-1][1] == tuple(length * stride for stride in strides):
            axes[-1] = axes[-1][0] * length, strides
        else:
            axes.append((length, strides))
    if len(axes) > 2:
        return None
    (far, far_strides), (near, near_strides) = [(1, (0,) * len(arrays))] * (2 - len(axes)) + axes
    return Stack((far, near), tuple(zip(far_strides, near_strides, strict=True)))


def can_multiply(a: Array, b: Array, out: Array) -> bool:
    """Is there native code for `out` = a @ b?"""
    return (
        are_floats(a, b, out)
        and out.size > 0
        and a.shape[-1] > 0
        and _is_contiguous(out, -1)
        and (_is_contiguous(b, -1) or _is_contiguous(b, -2))
        and stack_of((a, b, out)) is not None
    )


def suits(a: Array, b: Array, out: Array, processor: Processor) -> bool:
    """Is there native code for `out` = a @ b, and is it faster than BLAS? BLAS is best at vectors."""
    (rows, depth), columns = a.shape[-2:], b.shape[-1]
    has_many = processor.registers >= MANY_REGISTERS
    counted = rows * depth * columns * a.itemsize
    if has_many and not _is_contiguous(b, -1):
        counted *= 2
    return min(rows, columns) > 1 and counted <= MOST_BYTES[has_many] and can_multiply(a, b, out)


def _is_contiguous(array: Array, axis: int) -> bool:
    return array.strides[axis] == array.itemsize or array.shape[axis] == 1


def product(
    a: Array,
    b: Array,
    out: Array,
    processor: Processor,
    scratch: Scratch = np.empty,
    epilogue: Epilogue | None = None,
) -> Kernel:
    """What computes `out` = a @ b, of arrays for which `can_multiply`. `out` shares no memory with the others.

    Parameters
    ----------
    scratch : gives memory of a shape and dtype, for use while the kernel runs
    epilogue : what is computed of the product, and lies in `out` instead of it
    """
    stack, ending = stack_of((a, b, out)), None if epilogue is None else epilogue.ending(out)
    assert stack is not None
    if epilogue is not None and ending is None:
        return finished(product(a, b, out, processor, scratch), epilogue, out, scratch)
    (rows, depth), columns = a.shape[-2:], b.shape[-1]
    variant = replace(variant_for(a, b, processor), ending=ending)
    panel, item = variant.tile.vectors * variant.lanes, a.itemsize
    steps = _steps_at_once(depth, PANEL_BYTES // (panel * item), variant.lanes)
    tiles = -(-_shared_evenly(rows, _rows_at_once(variant, depth, columns, steps)) // variant.tile.rows)
    strip = steps * variant.tile.rows + variant.strip_vectors * variant.lanes
    words = [
        *(a, b, out),
        scratch((max(steps, variant.lanes), panel) if variant.packs else (0,), a.dtype),
        scratch((tiles, strip) if variant.strips else (0,), a.dtype),
        *stack.lengths,
        *(stride for strides in stack.strides for stride in strides),
        *(a.strides[-2], a.strides[-1], b.strides[-2], b.strides[-1], out.strides[-2]),
        *(rows, depth, -(-columns // panel) - (variant.last is not None), columns % variant.lanes),
        *(tiles * variant.tile.rows, steps, strip * item),
        -(-variant.lines_ahead(steps) // min(tiles * variant.tile.rows, rows)),
        *(() if epilogue is None else epilogue.operands),
    ]
    return call(module_text(variant), words, f"C = A B for {variant}")


def variant_for(a: Array, b: Array, processor: Processor) -> Variant:
    """The code for a product."""
    (rows, depth), columns = a.shape[-2:], b.shape[-1]
    lanes = processor.width(a.itemsize)
    most_rows = MOST_ROWS[processor.registers >= MANY_REGISTERS]
    vectors = -(-columns // lanes)
    of_panel = _shared_evenly(vectors, max(most_rows))
    of_last, rest = (vectors - 1) % of_panel + 1, columns % lanes
    turns = not _is_contiguous(b, -1)
    packs = turns or rows > FEW_ROWS or abs(b.strides[-2]) > FEW_ROW_BYTES
    tile = Tile(_shared_evenly(rows, most_rows[of_panel]), of_panel)
    strips = not _is_contiguous(a, -1) and _is_contiguous(a, -2) and vectors >= STRIP_PANELS * of_panel
    rows_of_last = tile.rows if strips else _shared_evenly(rows, most_rows[of_last])
    return Variant(
        dtype=a.dtype,
        lanes=lanes,
        tile=tile,
        last=Tile(rows_of_last, of_last) if rest or of_last < of_panel else None,
        has_rest=rest > 0,
        packs=packs,
        turns=turns,
        is_shallow=turns and depth < lanes,
        strips=strips,
        fetches=packs and (rows * depth + depth * columns + rows * columns) * a.itemsize >= FAR_BYTES,
    )


def _steps_at_once(depth: int, most: int, lanes: int) -> int:
    """How much of the depth is in use at a time. What remains in the end must not be less than a vector."""
    fitting = range(_shared_evenly(depth, most), lanes, -1)
    return next((steps for steps in fitting if not 0 < depth % steps < lanes), depth)


def _rows_at_once(variant: Variant, depth: int, columns: int, steps: int) -> int:
    """How many rows are in use at a time, at most."""
    item = variant.dtype.itemsize
    if variant.strips:
        return max(LEAST_BLOCK_ROWS, STRIP_BYTES // (steps * item))
    if variant.fetches:
        return FAR_ROWS
    return max(LEAST_BLOCK_ROWS, BLOCK_BYTES // ((depth + columns) * item))


def _shared_evenly(count: int, most: int) -> int:
    """How many each of as few shares as possible has, of which none has more than `most`."""
    return -(-count // -(-count // most))
