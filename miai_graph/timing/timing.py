"""Where the time went: what all workers took for each node, ready to be looked at.

The node loop stamps the time after each kernel; a `Recorder` adds the differences up. What a call does besides its
nodes is booked too, so that the parts add up to the whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Literal, TextIO

from miai_graph.context import WAIT
from miai_graph.errors import ArgumentError
from miai_graph.terminal import print_text
from miai_graph.timing.records import OVERHEAD, Slice, TimingRecord, merge_group

GroupBy = Literal["layer", "op", "node", "phase", "worker"]


def _layer_of(record: TimingRecord) -> str:
    return f"({record.phase})" if record.phase in (OVERHEAD, WAIT) else record.layer or "(no layer)"


_GROUPS: dict[str, Callable[[TimingRecord], str]] = {
    "layer": _layer_of,
    "op": lambda record: record.op,
    "node": lambda record: record.node,
    "phase": lambda record: record.phase,
    "worker": lambda record: str(record.worker),
}


class Timing:
    """A snapshot of where the time went.

    Attributes
    ----------
    records : one `TimingRecord` for each node and worker
    steps : how many calls are counted
    start_up_seconds : spent outside of the steps, on compiling and on preparing for each size of batch
    peak_bytes : the most memory that a plan uses for computed values and scratch
    notes : what else is to be known of how the steps were run
    slices : the last step, kernel by kernel; empty where that is not kept
    """

    def __init__(
        self,
        records: Iterable[TimingRecord],
        steps: int,
        start_up_seconds: float = 0.0,
        peak_bytes: int = 0,
        notes: Iterable[str] = (),
        slices: Iterable[Slice] = (),
    ) -> None:
        self.records = tuple(records)
        self.steps = steps
        self.start_up_seconds = start_up_seconds
        self.peak_bytes = peak_bytes
        self.notes = tuple(notes)
        self.slices = tuple(slices)

    @property
    def seconds(self) -> float:
        """The time of all steps together, without start-up; the greatest of the workers'."""
        by_worker: dict[int, float] = defaultdict(float)
        for record in self.records:
            by_worker[record.worker] += record.seconds
        return max(by_worker.values(), default=0.0)

    def grouped(self, by: GroupBy = "layer") -> list[TimingRecord]:
        """Records added up by layer, op, node, phase or worker, the longest first.

        ``calls`` of a group is that of its most called node.
        """
        if by not in _GROUPS:
            raise ArgumentError(f"expected by to be one of {', '.join(_GROUPS)}; found {by!r}")
        groups: dict[str, list[TimingRecord]] = defaultdict(list)
        for record in self.records:
            groups[_GROUPS[by](record)].append(record)
        merged = [replace(merge_group(members), node=name) for name, members in groups.items()]
        return sorted(merged, key=lambda record: record.seconds, reverse=True)

    def table(self, by: GroupBy = "layer", limit: int | None = 30, file: TextIO | None = None) -> None:
        """Print where the time went.

        Parameters
        ----------
        by : "layer", "op", "node", "phase" or "worker"
        limit : the number of rows; the rest are one row. None: all
        file : standard output by default
        """
        print_text(self.format_table(by, limit), file)

    def format_table(self, by: GroupBy = "layer", limit: int | None = 30) -> str:
        """The text that `table` prints."""
        rows = self.grouped(by)
        if limit is not None and len(rows) > limit:
            rest = merge_group(rows[limit:])
            rows = [*rows[:limit], replace(rest, node=f"({len(rows) - limit} more)", op="")]
        total = sum(record.seconds for record in rows) or 1.0
        header = (by, "op" if by == "node" else "", "calls", "total ms", "mean µs", "share", "GFLOP/s")
        cells = [header] + [
            (
                record.node,
                record.op if by == "node" else "",
                f"{record.calls}",
                f"{record.seconds * 1e3:.2f}",
                f"{record.seconds / max(self.steps, 1) * 1e6:.1f}",
                f"{record.seconds / total:.1%}",
                f"{record.flops / record.seconds / 1e9:.2f}" if record.flops and record.seconds else "",
            )
            for record in rows
        ]
        used = [column for column in range(len(header)) if any(row[column] for row in cells)]
        widths = {column: max(len(row[column]) for row in cells) for column in used}
        lines = [
            "  ".join(row[c].ljust(widths[c]) if c < 2 else row[c].rjust(widths[c]) for c in used).rstrip()
            for row in cells
        ]
        summary = (
            f"{self.steps} steps in {self.seconds:.3f} s, after {self.start_up_seconds:.3f} s of start-up; "
            f"peak memory of values {self.peak_bytes / 1e6:.2f} MB"
        )
        return "\n".join([lines[0], "─" * max(map(len, lines)), *lines[1:], summary, *self.notes])

    def __str__(self) -> str:
        return self.format_table()

    def __repr__(self) -> str:
        return f"<Timing of {self.steps} steps, {self.seconds:.3f} s, {len(self.records)} records>"
