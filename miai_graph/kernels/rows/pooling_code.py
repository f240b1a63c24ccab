"""Code that pools images, and that hands gradients back to the elements of windows: vectors lie along the channels.

It goes over windows. Three arrays take part: the pooled one, the image that is read, and the one that is written to.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from miai_graph.kernels.compiler.loops import Loops, Span, maximum
from miai_graph.kernels.compiler.native import Processor
from miai_graph.kernels.compiler.vectors import Vector


@dataclass(frozen=True)
class Variant:
    """What the code is made for.

    Attributes
    ----------
    operation : the name of an op
    pool_size : of windows whose elements are written out one by one; None for loops, which leave out padding
    adds : whether shares are added to what there is, instead of put there
    copies : whether what a row of windows reads is copied first. Where it is written to the same place, few channels at
        a time, processors wait for what they have just written beside what they read
    spills : whether pixels have less than a vector of channels, and some windows write whole vectors all the same: what
        reaches into the next pixels is written over with those
    """

    operation: str
    dtype: np.dtype[Any]
    pool_size: tuple[int, int] | None
    adds: bool = False
    copies: bool = False
    spills: bool = False


@dataclass(frozen=True)
class _Window:
    """Rows and columns, counted from the window's corner, that are not padding; where that corner lies."""

    rows: tuple[str, str]
    columns: tuple[str, str]
    source: str
    target: str


@dataclass(frozen=True)
class _Place:
    """An element of a window: where it is read and written, and its number, row by row."""

    source: str
    target: str
    number: Vector


_Body = Callable[[_Place, Sequence[Vector]], Sequence[Vector]]


@functools.cache
def module_text(variant: Variant, processor: Processor) -> str:
    """The module with the function `run`. In the table:

    - the addresses of the pooled array, of the image to read and of that to write
    - images, rows and columns of windows, channels
    - how many elements of each image to write are set to zero first
    - the strides of the three arrays: from image to image, down and across
    - height and width of the image, rows above it and columns before it that are padding
    - the strides of windows, and their size: down, across
    - where copies are put, and how many elements a row of windows reads
    - how many windows of a row, from the first one on, write whole vectors
    """
    return _Writer(variant, processor).module()


