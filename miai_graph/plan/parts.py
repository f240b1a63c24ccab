"""The parts of a batch: runs of rows that are computed together, and the parts that a worker has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from miai_graph.types import BatchDim, Dim


@dataclass(frozen=True)
class Part:
    """Some rows of a batch that are computed together.

    Attributes
    ----------
    number : among all parts of the batch
    first_row, size : which of the batch's samples
    """

    number: int
    first_row: int
    size: int

    @property
    def rows(self) -> slice:
        return slice(self.first_row, self.first_row + self.size)


def cut_batch(batch_size: int, count: int) -> list[Part]:
    """So many parts of about one size, or as many as there are samples."""
    return [Part(number, *span) for number, span in enumerate(_spans(batch_size, min(count, batch_size)))]


def parts_of(worker: int, workers: int, parts: Sequence[Part]) -> Sequence[Part]:
    """A worker's run of the parts; each worker has as many as the others, or one more."""
    first, count = _spans(len(parts), workers)[worker]
    return parts[first : first + count]


WHOLE_BATCH = Part(0, 0, 0)


def rows_along(dim: Dim, part: Part, first: Part = WHOLE_BATCH) -> slice:
    """Where a part's rows lie along an axis, counted from the first part's on."""
    assert isinstance(dim, BatchDim)
    start = part.first_row - first.first_row
    return slice(dim.multiple * start, dim.multiple * (start + part.size))


def _spans(length: int, count: int) -> list[tuple[int, int]]:
    """Start and length of each piece."""
    bounds = [length * place // count for place in range(count + 1)]
    return [(start, stop - start) for start, stop in pairwise(bounds)]
