"""A lane a worker: what it did in the steps that were traced, slice by slice."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from miai_graph.timing import Timing
from miai_graph.timing.words import duration, plural
from miai_graph.views import style
from miai_graph.views.lanes import Lanes, draw_lanes
from miai_graph.views.time_look import (
    MARGIN,
    SMALL_SIZE,
    draw_legend,
    draw_notes,
    legend_height,
    points_axes,
    unit_of,
    whole_sheet,
)
from miai_graph.views.traced_steps import TracedStep, traced_steps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_STEPS = 4
_PANELS_WIDTH, _BETWEEN = 700.0, 24.0
_NARROWEST = 0.4
_NOTABLE = 1.05
_LONGEST_HOST = 24
_LINE = 9.5
_ABOVE, _BELOW = 16.0, 40.0


@dataclass(frozen=True)
class _Panel:
    """Where a step is drawn, in points."""

    step: TracedStep
    left: float
    width: float

    @property
    def seconds_a_point(self) -> float:
        return self.step.seconds / self.width


def draw_timeline(timing: Timing, steps: Collection[int] | None = None) -> Figure:
    """The figure; steps stand side by side, each from its own beginning.

    Parameters
    ----------
    steps : their numbers; None: up to four of the traced ones
    """
    shown = traced_steps(timing.slices, steps, _MOST_STEPS)
    lanes = Lanes(timing, shown)
    labels = [_label(worker, timing) for worker in lanes.workers]
    notes = [*_notes(timing, shown), *lanes.notes(shown)]
    left = MARGIN + max(style.text_width(line, SMALL_SIZE, True) for label in labels for line in label) + 8
    width = left + _PANELS_WIDTH + MARGIN
    top = MARGIN + _ABOVE
    below = top + lanes.height + _BELOW
    legend = legend_height(lanes.looks, width - 2 * MARGIN)
    figure = style.new_figure(width, below + legend + len(notes) * 12 + MARGIN)
    sheet = whole_sheet(figure)
    for worker, label in zip(lanes.workers, labels, strict=True):
        _write_label(sheet, label, left - 8, top + (lanes.top(worker) + lanes.bottom(worker)) / 2)
    panels = _panels(shown, left)
    coarsest = max(panel.seconds_a_point for panel in panels)
    factor, unit = unit_of(max(step.seconds for step in shown))
    for panel in panels:
        axes = points_axes(figure, panel.left, top, panel.width, lanes.height)
        stretched = coarsest / panel.seconds_a_point
        _set_up(axes, panel, factor, unit if stretched < _NOTABLE else f"{unit}, stretched ×{stretched:.2g}")
        axes.set_ylim(lanes.height, 0)
        draw_lanes(axes, panel.step, lanes, factor, factor / panel.seconds_a_point)
    draw_legend(sheet, lanes.looks, below, width - 2 * MARGIN)
    draw_notes(sheet, notes, below + legend + 4)
    return figure


def _panels(steps: Sequence[TracedStep], left: float) -> list[_Panel]:
    """Each as wide as its step is long, but none so narrow that nothing is seen."""
    room = _PANELS_WIDTH - _BETWEEN * (len(steps) - 1)
    longest = max(step.seconds for step in steps)
    weights = [max(step.seconds / longest, _NARROWEST) for step in steps]
    panels = []
    for step, weight in zip(steps, weights, strict=True):
        panels.append(_Panel(step, left, room * weight / sum(weights)))
        left += panels[-1].width + _BETWEEN
    return panels


def _set_up(axes: Axes, panel: _Panel, factor: float, label: str) -> None:
    """Title and ticks; `factor` is the unit in seconds."""
    from matplotlib.ticker import MaxNLocator

    style.axes_style(axes, title="", x_label=label, y_label="")
    title = f"step {panel.step.number}: {duration(panel.step.seconds)}"
    style.plain_text(axes, 0, -7, title, SMALL_SIZE + 1, bold=True)
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set(xlim=(0, panel.step.seconds / factor), yticks=[])
    axes.xaxis.set_major_locator(MaxNLocator(max(2, int(panel.width / 60))))


def _label(worker: int, timing: Timing) -> list[str]:
    known = next((known for known in timing.workers if known.index == worker), None)
    lines = [f"worker {worker}"]
    if known is not None and known.stage is not None:
        lines.append(f"stage {known.stage}" + (f", replica {known.replica}" if known.replica else ""))
    if known is not None and len({other.host for other in timing.workers}) > 1:
        lines.append(style.shortened(known.host, _LONGEST_HOST))
    return lines


def _write_label(sheet: Axes, lines: Sequence[str], right: float, middle: float) -> None:
    for place, text in enumerate(lines):
        y = middle + (place - (len(lines) - 1) / 2) * _LINE
        style.plain_text(sheet, right, y, text, SMALL_SIZE, bold=place == 0, ha="right", va="center_baseline")


def _notes(timing: Timing, steps: Sequence[TracedStep]) -> list[str]:
    off = max(piece.uncertainty_seconds for step in steps for piece in step.all_slices())
    several = len({worker for step in steps for worker in step.slices}) > 1
    notes = [f"The clocks of the workers agree within {duration(off)}."] if off and several else []
    left_out = len({piece.step for piece in timing.slices}) - len(steps)
    is_are = "is" if left_out == 1 else "are"
    return [*notes, f"{plural(left_out, 'more traced step')} {is_are} not drawn."] if left_out > 0 else notes
