"""Convolutions, and their gradients in the images, in which every output adds up what it needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from miai_graph.kernels.convolution.geometry import Geometry
from miai_graph.kernels.convolution.lines import Correlation, Line, together
from miai_graph.kernels.convolution.program import (
    BLOCK_BYTES,
    Block,
    Factors,
    Images,
    Program,
    Source,
    Table,
    blocks,
    factors,
    numbered,
    panels,
    shared_evenly,
)
from miai_graph.kernels.convolution.shapes import Shape, cycles, shape_for
from miai_graph.kernels.convolution.tiles import Target
from miai_graph.kernels.elementwise.kernels import copying
from miai_graph.kernels.epilogue import Ending, Kind, finished
from miai_graph.kernels.kernel import Kernel
from miai_graph.kernels.numpy_kernels import Request
from miai_graph.op import Array

NEAR_BYTES = 32 << 10
"""So much of the kernel is multiplied with all of a block before more of it: it stays in the nearest cache."""


class Part(NamedTuple):
    """Some taps across, and the panels of the kernel that they are multiplied with.

    Attributes
    ----------
    taps : where each is across
    factors : the panels of each group of channels; a step has the vectors of all these taps
    """

    taps: list[int]
    factors: list[list[Factors]]


class Chunk(NamedTuple):
    """What of the kernel is in use at a time: some of its rows, and some channels of the source."""

    rows: range
    first_source: int
    sources: int


class Lines(NamedTuple):
    """Lines of targets that meet the same taps down.

    Attributes
    ----------
    first : the first of them
    taps : which of the taps down
    rows, places : where the sources and the targets of these lines lie in all images of a block
    """

    first: int
    taps: range
    rows: Table
    places: Table


@dataclass(frozen=True)
class Work:
    """One correlation in one block of images."""

    block: Block
    read: Images
    correlation: Correlation
    shape: Shape
    lines: list[Lines]


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
        self._epilogue = request.epilogue
        self._ending = None if self._epilogue is None else self._epilogue.ending(self._output)
        self._operands: dict[tuple[int, int], int] = {}
        self._is_depthwise, self._places = geometry.is_depthwise, places
        self._source, self._kernel = request.inputs
        groups, *_, self._sources, self._channels = places.shape
        is_plain = groups == len(lines[1]) == 1 and not self._is_depthwise
        members = together(lines[1][0], self._channels, target.width) if is_plain else 1
        self._correlations = [
            Correlation(down.widened(1), across.widened(members)) for down in lines[0] for across in lines[1]
        ]

    @property
    def cycles(self) -> float:
        """About how long it takes for an image and a group."""
        height, width = self._source.shape[1:3]
        return sum(
            each.down.met(height)
            / max(len(each.down.offsets), 1)
            * cycles(self._program.target, self._shape(each), each.across, width, self._lanes(each), self._steps(each))
            for each in self._correlations
        )

    def kernel(self) -> Kernel:
        """What computes it."""
        program = self._program
        source, kernel = program.contiguous(self._source), program.contiguous(self._kernel)
        needs_room = self._is_depthwise and self._channels % program.width != 0
        shapes = [self._shape(each) for each in self._correlations]
        parts_of_all = [
            list(self._parts(each, shape, kernel)) for each, shape in zip(self._correlations, shapes, strict=True)
        ]
        most_images = max(BLOCK_BYTES, kernel.nbytes) // source[0].nbytes
        images_at_once = blocks(len(source), most_images)
        images = Source(program, source, images_at_once[0].images, needs_room=needs_room)
        for block in images_at_once:
            read = images.block(block)
            for each, shape, parts in zip(self._correlations, shapes, parts_of_all, strict=True):
                self._multiply(Work(block, read, each, shape, list(self._lines(block, read, each))), parts)
            program.repeat(block.repeats)
        rest = self._epilogue if self._ending is None else None
        return finished(program.kernel(), rest, self._output, program.request.scratch)

    def _lanes(self, each: Correlation) -> int:
        """The numbers of a group of targets."""
        return each.across.together * self._channels

    def _steps(self, each: Correlation) -> int:
        """Of a sum, where each step has all taps across."""
        return len(each.down.offsets) * self._sources

    def _shape(self, each: Correlation) -> Shape:
        target, width = self._program.target, self._source.shape[2]
        lanes, steps = self._lanes(each), self._steps(each)
        return shape_for(target, each.across, width, lanes, steps, is_depthwise=self._is_depthwise)

    def _parts(self, each: Correlation, shape: Shape, kernel: Array) -> Iterator[Part]:
        """Each with the panels of the kernel, laid out step by step."""
        if each.is_empty:
            found = [Factors(panel, 0, 0) for panel in panels(self._lanes(each), self._program.width, shape.vectors)]
            yield Part([], [found] * len(self._places))
            return
        weights, first = [each.weights(places).swapaxes(1, 2) for places in self._places], 0
        for taps in shape.parts(each.across):
            index = [one[:, :, first : first + len(taps)] for one in weights]
            yield Part(taps, [factors(self._program, kernel, one, shape.vectors) for one in index])
            first += len(taps)

    def _lines(self, block: Block, read: Images, each: Correlation) -> Iterator[Lines]:
        down, images = each.down.line, np.arange(block.images)[:, None]
        to_source = down.source_step * read.strides[1]
        to_target = down.step * self._output.strides[1]
        for first, count, taps in down.met_together(self._source.shape[1]):
            rows = images * read.strides[0] + np.arange(count) * to_source
            places = images * self._output.strides[0] + np.arange(count) * to_target
            yield Lines(first, taps, self._program.table(rows.reshape(-1)), self._program.table(places.reshape(-1)))

    def _multiply(self, work: Work, parts: Sequence[Part]) -> None:
        """The first products set the outputs, the others add to them."""
        for number, part in enumerate(parts):
            for group, found in numbered(part.factors):
                chunks = list(self._chunks(len(work.correlation.down.offsets), found.step))
                for place, chunk in enumerate(chunks):
                    adds = number + place > 0
                    later = [*chunks[place + 1 :], *(chunks if number < len(parts) - 1 else [])]
                    for lines in work.lines:
                        is_complete = not any(tap in rest.rows for rest in later for tap in lines.taps)
                        ending = self._ending if is_complete else None
                        self._multiply_lines(work, lines, part, group, found, chunk, ending, adds=adds)

    def _chunks(self, rows: int, step_bytes: int) -> Iterator[Chunk]:
        """The kernel in as few chunks as there must be; one if there is nothing of it."""
        sources_at_once = min(max(NEAR_BYTES // max(step_bytes, 1), 1), self._sources)
        rows_at_once = max(NEAR_BYTES // max(self._sources * step_bytes, 1), 1)
        for first_source, sources in _shares(self._sources, sources_at_once):
            for first_row, count in _shares(max(rows, 1), rows_at_once):
                yield Chunk(range(first_row, first_row + count), first_source, sources)

    def _multiply_lines(
        self,
        work: Work,
        lines: Lines,
        part: Part,
        group: int,
        found: Factors,
        chunk: Chunk,
        ending: Ending | None,
        *,
        adds: bool,
    ) -> None:
        """The products of some lines with a chunk of a panel, tile by tile."""
        program, output, read = self._program, self._output, work.read
        down, across, panel = work.correlation.down, work.correlation.across, found.panel
        taps = [tap for tap in lines.taps if tap in chunk.rows] if part.taps else []
        if adds and not taps:
            return
        a_runs = program.table(np.array([down.offsets[tap] for tap in taps], np.int64) * read.strides[1])
        b_runs = program.table(np.array(taps, np.int64) * (self._sources * found.step))
        channel = (panel.first if self._is_depthwise else group * self._sources) + chunk.first_source
        source = read.address + channel * read.strides[3] + down.sources()[lines.first] * read.strides[1]
        target = output[work.block.first :].ctypes.data + down.targets()[lines.first] * output.strides[1]
        target += (group * self._channels + panel.first) * program.item
        operands = 0 if ending is None else self._operands_at(across.together, group * self._channels + panel.first)
        for first in range(0, across.line.count, work.shape.pixels):
            tile = work.shape.tile(across, self._source.shape[2], first, part.taps, panel.vectors, read.strides[2])
            program.multiply(
                replace(
                    tile,
                    lanes=panel.used,
                    is_depthwise=self._is_depthwise,
                    has_single_steps=chunk.sources == 1,
                    ending=ending,
                ),
                lines.rows,
                lines.places,
                a_runs,
                b_runs,
                run_steps=chunk.sources,
                a=source + across.sources()[first] * read.strides[2],
                a_advance=read.advance,
                a_step=read.strides[3],
                b=found.address + chunk.first_source * found.step,
                b_step=found.step,
                c=target + across.targets()[first] * output.strides[2],
                c_advance=work.block.images * output.strides[0],
                c_step=across.step * output.strides[2],
                operands=operands,
                adds=adds,
            )

    def _operands_at(self, together: int, first: int) -> int:
        """Where the addresses of the ending's operands are, from one of the numbers of a group of targets on."""
        program, epilogue, ending = self._program, self._epilogue, self._ending
        assert epilogue is not None
        assert ending is not None
        if (together, first) not in self._operands:
            addresses = []
            for operand, kind in zip(epilogue.operands, ending.kinds, strict=True):
                row = operand[0, 0, 0]
                if kind is Kind.ROW and together > 1:
                    row = program.scratch(together, self._channels)
                    program.do(copying(row, operand[0, 0, 0]))
                addresses.append(program.keep(row) + (first * program.item if kind is Kind.ROW else 0))
            self._operands[together, first] = program.keep(np.array(addresses, np.int64))
        return self._operands[together, first]


def _shares(count: int, most: int) -> Iterator[tuple[int, int]]:
    """The first and the number of each share, of which none has more than `most`."""
    at_once = shared_evenly(count, most)
    for first in range(0, count, at_once):
        yield first, min(at_once, count - first)
