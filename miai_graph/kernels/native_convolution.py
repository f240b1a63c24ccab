"""Kernels for convolutions and their gradients, in native code of one thread.

Their definitions serve where there is no native code, and for arrays that it is not made for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from miai_graph.kernels.convolution_code import DEPTHWISE, Target
from miai_graph.kernels.convolution_lines import Correlation, Line, convolution_line, extent, gradient_lines, together
from miai_graph.kernels.convolution_program import Packed, Panel, Program, Source, blocks, panels, target_for
from miai_graph.kernels.numpy_kernels import Kernel, Request, by_definition, kernel_for
from miai_graph.op import Array

BLOCK_BYTES, MOST_PIXELS = 1 << 17, 1 << 11
"""A block has images of so many bytes, and so many pixels in its tables, unless one image alone has more."""

NEAR_BYTES, LEAST_STEPS = 24 << 10, 96
"""What a gradient in the kernel reads again and again is to fit into the nearest cache, unless sums are too short."""

MOST_VECTORS = 2
"""How many vectors a step reads, where what they lie in is large."""

STORING_STEPS = 6
"""How many steps take as long as to load and store a tile."""


@dataclass(frozen=True)
class _Geometry:
    """What a request is about, whichever of the three ops it is for.

    Attributes
    ----------
    image, kernel, output : the shapes of what the convolution reads and gives
    """

    image: tuple[int, ...]
    kernel: tuple[int, ...]
    output: tuple[int, ...]
    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    dilation: tuple[int, int]
    groups: int

    @property
    def is_product(self) -> bool:
        """Is it one product of matrices?"""
        is_plain = self.strides == (1, 1) and not any(map(any, self.padding)) and self.groups == 1
        return is_plain and self.kernel[:2] == (1, 1)

    @property
    def is_depthwise(self) -> bool:
        """Does each channel have a kernel of its own, which gives one channel?"""
        return self.groups > 1 and self.kernel[2] == 1 and self.kernel[3] == self.groups

    def places(self) -> Array:
        """Where in the kernel each group's elements are: (groups, height, width, channels in, channels out).

        Depthwise, all are one group, of whose one channel each lane has its own.
        """
        height, width, per_group, channels = self.kernel
        places = np.arange(math.prod(self.kernel)).reshape(self.kernel)
        if self.is_depthwise:
            return places[None]
        grouped = places.reshape(height, width, per_group, self.groups, channels // self.groups)
        return grouped.transpose(3, 0, 1, 2, 4)

    def lines(self) -> list[Line]:
        """Those of the convolution, down and across."""
        return [
            convolution_line(self.output[axis + 1], self.kernel[axis], stride, before, rate)
            for axis, (stride, (before, _), rate) in enumerate(
                zip(self.strides, self.padding, self.dilation, strict=True)
            )
        ]

    def gradient_lines(self) -> list[list[Line]]:
        """Those of its gradient in the images, down and across."""
        return [
            gradient_lines(self.image[axis + 1], self.kernel[axis], stride, before, rate)
            for axis, (stride, (before, _), rate) in enumerate(
                zip(self.strides, self.padding, self.dilation, strict=True)
            )
        ]


def _geometry(image: Array, kernel: Array, output: Array, attributes: Any) -> _Geometry:
    names = ("strides", "padding", "dilation", "groups")
    return _Geometry(image.shape, kernel.shape, output.shape, *(attributes[name] for name in names))


def _matrix(array: Array) -> Array:
    return array.reshape(-1, array.shape[-1])


def _is_contiguous(request: Request) -> bool:
    return all(array.flags.c_contiguous for array in request.inputs)


@kernel_for("conv2d")
def _conv2d(request: Request) -> Kernel:
    (x, kernel), output, target = request.inputs, request.output, target_for(request)
    geometry = _geometry(x, kernel, output, request.attributes)
    if geometry.is_product and _is_contiguous(request):
        return partial(np.matmul, _matrix(x), kernel[0, 0], _matrix(output))
    if target is None:
        return by_definition(request)
    return _correlate(request, target, geometry, [[line] for line in geometry.lines()], geometry.places())


@kernel_for("conv2d_input_gradient")
def _input_gradient(request: Request) -> Kernel:
    (g, kernel), output, target = request.inputs, request.output, target_for(request)
    geometry = _geometry(output, kernel, g, request.attributes)
    if geometry.is_product and _is_contiguous(request):
        return partial(np.matmul, _matrix(g), kernel[0, 0].T, _matrix(output))
    if target is None:
        return by_definition(request)
    lines, places = geometry.gradient_lines(), geometry.places()
    if geometry.is_depthwise:
        return _correlate(request, target, geometry, lines, places)
    swapped = places.swapaxes(3, 4)
    if _scattering_steps(geometry, target) < _correlating_steps(lines, swapped, target):
        return _scatter(request, target, geometry, swapped)
    return _correlate(request, target, geometry, lines, swapped)


def _correlations(lines: Sequence[Sequence[Line]], places: Array, target: Target) -> list[Correlation]:
    """All pairs of lines. Where there is one, pixels with few channels are taken together."""
    groups, *_, channels = places.shape
    count = together(lines[1][0], channels, target.width) if groups == len(lines[1]) == 1 else 1
    return [Correlation(down.widened(1), across.widened(count)) for down in lines[0] for across in lines[1]]


def _vectors(lanes: int, target: Target) -> int:
    return -(-lanes // target.width)


def _correlating_steps(lines: Sequence[Sequence[Line]], places: Array, target: Target) -> int:
    """How often a vector is multiplied and added for an image and a group."""
    *_, sources, channels = places.shape
    return sum(
        each.targets * each.tap_count * sources * _vectors(each.across.together * channels, target)
        for each in _correlations(lines, places, target)
    )


def _correlate(
    request: Request, target: Target, geometry: _Geometry, lines: Sequence[Sequence[Line]], places: Array
) -> Kernel:
    """The kernel whose every output adds up places of the source times elements of the kernel.

    Parameters
    ----------
    lines : down and across
    places : where in the kernel the elements are, (groups, height, width, channels of the source, of the output)
    """
    program, output, is_depthwise = Program(target, request), request.output, geometry.is_depthwise
    groups, *_, sources, channels = places.shape
    correlations = _correlations(lines, places, target) if not is_depthwise else [
        Correlation(down.widened(1), across.widened(1)) for down in lines[0] for across in lines[1]
    ]
    most_vectors = 1 if is_depthwise else MOST_VECTORS
    source, kernel = request.inputs
    kernel = program.contiguous(kernel)
    packed = [
        [Packed(program, kernel, each.weights(group), most_vectors) for group in places] for each in correlations
    ]
    rows, columns = (extent(axis, length) for axis, length in zip(lines, source.shape[1:3], strict=True))
    image_bytes = (rows[1] - rows[0]) * (columns[1] - columns[0]) * source.shape[3] * program.item
    most = min(BLOCK_BYTES // image_bytes, MOST_PIXELS // max(each.targets for each in correlations))
    parts = blocks(len(source), most)
    if is_depthwise:
        source = program.contiguous(source)
    needs_room = is_depthwise and channels % program.width != 0
    images = Source(program, source, parts[0].images, rows, columns, needs_room=needs_room)
    for block in parts:
        read, address = images.block(block), output[block.first :].ctypes.data
        for each, packed_groups in zip(correlations, packed, strict=True):
            steps = program.table(each.taps(sources, (rows[0], columns[0]), read.strides))
            row_table = program.table(each.pixels(block.images, read.strides, of_target=False))
            place_table = program.table(each.pixels(block.images, output.strides, of_target=True))
            for group, (panel, b) in (
                (group, panel) for group, all_panels in enumerate(packed_groups) for panel in all_panels.panels
            ):
                channel = panel.first if is_depthwise else group * sources
                program.multiply(
                    DEPTHWISE if is_depthwise else panel.vectors,
                    row_table,
                    steps,
                    place_table,
                    a=read.address + channel * program.item,
                    a_advance=read.advance,
                    b=b,
                    c=address + (group * channels + panel.first) * program.item,
                    c_advance=block.images * output.strides[0],
                    step_count=len(steps),
                    b_step=panel.vectors * program.width * program.item,
                    lanes=panel.used,
                )
        program.repeat(block.repeats)
    return program.kernel()


def _is_run(geometry: _Geometry, target: Target) -> bool:
    """Are a row of the kernel's places written at once, as if they were channels of one?

    They must lie side by side in the images. Those of neighbouring pixels overlap, so no tile may have two of these:
    there must be enough rows to fill it.
    """
    is_side_by_side = geometry.dilation[1] == 1 and geometry.groups == 1 and not any(geometry.padding[1])
    down, _ = geometry.lines()
    rows = min(len(down.within(element, geometry.image[1])) for element, _ in down.taps)
    return is_side_by_side and rows >= max(target.tiles.values())


def _taps(geometry: _Geometry, target: Target) -> list[tuple[int, slice]]:
    """The parts of the kernel whose places are written at once, (row, columns)."""
    height, width = geometry.kernel[:2]
    if _is_run(geometry, target):
        return [(row, slice(0, width)) for row in range(height)]
    return [(row, slice(column, column + 1)) for row, column in itertools.product(range(height), range(width))]


def _scattering_steps(geometry: _Geometry, target: Target) -> int:
    """How often a vector is multiplied and added for an image and a group, and what it takes to store the sums."""
    height, width, per_group, channels = geometry.kernel
    steps = channels // geometry.groups + STORING_STEPS
    down, across = geometry.lines()
    rows, columns = (
        sum(len(line.within(element, length)) for element, _ in line.taps)
        for line, length in zip((down, across), geometry.image[1:3], strict=True)
    )
    if _is_run(geometry, target):
        return rows * across.count * steps * _vectors(width * per_group, target)
    return rows * columns * steps * _vectors(per_group, target)


def _scatter(request: Request, target: Target, geometry: _Geometry, places: Array) -> Kernel:
    """The gradient in the images that adds what each pixel of the cotangent gives, element by element of the kernel.

    It multiplies nothing with the zeros around the cotangent, of which there are many where the kernel is large.
    """
    program, output = Program(target, request), request.output
    g, kernel = request.inputs
    kernel = program.contiguous(kernel)
    groups, _, _, sources, channels = places.shape
    taps = _taps(geometry, target)
    packed = [
        [
            Packed(program, kernel, group[row, columns].swapaxes(0, 1).reshape(sources, -1), MOST_VECTORS)
            for row, columns in taps
        ]
        for group in places
    ]
    down, across = geometry.lines()
    parts = blocks(len(g), BLOCK_BYTES // (output.strides[0] + g.strides[0]))
    images = Source(program, g, parts[0].images)
    program.do(partial(output.fill, 0))
    for block in parts:
        read, address = images.block(block), output[block.first :].ctypes.data
        steps = program.table(np.arange(sources) * read.strides[3])
        for number, (row, columns) in enumerate(taps):
            p, q = down.within(row, output.shape[1]), across.within(columns.start, output.shape[2])
            each = np.arange(block.images)[:, None]
            rows = each * read.strides[0] + p * read.strides[1]
            places_down = each * output.strides[0] + down.source(row, p) * output.strides[1]
            # Column by column, so that the runs of a tile are of different rows and do not overlap.
            row_table = program.table((q[:, None, None] * read.strides[2] + rows).reshape(-1))
            to = across.source(columns.start, q)[:, None, None] * output.strides[2] + places_down
            place_table = program.table(to.reshape(-1))
            if not len(row_table):
                continue
            for group in range(groups):
                for panel, b in packed[group][number].panels:
                    program.multiply(
                        panel.vectors,
                        row_table,
                        steps,
                        place_table,
                        a=read.address + group * sources * read.strides[3],
                        a_advance=read.advance,
                        b=b,
                        c=address + (group * channels + panel.first) * program.item,
                        c_advance=block.images * output.strides[0],
                        step_count=sources,
                        b_step=panel.vectors * program.width * program.item,
                        lanes=panel.used,
                        adds=1,
                    )
        program.repeat(block.repeats)
    return program.kernel()


@kernel_for("conv2d_kernel_gradient")
def _kernel_gradient(request: Request) -> Kernel:
    (x, g), output, target = request.inputs, request.output, target_for(request)
    geometry = _geometry(x, output, g, request.attributes)
    if geometry.is_product and _is_contiguous(request):
        return partial(np.matmul, _matrix(x).T, _matrix(g), _matrix(output))
    if target is None:
        return by_definition(request)
    program = Program(target, request)
    groups, *_, sources, channels = geometry.places().shape
    down, across = geometry.lines()
    is_depthwise = geometry.is_depthwise
    members = together(across, channels, program.width) if groups == 1 and not is_depthwise else 1
    each, lanes = Correlation(down.widened(1), across.widened(members)), members * channels
    is_whole = lanes % program.width == 0
    rows, columns = extent([down], x.shape[1]), extent([across], x.shape[2])
    near, most = _rows_at_a_time(each, (columns[1] - columns[0]) * x.shape[3] * program.item, g[0, 0].nbytes)
    parts = blocks(len(x), most)
    x, g = program.contiguous(x) if is_depthwise else x, program.contiguous(g)
    images = Source(program, x, parts[0].images, rows, columns, needs_room=is_depthwise and not is_whole)
    cotangents = Source(program, g, parts[0].images, needs_room=not is_whole)
    sums = output.reshape(-1, output.shape[3])[None]
    group_bytes = channels * program.item
    if not is_whole or members > 1:
        sums = program.scratch(groups, each.tap_count * sources, _vectors(lanes, target) * program.width)
        group_bytes = sums.strides[0]
    program.do(partial(sums.fill, 0))
    place_table = program.table(np.arange(sums.shape[1]) * sums.strides[1])
    most_vectors = 1 if is_depthwise else max(target.tiles)
    for block in parts:
        read, other = images.block(block), cotangents.block(block)
        row_table = program.table(each.taps(sources, (rows[0], columns[0]), read.strides))
        steps = program.table(each.pixels(block.images, read.strides, of_target=False))
        for row in range(0, down.count, near):
            share = min(near, down.count - row) / down.count
            for group, panel in itertools.product(range(groups), panels(lanes, program.width, most_vectors)):
                channel = panel.first if is_depthwise else group * sources
                program.multiply(
                    DEPTHWISE if is_depthwise else panel.vectors,
                    row_table,
                    steps,
                    place_table,
                    a=read.address + channel * program.item + row * down.source_step * read.strides[1],
                    a_advance=read.advance,
                    b=other.address + (group * channels + panel.first) * program.item + row * other.strides[1],
                    b_advance=other.advance,
                    c=sums.ctypes.data + group * group_bytes + panel.first * program.item,
                    step_count=round(len(steps) * share),
                    b_step=members * other.strides[2],
                    lanes=program.width,
                    adds=1,
                )
        program.repeat(block.repeats)
    if not is_whole or members > 1:
        program.do(partial(_fold, sums, each, channels, output))
    return program.kernel()


def _rows_at_a_time(each: Correlation, source_row_bytes: int, cotangent_row_bytes: int) -> tuple[int, int]:
    """How many rows of an image, and how many images, are used for all sums before the next ones."""
    near = NEAR_BYTES // (each.down.line.source_step * source_row_bytes + cotangent_row_bytes)
    near = max(near, -(-LEAST_STEPS // each.across.line.count), 1)
    return near, max(near // each.down.line.count, 1)


def _fold(sums: Array, each: Correlation, channels: int, output: Array) -> None:
    """Add up what the pixels that were taken together have found for the same element of the kernel."""
    height, width = output.shape[:2]
    groups, _, lanes = sums.shape
    parts = sums.reshape(groups, height, len(each.across.offsets), -1, lanes)
    total = output.reshape(height, width, -1, groups, channels).transpose(3, 0, 1, 2, 4)
    for member in range(each.across.together):
        places = [place for other, _, place in each.across.places if other == member]
        part = parts[:, :, places, :, member * channels : (member + 1) * channels]
        if member:
            np.add(total, part, total)
        else:
            np.copyto(total, part)
