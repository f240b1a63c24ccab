"""How the times of two runs differ, such as of one executor and another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TextIO, get_args

from miai_graph.errors import ArgumentError
from miai_graph.terminal import print_text, terminal_width
from miai_graph.timing.grouping import check_choice, group_name, records_of_workers
from miai_graph.timing.html import html_table
from miai_graph.timing.table import Column, check_limit, check_width, format_columns, wrap
from miai_graph.timing.words import duration, percent

if TYPE_CHECKING:
    from miai_graph.timing.timing import Timing

DifferenceBy = Literal["layer", "op", "node", "phase"]
_Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class DifferenceRecord:
    """What one group takes in two runs.

    name : of the node, layer, op or phase; phase : of a node, else ""
    first_seconds, second_seconds : a step, on the worker that takes longest for it; 0 where the run has no such group
    """

    name: str
    phase: str
    first_seconds: float
    second_seconds: float

    @property
    def seconds(self) -> float:
        """By how much the first one takes longer; negative if it is faster."""
        return self.first_seconds - self.second_seconds


class TimingDifference:
    """One timing less another one: ``timing_a - timing_b``.

    Times are those of a step. Where several workers compute the same node or layer, each with its part of the batch,
    the time is that of the worker that takes longest for it, so that one worker can be compared with many by what one
    waits for.

    Attributes
    ----------
    first, second : the timings
    """

    def __init__(self, first: Timing, second: Timing) -> None:
        for timing in (first, second):
            if not timing.steps:
                raise ArgumentError(f"expected timings of at least one step; found {timing!r}. Run a step before")
        self.first = first
        self.second = second

    @property
    def first_seconds(self) -> float:
        """Of a step of the first run, with all that is between steps."""
        return self.first.wall_seconds / self.first.steps

    @property
    def second_seconds(self) -> float:
        """Of a step of the second run, with all that is between steps."""
        return self.second.wall_seconds / self.second.steps

    @property
    def seconds(self) -> float:
        """By how much a step of the first run takes longer; negative if it is faster."""
        return self.first_seconds - self.second_seconds

    @property
    def records(self) -> list[DifferenceRecord]:
        """By node, the greatest difference first."""
        return self.grouped("node")

    def grouped(self, by: DifferenceBy = "layer") -> list[DifferenceRecord]:
        """By layer, op, node or phase, the greatest difference first.

        Raises
        ------
        ArgumentError
            if there is no such grouping.
        """
        check_choice("by", by, get_args(DifferenceBy))
        first, second = (_seconds_a_step(timing, by) for timing in (self.first, self.second))
        records = [
            DifferenceRecord(*key, first.get(key, 0.0), second.get(key, 0.0))
            for key in dict.fromkeys([*first, *second])
        ]
        return sorted(records, key=lambda record: abs(record.seconds), reverse=True)

    def table(
        self, by: DifferenceBy = "layer", limit: int | None = 30, file: TextIO | None = None, width: int | None = None
    ) -> None:
        """Print where the runs differ.

        Parameters
        ----------
        by : "layer", "op", "node" or "phase"
        limit : the number of rows. None: all
        file : standard output by default
        width : the most characters in a line; None: as many as the terminal has
        """
        print_text(self.format_table(by, limit, terminal_width(file) if width is None else width), file)

    def format_table(self, by: DifferenceBy = "layer", limit: int | None = 30, width: int | None = None) -> str:
        """The text that `table` prints."""
        check_limit(limit)
        check_width(width)
        lines = format_columns(self._columns(by, limit), width)
        return "\n".join([*lines, *wrap(self.summary, width)])

    @property
    def summary(self) -> str:
        """One sentence on the whole step."""
        change = self.seconds / self.second_seconds if self.second_seconds else 0.0
        word = "longer" if self.seconds > 0 else "less"
        times = f"{duration(self.first_seconds)} in the first run, {duration(self.second_seconds)} in the second"
        if abs(change) < 0.005:
            return f"A step takes {times}: the same"
        return f"A step takes {times}: {duration(abs(self.seconds))} ({percent(abs(change))}) {word}"

    def to_json(self) -> dict[str, Any]:
        """Plain data, as Python's json writes it."""
        return {
            "first_seconds": self.first_seconds,
            "second_seconds": self.second_seconds,
            "nodes": [asdict(record) for record in self.records],
            "layers": [asdict(record) for record in self.grouped("layer")],
        }

    def _columns(self, by: DifferenceBy, limit: int | None) -> Sequence[Column]:
        records = self.grouped(by)[:limit]
        return [
            Column(by, [record.name for record in records], is_name=True),
            Column("phase", [record.phase for record in records], rank=4, is_name=True),
            Column("first µs", [f"{record.first_seconds * 1e6:.1f}" for record in records], rank=2),
            Column("second µs", [f"{record.second_seconds * 1e6:.1f}" for record in records], rank=1),
            Column("difference µs", [f"{record.seconds * 1e6:+.1f}" for record in records]),
            Column("ratio", [_ratio(record) for record in records], rank=3),
        ]

    def __str__(self) -> str:
        return self.format_table()

    def __repr__(self) -> str:
        return f"<TimingDifference of {self.seconds * 1e3:+.3f} ms a step>"

    def _repr_html_(self) -> str:
        return html_table(self._columns("layer", 20), [self.summary])


def _seconds_a_step(timing: Timing, by: DifferenceBy) -> dict[_Key, float]:
    by_worker: dict[_Key, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for record in records_of_workers(timing):
        key = group_name(record, by), record.phase if by == "node" else ""
        by_worker[key][record.worker] += record.seconds
    return {key: max(seconds.values()) / timing.steps for key, seconds in by_worker.items()}


def _ratio(record: DifferenceRecord) -> str:
    if not record.first_seconds or not record.second_seconds:
        return ""
    return f"{record.first_seconds / record.second_seconds:.2f}"
