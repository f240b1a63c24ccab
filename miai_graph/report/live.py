"""The report while a model is trained: a page on this machine that keeps itself up to date."""

from __future__ import annotations

import time
import weakref
import webbrowser
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from miai_graph.callbacks import Callback, Logs
from miai_graph.errors import ArgumentError
from miai_graph.report.data import GraphData, finite, graph_of, report_data, to_json
from miai_graph.report.page import check_page_path, check_writable, render, title_of, write_page
from miai_graph.report.server import ReportServer, check_port
from miai_graph.terminal import print_text

STEP_SECONDS = "seconds a step"
"""The name of the curve of how long steps take."""

_MOST_POINTS = 2000


class LiveReport(Callback):
    """Shows a training while it goes on: the page of `miai_graph.report`, with curves of losses, metrics, step times.

    The page is served to browsers on this machine only, while `fit` runs. The address is printed. Drawing the
    graph takes a moment at the start; from then on it costs time only while somebody looks at it.

    >>> model.fit(x, y, callbacks=[callbacks.LiveReport(path="training.html")])

    Parameters
    ----------
    port : where to serve it; 0: anywhere that is free
    open_browser : whether to show it at once
    path : a file, ending in .html, to which the page is written at the end, also if training fails or is interrupted;
        None: none
    refresh_seconds : the least time between one state of the page and the next

    Attributes
    ----------
    address : of the page; None while nothing is served

    Raises
    ------
    ArgumentError
        if an argument is of another kind; when training begins, if the port is not free.
    SavingError
        when training begins, if `path` cannot be written.
    """

    def __init__(
        self,
        port: int = 0,
        open_browser: bool = False,
        *,
        path: str | Path | None = None,
        refresh_seconds: float = 1.0,
    ) -> None:
        if isinstance(refresh_seconds, bool) or not isinstance(refresh_seconds, int | float) or refresh_seconds < 0:
            raise ArgumentError(f"expected refresh_seconds to be at least 0; found {refresh_seconds!r}")
        check_port(port)
        self.port = port
        self.open_browser = open_browser
        self.path = None if path is None else check_page_path(path)
        self.refresh_seconds = refresh_seconds
        self._server: ReportServer | None = None
        self._graph: GraphData | None = None
        self._end: Any = None

    @property
    def address(self) -> str | None:
        return None if self._server is None else self._server.address

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self._stop()
        if self.path is not None:
            check_writable(self.path)
        self._server = server = ReportServer(partial(render, title_of(self.model), with_curves=True), self.port)
        # Also if nobody closes it, as in a loop of one's own.
        self._end = weakref.finalize(self, server.close)
        self._curves = Curves()
        self._epoch = 0
        self._published = 0.0
        self._publish(server, is_over=False)
        print_text(f"live report: {server.address}")
        if self.open_browser:
            webbrowser.open(server.address)

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self._epoch = epoch
        self._curves.begin()

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        steps = self.params.get("steps")
        done = self._epoch + (batch + 1) / steps if steps else self._epoch + 1 - 1 / (batch + 2)
        self._curves.add_batch(done, logs or {})
        self._publish_if_due()

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        self._curves.add_epoch(epoch + 1, logs or {})
        self._publish_if_due()

    def on_train_end(self, logs: Logs | None = None) -> None:
        self.close()

    def close(self) -> None:
        """Write the page, and stop serving it. `fit` does so at its end, however it ends; may be called again."""
        server = self._server
        try:
            if server is not None and self._published and (server.is_watched or self.path is not None):
                self._publish(server, is_over=True)
        finally:
            self._stop()

    def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._end is not None:
            self._end.detach()
        self._server = self._end = None

    def _publish_if_due(self) -> None:
        server = self._server
        is_time = time.monotonic() - self._published >= self.refresh_seconds
        if is_time and server is not None and server.is_watched:
            self._publish(server, is_over=False)

    def _publish(self, server: ReportServer, *, is_over: bool) -> None:
        timing = self.model.history.timing
        graph = graph_of(self.model, timing)
        if self._graph is None or self._graph.graph is not graph:
            self._graph = GraphData(graph)
        title = title_of(self.model)
        data = report_data(self._graph, timing, None, title, self._curves.columns())
        data["live"] = {"version": server.version + 1, "is_over": is_over}
        server.publish(to_json(data))
        self._published = time.monotonic()
        if is_over and self.path is not None:
            write_page(render(title, to_json(data | {"live": None}), with_curves=True), self.path)


class Curves:
    """Losses, metrics and step times so far; of long trainings not of every step."""

    def __init__(self) -> None:
        self._batches: list[tuple[float, dict[str, float | None]]] = []
        self._epochs: list[tuple[float, dict[str, float | None]]] = []
        self._every = 1
        self._count = 0
        self._last = time.perf_counter()

    def begin(self) -> None:
        """An epoch begins: what was before it belongs to no step."""
        self._last = time.perf_counter()

    def add_batch(self, done: float, logs: Mapping[str, Any]) -> None:
        """The figures after a step, when so many epochs are done."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        self._count += 1
        if self._count % self._every:
            return
        self._batches.append((done, {**_numbers(logs), STEP_SECONDS: seconds}))
        if len(self._batches) > _MOST_POINTS:
            self._batches = self._batches[1::2]
            self._every *= 2

    def add_epoch(self, done: float, logs: Mapping[str, Any]) -> None:
        """The figures of a whole epoch, with those of its validation."""
        self._epochs.append((done, _numbers(logs)))

    def columns(self) -> dict[str, list[float | None]]:
        """By name; x is how many epochs were done."""
        points = sorted([*self._batches, *self._epochs], key=lambda point: point[0])
        names = dict.fromkeys(name for _, figures in points for name in figures)
        return {
            "x": [round(done, 6) for done, _ in points],
            **{name: [figures.get(name) for _, figures in points] for name in names if name != "x"},
        }


def _numbers(logs: Mapping[str, Any]) -> dict[str, float | None]:
    return {name: finite(float(value)) for name, value in logs.items()}
