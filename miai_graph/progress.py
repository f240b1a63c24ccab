"""The progress bar of training and evaluation."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from miai_graph.callbacks import Callback, Logs

if TYPE_CHECKING:
    from rich.progress import Progress

REFRESH_SECONDS = 0.1


def resolve_verbose(verbose: str | int) -> int:
    """0 (quiet), 1 (bar) or 2 (a line an epoch), from what the user said: "auto" is a bar on a terminal, else quiet."""
    if verbose == "auto":
        return int(sys.stdout.isatty())
    return int(verbose)


def format_figures(logs: Logs | None) -> str:
    """``loss 0.1234  accuracy 0.9876``, with as many digits as tell."""
    return "  ".join(
        f"{name} {value:.4f}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{name} {value:.3e}"
        for name, value in (logs or {}).items()
    )


class ProgressBar(Callback):
    """A bar for each epoch, with loss, metrics, samples a second and the time left; or a line for each, if `verbose` is 2."""

    def __init__(self, verbose: int, batch_size: int | None, samples: int | None) -> None:
        self.verbose = verbose
        self._batch_size = batch_size
        self._samples = samples
        self._bar: Progress | None = None
        self._task: Any = None
        self._refreshed = 0.0
        self._started = 0.0
        self._seen = 0

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self._started, self._seen, self._refreshed = time.perf_counter(), 0, 0.0
        if self.verbose == 1:
            self._open(f"epoch {epoch + 1}/{self.params['epochs']}")

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self._advance(batch, logs)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        seconds = time.perf_counter() - self._started
        if self.verbose == 2:
            epochs = self.params["epochs"]
            print(f"epoch {epoch + 1}/{epochs}  {seconds:.1f} s  {self._rate(seconds)}  {format_figures(logs)}")
        self._close(logs)

    def on_train_end(self, logs: Logs | None = None) -> None:
        self._close(logs)

    def on_test_begin(self, logs: Logs | None = None) -> None:
        if self._bar is None and self.verbose == 1 and "epochs" not in self.params:
            self._started, self._seen = time.perf_counter(), 0
            self._open("evaluate")

    def on_test_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        if "epochs" not in self.params:
            self._advance(batch, logs)

    def on_test_end(self, logs: Logs | None = None) -> None:
        if "epochs" not in self.params:
            if self.verbose == 2:
                print(f"evaluate  {format_figures(logs)}")
            self._close(logs)

    def on_predict_begin(self, logs: Logs | None = None) -> None:
        if self.verbose == 1:
            self._started, self._seen = time.perf_counter(), 0
            self._open("predict")

    def on_predict_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self._advance(batch, logs)

    def on_predict_end(self, logs: Logs | None = None) -> None:
        self._close(logs)

    def _open(self, title: str) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[figures]}"),
            auto_refresh=False,
        )
        self._bar.start()
        self._task = self._bar.add_task(title, total=self.params.get("steps"), rate="", figures="")

    def _advance(self, batch: int, logs: Logs | None) -> None:
        self._seen = batch + 1
        if self._bar is None:
            return
        now = time.perf_counter()
        if now - self._refreshed >= REFRESH_SECONDS:
            self._refreshed = now
            self._show(logs)

    def _show(self, logs: Logs | None) -> None:
        assert self._bar is not None
        rate = self._rate(time.perf_counter() - self._started)
        self._bar.update(self._task, completed=self._seen, rate=rate, figures=format_figures(logs))
        self._bar.refresh()

    def _rate(self, seconds: float) -> str:
        if self._batch_size is None or seconds <= 0:
            return ""
        samples = self._seen * self._batch_size
        if self._samples is not None:
            samples = min(samples, self._samples)
        return f"{samples / seconds:,.0f} samples/s"

    def _close(self, logs: Logs | None) -> None:
        if self._bar is not None:
            self._show(logs)
            self.close()

    def close(self) -> None:
        """Leave the terminal as it was; also after an error or Ctrl-C."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
