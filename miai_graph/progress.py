"""The progress bar of training and evaluation."""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
from numbers import Real
from typing import TYPE_CHECKING, Any

from miai_graph.callbacks import Callback, Logs
from miai_graph.errors import ArgumentError
from miai_graph.terminal import print_text

if TYPE_CHECKING:
    from rich.progress import Progress

REFRESH_SECONDS = 0.1
WIDTH_OF_FIGURES = 90


def resolve_verbose(verbose: Any) -> int:
    """0 (quiet), 1 (bar) or 2 (a line an epoch), from what the user said.

    "auto" is a bar on a terminal, else quiet. A bar that is asked for where there is no terminal becomes lines.

    Raises
    ------
    ArgumentError
        for anything but "auto", 0, 1 and 2.
    """
    if verbose not in ("auto", 0, 1, 2):
        raise ArgumentError(f"expected verbose 'auto', 0, 1 or 2; found {verbose!r}")
    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    if verbose == "auto":
        return int(on_terminal)
    return 2 if verbose == 1 and not on_terminal else int(verbose)


def format_figures(logs: Logs | None) -> str:
    """``loss 0.1234  accuracy 0.9876``, with as many digits as tell."""
    return "  ".join(f"{name} {_format_figure(value)}" for name, value in (logs or {}).items())


def _format_figure(value: Any) -> str:
    if not isinstance(value, Real):
        return str(value)
    figure = float(value)
    return f"{figure:.4f}" if 1e-3 <= abs(figure) < 1e4 or figure == 0 else f"{figure:.3e}"


class ProgressBar(Callback):
    """A bar for each epoch, with loss, metrics, samples a second and the time left, which a line follows.

    Parameters
    ----------
    verbose : 1; or 2 for the lines alone
    batch_size : of all batches but perhaps the last
    samples : in an epoch, if that is known
    """

    def __init__(self, verbose: int, batch_size: int, samples: int | None) -> None:
        self.verbose = verbose
        self._batch_size = batch_size
        self._samples = samples
        self._bar: Progress | None = None
        self._task: Any = None
        self._title = ""
        self._refreshed = 0.0
        self._started = 0.0
        self._stopped: float | None = None
        self._batches = 0

    @property
    def _is_fit(self) -> bool:
        return "epochs" in self.params

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self._begin(f"epoch {epoch + 1}/{self.params['epochs']}")

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self._advance(batch, logs)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        self._end(logs)

    def on_test_begin(self, logs: Logs | None = None) -> None:
        if self._is_fit:
            self._stopped = time.perf_counter()
        else:
            self._begin("evaluate")

    def on_test_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        if not self._is_fit:
            self._advance(batch, logs)

    def on_test_end(self, logs: Logs | None = None) -> None:
        if not self._is_fit:
            self._end(logs)

    def on_predict_begin(self, logs: Logs | None = None) -> None:
        self._begin("predict")

    def on_predict_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self._advance(batch, None)

    def on_predict_end(self, logs: Logs | None = None) -> None:
        self._end(None)

    def _begin(self, title: str) -> None:
        self._title = title
        self._started, self._stopped, self._refreshed, self._batches = time.perf_counter(), None, 0.0, 0
        if self.verbose == 1:
            self._open()

    def _open(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console()
        self._bar = Progress(
            TextColumn("{task.description}"),
            # Not so wide that there is no room for the figures, which tell more.
            BarColumn(bar_width=max(4, min(24, console.width - WIDTH_OF_FIGURES))),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[figures]}"),
            console=console,
            auto_refresh=False,
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task(self._title, total=self.params.get("steps"), rate="", figures="")

    def _advance(self, batch: int, logs: Logs | None) -> None:
        self._batches = batch + 1
        now = time.perf_counter()
        if self._bar is not None and now - self._refreshed >= REFRESH_SECONDS:
            self._refreshed = now
            self._bar.update(self._task, completed=self._batches, rate=self._rate(), figures=format_figures(logs))
            self._bar.refresh()

    def _end(self, logs: Logs | None) -> None:
        self.close()
        seconds = time.perf_counter() - self._started
        parts = [self._title, f"{seconds:.1f} s", self._rate(), format_figures(logs)]
        text = "  ".join(part for part in parts if part)
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else len(text) + 1
        print_text(textwrap.fill(text, width, subsequent_indent="    "))

    def _rate(self) -> str:
        seconds = (self._stopped or time.perf_counter()) - self._started
        samples = self._batches * self._batch_size
        if self._samples is not None:
            samples = min(samples, self._samples)
        return f"{samples / seconds:,.0f} samples/s" if seconds > 0 else ""

    def close(self) -> None:
        """Leave the terminal as it was; also after an error or Ctrl-C."""
        if self._bar is not None:
            bar, self._bar = self._bar, None
            bar.stop()
