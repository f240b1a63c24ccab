"""What time spent on something looks like: colours of phases and layers, hatching of waits, units, legends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from miai_graph.context import BACKWARD, COMMUNICATION, FORWARD, RECOMPUTE, UPDATE, WAIT
from miai_graph.timing import Timing
from miai_graph.timing.account import Account
from miai_graph.timing.records import CALLBACKS, DATA, IDLE, LOOP, OVERHEAD, VALIDATION
from miai_graph.views import style
from miai_graph.views.palette import palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PHASES = (
    FORWARD,
    RECOMPUTE,
    BACKWARD,
    UPDATE,
    COMMUNICATION,
    WAIT,
    OVERHEAD,
    DATA,
    CALLBACKS,
    VALIDATION,
    LOOP,
    IDLE,
)
"""In the order in which they are stacked."""

MARGIN = 16.0
SMALL_SIZE, TITLE_SIZE = 7.5, 11.0

_LEGEND_ROW = 15.0
_SAMPLE_WIDTH, _SAMPLE_HEIGHT = 15.0, 9.0


def phase_look(phase: str) -> dict[str, Any]:
    """How an area of a phase is filled, as matplotlib's options. Waits are hatched."""
    colours = palette()
    fill = colours.time_fills.get(phase, colours.time_fills[OVERHEAD])
    if phase == WAIT:
        return {"facecolor": fill, "edgecolor": colours.line, "hatch": "/////", "linewidth": 0.5}
    if phase == IDLE:
        return {"facecolor": fill, "edgecolor": colours.line, "linewidth": 0.5, "linestyle": ":"}
    return {"facecolor": fill, "edgecolor": "none", "linewidth": 0.0}


def ordered_phases(phases: Sequence[str]) -> list[str]:
    """Each once, those that are known first."""
    found = dict.fromkeys(phases)
    return [phase for phase in PHASES if phase in found] + sorted(set(found) - set(PHASES))


def count_workers(timing: Timing) -> int:
    """How many compute; a process that only gives others their work is none of them."""
    return max(len(Account(timing).by_worker), 1)


def unit_of(seconds: float) -> tuple[float, str]:
    """The unit in which such a time is a handy number, in seconds, and its name."""
    return (1.0, "s") if seconds >= 2.0 else (1e-3, "ms") if seconds >= 2e-3 else (1e-6, "µs")


def points_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place given in points from the figure's upper left corner."""
    whole_width, whole_height = figure.get_size_inches() * 72
    return figure.add_axes(
        (left / whole_width, 1 - (top + height) / whole_height, width / whole_width, height / whole_height)
    )


def whole_sheet(figure: Figure) -> Axes:
    """Invisible axes over all of the figure, in points from its upper left corner: for texts."""
    width, height = figure.get_size_inches() * 72
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set(xlim=(0, width), ylim=(height, 0))
    return axes


def legend_rows(looks: Mapping[str, Mapping[str, Any]], room: float) -> list[list[tuple[str, float]]]:
    """The entries with their widths, in rows no wider than `room`."""
    rows: list[list[tuple[str, float]]] = []
    for text in looks:
        width = style.text_width(text, SMALL_SIZE) + _SAMPLE_WIDTH + 20
        if not rows or sum(taken for _, taken in rows[-1]) + width > room:
            rows.append([])
        rows[-1].append((text, width))
    return rows


def legend_height(looks: Mapping[str, Mapping[str, Any]], room: float) -> float:
    return len(legend_rows(looks, room)) * _LEGEND_ROW


def draw_legend(sheet: Axes, looks: Mapping[str, Mapping[str, Any]], top: float, room: float) -> None:
    """Boxes with texts beside them, on a sheet in points."""
    from matplotlib.patches import Rectangle

    for number, row in enumerate(legend_rows(looks, room)):
        x, y = MARGIN, top + (number + 0.5) * _LEGEND_ROW
        for text, width in row:
            corner = (x, y - _SAMPLE_HEIGHT / 2)
            sheet.add_patch(Rectangle(corner, _SAMPLE_WIDTH, _SAMPLE_HEIGHT, **looks[text]))
            style.plain_text(sheet, x + _SAMPLE_WIDTH + 5, y, text, SMALL_SIZE, va="center_baseline")
            x += width


def draw_notes(sheet: Axes, notes: Sequence[str], top: float) -> None:
    """Small lines of text on a sheet in points."""
    for number, note in enumerate(notes):
        y = top + number * 12 + 6
        style.plain_text(sheet, MARGIN, y, note, SMALL_SIZE, color=palette().faint_text, va="center_baseline")
