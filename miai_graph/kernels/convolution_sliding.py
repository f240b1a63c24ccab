"""LLVM code for gradients in kernels, in which each number of the images is multiplied for all taps at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from miai_graph.kernels.convolution_tiles import Target, TileWriter


@dataclass(frozen=True)
class SlidingTile:
    """Some channels of the images, by all taps across and vectors of the cotangents.

    A run is a line of the images. A pixel of it and tap t meet the cotangents of the pixel that lies t further left
    than that which tap 0 meets; where there is none at an end of the line, the tap is left out.

    Attributes
    ----------
    channels : how many there are, side by side
    taps : how many there are
    vectors : of each cotangent
    cotangent_bytes : from a pixel's cotangents to those of the next one
    tap_channels : how many channels the images have: C's rows for a tap
    left, right : the taps of the first and of the last pixels, those that do not meet all taps, from left to right
    """

    channels: int
    taps: int
    vectors: int
    cotangent_bytes: int
    tap_channels: int
    left: tuple[range, ...]
    right: tuple[range, ...]

    @property
    def lines(self) -> int:
        """Of A: all channels are those of one."""
        return 1

    def writer(self, target: Target) -> TileWriter:
        """What writes its code. `run_steps` are the pixels that meet all taps."""
        return _SlidingWriter(target, self)


class _SlidingWriter(TileWriter):
    def __init__(self, target: Target, tile: SlidingTile) -> None:
        super().__init__(target, tile.lines, tile.vectors)
        self._tile = tile

    def places(self, line: str) -> list[str]:
        code, tile = self.code, self._tile
        rows = [tap * tile.tap_channels + channel for tap in range(tile.taps) for channel in range(tile.channels)]
        pointers = [code.at(line, code.times("%c_step", row)) for row in rows]
        return [place for pointer in pointers for place in code.vectors_at(pointer, tile.vectors)]

    def add_run(self, lines: Sequence[str], vectors: str, sums: Sequence[str]) -> list[str]:
        code, tile, result = self.code, self._tile, list(sums)
        (line,) = lines
        every = range(tile.taps)
        for taps in tile.left:
            result = self._add_products(line, vectors, taps, result)
            line, vectors = code.at(line, "%a_step"), code.at(vectors, tile.cotangent_bytes)
        with code.carrying_loop(0, "%run_steps", 1, result) as (step, carried, following):
            pixel = code.at(line, code.times(step, "%a_step"))
            cotangents = code.at(vectors, code.times(step, tile.cotangent_bytes))
            following += self._add_products(pixel, cotangents, every, carried)
        result = carried
        line = code.at(line, code.times("%run_steps", "%a_step"))
        vectors = code.at(vectors, code.times("%run_steps", tile.cotangent_bytes))
        for taps in tile.right:
            result = self._add_products(line, vectors, taps, result)
            line, vectors = code.at(line, "%a_step"), code.at(vectors, tile.cotangent_bytes)
        return result

    def _add_products(self, pixel: str, cotangents: str, taps: range, sums: Sequence[str]) -> list[str]:
        code, tile, result = self.code, self._tile, list(sums)
        held = {
            tap: [
                code.load(place)
                for place in code.vectors_at(code.at(cotangents, -tap * tile.cotangent_bytes), tile.vectors)
            ]
            for tap in taps
        }
        for channel in range(tile.channels):
            factor = code.broadcast(code.at(pixel, channel * code.number_bytes))
            for tap, own in held.items():
                for number, vector in enumerate(own):
                    goal = (tap * tile.channels + channel) * tile.vectors + number
                    result[goal] = code.multiply_add(factor, vector, result[goal])
        return result
