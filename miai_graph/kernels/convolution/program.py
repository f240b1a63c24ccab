"""Programs of copies and products for native code, in the making: tables of where all lies, and blocks of images."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from ctypes import c_int64, c_void_p
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np

from miai_graph.kernels.compiler import native
from miai_graph.kernels.convolution.code import COPY_FIELDS, PRODUCT_FIELDS, module_text
from miai_graph.kernels.convolution.tiles import TILE_PARAMETERS, Target, TileWriter
from miai_graph.kernels.elementwise.kernels import copying, filling
from miai_graph.kernels.kernel import Kernel, Several
from miai_graph.kernels.numpy_kernels import Request
from miai_graph.op import Array

NUMBERS = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}

MOST_BYTES = 1 << 30
"""Offsets in tables have 32 bits."""

BLOCK_BYTES = 1 << 17
"""A block has images of so many bytes, or of as many as the kernel."""


class AnyTile(Protocol):
    """What is added up in registers at a time; hashable."""

    @property
    def lines(self) -> int:
        """How many rows it has in the tables of a product."""

    def __hash__(self) -> int: ...

    def writer(self, target: Target) -> TileWriter:
        """What writes its code."""


class Panel(NamedTuple):
    """Some of the lanes of B.

    Attributes
    ----------
    first : the first lane
    vectors : how many each step reads
    used : how many lanes of the last vector belong to C
    """

    first: int
    vectors: int
    used: int


class Block(NamedTuple):
    """Images that are done at a time, and how many times there are as many.

    Attributes
    ----------
    first : the first image
    images : in each of the blocks
    repeats : how many blocks
    """

    first: int
    images: int
    repeats: int


@functools.cache
def compile_for(target: Target) -> native.Library:
    """The native code for vectors of any width."""
    signatures = {
        "multiply": (c_void_p, c_int64, c_void_p, c_int64, c_int64),
        "gather": (c_void_p, c_void_p, c_void_p, c_int64),
        "move": (c_void_p, c_void_p, c_void_p, c_int64),
        "turn": (c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int64),
    }
    return native.library(module_text(target), signatures, f"Convolutions for {target}.")


@functools.cache
def tile_address(target: Target, tile: AnyTile) -> int:
    """Where the native code of a tile lies."""
    signatures = {"tile": [c_void_p if name.isupper() else c_int64 for name in TILE_PARAMETERS]}
    library = native.library(tile.writer(target).text(), signatures, f"{tile} for {target}.")
    address = native.address_of(library.functions["tile"])
    assert address is not None
    return address


def target_for(request: Request, processor: native.Processor | None) -> Target | None:
    """What native code for a request is made for; None where the definition has to serve."""
    arrays, dtype = (*request.inputs, request.output), request.output.dtype
    suits = all(
        array.dtype == dtype and array.flags.aligned and array.size and _reach(array) < MOST_BYTES for array in arrays
    )
    if processor is None or dtype not in NUMBERS or not suits or not request.output.flags.c_contiguous:
        return None
    return Target(processor.width(dtype.itemsize), processor.registers, NUMBERS[dtype])


def _reach(array: Array) -> int:
    """From the first to the last element, in bytes."""
    return sum(abs(stride) * (length - 1) for stride, length in zip(array.strides, array.shape, strict=True))


def shared_evenly(count: int, most: int) -> int:
    """How many each of as few shares as possible has, of which none has more than `most`."""
    return -(-count // -(-count // most))


def panels(lanes: int, width: int, most: int) -> Iterator[Panel]:
    """All lanes, in panels of at most so many vectors."""
    at_once = shared_evenly(-(-lanes // width), most) * width
    for start in range(0, lanes, at_once):
        vectors = -(-min(lanes - start, at_once) // width)
        yield Panel(start, vectors, min(lanes - start - (vectors - 1) * width, width))


def blocks(batch: int, most: int) -> list[Block]:
    """All images, in blocks of at most so many, and what remains."""
    count = min(batch, max(most, 1))
    whole, rest = divmod(batch, count)
    return [Block(0, count, whole), *([Block(whole * count, rest, 1)] if rest else [])]


class Program:
    """What a kernel does, entered step by step.

    Attributes
    ----------
    request : what the kernel is prepared for
    target : what the native code is made for
    width, item : how many numbers a vector holds, and the bytes of one
    """

    def __init__(self, target: Target, request: Request) -> None:
        self.target, self.width, self.item = target, target.width, target.number_bytes
        self._functions = compile_for(target).functions
        self.request = request
        self._actions: list[Callable[[], Any]] = []
        self._products: list[list[int]] = []
        self._copies: list[list[int]] = []
        self._kept: list[Array] = [*request.inputs, request.output]

    def vectors(self, lanes: int) -> int:
        """How many vectors hold so many numbers."""
        return -(-lanes // self.width)

    def scratch(self, *shape: int) -> Array:
        """Memory for numbers, while the kernel runs."""
        return self.request.scratch(shape, self.request.output.dtype)

    def table(self, offsets: Array) -> Table:
        """A table of offsets, of steps or rows."""
        return Table(self, offsets)

    def keep(self, array: Array) -> int:
        """The address of an array that lives as long as the kernel."""
        self._kept.append(array)
        return int(array.ctypes.data)

    def copy(self, **fields: int) -> None:
        """Enter a copy."""
        self._copies.append([fields[name] for name in COPY_FIELDS])

    def multiply(self, tile: AnyTile, rows: Table, places: Table, a_runs: Table, b_runs: Table, **fields: int) -> None:
        """Enter a product; all that is not named is 0."""
        fields |= {
            "tile": tile_address(self.target, tile),
            "rows": rows.address(tile.lines),
            "places": places.address(tile.lines),
            "row_count": -(-len(rows) // tile.lines) * tile.lines,
            "a_runs": a_runs.address(),
            "b_runs": b_runs.address(),
            "run_count": len(a_runs),
        }
        self._products.append([fields.get(name, 0) for name in PRODUCT_FIELDS])

    def repeat(self, count: int) -> None:
        """What was entered since the last time is done for so many blocks."""
        products, copies = (np.array(records, np.int64) for records in (self._products, self._copies))
        pointers = [c_void_p(self.keep(records)) for records in (products, copies)]
        sizes = [c_int64(len(records)) for records in (products, copies)]
        multiply = self._functions["multiply"]
        self.do(partial(multiply, pointers[0], sizes[0], pointers[1], sizes[1], c_int64(count)))
        self._products, self._copies = [], []

    def do(self, action: Callable[[], Any]) -> None:
        """Enter anything else."""
        self._actions.append(action)

    def gather(self, source: Array, index: Array) -> int:
        """The address of the source's elements of these indices, or 0 where negative; source must be contiguous.

        Parameters
        ----------
        index : (steps, lanes), where the lanes fill vectors
        """
        packed = self.scratch(index.size)
        vectors = index.reshape(len(index), -1, self.width)
        squares = vectors[: len(index) // self.width * self.width].reshape(-1, self.width, *vectors.shape[1:])
        column = _column_of(squares) if index.size == squares.size else 0
        function, first, sizes = "gather", index, [index.size // self.width]
        if _are_whole(vectors):
            function, first = "move", vectors[..., 0]
        elif column:
            function, first = "turn", squares[:, 0, :, 0]
            sizes = [len(squares), vectors.shape[1], column * self.item]
        pointers = [c_void_p(self.keep(array)) for array in (source, np.ascontiguousarray(first, np.int32), packed)]
        self.do(partial(self._functions[function], *pointers, *map(c_int64, sizes)))
        return int(packed.ctypes.data)

    def contiguous(self, array: Array) -> Array:
        """The array, or a copy of it that is made whenever the kernel runs."""
        if array.flags.c_contiguous:
            return array
        copy = self.scratch(*array.shape)
        self.do(copying(copy, array))
        return copy

    def kernel(self) -> Kernel:
        """All of it."""
        return Several(tuple(self._actions), self._kept)


def _are_whole(vectors: Array) -> bool:
    """Are the numbers of each vector side by side?"""
    return bool((vectors >= 0).all() and (np.diff(vectors) == 1).all())


def _column_of(squares: Array) -> int:
    """How far the columns lie from each other, if steps follow each other in each; else 0.

    Parameters
    ----------
    squares : (squares, steps, vectors, lanes)
    """
    steps, lanes = np.diff(squares, axis=1), np.diff(squares)
    is_regular = squares.size and (squares >= 0).all() and (steps == 1).all() and (lanes == lanes.flat[0]).all()
    return int(lanes.flat[0]) if is_regular else 0


class Table:
    """Offsets in bytes, kept by a program in the lengths in which they are asked for."""

    def __init__(self, program: Program, offsets: Array) -> None:
        self._program, self._offsets = program, offsets
        self._addresses: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._offsets)

    def address(self, multiple: int = 1) -> int:
        """Where it lies, with the last offset repeated up to a multiple."""
        if multiple not in self._addresses:
            missing = -len(self) % multiple
            entries = np.concatenate([self._offsets, np.repeat(self._offsets[-1:], missing)]).astype(np.int32)
            self._addresses[multiple] = self._program.keep(entries)
        return self._addresses[multiple]


class Factors(NamedTuple):
    """A panel of B in memory.

    Attributes
    ----------
    panel : which lanes
    address : where its first vector lies
    step : bytes from a step's vectors to those of the next one
    """

    panel: Panel
    address: int
    step: int


def factors(program: Program, kernel: Array, index: Array, most: int) -> list[Factors]:
    """The panels of B, whose elements are those of a kernel: read in place if they lie as they must, else gathered.

    Parameters
    ----------
    kernel : contiguous
    index : where in it the elements are, or -1 for 0: (..., taps, lanes), where each step has so many taps
    most : how many vectors a panel has at most
    """
    width, item, (taps, lanes) = program.width, program.item, index.shape[-2:]
    found, steps = list(panels(lanes, width, most)), index.reshape(-1, taps, lanes)
    if taps == 1 and _are_in_place(program, kernel, steps[:, 0]):
        step = int(steps[-1, 0, 0] - steps[0, 0, 0]) // max(len(steps) - 1, 1) * item
        start = kernel.ctypes.data + int(steps[0, 0, 0]) * item
        return [Factors(panel, start + panel.first * item, step) for panel in found]
    padded = np.full((len(steps), taps, -(-lanes // width) * width), -1, np.int32)
    padded[:, :, :lanes] = steps
    result = []
    for vectors, alike in itertools.groupby(found, lambda panel: panel.vectors):
        those = list(alike)
        parts = [padded[:, :, panel.first : panel.first + vectors * width] for panel in those]
        start = program.gather(kernel, np.concatenate(parts).reshape(len(steps) * len(those), -1))
        step = taps * vectors * width * item
        result += [Factors(panel, start + place * len(steps) * step, step) for place, panel in enumerate(those)]
    return result


def numbered(factors_of_groups: Sequence[Sequence[Factors]]) -> Iterator[tuple[int, Factors]]:
    """Each group's number with each of its panels."""
    for group, those in enumerate(factors_of_groups):
        for each in those:
            yield group, each


