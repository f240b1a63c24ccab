"""Code for several element-wise operations at once: what is between them stays in registers.

A `Formula` says what is computed; it becomes one function, which goes over rows and columns. Each operand is a vector
along the columns, or one number a row. Where operands lie the function finds in a table, a line for each stretch of
memory to go over, so that one call updates all parameters of a network.

Values may be added up on the way, over the rows or along each of them. Sums over the rows gather in memory as wide as
the rows are, for some rows without errors kept, and then with them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from miai_graph.kernels.compiler import curves
from miai_graph.kernels.compiler.compensated import LONGEST_CHAIN, with_errors, with_parts
from miai_graph.kernels.compiler.loops import Loops, Span, plus
from miai_graph.kernels.compiler.native import Processor
from miai_graph.kernels.compiler.vectors import BOOL, FLOAT32, FLOAT64, Vector
from miai_graph.kernels.elementwise.formulas import Formula, Step

DTYPES = (FLOAT32, FLOAT64, BOOL)


CACHED_COLUMNS = 2048
"""Totals over rows gather for so many columns at a time: what is gathered stays in the nearest cache."""

COLUMN_HEAD = 3
"""Words at the top of the table before the addresses of totals over rows."""

LINE_HEAD = 3
"""Words in a line of the table before those of what lies in rows and columns: how many rows, how many columns, and how
many rows the lines before have. Then for each the address, and the bytes from a row to the next."""


def _minimum(a: Vector, b: Vector) -> Vector:
    return a.call("minimum", b)


def _maximum(a: Vector, b: Vector) -> Vector:
    return a.call("maximum", b)


def _relu(x: Vector) -> Vector:
    # nan is not ordered, and stays.
    return x.compare("ugt", 0.0).choose(x, x.as_same(0.0))


def _relu_gradient(g: Vector, y: Vector) -> Vector:
    # g · 0 rather than 0: inf and nan are to be seen.
    return y.compare("ogt", 0.0).choose(g, g * 0.0)


def _squared_deviation(x: Vector, mean: Vector) -> Vector:
    deviation = x - mean
    return deviation * deviation


def _comparison(relation: str) -> Callable[[Vector, Vector], Vector]:
    return lambda a, b: a.compare(relation, b)


OPERATIONS: Mapping[str, Callable[..., Vector]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "divide": lambda a, b: a / b,
    "negative": lambda x: -x,
    "absolute": lambda x: x.call("fabs"),
    "square": lambda x: x * x,
    "squared_deviation": _squared_deviation,
    "minimum": _minimum,
    "maximum": _maximum,
    "sqrt": lambda x: x.call("sqrt"),
    "rsqrt": lambda x: 1.0 / x.call("sqrt"),
    "exp": curves.exp,
    "expm1": curves.expm1,
    "log": curves.log,
    "tanh": curves.tanh,
    "sigmoid": curves.sigmoid,
    "relu": _relu,
    "relu_gradient": _relu_gradient,
    "where": lambda condition, a, b: condition.choose(a, b),
    "equal": _comparison("oeq"),
    "not_equal": _comparison("une"),
    "less": _comparison("olt"),
    "less_equal": _comparison("ole"),
    "greater": _comparison("ogt"),
    "greater_equal": _comparison("oge"),
}
"""What writes the code of each op's operation. Also ``clip`` and ``cast``, which have options."""

WITH_OPTIONS = ("clip", "cast")


@functools.lru_cache(maxsize=1024)
def module_text(formula: Formula, processor: Processor, *, streams: bool = False) -> str:
    """The module with the function `run`, of a table and the number of its lines.

    If there are totals over the rows, these words stand at the top of the table: how many columns they are wide, how
    many rows of a line go side by side into these columns, in turn, and how many rows there are in all. Then for each
    total two addresses: of a row for the sums of some rows, and of two rows for the totals of these and for the errors.
    Without an address for totals there may be no more than `LONGEST_CHAIN` rows.

    To each column rows are added in an order that depends on their number and on how many go side by side, not on what
    else is computed.

    Parameters
    ----------
    streams : whether to write past the caches: results must lie at multiples of a vector's length then
    """
    return _Writer(formula, processor, streams=streams).module()


@dataclass(frozen=True)
class _Gathered:
    """Where a total over the rows gathers: sums of some rows, and the totals of these with their errors."""

    dtype: np.dtype[Any]
    parts: str
    both: Sequence[str]

    def from_column(self, code: Loops, column: str) -> _Gathered:
        """The same from a column on."""
        parts, *both = (code.element(place, column, self.dtype) for place in (self.parts, *self.both))
        return _Gathered(self.dtype, parts, both)


