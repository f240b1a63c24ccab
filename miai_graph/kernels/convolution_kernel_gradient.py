"""Gradients of convolutions in the kernel, whose steps are pixels."""

from __future__ import annotations

import itertools

import numpy as np

from miai_graph.kernels.convolution_geometry import Geometry
from miai_graph.kernels.convolution_lines import Correlation, extent, together
from miai_graph.kernels.convolution_program import (
    Block,
    Images,
    Program,
    Source,
    blocks,
    panels,
)
from miai_graph.kernels.convolution_sliding import SlidingTile
from miai_graph.kernels.convolution_tiles import Target, Tile
from miai_graph.kernels.elementwise_kernels import adding, copying, filling, in_turn
from miai_graph.kernels.kernel import Kernel
from miai_graph.kernels.numpy_kernels import Request
from miai_graph.op import Array

NEAR_BYTES, LEAST_STEPS = 24 << 10, 96
"""What a gradient in the kernel reads again and again is to fit into the nearest cache, unless sums are too short."""

LEAST_SUMS = 12
"""A tile with fewer does not make up for its loads."""


class KernelGradient:
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
        to_lines = (images * read.strides[0] + lines * (down.source_step * read.strides[1])).reshape(-1)
        cotangent_lines = (images * cotangents.strides[0] + lines * cotangents.strides[1]).reshape(-1)
        places = np.arange(sums.shape[1]) * sums.strides[1]
        most = 1 if self._is_depthwise else max(program.target.most_rows)
        for row in range(0, down.count, near):
            count = min(near, down.count - row) * block.images
            for group, panel in itertools.product(range(self._groups), panels(self._lanes, program.width, most)):
                first = panel.first if self._is_depthwise else group * self._sources
                lines, pixels = self._rows_of_tile(panel.vectors)
                program.multiply(
                    Tile(lines, pixels, panel.vectors, program.item, end=pixels * program.item, is_depthwise=self._is_depthwise),
                    program.table(taps[::pixels]),
                    program.table(places[::pixels]),
                    program.table(to_lines[:count]),
                    program.table(cotangent_lines[:count]),
                    a=read.address + first * read.strides[3] + row * down.source_step * read.strides[1],
                    a_advance=read.advance,
                    a_step=self._members * across.source_step * read.strides[2],
                    run_steps=across.count,
                    b=cotangents.address
                    + (group * self._channels + panel.first) * program.item
                    + row * cotangents.strides[1],
                    b_advance=cotangents.advance,
                    b_step=self._members * cotangents.strides[2],
                    c=sums[group].ctypes.data + panel.first * program.item,
                    c_step=sums.strides[1],
                    adds=1,
                )

    def _rows_of_tile(self, vectors: int) -> tuple[int, int]:
        """How many stretches of rows lie side by side, and how many rows each has."""
        target = self._program.target
        most = target.most_lines[1] if self._is_depthwise else target.most_rows[vectors]
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


class SlidingGradient:
    """The gradient in the kernel where neighbouring pixels meet neighbouring taps: no image needs zeros around it."""

    def __init__(self, request: Request, target: Target, geometry: Geometry) -> None:
        self._program, self._output = Program(target, request), request.output
        self._images, self._cotangents = request.inputs
        self._down, self._across = geometry.lines()
        self._channels = _channels_of_tile(target, geometry)

    @classmethod
    def suits(cls, target: Target, geometry: Geometry) -> bool:
        """Is it made for this geometry, and better than the other way?"""
        (_, stride), (_, dilation), (_, padding) = geometry.strides, geometry.dilation, geometry.padding
        taps, columns = geometry.kernel[1], geometry.result[2]
        return (
            stride == dilation == geometry.groups == 1
            and any(padding)
            and max(padding) < taps <= columns
            and geometry.kernel[3] % target.width == 0
            and _channels_of_tile(target, geometry) * taps >= LEAST_SUMS
        )

    def kernel(self) -> Kernel:
        """What computes it."""
        program, output = self._program, self._output
        images, cotangents = program.contiguous(self._images), program.contiguous(self._cotangents)
        near = max(NEAR_BYTES // (self._down.source_step * images[0, 0].nbytes + cotangents[0, 0].nbytes), 1)
        program.do(filling(output, 0))
        for block in blocks(len(images), near // self._down.count):
            for first in range(0, self._down.count, near):
                for element in range(output.shape[0]):
                    self._multiply(block, images, cotangents, range(first, first + near), element)
            program.repeat(block.repeats)
        return program.kernel()

    def _multiply(self, block: Block, images: Array, cotangents: Array, near: range, element: int) -> None:
        """The products of a row of the kernel, and of some rows of the cotangents."""
        program, output = self._program, self._output
        _, taps, sources, channels = output.shape
        before = -self._across.offsets[0]
        rows = [row for row in self._down.within(element, images.shape[1]) if row in near]
        if not rows:
            return
        number = np.arange(block.images)[:, None]
        image_rows = self._down.source(element, np.array(rows))
        a_runs = program.table((number * images.strides[0] + image_rows * images.strides[1]).reshape(-1))
        b_runs = program.table(
            (number * cotangents.strides[0] + np.array(rows) * cotangents.strides[1]).reshape(-1)
        )
        tiles = np.arange(0, sources, self._channels)
        lines, places = program.table(tiles * program.item), program.table(tiles * output.strides[2])
        meetings = [
            range(max(column + before - cotangents.shape[2] + 1, 0), min(column + before, taps - 1) + 1)
            for column in range(images.shape[2])
        ]
        whole = [len(met) == taps for met in meetings]
        left = whole.index(True)
        middle = sum(whole)
        tile = SlidingTile(
            self._channels,
            taps,
            1,
            cotangents.strides[2],
            sources,
            tuple(meetings[:left]),
            tuple(meetings[left + middle :]),
        )
        for panel in panels(channels, program.width, 1):
            program.multiply(
                tile,
                lines,
                places,
                a_runs,
                b_runs,
                run_steps=middle,
                a=images[block.first :].ctypes.data,
                a_advance=block.images * images.strides[0],
                a_step=images.strides[2],
                b=cotangents[block.first :].ctypes.data + before * cotangents.strides[2] + panel.first * program.item,
                b_advance=block.images * cotangents.strides[0],
                c=output[element].ctypes.data + panel.first * program.item,
                c_step=output.strides[2],
                adds=1,
            )


def _channels_of_tile(target: Target, geometry: Geometry) -> int:
    """How many channels of the images a sliding tile has; 0 if their sums do not fit into registers."""
    taps, channels = geometry.kernel[1:3]
    most = (target.registers - 1) // taps - 1
    return max((count for count in range(1, min(most, channels) + 1) if channels % count == 0), default=0)