def _are_in_place(program: Program, kernel: Array, index: Array) -> bool:
    """Are the steps equally far from each other in the kernel, and each made of whole vectors?"""
    steps, lanes = index.shape
    if not steps or lanes % program.width or kernel.ctypes.data % (program.width * program.item):
        return False
    distances = np.diff(index[:, 0])
    return bool((np.diff(index) == 1).all() and (distances == distances[:1]).all())


class Images(NamedTuple):
    """The images of a block as products read them.

    Attributes
    ----------
    address : of the first one
    advance : bytes to the next block
    strides : bytes, as of an array
    """

    address: int
    advance: int
    strides: tuple[int, ...]


class Source:
    """Images that are read in place, or copied block by block where they need zeros around them or room behind.

    Parameters
    ----------
    rows, columns : from where to where they are read
    most : how many images a block has
    needs_room : whether vectors may overhang the end
    """

    def __init__(
        self,
        program: Program,
        images: Array,
        most: int,
        rows: tuple[int, int] | None = None,
        columns: tuple[int, int] | None = None,
        *,
        needs_room: bool = False,
    ) -> None:
        whole = (0, images.shape[1]), (0, images.shape[2])
        self._program, self._images = program, images
        self._origin = rows, columns = rows or whole[0], columns or whole[1]
        self._padded: Array | None = None
        if needs_room or self._origin != whole:
            self._images = program.contiguous(images)
            shape = (most, rows[1] - rows[0], columns[1] - columns[0], images.shape[3])
            memory = program.scratch(math.prod(shape) + program.width)
            program.do(filling(memory, 0))
            self._padded = memory[: math.prod(shape)].reshape(shape)

    def block(self, block: Block) -> Images:
        """Some of the images; enters the copy of them."""
        source = self._images[block.first :]
        advance = block.images * source.strides[0]
        if self._padded is None:
            return Images(source.ctypes.data, advance, source.strides)
        rows, columns = self._origin
        self._program.copy(
            source=source.ctypes.data,
            source_advance=advance,
            target=self._padded[:, -rows[0] :, -columns[0] :].ctypes.data,
            images=block.images,
            source_image=source.strides[0],
            target_image=self._padded.strides[0],
            rows=source.shape[1],
            source_row=source.strides[1],
            target_row=self._padded.strides[1],
            row_bytes=source.shape[2] * source.strides[2],
        )
        return Images(self._padded.ctypes.data, 0, self._padded.strides)
