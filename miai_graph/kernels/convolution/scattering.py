"""Gradients of convolutions in the images, in which every pixel of the cotangent adds what it gives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from miai_graph.kernels.convolution.geometry import Geometry
from miai_graph.kernels.convolution.program import (
    BLOCK_BYTES,
    Block,
    Factors,
    Images,
    Program,
    Source,
    blocks,
    factors,
    numbered,
    panels,
)
from miai_graph.kernels.convolution.tiles import Target, Tile
from miai_graph.kernels.elementwise.kernels import filling
from miai_graph.kernels.kernel import Kernel
from miai_graph.kernels.numpy_kernels import Request
from miai_graph.op import Array

STORING_STEPS = 6
"""How many steps take as long as to load and store a tile."""

CYCLES_OF_PRODUCT = 0.55
"""How long a vector takes to be multiplied and added."""


class Scattering:
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
        return is_side_by_side and fewest >= max(self._program.target.most_lines.values())

    @property
    def cycles(self) -> float:
        """About how long it takes for an image and a group."""
        program, lanes = self._program, self._channels * (self._geometry.kernel[1] if self._is_run else 1)
        pixels = sum(len(rows) * len(columns) for _, _, rows, columns in self._taps)
        return sum(
            pixels * (self._sources + STORING_STEPS) * panel.vectors * CYCLES_OF_PRODUCT
            for panel in panels(lanes, program.width, max(program.target.most_lines))
        )

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
        return factors(self._program, kernel, index[:, None], max(self._program.target.most_lines))

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
                Tile(program.target.most_lines[panel.vectors], vectors=panel.vectors, lanes=panel.used),
                source_rows,
                places,
                runs,
                runs,
                run_steps=self._sources,
                a_step=read.strides[3],
                a=read.address + group * self._sources * read.strides[3],
                a_advance=read.advance,
                b=address,
                b_step=step,
                c=output[block.first :].ctypes.data + (group * self._channels + panel.first) * program.item,
                c_advance=block.images * output.strides[0],
                adds=1,
            )


def _column_by_column(images: int, rows: Array, columns: Array, strides: Sequence[int]) -> Array:
    """Where these pixels lie, so that neighbours in the table are of different rows."""
    image, row, column, _ = strides
    places = np.arange(images)[:, None] * image + rows * row
    return (columns[:, None, None] * column + places).reshape(-1)
