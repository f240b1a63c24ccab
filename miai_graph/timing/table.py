"""Tables of text, as wide as the terminal, of where the time went."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import TYPE_CHECKING

from miai_graph.errors import ArgumentError
from miai_graph.timing.grouping import (
    GroupBy,
    SortBy,
    calling_processes,
    group_name,
    records_of_workers,
    sorted_groups,
)
from miai_graph.timing.rates import Rates
from miai_graph.timing.records import TimingRecord
from miai_graph.timing.words import percent, plural, printable, shorten, text_cells

if TYPE_CHECKING:
    from miai_graph.timing.timing import Timing

_GAP = 2
_NAME_WIDTH = 24
"""To what names are shortened before columns are left out."""
_LEAST_WIDTH = 8
_NOTABLE = 0.005


@dataclass(frozen=True)
class Column:
    """One column of a table.

    title, cells : its texts
    rank : columns of a higher one are left out first; 0: never
    is_name : whether its texts may be shortened, and stand on the left
    """

    title: str
    cells: Sequence[str]
    rank: int = 0
    is_name: bool = False

    @property
    def width(self) -> int:
        return max(map(text_cells, (self.title, *self.cells)))


def format_table(timing: Timing, by: GroupBy, sort: SortBy, limit: int | None, width: int | None) -> str:
    """The text of `Timing.table`, not wider than `width` if that can be."""
    check_width(width)
    lines = format_columns(table_columns(timing, by, sort, limit), width)
    return "\n".join([*lines, *(line for note in remarks(timing) for line in wrap(note, width))])


def table_columns(timing: Timing, by: GroupBy, sort: SortBy, limit: int | None) -> list[Column]:
    """The columns of `Timing.table`."""
    check_limit(limit)
    groups = sorted_groups(timing, by, sort)
    names = [group_name(members[0], by) for members in groups]
    if limit is not None and len(groups) > limit:
        names[limit:] = [f"({len(groups) - limit} more)"]
        groups[limit:] = [[record for members in groups[limit:] for record in members]]
    return _columns(timing, by, names, groups)


def check_limit(limit: int | None) -> None:
    """Raise ArgumentError unless it is a positive number of rows, or None."""
    if not _is_positive(limit):
        raise ArgumentError(f"expected limit to be a positive number of rows, or None for all; found {limit!r}")


def check_width(width: int | None) -> None:
    """Raise ArgumentError unless it is a positive number of characters, or None."""
    if not _is_positive(width):
        raise ArgumentError(f"expected width to be a positive number of characters, or None; found {width!r}")


def _is_positive(number: int | None) -> bool:
    return number is None or (isinstance(number, Integral) and not isinstance(number, bool) and number > 0)


def _columns(timing: Timing, by: GroupBy, names: list[str], groups: list[list[TimingRecord]]) -> list[Column]:
    total = sum(record.seconds for record in records_of_workers(timing)) or 1.0
    rates = Rates(timing)
    seconds = [sum(record.seconds for record in members) for members in groups]
    shares = [rates.roofline_share(members) for members in groups]
    memory = [sum(record.memory_bytes for record in members) for members in groups] if by == "node" else []
    columns = [Column(by, names, is_name=True)]
    if by == "node":
        columns.append(Column("op", [_op_of(members) for members in groups], rank=3, is_name=True))
    columns += [
        Column("calls", [f"{max(record.calls for record in members)}" for members in groups], rank=2),
        Column("total ms", [f"{value * 1e3:.2f}" for value in seconds]),
        Column("mean µs", [f"{value / max(timing.steps, 1) * 1e6:.1f}" for value in seconds], rank=1),
        Column("share", [f"{value / total:.1%}" for value in seconds]),
        Column("GFLOP/s", [_billions(rates.flops_per_second(members)) for members in groups], rank=4),
        Column("GB/s", [_billions(rates.bytes_per_second(members)) for members in groups], rank=5),
        Column("roofline", ["" if share is None else f"{share:.0%}" for share in shares], rank=6),
        Column("MB", [f"{value / 1e6:.2f}" if value else "" for value in memory], rank=7),
    ]
    return columns


def _op_of(members: Sequence[TimingRecord]) -> str:
    ops = {record.op for record in members}
    return ops.pop() if len(ops) == 1 else ""


def _billions(rate: float | None) -> str:
    return "" if rate is None else f"{rate / 1e9:.2f}"


def format_columns(columns: Sequence[Column], width: int | None) -> list[str]:
    """The lines of a table. Where they would be too wide names are shortened, and columns left out."""
    shown = [_readable(column) for column in columns if any(column.cells) or not column.rank]
    if width is not None:
        shown = _fit(shown, width)
    rows = zip(*([column.title, *column.cells] for column in shown), strict=True)
    lines = [
        (" " * _GAP).join(_padded(text, column) for text, column in zip(row, shown, strict=True)).rstrip()
        for row in rows
    ]
    return [lines[0], "─" * max(map(text_cells, lines)), *lines[1:]]


def _readable(column: Column) -> Column:
    return replace(column, cells=[printable(text) for text in column.cells]) if column.is_name else column


def _padded(text: str, column: Column) -> str:
    space = " " * (column.width - text_cells(text))
    return f"{text}{space}" if column.is_name else f"{space}{text}"


def _fit(columns: list[Column], width: int) -> list[Column]:
    columns = _shorten_names(columns, width, _NAME_WIDTH)
    while _width(columns) > width and any(column.rank for column in columns):
        columns.remove(max(columns, key=lambda column: column.rank))
    return _shorten_names(columns, width, _LEAST_WIDTH)


def _shorten_names(columns: Sequence[Column], width: int, least: int) -> list[Column]:
    """With names no longer than what is left for them, but not shorter than that."""
    excess = _width(columns) - width
    result = []
    for column in columns:
        if column.is_name and excess > 0:
            target = min(column.width, max(least, column.width - excess))
            excess -= column.width - target
            cells = [shorten(text, target) for text in column.cells]
            column = Column(column.title, cells, column.rank, is_name=True)
        result.append(column)
    return result


def _width(columns: Sequence[Column]) -> int:
    return sum(column.width for column in columns) + _GAP * (len(columns) - 1)


def wrap(text: str, width: int | None) -> list[str]:
    """The text in lines of that width, the later ones indented."""
    return [text] if width is None else textwrap.wrap(text, max(width, _NAME_WIDTH), subsequent_indent="  ")


def remarks(timing: Timing) -> list[str]:
    """What is said below a table: the whole in one line, who is left out, and what the executor noted."""
    return [summarize(timing), *left_out(timing), *timing.notes]


def summarize(timing: Timing) -> str:
    """One line on all steps together."""
    return (
        f"{plural(timing.steps, 'step')} in {timing.wall_seconds:.3f} s, after {timing.start_up_seconds:.3f} s of "
        f"start-up; peak memory of values {timing.peak_bytes / 1e6:.2f} MB"
    )


def left_out(timing: Timing) -> list[str]:
    """A line on the calling process, where it is no worker."""
    asking = calling_processes(timing)
    seconds: dict[str, float] = {}
    for record in timing.records:
        if record.worker in asking:
            seconds[record.phase] = seconds.get(record.phase, 0.0) + record.seconds
    total = sum(seconds.values())
    if not total:
        return []
    parts = sorted(seconds.items(), key=lambda part: -part[1])
    shown = ", ".join(f"{phase} {percent(value / total)}" for phase, value in parts if value >= _NOTABLE * total)
    return [f"Not counted: the calling process, which only gives the workers their work ({shown})"]
