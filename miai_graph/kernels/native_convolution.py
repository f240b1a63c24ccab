"""Kernels for convolutions and their gradients, in native code of one thread.

Their definitions serve where there is no native code, and for arrays that it is not made for.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from miai_graph.kernels import native
from miai_graph.kernels.convolution_correlating import Correlating
from miai_graph.kernels.convolution_geometry import Geometry
from miai_graph.kernels.convolution_lines import Correlation, extent, together
from miai_graph.kernels.convolution_program import (
    Block,
    Factors,
    Images,
    Program,
    Source,
    blocks,
    factors,
    numbered,
    panels,
    target_for,
)
from miai_graph.kernels.convolution_tiles import Target, Tile
from miai_graph.kernels.elementwise_kernels import adding, copying, filling, in_turn
from miai_graph.kernels.kernel import Kernel
from miai_graph.kernels.matrix_product import matrix_product
from miai_graph.kernels.numpy_kernels import Request, by_definition, kernel_for
from miai_graph.op import Array
from collections.abc import Sequence

BLOCK_BYTES = 1 << 17
"""A block has images of so many bytes, or of as many as the kernel."""

NEAR_BYTES, LEAST_STEPS = 24 << 10, 96
"""What a gradient in the kernel reads again and again is to fit into the nearest cache, unless sums are too short."""

STORING_STEPS = 6
"""How many steps take as long as to load and store a tile."""

MOST_LINES = {1: 8, 2: 8, 3: 8, 4: 6}


def most_lines(target: Target, vectors: int) -> int:
    return MOST_LINES[vectors] if target.has_many_registers else {1: 8, 2: 6}[vectors]


def most_rows(target: Target, vectors: int) -> int:
    return {1: 30, 2: 12, 3: 8, 4: 6}[vectors] if target.has_many_registers else {1: 12, 2: 6}[vectors]


def most_vectors(target: Target) -> int:
    return 4 if target.has_many_registers else 2


@kernel_for("conv2d", "conv2d_input_gradient", "conv2d_kernel_gradient")
def _convolution(request: Request) -> Kernel:
    return convolution(request, native.processor())


def convolution(request: Request, processor: native.Processor | None) -> Kernel:
    """The kernel for one of the three ops, in code for this processor where that can serve."""
    geometry, target = Geometry.of(request), target_for(request, processor)
    if geometry.is_product and all(array.flags.c_contiguous for array in request.inputs):
        return _product(request)
    if target is None:
        return by_definition(request)
    if request.node.op.name == "conv2d_kernel_gradient":
        return _KernelGradient(request, target, geometry).kernel()
    places = geometry.places()
    if request.node.op.name == "conv2d":
        down, across = geometry.lines()
        return Correlating(request, target, geometry, ([down], [across]), places).kernel()
    if not geometry.is_depthwise:
        places = places.swapaxes(3, 4)
    correlating = Correlating(request, target, geometry, geometry.gradient_lines(), places)
    if not geometry.is_depthwise:
        scattering = _Scattering(request, target, geometry, places)
        if scattering.steps < correlating.steps:
            return scattering.kernel()
    return correlating.kernel()


def _product(request: Request) -> Kernel:
    arrays = (*request.inputs, request.output)
    a, b, output = (array.reshape(math.prod(array.shape[:-1]), array.shape[-1]) for array in arrays)
    if request.node.op.name == "conv2d_input_gradient":
        b = b.T
    if request.node.op.name == "conv2d_kernel_gradient":
        a = a.T
    return matrix_product(a, b, output, request.scratch, request.threads)


class _Scattering:
    """The gradient in the images that adds what each pixel of the cotangent gives, element by element of the kernel.

    It multiplies nothing with the zeros around the cotangent, of which there are many where the kernel is large.
    """

    def __init__(self, request: Request, target: Target, geometry: Geometry, places: Array) -> None:
        self._program, self._output, self._geometry = Program(target, request), request.output, geometry
        (self._source, self._kernel), self._places = request.inputs, places
        _, height, width, self._sources, self._channels = places.shape
        self._down, self._across = geometry.lines()
        self._is_run = self._writes_runs()
        columns = [slice(0, width)] if self._is_run else [slice(column, column + 1) for column in range(width)]
        self._taps = [
            (row, part, self._down.within(row, geometry.image[1]), self._across.within(part.start, geometry.image[2]))
            for row in range(height)
            for part in columns
        ]

    def _writes_runs(self) -> bool:
        """Are a row of the kernel's places written at once, as if they were channels of one?

        They must lie side by side in the images. Those of neighbouring pixels overlap, so no tile may have two of
        these: there must be enough rows to fill it.
        """
        geometry = self._geometry
        is_side_by_side = geometry.dilation[1] == 1 and geometry.groups == 1 and not any(geometry.padding[1])
        fewest = min(len(self._down.within(row, geometry.image[1])) for row in range(geometry.kernel[0]))
        return is_side_by_side and fewest >= max(MOST_LINES.values())

    @property
    def steps(self) -> int:
        """How often a vector is multiplied and added for an image and a group, or what takes as long as that."""
        lanes = self._channels * (self._geometry.kernel[1] if self._is_run else 1)
        pixels = sum(len(rows) * len(columns) for _, _, rows, columns in self._taps)
        return pixels * (self._sources + STORING_STEPS) * self._program.vectors(lanes)

    def kernel(self) -> Kernel:
        """What computes it."""
        program, output, source = self._program, self._output, self._source
        kernel = program.contiguous(self._kernel)
        factors_of_all = [
            [self._factors(kernel, places, tap[0], tap[1]) for places in self._places] for tap in self._taps
        ]
        most = max(BLOCK_BYTES, kernel.nbytes) // (output.strides[0] + source[0].nbytes)
        parts = blocks(len(source), most)
        images = Source(program, source, parts[0].images)
        program.do(filling(output, 0))
        for block in parts:
            read = images.block(block)
            for tap, factors_of_groups in zip(self._taps, factors_of_all, strict=True):
                self._multiply(block, read, *tap, factors_of_groups)
            program.repeat(block.repeats)
        return program.kernel()

    def _factors(self, kernel: Array, places: Array, row: int, columns: slice) -> list[Factors]:
        index = places[row, columns].swapaxes(0, 1).reshape(self._sources, -1)
        return factors(self._program, kernel, index[:, None], most_vectors(self._program.target))

    def _multiply(
        self,
        block: Block,
        read: Images,
        element: int,
        elements: slice,
        rows: Array,
        columns: Array,
        factors_of_groups: Sequence[Sequence[Factors]],
    ) -> None:
        """The products of one place in the window, or of a row of them, added to the outputs where they lie."""
        program, output = self._program, self._output
        to_rows, to_columns = self._down.source(element, rows), self._across.source(elements.start, columns)
        source_rows = program.table(_column_by_column(block.images, rows, columns, read.strides))
        places = program.table(_column_by_column(block.images, to_rows, to_columns, output.strides))
        runs = program.table(np.zeros(1, np.int64))
        for group, (panel, address, step) in numbered(factors_of_groups):
            program.multiply(
                Tile(most_lines(program.target, panel.vectors), vectors=panel.vectors),
                source_rows,
                runs,
                places,
                run_steps=self._sources,
                a_step=read.strides[3],
                a=read.address + group * self._sources * read.strides[3],
                a_advance=read.advance,
                b=address,
                b_step=step,
                c=output[block.first :].ctypes.data + (group * self._channels + panel.first) * program.item,
                c_advance=block.images * output.strides[0],
                lanes=panel.used,
                adds=1,
            )


def _column_by_column(images: int, rows: Array, columns: Array, strides: Sequence[int]) -> Array:
    """Where these pixels lie, so that neighbours in the table are of different rows."""
    image, row, column, _ = strides
    places = np.arange(images)[:, None] * image + rows * row
    return (columns[:, None, None] * column + places).reshape(-1)


class _KernelGradient:
    """The gradient in the kernel: its rows are places in the window, and its steps are pixels.

    The sums of a few rows of an image, which fit into the nearest cache, are added up in registers.
    """

    def __init__(self, request: Request, target: Target, geometry: Geometry) -> None:
        self._program, self._output = Program(target, request), request.output
        (self._images, self._cotangents), self._is_depthwise = request.inputs, geometry.is_depthwise
        self._groups, *_, self._sources, self._channels = geometry.places().shape
        down, across = geometry.lines()
        is_plain = self._groups == 1 and not self._is_depthwise
        self._members = together(across, self._channels, target.width) if is_plain else 1
        self._lanes = self._members * self._channels
        self._each = Correlation(down.widened(1), across.widened(self._members))
        offsets, self._contiguous = self._each.across.offsets, self._sources
        if self._groups == 1 and offsets[-1] - offsets[0] == len(offsets) - 1:
            self._contiguous *= len(offsets)
        self._rows, self._columns = extent([down], geometry.image[1]), extent([across], geometry.image[2])

    def kernel(self) -> Kernel:
        """What computes it."""
        program, is_whole = self._program, self._lanes % self._program.width == 0
        near, most = self._rows_at_a_time()
        parts = blocks(len(self._images), most)
        needs_room = self._is_depthwise and not is_whole
        source = program.contiguous(self._images)
        images = Source(program, source, parts[0].images, self._rows, self._columns, needs_room=needs_room)
        cotangents = Source(program, program.contiguous(self._cotangents), parts[0].images, needs_room=not is_whole)
        is_direct = is_whole and self._members == 1
        sums = self._output.reshape(-1, self._groups, self._channels).transpose(1, 0, 2) if is_direct else self._sums()
        program.do(filling(sums, 0))
        for block in parts:
            self._multiply(block, images.block(block), cotangents.block(block), near, sums)
            program.repeat(block.repeats)
        if not is_direct:
            program.do(_fold(sums, self._each, self._channels, self._output))
        return program.kernel()

    def _sums(self) -> Array:
        vectors = self._program.vectors(self._lanes)
        return self._program.scratch(self._groups, self._each.tap_count * self._sources, vectors * self._program.width)

    def _rows_at_a_time(self) -> tuple[int, int]:
        """How many rows of an image, and how many images, are used for all sums before the next ones."""
        down, across = self._each.down.line, self._each.across.line
        image_row = (self._columns[1] - self._columns[0]) * self._images.shape[3] * self._program.item
        near = NEAR_BYTES // (down.source_step * image_row + self._cotangents[0, 0].nbytes)
        near = max(near, -(-LEAST_STEPS // across.count), 1)
        return near, max(near // down.count, 1)

    def _multiply(self, block: Block, read: Images, cotangents: Images, near: int, sums: Array) -> None:
        program, each = self._program, self._each
        down, across = each.down.line, each.across.line
        taps = each.taps(self._sources, (self._rows[0], self._columns[0]), read.strides)
        images, lines = np.arange(block.images)[:, None], np.arange(down.count)
        runs = program.table(
            (images * read.strides[0] + lines * (down.source_step * read.strides[1])).reshape(-1)
        )
        places = np.arange(sums.shape[1]) * sums.strides[1]
        most = 1 if self._is_depthwise else most_vectors(program.target)
        for row in range(0, down.count, near):
            count = min(near, down.count - row) * block.images
            for group, panel in itertools.product(range(self._groups), panels(self._lanes, program.width, most)):
                first = panel.first if self._is_depthwise else group * self._sources
                lines, pixels = self._rows_of_tile(panel.vectors)
                program.multiply(
                    Tile(lines, pixels, panel.vectors, program.item, end=pixels * program.item, is_depthwise=self._is_depthwise),
                    program.table(taps[::pixels]),
                    runs,
                    program.table(places[::pixels]),
                    a=read.address + first * read.strides[3] + row * down.source_step * read.strides[1],
                    a_advance=read.advance,
                    a_step=self._members * across.source_step * read.strides[2],
                    run_count=count,
                    run_steps=across.count // 1,
                    b=cotangents.address
                    + (group * self._channels + panel.first) * program.item
                    + row * cotangents.strides[1],
                    b_advance=cotangents.advance,
                    b_step=self._members * cotangents.strides[2],
                    b_run=cotangents.strides[1],
                    c=sums[group].ctypes.data + panel.first * program.item,
                    c_step=sums.strides[1],
                    adds=1,
                )

    def _rows_of_tile(self, vectors: int) -> tuple[int, int]:
        """How many stretches of rows lie side by side, and how many rows each has."""
        most = MOST_LINES[1] if self._is_depthwise else most_rows(self._program.target, vectors)
        contiguous = 1 if self._is_depthwise else self._contiguous
        fitting = max(count for count in range(1, most + 1) if contiguous % count == 0)
        return max(most // fitting, 1) if fitting < most else 1, fitting


def _fold(sums: Array, each: Correlation, channels: int, output: Array) -> Kernel:
    """What adds up what the pixels that were taken together have found for the same element of the kernel."""
    height, width = output.shape[:2]
    groups, _, lanes = sums.shape
    parts = sums.reshape(groups, height, len(each.across.offsets), -1, lanes)
    total = output.reshape(height, width, -1, groups, channels).transpose(3, 0, 1, 2, 4)
    kernels = []
    for member in range(each.across.together):
        places = (place for other, _, place in each.across.places if other == member)
        for column, place in enumerate(places):
            found = parts[:, :, place, :, member * channels : (member + 1) * channels]
            kernels.append((adding if member else copying)(total[:, :, column], found))
    return in_turn(kernels)
