"""Code for several element-wise operations at once: what is between them stays in registers.

A `Formula` says what is computed; it becomes one function, which goes over rows and columns. Each operand is a vector
along the columns, or one number a row. Where operands lie the function finds in a table, a line for each stretch of
memory to go over, so that one call updates all parameters of a network.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from miai_graph.kernels import curves
from miai_graph.kernels.native import Processor
from miai_graph.kernels.vectors import BOOL, FLOAT32, FLOAT64, Lines, Vector

DTYPES = (FLOAT32, FLOAT64, BOOL)


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes
    ----------
    operation : the name of an op
    operands : numbers of values: operands of the formula first, then the results of the steps
    options : attributes that the operation depends on
    """

    operation: str
    operands: tuple[int, ...]
    dtype: np.dtype[Any]
    options: tuple[float, ...] = ()


@dataclass(frozen=True)
class Operand:
    """What is read.

    Attributes
    ----------
    is_number : one number for a whole row, instead of a number for each column
    """

    dtype: np.dtype[Any]
    is_number: bool


@dataclass(frozen=True)
class Formula:
    """What is computed of each element.

    Attributes
    ----------
    results : the numbers of the values that are written
    """

    operands: tuple[Operand, ...]
    steps: tuple[Step, ...]
    results: tuple[int, ...]

    @property
    def dtypes(self) -> list[np.dtype[Any]]:
        """Of all values."""
        return [operand.dtype for operand in self.operands] + [step.dtype for step in self.steps]


TABLE_HEAD = 2
"""Words in a line of the table before those of operands and results: rows, columns. Then for each the address, and the
bytes from a row to the next."""


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
def module_text(formula: Formula, processor: Processor) -> str:
    """The module with the functions `run` and `stream`, of a table and the number of its lines.

    `stream` writes past the caches: its results must lie at multiples of a vector's length.
    """
    functions, declared = [], set[str]()
    for name in ("run", "stream"):
        writer = _Writer(formula, processor, streams=name == "stream")
        functions.append(writer.function(name))
        declared |= writer.lines.declared
    return "\n".join([*sorted(declared), *functions, "!0 = !{i32 1}", ""])


class _Writer:
    """Writes one function. Names of places: %p3 is where operand or result 3 lies in the row, %s3 the bytes to the
    next row."""

    def __init__(self, formula: Formula, processor: Processor, *, streams: bool) -> None:
        self._formula = formula
        self._streams = streams
        sizes = [dtype.itemsize for dtype in formula.dtypes if dtype != BOOL]
        self.lines = Lines(processor.width(max(sizes, default=1)))
        self._dtypes = [operand.dtype for operand in formula.operands]
        self._dtypes += [formula.dtypes[result] for result in formula.results]

    def function(self, name: str) -> str:
        """The function's text."""
        lines, places = self.lines, range(len(self._dtypes))
        line_bytes = 8 * (TABLE_HEAD + 2 * len(places))
        lines.do("br label %segment.head")
        lines.label("segment.head")
        lines.do("%segment = phi i64 [ 0, %start ], [ %segment.next, %row.end ]")
        lines.do("%segment.more = icmp slt i64 %segment, %segments")
        lines.do("br i1 %segment.more, label %segment.body, label %end")
        lines.label("segment.body")
        lines.do(f"%segment.offset = mul i64 %segment, {line_bytes}")
        lines.do("%line = getelementptr i8, ptr %table, i64 %segment.offset")
        self._word("rows", 0)
        self._word("columns", 1)
        for place in places:
            self._word(f"a{place}", TABLE_HEAD + 2 * place)
            self._word(f"s{place}", TABLE_HEAD + 2 * place + 1)
            lines.do(f"%b{place} = inttoptr i64 %a{place} to ptr")
        lines.do(f"%whole = and i64 %columns, {-lines.lanes}")
        lines.do("%rest = sub i64 %columns, %whole")
        lines.do("%has.rest = icmp ne i64 %rest, 0")
        mask = lines.mask_of("%rest")
        lines.do("br label %row.head")
        lines.label("row.head")
        lines.do("%row = phi i64 [ 0, %segment.body ], [ %row.next, %row.done ]")
        lines.do("%row.more = icmp slt i64 %row, %rows")
        lines.do("br i1 %row.more, label %row.body, label %row.end")
        lines.label("row.body")
        for place in places:
            lines.do(f"%o{place} = mul i64 %row, %s{place}")
            lines.do(f"%p{place} = getelementptr i8, ptr %b{place}, i64 %o{place}")
        numbers = {
            place: lines.load_number(f"%p{place}", operand.dtype)
            for place, operand in enumerate(self._formula.operands)
            if operand.is_number
        }
        lines.do("br label %column.head")
        lines.label("column.head")
        lines.do("%column = phi i64 [ 0, %row.body ], [ %column.next, %column.body ]")
        lines.do("%column.more = icmp slt i64 %column, %whole")
        lines.do("br i1 %column.more, label %column.body, label %column.end")
        lines.label("column.body")
        self._elements(numbers, "%column", None)
        lines.do(f"%column.next = add i64 %column, {lines.lanes}")
        lines.do("br label %column.head")
        lines.label("column.end")
        lines.do("br i1 %has.rest, label %rest.body, label %row.done")
        lines.label("rest.body")
        self._elements(numbers, "%whole", mask)
        lines.do("br label %row.done")
        lines.label("row.done")
        lines.do("%row.next = add i64 %row, 1")
        lines.do("br label %row.head")
        lines.label("row.end")
        lines.do("%segment.next = add i64 %segment, 1")
        lines.do("br label %segment.head")
        lines.label("end")
        if self._streams:
            # What went past the caches is in memory before anybody hears that it is there.
            lines.do("fence seq_cst")
        body = "\n".join([*lines.text, "  ret void"])
        return f"define void @{name}(ptr %table, i64 %segments) nounwind {{\nstart:\n{body}\n}}\n"

    def _word(self, name: str, place: int) -> None:
        pointer = self.lines.value(f"getelementptr i64, ptr %line, i64 {place}")
        self.lines.do(f"%{name} = load i64, ptr {pointer}, align 8")

    def _elements(self, numbers: Mapping[int, Vector], column: str, mask: str | None) -> None:
        """Read, compute and write a vector of each, in this order: a result may lie where an operand does."""
        formula = self._formula
        values = [
            numbers[place] if operand.is_number else self.lines.load(self._at(place, column), operand.dtype, mask)
            for place, operand in enumerate(formula.operands)
        ]
        for step in formula.steps:
            values.append(compute(step, [values[operand] for operand in step.operands]))
        for place, result in enumerate(formula.results, len(formula.operands)):
            self.lines.store(values[result], self._at(place, column), mask, streams=self._streams)

    def _at(self, place: int, column: str) -> str:
        """Where the element in a column lies."""
        element = {BOOL: "i8", FLOAT32: "float", FLOAT64: "double"}[self._dtypes[place]]
        return self.lines.value(f"getelementptr {element}, ptr %p{place}, i64 {column}")


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
