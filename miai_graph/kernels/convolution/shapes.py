"""Which tiles a line of a convolution is computed in: those that are estimated to take the fewest cycles."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from miai_graph.kernels.convolution.lines import WideLine
from miai_graph.kernels.convolution.program import panels, shared_evenly
from miai_graph.kernels.convolution.tiles import Target, Tile

MOST_PIXELS, MOST_LINES, MOST_VECTORS = 16, 4, 4
"""What a tile has at most: more would make the code large, or need more addresses than fit into registers."""

LATENCY_CYCLES = 4
"""After so many cycles a sum can be added to again."""

CYCLES_OF_SUM = 2
"""How long it takes to load a sum before the steps, and to store it after them."""

CYCLES_OF_LOAD, DELAY_OF_LOAD = 0.6, 0.1
"""How long a load takes, and by how much it delays multiplications beside it."""


@dataclass(frozen=True)
class Shape:
    """Of the tiles of a line.

    Attributes
    ----------
    taps : how many are multiplied at a time
    vectors : of outputs
    pixels : at most so many
    lines : how many lines a tile has
    """

    taps: int
    vectors: int
    pixels: int
    lines: int

    def parts(self, across: WideLine) -> list[list[int]]:
        """All taps, in as few parts as there must be."""
        offsets = across.offsets
        return [offsets[start : start + self.taps] for start in range(0, len(offsets), self.taps)]

    def tile(
        self, across: WideLine, width: int, first: int, part: Sequence[int], vectors: int, pixel_bytes: int = 1
    ) -> Tile:
        """That which begins with this target of a line, in a source of this width."""
        pixels, step = min(self.pixels, across.line.count - first), across.source_step
        least, beyond = min(part, default=0), max(part, default=0) + step * (pixels - 1) + 1
        start, end = max(-step * first, least), min(width - step * first, beyond)
        return Tile(
            lines=self.lines,
            pixels=pixels,
            vectors=vectors,
            pixel_bytes=step * pixel_bytes,
            taps=tuple(tap * pixel_bytes for tap in part),
            first=start * pixel_bytes,
            end=max(end, start) * pixel_bytes,
        )


@functools.cache
def shape_for(
    target: Target, across: WideLine, width: int, lanes: int, steps: int, *, is_depthwise: bool = False
) -> Shape:
    """The best for lines of a source of this width, so many numbers of each output, and so many steps of their sums."""
    vectors = 1 if is_depthwise else min(-(-lanes // target.width), MOST_VECTORS)
    shapes = _shapes(target, across, vectors)
    return min(shapes, key=lambda shape: cycles(target, shape, across, width, lanes, steps))


def _shapes(target: Target, across: WideLine, most_vectors: int) -> Iterator[Shape]:
    """Those whose numbers fit into registers."""
    taps = max(len(across.offsets), 1)
    for at_once in sorted({shared_evenly(taps, most) for most in range(1, taps + 1)}):
        for vectors in range(1, most_vectors + 1):
            fitting = (target.registers - 1) // vectors - at_once
            if fitting > 0:
                pixels = shared_evenly(across.line.count, min(fitting, MOST_PIXELS))
                yield Shape(at_once, vectors, pixels, min(fitting // pixels, MOST_LINES))


@functools.cache
def cycles(target: Target, shape: Shape, across: WideLine, width: int, lanes: int, steps: int) -> float:
    """About how long so many steps take, each of all taps, of all outputs of a line."""
    tiles = (
        shape.tile(across, width, first, part, panel.vectors)
        for panel in panels(lanes, target.width, shape.vectors)
        for part in shape.parts(across)
        for first in range(0, across.line.count, shape.pixels)
    )
    return sum(_cycles_of_tile(tile, steps) for tile in tiles) / shape.lines


def _cycles_of_tile(tile: Tile, steps: int) -> float:
    sources = tile.sources().values()
    met = Counter(pixel for pairs in sources for pixel, _ in pairs)
    products = met.total() * tile.lines * tile.vectors
    loads = len(sources) * tile.lines + len(tile.taps) * tile.vectors
    most = max(met.values(), default=0)
    of_step = max(products / 2, loads * CYCLES_OF_LOAD, most * LATENCY_CYCLES) + loads * DELAY_OF_LOAD
    return steps * of_step + tile.lines * tile.pixels * tile.vectors * CYCLES_OF_SUM
