"""LLVM code for tiles of convolutions: sums that are held in registers while their products are added up.

A tile is so many pixels of so many lines, by so many vectors of channels. Its pixels lie equally far from each other,
and so do their sources; those that a pixel of the source has in common with others, by other taps of the kernel, are
multiplied with it while it is at hand. That makes up for the loads, of which there are no more than can be done beside
the multiplications even if there is only one vector of channels.

Taps that lie beyond the image are left out, so that nothing needs to be padded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from miai_graph.kernels.compiler.llvm_code import NUMBER_BYTES, Code
from miai_graph.kernels.compiler.vectors import FLOAT32, FLOAT64, Lines, Vector
from miai_graph.kernels.epilogue import Ending, Kind

TILE_PARAMETERS = (
    *("A", "B", "C", "ROWS", "A_RUNS", "B_RUNS", "PLACES", "OPERANDS", "row_count", "run_count", "run_steps"),
    *("a_step", "b_step", "c_step", "adds"),
)
"""What the function `tile` of a tile's module is given.

A, B, C : addresses
ROWS, PLACES : tables of 32 bits: offsets in A and in C of lines
A_RUNS, B_RUNS : tables of 32 bits: offsets in A and in B of runs of steps
OPERANDS : the addresses of the ending's operands, for the first of C's numbers
row_count : how many lines, a multiple of a tile's
run_count, run_steps : how many runs there are, and how many steps each has
a_step, b_step : bytes from a step to the next one of its run
c_step : bytes in C from a pixel to the next one of its line
adds : whether C is added to
"""


DTYPES: Mapping[str, np.dtype[Any]] = {"float": FLOAT32, "double": FLOAT64}

MOST_LINES = {1: 8, 2: 8, 3: 8, 4: 6}, {1: 8, 2: 6}
"""How many rows that lie anywhere a tile has at most, by its vectors; with many registers, and with fewer."""

MOST_ROWS = {1: 30, 2: 12, 3: 8, 4: 6}, {1: 12, 2: 6}
"""The same of rows that lie side by side, all found from the place of the first one."""


@dataclass(frozen=True)
class Target:
    """What the code is made for.

    Attributes
    ----------
    width : how many numbers a vector holds, a power of two
    registers : how many vectors the processor holds, at least 16
    number : "float" or "double"
    """

    width: int
    registers: int
    number: str

    @property
    def number_bytes(self) -> int:
        """The size of a number."""
        return NUMBER_BYTES[self.number]

    @property
    def has_many_registers(self) -> bool:
        """Are there as many as AVX-512 and NEON have?"""
        return self.registers >= 32

    @property
    def most_lines(self) -> dict[int, int]:
        """How many rows that lie anywhere a tile has, by its vectors."""
        return MOST_LINES[not self.has_many_registers]

    @property
    def most_rows(self) -> dict[int, int]:
        """How many rows that lie side by side a tile has at most, by its vectors."""
        return MOST_ROWS[not self.has_many_registers]


@dataclass(frozen=True)
class Tile:
    """A part of C that is added up in registers.

    Attributes
    ----------
    lines : how many there are, which lie anywhere
    pixels : in each of them
    vectors : of each pixel
    lanes : how many numbers of a pixel's last vector belong to C; 0 for all
    pixel_bytes : from a pixel's source to the next one's
    taps : the bytes from a pixel's source to what each tap multiplies; for each of them B has vectors
    first, end : sources from here to there, as such bytes, exist; others are left out
    is_depthwise : whether A is read in vectors, one number for each lane, instead of one number for all of them
    has_single_steps : whether a run has one step
    ending : what is done with complete sums
    """

    lines: int
    pixels: int = 1
    vectors: int = 1
    lanes: int = 0
    pixel_bytes: int = 0
    taps: tuple[int, ...] = (0,)
    first: int = 0
    end: int = 1
    is_depthwise: bool = False
    has_single_steps: bool = False
    ending: Ending | None = None

    def sources(self) -> dict[int, list[tuple[int, int]]]:
        """The (pixel, tap) pairs of each source that exists, in the order of the sources."""
        found: dict[int, list[tuple[int, int]]] = {}
        for pixel in range(self.pixels):
            for number, tap in enumerate(self.taps):
                found.setdefault(pixel * self.pixel_bytes + tap, []).append((pixel, number))
        return {source: pairs for source, pairs in sorted(found.items()) if self.first <= source < self.end}

    def writer(self, target: Target) -> TileWriter:
        """What writes its code."""
        return _PixelWriter(target, self)


class TileWriter:
    """Writes the function of a tile: its sums, and what is done for each run of steps.

    Parameters
    ----------
    lines, vectors : how many lines of C a tile has, and how many vectors lie side by side in C
    lanes : how many numbers of the last one of these belong to C; 0 for all

    Attributes
    ----------
    declared : what the code uses of LLVM's functions
    """

    def __init__(self, target: Target, lines: int, vectors: int, lanes: int = 0) -> None:
        self.code = Code(target.width, target.number)
        self._lines, self._vectors = lines, vectors
        self._lanes = lanes % target.width
        self.declared: set[str] = set()

    def text(self) -> str:
        """The module with the function `tile`."""
        code = self.code
        with code.loop(0, "%row_count", self._lines) as start:
            lines = [code.at("%A", self._entry("%ROWS", code.add(start, line))) for line in range(self._lines)]
            starts = [code.at("%C", self._entry("%PLACES", code.add(start, line))) for line in range(self._lines)]
            places = [place for line in starts for place in self.places(line)]
            sums = self._sums_so_far(places)
            with code.carrying_loop(0, "%run_count", 1, sums) as (run, carried, following):
                offset = self._entry("%A_RUNS", run)
                vectors = code.at("%B", self._entry("%B_RUNS", run))
                following += self.add_run([code.at(line, offset) for line in lines], vectors, carried)
            for number, (value, place) in enumerate(zip(self.finish(carried), places, strict=True)):
                code.store(value, place, self._lanes_of(number))
        function = code.function("tile", " ".join(TILE_PARAMETERS), linkage="dso_local")
        return "\n".join([*sorted(self.declared), function])

    def finish(self, sums: Sequence[str]) -> Sequence[str]:
        """What is stored of the sums."""
        return sums

    def places(self, line: str) -> list[str]:
        """Where the vectors of a line of C lie."""
        raise NotImplementedError

    def add_run(self, lines: Sequence[str], vectors: str, sums: Sequence[str]) -> list[str]:
        """The sums and the products of a run, where it begins in each line of A, and in B."""
        raise NotImplementedError

    def _entry(self, table: str, index: str) -> str:
        """A table's offset."""
        code = self.code
        entry = code.value(f"load i32, ptr {code.at(table, code.times(index, 4))}, align 4")
        return code.value(f"sext i32 {entry} to i64")

    def _lanes_of(self, number: int) -> int:
        """How many numbers of this vector belong to C; 0 for all."""
        return self._lanes if number % self._vectors == self._vectors - 1 else 0

    def _sums_so_far(self, places: Sequence[str]) -> list[str]:
        """What lies in a tile of C, or 0 if nothing is added to that."""
        code = self.code
        start, later, ready = code.block, code.name(), code.name()
        is_first = code.value("icmp eq i64 %adds, 0")
        code.do(f"br i1 {is_first}, label %{ready}, label %{later}")
        code.begin(later)
        found = [code.load(place, self._lanes_of(number)) for number, place in enumerate(places)]
        code.do(f"br label %{ready}")
        code.begin(ready)
        return [code.value(f"phi {code.vector} [ zeroinitializer, %{start} ], [ {old}, %{later} ]") for old in found]


