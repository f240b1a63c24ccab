"""Kernels of formulas: where the operands of a formula lie in memory, written down for its native code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from ctypes import c_int64, c_void_p
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain

import numpy as np

from miai_graph.kernels.compiler import native
from miai_graph.kernels.compiler.tables import table_of
from miai_graph.kernels.compiler.vectors import FLOAT32, FLOAT64
from miai_graph.kernels.elementwise.code import module_text
from miai_graph.kernels.elementwise.formulas import Formula, Operand, Step
from miai_graph.kernels.elementwise.stretches import Layout, Stretch, shared_each
from miai_graph.kernels.kernel import Kernel, Scratch, Several
from miai_graph.kernels.running.crew import together
from miai_graph.op import Array

STREAMED_BYTES = 1 << 24
"""Results that take more memory than this are not kept in the caches anyway: they are written past them."""

BYTES_WORTH_SHARING = 1 << 17
"""A thread has at least about so much to read."""

FEW_COLUMNS, SOME_COLUMNS, ENOUGH_COLUMNS = 16, 128, 256
"""Rows of few columns are joined to rows of about enough, repeating what is the same in each; rows of some columns only
where there are many."""

MANY_ROWS = 1024

MOST_STRETCHES_OF_A_COPY = 1 << 10
"""What is in more pieces is copied by NumPy."""


class FormulaKernels:
    """Collects what one kernel computes by one rule: of one set of arrays, or of several.

    Parameters
    ----------
    steps, results : see `Formula`
    scratch : gives memory for use while the kernel runs
    source : what is computed, for readers of the code
    written_beside_bytes : by other kernels, which also decide whether results stay in the caches
    """

    def __init__(
        self,
        steps: Sequence[Step],
        results: Sequence[int],
        scratch: Scratch,
        source: str,
        written_beside_bytes: int = 0,
    ) -> None:
        self._steps = tuple(steps)
        self._results = tuple(results)
        self._scratch = scratch
        self._source = source
        self._copies: list[tuple[Array, Array]] = []
        self._tables: dict[Formula, list[Stretch]] = {}
        self._arrays: list[Array] = []
        self._result_bytes = written_beside_bytes

    def add(self, operands: Sequence[Array], results: Sequence[Array]) -> None:
        """Arrays of one shape. Results may lie where operands do, element by element, or apart from all."""
        if not results[0].size:
            return
        operands = self._fitting(operands, results)
        layout = Layout.of([*operands, *results])
        numbers = [not stride for stride in layout.strides[-1][: len(operands)]]
        formula = Formula(
            tuple(Operand(array.dtype, is_number) for array, is_number in zip(operands, numbers, strict=True)),
            self._steps,
            self._results,
        )
        joined = None if any(numbers) else in_joined_rows(operands, layout, self._scratch)
        if joined is not None:
            self._copies += joined.copies
        self._tables.setdefault(formula, []).extend(layout.stretches() if joined is None else joined.stretches)
        self._arrays += [*operands, *results]
        self._result_bytes += sum(result.nbytes for result in results)

    def _fitting(self, operands: Sequence[Array], results: Sequence[Array]) -> list[Array]:
        """The arrays, or copies of those whose elements do not lie one behind the other where those of results do."""
        last_strides = Layout.of([*operands, *results]).strides[-1]
        fitting = list(operands)
        for place, (operand, stride) in enumerate(zip(operands, last_strides, strict=False)):
            if stride not in (0, operand.itemsize):
                fitting[place] = self._scratch(operand.shape, operand.dtype)
                self._copies.append((fitting[place], operand))
        return fitting

    def kernel(self, threads: int = 1) -> Kernel:
        """What computes it all, in up to so many threads."""
        calls = [self._shared(formula, stretches, threads) for formula, stretches in self._tables.items()]
        return in_turn([*(copying(copy, source) for copy, source in self._copies), *calls])

    def _shared(self, formula: Formula, stretches: Sequence[Stretch], threads: int) -> Kernel:
        """The call, or several by as many threads, where there is enough to do."""
        keeps = [*self._arrays, *(copy for copy, _ in self._copies)]
        return together(
            [
                formula_call(formula, share, self._source, keeps, self._result_bytes)
                for share in shared_each(stretches, formula, shares_worth_while(formula, stretches, threads))
            ]
        )


def copying(target: Array, source: Array, threads: int = 1) -> Kernel:
    """What copies an array to one of the same dtype, to whose shape it is repeated, in up to so many threads.

    By native code if columns lie one behind the other in both, or are one number, and by NumPy if not.
    """
    layout = _native_layout(target, np.broadcast_to(source, target.shape))
    if layout is None or math.prod(layout.shape[:-2]) > MOST_STRETCHES_OF_A_COPY:
        return partial(np.copyto, target, source)
    formula = Formula((Operand(target.dtype, not layout.strides[-1][0]),), (Step("cast", (0,), target.dtype),), (1,))
    stretches = list(layout.stretches())
    shares = shared_each(stretches, formula, shares_worth_while(formula, stretches, threads))
    return together([formula_call(formula, share, "copy", [source, target], target.nbytes) for share in shares])


def _native_layout(target: Array, source: Array) -> Layout | None:
    """How the source and the target lie in memory; None where native code does not suit."""
    suits = target.dtype in (FLOAT32, FLOAT64) and source.flags.aligned and target.flags.aligned
    if native.processor() is None or not suits or not target.size:
        return None
    layout = Layout.of([source, target])
    stride, own_stride = layout.strides[-1]
    return layout.with_most_rows() if own_stride == target.itemsize and stride in (0, own_stride) else None


def filling(target: Array, number: float, threads: int = 1) -> Kernel:
    """What sets all elements to a number."""
    return copying(target, np.full((), number, target.dtype), threads)


def adding(target: Array, sources: Sequence[Array], threads: int = 1) -> Kernel:
    """What adds arrays of its dtype and shape to the target, one after another, in up to so many threads."""
    if any(_native_layout(target, source) is None for source in sources):
        return in_turn([partial(np.add, target, source, target) for source in sources])
    dtype, count = target.dtype, len(sources)
    steps = [Step("add", (count + place if place else 0, place + 1), dtype) for place in range(count)]
    kernels = FormulaKernels(steps, [2 * count], np.empty, "sum")
    kernels.add([target, *sources], [target])
    return kernels.kernel(threads)


@dataclass(frozen=True)
class JoinedRows:
    """Rows of which several are taken as one.

    Attributes
    ----------
    copies : what is to be repeated before: to, from
    """

    stretches: Sequence[Stretch]
    copies: Sequence[tuple[Array, Array]]


def in_joined_rows(operands: Sequence[Array], layout: Layout, scratch: Scratch) -> JoinedRows | None:
    """Several rows as one where they are short, with what all of them share repeated; None where that cannot be."""
    columns = layout.shape[-1]
    if len(layout.shape) != 2:
        return None
    rows, row_strides, steps = layout.shape[0], layout.strides[0], layout.strides[1]
    count = rows_to_join(rows, columns)
    if count == 1 or any(stride not in (0, columns * step) for stride, step in zip(row_strides, steps, strict=True)):
        return None
    addresses, copies = list(layout.addresses), []
    for place, (operand, stride) in enumerate(zip(operands, row_strides, strict=False)):
        if not stride:
            row = np.lib.stride_tricks.as_strided(operand, (columns,), (operand.itemsize,), writeable=False)
            copies.append((scratch((count, columns), operand.dtype), row))
            addresses[place] = copies[-1][0].ctypes.data
    joined_strides = tuple(count * stride for stride in row_strides)
    whole, rest = divmod(rows, count)
    stretches = [Stretch(whole, count * columns, tuple(addresses), joined_strides)]
    if rest:
        ends = (address + whole * stride for address, stride in zip(addresses, joined_strides, strict=True))
        stretches.append(Stretch(1, rest * columns, tuple(ends), joined_strides))
    return JoinedRows(stretches, copies)


def rows_to_join(rows: int, columns: int) -> int:
    """How many rows are best taken as one."""
    if columns >= (SOME_COLUMNS if rows >= MANY_ROWS else FEW_COLUMNS):
        return 1
    return min(-(-ENOUGH_COLUMNS // columns), rows)


def shares_worth_while(formula: Formula, stretches: Sequence[Stretch], threads: int) -> int:
    """How many threads are to share the work."""
    element_bytes = sum(operand.dtype.itemsize for operand in formula.operands if not operand.is_number)
    elements = sum(stretch.rows * stretch.columns for stretch in stretches)
    return min(threads, elements * element_bytes // BYTES_WORTH_SHARING + 1)


def formula_call(
    formula: Formula,
    stretches: Sequence[Stretch],
    source: str,
    keeps: Sequence[Array],
    result_bytes: int,
    head: Sequence[int] = (),
) -> Kernel:
    """A call of native code.

    Parameters
    ----------
    source : what is computed, for readers of the code
    keeps : arrays whose memory is read or written
    result_bytes : of all that is written
    head : the words at the top of the table
    """
    processor = native.processor()
    assert processor is not None
    streams = result_bytes >= STREAMED_BYTES and _is_aligned(formula, stretches, processor)
    code = native.library(module_text(formula, processor, streams=streams), SIGNATURES, source)
    rows_before = accumulate((stretch.rows for stretch in stretches), initial=0)
    lines = (stretch.words(before) for stretch, before in zip(stretches, rows_before, strict=False))
    table = table_of([*head, *chain.from_iterable(lines)], keeps)
    return partial(code.functions["run"], table.ctypes.data_as(c_void_p), c_int64(len(stretches)))


def _is_aligned(formula: Formula, stretches: Sequence[Stretch], processor: native.Processor) -> bool:
    """Whether all rows of results begin at multiples of a vector's length."""
    places = range(len(formula.operands), len(formula.operands) + len(formula.results))
    words = [stretch.addresses[place] for stretch in stretches for place in places]
    words += [stretch.row_strides[place] for stretch in stretches for place in places if stretch.rows > 1]
    return not any(word % processor.vector_bytes for word in words)


SIGNATURES: native.Signatures = {"run": (c_void_p, c_int64)}


def in_turn(calls: Sequence[Kernel]) -> Kernel:
    """All calls, one after another."""
    return calls[0] if len(calls) == 1 else Several(tuple(calls))
