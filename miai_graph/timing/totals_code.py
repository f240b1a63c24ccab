"""Native code that adds the stamps of a step to totals: some nanoseconds a kernel."""

from __future__ import annotations

import functools

from miai_graph.kernels.compiler.loops import Loops
from miai_graph.timing.records import HISTOGRAM_BINS

WORD_BYTES = 8


@functools.cache
def module_text() -> str:
    """The module with the function `run`. In the table:

    - the addresses of what is known of the step, and of its stamps; of where both are kept; of the number of steps; of
      the row that each kernel belongs to; of a number for each row, to work with; of the totals, minima and maxima, by
      row; of the histograms
    - the numbers of kernels, and of rows

    What is known of the step: when it began, how long it waited first and last, when it ended, and its number.
    """
    return _Writer().module()


class _Writer:
    def __init__(self) -> None:
        self._code = Loops(lanes=1)

    def module(self) -> str:
        """All of it."""
        code = self._code
        known, stamps, latest, steps, owners, elapsed = code.pointers(6)
        self._figures = code.pointers(4)
        kernels, rows = code.words(2)
        self._store(steps, 0, code.add(self._load(steps, 0), 1))
        for place in range(5):
            self._store(latest, place, self._load(known, place))
        start, waited_first, waited_last, end = (self._load(known, place) for place in range(4))
        with code.loop(0, rows) as row:
            self._store(elapsed, row.index, 0)
        first = self._load(stamps, 0)
        self._store(latest, 5, first)
        with code.loop(0, kernels) as kernel:
            following = code.add(kernel.index, 1)
            stamp = self._load(stamps, following)
            self._store(latest, code.add(kernel.index, 6), stamp)
            taken = code.subtract(stamp, self._load(stamps, kernel.index))
            owner = self._load(owners, kernel.index)
            self._store(elapsed, owner, code.add(self._load(elapsed, owner), taken))
        self._store(elapsed, 0, code.add(waited_first, waited_last))
        self._store(elapsed, 1, code.subtract(code.subtract(first, start), waited_first))
        committed = code.subtract(code.subtract(end, self._load(stamps, kernels)), waited_last)
        self._store(elapsed, code.subtract(rows, 1), committed)
        with code.loop(0, rows) as row:
            self._add(row.index, self._load(elapsed, row.index))
        return code.module()

    def _add(self, row: str, taken: str) -> None:
        """Add what a row took."""
        code = self._code
        total, least, most, histogram = self._figures
        self._store(total, row, code.add(self._load(total, row), taken))
        self._store(least, row, code.least(self._load(least, row), taken))
        self._store(most, row, code.greatest(self._load(most, row), taken))
        code.declared.add("declare i64 @llvm.ctlz.i64(i64, i1)")
        zeros = code.value(f"call i64 @llvm.ctlz.i64(i64 {code.greatest(taken, 1)}, i1 true)")
        column = code.least(code.subtract(63, zeros), HISTOGRAM_BINS - 1)
        place = code.add(code.times(row, HISTOGRAM_BINS), column)
        self._store(histogram, place, code.add(self._load(histogram, place), 1))

    def _load(self, words: str, place: object) -> str:
        return self._code.value(f"load i64, ptr {self._code.stepped(words, place, WORD_BYTES)}, align {WORD_BYTES}")

    def _store(self, words: str, place: object, value: object) -> None:
        self._code.do(f"store i64 {value}, ptr {self._code.stepped(words, place, WORD_BYTES)}, align {WORD_BYTES}")
