"""Where the numbers lie that a convolution multiplies, axis by axis, as tables for native code.

A convolution and its gradient in the images are both correlations: each target adds up places of a source, times
elements of the kernel. The gradient of a convolution with strides is several of them, each for the targets that meet
the same elements of the kernel, so that nothing is multiplied with the zeros between.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from miai_graph.op import Array


@dataclass(frozen=True)
class Line:
    """One axis: target[start + step · t] = Σ source[source_step · t + offset] · kernel[element], for t < count.

    Attributes
    ----------
    taps : the pairs (element, offset)
    """

    start: int
    step: int
    count: int
    source_step: int
    taps: tuple[tuple[int, int], ...]

    @property
    def offsets(self) -> list[int]:
        """Those of all taps, in ascending order."""
        return sorted({offset for _, offset in self.taps})

    def source(self, element: int, targets: Array) -> Array:
        """The places of the source that these targets have multiplied with an element of the kernel."""
        return self.source_step * targets + dict(self.taps)[element]

    def within(self, element: int, length: int) -> Array:
        """The targets for which that lies in a source of this length."""
        targets = np.arange(self.count)
        places = self.source(element, targets)
        return targets[(places >= 0) & (places < length)]

    def met_together(self, length: int) -> Iterator[tuple[int, int, range]]:
        """The targets in a row that meet the same places of a source of this length.

        Gives the first target, how many they are, and which of `offsets` lie in the source.
        """
        offsets = np.array(self.offsets, np.int64)
        places = self.source_step * np.arange(self.count)[:, None] + offsets
        bounds = np.stack([(places < 0).sum(1), (places < length).sum(1)], 1)
        starts = np.flatnonzero(np.diff(bounds, axis=0, prepend=-1).any(1)).tolist()
        for start, end in itertools.pairwise([*starts, self.count]):
            yield start, end - start, range(*bounds[start].tolist())

    def widened(self, count: int) -> WideLine:
        """As many neighbouring targets are taken together; the count of targets must be a multiple of that."""
        return WideLine(replace(self, count=self.count // count), count)


@dataclass(frozen=True)
class WideLine:
    """A line whose targets are taken together, several at a time, as if they were channels of one.

    Attributes
    ----------
    line : with the count of such groups of targets
    together : how many targets are in each
    """

    line: Line
    together: int

    @property
    def offsets(self) -> list[int]:
        """Those that any of a group's targets needs."""
        step = self.line.source_step
        return sorted({offset + step * member for offset in self.line.offsets for member in range(self.together)})

    @property
    def places(self) -> list[tuple[int, int, int]]:
        """(member of the group, element of the kernel, which of `offsets`), wherever the three belong together."""
        step, where = self.line.source_step, {offset: place for place, offset in enumerate(self.offsets)}
        return [
            (member, element, where[offset + step * member])
            for member in range(self.together)
            for element, offset in self.line.taps
        ]

    def met(self, length: int) -> int:
        """How many places of a source of this length all groups of targets meet."""
        places = self.sources()[:, None] + np.array(self.offsets, np.int64)
        return int(((places >= 0) & (places < length)).sum())

    @property
    def source_step(self) -> int:
        """From a group's source to the next one's."""
        return self.line.source_step * self.together

    @property
    def step(self) -> int:
        """From a group's targets to the next one's."""
        return self.line.step * self.together

    def sources(self) -> Array:
        """Where each group's source begins."""
        return np.arange(self.line.count) * self.source_step

    def targets(self) -> Array:
        """Where each group's targets begin."""
        return self.line.start + np.arange(self.line.count) * self.step


def convolution_line(count: int, size: int, stride: int, before: int, rate: int) -> Line:
    """The line of a convolution with `count` outputs and `before` zeros in front."""
    return Line(0, 1, count, stride, tuple((element, rate * element - before) for element in range(size)))


def gradient_lines(length: int, size: int, stride: int, before: int, rate: int) -> list[Line]:
    """The lines of a convolution's gradient in its images, of this length: one for each remainder by the stride."""
    lines = []
    for start in range(min(stride, length)):
        reach = start + before
        met = [element for element in range(size) if (reach - rate * element) % stride == 0]
        taps = tuple((element, (reach - rate * element) // stride) for element in met)
        lines.append(Line(start, stride, -(-(length - start) // stride), 1, taps))
    return lines


def extent(lines: Sequence[Line], length: int) -> tuple[int, int]:
    """From where to where a source of this length is needed, with all of itself."""
    ends = [(line.offsets[0], line.offsets[-1] + line.source_step * (line.count - 1)) for line in lines if line.taps]
    return min([0, *(first for first, _ in ends)]), max([length, *(last + 1 for _, last in ends)])


def together(line: Line, channels: int, width: int) -> int:
    """How many neighbouring targets fill vectors best, where each has few channels.

    More of them fill the lanes, but need more of the source, most of it times zero.
    """
    if line.step != 1 or not line.taps:
        return 1

    def use(count: int) -> float:
        lanes = count * channels
        return lanes / (-(-lanes // width) * width) * len(line.offsets) / len(line.widened(count).offsets)

    counts = [count for count in range(1, max(2 * width // channels, 1) + 1) if line.count % count == 0]
    return max(counts, key=use)


@dataclass(frozen=True)
class Correlation:
    """Two lines."""

    down: WideLine
    across: WideLine

    @property
    def is_empty(self) -> bool:
        """Do its targets add up nothing?"""
        return not (self.down.line.taps and self.across.line.taps)

    @property
    def targets(self) -> int:
        """How many groups of targets an image has."""
        return self.down.line.count * self.across.line.count

    @property
    def tap_count(self) -> int:
        """How many places of the source are multiplied for a group of targets, if it has one channel."""
        return len(self.down.offsets) * len(self.across.offsets)

    def pixels(self, images: int, strides: Sequence[int], *, of_target: bool) -> Array:
        """Where each group of targets lies, or the source that it needs; strides are those of an image batch."""
        lines = (self.down, self.across)
        down, across = (line.targets() if of_target else line.sources() for line in lines)
        image, row, column, _ = strides
        places = np.arange(images)[:, None, None] * image + down[:, None] * row + across * column
        return places.reshape(-1)

    def taps(self, channels: int, origin: tuple[int, int], strides: Sequence[int]) -> Array:
        """Where, from a pixel of the source that begins at `origin`, all lies that is multiplied."""
        down, across = (np.asarray(line.offsets, np.int64) for line in (self.down, self.across))
        _, row, column, channel = strides
        places = (down[:, None] - origin[0]) * row + (across - origin[1]) * column
        return (places[:, :, None] + np.arange(channels) * channel).reshape(-1)

    def weights(self, kernel: Array) -> Array:
        """What each tap is multiplied with, for each target of a group: -1 for nothing.

        Parameters
        ----------
        kernel : (height, width, channels of the source, channels of the target)

        Returns
        -------
        (taps down, taps across, channels of the source, targets of a group and their channels)
        """
        *_, sources, targets = kernel.shape
        shape = (len(self.down.offsets), len(self.across.offsets), sources, self.across.together, targets)
        result = np.full(shape, -1, np.int32)
        for _, row, down in self.down.places:
            for member, column, across in self.across.places:
                result[down, across, :, member] = kernel[row, column]
        return result.reshape(*shape[:3], math.prod(shape[3:]))
