"""Several timings of the same work side by side: how fast each is, and what its workers do all the time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from miai_graph.context import BACKWARD, COMMUNICATION, FORWARD, RECOMPUTE, UPDATE, WAIT
from miai_graph.errors import ArgumentError
from miai_graph.timing import Timing
from miai_graph.timing.account import Account
from miai_graph.timing.words import plural
from miai_graph.views import style
from miai_graph.views.palette import palette, paper
from miai_graph.views.shares import format_share
from miai_graph.views.time_look import (
    MARGIN,
    SMALL_SIZE,
    TITLE_SIZE,
    count_workers,
    draw_legend,
    draw_notes,
    legend_height,
    phase_look,
    points_axes,
    whole_sheet,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW, _BAR = 30.0, 17.0
_SPEEDS_WIDTH, _SHARES_WIDTH, _BETWEEN = 300.0, 240.0, 28.0
_LONGEST_NAME = 36
_NAME_SIZE = 8.5
_COMPUTE = "compute"
_PARTS = (_COMPUTE, COMMUNICATION, WAIT, "other")


@dataclass(frozen=True)
class _Run:
    """One timing: samples or steps a second, how often as fast as the first, and as it would ideally be."""

    name: str
    speed: float
    ratio: float
    ideal: float
    workers: int
    shares: Mapping[str, float]

    @property
    def text(self) -> str:
        return f"{_readable(self.speed)}  ×{self.ratio:.2f}"


def plot_scaling(
    timings: Mapping[str, Timing],
    path: Any = None,
    *,
    samples_per_step: int | None = None,
    dark: bool = False,
    dpi: float = style.DPI,
) -> Figure:
    """Draw how fast the same work is done in several ways, against the first, and where the workers' time goes.

    Parameters
    ----------
    timings : by name, such as ``{"serial": first, "processes × 2": second}``
    path : a file to write, .png, .svg or .pdf; None: none
    samples_per_step : to show samples a second; None: steps a second
    dark : whether for dark paper
    dpi : pixels an inch, for .png

    Returns
    -------
    A matplotlib figure, which does not belong to pyplot. Marks tell what as many times as many workers would ideally
    reach.

    Raises
    ------
    ArgumentError
        if an argument is of another kind, or a timing has no steps.
    SavingError
        if the file cannot be written.
    """
    target = style.check_path(path)
    _check(timings, samples_per_step)
    runs = _runs(timings, samples_per_step or 1)
    with paper(dark=dark):
        figure = _drawn(runs, "steps a second" if samples_per_step is None else "samples a second")
    return style.save(figure, target, dpi)


def _check(timings: Any, samples_per_step: Any) -> None:
    if not isinstance(timings, Mapping) or not timings:
        raise ArgumentError(f"expected timings by name, such as {{'serial': history.timing}}; found {timings!r}")
    for name, timing in timings.items():
        if not isinstance(timing, Timing):
            raise ArgumentError(f"expected a Timing as {name!r}, such as history.timing; found {timing!r}")
        if not timing.steps or not timing.wall_seconds:
            raise ArgumentError(f"expected a timing of at least one step as {name!r}; found {timing!r}")
    is_count = isinstance(samples_per_step, int) and not isinstance(samples_per_step, bool) and samples_per_step > 0
    if samples_per_step is not None and not is_count:
        raise ArgumentError(f"expected samples_per_step to be a positive integer, or None; found {samples_per_step!r}")


def _runs(timings: Mapping[str, Timing], samples: int) -> list[_Run]:
    speeds = [timing.steps * samples / timing.wall_seconds for timing in timings.values()]
    workers = [count_workers(timing) for timing in timings.values()]
    return [
        _Run(
            style.shortened(str(name), _LONGEST_NAME),
            speed,
            speed / speeds[0],
            speeds[0] * count / workers[0],
            count,
            _shares(timing),
        )
        for (name, timing), speed, count in zip(timings.items(), speeds, workers, strict=True)
    ]


def _shares(timing: Timing) -> dict[str, float]:
    sums = dict.fromkeys(_PARTS, 0.0)
    for record in Account(timing).records:
        part = _COMPUTE if record.phase in (FORWARD, RECOMPUTE, BACKWARD, UPDATE) else record.phase
        sums[part if part in sums else "other"] += record.seconds
    total = sum(sums.values()) or 1.0
    return {part: value / total for part, value in sums.items()}


def _drawn(runs: Sequence[_Run], unit: str) -> Figure:
    names_width = max(
        style.text_width(text, size)
        for run in runs
        for text, size in ((run.name, _NAME_SIZE), (plural(run.workers, "worker"), SMALL_SIZE))
    )
    texts_width = max(style.text_width(run.text, SMALL_SIZE) for run in runs)
    first = MARGIN + names_width + 8
    second = first + _SPEEDS_WIDTH + 6 + texts_width + _BETWEEN
    width = second + _SHARES_WIDTH + MARGIN + 8
    top, height = MARGIN + TITLE_SIZE * 2.4, len(runs) * _ROW
    below = top + height + 42
    looks = {part: _look(part) for part in _PARTS if any(run.shares[part] for run in runs)}
    legend = legend_height(looks, width - 2 * MARGIN)
    notes = [f"│ marks what as many workers would reach at best: {unit} of {runs[0].name}, times the workers."]
    figure = style.new_figure(width, below + legend + len(notes) * 12 + MARGIN)
    sheet = whole_sheet(figure)
    for x, title in ((first, "How fast"), (second, "What the workers do")):
        style.plain_text(sheet, x, MARGIN + TITLE_SIZE, title, TITLE_SIZE, bold=True)
    for place, run in enumerate(runs):
        y = top + (place + 0.5) * _ROW
        options: dict[str, Any] = {"ha": "right", "va": "center_baseline"}
        style.plain_text(sheet, first - 8, y - 5.5, run.name, _NAME_SIZE, **options)
        faint = palette().faint_text
        style.plain_text(sheet, first - 8, y + 5.5, plural(run.workers, "worker"), SMALL_SIZE, color=faint, **options)
    _draw_speeds(points_axes(figure, first, top, _SPEEDS_WIDTH, height), runs, unit)
    _draw_shares(points_axes(figure, second, top, _SHARES_WIDTH, height), runs)
    draw_legend(sheet, looks, below, width - 2 * MARGIN)
    draw_notes(sheet, notes, below + legend + 4)
    return figure


def _look(part: str) -> dict[str, Any]:
    if part == _COMPUTE:
        return {"facecolor": palette().time_fills[FORWARD], "edgecolor": "none"}
    return phase_look(part)


def _prepare(axes: Axes, count: int, label: str, end: float) -> None:
    style.axes_style(axes, title="", x_label=label, y_label="")
    axes.grid(False, axis="y")
    axes.set(xlim=(0, end), ylim=(count - 0.5, -0.5), yticks=[])


def _draw_speeds(axes: Axes, runs: Sequence[_Run], unit: str) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    _prepare(axes, len(runs), unit, 1.02 * max(max(run.speed, run.ideal) for run in runs))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    half = _BAR / _ROW / 2
    for place, run in enumerate(runs):
        axes.barh(place, run.speed, height=2 * half, color=style.tint(palette().classes[0], 0.6))
        axes.plot([run.ideal] * 2, [place - 1.35 * half, place + 1.35 * half], color=palette().text, linewidth=2.0)
        end = axes.get_xlim()[1]
        style.text_beside(axes, (end, place), (6, 0), run.text, SMALL_SIZE)


def _draw_shares(axes: Axes, runs: Sequence[_Run]) -> None:
    from matplotlib.ticker import PercentFormatter

    _prepare(axes, len(runs), "share of the workers' time", 1.0)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    for place, run in enumerate(runs):
        reached = 0.0
        for part in _PARTS:
            share = run.shares[part]
            axes.barh(place, share, left=reached, height=_BAR / _ROW, **_look(part))
            text = format_share(share)
            if style.text_width(text, SMALL_SIZE) + 8 < share * _SHARES_WIDTH:
                options: dict[str, Any] = {"color": style.text_on(_look(part)["facecolor"])}
                if part == WAIT:
                    options["bbox"] = {"facecolor": palette().paper, "edgecolor": "none", "pad": 1.0}
                x = reached + share / 2
                style.plain_text(axes, x, place, text, SMALL_SIZE, ha="center", va="center_baseline", **options)
            reached += share


def _readable(number: float) -> str:
    """With three digits that count, or all before the point."""
    digits = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{number:,.{digits}f}"
