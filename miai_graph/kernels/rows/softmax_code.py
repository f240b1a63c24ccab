"""Code for softmax and its kin: along rows, or along columns with a vector of them at a time.

The greatest of a row is taken out first. Exponentials of many rows are under way at the same time, for rows do not
depend on each other.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from miai_graph.kernels.compiler import curves
from miai_graph.kernels.compiler.loops import Loops, plus
from miai_graph.kernels.compiler.native import Processor
from miai_graph.kernels.compiler.vectors import Vector


@dataclass(frozen=True)
class Variant:
    """What the code is made for.

    Attributes
    ----------
    operation : the name of an op
    label_bits : the width of the integers that name classes
    """

    operation: str
    dtype: np.dtype[Any]
    label_bits: int = 64


@functools.cache
def rows_text(variant: Variant, processor: Processor) -> str:
    """The module with the function `run`, along rows. In the table:

    - the addresses of logits and result; of labels or probabilities; of a number that becomes 1 for a label that is no
      class, of which nothing is read
    - the number of rows, and their length
    - bytes from row to row: of logits, of results, and of labels or probabilities
    """
    return _Rows(variant, processor).module()


class _Rows:
    def __init__(self, variant: Variant, processor: Processor) -> None:
        self._variant = variant
        self._dtype = variant.dtype
        self._code = Loops(processor.width(variant.dtype.itemsize))

    def module(self) -> str:
        """A loop over rows."""
        code = self._code
        x, y, other, self._failed = code.pointers(4)
        rows, self._length, *strides = code.words(5)
        self._span = code.span(self._length)
        write = {
            "softmax": self._softmax,
            "log_softmax": self._log_softmax,
            "logsumexp": self._logsumexp,
            "sparse_softmax_cross_entropy": self._sparse_cross_entropy,
            "softmax_cross_entropy": self._cross_entropy,
        }[self._variant.operation]
        with code.loop(0, rows) as row:
            write(*(code.stepped(array, row.index, step) for array, step in zip((x, y, other), strides, strict=True)))
        return code.module()

    def _greatest(self, x: str) -> Vector:
        code, lowest = self._code, self._code.constant(-math.inf, self._dtype)

        def greater(start: str, mask: str | None, best: Sequence[Vector]) -> Sequence[Vector]:
            return [_greater(code.where(mask, self._load(x, start, mask), -math.inf), best[0])]

        return code.over_lanes(_greater, code.each_vector(self._span, [lowest], greater)[0])

    def _exponentials(self, x: str, taken_out: Vector, kept_at: str | None = None) -> Vector:
        """Their sum; they are kept if it is said where."""
        code = self._code

        def added(start: str, mask: str | None, total: Sequence[Vector]) -> Sequence[Vector]:
            # Exponentials beyond the end are those of -inf: 0.
            shifted = code.where(mask, self._load(x, start, mask) - taken_out, -math.inf)
            exponential = curves.exp(shifted)
            if kept_at is not None:
                self._store(exponential, kept_at, start, mask)
            return [total[0] + exponential]

        return code.over_lanes(plus, code.each_vector(self._span, [code.constant(0.0, self._dtype)], added)[0])

    def _softmax(self, x: str, y: str, other: str) -> None:
        code = self._code
        factor = 1.0 / self._exponentials(x, self._greatest(x), y)

        def scale(start: str, mask: str | None, _: Sequence[Vector]) -> Sequence[Vector]:
            self._store(self._load(y, start, mask) * factor, y, start, mask)
            return ()

        code.each_vector(self._span, (), scale)

    def _log_softmax(self, x: str, y: str, other: str) -> None:
        greatest = self._greatest(x)
        logarithm = curves.log(self._exponentials(x, greatest))

        def shift(start: str, mask: str | None, _: Sequence[Vector]) -> Sequence[Vector]:
            self._store(self._load(x, start, mask) - greatest - logarithm, y, start, mask)
            return ()

        self._code.each_vector(self._span, (), shift)

    def _logsumexp(self, x: str, y: str, other: str) -> None:
        greatest = self._greatest(x)
        is_finite = greatest.call("fabs").compare("olt", math.inf)
        taken_out = is_finite.choose(greatest, greatest.as_same(0.0))
        self._code.store_number(curves.log(self._exponentials(x, taken_out)) + taken_out, y)

    def _sparse_cross_entropy(self, x: str, y: str, label: str) -> None:
        code, bits = self._code, self._variant.label_bits
        chosen = code.value(f"load i{bits}, ptr {label}, align {bits // 8}")
        if bits < 64:
            chosen = code.value(f"sext i{bits} {chosen} to i64")
        # Negative ones are the greatest of all numbers without a sign.
        outside = code.value(f"icmp uge i64 {chosen}, {self._length}")
        with code.when(outside):
            code.do(f"store i64 1, ptr {self._failed}, align 8")
        with code.when(code.value(f"xor i1 {outside}, true")):
            greatest = self._greatest(x)
            logarithm = curves.log(self._exponentials(x, greatest))
            number = code.load_number(code.element(x, chosen, self._dtype), self._dtype)
            code.store_number(logarithm - (number - greatest), y)

    def _cross_entropy(self, x: str, y: str, probabilities: str) -> None:
        code = self._code
        greatest = self._greatest(x)
        logarithm = curves.log(self._exponentials(x, greatest))

        def added(start: str, mask: str | None, total: Sequence[Vector]) -> Sequence[Vector]:
            product = self._load(probabilities, start, mask) * (self._load(x, start, mask) - greatest - logarithm)
            return [total[0] + code.where(mask, product, 0.0)]

        (total,) = code.each_vector(self._span, [code.constant(0.0, self._dtype)], added)
        code.store_number(-code.over_lanes(plus, total), y)

    def _load(self, row: str, start: str, mask: str | None) -> Vector:
        return self._code.load(self._code.element(row, start, self._dtype), self._dtype, mask)

    def _store(self, vector: Vector, row: str, start: str, mask: str | None) -> None:
        self._code.store(vector, self._code.element(row, start, self._dtype), mask)


@functools.cache
def columns_text(variant: Variant, processor: Processor) -> str:
    """The module with the function `run`, along columns: softmax and log_softmax. In the table:

    - the addresses of logits and result
    - the number of matrices, their rows and columns
    - the strides of logits, then of results: from matrix to matrix, from row to row
    """
    return _Columns(variant, processor).module()


class _Columns:
    def __init__(self, variant: Variant, processor: Processor) -> None:
        self._variant = variant
        self._dtype = variant.dtype
        self._code = Loops(processor.width(variant.dtype.itemsize))

    def module(self) -> str:
        """A loop over matrices, and in each over vectors of columns."""
        code = self._code
        x, y = code.pointers(2)
        matrices, self._rows, columns = code.words(3)
        self._x_strides, self._y_strides = code.words(2), code.words(2)
        span = code.span(columns)
        with code.loop(0, matrices) as matrix:
            own_x = code.stepped(x, matrix.index, self._x_strides[0])
            own_y = code.stepped(y, matrix.index, self._y_strides[0])
            code.each_vector(span, (), functools.partial(self._column, own_x, own_y))
        return code.module()

    def _column(self, x: str, y: str, start: str, mask: str | None, _: Sequence[Vector]) -> Sequence[Vector]:
        code, dtype = self._code, self._dtype
        x, y = code.element(x, start, dtype), code.element(y, start, dtype)

        def at(row: str) -> tuple[Vector, str]:
            source = code.stepped(x, row, self._x_strides[1])
            return code.load(source, dtype, mask), code.stepped(y, row, self._y_strides[1])

        with code.loop(0, self._rows, 1, [code.constant(-math.inf, dtype)]) as search:
            search.following = [_greater(at(search.index)[0], search.values[0])]
        (greatest,) = search.values
        is_softmax = self._variant.operation == "softmax"
        with code.loop(0, self._rows, 1, [code.constant(0.0, dtype)]) as addition:
            number, place = at(addition.index)
            exponential = curves.exp(number - greatest)
            if is_softmax:
                code.store(exponential, place, mask)
            addition.following = [addition.values[0] + exponential]
        (total,) = addition.values
        last = 1.0 / total if is_softmax else curves.log(total)
        with code.loop(0, self._rows) as change:
            number, place = at(change.index)
            result = code.load(place, dtype, mask) * last if is_softmax else number - greatest - last
            code.store(result, place, mask)
        return ()


def _greater(a: Vector, b: Vector) -> Vector:
    """The greater of the two, of numbers. A nan need not be found here, for the sum of exponentials has it."""
    return a.compare("ogt", b).choose(a, b)
