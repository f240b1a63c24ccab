"""Code for products of matrices of any size, and of stacks of them, for any width of vectors.

The sums of a tile, some rows by a panel of a few vectors, are held in registers while the code goes along the depth:
there each vector of a row of B is multiplied with each number of a column of A. A is read where it lies, with any
strides. Panels of B are laid out anew first, one row of vectors behind the other, unless that does not pay. (Goto and
van de Geijn 2008, "Anatomy of high-performance matrix multiplication".)

A tile that overhangs the last row computes and stores that one several times, the same.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from miai_graph.kernels.loops import Loops
from miai_graph.kernels.transposition import transposed
from miai_graph.kernels.vectors import Vector


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
    last : of the last panel, if it has fewer vectors, or a last vector that is not full
    has_rest : whether it has such a vector
    packs : whether B is laid out anew
    turns : whether B's columns lie contiguous, rather than its rows; needs `packs`
    is_shallow : whether the depth is less than a vector; matters if B `turns`
    """

    dtype: np.dtype[Any]
    lanes: int
    tile: Tile
    last: Tile | None
    has_rest: bool
    packs: bool
    turns: bool
    is_shallow: bool


@functools.cache
def module_text(variant: Variant) -> str:
    """The module with the function `run`. In the table:

    - the addresses of A, B and C, and of memory for a panel of B: as much of the depth as is in use at a time, but not
      less than a vector
    - two lengths of the stack; for A, B and C each the bytes from a matrix to the next one, along both
    - the bytes from a row to the next one, and from a column to the next one, of A and of B; from row to row of C
    - rows, depth, panels of the first kind, columns in the last vector
    - how many rows, and how much of the depth, are in use at a time
    """
    return _Writer(variant).module()


@dataclass(frozen=True)
class _Matrix:
    """Where a matrix lies, and the bytes from a row to the next one, and from a column to the next one."""

    start: str
    row: object
    column: object


class _Writer:
    def __init__(self, variant: Variant) -> None:
        self._variant, self._dtype, self._lanes = variant, variant.dtype, variant.lanes
        self._item = variant.dtype.itemsize
        self._vector_bytes = variant.lanes * self._item
        self._code = Loops(variant.lanes)

    def module(self) -> str:
        """All of it."""
        code = self._code
        *starts, self._packed = code.pointers(4)
        far_count, near_count = code.words(2)
        advances = [code.words(2) for _ in starts]
        a_row, a_column, b_row, b_column, c_row = code.words(5)
        self._rows, self._depth, self._panels, self._rest = code.words(4)
        self._rows_at_once, self._depth_at_once = code.words(2)
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
                a_here = _Matrix(code.stepped(a_start, along.index, a.column), a.row, a.column)
                b_here = _Matrix(code.stepped(b.start, along.index, b.row), b.row, b.column)
                self._all_panels(a_here, b_here, c_here)

    def _all_panels(self, a: _Matrix, b: _Matrix, c: _Matrix) -> None:
        code, variant = self._code, self._variant
        columns = variant.tile.vectors * self._lanes

        def at_panel(number: str) -> tuple[_Matrix, _Matrix]:
            first = code.times(number, columns)
            own_b, own_c = code.stepped(b.start, first, b.column), code.stepped(c.start, first, c.column)
            return _Matrix(own_b, b.row, b.column), _Matrix(own_c, c.row, c.column)

        with code.loop(0, self._panels) as panel:
            self._panel(a, *at_panel(panel.index), variant.tile, None)
        if variant.last is not None:
            self._panel(a, *at_panel(self._panels), variant.last, self._mask)

    def _panel(self, a: _Matrix, b: _Matrix, c: _Matrix, tile: Tile, mask: str | None) -> None:
        code = self._code
        is_packed = self._variant.packs
        if is_packed:
            b = self._pack(b, tile, mask)
        with code.loop(0, self._rows_here, tile.rows) as row:
            last = code.subtract(self._rows_here, 1)
            numbers = [code.least(code.add(row.index, place), last) for place in range(tile.rows)]
            targets = [code.stepped(c.start, number, c.row) for number in numbers]
            places = [place for target in targets for place in self._vectors(target, tile, mask)]
            zeros = [code.constant(0.0, self._dtype)] * len(places)
            sums = code.changed_when(self._is_later, zeros, lambda _: self._load(places))
            sources = [code.stepped(a.start, number, a.row) for number in numbers]
            with code.loop(0, self._depth_here, values=sums) as k:
                own_b, offset = code.stepped(b.start, k.index, b.row), code.times(k.index, a.column)
                vectors = self._load(self._vectors(own_b, tile, None if is_packed else mask))
                k.following = self._add_products([code.at(source, offset) for source in sources], vectors, k.values)
            for total, (place, mask_there) in zip(k.values, places, strict=True):
                code.store(total, place, mask_there)

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
