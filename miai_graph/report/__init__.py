"""The report: graph, timeline and table of a timing, linked with each other, in one HTML file that needs no network.

`drawing` says where boxes stand, `data` collects all that the page shows as plain data, `page` makes the file of it
with the files in ``assets``. `live` serves the same page while a model is trained, by `server`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from miai_graph.timing import Timing

__all__ = ["report"]


def report(
    model_or_graph: Any,
    timing: Timing,
    path: str | Path,
    *,
    compare: Timing | None = None,
    title: str | None = None,
) -> Path:
    """Write a page on where the time went: one HTML file, to be opened with any browser, that loads nothing else.

    It has the verdict on top, below it the graph (layers first; a double click on one shows its ops), a table, and the
    timeline with a lane for each worker. What is clicked in one of them is marked in the others. All works with the
    keyboard as well; the page says how. Its data is readable JSON within it, described in `miai_graph.report.data`.

    Parameters
    ----------
    model_or_graph : a model, a graph, or outputs; drawn is the graph that was timed, if the timing knows it
    timing : such as ``history.timing`` or ``function.timing``
    path : the file to write, which ends in .html
    compare : the timing of another run of the same model, whose differences from `timing` are shown too
    title : of the page; by default the name of the model

    Returns
    -------
    the path

    Raises
    ------
    ArgumentError
        if an argument is of another kind.
    SavingError
        if the file cannot be written.
    """
    # Imported now, so that it costs nothing at start.
    return import_module("miai_graph.report.page").write_report(model_or_graph, timing, path, compare, title)
