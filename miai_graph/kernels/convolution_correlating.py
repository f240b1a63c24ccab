"""Convolutions, and their gradients in the images, in which every output adds up what it needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from miai_graph.kernels.convolution_geometry import Geometry
from miai_graph.kernels.convolution_lines import Correlation, Line, together
from miai_graph.kernels.convolution_program import (
    BLOCK_BYTES,
    Block,
    Factors,
    Images,
    Program,
    Source,
    blocks,
    factors,
    panels,
    shared_evenly,
)
from miai_graph.kernels.convolution_shapes import Shape, shape_for
from miai_graph.kernels.convolution_tiles import Target
from miai_graph.kernels.kernel import Kernel
from miai_graph.kernels.numpy_kernels import Request
from miai_graph.op import Array

NEAR_BYTES = 24 << 10
"""So much of the kernel is multiplied with all of a block before more of it: it stays in the nearest cache."""

@dataclass(frozen=True)
class Part:
    """Some taps across, and the panels of the kernel that they are multiplied with.

    Attributes
    ----------
    taps : where each is across
    factors : the panels of each group of channels; a step has the vectors of all these taps
    """

    taps: list[int]
    factors: list[list[Factors]]


class Correlating:
    """Every output adds up places of the source, times elements of the kernel.

    Parameters
    ----------
    lines : those down and those across: each pair of them is a correlation
    places : where in the kernel the elements are, (groups, height, width, channels of the source, of the output)
    """

    def __init__(
        self,
        request: Request,
        target: Target,
        geometry: Geometry,
        lines: tuple[Sequence[Line], Sequence[Line]],
        places: Array,
    ) -> None:
        self._program, self._output = Program(target, request), request.output
        self._is_depthwise, self._places = geometry.is_depthwise, places
        self._source, self._kernel = request.inputs
        groups, *_, self._sources, self._channels = places.shape
        is_plain = groups == len(lines[1]) == 1 and not self._is_depthwise
        members = together(lines[1][0], self._channels, target.width) if is_plain else 1
        self._correlations = [
            Correlation(down.widened(1), across.widened(members)) for down in lines[0] for across in lines[1]
        ]

    @property
    def steps(self) -> int:
        """How often a vector is multiplied and added for an image and a group."""
        height, width = self._source.shape[1:3]
        return sum(
            each.down.met(height)
            * each.across.met(width)
            * self._sources
            * self._program.vectors(each.across.together * self._channels)
            for each in self._correlations
        )

    def kernel(self) -> Kernel:
        """What computes it."""
        program = self._program
        source, kernel = program.contiguous(self._source), program.contiguous(self._kernel)
        needs_room = self._is_depthwise and self._channels % program.width != 0
        parts_of_all = [list(self._parts(each, kernel)) for each in self._correlations]
        most_images = max(BLOCK_BYTES, kernel.nbytes) // source[0].nbytes
        block_parts = blocks(len(source), most_images)
        images = Source(program, source, block_parts[0].images, needs_room=needs_room)
        for block in block_parts:
            read = images.block(block)
            for each, parts in zip(self._correlations, parts_of_all, strict=True):
                self._multiply(block, read, each, parts)
            program.repeat(block.repeats)
        return program.kernel()

    def _shape(self, each: Correlation) -> Shape:
        lanes, width = each.across.together * self._channels, self._source.shape[2]
        most = {"most_vectors": 1} if self._is_depthwise else {}
        return shape_for(self._program.target, each.across, width, lanes, **most)

    def _parts(self, each: Correlation, kernel: Array) -> Iterator[Part]:
        """Each with the panels of the kernel, laid out step by step."""
        shape, first = self._shape(each), 0
        if each.is_empty:
            lanes = each.across.together * self._channels
            found = [Factors(panel, 0, 0) for panel in panels(lanes, self._program.width, shape.vectors)]
            yield Part([], [found] * len(self._places))
            return
        for taps in shape.parts(each.across):
            index = [each.weights(places)[:, first : first + len(taps)] for places in self._places]
            yield Part(taps, [factors(self._program, kernel, one.swapaxes(1, 2), shape.vectors) for one in index])
            first += len(taps)

    def _multiply(self, block: Block, read: Images, each: Correlation, parts: Sequence[Part]) -> None:
        """The products of one correlation: the first ones set the outputs, the others add to them."""
        for number, part in enumerate(parts):
            for group, panels_of_group in enumerate(part.factors):
                for found in panels_of_group:
                    self._multiply_panel(block, read, each, part, group, found, is_first=number == 0)

    def _multiply_panel(
        self, block: Block, read: Images, each: Correlation, part: Part, group: int, found: Factors, *, is_first: bool
    ) -> None:
        program, output = self._program, self._output
        down, across, panel = each.down, each.across, found.panel
        shape, item = self._shape(each), program.item
        channel = panel.first if self._is_depthwise else group * self._sources
        first_output = output[block.first :].ctypes.data + (group * self._channels + panel.first) * item
        _, height, width, _ = self._source.shape
        rows_at_once, sources_at_once = self._at_once(len(down.offsets), found.step)
        pixels = shape.pixels
        for first_source in range(0, max(self._sources, 1), sources_at_once):
            sources = min(sources_at_once, self._sources - first_source)
            for first_row in range(0, max(len(down.offsets), 1), rows_at_once):
                adds = not (is_first and first_source == first_row == 0)
                for start, count, taps in down.line.met_together(height):
                    met = range(max(taps.start, first_row), min(taps.stop, first_row + rows_at_once) if part.taps else 0)
                    if adds and not met:
                        continue
                    lines = np.arange(count)
                    images = np.arange(block.images)[:, None]
                    rows = images * read.strides[0] + lines * (down.line.source_step * read.strides[1])
                    places = images * output.strides[0] + lines * (down.line.step * output.strides[1])
                    a_runs = program.table(np.array([down.offsets[tap] * read.strides[1] for tap in met], np.int64))
                    b_runs = program.table(np.array(met, np.int64) * (self._sources * found.step))
                    rows, places = program.table(rows.reshape(-1)), program.table(places.reshape(-1))
                    for x in range(0, across.line.count, pixels):
                        tile = shape.tile(across, width, x, part.taps, panel.vectors, read.strides[2])
                        tile = replace(tile, is_depthwise=self._is_depthwise)
                        column = across.line.source_step * across.together * x
                        to_column = across.line.start + across.line.step * across.together * x
                        program.multiply(
                            tile,
                            rows,
                            places,
                            a_runs,
                            b_runs,
                            run_steps=sources,
                            a=read.address
                            + (channel + first_source) * read.strides[3]
                            + start * down.line.source_step * read.strides[1]
                            + column * read.strides[2],
                            a_advance=read.advance,
                            a_step=read.strides[3],
                            b=found.address + first_source * found.step,
                            b_step=found.step,
                            c=first_output
                            + (down.line.start + start * down.line.step) * output.strides[1]
                            + to_column * output.strides[2],
                            c_advance=block.images * output.strides[0],
                            c_step=across.line.step * across.together * output.strides[2],
                            lanes=panel.used,
                            adds=adds,
                        )

    def _at_once(self, rows: int, step_bytes: int) -> tuple[int, int]:
        """How many rows of the kernel, and how many channels, are in use at a time."""
        row_bytes = self._sources * step_bytes
        if row_bytes > NEAR_BYTES:
            return 1, shared_evenly(self._sources, max(NEAR_BYTES // step_bytes, 1))
        return max(shared_evenly(rows, NEAR_BYTES // max(row_bytes,1)),1) if rows else 1, max(self._sources, 1)
