"""Gradients of convolutions in the kernel, whose steps are pixels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from miai_graph.kernels.convolution.geometry import Geometry
from miai_graph.kernels.convolution.lines import Correlation, extent, together
from miai_graph.kernels.convolution.program import (
    Block,
    Images,
    Program,
    Source,
    blocks,
    panels,
    shared_evenly,
)
from miai_graph.kernels.convolution.sliding import SlidingTile
from miai_graph.kernels.convolution.tiles import Target, Tile
from miai_graph.kernels.elementwise.kernels import adding, copying, filling, in_turn
from miai_graph.kernels.kernel import Kernel
from miai_graph.kernels.numpy_kernels import Request
from miai_graph.op import Array

NEAR_BYTES, LEAST_STEPS = 24 << 10, 96
"""What a gradient in the kernel reads again and again is to fit into the nearest cache, unless sums are too short."""

SLIDING_BYTES = 48 << 10
"""The same where all taps across are taken at once."""

LEAST_RUN = 8
"""Shorter runs would take longer than as many runs of one step."""

LEAST_SUMS = 16
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
        program, (down, across) = self._program, (self._each.down.line, self._each.across)
        taps = self._each.taps(self._sources, (self._rows[0], self._columns[0]), read.strides)
        most_vectors = 1 if self._is_depthwise else max(program.target.most_rows)
        a_step, b_step = across.source_step * read.strides[2], self._members * cotangents.strides[2]
        singles = across.line.count if self._has_short_runs else 1
        for row in range(0, down.count, near):
            rows = np.arange(row, min(row + near, down.count))
            a_runs = program.table(
                _joined(beginnings(block.images, rows * down.source_step, read.strides), singles, a_step)
            )
            b_runs = program.table(_joined(beginnings(block.images, rows, cotangents.strides), singles, b_step))
            for group, panel in itertools.product(
                range(self._groups), panels(self._lanes, program.width, most_vectors)
            ):
                first = panel.first if self._is_depthwise else group * self._sources
                tile = self._tile(panel.vectors)
                program.multiply(
                    tile,
                    program.table(taps[:: tile.pixels]),
                    program.table(np.arange(0, len(taps), tile.pixels) * sums.strides[1]),
                    a_runs,
                    b_runs,
                    run_steps=across.line.count // singles,
                    a=read.address + first * read.strides[3],
                    a_advance=read.advance,
                    a_step=a_step,
                    b=cotangents.address + (group * self._channels + panel.first) * program.item,
                    b_advance=cotangents.advance,
                    b_step=b_step,
                    c=sums[group].ctypes.data + panel.first * program.item,
                    c_step=sums.strides[1],
                    adds=1,
                )

    def _tile(self, vectors: int) -> Tile:
        """Its pixels are rows that lie side by side, if enough of those can be shared evenly by tiles."""
        target, item = self._program.target, self._program.item
        most_lines, most_rows = target.most_lines[vectors], target.most_rows[vectors]
        rows = max(count for count in range(1, most_rows + 1) if self._contiguous % count == 0)
        lines = min(most_rows // rows, most_lines)
        if self._is_depthwise or rows * lines < most_lines:
            tile = Tile(most_lines, vectors=vectors, is_depthwise=self._is_depthwise)
        else:
            tile = Tile(lines, rows, vectors, pixel_bytes=item, end=rows * item)
        return replace(tile, has_single_steps=self._has_short_runs)

    @property
    def _has_short_runs(self) -> bool:
        return self._each.across.line.count < LEAST_RUN


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
            target = total[:, :, column]
            kernels.append(adding(target, [found]) if member else copying(target, found))
    return in_turn(kernels)


class SlidingGradient:
    """The gradient in the kernel where all taps across are taken at once: no image needs zeros around it.

    Without strides the steps are the pixels of the images, and each number is multiplied with neighbouring cotangents;
    with strides they are the pixels of the cotangents.
    """

    def __init__(self, request: Request, target: Target, geometry: Geometry) -> None:
        self._program, self._output = Program(target, request), request.output
        self._images, self._cotangents = request.inputs
        self._down, self._across = geometry.lines()
        self._channels, self._vectors = _tile_size(target, geometry)
        self._met = _taps_of_steps(geometry)

    @classmethod
    def suits(cls, target: Target, geometry: Geometry) -> bool:
        """Is it made for this geometry, and better than the other way?"""
        taps, outputs = geometry.kernel[1], geometry.kernel[3]
        return (
            any(geometry.padding[1])
            and geometry.groups == 1
            and outputs % target.width == 0
            and any(len(met) == taps for met in _taps_of_steps(geometry))
            and math.prod(_tile_size(target, geometry)) * taps >= LEAST_SUMS
        )

    def kernel(self) -> Kernel:
        """What computes it."""
        program, output, rows = self._program, self._output, self._down.count
        images, cotangents = program.contiguous(self._images), program.contiguous(self._cotangents)
        fitting = SLIDING_BYTES // (self._down.source_step * images[0, 0].nbytes + cotangents[0, 0].nbytes)
        near = shared_evenly(rows, max(fitting, 1))
        program.do(filling(output, 0))
        for block in blocks(len(images), fitting // rows):
            for first in range(0, rows, near):
                for element in range(output.shape[0]):
                    self._multiply(block, images, cotangents, range(first, first + near), element)
            program.repeat(block.repeats)
        return program.kernel()

    def _tile(self, image_pixel: int, cotangent_pixel: int) -> SlidingTile:
        taps, sources = self._output.shape[1:3]
        offsets = [offset - self._across.offsets[0] for offset in self._across.offsets]
        still = (0,) * taps
        is_strided = self._across.source_step > 1
        whole = [number for number, met in enumerate(self._met) if len(met) == taps]
        return SlidingTile(
            channels=self._channels,
            vectors=self._vectors,
            image_taps=tuple(offset * image_pixel for offset in offsets) if is_strided else still,
            cotangent_taps=still if is_strided else tuple(-offset * cotangent_pixel for offset in offsets),
            tap_channels=sources,
            left=tuple(self._met[: whole[0]]),
            right=tuple(self._met[whole[-1] + 1 :]),
        )

    def _multiply(self, block: Block, images: Array, cotangents: Array, near: range, element: int) -> None:
        """The products of a row of the kernel, and of some rows of the cotangents."""
        program, output = self._program, self._output
        rows = np.array([row for row in self._down.within(element, images.shape[1]) if row in near], np.int64)
        if not len(rows):
            return
        tile = self._tile(images.strides[2], cotangents.strides[2])
        source_rows = self._down.source(element, rows)
        channels = np.arange(0, output.shape[2], self._channels)
        lines, places = program.table(channels * program.item), program.table(channels * output.strides[2])
        a_runs, b_runs = (
            program.table(beginnings(block.images, part, array.strides))
            for part, array in ((source_rows, images), (rows, cotangents))
        )
        first, is_strided = self._across.offsets[0], self._across.source_step > 1
        for panel in panels(output.shape[3], program.width, self._vectors):
            program.multiply(
                tile,
                lines,
                places,
                a_runs,
                b_runs,
                run_steps=len(self._met) - len(tile.left) - len(tile.right),
                a=images[block.first :].ctypes.data + first * images.strides[2] * is_strided,
                a_advance=block.images * images.strides[0],
                a_step=self._across.source_step * images.strides[2],
                b=cotangents[block.first :].ctypes.data
                - first * cotangents.strides[2] * (not is_strided)
                + panel.first * program.item,
                b_advance=block.images * cotangents.strides[0],
                b_step=cotangents.strides[2],
                c=output[element].ctypes.data + panel.first * program.item,
                c_step=output.strides[2],
                adds=1,
            )


def _joined(starts: Array, count: int, step: int) -> Array:
    """So many places from each start on."""
    return (starts[:, None] + np.arange(count) * step).reshape(-1)


def beginnings(images: int, rows: Array, strides: Sequence[int]) -> Array:
    """Where these rows of some images begin."""
    return (np.arange(images)[:, None] * strides[0] + rows * strides[1]).reshape(-1)


def _taps_of_steps(geometry: Geometry) -> list[range]:
    """The taps across that each step has: each a stretch of all taps."""
    _, across = geometry.lines()
    columns, results, offsets = geometry.image[2], geometry.result[2], np.array(across.offsets)
    if across.source_step > 1:
        met = [across.source_step * step + offsets for step in range(results)]
        return [range(int((each < 0).sum()), int((each < columns).sum())) for each in met]
    met = [step - offsets for step in range(columns)]
    return [range(int((each >= results).sum()), int((each >= 0).sum())) for each in met]


def _tile_size(target: Target, geometry: Geometry) -> tuple[int, int]:
    """How many channels of the images, and vectors of outputs, have the most sums that fit into registers."""
    _, taps, channels, outputs = geometry.kernel
    held = taps if geometry.strides[1] == 1 else 1
    sizes = [
        (count, vectors)
        for vectors in range(1, 5)
        for count in range(1, channels + 1)
        if channels % count == outputs // target.width % vectors == 0
        and (count * taps + held) * vectors < target.registers
    ]
    return max(sizes, key=math.prod, default=(0, 0))
