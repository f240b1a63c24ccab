"""Loops over vectors, written down as LLVM's instructions, and how the functions made of them are called.

A function finds all that it works on in a table of 64-bit words: addresses, lengths, and strides in bytes. A call of it
takes one pointer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import c_void_p
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from miai_graph.kernels.compiler import native
from miai_graph.kernels.compiler.instructions import lane_numbers
from miai_graph.kernels.compiler.tables import table_of
from miai_graph.kernels.compiler.vectors import BOOL, FLOAT32, FLOAT64, Lines, Vector
from miai_graph.kernels.kernel import Kernel
from miai_graph.op import Array

ELEMENTS = {FLOAT32: "float", FLOAT64: "double"}

VectorBody = Callable[[str, str | None, Sequence[Vector]], Sequence[Vector]]


@dataclass
class Round:
    """One round of a loop.

    Attributes
    ----------
    index : of the loop
    values : what the round before gave; after the loop, what the last one gave
    following : what this round gives, to be set within the loop
    """

    index: str
    values: list[Vector]
    following: Sequence[Vector] = field(default=())


@dataclass(frozen=True)
class Span:
    """So many elements, taken in whole vectors and a rest.

    Attributes
    ----------
    whole : how many of them are in whole vectors
    has_rest : whether there are others
    mask : the lanes of the rest
    """

    whole: str
    has_rest: str
    mask: str


class Loops(Lines):
    """The instructions of a function of a table, with loops. Integers are given by name or as such."""

    def __init__(self, lanes: int) -> None:
        super().__init__(lanes)
        self._words = 0

    def words(self, count: int) -> list[str]:
        """The next so many words of the table."""
        first = self._words
        self._words += count
        places = (self.value(f"getelementptr i64, ptr %table, i64 {first + place}") for place in range(count))
        return [self.value(f"load i64, ptr {place}, align 8") for place in places]

    def pointers(self, count: int) -> list[str]:
        """The next so many words of the table, as addresses."""
        return [self.value(f"inttoptr i64 {word} to ptr") for word in self.words(count)]

    def least(self, a: object, b: object) -> str:
        """The lesser of the two."""
        return self._extreme("smin", a, b)

    def greatest(self, a: object, b: object) -> str:
        """The greater of the two."""
        return self._extreme("smax", a, b)

    def _extreme(self, function: str, a: object, b: object) -> str:
        self.declared.add(f"declare i64 @llvm.{function}.i64(i64, i64)")
        return self.value(f"call i64 @llvm.{function}.i64(i64 {a}, i64 {b})")

    def stepped(self, pointer: str, index: object, stride_bytes: object) -> str:
        """The pointer so many strides further."""
        return self.at(pointer, self.times(index, stride_bytes))

    def element(self, pointer: str, index: object, dtype: np.dtype[Any]) -> str:
        """Where the element of that number lies."""
        return self.value(f"getelementptr {ELEMENTS[dtype]}, ptr {pointer}, i64 {index}")

    def number(self, integer: object, dtype: np.dtype[Any]) -> Vector:
        """An integer in all lanes, as a float."""
        return self.spread(self.value(f"sitofp i64 {integer} to {ELEMENTS[dtype]}"), dtype)

    def spread(self, number: str, dtype: np.dtype[Any]) -> Vector:
        """A float in all lanes."""
        element, type = ELEMENTS[dtype], self.type(ELEMENTS[dtype])
        first = self.value(f"insertelement {type} poison, {element} {number}, i64 0")
        every = f"shufflevector {type} {first}, {type} poison, <{self.lanes} x i32> zeroinitializer"
        return Vector(self, self.value(every), dtype)

    def store_number(self, vector: Vector, pointer: str) -> None:
        """Put the number in the first lane there."""
        number = self.value(f"extractelement {vector.type} {vector.name}, i64 0")
        self.do(f"store {ELEMENTS[vector.dtype]} {number}, ptr {pointer}, align {vector.dtype.itemsize}")

    def all_of(self, a: Vector, b: Vector) -> Vector:
        """Where both are true."""
        return Vector(self, self.value(f"and {a.type} {a.name}, {b.name}"), BOOL)

    def where(self, mask: str | None, vector: Vector, other: float) -> Vector:
        """The vector, and another number where the mask is false."""
        return vector if mask is None else Vector(self, mask, BOOL).choose(vector, vector.as_same(other))

    def shuffle(self, a: Vector, b: Vector, lanes: Sequence[int]) -> Vector:
        """A vector of these lanes of a, and from its number of lanes on of b."""
        shuffled = f"shufflevector {a.type} {a.name}, {b.type} {b.name}, {lane_numbers(lanes)}"
        return Vector(self, self.value(shuffled), a.dtype)

    def over_lanes(self, combine: Callable[[Vector, Vector], Vector], vector: Vector) -> Vector:
        """All lanes combined, by halves; the result in each lane."""
        distance = self.lanes // 2
        while distance:
            lanes = lane_numbers(lane ^ distance for lane in range(self.lanes))
            shuffle = f"shufflevector {vector.type} {vector.name}, {vector.type} poison, {lanes}"
            vector = combine(vector, Vector(self, self.value(shuffle), vector.dtype))
            distance //= 2
        return vector

    def changed_when(
        self, condition: str, values: Sequence[Vector], body: Callable[[Sequence[Vector]], Sequence[Vector]]
    ) -> list[Vector]:
        """What the body makes of the values if the condition is true, else the values."""
        before, inside, end = self.block, self.name(), self.name()
        self.do(f"br i1 {condition}, label %{inside}, label %{end}")
        self.begin(inside)
        changed = body(values)
        last = self.block
        self.do(f"br label %{end}")
        self.begin(end)
        return [
            Vector(self, self.value(f"phi {old.type} [ {old.name}, %{before} ], [ {new.name}, %{last} ]"), old.dtype)
            for old, new in zip(values, changed, strict=True)
        ]

    @contextmanager
    def loop(self, start: object, stop: object, step: object = 1, values: Sequence[Vector] = ()) -> Iterator[Round]:
        """The instructions written within are repeated while the index is below `stop`."""
        first = [(value.type, value.name) for value in values]
        with self.rounds(start, stop, step, first) as (index, names, following):
            carried = [Vector(self, name, value.dtype) for name, value in zip(names, values, strict=True)]
            round = Round(index, carried, ())
            yield round
            following += [value.name for value in round.following]

    def span(self, count: str) -> Span:
        """So many elements."""
        whole = self.value(f"and i64 {count}, {-self.lanes}")
        rest = self.subtract(count, whole)
        return Span(whole, self.value(f"icmp ne i64 {rest}, 0"), self.mask_of(rest))

    def each_vector(self, span: Span, values: Sequence[Vector], body: VectorBody) -> list[Vector]:
        """What the body makes of the values, vector after vector.

        Parameters
        ----------
        body : of the number of the first element, the mask (None where all lanes are in use) and the values
        """
        with self.loop(0, span.whole, self.lanes, values) as round:
            round.following = body(round.index, None, round.values)
        return self.changed_when(span.has_rest, round.values, lambda last: body(span.whole, span.mask, last))

    def fill(self, pointer: str, span: Span, value: Vector) -> None:
        """Put a number into so many elements."""

        def put(start: str, mask: str | None, _: Sequence[Vector]) -> Sequence[Vector]:
            self.store(value, self.element(pointer, start, value.dtype), mask)
            return ()

        self.each_vector(span, (), put)

    def module(self) -> str:
        """The module of the function of the instructions so far, `run`."""
        body = "\n".join([*self.text, "  ret void"])
        function = f"define void @run(ptr %table) nounwind {{\nstart:\n{body}\n}}\n"
        return "\n".join([*sorted(self.declared), function])


def maximum(a: Vector, b: Vector) -> Vector:
    """The greater of the two; nan if either is."""
    return a.compare("uno", a).choose(a, a.compare("ogt", b).choose(a, b))


def minimum(a: Vector, b: Vector) -> Vector:
    """The lesser of the two; nan if either is."""
    return a.compare("uno", a).choose(a, a.compare("olt", b).choose(a, b))


def plus(a: Vector, b: Vector) -> Vector:
    """a + b"""
    return a + b


def call(
    text: str, words: Sequence[Array | int], source: str, kept: object = None, *, is_brief: bool = False
) -> Kernel:
    """What calls the function of a module.

    Parameters
    ----------
    words : of the table; an array stands for its address
    source : what is computed, for readers of the code
    kept : what else must live as long as the kernel
    is_brief : see `native.library`
    """
    address = table_of(words, kept).ctypes.data_as(c_void_p)
    return partial(native.library(text, SIGNATURES, source, is_brief=is_brief).functions["run"], address)


SIGNATURES: native.Signatures = {"run": (c_void_p,)}


def are_floats(*arrays: Array) -> bool:
    """Whether all are of one dtype for which there is native code, and lie at multiples of their items."""
    dtype = arrays[0].dtype
    return dtype in ELEMENTS and all(array.dtype == dtype and array.flags.aligned for array in arrays)
