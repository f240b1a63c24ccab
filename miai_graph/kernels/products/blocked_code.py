"""Code for products of matrices of any size, and of stacks of them, for any width of vectors.

The sums of a tile, some rows by a panel of a few vectors, are held in registers while the code goes along the depth:
there each vector of a row of B is multiplied with each number of a column of A. Panels of B are laid out anew first,
one row of vectors behind the other, unless that does not pay. A is read where it lies, with any strides, or its
columns are cut into strips for the tiles, one piece of a column behind the other. (Goto and van de Geijn 2008, "Anatomy
of high-performance matrix multiplication"; Van Zee and van de Geijn 2015, "BLIS: a framework for rapidly instantiating
BLAS functionality".)

Where matrices are large, a tile fetches into a near cache what is needed soon: its part of C, and some of the next
panel of B. It does so little by little, for the processor can wait for few lines of a cache at a time.

A tile that overhangs the last row computes that one several times, or nonsense, and stores the right one last.

When the sums of a tile are complete, an epilogue is applied to them: they need not be read again for it.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from miai_graph.kernels.compiler.loops import Loops
from miai_graph.kernels.compiler.transposition import transposed
from miai_graph.kernels.compiler.vectors import Vector
from miai_graph.kernels.epilogue import Ending, Kind

LINE_BYTES = 64
"""Of a cache; what is fetched at a time."""


@dataclass(frozen=True)
class Tile:
    """What is computed at a time: so many rows of so many vectors."""

    rows: int
    vectors: int


@dataclass(frozen=True)
class Variant:
    """What the code is made for.

    Attributes
    ----------
    lanes : how many numbers a vector holds
    tile : of all panels, or all but the last one
    last : of the last panel, if it has fewer vectors, or a last vector that is not full; `strips` need as many rows
    has_rest : whether it has such a vector
    packs : whether B is laid out anew
    turns : whether B's columns lie contiguous, rather than its rows; needs `packs`
    is_shallow : whether the depth is less than a vector; matters if B `turns`
    strips : whether A, whose columns lie contiguous, is cut into strips
    fetches : whether what is needed soon is fetched; needs `packs`
    ending : what is done with complete sums
    """

    dtype: np.dtype[Any]
    lanes: int
    tile: Tile
    last: Tile | None
    has_rest: bool
    packs: bool
    turns: bool
    is_shallow: bool
    strips: bool
    fetches: bool
    ending: Ending | None = None

    @property
    def strip_vectors(self) -> int:
        """How many vectors a row of a strip takes, the last one in part."""
        return -(-self.tile.rows // self.lanes)

    def lines_ahead(self, depth: int) -> int:
        """In how many steps the next panel of B is fetched: for each a row of it, or one line of a column."""
        columns = self.tile.vectors * self.lanes
        return columns * -(-depth * self.dtype.itemsize // LINE_BYTES) if self.turns else depth


@functools.cache
def module_text(variant: Variant) -> str:
    """The module with the function `run`. In the table:

    - the addresses of A, B and C, and of memory for a panel of B: as much of the depth as is in use at a time, but not
      less than a vector; and of memory for the strips of the rows in use at a time
    - two lengths of the stack; for A, B and C each the bytes from a matrix to the next one, along both
    - the bytes from a row to the next one, and from a column to the next one, of A and of B; from row to row of C
    - rows, depth, panels of the first kind, columns in the last vector
    - how many rows, and how much of the depth, are in use at a time
    - the bytes from a strip to the next one: some more than it has, for a vector that is used in part
    - how many steps of fetching the next panel a row of a tile takes
    - the addresses of the ending's operands
    """
    return _Writer(variant).module()


@dataclass(frozen=True)
class _Matrix:
    """Where a matrix lies, and the bytes from a row to the next one, and from a column to the next one."""

    start: str
    row: object
    column: object


AddUp = Callable[[object, object, Sequence[Vector]], list[Vector]]
"""Adds the products of some of the depth, from a start up to a stop, to sums."""


class _Writer:
    def __init__(self, variant: Variant) -> None:
        self._variant, self._dtype, self._lanes = variant, variant.dtype, variant.lanes
        self._item = variant.dtype.itemsize
        self._vector_bytes = variant.lanes * self._item
        self._code = Loops(variant.lanes)

    def module(self) -> str:
        """All of it."""
        code = self._code
        *starts, self._packed, self._strips = code.pointers(5)
        far_count, near_count = code.words(2)
        advances = [code.words(2) for _ in starts]
        a_row, a_column, b_row, b_column, c_row = code.words(5)
        self._rows, self._depth, self._panels, self._rest = code.words(4)
        self._rows_at_once, self._depth_at_once, self._strip_bytes, self._fetched_at_once = code.words(4)
        ending = self._variant.ending
        self._operands = code.pointers(0 if ending is None else len(ending.kinds))
        self._mask = code.mask_of(self._rest) if self._variant.has_rest else None
        with code.loop(0, far_count) as far, code.loop(0, near_count) as near:
            a, b, c = (
                code.stepped(code.stepped(start, far.index, far_bytes), near.index, near_bytes)
                for start, (far_bytes, near_bytes) in zip(starts, advances, strict=True)
            )
            self._product(_Matrix(a, a_row, a_column), _Matrix(b, b_row, b_column), _Matrix(c, c_row, self._item))
        return code.module()

    def _product(self, a: _Matrix, b: _Matrix, c: _Matrix) -> None:
        """Block by block."""
        code = self._code
        with code.loop(0, self._rows, self._rows_at_once) as down:
            self._rows_here = code.least(self._rows_at_once, code.subtract(self._rows, down.index))
            a_start, c_start = code.stepped(a.start, down.index, a.row), code.stepped(c.start, down.index, c.row)
            c_here = _Matrix(c_start, c.row, c.column)
            with code.loop(0, self._depth, self._depth_at_once) as along:
                self._is_later = code.value(f"icmp ne i64 {along.index}, 0")
                self._depth_here = code.least(self._depth_at_once, code.subtract(self._depth, along.index))
                self._is_last = code.value(f"icmp eq i64 {code.add(along.index, self._depth_here)}, {self._depth}")
                a_here = _Matrix(code.stepped(a_start, along.index, a.column), a.row, a.column)
                b_here = _Matrix(code.stepped(b.start, along.index, b.row), b.row, b.column)
                if self._variant.strips:
                    self._cut_into_strips(a_here)
                self._all_panels(a_here, b_here, c_here)

    def _all_panels(self, a: _Matrix, b: _Matrix, c: _Matrix) -> None:
        code, variant = self._code, self._variant
        columns = variant.tile.vectors * self._lanes

        def at_panel(number: str) -> tuple[_Matrix, _Matrix, str]:
            first = code.times(number, columns)
            own_b, own_c = code.stepped(b.start, first, b.column), code.stepped(c.start, first, c.column)
            return _Matrix(own_b, b.row, b.column), _Matrix(own_c, c.row, c.column), first

        with code.loop(0, self._panels) as panel:
            self._panel(a, *at_panel(panel.index), variant.tile, None)
        if variant.last is not None:
            self._panel(a, *at_panel(self._panels), variant.last, self._mask)

    def _panel(self, a: _Matrix, b: _Matrix, c: _Matrix, first: str, tile: Tile, mask: str | None) -> None:
        code, variant = self._code, self._variant
        read = self._pack(b, tile, mask) if variant.packs else b
        mask_of_b = None if variant.packs else mask
        with code.loop(0, self._rows_here, tile.rows) as row:
            last = code.subtract(self._rows_here, 1)
            numbers = [code.least(code.add(row.index, place), last) for place in range(tile.rows)]
            targets = [code.stepped(c.start, number, c.row) for number in numbers]
            places = [place for target in targets for place in self._vectors(target, tile, mask)]
            sources, step = self._rows_of_a(a, row.index, numbers)

            def add_up(start: object, stop: object, sums: Sequence[Vector]) -> list[Vector]:
                with code.loop(start, stop, values=sums) as k:
                    own_b, offset = code.stepped(read.start, k.index, read.row), code.times(k.index, step)
                    vectors = self._load(self._vectors(own_b, tile, mask_of_b))
                    k.following = self._add_products([code.at(source, offset) for source in sources], vectors, k.values)
                return k.values

            zeros = [code.constant(0.0, self._dtype)] * len(places)
            if variant.fetches:
                sums = self._add_up_and_fetch(add_up, zeros, b, c, tile, row.index)
            else:
                sums = add_up(0, self._depth_here, zeros)
            sums = code.changed_when(self._is_later, sums, lambda new: list(map(operator.add, new, self._load(places))))
            if variant.ending is not None:
                finish = partial(self._finish, variant.ending, first, tile, mask)
                sums = code.changed_when(self._is_last, sums, finish)
            for total, (place, mask_there) in reversed([*zip(sums, places, strict=True)]):
                code.store(total, place, mask_there)

    def _finish(self, ending: Ending, first: str, tile: Tile, mask: str | None, sums: Sequence[Vector]) -> list[Vector]:
        """What the ending makes of a tile from this column on."""
        code = self._code
        columns = [
            [code.load_number(operand, self._dtype)] * tile.vectors
            if kind is Kind.NUMBER
            else self._load(self._vectors(code.element(operand, first, self._dtype), tile, mask))
            for operand, kind in zip(self._operands, ending.kinds, strict=True)
        ]
        return [
            ending.applied(total, [vectors[place % tile.vectors] for vectors in columns])
            for place, total in enumerate(sums)
        ]

    def _add_up_and_fetch(
        self, add_up: AddUp, zeros: Sequence[Vector], b: _Matrix, c: _Matrix, tile: Tile, first: str
    ) -> list[Vector]:
        """The sums of a tile: a portion of the depth for each row of C that is fetched."""
        code = self._code
        last = code.subtract(self._rows_here, 1)
        portion = code.value(f"udiv i64 {code.add(self._depth_here, tile.rows - 1)}, {tile.rows}")
        with code.loop(0, tile.rows, values=zeros) as part:
            number = code.add(first, part.index)
            if tile is not self._variant.last:
                self._fetch_ahead(b, tile, number)
            self._fetch_row(code.stepped(c.start, code.least(number, last), c.row), tile)
            start = code.times(part.index, portion)
            part.following = add_up(start, code.least(code.add(start, portion), self._depth_here), part.values)
        return part.values

    def _rows_of_a(self, a: _Matrix, first: str, numbers: Sequence[str]) -> tuple[list[str], object]:
        """Where the rows of a tile begin, and the bytes from a number to the next one."""
        code, rows = self._code, self._variant.tile.rows
        if not self._variant.strips:
            return [code.stepped(a.start, number, a.row) for number in numbers], a.column
        strip = code.stepped(self._strips, code.value(f"udiv i64 {first}, {rows}"), self._strip_bytes)
        return [code.at(strip, place * self._item) for place in range(rows)], rows * self._item

    def _cut_into_strips(self, a: _Matrix) -> None:
        """All of A that is in use. Vectors may reach into what comes behind their piece, which is written later; those
        of the last strips must not read beyond the last row."""
        code, rows, vectors = self._code, self._variant.tile.rows, self._variant.strip_vectors
        beyond = code.add(self._rows_here, rows - vectors * self._lanes)
        whole = code.greatest(code.value(f"sdiv i64 {beyond}, {rows}"), 0)
        strips = code.value(f"udiv i64 {code.add(self._rows_here, rows - 1)}, {rows}")

        def copy(k: str, strip: str, masks: Sequence[str | None]) -> None:
            source = code.at(code.stepped(a.start, k, a.column), code.times(strip, rows * self._item))
            target = code.at(code.stepped(self._strips, strip, self._strip_bytes), code.times(k, rows * self._item))
            for place, mask in enumerate(masks):
                offset = place * self._vector_bytes
                code.store(code.load(code.at(source, offset), self._dtype, mask), code.at(target, offset))

        with code.loop(0, self._depth_here) as k, code.loop(0, whole) as strip:
            copy(k.index, strip.index, [None] * vectors)
        with code.loop(whole, strips) as strip:
            left = code.subtract(self._rows_here, code.times(strip.index, rows))
            counts = (code.greatest(code.subtract(left, place * self._lanes), 0) for place in range(vectors))
            masks = [code.mask_of(count) for count in counts]
            with code.loop(0, self._depth_here) as k:
                copy(k.index, strip.index, masks)

    def _fetch_ahead(self, b: _Matrix, tile: Tile, number: str) -> None:
        """The part of the next panel of B that goes with a row of C."""
        code = self._code
        columns = tile.vectors * self._lanes
        following = code.stepped(b.start, columns, b.column)
        first = code.times(number, self._fetched_at_once)
        with code.loop(first, code.add(first, self._fetched_at_once)) as step:
            if self._variant.turns:
                column = code.value(f"urem i64 {step.index}, {columns}")
                line = code.value(f"udiv i64 {step.index}, {columns}")
                self._fetch(code.at(code.stepped(following, column, b.column), code.times(line, LINE_BYTES)))
            else:
                row = code.least(step.index, code.subtract(self._depth_here, 1))
                self._fetch_row(code.stepped(following, row, b.row), tile)

    def _fetch_row(self, start: str, tile: Tile) -> None:
        """A row of a panel, wherever lines of the cache begin."""
        length = tile.vectors * self._vector_bytes
        for offset in [*range(0, length, LINE_BYTES), length - 1]:
            self._fetch(self._code.at(start, offset))

    def _fetch(self, pointer: str) -> None:
        """Not into the nearest cache: that one is in use. Does nothing where there is no memory."""
        self._code.declared.add("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")
        self._code.do(f"call void @llvm.prefetch.p0(ptr {pointer}, i32 0, i32 2, i32 1)")

    def _add_products(self, numbers: Sequence[str], vectors: Sequence[Vector], sums: Sequence[Vector]) -> list[Vector]:
        result = []
        for place, pointer in enumerate(numbers):
            number = self._code.load_number(pointer, self._dtype)
            own = sums[place * len(vectors) : (place + 1) * len(vectors)]
            result += [number.multiply_add(vector, total) for vector, total in zip(vectors, own, strict=True)]
        return result

    def _pack(self, b: _Matrix, tile: Tile, mask: str | None) -> _Matrix:
        """A panel of B, laid out anew."""
        code = self._code
        packed = _Matrix(self._packed, tile.vectors * self._vector_bytes, self._item)
        if self._variant.turns:
            self._turn(b, packed, tile, is_whole=mask is None)
            return packed
        with code.loop(0, self._depth_here) as k:
            vectors = self._load(self._vectors(code.stepped(b.start, k.index, b.row), tile, mask))
            target = code.stepped(packed.start, k.index, packed.row)
            for vector, (place, _) in zip(vectors, self._vectors(target, tile, None), strict=True):
                code.store(vector, place)
        return packed

    def _turn(self, b: _Matrix, packed: _Matrix, tile: Tile, *, is_whole: bool) -> None:
        """Squares of as many columns and rows as a vector has numbers. Columns beyond the last one are that one; the
        last square along the depth is moved back to end there."""
        code, lanes = self._code, self._lanes
        mask = code.mask_of(self._depth_here) if self._variant.is_shallow else None
        last_square = code.greatest(code.subtract(self._depth_here, lanes), 0)
        with code.loop(0, self._depth_here, lanes) as along, code.loop(0, tile.vectors * lanes, lanes) as across:
            k = code.least(along.index, last_square)
            columns = [code.add(across.index, place) for place in range(lanes)]
            if not is_whole:
                last = code.add(self._rest, (tile.vectors - 1) * lanes - 1)
                columns = [code.least(column, last) for column in columns]
            starts = [code.stepped(b.start, column, b.column) for column in columns]
            rows = transposed(
                [code.load(code.element(start, k, self._dtype), self._dtype, mask) for start in starts], code.shuffle
            )
            target = code.at(code.stepped(packed.start, k, packed.row), code.times(across.index, self._item))
            for place, row in enumerate(rows):
                code.store(row, code.stepped(target, place, packed.row))

    def _vectors(self, start: str, tile: Tile, mask: str | None) -> list[tuple[str, str | None]]:
        """Where the vectors of a row of a panel lie; the mask is the last one's."""
        masks = [None] * (tile.vectors - 1) + [mask]
        return [(self._code.at(start, place * self._vector_bytes), own) for place, own in enumerate(masks)]

    def _load(self, places: Sequence[tuple[str, str | None]]) -> list[Vector]:
        return [self._code.load(place, self._dtype, mask) for place, mask in places]
