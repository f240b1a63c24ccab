"""Code for sums and extremes: along rows, or down columns with vectors of them side by side.

Several chains of additions are under way at the same time, none of them long: blocks are added up first, and their
sums with the error of each addition kept. So errors do not grow with the length of what is added.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from miai_graph.kernels.compiler.compensated import LONGEST_CHAIN, with_errors, with_parts
from miai_graph.kernels.compiler.loops import Loops, maximum, minimum, plus
from miai_graph.kernels.compiler.native import Processor
from miai_graph.kernels.compiler.vectors import Vector

CHAINS = 4
"""Vectors that are added to at the same time, side by side or row after row."""

_Combine = Callable[[Vector, Vector], Vector]
_OPERATIONS: dict[str, tuple[float, _Combine]] = {
    "sum": (0.0, plus),
    "max": (-math.inf, maximum),
    "min": (math.inf, minimum),
}


@dataclass(frozen=True)
class Variant:
    """What the code is made for.

    Attributes
    ----------
    operation : sum, max or min
    along_rows : instead of down columns
    """

    operation: str
    dtype: np.dtype[Any]
    along_rows: bool


@functools.cache
def module_text(variant: Variant, processor: Processor) -> str:
    """The module with the function `run`, for arrays that lie contiguous. In the table:

    - the addresses of what is reduced, and of the result
    - along rows: the number of rows and their length; down columns: the numbers of matrices, of their rows and of
      their columns
    """
    return _Writer(variant, processor).module()


class _Writer:
    def __init__(self, variant: Variant, processor: Processor) -> None:
        self._variant, self._dtype = variant, variant.dtype
        self._start, self._combine = _OPERATIONS[variant.operation]
        self._code = Loops(processor.width(variant.dtype.itemsize))
        self._first = self._code.constant(self._start, self._dtype)

    def module(self) -> str:
        """All of it."""
        if self._variant.along_rows:
            self._along_rows()
        else:
            self._down_columns()
        return self._code.module()

    def _along_rows(self) -> None:
        code = self._code
        x, y = code.pointers(2)
        rows, self._length = code.words(2)
        self._span = code.span(self._length)
        self._in_chains = code.value(f"and i64 {self._length}, {-CHAINS * code.lanes}")
        row_bytes = code.times(self._length, self._dtype.itemsize)
        with code.loop(0, rows) as row:
            total = self._row(code.stepped(x, row.index, row_bytes))
            code.store_number(code.over_lanes(self._combine, total), code.element(y, row.index, self._dtype))

    def _row(self, x: str) -> Vector:
        """The lanes of a row's total."""
        code, step = self._code, CHAINS * self._code.lanes

        def put_together(start: str, mask: str | None, values: Sequence[Vector]) -> list[Vector]:
            numbers = []
            for place in range(len(values)):
                pointer = code.element(x, code.add(start, place * code.lanes), self._dtype)
                numbers.append(code.where(mask, code.load(pointer, self._dtype, mask), self._start))
            return [self._combine(value, number) for value, number in zip(values, numbers, strict=True)]

        with code.loop(0, self._in_chains, LONGEST_CHAIN * step, self._fresh(1)) as block:
            stop = code.least(code.add(block.index, LONGEST_CHAIN * step), self._in_chains)
            with code.loop(block.index, stop, step, [self._first] * CHAINS) as part:
                part.following = put_together(part.index, None, part.values)
            block.following = self._joined(block.values, [self._pairwise(part.values)])
        with code.loop(self._in_chains, self._span.whole, code.lanes, [self._first]) as end:
            end.following = put_together(end.index, None, end.values)
        rest = code.changed_when(
            self._span.has_rest, end.values, functools.partial(put_together, self._span.whole, self._span.mask)
        )
        return self._totals(self._joined(block.values, rest))[0]

    def _down_columns(self) -> None:
        code = self._code
        x, y = code.pointers(2)
        matrices, self._rows, columns = code.words(3)
        span, tile = code.span(columns), CHAINS * code.lanes
        in_tiles = code.value(f"and i64 {columns}, {-tile}")
        self._row_bytes = code.times(columns, self._dtype.itemsize)
        with code.loop(0, matrices) as matrix:
            own_x = code.stepped(x, matrix.index, code.times(self._rows, self._row_bytes))
            own_y = code.stepped(y, matrix.index, self._row_bytes)
            with code.loop(0, in_tiles, tile) as wide:
                self._tile(own_x, own_y, wide.index, CHAINS)
            with code.loop(in_tiles, span.whole, code.lanes) as narrow:
                self._tile(own_x, own_y, narrow.index, 1)
            with code.when(span.has_rest):
                self._tile(own_x, own_y, span.whole, 1, span.mask)

    def _tile(self, x: str, y: str, column: str, width: int, mask: str | None = None) -> None:
        """Vectors of columns side by side, from that column on."""
        code, chains = self._code, CHAINS // width
        block_rows = LONGEST_CHAIN * chains
        x, y = code.element(x, column, self._dtype), code.element(y, column, self._dtype)
        with code.loop(0, self._rows, block_rows, self._fresh(width)) as block:
            stop = code.least(code.add(block.index, block_rows), self._rows)
            in_chains = code.subtract(stop, code.value(f"and i64 {stop}, {chains - 1}"))
            with code.loop(block.index, in_chains, chains, [self._first] * CHAINS) as part:
                part.following = self._with_rows(x, part.index, part.values, width, mask)
            sums = [self._pairwise(part.values[place::width]) for place in range(width)]
            with code.loop(in_chains, stop, 1, sums) as end:
                end.following = self._with_rows(x, end.index, end.values, width, mask)
            block.following = self._joined(block.values, end.values)
        for place, total in enumerate(self._totals(block.values)):
            code.store(total, code.element(y, place * code.lanes, self._dtype), mask)

    def _with_rows(self, x: str, row: str, values: Sequence[Vector], width: int, mask: str | None) -> list[Vector]:
        """The values with as many rows as there are values for."""
        code, result = self._code, []
        for number, value in enumerate(values):
            start = code.stepped(x, code.add(row, number // width), self._row_bytes)
            place = code.element(start, number % width * code.lanes, self._dtype)
            result.append(self._combine(value, code.load(place, self._dtype, mask)))
        return result

    def _pairwise(self, values: Sequence[Vector]) -> Vector:
        while len(values) > 1:
            values = [self._combine(a, b) for a, b in zip(values[::2], values[1::2], strict=True)]
        return values[0]

    def _fresh(self, count: int) -> list[Vector]:
        """So many totals of nothing: of sums with their errors behind."""
        return [self._first] * (2 * count if self._variant.operation == "sum" else count)

    def _joined(self, totals: Sequence[Vector], parts: Sequence[Vector]) -> list[Vector]:
        """Totals with one more part each."""
        if self._variant.operation == "sum":
            return with_parts(totals, parts)
        return [self._combine(total, part) for total, part in zip(totals, parts, strict=True)]

    def _totals(self, totals: Sequence[Vector]) -> list[Vector]:
        """The final ones."""
        return with_errors(totals) if self._variant.operation == "sum" else list(totals)
