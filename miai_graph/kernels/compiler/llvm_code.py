"""Writes LLVM's language: functions of loops over vectors of floats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from miai_graph.kernels.compiler.instructions import Instructions, lane_numbers

FLOAT_BYTES = 4

NUMBER_BYTES = {"float": FLOAT_BYTES, "double": 8}
"""The types of numbers that vectors are made of, by LLVM's names."""


class Code(Instructions):
    """The instructions of a function, with vectors of one width and type.

    Parameters
    ----------
    width : how many numbers a vector holds
    number : the type of these numbers: "float" or "double"

    Attributes
    ----------
    vector : the type of a vector
    number_bytes : the size of a number in it
    """

    def __init__(self, width: int, number: str = "float") -> None:
        super().__init__()
        self.width = width
        self.number, self.number_bytes = number, NUMBER_BYTES[number]
        self.vector = f"<{width} x {number}>"
        self._pointers: set[str] = set()

    def least(self, a: object, b: object) -> str:
        """The lesser of the two."""
        return self.value(f"call i64 @llvm.smin.i64(i64 {a}, i64 {b})")

    def divided_up(self, a: object, b: object) -> str:
        """The least whole number that is not below a / b."""
        return self.value(f"udiv i64 {self.add(a, self.subtract(b, 1))}, {b}")

    def floats(self, count: object) -> str:
        """The bytes of so many floats."""
        return self.times(count, FLOAT_BYTES)

    def at(self, pointer: str, offset_bytes: object) -> str:
        """The pointer so many bytes further."""
        result = super().at(pointer, offset_bytes)
        self._pointers.add(result)
        return result

    def vectors_at(self, pointer: str, count: int) -> list[str]:
        """Pointers to vectors one after another."""
        return [self.at(pointer, place * self.width * self.number_bytes) for place in range(count)]

    def load(self, pointer: str, lanes: int = 0) -> str:
        """The vector that lies there. Only so many numbers of it are read, unless that is 0; the others are any."""
        if lanes == 0:
            return self.value(f"load {self.vector}, ptr {pointer}, align {self.number_bytes}")
        part = f"<{lanes} x {self.number}>"
        found = self.value(f"load {part}, ptr {pointer}, align {self.number_bytes}")
        return self._resized(part, found, lanes, self.width)

    def store(self, vector: str, pointer: str, lanes: int = 0) -> None:
        """Put a vector there, or only so many numbers of it.

        Not by a masked store, which takes dozens of cycles where there are no registers for masks.
        """
        type = self.vector
        if lanes:
            type, vector = f"<{lanes} x {self.number}>", self._resized(self.vector, vector, self.width, lanes)
        self.do(f"store {type} {vector}, ptr {pointer}, align {self.number_bytes}")

    def _resized(self, type: str, vector: str, length: int, result_length: int) -> str:
        """The first numbers of a vector, or all of them and others that may be anything."""
        lanes = (lane if lane < length else None for lane in range(result_length))
        return self.value(f"shufflevector {type} {vector}, {type} poison, {lane_numbers(lanes)}")

    def broadcast(self, pointer: str) -> str:
        """A vector of one number."""
        number = self.value(f"load {self.number}, ptr {pointer}, align {self.number_bytes}")
        first = self.value(f"insertelement {self.vector} poison, {self.number} {number}, i64 0")
        return self.shuffle(first, "poison", [0] * self.width)

    def shuffle(self, a: str, b: str, lanes: Sequence[int]) -> str:
        """A vector of these lanes of a, and from `width` on of b."""
        return self.value(f"shufflevector {self.vector} {a}, {self.vector} {b}, {lane_numbers(lanes)}")

    def multiply_add(self, a: str, b: str, c: str) -> str:
        """a · b + c in one instruction, where the processor has it."""
        product = self.value(f"fmul contract {self.vector} {a}, {b}")
        return self.value(f"fadd contract {self.vector} {product}, {c}")

    def prefetch(self, pointer: str) -> None:
        """Fetch for reading, not to the nearest cache: that one is in use."""
        self.do(f"call void @llvm.prefetch.p0(ptr {pointer}, i32 0, i32 2, i32 1)")

    def call(self, function: str, *arguments: str) -> None:
        """Call a function that gives nothing, of pointers and numbers."""
        self.do(f"call void @{function}({', '.join(map(self._typed, arguments))})")

    def _typed(self, value: str) -> str:
        is_pointer = value in self._pointers or value.removeprefix("%").isupper()
        return f"{'ptr' if is_pointer else 'i64'} {value}"

    @contextmanager
    def loop(self, start: object, stop: object, step: object) -> Iterator[str]:
        """The instructions written within are repeated while the index, which this gives, is below `stop`."""
        with self.rounds(start, stop, step, ()) as (index, _, _):
            yield index

    @contextmanager
    def carrying_loop(
        self, start: object, stop: object, step: object, first: Sequence[str]
    ) -> Iterator[tuple[str, list[str], list[str]]]:
        """A loop that carries vectors from one round to the next.

        Gives the index, the vectors, and a list to which to add the next ones. After the loop the vectors are those
        that the last round gave.
        """
        with self.rounds(start, stop, step, [(self.vector, vector) for vector in first]) as round:
            yield round

    def function(self, name: str, parameters: str, linkage: str = "internal") -> str:
        """The function of the instructions so far. Of the parameters, those in capitals are pointers."""
        declared = ", ".join(self._typed(f"%{parameter}") for parameter in parameters.split())
        body = "\n".join([*self.text, "  ret void"])
        return f"define {linkage} void @{name}({declared}) nounwind {{\nstart:\n{body}\n}}\n"