class _Writer:
    """Writes one module."""

    def __init__(self, formula: Formula, processor: Processor, *, streams: bool) -> None:
        self._formula = formula
        self._streams = streams
        sizes = [dtype.itemsize for dtype in formula.dtypes if dtype != BOOL]
        self.code = Loops(processor.width(max(sizes, default=1)))
        self._dtypes = formula.placed_dtypes
        self._zeros = [self.code.constant(0.0, formula.dtypes[total.value]) for total in formula.row_totals]

    def module(self) -> str:
        """All of it."""
        code, line_words = self.code, LINE_HEAD + 2 * len(self._dtypes)
        self._begin_totals()
        lines = code.at("%table", 8 * head_words(self._formula))
        with code.loop(0, "%segments") as segment:
            self._segment(self._words(code.stepped(lines, segment.index, 8 * line_words), line_words))
        if self._streams:
            # What went past the caches is in memory before anybody hears that it is there.
            code.do("fence seq_cst")
        body = "\n".join([*code.text, "  ret void"])
        function = f"define void @run(ptr %table, i64 %segments) nounwind {{\nstart:\n{body}\n}}\n"
        return "\n".join([*sorted(code.declared), function, "!0 = !{i32 1}", ""])

    def _words(self, pointer: str, count: int) -> list[str]:
        places = (self.code.value(f"getelementptr i64, ptr {pointer}, i64 {place}") for place in range(count))
        return [self.code.value(f"load i64, ptr {place}, align 8") for place in places]

    def _pointer(self, word: str) -> str:
        return self.code.value(f"inttoptr i64 {word} to ptr")

    def _begin_totals(self) -> None:
        """Read where totals over the rows gather, and put zeros there."""
        code, formula = self.code, self._formula
        self._gathered: list[_Gathered] = []
        if not formula.column_totals:
            return
        words = self._words("%table", head_words(formula))
        self._width, self._abreast, self._every_row = words[:COLUMN_HEAD]
        width, addresses = self._width, words[COLUMN_HEAD:]
        self._has_totals = code.value(f"icmp ne i64 {addresses[1]}, 0")
        span, both = code.span(width), code.span(code.times(width, 2))
        for total, parts, totals in zip(formula.column_totals, addresses[::2], addresses[1::2], strict=True):
            dtype = formula.dtypes[total.value]
            place = self._pointer(totals)
            gathered = _Gathered(dtype, self._pointer(parts), (place, code.element(place, width, dtype)))
            self._gathered.append(gathered)
            code.fill(gathered.parts, span, code.constant(0.0, dtype))
            with code.when(self._has_totals):
                code.fill(place, both, code.constant(0.0, dtype))

    def _segment(self, words: Sequence[str]) -> None:
        """A line of the table."""
        code, formula = self.code, self._formula
        rows, columns, before, *places = words
        starts, strides = [self._pointer(word) for word in places[::2]], places[1::2]
        if not formula.column_totals:
            span = code.span(columns)
            with code.loop(0, rows) as row:
                self._row(self._stepped(starts, row.index, strides), span)
            return
        step = self._width if formula.row_totals else CACHED_COLUMNS
        whole = self._gathered
        with code.loop(0, columns, step) as tile:
            self._gathered = [total.from_column(code, tile.index) for total in whole]
            self._pointers = starts
            bases = [
                start if self._is_number(place) else self._at(place, tile.index) for place, start in enumerate(starts)
            ]
            own, wide = (
                code.span(code.least(code.subtract(count, tile.index), step)) for count in (columns, self._width)
            )
            self._blocks(rows, columns, before, functools.partial(self._stepped, bases, strides=strides), own, wide)
        self._gathered = whole

    def _stepped(self, pointers: Sequence[str], row: str, strides: Sequence[str]) -> list[str]:
        return [self.code.stepped(pointer, row, stride) for pointer, stride in zip(pointers, strides, strict=True)]

    def _blocks(
        self, rows: str, columns: str, before: str, at_row: Callable[[str], list[str]], own: Span, wide: Span
    ) -> None:
        """The rows of a line, and after each block of them, counted through all lines, what gathers it."""
        code, whole = self.code, self._gathered
        last = code.add(before, rows)
        block_rows = code.times(self._abreast, LONGEST_CHAIN)
        with code.loop(self._multiple_below(before, block_rows), last, block_rows) as block:
            block_end = code.add(block.index, block_rows)
            first, stop = code.greatest(block.index, before), code.least(block_end, last)
            with code.loop(self._multiple_below(first, self._abreast), stop, self._abreast) as group:
                group_end = code.least(code.add(group.index, self._abreast), stop)
                with code.loop(code.greatest(group.index, first), group_end) as row:
                    place = code.times(code.subtract(row.index, group.index), columns)
                    self._gathered = [total.from_column(code, place) for total in whole]
                    self._row(at_row(code.subtract(row.index, before)), own)
            self._gathered = whole
            block_is_done = code.value(f"icmp eq i64 {stop}, {code.least(block_end, self._every_row)}")
            with code.when(code.value(f"and i1 {block_is_done}, {self._has_totals}")):
                self._gather(wide)

    def _multiple_below(self, number: str, factor: str) -> str:
        """The greatest multiple of a factor that is not above the number."""
        return self.code.times(self.code.value(f"udiv i64 {number}, {factor}"), factor)

    def _is_number(self, place: int) -> bool:
        """Whether there is one number a row."""
        operands, results = self._formula.operands, self._formula.results
        return operands[place].is_number if place < len(operands) else place >= len(operands) + len(results)

    def _gather(self, span: Span) -> None:
        """Add what was added up of some rows to the totals."""
        code = self.code
        for total in self._gathered:
            zero = code.constant(0.0, total.dtype)

            def add(
                start: str, mask: str | None, _: Sequence[Vector], total: _Gathered = total, zero: Vector = zero
            ) -> Sequence[Vector]:
                parts, *places = (code.element(base, start, total.dtype) for base in (total.parts, *total.both))
                before = [code.load(place, total.dtype, mask) for place in places]
                after = with_parts(before, [code.load(parts, total.dtype, mask)])
                for vector, place in zip([*after, zero], [*places, parts], strict=True):
                    code.store(vector, place, mask)
                return ()

            code.each_vector(span, (), add)

    def _row(self, pointers: Sequence[str], span: Span) -> None:
        """All columns of a row that begins at these pointers."""
        code, formula = self.code, self._formula
        self._pointers = list(pointers)
        numbers = {
            place: code.load_number(pointers[place], operand.dtype)
            for place, operand in enumerate(formula.operands)
            if operand.is_number
        }
        body = functools.partial(self._elements, numbers)
        if not self._zeros:
            code.each_vector(span, (), body)
            return
        length = LONGEST_CHAIN * code.lanes
        with code.loop(0, span.whole, length, self._zeros * 2) as block:
            stop = code.least(code.add(block.index, length), span.whole)
            with code.loop(block.index, stop, code.lanes, self._zeros) as part:
                part.following = body(part.index, None, part.values)
            block.following = with_parts(block.values, part.values)
        rest = code.changed_when(span.has_rest, self._zeros, functools.partial(body, span.whole, span.mask))
        sums = with_errors(with_parts(block.values, rest))
        for total, place in zip(sums, pointers[len(pointers) - len(sums) :], strict=True):
            code.store_number(code.over_lanes(plus, total), place)

    def _elements(
        self, numbers: Mapping[int, Vector], column: str, mask: str | None, sums: Sequence[Vector]
    ) -> list[Vector]:
        """Read, compute and write a vector of each, in this order: a result may lie where an operand does. Gives the
        sums along the row with one more vector each."""
        code, formula = self.code, self._formula
        values = [
            numbers[place] if operand.is_number else code.load(self._at(place, column), operand.dtype, mask)
            for place, operand in enumerate(formula.operands)
        ]
        for step in formula.steps:
            values.append(compute(step, [values[operand] for operand in step.operands]))
        for place, result in enumerate(formula.results, len(formula.operands)):
            code.store(values[result], self._at(place, column), mask, streams=self._streams)
        for total, gathered in zip(formula.column_totals, self._gathered, strict=True):
            parts = code.element(gathered.parts, column, gathered.dtype)
            code.store(code.load(parts, gathered.dtype, mask) + values[total.value], parts, mask)
        return [
            total + code.where(mask, values[row_total.value], 0.0)
            for total, row_total in zip(sums, formula.row_totals, strict=True)
        ]

    def _at(self, place: int, column: str) -> str:
        """Where the element in a column lies."""
        element = {BOOL: "i8", FLOAT32: "float", FLOAT64: "double"}[self._dtypes[place]]
        return self.code.value(f"getelementptr {element}, ptr {self._pointers[place]}, i64 {column}")


def head_words(formula: Formula) -> int:
    """How many words there are at the top of the table."""
    return COLUMN_HEAD + 2 * len(formula.column_totals) if formula.column_totals else 0


def compute(step: Step, operands: Sequence[Vector]) -> Vector:
    """Write the code of a step."""
    match step.operation:
        case "cast":
            return operands[0].to(step.dtype)
        case "clip":
            low, high = step.options
            x = operands[0]
            return x.call("maximum", x.as_same(low)).call("minimum", x.as_same(high))
        case operation:
            return OPERATIONS[operation](*operands)
