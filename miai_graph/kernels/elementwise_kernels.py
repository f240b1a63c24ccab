"""Kernels of formulas: where the operands of a formula lie in memory, written down for its native code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from ctypes import c_int64, c_void_p
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from miai_graph.kernels import native
from miai_graph.kernels.crew import together
from miai_graph.kernels.elementwise_code import Formula, Operand, Step, module_text
from miai_graph.kernels.kernel import Kernel, Scratch, Several
from miai_graph.op import Array

STREAMED_BYTES = 1 << 24
"""Results that take more memory than this are not kept in the caches anyway: they are written past them."""

BYTES_WORTH_SHARING = 1 << 20
"""A thread has at least about so much to read."""

ELEMENTS_OF_A_CUT = 64
"""Threads share a row by so many elements at a time."""

FEW_COLUMNS, ENOUGH_COLUMNS = 16, 256
"""Rows of fewer columns are joined to rows of about so many, repeating what is the same in each."""


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

    def cut(self, elements: float, itemsizes: Sequence[int]) -> tuple[Stretch | None, Stretch | None]:
        """About so many elements of it, and the rest: whole rows, or cache lines of a single row.

        Parameters
        ----------
        itemsizes : bytes from an element of each operand and result to the next one
        """
        has_rows = self.rows > 1
        total = self.rows if has_rows else self.columns
        count = round(elements / self.columns) if has_rows else round(elements / ELEMENTS_OF_A_CUT) * ELEMENTS_OF_A_CUT
        if count <= 0:
            return None, self
        if count >= total:
            return self, None
        steps = self.row_strides if has_rows else itemsizes
        addresses = tuple(address + count * step for address, step in zip(self.addresses, steps, strict=True))
        if has_rows:
            return replace(self, rows=count), replace(self, rows=total - count, addresses=addresses)
        return replace(self, columns=count), replace(self, columns=total - count, addresses=addresses)

    @property
    def words(self) -> list[int]:
        """The line of the table."""
        pairs = zip(self.addresses, self.row_strides, strict=True)
        return [self.rows, self.columns, *(word for pair in pairs for word in pair)]


class FormulaKernels:
    """Collects what one kernel computes by one rule: of one set of arrays, or of several.

    Parameters
    ----------
    steps, results : see `Formula`
    scratch : gives memory for use while the kernel runs
    source : what is computed, for readers of the code
    """

    def __init__(self, steps: Sequence[Step], results: Sequence[int], scratch: Scratch, source: str) -> None:
        self._steps = tuple(steps)
        self._results = tuple(results)
        self._scratch = scratch
        self._source = source
        self._copies: list[tuple[Array, Array]] = []
        self._tables: dict[Formula, list[Stretch]] = {}
        self._arrays: list[Array] = []
        self._result_bytes = 0

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
        stretches = layout.stretches() if any(numbers) else self._joined(operands, layout)
        self._tables.setdefault(formula, []).extend(stretches)
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

    def _joined(self, operands: Sequence[Array], layout: Layout) -> Iterable[Stretch]:
        """The layout's stretches; where rows are short, several of them as one, what all rows share being repeated."""
        columns = layout.shape[-1]
        if len(layout.shape) != 2 or columns >= FEW_COLUMNS:
            return layout.stretches()
        rows, row_strides, steps = layout.shape[0], layout.strides[0], layout.strides[1]
        if any(stride not in (0, columns * step) for stride, step in zip(row_strides, steps, strict=True)):
            return layout.stretches()
        count = min(-(-ENOUGH_COLUMNS // columns), rows)
        addresses = list(layout.addresses)
        for place, (operand, stride) in enumerate(zip(operands, row_strides, strict=False)):
            if not stride:
                row = np.lib.stride_tricks.as_strided(operand, (columns,), (operand.itemsize,), writeable=False)
                repeated = self._scratch((count, columns), operand.dtype)
                self._copies.append((repeated, row))
                self._arrays.append(repeated)
                addresses[place] = repeated.ctypes.data
        joined_strides = tuple(count * stride for stride in row_strides)
        whole, rest = divmod(rows, count)
        joined = Stretch(whole, count * columns, tuple(addresses), joined_strides)
        ends = (address + whole * stride for address, stride in zip(addresses, joined_strides, strict=True))
        return [joined, Stretch(1, rest * columns, tuple(ends), joined_strides)] if rest else [joined]

    def kernel(self, threads: int = 1) -> Kernel:
        """What computes it all, in up to so many threads."""
        calls = [self._shared(formula, stretches, threads) for formula, stretches in self._tables.items()]
        calls = [*(partial(np.copyto, copy, source) for copy, source in self._copies), *calls]
        if len(calls) == 1:
            return calls[0]
        return Several(tuple(calls))

    def _shared(self, formula: Formula, stretches: Sequence[Stretch], threads: int) -> Kernel:
        """The call, or several by as many threads, where there is enough to do."""
        element_bytes = sum(operand.dtype.itemsize for operand in formula.operands if not operand.is_number)
        elements = sum(stretch.rows * stretch.columns for stretch in stretches)
        shares = min(threads, elements * element_bytes // BYTES_WORTH_SHARING + 1)
        if shares == 1:
            return self._call(formula, stretches)
        return together([self._call(formula, share) for share in shared(stretches, formula, shares)])

    def _call(self, formula: Formula, stretches: Sequence[Stretch]) -> Kernel:
        processor = native.processor()
        assert processor is not None
        code = native.library(module_text(formula, processor), SIGNATURES, self._source)
        table = np.array([stretch.words for stretch in stretches], np.int64)
        address: Any = table.ctypes.data_as(c_void_p)
        address.arrays = self._arrays
        name = "stream" if self._streamed(formula, stretches, processor) else "run"
        return partial(code.functions[name], address, c_int64(len(table)))

    def _streamed(self, formula: Formula, stretches: Sequence[Stretch], processor: native.Processor) -> bool:
        if self._result_bytes < STREAMED_BYTES:
            return False
        places = range(len(formula.operands), len(formula.operands) + len(formula.results))
        words = [stretch.addresses[place] for stretch in stretches for place in places]
        words += [stretch.row_strides[place] for stretch in stretches for place in places if stretch.rows > 1]
        return not any(word % processor.vector_bytes for word in words)


def shared(stretches: Sequence[Stretch], formula: Formula, shares: int) -> list[list[Stretch]]:
    """The stretches in so many shares of about the same size."""
    itemsizes = [operand.dtype.itemsize * (not operand.is_number) for operand in formula.operands]
    itemsizes += [formula.dtypes[result].itemsize for result in formula.results]
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


SIGNATURES: native.Signatures = {"run": (c_void_p, c_int64), "stream": (c_void_p, c_int64)}


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
    def of(cls, arrays: Sequence[Array]) -> Layout:
        """Neighbouring axes become one where all arrays go on as they would within one."""
        addresses = tuple(array.ctypes.data for array in arrays)
        shape: list[int] = []
        strides: list[tuple[int, ...]] = []
        for axis in reversed(range(arrays[0].ndim)):
            length, steps = arrays[0].shape[axis], tuple(array.strides[axis] for array in arrays)
            if length == 1:
                continue
            if shape and steps == tuple(stride * shape[0] for stride in strides[0]):
                shape[0] *= length
                continue
            shape.insert(0, length)
            strides.insert(0, steps)
        if not shape:
            return cls((1,), (tuple(array.itemsize for array in arrays),), addresses)
        return cls(tuple(shape), tuple(strides), addresses)

    def stretches(self) -> Iterator[Stretch]:
        """The rows and columns of it: a matrix for each index on the axes before the last two."""
        columns = self.shape[-1]
        rows, row_strides = 1, (0,) * len(self.addresses)
        if len(self.shape) > 1:
            rows, row_strides = self.shape[-2], self.strides[-2]
        for index in np.ndindex(self.shape[:-2]):
            offsets = [
                sum(place * axis[array] for place, axis in zip(index, self.strides, strict=False))
                for array in range(len(self.addresses))
            ]
            addresses = (address + offset for address, offset in zip(self.addresses, offsets, strict=True))
            yield Stretch(rows, columns, tuple(addresses), row_strides)
