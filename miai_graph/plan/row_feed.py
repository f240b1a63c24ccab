"""Batches that are rows of arrays in memory: their numbers checked and the rows copied by calls prepared beforehand.

In a small step there is little else to do, and what NumPy checks anew at each call takes longer than the copying.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial
from weakref import ref

import numpy as np

from miai_graph.feeding import EVERY_ROW, Batch, CheckedBatch, Rows, Table, check_batch, check_indices
from miai_graph.kernels.by_rows import BYTES_WORTH_SHARING
from miai_graph.kernels.kernel import Kernel
from miai_graph.kernels.rows.indexing import copy_of_rows, search_for_others
from miai_graph.kernels.running.crew import spans, together
from miai_graph.kernels.running.run import joined
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.plan.bound import BoundPlan

INT64 = np.dtype(np.int64)

SIZES_LIMIT = 64
"""For how many sizes of batches is remembered where their row numbers are."""

Source = Callable[[], Array | None]
"""A reference that does not keep an array alive."""


class BatchCheck:
    """Checks batches against inputs. Of those that are rows of the same table the arrays are checked once.

    Attributes
    ----------
    numbers : where the row numbers of the last batch are, if it is of a table met before: the same place for all of
        one size
    """

    def __init__(self, inputs: Sequence[Node]) -> None:
        self._inputs = tuple(inputs)
        self._table: Callable[[], Table | None] = lambda: None
        self._length = 0
        self._known: dict[int, _RowNumbers] = {}
        self.numbers: Array | None = None

    def __call__(self, batch: Batch) -> CheckedBatch:
        """See `feeding.check_batch`."""
        self.numbers = None
        if not isinstance(batch, Rows):
            return check_batch(self._inputs, batch)
        if batch.arrays is not self._table():
            return self._check(batch)
        size = len(batch.indices)
        if not size or batch.indices.dtype is not INT64:
            return check_batch(self._inputs, batch)
        known = self._known.get(size)
        if known is None or known.length != self._length:
            if len(self._known) >= SIZES_LIMIT:
                self._known.clear()
            known = self._known[size] = _RowNumbers(size, self._length)
        numbers = self.numbers = known.checked(batch.indices)
        return CheckedBatch(batch.arrays, size, numbers, batch.arrays)

    def _check(self, batch: Rows) -> CheckedBatch:
        checked = check_batch(self._inputs, batch)
        table = batch.arrays
        if isinstance(table, Table) and all(map(operator.is_, checked.arrays, table)):
            lengths = (len(array) for node, array in zip(self._inputs, table, strict=True) if node.type.batch_axes)
            self._table, self._length = ref(table), next(lengths, 1)
        return checked


class _RowNumbers:
    """The row numbers of batches of one size, which are checked where they lie."""

    def __init__(self, size: int, length: int) -> None:
        self.length = length
        self.own = np.zeros(size, np.int64)
        found = np.zeros(1, np.int64)
        self._found = memoryview(found.data)
        self._search = search_for_others(self.own, length, found)

    def checked(self, indices: Array) -> Array:
        """A copy of the numbers, if each is that of a row."""
        self.own[...] = indices
        if self._search is None:
            check_indices(self.own, self.length)
            return self.own
        self._search()
        if self._found[0]:
            self._found[0] = 0
            check_indices(self.own, self.length)
        return self.own


class RowFeed:
    """Copies the rows of batches to where a plan needs them.

    Parameters
    ----------
    inputs : of the plan's graph, in the order of the arrays; None: the plan does not need it
    numbers : where the numbers of a batch's rows lie, checked, when it is copied
    """

    def __init__(self, plan: BoundPlan, inputs: Sequence[Node | None], numbers: Array) -> None:
        self.numbers = numbers
        self._targets = [[] if node is None else _targets_of(plan, node, numbers) for node in inputs]
        self._threads = plan.threads or 1
        self._sources: Sequence[Source] = ()
        self._kernels: Sequence[Kernel] = ()

    def __call__(self, arrays: Sequence[Array]) -> None:
        """Copy rows of these, which live as long as somebody else wants them to."""
        known = [source() for source in self._sources]
        if len(known) != len(arrays) or not all(map(operator.is_, known, arrays)):
            self._prepare(arrays)
        for kernel in self._kernels:
            kernel()

    def _prepare(self, arrays: Sequence[Array]) -> None:
        # If this is interrupted, nothing is left that would be taken for these arrays' kernels.
        self._sources = ()
        kernels = [
            self._kernel(source, numbers, target)
            for source, targets in zip(arrays, self._targets, strict=True)
            for numbers, target in targets
        ]
        self._kernels = [run.kernel for run in joined(kernels, None)]
        self._sources = [ref(array) for array in arrays]

    def _kernel(self, source: Array, numbers: Array | None, target: Array) -> Kernel:
        if numbers is None:
            return partial(_copy, ref(source), EVERY_ROW, target)
        worth = target.nbytes // BYTES_WORTH_SHARING + 1
        shares = [
            copy_of_rows(source, numbers[own], target[own])
            for own in spans(len(target), min(self._threads, worth, len(target)))
        ]
        known = [share for share in shares if share is not None]
        return together(known) if known else partial(_copy, ref(source), numbers, target)


def _targets_of(plan: BoundPlan, node: Node, numbers: Array) -> list[tuple[Array | None, Array]]:
    """The arrays to fill for an input, each with the numbers of the rows that belong there; None: it has no rows."""
    if node in plan.feeds:
        return [(numbers if node.type.batch_axes else None, plan.feeds[node])]
    return [
        (numbers[part.rows], feeds[node])
        for part, feeds in zip(plan.parts, plan.part_feeds, strict=True)
        if node in feeds
    ]


def _copy(source: Source, numbers: Array | slice, target: Array) -> None:
    array = source()
    assert array is not None
    if isinstance(numbers, np.ndarray) and array.dtype == target.dtype:
        # mode="clip" skips a buffer; the numbers were checked.
        array.take(numbers, 0, target, "clip")
        return
    with np.errstate(all="ignore"):
        np.copyto(target, array[numbers], casting="same_kind")
