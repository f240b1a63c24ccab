"""The results as a picture: how many times as fast as the first side, by batch size."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from miai_graph.bench.results import Results
from miai_graph.views import style
from miai_graph.views.palette import palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT = 280.0, 210.0
_MOST_IN_A_ROW = 3


def plot_results(results: Results, path: Path | None = None) -> Figure:
    """Draw the sides' speed-ups, with axes of its own for each workload.

    Parameters
    ----------
    path : a file to write, .png, .svg or .pdf; None: none

    Returns
    -------
    A matplotlib figure, which does not belong to pyplot.

    Raises
    ------
    ArgumentError, SavingError
        if the path's suffix is of another kind, or the file cannot be written.
    """
    target = style.check_path(path)
    names = list(dict.fromkeys(row.workload for row in results.rows))
    columns = min(len(names), _MOST_IN_A_ROW)
    figure = style.new_figure(columns * _WIDTH, math.ceil(len(names) / columns) * _HEIGHT, constrained=True)
    for number, name in enumerate(names):
        axes = figure.add_subplot(math.ceil(len(names) / columns), columns, number + 1)
        _draw(axes, results, name)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(len(labels), 2 * columns),
        frameon=False,
        prop=style.font(8),
        labelcolor=palette().text,
    )
    return style.save(figure, target)


def _draw(axes: Axes, results: Results, name: str) -> None:
    rows = sorted((row for row in results.rows if row.workload == name), key=lambda row: row.batch)
    for place, side in enumerate(results.sides):
        points = [(row.batch, ratio) for row in rows if (ratio := row.ratio(place)) is not None]
        axes.plot(
            [batch for batch, _ in points],
            [ratio for _, ratio in points],
            color=palette().classes[place % len(palette().classes)],
            marker=style.CLASS_MARKERS[place % len(style.CLASS_MARKERS)],
            linestyle="--" if place == 0 else "-",
            markersize=5,
            label=side,
        )
    batches = [row.batch for row in rows]
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    style.axes_style(axes, title=name, x_label="batch", y_label=f"times as fast as {results.sides[0]}")
