"""How arrays of one shape lie in memory, as rows and columns for native code to go over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter

import numpy as np

from miai_graph.kernels.elementwise.formulas import Formula
from miai_graph.op import Array

ELEMENTS_OF_A_CUT = 64
"""Threads share a row by so many elements at a time."""

ELEMENTS_WORTH_CUTTING = 1 << 11
"""What has fewer for each thread is done by one."""


@dataclass(frozen=True)
class Stretch:
    """Rows and columns of memory, one element behind the other along the columns.

    Attributes
    ----------
    addresses : of each operand and result
    row_strides : bytes from a row to the next
    """

    rows: int
    columns: int
    addresses: tuple[int, ...]
    row_strides: tuple[int, ...]

    def cut(self, elements: float, itemsizes: Sequence[int] | None) -> tuple[Stretch | None, Stretch | None]:
        """About so many elements of it, and the rest: whole rows, or cache lines of a single row.

        Parameters
        ----------
        itemsizes : bytes from an element of each operand and result to the next one; None: rows stay whole
        """
        has_rows = self.rows > 1 or itemsizes is None
        total = self.rows if has_rows else self.columns
        count = round(elements / self.columns) if has_rows else round(elements / ELEMENTS_OF_A_CUT) * ELEMENTS_OF_A_CUT
        if count <= 0:
            return None, self
        if count >= total:
            return self, None
        steps = self.row_strides if itemsizes is None or has_rows else itemsizes
        addresses = tuple(address + count * step for address, step in zip(self.addresses, steps, strict=True))
        if has_rows:
            return replace(self, rows=count), replace(self, rows=total - count, addresses=addresses)
        return replace(self, columns=count), replace(self, columns=total - count, addresses=addresses)

    def words(self, rows_before: int) -> list[int]:
        """The line of the table.

        Parameters
        ----------
        rows_before : how many rows the lines before have
        """
        pairs = zip(self.addresses, self.row_strides, strict=True)
        return [self.rows, self.columns, rows_before, *(word for pair in pairs for word in pair)]


@dataclass(frozen=True)
class Layout:
    """How arrays of one shape lie in memory, in the fewest axes that tell it.

    Attributes
    ----------
    strides : for each axis, those of all arrays, in bytes
    """

    shape: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    addresses: tuple[int, ...]

    @classmethod
    def of(cls, arrays: Sequence[Array], *, keeps_last: bool = False) -> Layout:
        """Neighbouring axes become one where all arrays go on as they would within one.

        Parameters
        ----------
        keeps_last : whether the last axis stays as it is
        """
        addresses = tuple(array.ctypes.data for array in arrays)
        shape: list[int] = []
        strides: list[tuple[int, ...]] = []
        for axis in reversed(range(arrays[0].ndim)):
            length, steps = arrays[0].shape[axis], tuple(array.strides[axis] for array in arrays)
            if length == 1 and not (keeps_last and not shape):
                continue
            if len(shape) > keeps_last and steps == tuple(stride * shape[0] for stride in strides[0]):
                shape[0] *= length
                continue
            shape.insert(0, length)
            strides.insert(0, steps)
        if not shape:
            return cls((1,), (tuple(array.itemsize for array in arrays),), addresses)
        return cls(tuple(shape), tuple(strides), addresses)

    def with_most_rows(self) -> Layout:
        """The same with the longest axis but the last as that of rows, so that there are few stretches.

        For what does not depend on the order in which rows are computed.
        """
        *leading, last = zip(self.shape, self.strides, strict=True)
        axes = [*sorted(leading, key=itemgetter(0)), last]
        return replace(self, shape=tuple(length for length, _ in axes), strides=tuple(steps for _, steps in axes))

    def stretches(self) -> Iterator[Stretch]:
        """The rows and columns of it: a matrix for each index on the axes before the last two."""
        columns = self.shape[-1]
        rows, row_strides = 1, (0,) * len(self.addresses)
        if len(self.shape) > 1:
            rows, row_strides = self.shape[-2], self.strides[-2]
        starts = np.array([self.addresses], np.int64)
        for length, steps in zip(self.shape[:-2], self.strides, strict=False):
            starts = (starts[:, None] + np.outer(np.arange(length), steps)).reshape(-1, len(steps))
        for addresses in starts.tolist():
            yield Stretch(rows, columns, tuple(addresses), row_strides)


def shared(stretches: Sequence[Stretch], formula: Formula, shares: int) -> list[list[Stretch]]:
    """The stretches in so many shares of about the same size."""
    if shares == 1:
        return [list(stretches)] if stretches else []
    itemsizes = None if formula.totals else _itemsizes(formula)
    left = [sum(stretch.rows * stretch.columns for stretch in stretches) / shares] * shares
    result: list[list[Stretch]] = [[] for _ in range(shares)]
    share = 0
    for stretch in stretches:
        rest: Stretch | None = stretch
        while rest is not None:
            taken, rest = rest.cut(left[share], itemsizes) if share < shares - 1 else (rest, None)
            if taken is not None:
                result[share].append(taken)
                left[share] -= taken.rows * taken.columns
            share += rest is not None
    return [stretches for stretches in result if stretches]


def shared_each(stretches: Sequence[Stretch], formula: Formula, shares: int) -> list[list[Stretch]]:
    """The same, with an equal share of each stretch, so that a thread has the same part of an array whoever else is
    there: it lies in the core's own cache. Small ones go to who has least."""
    itemsizes = _itemsizes(formula)
    result: list[list[Stretch]] = [[] for _ in range(shares)]
    loads = [0] * shares
    for stretch in stretches:
        elements = stretch.rows * stretch.columns
        rest: Stretch | None = stretch
        if elements >= shares * ELEMENTS_WORTH_CUTTING:
            for share in range(shares - 1):
                taken, rest = rest.cut(elements / shares, itemsizes) if rest is not None else (None, None)
                _take(taken, share, result, loads)
            _take(rest, shares - 1, result, loads)
        else:
            _take(stretch, loads.index(min(loads)), result, loads)
    return [stretches for stretches in result if stretches]


def _take(stretch: Stretch | None, share: int, result: list[list[Stretch]], loads: list[int]) -> None:
    if stretch is not None:
        result[share].append(stretch)
        loads[share] += stretch.rows * stretch.columns


def _itemsizes(formula: Formula) -> list[int]:
    numbers = [operand.is_number for operand in formula.operands] + [False] * len(formula.results)
    return [0 if is_number else dtype.itemsize for dtype, is_number in zip(formula.placed_dtypes, numbers, strict=True)]
