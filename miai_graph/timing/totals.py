"""How long the steps of a plan took, added up for each of its nodes: totals, extremes and histograms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from miai_graph.kernels.compiler import native
from miai_graph.kernels.compiler.loops import call
from miai_graph.kernels.kernel import Kernel
from miai_graph.op import Array
from miai_graph.timing.records import HISTOGRAM_BINS
from miai_graph.timing.totals_code import module_text

Times = np.ndarray[Any, np.dtype[np.int64]]

ROWS_BEFORE_NODES, ROWS_BESIDE_NODES = 2, 3
"""Rows of what is no node: waiting and feeding before them, committing after them."""

COLLECTED_STAMPS, MOST_STEPS, FEWEST_STEPS = 1 << 15, 512, 8
"""Without native code the stamps of some steps are collected and then added up together."""


class Step(NamedTuple):
    """One step, in nanoseconds.

    start, end : when it began and ended
    waited_first, waited_last : how long it waited from the start on, and from the last stamp on
    number : of the step
    stamps : before the first kernel and after each one, as bytes
    """

    start: int
    waited_first: int
    waited_last: int
    end: int
    number: int
    stamps: bytes


class Totals(ABC):
    """Figures of all steps, by row: of what it waited, of feeding, of each node, and of committing.

    To add a step, its figures are put into `known`, its times into `stamps`, and `book` is called: this is done after
    each step, and costs as little as can be.

    Parameters
    ----------
    owners : the node of each kernel, by number; times of kernels of one node are added before they are compared

    Attributes
    ----------
    known : when a step began, how long it waited first and last, when it ended, and its number: see `Step`
    stamps : the array that times are read from
    book : adds a step
    total_ns, min_ns, max_ns : by row
    histogram : by row and bin, see `HISTOGRAM_BINS`
    """

    book: Kernel

    def __init__(self, owners: Sequence[int]) -> None:
        self._owners = np.array(owners, np.int64) + ROWS_BEFORE_NODES
        rows = len(set(owners)) + ROWS_BESIDE_NODES
        self.total_ns = np.zeros(rows, np.int64)
        self.min_ns = np.full(rows, np.iinfo(np.int64).max)
        self.max_ns = np.zeros(rows, np.int64)
        self.histogram = np.zeros((rows, HISTOGRAM_BINS), np.int64)
        self._known = np.zeros(len(Step._fields) - 1, np.int64)
        self.known = memoryview(self._known.data)
        self.stamps = np.zeros(len(owners) + 1, np.int64)

    def read_from(self, stamps: Times) -> None:
        """Find the times there from now on."""
        self.stamps = stamps

    @property
    @abstractmethod
    def steps(self) -> int:
        """How many were added."""

    @property
    @abstractmethod
    def latest(self) -> Step:
        """The last one."""

    @abstractmethod
    def settle(self) -> None:
        """See to it that the figures are of all steps."""


def totals_for(owners: Sequence[int]) -> Totals:
    """Totals that cost the least on this machine."""
    return CollectedTotals(owners) if native.processor() is None else NativeTotals(owners)


class NativeTotals(Totals):
    """Each step is added at once, in native code: in less than a microsecond, without more memory."""

    def __init__(self, owners: Sequence[int]) -> None:
        super().__init__(owners)
        self._latest = np.zeros(len(self._known) + len(self.stamps), np.int64)
        self._steps = np.zeros(1, np.int64)
        self._elapsed = np.zeros(len(self.total_ns), np.int64)
        self.read_from(self.stamps)

    def read_from(self, stamps: Times) -> None:
        super().read_from(stamps)
        places: list[Array | int] = [self._known, stamps, self._latest, self._steps, self._owners, self._elapsed]
        places += [self.total_ns, self.min_ns, self.max_ns, self.histogram]
        words = [*places, len(self._owners), len(self._elapsed)]
        self.book = call(module_text(), words, "Times of a step, added to totals", is_brief=True)

    @property
    def steps(self) -> int:
        return int(self._steps[0])

    @property
    def latest(self) -> Step:
        return _step_of(*np.split(self._latest, [len(self._known)]))

    def settle(self) -> None:
        """They always are."""


class CollectedTotals(Totals):
    """Steps are added up many at a time, by NumPy."""

    def __init__(self, owners: Sequence[int]) -> None:
        super().__init__(owners)
        self._order = np.argsort(self._owners, kind="stable")
        self._firsts = np.searchsorted(self._owners[self._order], np.unique(self._owners))
        self._most_pending = min(max(COLLECTED_STAMPS // (len(owners) + 1), FEWEST_STEPS), MOST_STEPS)
        self._pending: list[Step] = []
        self._settled = 0

    def book(self) -> None:
        """Keep a step to be added."""
        self._pending.append(_step_of(self._known, self.stamps))
        if len(self._pending) >= self._most_pending:
            self.settle()

    @property
    def steps(self) -> int:
        return self._settled + len(self._pending)

    @property
    def latest(self) -> Step:
        return self._latest if not self._pending else self._pending[-1]

    def settle(self) -> None:
        if not self._pending:
            return
        steps, self._pending = self._pending, []
        self._latest = steps[-1]
        self._settled += len(steps)
        times = self._times_of(steps)
        self.total_ns += times.sum(axis=0)
        np.minimum(self.min_ns, times.min(axis=0), out=self.min_ns)
        np.maximum(self.max_ns, times.max(axis=0), out=self.max_ns)
        # The exponent is the number of bits.
        bits = np.frexp(np.maximum(times, 1))[1]
        bins = np.minimum(bits - 1, HISTOGRAM_BINS - 1)
        np.add.at(self.histogram, (np.broadcast_to(np.arange(times.shape[1]), bins.shape), bins), 1)

    def _times_of(self, steps: Sequence[Step]) -> Times:
        """How long each step waited, fed, computed each node, and committed."""
        stamps = np.frombuffer(b"".join([step.stamps for step in steps]), np.int64).reshape(len(steps), -1)
        known = np.fromiter(chain.from_iterable([step[:4] for step in steps]), np.int64, 4 * len(steps))
        start, waited_first, waited_last, end = known.reshape(-1, 4).T
        times = np.empty((len(steps), len(self.total_ns)), np.int64)
        times[:, 0] = waited_first + waited_last
        times[:, 1] = stamps[:, 0] - start - waited_first
        if len(self._firsts):
            kernels = np.diff(stamps, axis=1)[:, self._order]
            times[:, ROWS_BEFORE_NODES:-1] = np.add.reduceat(kernels, self._firsts, axis=1)
        times[:, -1] = end - stamps[:, -1] - waited_last
        return times


def _step_of(known: Times, stamps: Times) -> Step:
    start, waited_first, waited_last, end, number = known.tolist()
    return Step(start, waited_first, waited_last, end, number, stamps.tobytes())
