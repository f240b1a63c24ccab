"""What happens besides training: at the start and end of training, of epochs, and of batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from importlib import import_module
from time import perf_counter_ns
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from miai_graph.errors import ArgumentError, ModelError
from miai_graph.graph import views
from miai_graph.op import Array
from miai_graph.timing import Timing
from miai_graph.timing.booking import Tally

if TYPE_CHECKING:
    from miai_graph.report.live import LiveReport
    from miai_graph.tensorboard import TensorBoard

__all__ = ["Callback", "CallbackList", "EarlyStopping", "History", "LiveReport", "TensorBoard", "TerminateOnNaN"]

Logs = dict[str, Any]

_LAZY_NAMES = {"LiveReport": "miai_graph.report.live", "TensorBoard": "miai_graph.tensorboard"}
"""Callbacks that are imported when they are used."""


def __getattr__(name: str) -> Any:
    if name in _LAZY_NAMES:
        return getattr(import_module(_LAZY_NAMES[name]), name)
    raise AttributeError(f"module 'miai_graph.callbacks' has no attribute {name!r}")


class Callback:
    """Override the methods of the moments at which something shall happen, and pass it to ``fit(callbacks=[...])``.

    Attributes
    ----------
    model : the model that is trained; a callback may set ``model.stop_training = True``
    params : a dictionary: "verbose"; "steps", the number of batches; in `fit` also "epochs" and "metrics", the names of
        all that will be reported
    """

    model: Any = None
    params: Mapping[str, Any] = MappingProxyType({})

    def set_model(self, model: Any) -> None:
        """Told once, before anything else."""
        self.model = model

    def set_params(self, params: Mapping[str, Any]) -> None:
        """Told once, before anything else."""
        self.params = params

    def close(self) -> None:
        """Told last, also if training failed or was interrupted: let go of files, threads and the like."""

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Before the first epoch."""

    def on_train_end(self, logs: Logs | None = None) -> None:
        """After the last epoch, also if training was stopped."""

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Before an epoch, counted from 0."""

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """After an epoch and its validation; `logs` has loss, metrics, and the same with val_ before."""

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """Before a training step, counted from 0 in each epoch."""

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """After a training step; `logs` has the means of the epoch so far."""

    def on_test_begin(self, logs: Logs | None = None) -> None:
        """Before evaluation or validation."""

    def on_test_end(self, logs: Logs | None = None) -> None:
        """After evaluation or validation."""

    def on_test_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """Before a batch of evaluation."""

    def on_test_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """After a batch of evaluation."""

    def on_predict_begin(self, logs: Logs | None = None) -> None:
        """Before prediction."""

    def on_predict_end(self, logs: Logs | None = None) -> None:
        """After prediction."""

    def on_predict_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """Before a batch of prediction."""

    def on_predict_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """After a batch of prediction; `logs` has its "outputs"."""


class History(Callback):
    """What ``fit`` returns: the losses and metrics of each epoch, and where the time went.

    Attributes
    ----------
    history : lists by name, one number an epoch
    epoch : the numbers of the epochs
    """

    def __init__(self) -> None:
        self._timing: Timing | None = None
        self._ask_timing: Callable[[], Timing] | None = None
        self.history: dict[str, list[float]] = {}
        self.epoch: list[int] = []

    def follow(self, ask_timing: Callable[[], Timing]) -> None:
        """Have the timing asked for whenever it is read, until `settle`."""
        self._ask_timing = ask_timing

    def settle(self) -> None:
        """Keep the timing as it is now."""
        self._timing, self._ask_timing = self.timing, None

    @property
    def timing(self) -> Timing:
        """Where the time of this fit went; while it goes on, where it went so far.

        Raises
        ------
        ModelError
            if training has not begun.
        """
        if self._ask_timing is not None:
            return self._ask_timing()
        if self._timing is None:
            raise ModelError("expected a history of training; found that it has not begun. Call model.fit")
        return self._timing

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        self.epoch.append(epoch)
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(value)

    def plot(self, path: Any = None, **options: Any) -> Any:
        """Draw the curves; see `miai_graph.views.plot_history`."""
        return views["plot_history"](self, path, **options)

    def _repr_png_(self) -> Any:
        """What notebooks show; None: nothing, before the first epoch."""
        return views["png_bytes"](self.plot()) if self.epoch else None

    def __repr__(self) -> str:
        last = ", ".join(f"{name} {values[-1]:.4g}" for name, values in self.history.items())
        return f"<History of {len(self.epoch)} epochs: {last}>"


class EarlyStopping(Callback):
    """Stops training when a figure no longer gets better. Keras's arguments.

    Parameters
    ----------
    monitor : the name of the figure: "val_loss", "loss", "val_accuracy" …
    min_delta : by how much it must get better to count
    patience : how many epochs to go on without getting better
    verbose : 1 to print when training stops
    mode : "min", "max", or "auto": by the name, "max" for accuracies
    baseline : what must be reached to count
    restore_best_weights : whether to go back to the weights of the best epoch
    start_from_epoch : how many epochs to let pass at first
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        min_delta: float = 0.0,
        patience: int = 0,
        verbose: int = 0,
        mode: str = "auto",
        baseline: float | None = None,
        restore_best_weights: bool = False,
        start_from_epoch: int = 0,
    ) -> None:
        if mode not in ("auto", "min", "max"):
            raise ArgumentError(f"expected mode 'auto', 'min' or 'max'; found {mode!r}")
        rising = mode == "max" or (mode == "auto" and ("acc" in monitor or monitor.endswith("auc")))
        self.monitor = monitor
        self.min_delta = abs(min_delta)
        self.patience = patience
        self.verbose = verbose
        self.mode = "max" if rising else "min"
        self.baseline = baseline
        self.restore_best_weights = restore_best_weights
        self.start_from_epoch = start_from_epoch
        self.on_train_begin()

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self.wait = 0
        self.stopped_epoch = 0
        self.best_epoch = 0
        self.best = -math.inf if self.mode == "max" else math.inf
        self.best_weights: list[Array] | None = None

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        value = self._monitored(logs or {})
        if value is None or epoch < self.start_from_epoch:
            return
        if self.restore_best_weights and self.best_weights is None:
            self.best_weights, self.best_epoch = self.model.get_weights(), epoch
        self.wait += 1
        if self._is_better(value, self.best):
            self.best, self.best_epoch = value, epoch
            if self.restore_best_weights:
                self.best_weights = self.model.get_weights()
            if self.baseline is None or self._is_better(value, self.baseline):
                self.wait = 0
            return
        if self.wait >= self.patience and epoch > 0:
            self.stopped_epoch = epoch
            self.model.stop_training = True

    def on_train_end(self, logs: Logs | None = None) -> None:
        if self.stopped_epoch and self.verbose:
            print(f"epoch {self.stopped_epoch + 1}: early stopping")
        if self.restore_best_weights and self.best_weights is not None:
            if self.verbose:
                print(f"weights set back to those of epoch {self.best_epoch + 1}, the best one")
            self.model.set_weights(self.best_weights)

    def _monitored(self, logs: Logs) -> float | None:
        """The figure, or None if it will be reported, but not in this epoch."""
        value = logs.get(self.monitor)
        if value is None and self.monitor not in self.params.get("metrics", ()):
            raise ArgumentError(
                f"expected a figure that training reports as monitor of EarlyStopping; found {self.monitor!r}. "
                f"There are: {', '.join(logs)}"
            )
        return value

    def _is_better(self, value: float, than: float) -> bool:
        return value - self.min_delta > than if self.mode == "max" else value + self.min_delta < than


