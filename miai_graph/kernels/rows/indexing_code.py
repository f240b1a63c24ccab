"""Code for rows that are found by their numbers: picked, added up, or marked with a one."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from miai_graph.kernels.compiler.loops import Loops
from miai_graph.kernels.compiler.native import Processor
from miai_graph.kernels.compiler.vectors import Vector


@dataclass(frozen=True)
class Variant:
    """What the code is made for.

    Attributes
    ----------
    operation : the name of an op, or "rows": take, but no number is counted from the end
    index_bits : the width of the integers that number rows
    """

    operation: str
    dtype: np.dtype[Any]
    index_bits: int


@functools.cache
def module_text(variant: Variant, processor: Processor) -> str:
    """The module with the function `run`, for arrays that lie contiguous. Take, rows and scatter_add go over matrices,
    and in each over the indices; one_hot over the indices only. In the table:

    - the addresses of the indices, of what is read (nothing by one_hot) and of the result; of a number that becomes 1
      for an index that is outside, of which nothing is read or written
    - the numbers of matrices, of indices, of rows that they choose from, and of elements in a row; one_hot has rows of
      one element, and a matrix for each index
    """
    return _Writer(variant, processor).module()


class _Writer:
    def __init__(self, variant: Variant, processor: Processor) -> None:
        self._variant, self._dtype = variant, variant.dtype
        self._code = Loops(processor.width(variant.dtype.itemsize))

    def module(self) -> str:
        """All of it."""
        code = self._code
        self._indices, source, target, self._failed = code.pointers(4)
        matrices, self._count, self._length, elements = code.words(4)
        if self._variant.operation == "one_hot":
            self._one_hot(target)
            return code.module()
        self._span = code.span(elements)
        row_bytes = code.times(elements, self._dtype.itemsize)
        gathers = self._variant.operation != "scatter_add"
        long, short = code.times(self._length, row_bytes), code.times(self._count, row_bytes)
        whole = code.span(code.times(self._length, elements))
        with code.loop(0, matrices) as matrix:
            own_source = code.stepped(source, matrix.index, long if gathers else short)
            own_target = code.stepped(target, matrix.index, short if gathers else long)
            if not gathers:
                code.fill(own_target, whole, code.constant(0.0, self._dtype))
            with code.loop(0, self._count) as place:
                index, is_inside = self._index(place.index, from_the_end=self._variant.operation != "rows")
                with code.when(is_inside):
                    chosen, counted = code.times(index, row_bytes), code.times(place.index, row_bytes)
                    row = code.at(own_source, chosen if gathers else counted)
                    self._row(row, code.at(own_target, counted if gathers else chosen))
                self._tell(is_inside)
        return code.module()

    def _row(self, source: str, target: str) -> None:
        code, dtype = self._code, self._dtype

        def put(start: str, mask: str | None, _: Sequence[Vector]) -> Sequence[Vector]:
            place = code.element(target, start, dtype)
            number = code.load(code.element(source, start, dtype), dtype, mask)
            if self._variant.operation == "scatter_add":
                number = code.load(place, dtype, mask) + number
            code.store(number, place, mask)
            return ()

        code.each_vector(self._span, (), put)

    def _one_hot(self, target: str) -> None:
        code = self._code
        code.fill(target, code.span(code.times(self._count, self._length)), code.constant(0.0, self._dtype))
        one = code.constant(1.0, self._dtype)
        with code.loop(0, self._count) as place:
            index, is_inside = self._index(place.index, from_the_end=False)
            with code.when(is_inside):
                row = code.times(place.index, self._length)
                code.store_number(one, code.element(target, code.add(row, index), self._dtype))

    def _index(self, place: str, from_the_end: bool) -> tuple[str, str]:
        """The index there, and whether it is inside; negative ones may be counted from the end."""
        code, bits = self._code, self._variant.index_bits
        pointer = code.value(f"getelementptr i{bits}, ptr {self._indices}, i64 {place}")
        index = code.value(f"load i{bits}, ptr {pointer}, align {bits // 8}")
        if bits < 64:
            index = code.value(f"sext i{bits} {index} to i64")
        if from_the_end:
            is_negative = code.value(f"icmp slt i64 {index}, 0")
            index = code.value(f"select i1 {is_negative}, i64 {code.add(index, self._length)}, i64 {index}")
        # Negative ones are the greatest of all numbers without a sign.
        return index, code.value(f"icmp ult i64 {index}, {self._length}")

    def _tell(self, is_inside: str) -> None:
        code = self._code
        with code.when(code.value(f"xor i1 {is_inside}, true")):
            code.do(f"store i64 1, ptr {self._failed}, align 8")
