"""Kernels of formulas with totals: values are added up while they are computed, over rows or along them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from miai_graph.kernels.compiler import native
from miai_graph.kernels.compiler.compensated import LONGEST_CHAIN
from miai_graph.kernels.compiler.loops import call
from miai_graph.kernels.elementwise.formulas import Formula, Operand, Step, Total
from miai_graph.kernels.elementwise.kernels import (
    copying,
    filling,
    formula_call,
    in_joined_rows,
    in_turn,
    rows_to_join,
    shares_worth_while,
)
from miai_graph.kernels.elementwise.stretches import Layout, Stretch, shared
from miai_graph.kernels.kernel import Kernel, Scratch
from miai_graph.kernels.rows import reduction_code
from miai_graph.kernels.running.crew import together
from miai_graph.op import Array


@dataclass(frozen=True)
class SummedFormula:
    """What is computed, and added up. The arrays' axes before one of them are rows, the others columns.

    Attributes
    ----------
    steps, results, totals : see `Formula`
    first_column_axis : over the axes before it, or along those from it on, values are added up
    """

    steps: Sequence[Step]
    results: Sequence[int]
    totals: Sequence[Total]
    first_column_axis: int

    def kernel(
        self,
        operands: Sequence[Array],
        results: Sequence[Array],
        sums: Sequence[Array],
        scratch: Scratch,
        source: str,
        threads: int = 1,
    ) -> Kernel:
        """What computes it all, in up to so many threads.

        Parameters
        ----------
        operands, results : arrays of one shape. Results may lie where operands do, element by element, or apart
        sums : contiguous arrays for the totals
        scratch : gives memory for use while the kernel runs
        source : what is computed, for readers of the code
        """
        if not operands[0].size:
            return in_turn([filling(each, 0) for each in sums])
        return _Preparation(self, operands, results, sums, scratch, source).kernel(threads)


class _Preparation:
    def __init__(
        self,
        summed: SummedFormula,
        operands: Sequence[Array],
        results: Sequence[Array],
        sums: Sequence[Array],
        scratch: Scratch,
        source: str,
    ) -> None:
        self._scratch, self._source = scratch, source
        self._first_column_axis = summed.first_column_axis
        self._copies: list[tuple[Array, Array]] = []
        self._results = results
        shape = operands[0].shape
        self._columns = math.prod(shape[self._first_column_axis :])
        self._row_count = math.prod(shape[: self._first_column_axis])
        fitting = [self._in_columns(self._fitting(operand)) for operand in operands]
        row_sums = [array for array, total in zip(sums, summed.totals, strict=True) if total.along_rows]
        self._column_sums = [array for array, total in zip(sums, summed.totals, strict=True) if not total.along_rows]
        numbers = [np.broadcast_to(array[..., None], (*array.shape, self._columns)) for array in row_sums]
        placed = [*fitting, *map(self._in_columns, results), *numbers]
        self._layout = Layout.of(placed, keeps_last=True)
        self._operands = fitting
        self._arrays = [*placed, *sums]
        strides = self._layout.strides[-1]
        self._formula = Formula(
            tuple(Operand(array.dtype, not stride) for array, stride in zip(fitting, strides, strict=False)),
            tuple(summed.steps),
            tuple(summed.results),
            tuple(summed.totals),
        )

    def _column_stride(self, array: Array) -> int | None:
        """Bytes from a column to the next; None where they do not lie one behind the other, and are not one number."""
        own = array[(0,) * self._first_column_axis]
        if own.size == 1:
            return array.itemsize
        layout = Layout.of([own])
        ((stride,), *others) = layout.strides
        return stride if not others and stride in (0, array.itemsize) else None

    def _fitting(self, array: Array) -> Array:
        """The array, or a copy of one in which columns do not lie one behind the other."""
        if self._column_stride(array) is not None:
            return array
        axis = self._first_column_axis
        first = array[(slice(1),) * axis] if not any(array.strides[:axis]) else array
        self._copies.append((self._scratch(first.shape, array.dtype), first))
        return np.broadcast_to(self._copies[-1][0], array.shape)

    def _in_columns(self, array: Array) -> Array:
        """The array with the axes of columns as one."""
        stride, axis = self._column_stride(array), self._first_column_axis
        assert stride is not None
        shape, strides = (*array.shape[:axis], self._columns), (*array.strides[:axis], stride)
        return np.lib.stride_tricks.as_strided(array, shape, strides)

    def kernel(self, threads: int) -> Kernel:
        """What computes it all, in up to so many threads."""
        stretches = self._stretches()
        shares = shared(stretches, self._formula, shares_worth_while(self._formula, stretches, threads))
        heads, ends = self._gathering(stretches, [sum(stretch.rows for stretch in share) for share in shares])
        keeps = [*self._arrays, *(copy for copy, _ in self._copies)]
        size = sum(result.nbytes for result in self._results)
        calls = [
            formula_call(self._formula, share, self._source, keeps, size, head)
            for share, head in zip(shares, heads, strict=True)
        ]
        before = [copying(copy, source) for copy, source in self._copies]
        return in_turn([*before, together(calls), *ends])

    def _stretches(self) -> Sequence[Stretch]:
        formula = self._formula
        if not formula.row_totals and not any(operand.is_number for operand in formula.operands):
            joined = in_joined_rows(self._operands, self._layout, self._scratch)
            if joined is not None:
                self._copies += joined.copies
                return joined.stretches
        return list(self._layout.stretches())

    def _gathering(self, stretches: Sequence[Stretch], rows: Sequence[int]) -> tuple[list[list[int]], Sequence[Kernel]]:
        """For each share of the work the words at the top of its table, and what adds up in the end what was gathered.

        Parameters
        ----------
        rows : of each share
        """
        if not self._column_sums:
            return [[] for _ in rows], ()
        # Where rows cannot be joined they are added up in the order in which they would be then.
        width = self._columns * rows_to_join(self._row_count, self._columns)
        abreast = width // max(stretch.columns for stretch in stretches)
        heads = [[width, abreast, count] for count in rows]
        if len(rows) == 1 and rows[0] <= LONGEST_CHAIN and width == self._columns:
            heads[0] += [word for array in self._column_sums for word in (array.ctypes.data, 0)]
            return heads, ()
        shares = len(rows)
        ends = []
        for array in self._column_sums:
            parts = self._scratch((shares, width), array.dtype)
            totals = self._scratch((shares, 2, width), array.dtype)
            self._arrays += [parts, totals]
            for share, head in enumerate(heads):
                head += [parts[share].ctypes.data, totals[share].ctypes.data]
            ends.append(_sum_of_rows(totals.reshape(-1, self._columns), array, self._source))
        return heads, ends


def _sum_of_rows(rows: Array, result: Array, source: str) -> Kernel:
    processor = native.processor()
    assert processor is not None
    variant = reduction_code.Variant("sum", rows.dtype, along_rows=False)
    return call(reduction_code.module_text(variant, processor), [rows, result, 1, *rows.shape], source)