class TerminateOnNaN(Callback):
    """Stops training when the loss is no longer a number, as with a learning rate that is too high."""

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(loss):
            print(f"batch {batch}: the loss is {loss}, training stops")
            self.model.stop_training = True


class CallbackList:
    """Several callbacks as one; knows which moments none of them cares for, so that these cost nothing.

    Attributes
    ----------
    time : that they took
    """

    def __init__(self, callbacks: Iterable[Callback], model: Any, params: Mapping[str, Any]) -> None:
        self.callbacks = list(callbacks)
        self.time = Tally()
        for callback in self.callbacks:
            if not isinstance(callback, Callback):
                raise ArgumentError(
                    f"expected callbacks derived from miai_graph.callbacks.Callback; found {callback!r}"
                )
            callback.set_model(model)
            callback.set_params(params)

    def listens(self, moment: str) -> bool:
        return any(getattr(type(callback), moment) is not getattr(Callback, moment) for callback in self.callbacks)

    def call(self, moment: str, *arguments: Any) -> None:
        """Tell all of them of a moment, by the name of the method."""
        start_ns = perf_counter_ns()
        for callback in self.callbacks:
            getattr(callback, moment)(*arguments)
        self.time.add(perf_counter_ns() - start_ns)

    def close(self) -> None:
        """Close all of them, also if closing one of them fails."""
        with ExitStack() as closing:
            for callback in reversed(self.callbacks):
                closing.callback(callback.close)
