"""Pictures of a timing: bars by layer, lanes of workers, and what the machine could do."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from miai_graph.errors import ArgumentError
from miai_graph.timing import Timing
from miai_graph.timing.grouping import GroupBy
from miai_graph.timing.table import check_limit
from miai_graph.views import style
from miai_graph.views.bars_view import draw_bars
from miai_graph.views.palette import paper
from miai_graph.views.roofline_view import draw_roofline
from miai_graph.views.timeline_view import draw_timeline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ("layers", "timeline", "roofline")


def plot_timing(
    timing: Timing,
    path: Any = None,
    kind: str = "layers",
    *,
    by: GroupBy = "layer",
    limit: int | None = 30,
    steps: Collection[int] | None = None,
    dark: bool = False,
    dpi: float = style.DPI,
) -> Figure:
    """Draw where the time went.

    Parameters
    ----------
    timing : such as ``history.timing``
    path : a file to write, .png, .svg or .pdf; None: none
    kind : "layers": bars, stacked by phase, the longest first; "timeline": what each worker did in the steps that were
        traced; "roofline": arithmetic a second against arithmetic a byte, below what the machine can do
    by : what a bar or a point of the roofline is: "layer", "op", "node", "phase" and so on, see `Timing.table`
    limit : the number of bars; the rest are one. None: all
    steps : the numbers of those to draw in a timeline. By default up to four of the traced ones, the last among them
    dark : whether for dark paper
    dpi : pixels an inch, for .png

    Returns
    -------
    A matplotlib figure, which does not belong to pyplot.

    Raises
    ------
    ArgumentError
        if an argument is of another kind, or nothing that could be drawn was timed.
    SavingError
        if the file cannot be written.
    """
    target = style.check_path(path)
    if not isinstance(timing, Timing):
        raise ArgumentError(f"expected a Timing, such as history.timing; found {timing!r}")
    check_limit(limit)
    with paper(dark=dark):
        if kind == "layers":
            figure = draw_bars(timing, by, limit)
        elif kind == "timeline":
            figure = draw_timeline(timing, steps)
        elif kind == "roofline":
            figure = draw_roofline(timing, by)
        else:
            raise ArgumentError(f"expected kind to be one of {', '.join(KINDS)}; found {kind!r}")
    return style.save(figure, target, dpi)
