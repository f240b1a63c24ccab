"""Code for softmax and its kin: along rows, or along columns with a vector of them at a time.

The greatest of a row is taken out first. Short rows stay in registers from the first step to the last; what of several
rows can be done at a time the processor finds out, for they do not depend on each other.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from miai_graph.kernels.compiler import curves
from miai_graph.kernels.compiler.loops import ELEMENTS, Loops, plus
from miai_graph.kernels.compiler.native import Processor
from miai_graph.kernels.compiler.vectors import Vector, literal_of

MOST_KEPT = 8
"""Vectors of a row that stay in registers; of longer rows so many are under way at a time."""

ABREAST = 4
"""Vectors of longer rows that are computed at a time, and added up apart."""


@dataclass(frozen=True)
class Variant:
    """What the code is made for.

    Attributes
    ----------
    operation : the name of an op
    label_bits : the width of the integers that name classes
    kept : of rows that stay in registers: how many whole vectors they are, and whether there is a rest; None: rows of
        any length, which do not
    """

    operation: str
    dtype: np.dtype[Any]
    label_bits: int = 64
    kept: tuple[int, bool] | None = None


def kept_vectors(length: int, dtype: np.dtype[Any], processor: Processor) -> tuple[int, bool] | None:
    """What a `Variant` for rows of that length keeps."""
    whole, rest = divmod(length, processor.width(dtype.itemsize))
    return (whole, rest > 0) if 0 < whole + (rest > 0) <= MOST_KEPT else None


@functools.cache
def rows_text(variant: Variant, processor: Processor) -> str:
    """The module with the function `run`, along rows. In the table:

    - the addresses of logits and result; of labels or probabilities; of a number that becomes 1 for a label that is no
      class, of which nothing is read
    - the number of rows, and their length
    - bytes from row to row: of logits, of results, and of labels or probabilities
    """
    return _Rows(variant, processor).module()


Part = Callable[[str, str | None], Vector]
"""Of the number of the first element and the mask."""


class _Rows:
    def __init__(self, variant: Variant, processor: Processor) -> None:
        self._variant = variant
        self._dtype = variant.dtype
        self._code = Loops(processor.width(variant.dtype.itemsize))
        self._kept: dict[tuple[str, str], Vector] = {}
        """By row and first element."""

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

    def _softmax(self, x: str, y: str, other: str) -> None:
        greatest = self._greatest(x)

        def exponential(start: str, mask: str | None) -> Vector:
            return self._keep(curves.decay(self._load(x, start, mask) - greatest), y, start, mask)

        factor = self._reciprocal(self._sum(exponential))
        self._each(lambda start, mask: self._store(self._load(y, start, mask) * factor, y, start, mask))

    def _log_softmax(self, x: str, y: str, other: str) -> None:
        greatest, logarithm = self._greatest_and_logarithm(x)
        self._each(lambda start, mask: self._store(self._load(x, start, mask) - greatest - logarithm, y, start, mask))

    def _logsumexp(self, x: str, y: str, other: str) -> None:
        greatest = self._greatest(x)
        is_finite = greatest.call("fabs").compare("olt", math.inf)
        taken_out = is_finite.choose(greatest, greatest.as_same(0.0))
        total = self._sum(lambda start, mask: curves.exp(self._load(x, start, mask) - taken_out))
        self._code.store_number(curves.log(total) + taken_out, y)

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
            greatest, logarithm = self._greatest_and_logarithm(x)
            number = code.load_number(code.element(x, chosen, self._dtype), self._dtype)
            code.store_number(logarithm - (number - greatest), y)

    def _cross_entropy(self, x: str, y: str, probabilities: str) -> None:
        greatest, logarithm = self._greatest_and_logarithm(x)

        def product(start: str, mask: str | None) -> Vector:
            return self._load(probabilities, start, mask) * (self._load(x, start, mask) - greatest - logarithm)

        self._code.store_number(-self._sum(product), y)

    def _greatest_and_logarithm(self, x: str) -> tuple[Vector, Vector]:
        """The greatest of a row, and the logarithm of the sum of exponentials without it."""
        greatest = self._greatest(x)
        total = self._sum(lambda start, mask: curves.decay(self._load(x, start, mask) - greatest))
        return greatest, curves.log(total)

    def _greatest(self, x: str) -> Vector:
        return self._combined(_greater, -math.inf, functools.partial(self._load, x))

    def _sum(self, part: Part) -> Vector:
        return self._combined(plus, 0.0, part)

    def _combined(self, combine: Callable[[Vector, Vector], Vector], neutral: float, part: Part) -> Vector:
        """All elements of a row, in each lane: as many vectors at a time as do not wait for each other."""
        code = self._code

        def masked(start: str, mask: str | None) -> Vector:
            return code.where(mask, part(start, mask), neutral)

        def added(start: str, mask: str | None, values: Sequence[Vector]) -> list[Vector]:
            return [combine(masked(start, mask), values[0])]

        if self._variant.kept is not None:
            return code.over_lanes(combine, _in_pairs(combine, [masked(*place) for place in self._places()]))
        first, step = code.constant(neutral, self._dtype), ABREAST * code.lanes
        whole = code.value(f"and i64 {self._length}, {-step}")
        with code.loop(0, whole, step, [first] * ABREAST) as round:
            starts = [code.add(round.index, place * code.lanes) for place in range(ABREAST)]
            round.following = [
                combine(part(start, None), value) for start, value in zip(starts, round.values, strict=True)
            ]
        values = [_in_pairs(combine, round.values)]
        with code.loop(whole, self._span.whole, code.lanes, values) as round:
            round.following = added(round.index, None, round.values)
        (result,) = code.changed_when(
            self._span.has_rest, round.values, functools.partial(added, self._span.whole, self._span.mask)
        )
        return code.over_lanes(combine, result)

    def _each(self, act: Callable[[str, str | None], None]) -> None:
        """Do something with each vector of a row."""
        if self._variant.kept is not None:
            for place in self._places():
                act(*place)
            return

        def body(start: str, mask: str | None, _: Sequence[Vector]) -> Sequence[Vector]:
            act(start, mask)
            return ()

        self._code.each_vector(self._span, (), body)

    def _places(self) -> list[tuple[str, str | None]]:
        """Of the vectors of a row that stays in registers: the number of the first element, and the mask."""
        assert self._variant.kept is not None
        whole, has_rest = self._variant.kept
        starts = [str(place * self._code.lanes) for place in range(whole + has_rest)]
        return [(start, self._span.mask if place == whole else None) for place, start in enumerate(starts)]

    def _reciprocal(self, vector: Vector) -> Vector:
        """Of a number that is in all lanes: to divide them all takes the processor longer."""
        code, element = self._code, ELEMENTS[self._dtype]
        number = code.value(f"extractelement {vector.type} {vector.name}, i64 0")
        return code.spread(code.value(f"fdiv {element} {literal_of(1.0, self._dtype)}, {number}"), self._dtype)

    def _load(self, row: str, start: str, mask: str | None) -> Vector:
        code = self._code
        found = self._kept.get((row, start))
        if found is None:
            found = code.load(code.element(row, start, self._dtype), self._dtype, mask)
            if self._variant.kept is not None:
                self._kept[row, start] = found
        return found

    def _keep(self, vector: Vector, row: str, start: str, mask: str | None) -> Vector:
        """For who loads it: in a register, or in memory."""
        if self._variant.kept is not None:
            self._kept[row, start] = vector
        else:
            self._store(vector, row, start, mask)
        return vector

    def _store(self, vector: Vector, row: str, start: str, mask: str | None) -> None:
        self._code.store(vector, self._code.element(row, start, self._dtype), mask)


def _in_pairs(combine: Callable[[Vector, Vector], Vector], vectors: Sequence[Vector]) -> Vector:
    """All of them combined, with as few as possible one after another."""
    while len(vectors) > 1:
        pairs = [combine(*vectors[place : place + 2]) for place in range(0, len(vectors) - 1, 2)]
        vectors = [*pairs, *vectors[2 * len(pairs) :]]
    return vectors[0]


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
            exponential = curves.decay(number - greatest)
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
