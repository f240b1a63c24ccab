"""Scalars for TensorBoard: losses, metrics, and where the time went."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miai_graph.callbacks import Callback, Logs
from miai_graph.errors import ArgumentError, MissingDependencyError, SavingError

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

VALIDATION = "val_"
TRAIN_FOLDER, VALIDATION_FOLDER = "train", "validation"


class TensorBoard(Callback):
    """Writes figures of training for TensorBoard; look at them with ``tensorboard --logdir logs``. Keras's names.

    Of each epoch "epoch_loss" and so on, of training in the folder "train" and of validation in "validation"; at the
    end the seconds of a step by layer and by phase, as "seconds/layer/dense" and "seconds/phase/backward".
    Needs the extra `tensorboard`.

    Parameters
    ----------
    log_dir : the folder; made if it is not there
    update_freq : "epoch"; or "batch", or a number of batches, to write "batch_loss" and so on that often too

    Raises
    ------
    ArgumentError
        if an argument is none of these.
    MissingDependencyError
        if tensorboardX is not installed.
    SavingError
        when training begins, if the folder cannot be written.
    """

    def __init__(self, log_dir: str | Path = "logs", update_freq: str | int = "epoch") -> None:
        if not isinstance(log_dir, str | Path):
            raise ArgumentError(f"expected log_dir to be a string or a Path; found {log_dir!r}")
        is_count = isinstance(update_freq, int) and not isinstance(update_freq, bool) and update_freq > 0
        if update_freq not in ("epoch", "batch") and not is_count:
            raise ArgumentError(
                f"expected update_freq to be 'epoch', 'batch' or a positive number of batches; found {update_freq!r}"
            )
        self.log_dir = Path(log_dir)
        self.update_freq = update_freq
        self._make_writer = _writer_class()
        self._writers: dict[str, SummaryWriter] = {}
        self._batches = 0

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self.close()
        self._batches = 0
        self._writer(TRAIN_FOLDER)

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self._batches += 1
        every = {"epoch": 0, "batch": 1}.get(str(self.update_freq), self.update_freq)
        if isinstance(every, int) and every and self._batches % every == 0:
            self._write(TRAIN_FOLDER, "batch_", logs or {}, self._batches)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        figures = logs or {}
        training = {name: value for name, value in figures.items() if not name.startswith(VALIDATION)}
        validation = {
            name.removeprefix(VALIDATION): value for name, value in figures.items() if name.startswith(VALIDATION)
        }
        self._write(TRAIN_FOLDER, "epoch_", training, epoch)
        if validation:
            self._write(VALIDATION_FOLDER, "epoch_", validation, epoch)

    def on_train_end(self, logs: Logs | None = None) -> None:
        timing = self.model.history.timing
        for by in ("layer", "phase"):
            seconds = {group.node.strip("()"): group.seconds / max(timing.steps, 1) for group in timing.grouped(by)}
            self._write(TRAIN_FOLDER, f"seconds/{by}/", seconds, self._batches)
        self.close()

    def _write(self, folder: str, prefix: str, figures: Mapping[str, Any], step: int) -> None:
        writer = self._writer(folder)
        for name, value in figures.items():
            writer.add_scalar(f"{prefix}{name}", float(value), step)
        writer.flush()

    def close(self) -> None:
        """End the files. `fit` does so at its end, however it ends."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _writer(self, folder: str) -> SummaryWriter:
        if folder not in self._writers:
            path = self.log_dir / folder
            try:
                self._writers[folder] = self._make_writer(str(path))
            except OSError as error:
                raise SavingError(f"expected a folder that can be written; found {path} ({error})") from error
        return self._writers[folder]


def _writer_class() -> type[SummaryWriter]:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise MissingDependencyError(
            "expected tensorboardX, which writes for TensorBoard; found none. Install it: "
            "pip install 'miai-graph[tensorboard]'"
        ) from error
    return SummaryWriter
