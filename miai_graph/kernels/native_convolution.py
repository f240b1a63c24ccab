"""Kernels for convolutions and their gradients, in native code of one thread.

Their definitions serve where there is no native code, and for arrays that it is not made for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from ctypes import c_int64, c_void_p
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from miai_graph.kernels import native
from miai_graph.kernels.convolution_code import COPY_FIELDS, DEPTHWISE, PRODUCT_FIELDS, Target, module_text
from miai_graph.kernels.convolution_lines import Correlation, Line, convolution_line, extent, gradient_lines, together
from miai_graph.kernels.numpy_kernels import Kernel, Request, by_definition, kernel_for
from miai_graph.op import Array

NUMBERS = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}

SOURCE_BYTES, MOST_PIXELS = 1 << 17, 1 << 11
"""A block has images of so many bytes, and so many groups of pixels, unless one image alone has more."""

NEAR_BYTES, LEAST_STEPS = 24 << 10, 96
"""What a gradient in the kernel reads again and again is to fit into the nearest cache, unless sums are too short."""

MOST_VECTORS, MOST_VECTORS_OF_KERNEL_GRADIENT = 2, 4
"""How many vectors of B products read at a step."""

Blocks = Sequence[tuple[int, int, int]]
"""(first image, images in each block, blocks)"""


@dataclass(frozen=True, eq=False)
class Convolutions:
    """The native code for numbers of one type.

    Attributes
    ----------
    target : what it is made for
    library : the functions
    """

    target: Target
    library: native.Library


@functools.cache
def compile_for(target: Target) -> Convolutions:
    """The native code for vectors of any width."""
    signatures = {
        "multiply": (c_void_p, c_int64, c_void_p, c_int64, c_int64),
        "gather": (c_void_p, c_void_p, c_void_p, c_int64),
    }
    return Convolutions(target, native.library(module_text(target), signatures, f"convolutions for {target}"))


def convolutions(request: Request) -> Convolutions | None:
    """The native code for a request; None where the definition has to serve."""
    processor, arrays = native.processor(), (*request.inputs, request.output)
    number = NUMBERS.get(request.output.dtype)
    suits = all(array.dtype == request.output.dtype and array.flags.aligned and array.size for array in arrays)
    if processor is None or number is None or not suits or not request.output.flags.c_contiguous:
        return None
    if max(array.nbytes for array in arrays) >= 1 << 30:
        return None
    return compile_for(Target(processor.width(request.output.itemsize), processor.registers, number))


class _Program:
    """Copies and products in the making, and what they need: each call of `finish` gives a function for them."""

    def __init__(self, code: Convolutions, request: Request) -> None:
        self.code, self.target, self._request = code, code.target, request
        self.actions: list[Callable[[], Any]] = []
        self._products: list[list[int]] = []
        self._copies: list[list[int]] = []
        self._kept: list[Array] = []

    def scratch(self, *shape: int) -> Array:
        """Memory for numbers, while the kernel runs."""
        return self._request.scratch(shape, self._request.output.dtype)

    def table(self, offsets: Array, multiple: int = 1) -> int:
        """The address of a table; the last offset is repeated up to a multiple of a tile."""
        missing = -len(offsets) % multiple
        kept = np.concatenate([offsets, np.repeat(offsets[-1:], missing)]).astype(np.int32)
        self._kept.append(kept)
        return int(kept.ctypes.data)

    def tile(self, kind: int) -> int:
        """How many rows a product of a kind has at a time."""
        return self.target.tiles[kind]

    def multiply(self, **fields: int) -> None:
        """Enter a product."""
        self._products.append([fields[name] for name in PRODUCT_FIELDS])

    def copy(self, **fields: int) -> None:
        """Enter a copy."""
        self._copies.append([fields[name] for name in COPY_FIELDS])

    def finish(self, blocks: int) -> None:
        """What was entered is done for each of the blocks."""
        products, copies = (np.array(records, np.int64) for records in (self._products, self._copies))
        self._kept += [products, copies]
        self.actions.append(
            partial(
                self.code.library.functions["multiply"],
                products.ctypes.data_as(c_void_p),
                c_int64(len(products)),
                copies.ctypes.data_as(c_void_p),
                c_int64(len(copies)),
                c_int64(blocks),
            )
        )
        self._products, self._copies = [], []

    def gather(self, source: Array, index: Array) -> Array:
        """Memory that holds the source's elements of these indices, or 0 where negative, whenever the kernel runs."""
        packed = self.scratch(index.size)
        kept = np.ascontiguousarray(index, np.int32)
        self.actions.append(
            partial(
                self.code.library.functions["gather"],
                source.ctypes.data_as(c_void_p),
                kept.ctypes.data_as(c_void_p),
                packed.ctypes.data_as(c_void_p),
                c_int64(index.size // self.target.width),
            )
        )
        return packed

    def contiguous(self, array: Array) -> Array:
        """The array, or a copy of it that is made whenever the kernel runs."""
        if array.flags.c_contiguous:
            return array
        copy = self.scratch(*array.shape)
        self.actions.append(partial(np.copyto, copy, array))
        return copy

    def kernel(self) -> Kernel:
        """All of it."""
        actions, kept = tuple(self.actions), self._kept

        def run(_: Any = kept) -> None:
            for action in actions:
                action()

        return run


@dataclass(frozen=True)
class _Images:
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


def _padded_images(
    program: _Program, x: Array, first: int, count: int, rows: tuple[int, int], columns: tuple[int, int], memory: Array
) -> _Images:
    """Blocks of `count` images from `first` on, each copied to memory that is zero around them."""
    channels = x.shape[3]
    shape = (count, rows[1] - rows[0], columns[1] - columns[0], channels)
    padded = memory[: np.prod(shape)].reshape(shape)
    inner = padded[:, -rows[0] :, -columns[0] :]
    program.copy(
        source=x[first:].ctypes.data,
        source_advance=count * x.strides[0],
        target=inner.ctypes.data,
        images=count,
        source_image=x.strides[0],
        target_image=padded.strides[0],
        rows=x.shape[1],
        source_row=x.strides[1],
        target_row=padded.strides[1],
        row_bytes=x.shape[2] * x.strides[2],
    )
    return _Images(padded.ctypes.data, 0, padded.strides)


class _Source:
    """Images that are read in place, or copied block by block where they need zeros around them or room behind them."""

    def __init__(
        self, program: _Program, x: Array, rows: tuple[int, int], columns: tuple[int, int], most: int, *, spare: bool
    ) -> None:
        is_padded = rows != (0, x.shape[1]) or columns != (0, x.shape[2])
        self._program, self._rows, self._columns = program, rows, columns
        self._memory: Array | None = None
        if is_padded or spare:
            x = program.contiguous(x)
            size = most * (rows[1] - rows[0]) * (columns[1] - columns[0]) * x.shape[3]
            self._memory = program.scratch(size + program.target.width * MOST_VECTORS_OF_KERNEL_GRADIENT)
            program.actions.append(partial(self._memory.fill, 0))
        self._x = x

    def images(self, first: int, count: int) -> _Images:
        """Blocks of `count` images from `first` on."""
        if self._memory is None:
            return _Images(self._x[first:].ctypes.data, count * self._x.strides[0], self._x.strides)
        return _padded_images(self._program, self._x, first, count, self._rows, self._columns, self._memory)


def _blocks(batch: int, most: int) -> Blocks:
    """All images in blocks of as many, and what remains."""
    count = min(batch, max(most, 1))
    whole, rest = divmod(batch, count)
    return [(0, count, whole), *([(whole * count, rest, 1)] if rest else [])]


def _panels(lanes: int, width: int, most: int) -> Iterator[tuple[int, int, int]]:
    """(first lane, vectors, lanes of the last vector) of each part of B."""
    start, vectors = 0, most
    while start < lanes:
        while vectors > 1 and vectors * width - width >= lanes - start:
            vectors //= 2
        used = min(lanes - start, vectors * width)
        yield start, vectors, used - (vectors - 1) * width
        start += vectors * width


def _is_product(request: Request) -> bool:
    geometry = request.attributes
    kernel = geometry.get("kernel_shape", request.inputs[1].shape)
    plain = geometry["strides"] == (1, 1) and not any(map(any, geometry["padding"])) and geometry["groups"] == 1
    arrays = (*request.inputs, request.output)
    return plain and kernel[:2] == (1, 1) and all(array.flags.c_contiguous for array in arrays)


def _matrix(array: Array) -> Array:
    return array.reshape(-1, array.shape[-1])


def _is_depthwise(kernel_shape: Sequence[int], groups: int) -> bool:
    return groups > 1 and kernel_shape[2] == 1 and kernel_shape[3] == groups


@kernel_for("conv2d")
def _conv2d(request: Request) -> Kernel:
    x, kernel = request.inputs
    code = convolutions(request)
    if code is None:
        return by_definition(request)
    if _is_product(request):
        return partial(np.matmul, _matrix(x), kernel[0, 0], _matrix(request.output))
    sizes, strides, padding, dilation = _geometry(request, kernel.shape)
    lines = [
        [convolution_line(count, size, stride, before, rate)]
        for count, size, stride, (before, _), rate in zip(
            request.output.shape[1:3], sizes, strides, padding, dilation, strict=True
        )
    ]
    return _correlate(_Program(code, request), x, lines, request, _grouped(kernel.shape, request, swapped=False))


@kernel_for("conv2d_input_gradient")
def _input_gradient(request: Request) -> Kernel:
    g, kernel = request.inputs
    code = convolutions(request)
    if code is None:
        return by_definition(request)
    if _is_product(request):
        return partial(np.matmul, _matrix(g), kernel[0, 0].T, _matrix(request.output))
    sizes, strides, padding, dilation = _geometry(request, kernel.shape)
    lines = [
        gradient_lines(length, size, stride, before, rate)
        for length, size, stride, (before, _), rate in zip(
            request.output.shape[1:3], sizes, strides, padding, dilation, strict=True
        )
    ]
    return _correlate(_Program(code, request), g, lines, request, _grouped(kernel.shape, request, swapped=True))


def _geometry(request: Request, kernel_shape: Sequence[int]) -> tuple[Any, ...]:
    attributes = request.attributes
    return kernel_shape[:2], attributes["strides"], attributes["padding"], attributes["dilation"]


def _grouped(kernel_shape: tuple[int, ...], request: Request, *, swapped: bool) -> Array:
    """Where in the kernel each group's elements are: (groups, height, width, channels of source, of target).

    All groups of a depthwise convolution are one, whose only channel of the source is taken for each lane's own.
    """
    height, width, per_group, channels = kernel_shape
    groups = request.attributes["groups"]
    places = np.arange(np.prod(kernel_shape)).reshape(kernel_shape)
    if _is_depthwise(kernel_shape, groups):
        return places[None]
    grouped = places.reshape(height, width, per_group, groups, channels // groups).transpose(3, 0, 1, 2, 4)
    return grouped.swapaxes(3, 4) if swapped else grouped


def _correlate(
    program: _Program, source: Array, lines: Sequence[Sequence[Line]], request: Request, kernel_places: Array
) -> Kernel:
    """The kernel whose every output adds up places of the source times elements of the kernel."""
    output, width = request.output, program.target.width
    is_depthwise = _is_depthwise(request.inputs[1].shape, request.attributes["groups"])
    sources, targets = kernel_places.shape[3:]
    lanes = together(lines[1][0], targets, width) if len(kernel_places) == len(lines[1]) == 1 and not is_depthwise else 1
    correlations = [Correlation(down.widened(1), across.widened(lanes)) for down in lines[0] for across in lines[1]]
    kernel = program.contiguous(request.inputs[1])
    rows, columns = (extent(axis, length) for axis, length in zip(lines, source.shape[1:3], strict=True))
    image_bytes = (rows[1] - rows[0]) * (columns[1] - columns[0]) * source.shape[3] * source.itemsize
    most = min(SOURCE_BYTES // image_bytes, MOST_PIXELS // max(each.targets for each in correlations))
    blocks = _blocks(len(source), most)
    if is_depthwise:
        source = program.contiguous(source)
    images = _Source(program, source, rows, columns, blocks[0][1], spare=is_depthwise and targets % width != 0)
    packed = {
        (place, group): _packed(program, kernel, each.weights(kernel_places[group]), 1 if is_depthwise else MOST_VECTORS)
        for place, each in enumerate(correlations)
        for group in range(len(kernel_places))
    }
    item = source.itemsize
    for first, count, repeats in blocks:
        read = images.images(first, count)
        for place, each in enumerate(correlations):
            taps = each.taps(sources, (rows[0], columns[0]), read.strides)
            steps = program.table(taps)
            from_where = each.pixels(count, read.strides, of_target=False)
            to_where = each.pixels(count, output.strides, of_target=True)
            tables = {
                kind: (program.table(from_where, program.tile(kind)), program.table(to_where, program.tile(kind)))
                for kind in ([DEPTHWISE] if is_depthwise else [1, 2])
            }
            for group in range(len(kernel_places)):
                for start, vectors, used, address in packed[place, group]:
                    kind = DEPTHWISE if is_depthwise else vectors
                    row_table, place_table = tables[kind]
                    channel = start if is_depthwise else group * sources
                    program.multiply(
                        kind=kind,
                        a=read.address + channel * item,
                        a_advance=read.advance,
                        b=address,
                        b_advance=0,
                        c=output[first:].ctypes.data + (group * targets + start) * item,
                        c_advance=count * output.strides[0],
                        rows=row_table,
                        steps=steps,
                        places=place_table,
                        row_count=-(-len(from_where) // program.tile(kind)) * program.tile(kind),
                        step_count=len(taps),
                        b_step=vectors * width * item,
                        lanes=used,
                        adds=0,
                    )
        program.finish(repeats)
    return program.kernel()


def _packed(program: _Program, kernel: Array, index: Array, most: int) -> list[tuple[int, int, int, int]]:
    """The panels of B, (first lane, vectors, lanes of the last vector, address): vectors of each lie together."""
    width, (taps, lanes) = program.target.width, index.shape
    padded = np.full((taps, -(-lanes // width) * width), -1)
    padded[:, :lanes] = index
    panels = list(_panels(lanes, width, most))
    order = [padded[:, start : start + vectors * width].reshape(-1) for start, vectors, _ in panels]
    memory = program.gather(kernel, np.concatenate(order))
    starts = np.cumsum([0, *map(len, order)])
    return [
        (*panel, int(memory.ctypes.data + start * memory.itemsize))
        for panel, start in zip(panels, starts[:-1], strict=True)
    ]


@kernel_for("conv2d_kernel_gradient")
def _kernel_gradient(request: Request) -> Kernel:
    x, g = request.inputs
    code = convolutions(request)
    if code is None:
        return by_definition(request)
    if _is_product(request):
        return partial(np.matmul, _matrix(x).T, _matrix(g), _matrix(request.output))
    program, output, width, item = _Program(code, request), request.output, code.target.width, x.itemsize
    sizes, strides, padding, dilation = _geometry(request, output.shape)
    down, across = (
        convolution_line(count, size, stride, before, rate)
        for count, size, stride, (before, _), rate in zip(
            g.shape[1:3], sizes, strides, padding, dilation, strict=True
        )
    )
    groups = request.attributes["groups"]
    is_depthwise = _is_depthwise(output.shape, groups)
    if is_depthwise:
        groups, sources, targets, members = 1, 1, groups, 1
    else:
        sources, targets = output.shape[2], output.shape[3] // groups
        members = together(across, targets, width) if groups == 1 else 1
    each = Correlation(down.widened(1), across.widened(members))
    lanes = members * targets
    is_spare = lanes % width != 0
    rows, columns = extent([down], x.shape[1]), extent([across], x.shape[2])
    near, most = _kernel_gradient_rows(each, (columns[1] - columns[0]) * x.shape[3] * item, g[0, 0].nbytes)
    blocks = _blocks(len(x), most)
    if is_depthwise:
        x = program.contiguous(x)
    g = program.contiguous(g)
    images = _Source(program, x, rows, columns, blocks[0][1], spare=is_depthwise and is_spare)
    cotangents = _Source(program, g, (0, g.shape[1]), (0, g.shape[2]), blocks[0][1], spare=is_spare)
    taps_count = len(each.down.offsets) * len(each.across.offsets) * sources
    if is_spare or members > 1:
        sums = program.scratch(groups, taps_count, -(-lanes // width) * width)
        group_bytes, row_bytes = sums.strides[0], sums.strides[1]
    else:
        sums, group_bytes, row_bytes = output, targets * item, output.strides[2]
        if is_depthwise:
            row_bytes = output.strides[1]
    program.actions.append(partial(sums.fill, 0))
    most_vectors = 1 if is_depthwise else max(program.target.tiles)
    for first, count, repeats in blocks:
        read, with_what = images.images(first, count), cotangents.images(first, count)
        taps = each.taps(sources, (rows[0], columns[0]), read.strides)
        steps = program.table(each.pixels(count, read.strides, of_target=False))
        per_row = across.count // members
        for row in range(0, down.count, near):
            step_count = count * down.count * per_row if near >= down.count else min(near, down.count - row) * per_row
            for group in range(groups):
                for start, vectors, _ in _panels(lanes, width, most_vectors):
                    kind = DEPTHWISE if is_depthwise else vectors
                    tile = program.tile(kind)
                    channel = start if is_depthwise else group * sources
                    program.multiply(
                        kind=kind,
                        a=read.address + channel * item + row * down.source_step * read.strides[1],
                        a_advance=read.advance,
                        b=with_what.address + (group * targets + start) * item + row * with_what.strides[1],
                        b_advance=with_what.advance,
                        c=sums.ctypes.data + group * group_bytes + start * item,
                        c_advance=0,
                        rows=program.table(taps, tile),
                        steps=steps,
                        places=program.table(np.arange(taps_count) * row_bytes, tile),
                        row_count=-(-taps_count // tile) * tile,
                        step_count=step_count,
                        b_step=members * g.strides[2],
                        lanes=width,
                        adds=1,
                    )
        program.finish(repeats)
    if sums is not output:
        program.actions.append(partial(_fold, sums, each, groups, targets, output))
    return program.kernel()


def _kernel_gradient_rows(each: Correlation, source_row_bytes: int, cotangent_row_bytes: int) -> tuple[int, int]:
    """How many rows of an image, and how many images, are used for all sums before the next ones."""
    near = NEAR_BYTES // (each.down.line.source_step * source_row_bytes + cotangent_row_bytes)
    near = max(near, -(-LEAST_STEPS // each.across.line.count), 1)
    return near, max(near // each.down.line.count, 1)


def _fold(sums: Array, each: Correlation, groups: int, targets: int, output: Array) -> None:
    """Add up what the members of each group of targets have found for the same element of the kernel."""
    height, width = output.shape[:2]
    parts = sums.reshape(groups, height, len(each.across.offsets), -1, sums.shape[-1])
    total = output.reshape(height, width, -1, groups, targets).transpose(3, 0, 1, 2, 4)
    for member in range(each.across.together):
        places = [place for other, _, place in each.across.places if other == member]
        part = parts[:, :, places, :, member * targets : (member + 1) * targets]
        if member:
            np.add(total, part, total)
        else:
            np.copyto(total, part)
