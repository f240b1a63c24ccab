"""Square matrices in vectors, transposed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

V = TypeVar("V")


def transposed(rows: Sequence[V], shuffle: Callable[[V, V, Sequence[int]], V]) -> list[V]:
    """The columns of a square matrix: blocks beside the diagonal change places, then blocks half as wide in each.

    Parameters
    ----------
    rows : as many vectors as each holds numbers, a power of two
    shuffle : gives the vector of some lanes of two, where those of the second one are counted on
    """
    result, width = list(rows), len(rows)
    lanes = range(width)
    distance = width // 2
    while distance:
        left = [lane + width - distance if lane & distance else lane for lane in lanes]
        right = [lane + width if lane & distance else lane + distance for lane in lanes]
        for upper in (row for row in lanes if not row & distance):
            pair = result[upper], result[upper + distance]
            result[upper], result[upper + distance] = shuffle(*pair, left), shuffle(*pair, right)
        distance //= 2
    return result
