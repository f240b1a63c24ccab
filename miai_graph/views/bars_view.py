"""Bars of where the time of a step went: by layer, op or node, each stacked by phase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from miai_graph.errors import ArgumentError
from miai_graph.timing import Timing, TimingRecord
from miai_graph.timing.grouping import GroupBy, records_of_workers, split_into_groups
from miai_graph.timing.words import duration, plural
from miai_graph.views import style
from miai_graph.views.palette import palette
from miai_graph.views.shares import format_share, kernel_note
from miai_graph.views.time_look import (
    MARGIN,
    SMALL_SIZE,
    TITLE_SIZE,
    count_workers,
    draw_legend,
    draw_notes,
    legend_height,
    ordered_phases,
    phase_look,
    points_axes,
    unit_of,
    whole_sheet,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW, _BAR = 17.0, 11.0
_BARS_WIDTH = 330.0
_LONGEST_NAME = 44
_NAME_SIZE = 8.5
_GAP = 6.0
_MOST_TIMES = 4


@dataclass(frozen=True)
class _Row:
    """A bar: its name, the seconds of a step by phase, the share of them all, and whether it stands for the rest."""

    name: str
    seconds: dict[str, float]
    share: float
    is_rest: bool = False

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    @property
    def text(self) -> str:
        return f"{duration(self.total)}  {format_share(self.share)}"


def draw_bars(timing: Timing, by: GroupBy = "layer", limit: int | None = 30) -> Figure:
    """The figure. With several workers, times are means of them.

    Parameters
    ----------
    by : what a bar is: see `Timing.table`
    limit : the number of bars; the rest are one. None: all
    """
    rows = _rows(timing, by, limit)
    phases = ordered_phases([phase for row in rows for phase in row.seconds])
    looks = {phase: phase_look(phase) for phase in phases}
    notes = kernel_note(timing.records) if by in ("node", "op") else []
    names_width = max(style.text_width(row.name, _NAME_SIZE) for row in rows)
    texts_width = max(style.text_width(row.text, SMALL_SIZE) for row in rows)
    title = _title(timing)
    width = max(
        MARGIN + names_width + _GAP + _BARS_WIDTH + _GAP + texts_width + MARGIN,
        style.text_width(title, TITLE_SIZE, True) + 2 * MARGIN,
    )
    top = MARGIN + TITLE_SIZE * 2.2
    below = top + len(rows) * _ROW + 42
    legend = legend_height(looks, width - 2 * MARGIN)
    figure = style.new_figure(width, below + legend + len(notes) * 12 + MARGIN)
    sheet = whole_sheet(figure)
    style.plain_text(sheet, MARGIN, MARGIN + TITLE_SIZE, title, TITLE_SIZE, bold=True)
    bars_width = width - MARGIN - names_width - 2 * _GAP - texts_width - MARGIN
    axes = points_axes(figure, MARGIN + names_width + _GAP, top, bars_width, len(rows) * _ROW)
    _draw_rows(axes, rows, phases, f" a step{_whose(timing)}")
    draw_legend(sheet, looks, below, width - 2 * MARGIN)
    draw_notes(sheet, notes, below + legend + 4)
    return figure


def _rows(timing: Timing, by: GroupBy, limit: int | None) -> list[_Row]:
    """The longest first, as many as there is room for, and the rest as one."""
    records = records_of_workers(timing)
    groups = split_into_groups(records, by)
    parts = sorted(((name, members) for (name, _), members in groups.items()), key=lambda part: -_seconds(part[1]))
    if limit is not None and len(parts) > limit:
        rest = [record for _, members in parts[limit:] for record in members]
        parts = [*parts[:limit], (f"({len(parts) - limit} more)", rest)]
    total = _seconds(records)
    if not total:
        raise ArgumentError("expected a timing of at least one step to draw; found one without any time")
    scale = 1 / (max(timing.steps, 1) * len({record.worker for record in records}))
    return [
        _Row(
            f"{by} {name}" if by in ("worker", "stage") and name.isdecimal() else style.shortened(name, _LONGEST_NAME),
            _by_phase(members, scale),
            _seconds(members) / total,
            is_rest=limit is not None and place == limit,
        )
        for place, (name, members) in enumerate(parts)
    ]


def _seconds(records: Sequence[TimingRecord]) -> float:
    return sum(record.seconds for record in records)


def _by_phase(records: Sequence[TimingRecord], scale: float) -> dict[str, float]:
    sums: dict[str, float] = {}
    for record in records:
        sums[record.phase] = sums.get(record.phase, 0.0) + record.seconds * scale
    return sums


def _title(timing: Timing) -> str:
    workers = count_workers(timing)
    step = timing.wall_seconds / max(timing.steps, 1)
    return f"{plural(timing.steps, 'step')} of {duration(step)}, on {plural(workers, 'worker')}"


def _whose(timing: Timing) -> str:
    """Of whom the times are, if not of one worker."""
    workers = count_workers(timing)
    return f", mean of {plural(workers, 'worker')}" if workers > 1 else ""


def _draw_rows(axes: Axes, rows: Sequence[_Row], phases: Sequence[str], whose: str) -> None:
    longest = _longest(rows)
    factor, unit = unit_of(longest)
    style.axes_style(axes, title="", x_label=unit + whose, y_label="")
    axes.grid(False, axis="y")
    axes.set(xlim=(0, longest / factor), ylim=(len(rows) - 0.5, -0.5), yticks=[])
    places = range(len(rows))
    reached = [0.0] * len(rows)
    for phase in phases:
        lengths = [row.seconds.get(phase, 0.0) / factor for row in rows]
        axes.barh(places, lengths, height=_BAR / _ROW, left=reached, **phase_look(phase))
        reached = [before + length for before, length in zip(reached, lengths, strict=True)]
    for place, row in enumerate(rows):
        end = min(row.total, longest) / factor
        if row.total > longest:
            _break_off(axes, end, place)
        style.text_beside(axes, (0.0, place), (-_GAP, 0), row.name, _NAME_SIZE, ha="right")
        style.text_beside(axes, (end, place), (_GAP, 0), row.text, SMALL_SIZE)


def _longest(rows: Sequence[_Row]) -> float:
    """The length up to which bars are drawn: those of the rest, and of what is no layer, would leave others no room."""
    named = [row.total for row in rows if not row.is_rest]
    inner = [row.total for row in rows if not row.name.startswith("(")]
    return min(max(named), _MOST_TIMES * max(inner)) if any(inner) else max(named)


def _break_off(axes: Axes, end: float, place: int) -> None:
    """Two slanted lines through a bar that goes on, near its end."""
    half = _BAR / _ROW / 2 + 0.08
    for shift in (0.95, 0.965):
        across = [(shift - 0.006) * end, (shift + 0.006) * end]
        axes.plot(across, [place + half, place - half], color=palette().paper, linewidth=2.0)
