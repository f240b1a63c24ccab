"""A picture of what a model says of each point of the plane."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from miai_graph.errors import ArgumentError
from miai_graph.op import Array
from miai_graph.views import fonts, style
from miai_graph.views.palette import palette, paper
from miai_graph.views.samples_view import as_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT = 400.0, 320.0
_TOLERANCE = 1e-3


def plot_decision_boundary(
    predict: Callable[[Array], Any],
    x: Any,
    y: Any,
    path: Any = None,
    resolution: int = 200,
    *,
    dark: bool = False,
    dpi: float = style.DPI,
) -> Figure:
    """Draw what is predicted for the points around samples of two features, and the samples.

    Parameters
    ----------
    predict : a function of points [n, 2] (float32), such as ``model.predict``, that gives probabilities of class 1
        ([n] or [n, 1]), scores of classes [n, classes], the greatest of which counts, or the classes as integers [n]
    x : the samples [n, 2]
    y : their classes, integers [n] or [n, 1]
    path : a file to write, .png, .svg or .pdf; None: none
    resolution : how many points along each axis
    dark : whether for dark paper
    dpi : pixels an inch, for .png

    Returns
    -------
    A matplotlib figure, which does not belong to pyplot.

    Raises
    ------
    ArgumentError
        if an argument is of another kind or shape, or predict gives something else.
    SavingError
        if the file cannot be written.
    """
    target = style.check_path(path)
    if isinstance(resolution, bool) or not isinstance(resolution, int | np.integer) or resolution < 2:
        raise ArgumentError(f"expected resolution to be an integer of at least 2; found {resolution!r}")
    if not callable(predict):
        raise ArgumentError(f"expected a function of points, such as model.predict; found {predict!r}")
    points, classes = _samples(as_numbers(x, "samples"), as_numbers(y, "classes"))
    across, up = (_around(points[:, feature], resolution) for feature in (0, 1))
    grid = np.stack(np.meshgrid(across, up), axis=-1).reshape(-1, 2).astype(np.float32)
    values = _predicted(as_numbers(predict(grid), "predictions"), len(grid))

    with paper(dark=dark):
        figure = style.new_figure(_WIDTH, _HEIGHT, constrained=True)
        axes = figure.add_subplot()
        style.axes_style(axes, title="", x_label="feature 0", y_label="feature 1")
        axes.grid(False)
        given = [] if values.dtype.kind == "f" else np.unique(values).tolist()
        found = sorted({*np.unique(classes).tolist(), *given})
        if values.dtype.kind == "f":
            _draw_probabilities(figure, axes, across, up, values)
        else:
            _draw_classes(axes, across, up, values, found)
        _draw_samples(axes, points, classes, found)
        axes.set(xlim=(across[0], across[-1]), ylim=(up[0], up[-1]))
    return style.save(figure, target, dpi)


def _samples(points: Array, classes: Array) -> tuple[Array, Array]:
    if classes.ndim == 2 and classes.shape[1] == 1:
        classes = classes[:, 0]
    if points.ndim != 2 or points.shape[1] != 2 or classes.shape != points.shape[:1] or not len(points):
        raise ArgumentError(
            "expected samples [n, 2] with two features and their classes [n], at least one; "
            f"found shapes {points.shape} and {classes.shape}"
        )
    return points.astype(np.float64), classes.astype(np.int64)


def _around(values: Array, resolution: int) -> Array:
    """From a bit before the least to a bit behind the greatest."""
    low, high = float(values.min()), float(values.max())
    margin = 0.08 * (high - low) or 1.0
    return np.linspace(low - margin, high + margin, resolution)


def _predicted(values: Array, count: int) -> Array:
    """Probabilities of class 1 as floats, or classes as integers, one a point."""
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim not in (1, 2) or len(values) != count:
        raise ArgumentError(f"expected predictions [{count}] or [{count}, classes] from predict; found {values.shape}")
    if values.ndim == 2:
        return values.argmax(axis=1)
    if values.dtype.kind != "f":
        return values.astype(np.int64)
    if not np.all((values >= -_TOLERANCE) & (values <= 1 + _TOLERANCE)):
        raise ArgumentError(
            "expected probabilities from 0 to 1 from predict; "
            f"found numbers from {values.min():.3g} to {values.max():.3g}. Put a sigmoid behind logits"
        )
    return np.clip(values.astype(np.float64), 0.0, 1.0)


def _draw_probabilities(figure: Figure, axes: Axes, across: Array, up: Array, values: Array) -> None:
    from matplotlib.ticker import PercentFormatter

    shape = len(up), len(across)
    levels = np.linspace(0.0, 1.0, 11)
    filled = axes.contourf(across, up, values.reshape(shape), levels=levels, cmap=style.side_colours())
    if values.min() < 0.5 < values.max():
        axes.contour(across, up, values.reshape(shape), levels=[0.5], colors=palette().text, linewidths=1.4)
    bar = figure.colorbar(filled, ax=axes, ticks=levels[::2], format=PercentFormatter(1.0, decimals=0, symbol=" %"))
    bar.outline.set(edgecolor=palette().line, linewidth=0.8)
    bar.ax.tick_params(labelsize=8, labelcolor=palette().text, color=palette().line, labelfontfamily=fonts.FONT)
    bar.set_label("probability of class 1", fontproperties=style.font(8.5), color=palette().text)


def _draw_classes(axes: Axes, across: Array, up: Array, values: Array, found: Sequence[int]) -> None:
    from matplotlib.colors import ListedColormap

    order = {number: place for place, number in enumerate(found)}
    places = np.vectorize(order.__getitem__)(values).reshape(len(up), len(across))
    colours = ListedColormap([style.class_fill(place) for place in range(len(found))])
    axes.pcolormesh(
        across, up, places, cmap=colours, vmin=-0.5, vmax=len(found) - 0.5, shading="nearest", rasterized=True
    )
    for place in range(len(found)):
        region = (places == place).astype(float)
        if region.min() < region.max():
            axes.contour(across, up, region, levels=[0.5], colors=palette().line, linewidths=0.8)


def _draw_samples(axes: Axes, points: Array, classes: Array, found: Sequence[int]) -> None:
    for place, number in enumerate(found):
        own = points[classes == number]
        axes.scatter(
            own[:, 0],
            own[:, 1],
            s=22,
            color=palette().classes[place % len(palette().classes)],
            marker=style.CLASS_MARKERS[place % len(style.CLASS_MARKERS)],
            edgecolors=palette().paper,
            linewidths=0.6,
            label=f"class {number}",
            zorder=3,
        )
    axes.legend(
        prop=style.font(8), labelcolor=palette().text, frameon=False, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4
    )
