"""Curves of what training reported, epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from miai_graph.callbacks import History
from miai_graph.errors import ArgumentError
from miai_graph.op import Array
from miai_graph.views import style
from miai_graph.views.palette import palette, paper

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VALIDATION = "val_"

_WIDTH, _HEIGHT = 300.0, 220.0
_MOST_IN_A_ROW = 3
_MOST_MARKED_EPOCHS = 30


def plot_history(
    history: History | Mapping[str, Sequence[float]],
    path: Any = None,
    *,
    dark: bool = False,
    dpi: float = style.DPI,
) -> Figure:
    """Draw the loss and the metrics by epoch, each in axes of its own: of training, and of validation if there was one.

    Parameters
    ----------
    history : what fit returned; or numbers by name, one an epoch
    path : a file to write, .png, .svg or .pdf; None: none
    dark : whether for dark paper
    dpi : pixels an inch, for .png

    Returns
    -------
    A matplotlib figure, which does not belong to pyplot.

    Raises
    ------
    ArgumentError
        if an argument is of another kind, or there is no epoch to draw.
    SavingError
        if the file cannot be written.
    """
    target = style.check_path(path)
    curves, epochs = _curves(history)
    names = list(dict.fromkeys(name.removeprefix(VALIDATION) for name in curves))
    columns = min(len(names), _MOST_IN_A_ROW)
    rows = math.ceil(len(names) / columns)
    with paper(dark=dark):
        figure = style.new_figure(columns * _WIDTH, rows * _HEIGHT, constrained=True)
        for number, name in enumerate(names):
            axes = figure.add_subplot(rows, columns, number + 1)
            _draw_curves(axes, name, curves, epochs)
    return style.save(figure, target, dpi)


def _curves(history: Any) -> tuple[dict[str, list[float]], list[int]]:
    """The numbers by name, and the epochs, counted from 1."""
    given = history.history if isinstance(history, History) else history
    if not isinstance(given, Mapping):
        raise ArgumentError(f"expected the History that fit returned, or lists of numbers by name; found {history!r}")
    curves: dict[str, list[float]] = {}
    for name, values in given.items():
        try:
            curves[str(name)] = [float(value) for value in values]
        except (TypeError, ValueError):
            raise ArgumentError(f"expected a list of numbers for {name!r}, one an epoch; found {values!r}") from None
    longest = max((len(values) for values in curves.values()), default=0)
    if not longest:
        raise ArgumentError("expected at least one epoch to draw; found none. Was fit called with epochs=0?")
    known = history.epoch if isinstance(history, History) else []
    return curves, [epoch + 1 for epoch in (known if len(known) == longest else range(longest))]


def _epochs_of(values: Array, epochs: Sequence[int]) -> Sequence[int]:
    """The epochs of a curve's numbers: each, every second, every third …, whichever are as many; else the first."""
    for every in range(1, len(epochs) + 1):
        chosen = epochs[every - 1 :: every]
        if len(chosen) == len(values):
            return chosen
    return epochs[: len(values)]


def _draw_curves(axes: Axes, name: str, curves: Mapping[str, Sequence[float]], epochs: Sequence[int]) -> None:
    from matplotlib.ticker import MaxNLocator

    drawn = 0
    for key, label, colour, line, marker in (
        (name, "training", palette().classes[0], "-", "o"),
        (VALIDATION + name, "validation", palette().classes[1], "--", "s"),
    ):
        if key in curves:
            values = np.array(curves[key])
            marks: dict[str, Any] = {"marker": marker, "markersize": 4} if len(epochs) <= _MOST_MARKED_EPOCHS else {}
            axes.plot(
                _epochs_of(values, epochs), values, color=colour, linestyle=line, linewidth=1.6, label=label, **marks
            )
            drawn += int(np.isfinite(values).any())
    style.axes_style(axes, title=name, x_label="epoch", y_label="")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    if len(epochs) == 1:
        axes.set_xlim(epochs[0] - 0.5, epochs[0] + 0.5)
    if VALIDATION + name in curves:
        axes.legend(frameon=False, prop=style.font(8), labelcolor=palette().text)
    if not drawn:
        style.plain_text(axes, 0.5, 0.5, "no finite number", 9, transform=axes.transAxes, ha="center", va="center")