class _Arithmetic(Lines):
    """Arithmetic on vectors that is written into code."""

    def __init__(self, code: Code) -> None:
        super().__init__(code.width)
        self._code = code

    def value(self, instruction: str) -> str:
        return self._code.value(instruction)


class _PixelWriter(TileWriter):
    def __init__(self, target: Target, tile: Tile) -> None:
        super().__init__(target, tile.lines, tile.vectors, tile.lanes)
        self._tile = tile

    def places(self, line: str) -> list[str]:
        code, tile = self.code, self._tile
        pixels = [code.at(line, code.times("%c_step", pixel)) for pixel in range(tile.pixels)]
        return [place for pixel in pixels for place in code.vectors_at(pixel, tile.vectors)]

    def add_run(self, lines: Sequence[str], vectors: str, sums: Sequence[str]) -> list[str]:
        code = self.code
        if self._tile.has_single_steps:
            return self._add_products(lines, vectors, sums)
        with code.carrying_loop(0, "%run_steps", 1, sums) as (step, carried, following):
            along = code.times(step, "%a_step")
            sources = [code.at(line, along) for line in lines]
            following += self._add_products(sources, code.at(vectors, code.times(step, "%b_step")), carried)
        return carried

    def finish(self, sums: Sequence[str]) -> Sequence[str]:
        ending, tile = self._tile.ending, self._tile
        if ending is None:
            return sums
        arithmetic, dtype = _Arithmetic(self.code), DTYPES[self.code.number]
        columns = [self._operand(place, kind) for place, kind in enumerate(ending.kinds)]
        finished = [
            ending.applied(
                Vector(arithmetic, total, dtype),
                [Vector(arithmetic, vectors[place % tile.vectors], dtype) for vectors in columns],
            )
            for place, total in enumerate(sums)
        ]
        self.declared |= arithmetic.declared
        return [vector.name for vector in finished]

    def _operand(self, place: int, kind: Kind) -> list[str]:
        """What each vector of a pixel takes of an operand."""
        code, count = self.code, self._tile.vectors
        start = code.at(code.value(f"load ptr, ptr {code.at('%OPERANDS', 8 * place)}, align 8"), 0)
        if kind is Kind.NUMBER:
            return [code.broadcast(start)] * count
        return [code.load(each, self._lanes_of(number)) for number, each in enumerate(code.vectors_at(start, count))]

    def _add_products(self, lines: Sequence[str], vectors: str, sums: Sequence[str]) -> list[str]:
        code, tile, result = self.code, self._tile, list(sums)
        held = [code.load(place) for place in code.vectors_at(vectors, len(tile.taps) * tile.vectors)]
        for number, line in enumerate(lines):
            for source, pairs in tile.sources().items():
                place = code.at(line, source) if source else line
                factor = code.load(place) if tile.is_depthwise else code.broadcast(place)
                for pixel, tap in pairs:
                    for vector in range(tile.vectors):
                        goal = (number * tile.pixels + pixel) * tile.vectors + vector
                        result[goal] = code.multiply_add(factor, held[tap * tile.vectors + vector], result[goal])
        return result
