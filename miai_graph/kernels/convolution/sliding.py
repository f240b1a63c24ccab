"""LLVM code for gradients in kernels, in which each number of the images is multiplied for all taps at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from miai_graph.kernels.convolution.tiles import Target, TileWriter


@dataclass(frozen=True)
class SlidingTile:
    """Some channels of the images, by all taps across and vectors of the cotangents.

    A run is a line of the images, or of the cotangents, and its steps are their pixels. In each step a tap multiplies
    what lies so far from where the step begins. At the ends of the line some taps would lie beyond: they are left out.

    Attributes
    ----------
    channels : how many there are, side by side
    vectors : of each cotangent
    image_taps, cotangent_taps : the bytes from where a step begins to what each tap multiplies
    tap_channels : how many channels the images have: C's rows for a tap
    left, right : the taps of the first and of the last steps, those that do not have all taps, from left to right
    """

    channels: int
    vectors: int
    image_taps: tuple[int, ...]
    cotangent_taps: tuple[int, ...]
    tap_channels: int
    left: tuple[range, ...]
    right: tuple[range, ...]

    @property
    def lines(self) -> int:
        """Of A: all channels are those of one."""
        return 1

    def writer(self, target: Target) -> TileWriter:
        """What writes its code. `run_steps` are those with all taps."""
        return _SlidingWriter(target, self)


class _SlidingWriter(TileWriter):
    def __init__(self, target: Target, tile: SlidingTile) -> None:
        super().__init__(target, tile.lines, tile.vectors)
        self._tile = tile

    def places(self, line: str) -> list[str]:
        code, tile = self.code, self._tile
        taps = range(len(tile.image_taps))
        rows = [tap * tile.tap_channels + channel for tap in taps for channel in range(tile.channels)]
        pointers = [code.at(line, code.times("%c_step", row)) for row in rows]
        return [place for pointer in pointers for place in code.vectors_at(pointer, tile.vectors)]

    def add_run(self, lines: Sequence[str], vectors: str, sums: Sequence[str]) -> list[str]:
        code, tile = self.code, self._tile
        (line,) = lines
        for number, taps in enumerate(tile.left):
            sums = self._add_products(line, vectors, str(number), taps, sums)
        first, stop = len(tile.left), code.add("%run_steps", len(tile.left))
        with code.carrying_loop(first, stop, 1, sums) as (step, carried, following):
            following += self._add_products(line, vectors, step, range(len(tile.image_taps)), carried)
        sums = carried
        for number, taps in enumerate(tile.right):
            sums = self._add_products(line, vectors, code.add(stop, number), taps, sums)
        return list(sums)

    def _add_products(self, line: str, vectors: str, step: str, taps: range, sums: Sequence[str]) -> list[str]:
        code, tile, result = self.code, self._tile, list(sums)
        pixel, cotangent = code.at(line, code.times(step, "%a_step")), code.at(vectors, code.times(step, "%b_step"))
        held = {
            place: [code.load(each) for each in code.vectors_at(code.at(cotangent, place), tile.vectors)]
            for place in {tile.cotangent_taps[tap]: None for tap in taps}
        }
        for channel in range(tile.channels):
            factors = {
                place: code.broadcast(code.at(pixel, place + channel * code.number_bytes))
                for place in {tile.image_taps[tap]: None for tap in taps}
            }
            for tap in taps:
                factor = factors[tile.image_taps[tap]]
                for number, vector in enumerate(held[tile.cotangent_taps[tap]]):
                    goal = (tap * tile.channels + channel) * tile.vectors + number
                    result[goal] = code.multiply_add(factor, vector, result[goal])
        return result
