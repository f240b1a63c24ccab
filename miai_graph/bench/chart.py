"""The results as pictures: how many times as fast as the first side, by batch size; how seconds grow with a size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from miai_graph.bench.results import Results, SideResult
from miai_graph.views import style
from miai_graph.views.palette import palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT = 280.0, 210.0
_MOST_IN_A_ROW = 3
_TICKS = (1.0, 3.0)
_GROWTH_WIDTH, _GROWTH_HEIGHT = 330.0, 290.0


def plot_results(results: Results) -> Figure:
    """Draw the sides' speed-ups, with axes of its own for each workload; on a figure that is not pyplot's."""
    names = list(dict.fromkeys(row.workload for row in results.rows))
    columns = min(len(names), _MOST_IN_A_ROW)
    figure = style.new_figure(columns * _WIDTH, math.ceil(len(names) / columns) * _HEIGHT, constrained=True)
    for number, name in enumerate(names):
        axes = figure.add_subplot(math.ceil(len(names) / columns), columns, number + 1)
        _draw(axes, results, name)
    _add_legend(figure, 2 * columns)
    return figure


def plot_growth(results: Results, sizes: Sequence[int], label: str) -> Figure:
    """Draw how long a step takes, and all before the second one, at sizes that grow.

    Parameters
    ----------
    sizes : of the rows
    label : what grows
    """
    figure = style.new_figure(2 * _GROWTH_WIDTH, _GROWTH_HEIGHT, constrained=True)
    curves: dict[str, Callable[[SideResult], float | None]] = {
        "a step": lambda side: side.median,
        "model and first step": _until_first_step,
    }
    for number, (title, seconds) in enumerate(curves.items()):
        axes = figure.add_subplot(1, 2, number + 1)
        for place, side in enumerate(results.sides):
            found = [(size, seconds(row.sides[place])) for size, row in zip(sizes, results.rows, strict=True)]
            known = [(size, 1e3 * took) for size, took in found if took is not None]
            _draw_line(axes, place, side, known)
        _use_logarithms(axes)
        style.axes_style(axes, title=title, x_label=label, y_label="milliseconds")
    _add_legend(figure, len(results.sides))
    return figure


def _use_logarithms(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=_TICKS))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())


def _until_first_step(side: SideResult) -> float | None:
    return None if side.build is None or side.first_cold is None else side.build + side.first_cold


def _add_legend(figure: Figure, columns: int) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(len(labels), columns),
        frameon=False,
        prop=style.font(8),
        labelcolor=palette().text,
    )


def _draw(axes: Axes, results: Results, name: str) -> None:
    rows = sorted((row for row in results.rows if row.workload == name), key=lambda row: row.batch)
    for place, side in enumerate(results.sides):
        points = [(row.batch, ratio) for row in rows if (ratio := row.ratio(place)) is not None]
        _draw_line(axes, place, side, points)
    batches = [row.batch for row in rows]
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    style.axes_style(axes, title=name, x_label="batch", y_label=f"times as fast as {results.sides[0]}")


def _draw_line(axes: Axes, place: int, side: str, points: Sequence[tuple[int, float]]) -> None:
    axes.plot(
        [across for across, _ in points],
        [up for _, up in points],
        color=palette().classes[place % len(palette().classes)],
        marker=style.CLASS_MARKERS[place % len(style.CLASS_MARKERS)],
        linestyle="--" if place == 0 else "-",
        markersize=5,
        label=side,
    )
