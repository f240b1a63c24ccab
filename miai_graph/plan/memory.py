"""Blocks of memory, and where in a block each buffer goes, so that those alive at the same time do not overlap.

Buffers are placed in the order in which they come alive, each into the smallest gap that it fits in (best fit); a gap
left by a dead buffer joins its neighbours. Where that takes more than is alive at any time, the largest buffers are
placed first, and what is shortest is taken.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import accumulate
from operator import itemgetter
from typing import Any

import numpy as np

from miai_graph.op import Array
from miai_graph.state import ALIGNMENT_BYTES, aligned_bytes

LARGE_BUFFERS = (16, 256)
"""How many buffers are placed by size, in tries to do better than in order. Their number limits what a try takes."""


SMALL_SHARE = 64
"""Buffers are small that take less than such a share of the largest one, if together they take less than such a share
of all."""

NO_BYTES = np.empty(0, np.uint8)


class Workspace:
    """Memory that plans of one executable share, for only one of them runs at a time."""

    def __init__(self) -> None:
        self._blocks: dict[str, Array] = {}

    def block(self, purpose: str, size_bytes: int) -> Array:
        """At least the largest number of bytes asked for so far; earlier, smaller blocks stay valid."""
        block = self._blocks.get(purpose)
        if block is None or block.size < size_bytes:
            block = self._blocks[purpose] = aligned_bytes(size_bytes)
        return block

    @property
    def size_bytes(self) -> int:
        """All that is asked for so far."""
        return sum(block.size for block in self._blocks.values())


class Scratch:
    """Memory for one kernel while it runs. Kernels run one at a time, so all begin at the start of the same block.

    Parameters
    ----------
    free : bytes that nothing lies in while the kernel runs, which are used first, from the end on: where another
        kernel's are too

    Attributes
    ----------
    used_bytes : of the block, by what was taken so far
    """

    def __init__(self, workspace: Workspace, free: Array = NO_BYTES) -> None:
        self.used_bytes = 0
        self._workspace = workspace
        self._free = free

    def take(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """An array that overlaps no other that was taken here."""
        size_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        padded_bytes = _padded(size_bytes)
        if padded_bytes <= self._free.size:
            start = self._free.size - padded_bytes
            block, self._free = self._free, self._free[:start]
        else:
            start = self.used_bytes
            self.used_bytes += padded_bytes
            block = self._workspace.block("scratch", self.used_bytes)
        return block[start : start + size_bytes].view(dtype).reshape(shape)


@dataclass(frozen=True, slots=True)
class Lifetime:
    """A buffer that is needed from one step to another, both included."""

    first: int
    last: int
    size_bytes: int


def assign_offsets(lifetimes: Sequence[Lifetime]) -> tuple[list[int], int]:
    """An offset in bytes for each buffer, and the length of the block that holds them all.

    The lifetimes must be sorted by their first step. Small ones, such as numbers that are needed to the end, lie in
    front, so that the end of the block is free whenever there is little in it.
    """
    padded = [replace(each, size_bytes=_padded(each.size_bytes)) for each in lifetimes]
    limit = max((each.size_bytes for each in padded), default=0) // SMALL_SHARE
    small = [place for place, each in enumerate(padded) if each.size_bytes <= limit]
    if _most_at_once([padded[place] for place in small]) * SMALL_SHARE > _most_at_once(padded):
        small = []
    known = set(small)
    large = [place for place in range(len(padded)) if place not in known]
    offsets = [0] * len(padded)
    low, start = _in_order([padded[place] for place in small])
    high, length = _shortest([padded[place] for place in large])
    for place, offset in zip((*small, *large), (*low, *(start + offset for offset in high)), strict=True):
        offsets[place] = offset
    return offsets, start + length


def _shortest(lifetimes: Sequence[Lifetime]) -> tuple[list[int], int]:
    best = _in_order(lifetimes)
    least = _most_at_once(lifetimes)
    for count in LARGE_BUFFERS:
        if best[1] > least:
            best = min(best, _largest_first(lifetimes, count), key=itemgetter(1))
    return best


def used_until(lifetimes: Sequence[Lifetime], offsets: Sequence[int], steps: int) -> list[int]:
    """For each step, behind which offset of the block nothing lies that is needed then."""
    result = [0] * steps
    alive: list[tuple[int, int]] = []
    starting = sorted(zip(lifetimes, offsets, strict=True), key=lambda pair: pair[0].first, reverse=True)
    for step in range(steps):
        while starting and starting[-1][0].first <= step:
            lifetime, offset = starting.pop()
            heappush(alive, (-offset - _padded(lifetime.size_bytes), lifetime.last))
        while alive and alive[0][1] < step:
            heappop(alive)
        result[step] = -alive[0][0] if alive else 0
    return result


def _padded(size_bytes: int) -> int:
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _most_at_once(lifetimes: Sequence[Lifetime]) -> int:
    """The most bytes that are needed at the same time: no block can be shorter."""
    changes = [(lifetime.first, lifetime.size_bytes) for lifetime in lifetimes]
    changes += [(lifetime.last + 1, -lifetime.size_bytes) for lifetime in lifetimes]
    return max(accumulate(change for _, change in sorted(changes)), default=0)


def _in_order(lifetimes: Sequence[Lifetime]) -> tuple[list[int], int]:
    """Buffers in the order in which they come alive."""
    gaps = _Gaps()
    endings: dict[int, list[tuple[int, int]]] = {}
    offsets: list[int] = []
    step = 0
    for lifetime in lifetimes:
        while step < lifetime.first:
            for offset, size in endings.pop(step, ()):
                gaps.release(offset, size)
            step += 1
        offset = gaps.take(lifetime.size_bytes)
        offsets.append(offset)
        endings.setdefault(lifetime.last, []).append((offset, lifetime.size_bytes))
    return offsets, gaps.end


def _largest_first(lifetimes: Sequence[Lifetime], count: int) -> tuple[list[int], int]:
    """So many buffers by size, each as low as those that it meets allow; the others behind them, in order."""
    by_size = sorted(range(len(lifetimes)), key=lambda place: lifetimes[place].size_bytes, reverse=True)
    offsets = [0] * len(lifetimes)
    placed: list[tuple[int, Lifetime]] = []
    end = 0
    for place in by_size[:count]:
        own, offset = lifetimes[place], 0
        for other_offset, other in placed:
            if other.first <= own.last and own.first <= other.last and offset < other_offset + other.size_bytes:
                if offset + own.size_bytes <= other_offset:
                    break
                offset = other_offset + other.size_bytes
        offsets[place] = offset
        insort(placed, (offset, own), key=itemgetter(0))
        end = max(end, offset + own.size_bytes)
    small = sorted(by_size[count:])
    others, length = _in_order([lifetimes[place] for place in small])
    for place, offset in zip(small, others, strict=True):
        offsets[place] = end + offset
    return offsets, end + length


class _Gaps:
    """The free stretches below `end`, sorted by size and known by both of their ends."""

    def __init__(self) -> None:
        self.end = 0
        self._by_size: list[tuple[int, int]] = []
        self._starting_at: dict[int, int] = {}
        self._ending_at: dict[int, int] = {}

    def take(self, size: int) -> int:
        """The offset of `size` bytes: from the smallest gap that is large enough, else at the end."""
        if size == 0:
            return 0
        place = bisect_left(self._by_size, (size, 0))
        if place < len(self._by_size):
            gap_size, offset = self._by_size[place]
            self._remove(offset, gap_size)
            if gap_size > size:
                self._add(offset + size, gap_size - size)
            return offset
        # A gap that reaches to the end need only be lengthened.
        last = self._ending_at.get(self.end)
        offset = self.end if last is None else self.end - last
        if last is not None:
            self._remove(offset, last)
        self.end = offset + size
        return offset

    def release(self, offset: int, size: int) -> None:
        if size == 0:
            return
        before = self._ending_at.get(offset)
        if before is not None:
            self._remove(offset - before, before)
            offset, size = offset - before, size + before
        after = self._starting_at.get(offset + size)
        if after is not None:
            self._remove(offset + size, after)
            size += after
        self._add(offset, size)

    def _add(self, offset: int, size: int) -> None:
        insort(self._by_size, (size, offset))
        self._starting_at[offset] = size
        self._ending_at[offset + size] = size

    def _remove(self, offset: int, size: int) -> None:
        del self._by_size[bisect_left(self._by_size, (size, offset))]
        del self._starting_at[offset]
        del self._ending_at[offset + size]