class _Writer:
    def __init__(self, variant: Variant, processor: Processor) -> None:
        self._variant = variant
        self._code = Loops(processor.width(variant.dtype.itemsize))

    def module(self) -> str:
        """Loops over all windows."""
        code = self._code
        pooled, source, target = code.pointers(3)
        images, rows, columns, channels, filled = code.words(5)
        strides = [code.words(3) for _ in range(3)]
        self._image, self._padding, self._steps, self._size = (code.words(2) for _ in range(4))
        self._source_strides, self._target_strides = strides[1][1:], strides[2][1:]
        span, filled_span = code.span(channels), code.span(filled)
        (copy,), (copied,) = code.pointers(1), code.words(1)
        copied_span = code.span(copied)
        (spilling,) = code.words(1)
        with code.loop(0, images) as image:
            starts = zip((pooled, source, target), strides, strict=True)
            own = [code.stepped(array, image.index, steps[0]) for array, steps in starts]
            code.fill(own[2], filled_span, code.constant(0.0, self._variant.dtype))
            with code.loop(0, rows) as row:
                source = self._copied(own[1], row.index, copy, copied_span) if self._variant.copies else own[1]
                results = code.stepped(own[0], row.index, strides[0][1])
                if self._variant.spills:
                    with code.loop(0, spilling) as column:
                        window = self._window(row.index, column.index, source, own[2])
                        self._pool(window, code.stepped(results, column.index, strides[0][2]), "0", None, ())
                with code.loop(spilling, columns) as column:
                    window = self._window(row.index, column.index, source, own[2])
                    place = code.stepped(results, column.index, strides[0][2])
                    code.each_vector(span, (), functools.partial(self._pool, window, place))
        return code.module()

    def _copied(self, image: str, row: str, copy: str, span: Span) -> str:
        """Where the image would begin, if the rows that a row of windows reads lay where they are copied to."""
        code, dtype = self._code, self._variant.dtype
        first = code.times(code.times(row, self._steps[0]), self._source_strides[0])
        rows = code.at(image, first)

        def put(start: str, mask: str | None, _: Sequence[Vector]) -> Sequence[Vector]:
            code.store(code.load(code.element(rows, start, dtype), dtype, mask), code.element(copy, start, dtype), mask)
            return ()

        code.each_vector(span, (), put)
        return code.at(copy, code.subtract(0, first))

    def _window(self, row: str, column: str, source: str, target: str) -> _Window:
        code = self._code
        down, across = (
            code.subtract(code.times(index, step), before)
            for index, step, before in zip((row, column), self._steps, self._padding, strict=True)
        )
        rows, columns = (
            (code.greatest(0, code.subtract(0, first)), code.least(size, code.subtract(length, first)))
            for first, size, length in zip((down, across), self._size, self._image, strict=True)
        )
        source = self._moved(source, down, across, self._source_strides)
        return _Window(rows, columns, source, self._moved(target, down, across, self._target_strides))

    def _moved(self, pointer: str, down: object, across: object, strides: Sequence[str]) -> str:
        return self._code.stepped(self._code.stepped(pointer, down, strides[0]), across, strides[1])

    def _pool(
        self, window: _Window, pooled: str, start: str, mask: str | None, _: Sequence[Vector]
    ) -> Sequence[Vector]:
        """One vector of channels of a window."""
        code, dtype = self._code, self._variant.dtype
        place = code.element(pooled, start, dtype)
        own = _Window(
            window.rows,
            window.columns,
            code.element(window.source, start, dtype),
            code.element(window.target, start, dtype),
        )
        write = {
            "max_pool2d": self._maximum,
            "max_pool2d_gradient": self._maximum_gradient,
            "average_pool2d": self._average,
            "average_pool2d_gradient": self._average_gradient,
        }[self._variant.operation]
        write(own, place, mask)
        return ()

    def _maximum(self, window: _Window, pooled: str, mask: str | None) -> None:
        code, dtype = self._code, self._variant.dtype

        def greater(place: _Place, best: Sequence[Vector]) -> Sequence[Vector]:
            return [maximum(code.load(place.source, dtype, mask), best[0])]

        (best,) = self._over_places(window, [code.constant(-math.inf, dtype)], greater)
        code.store(best, pooled, mask)

    def _maximum_gradient(self, window: _Window, pooled: str, mask: str | None) -> None:
        code, dtype = self._code, self._variant.dtype

        def first_of_greatest(place: _Place, values: Sequence[Vector]) -> Sequence[Vector]:
            best, winner = values
            candidate = code.load(place.source, dtype, mask)
            # A nan wins over all else, and stays.
            wins = code.all_of(candidate.compare("ugt", best), best.compare("ord", best))
            return [wins.choose(candidate, best), wins.choose(place.number, winner)]

        def share(place: _Place, _: Sequence[Vector]) -> Sequence[Vector]:
            self._give(place.number.compare("oeq", winner).choose(g, code.constant(0.0, dtype)), place, mask)
            return ()

        first = self._number(window.rows[0], window.columns[0])
        _, winner = self._over_places(window, [code.constant(-math.inf, dtype), first], first_of_greatest)
        g = code.load(pooled, dtype, mask)
        self._over_places(window, [], share)

    def _average(self, window: _Window, pooled: str, mask: str | None) -> None:
        code, dtype = self._code, self._variant.dtype

        def added(place: _Place, total: Sequence[Vector]) -> Sequence[Vector]:
            return [total[0] + code.load(place.source, dtype, mask)]

        (total,) = self._over_places(window, [code.constant(0.0, dtype)], added)
        code.store(total / self._count(window), pooled, mask)

    def _average_gradient(self, window: _Window, pooled: str, mask: str | None) -> None:
        part = self._code.load(pooled, self._variant.dtype, mask) / self._count(window)

        def share(place: _Place, _: Sequence[Vector]) -> Sequence[Vector]:
            self._give(part, place, mask)
            return ()

        self._over_places(window, [], share)

    def _give(self, share: Vector, place: _Place, mask: str | None) -> None:
        if self._variant.adds:
            share = self._code.load(place.target, share.dtype, mask) + share
        self._code.store(share, place.target, mask)

    def _number(self, row: object, column: object) -> Vector:
        """Of an element in the window."""
        code = self._code
        return code.number(code.add(code.times(row, self._size[1]), column), self._variant.dtype)

    def _count(self, window: _Window) -> Vector:
        """How many elements are not padding."""
        code = self._code
        rows, columns = (code.subtract(stop, start) for start, stop in (window.rows, window.columns))
        return code.number(code.times(rows, columns), self._variant.dtype)

    def _over_places(self, window: _Window, values: Sequence[Vector], body: _Body) -> Sequence[Vector]:
        """What the body makes of the values, element after element of the window."""
        if self._variant.pool_size is None:
            return self._loop_over_places(window, values, body)
        width = self._variant.pool_size[1]
        for row, column in itertools.product(*map(range, self._variant.pool_size)):
            number = self._code.constant(row * width + column, self._variant.dtype)
            values = body(self._place(window, row, column, number), values)
        return values

    def _loop_over_places(self, window: _Window, values: Sequence[Vector], body: _Body) -> Sequence[Vector]:
        code = self._code
        with code.loop(*window.rows, 1, values) as down:
            with code.loop(*window.columns, 1, down.values) as across:
                number = self._number(down.index, across.index)
                place = self._place(window, down.index, across.index, number)
                across.following = body(place, across.values)
            down.following = across.values
        return down.values

    def _place(self, window: _Window, row: object, column: object, number: Vector) -> _Place:
        source = self._moved(window.source, row, column, self._source_strides)
        return _Place(source, self._moved(window.target, row, column, self._target_strides), number)
