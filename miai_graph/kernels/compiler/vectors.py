"""Arithmetic on vectors, written down as LLVM's instructions: ``a * b + c`` adds two lines to a function's text.

Each operation rounds as NumPy's does, so fused arithmetic gives what single steps give, to the last bit; only the
functions of `curves` use fused multiply-add.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from miai_graph.kernels.compiler.instructions import Instructions, lane_numbers

FLOAT32, FLOAT64, BOOL = np.dtype(np.float32), np.dtype(np.float64), np.dtype(bool)

_TYPES = {FLOAT32: "float", FLOAT64: "double", BOOL: "i1"}
_STORED = {FLOAT32: "float", FLOAT64: "double", BOOL: "i8"}
_INTEGERS = {FLOAT32: "i32", FLOAT64: "i64"}

MASKED_BYTES = 64
"""Of vectors as long as this a part is stored as fast as all of one. With shorter ones a masked store may take dozens
of cycles, for there are no registers for masks."""


class Lines(Instructions):
    """The instructions of a function on vectors, and what has to be declared for them.

    Parameters
    ----------
    lanes : how many numbers a vector holds
    """

    def __init__(self, lanes: int) -> None:
        super().__init__()
        self.lanes = lanes
        self.declared: set[str] = set()
        self._counts: dict[str, str] = {}

    def type(self, element: str) -> str:
        """Of a vector."""
        return f"<{self.lanes} x {element}>"

    def constant(self, number: float, dtype: np.dtype[Any]) -> Vector:
        """A vector of one number."""
        literal = literal_of(number, dtype)
        lanes = ", ".join([f"{_TYPES[dtype]} {literal}"] * self.lanes)
        return Vector(self, f"<{lanes}>", dtype)

    def integers(self, number: int, dtype: np.dtype[Any]) -> str:
        """A vector of one integer, as wide as the numbers of a dtype."""
        return f"<{', '.join([f'{_INTEGERS[dtype]} {number}'] * self.lanes)}>"

    def load(self, pointer: str, dtype: np.dtype[Any], mask: str | None = None) -> Vector:
        """The vector that lies there; where a mask is false 0, and nothing is read."""
        element = _STORED[dtype]
        type = self.type(element)
        if mask is None:
            name = self.value(f"load {type}, ptr {pointer}, align {_align(dtype)}")
        else:
            short = f"{self.lanes}{_short(element)}"
            self.declared.add(f"declare {type} @llvm.masked.load.v{short}.p0(ptr, i32, {self.type('i1')}, {type})")
            name = self.value(
                f"call {type} @llvm.masked.load.v{short}.p0(ptr {pointer}, i32 {_align(dtype)}, "
                f"{self.type('i1')} {mask}, {type} zeroinitializer)"
            )
        return self._loaded(name, dtype)

    def load_number(self, pointer: str, dtype: np.dtype[Any]) -> Vector:
        """A vector of the one number that lies there."""
        element = _STORED[dtype]
        number = self.value(f"load {element}, ptr {pointer}, align {_align(dtype)}")
        type = self.type(element)
        first = self.value(f"insertelement {type} poison, {element} {number}, i64 0")
        return self._loaded(
            self.value(f"shufflevector {type} {first}, {type} poison, <{self.lanes} x i32> zeroinitializer"), dtype
        )

    def _loaded(self, name: str, dtype: np.dtype[Any]) -> Vector:
        if dtype == BOOL:
            name = self.value(f"trunc {self.type('i8')} {name} to {self.type('i1')}")
        return Vector(self, name, dtype)

    def store(self, vector: Vector, pointer: str, mask: str | None = None, *, streams: bool = False) -> None:
        """Put a vector there; where a mask is false nothing is written."""
        element, name = _STORED[vector.dtype], vector.name
        type = self.type(element)
        if vector.dtype == BOOL:
            name = self.value(f"zext {vector.type} {name} to {type}")
        size = _align(vector.dtype)
        if mask is None and streams:
            self.do(f"store {type} {name}, ptr {pointer}, align {self.lanes * size}, !nontemporal !0")
        elif mask is None:
            self.do(f"store {type} {name}, ptr {pointer}, align {size}")
        elif self.lanes * size < MASKED_BYTES:
            self._store_first(self._counts[mask], name, element, pointer, size)
        else:
            short = f"{self.lanes}{_short(element)}"
            self.declared.add(f"declare void @llvm.masked.store.v{short}.p0({type}, ptr, i32, {self.type('i1')})")
            self.do(
                f"call void @llvm.masked.store.v{short}.p0({type} {name}, ptr {pointer}, i32 {size}, "
                f"{self.type('i1')} {mask})"
            )

    def _store_first(self, count: str, name: str, element: str, pointer: str, size: int) -> None:
        """Put the first so many numbers of a vector there: pieces by the binary digits of their count."""
        type, length = self.type(element), self.lanes
        while length:
            digit = self.value(f"and i64 {count}, {length}")
            is_set = self.value(f"icmp ne i64 {digit}, 0")
            with self.when(is_set):
                piece = self.value(f"shufflevector {type} {name}, {type} poison, {lane_numbers(range(length))}")
                self.do(f"store <{length} x {element}> {piece}, ptr {pointer}, align {size}")
            following = [*range(length, self.lanes), *[self.lanes] * length]
            moved = self.value(f"shufflevector {type} {name}, {type} poison, {lane_numbers(following)}")
            name = self.value(f"select i1 {is_set}, {type} {moved}, {type} {name}")
            pointer, length = self.at(pointer, self.times(digit, size)), length // 2

    def mask_of(self, count: str) -> str:
        """True in the first so many lanes."""
        type = self.type("i64")
        first = self.value(f"insertelement {type} poison, i64 {count}, i64 0")
        every = self.value(f"shufflevector {type} {first}, {type} poison, <{self.lanes} x i32> zeroinitializer")
        places = ", ".join(f"i64 {lane}" for lane in range(self.lanes))
        mask = self.value(f"icmp ult {type} <{places}>, {every}")
        self.declared.add("declare i64 @llvm.umin.i64(i64, i64)")
        self._counts[mask] = self.value(f"call i64 @llvm.umin.i64(i64 {count}, i64 {self.lanes})")
        return mask


@dataclass(frozen=True, eq=False)
class Vector:
    """A vector of numbers in a function that is being written. Operators write an instruction.

    Attributes
    ----------
    lines : of the function
    name : by which instructions know it
    """

    lines: Lines
    name: str
    dtype: np.dtype[Any]

    @property
    def type(self) -> str:
        return self.lines.type(_TYPES[self.dtype])

    def _binary(self, instruction: str, other: Vector | float) -> Vector:
        name = self.as_same(other).name
        return Vector(self.lines, self.lines.value(f"{instruction} {self.type} {self.name}, {name}"), self.dtype)

    def as_same(self, other: Vector | float) -> Vector:
        """A number as a vector of the same dtype; a vector as it is."""
        return other if isinstance(other, Vector) else self.lines.constant(other, self.dtype)

    def __add__(self, other: Vector | float) -> Vector:
        return self._binary("fadd", other)

    def __sub__(self, other: Vector | float) -> Vector:
        return self._binary("fsub", other)

    def __rsub__(self, other: float) -> Vector:
        return self.as_same(other) - self

    def __mul__(self, other: Vector | float) -> Vector:
        return self._binary("fmul", other)

    def __truediv__(self, other: Vector | float) -> Vector:
        return self._binary("fdiv", other)

    def __rtruediv__(self, other: float) -> Vector:
        return self.as_same(other) / self

    def __neg__(self) -> Vector:
        return Vector(self.lines, self.lines.value(f"fneg {self.type} {self.name}"), self.dtype)

    def compare(self, relation: str, other: Vector | float) -> Vector:
        """By LLVM's names: ``o…`` is false where either is nan, ``u…`` true."""
        name = self.as_same(other).name
        return Vector(self.lines, self.lines.value(f"fcmp {relation} {self.type} {self.name}, {name}"), BOOL)

    def choose(self, a: Vector, b: Vector) -> Vector:
        """a where this is true, else b."""
        instruction = f"select {self.type} {self.name}, {a.type} {a.name}, {b.type} {b.name}"
        return Vector(self.lines, self.lines.value(instruction), a.dtype)

    def multiply_add(self, factor: Vector | float, term: Vector | float) -> Vector:
        """self · factor + term, rounded once."""
        return self.call("fma", self.as_same(factor), self.as_same(term))

    def call(self, function: str, *others: Vector) -> Vector:
        """One of LLVM's own functions of vectors of one type."""
        name = f"@llvm.{function}.v{self.lines.lanes}{_short(_TYPES[self.dtype])}"
        types = ", ".join([self.type] * (len(others) + 1))
        self.lines.declared.add(f"declare {self.type} {name}({types})")
        arguments = ", ".join(f"{self.type} {vector.name}" for vector in (self, *others))
        return Vector(self.lines, self.lines.value(f"call {self.type} {name}({arguments})"), self.dtype)

    def to(self, dtype: np.dtype[Any]) -> Vector:
        """The same numbers in another dtype."""
        if dtype == self.dtype:
            return self
        target = self.lines.type(_TYPES[dtype])
        if dtype == BOOL:
            return self.compare("une", 0.0)
        widens = "fpext" if dtype == FLOAT64 else "fptrunc"
        instruction = "uitofp" if self.dtype == BOOL else widens
        return Vector(self.lines, self.lines.value(f"{instruction} {self.type} {self.name} to {target}"), dtype)

    def bits(self) -> str:
        """The name of the same bits as integers."""
        return self.lines.value(f"bitcast {self.type} {self.name} to {self.lines.type(_INTEGERS[self.dtype])}")

    def from_bits(self, integers: str) -> Vector:
        """The vector of this type with these bits."""
        source = self.lines.type(_INTEGERS[self.dtype])
        return Vector(self.lines, self.lines.value(f"bitcast {source} {integers} to {self.type}"), self.dtype)

    def integer(self, instruction: str, a: str, b: str | int) -> str:
        """What an instruction gives of two vectors of integers as wide as these numbers."""
        other = self.lines.integers(b, self.dtype) if isinstance(b, int) else b
        return self.lines.value(f"{instruction} {self.lines.type(_INTEGERS[self.dtype])} {a}, {other}")


def literal_of(number: float, dtype: np.dtype[Any]) -> str:
    """A number as LLVM writes it: the bits of a float64, whatever the dtype."""
    if dtype == BOOL:
        return "true" if number else "false"
    rounded = float(np.asarray(number, dtype))
    return f"0x{struct.pack('>d', rounded).hex().upper()}"


def polynomial(x: Vector, coefficients: Sequence[float]) -> Vector:
    """The sum of coefficients times powers of x, by Horner's rule; the coefficient of the highest power first."""
    result = x.as_same(coefficients[0])
    for coefficient in coefficients[1:]:
        result = result.multiply_add(x, coefficient)
    return result


def _align(dtype: np.dtype[Any]) -> int:
    return dtype.itemsize


def _short(element: str) -> str:
    return {"float": "f32", "double": "f64"}.get(element, element)
