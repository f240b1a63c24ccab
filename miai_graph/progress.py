"""The progress bar of training and evaluation."""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
from numbers import Real
from typing import TYPE_CHECKING, Any

from miai_graph.callbacks import Callback, Logs
from miai_graph.context import WAIT
from miai_graph.errors import ArgumentError
from miai_graph.terminal import print_text, terminal_console
from miai_graph.timing.account import COMPUTING, Account
from miai_graph.timing.words import percent

if TYPE_CHECKING:
    from rich.progress import Progress

REFRESH_SECONDS = 0.1
WIDTH_BESIDE_FIGURES, WIDTH_OF_FIGURES = 52, 110
"""What title, counts, time and rate need; and what is kept free for them and figures, of the bar."""
SHARES_AFTER_SECONDS = 0.5
LEAST_SHARE = 0.005
SHARES_COST = 0.005
"""The part of the time that may be spent on asking the workers how much of it they compute."""


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


def _bar_width(width: int) -> int:
    """In a terminal of that width."""
    return max(4, min(24, width - WIDTH_OF_FIGURES))


class _Shares:
    """Tells how much of the time of a training is spent on computing and waiting, and asks no oftener than is cheap."""

    def __init__(self) -> None:
        self._due = time.perf_counter() + SHARES_AFTER_SECONDS
        self._text = ""

    def text(self, model: Any) -> str:
        """``compute 81 %  wait 12 %``, of the training so far, or up to a moment ago."""
        begin = time.perf_counter()
        if begin >= self._due:
            account = Account(model.history.timing)
            waiting = account.share(WAIT)
            self._text = f"compute {percent(account.share(COMPUTING))}"
            self._text += f"  wait {percent(waiting)}" if waiting >= LEAST_SHARE else ""
            end = time.perf_counter()
            self._due = end + max(SHARES_AFTER_SECONDS, (end - begin) / SHARES_COST)
        return self._text


class ProgressBar(Callback):
    """A bar for each epoch, with loss, metrics, samples a second and the time left, which a line follows.

    In training, also with the share of the time that workers compute, and that they wait; in the bar, if it fits.

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
        self._shares: _Shares | None = None

    @property
    def _is_fit(self) -> bool:
        return "epochs" in self.params

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self._shares = _Shares()

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
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = terminal_console()
        self._bar = Progress(
            TextColumn("{task.description}"),
            # Not so wide that there is no room for the figures, which tell more.
            BarColumn(bar_width=_bar_width(console.width)),
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
            figures = format_figures(logs)
            self._bar.update(self._task, completed=self._batches, rate=self._rate(), figures=self._fit(figures))
            self._bar.refresh()

    def _fit(self, figures: str) -> str:
        """The figures, and the shares of time where there is room for them."""
        assert self._bar is not None
        shares = self._share_text()
        width = self._bar.console.width
        room = width - _bar_width(width) - WIDTH_BESIDE_FIGURES - len(figures)
        return f"{figures}  {shares}" if shares and len(shares) + 2 <= room else figures

    def _share_text(self) -> str:
        return self._shares.text(self.model) if self._shares is not None else ""

    def _end(self, logs: Logs | None) -> None:
        self.close()
        seconds = time.perf_counter() - self._started
        parts = [self._title, f"{seconds:.1f} s", self._rate(), format_figures(logs), self._share_text()]
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
