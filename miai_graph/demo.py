"""The demonstration: a convolutional network learns handwritten digits, on one's own machine, on each executor."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from miai_graph import layers, views
from miai_graph.bench.specs import SideSpec, check_distinct, parse_executors
from miai_graph.callbacks import Callback, History, Logs
from miai_graph.context import set_seed
from miai_graph.digits import Digits, load_digits
from miai_graph.errors import MissingDependencyError
from miai_graph.executor import Executor, executor, executor_names
from miai_graph.model import Sequential
from miai_graph.op import Array
from miai_graph.report import report
from miai_graph.terminal import print_rich, print_text

if TYPE_CHECKING:
    from rich.table import Table

BATCH_SIZE = 32


def make_digits_cnn() -> Sequential:
    """A small convolutional network for images of 8 × 8 pixels and ten classes."""
    return Sequential(
        [
            layers.Input((8, 8, 1), name="image"),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.BatchNormalization(momentum=0.9),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.BatchNormalization(momentum=0.9),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.BatchNormalization(momentum=0.9),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.4),
            layers.Dense(10, activation="softmax"),
        ],
        name="digits_cnn",
    )


def default_executors() -> list[str]:
    """All that are installed; first of them "serial" with one thread, with which the others are compared."""
    return list(dict.fromkeys(["serial:threads=1", "serial", *executor_names()]))


@dataclass(frozen=True)
class _Measured:
    """What one epoch on an executor gave."""

    name: str
    workers: int
    threads: int
    samples_per_second: float
    weights: list[Array]
    accuracy: float
    notes: tuple[str, ...]

    def difference(self, other: _Measured) -> float:
        """The largest difference in weights."""
        return max(float(np.abs(a - b).max()) for a, b in zip(self.weights, other.weights, strict=True))


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration found.

    executor : that trained for all epochs
    seconds, samples_per_second : of that training
    accuracy : the share of the held-out digits that are read right
    history : of that training, with its timing
    files : pictures and the report
    compared : what one epoch on each executor gave, if there are several
    left_out : executors of which packages are not installed, with the reason
    """

    executor: str
    seconds: float
    samples_per_second: float
    accuracy: float
    history: History
    files: Sequence[Path]
    compared: Sequence[_Measured] = ()
    left_out: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data, as Python's json writes it; the timing as `Timing.to_json` gives it."""
        timing = self.history.timing
        figures = self.history.history.items()
        return {
            "executor": self.executor,
            "seconds": self.seconds,
            "samples_per_second": self.samples_per_second,
            "accuracy": self.accuracy,
            "history": {name: [value if math.isfinite(value) else None for value in kept] for name, kept in figures},
            "files": list(map(str, self.files)),
            "compared": [
                {
                    "executor": measured.name,
                    "workers": measured.workers,
                    "threads": measured.threads,
                    "samples_per_second": measured.samples_per_second,
                    "difference": measured.difference(self.compared[0]),
                    "accuracy": measured.accuracy,
                    "notes": list(measured.notes),
                }
                for measured in self.compared
            ],
            "left_out": list(self.left_out),
            "verdict": list(timing.verdict()),
            "timing": timing.to_json(),
        }


def run_demo(
    folder: Path,
    *,
    epochs: int = 15,
    executors: Sequence[str] = (),
    seed: int = 0,
    verbose: str | int = "auto",
) -> DemoResult:
    """Train on the first executor, test, draw, and report; then compare it with the others.

    Parameters
    ----------
    folder : where the pictures and the report go; made if it is not there
    epochs : as for `Model.fit`
    executors : such as "processes" or "processes:workers=4"; `default_executors` if there are none
    verbose : "auto" is a bar on a terminal, and else a line an epoch
    seed : of weights, dropout and shuffling

    Raises
    ------
    ArgumentError, ExecutorError
        if an executor is given twice, cannot be had, or has no such option.
    """
    specs = parse_executors(",".join(executors or default_executors()))
    check_distinct(specs)
    digits = load_digits()
    result = _train_and_draw(specs[0], digits, folder, epochs, seed, verbose)
    if len(specs) == 1:
        return result
    compared, left_out = _compare(specs, digits, seed, leave_out=not executors)
    return replace(result, compared=compared, left_out=left_out)


def _train_and_draw(
    spec: SideSpec, digits: Digits, folder: Path, epochs: int, seed: int, verbose: str | int
) -> DemoResult:
    with executor(spec.name, **spec.options) as chosen:
        model = _make_compiled(chosen, seed)
        model.summary()
        print_text(f"\nTraining on {len(digits.train_labels)} handwritten digits, executor {spec.text!r}:")
        start = time.perf_counter()
        history = _fit(model, digits, epochs, (1 if sys.stdout.isatty() else 2) if verbose == "auto" else verbose)
        seconds = time.perf_counter() - start
        _, accuracy = model.evaluate(digits.test_images, digits.test_labels, verbose=0)
        rate = epochs * len(digits.train_labels) / seconds
        print_text(f"\n{accuracy:.2%} of the {len(digits.test_labels)} digits held out are read right,")
        print_text(f"after {seconds:.1f} s of training at {rate:,.0f} samples a second. Where the time went:\n")
        history.timing.table(limit=12)
        print_text(f"\n{history.timing.verdict()}")
        files = _draw(model, history, digits, folder)
        return DemoResult(spec.text, seconds, rate, float(accuracy), history, files)


def _draw(model: Sequential, history: History, digits: Digits, folder: Path) -> list[Path]:
    """Write the pictures and the report. Returns their paths."""
    predictions = model.predict(digits.test_images, verbose=0)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [folder / name for name in ("model.png", "curves.png", "predictions.png")]
    views.plot_model(model, pictures[0], timing=history.timing)
    views.plot_history(history, pictures[1])
    views.plot_predictions(digits.test_images, digits.test_labels, predictions, pictures[2], count=24)
    page = report(model, history.timing, folder / "report.html")
    print_text(f"\nPictures: {', '.join(map(str, pictures))}")
    print_text(f"The graph, its times and a timeline, to be opened with a browser: {page}")
    wrong = int(np.sum(predictions.argmax(axis=1) != digits.test_labels))
    print_text(f"{wrong} of {len(digits.test_labels)} digits were read wrong.")
    return [*pictures, page]


def _make_compiled(chosen: Executor, seed: int) -> Sequential:
    """The model with the weights of the seed, which also says the order of the digits and the dropout."""
    set_seed(seed)
    model = make_digits_cnn()
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"], executor=chosen)
    return model


def _fit(
    model: Sequential, digits: Digits, epochs: int, verbose: str | int, callbacks: Sequence[Callback] = ()
) -> History:
    return model.fit(
        digits.train_images,
        digits.train_labels,
        batch_size=BATCH_SIZE,
        epochs=epochs,
        verbose=verbose,
        callbacks=callbacks,
    )


class _Clock(Callback):
    """Takes the time at the end of each batch."""

    def __init__(self) -> None:
        self._ends: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self._ends.append(time.perf_counter())

    def step_seconds(self) -> float:
        """Of the median step, which neither start-up nor trials with fewer workers belong to."""
        return float(np.median(np.diff(self._ends)))


def _compare(
    specs: Sequence[SideSpec], digits: Digits, seed: int, *, leave_out: bool
) -> tuple[list[_Measured], list[str]]:
    """Train for an epoch on each executor, and print how fast it was and how far the weights are from the first's.

    Returns what was measured, and who is left out and why.

    Parameters
    ----------
    leave_out : executors of which packages are not installed, instead of raising
    """
    print_text(f"\nOne epoch on each executor, from the same weights, in batches of {BATCH_SIZE}:")
    results, missing = [], []
    for spec in specs:
        try:
            results.append(_measure(spec, digits, seed))
        except MissingDependencyError as error:
            if not leave_out:
                raise
            missing.append(f"{spec.text}: left out: {error}")
    table = _comparison(results)
    print_rich(lambda console: console.print(table))
    for line in (*missing, *(f"{result.name}: {note}" for result in results for note in result.notes)):
        print_text(line)
    print_text(
        "Samples a second are those of the median step. Weights differ by rounding alone: sums are taken in another\n"
        "order, and training makes such differences grow. With reproducible=True there are none."
    )
    return results, missing


def _measure(spec: SideSpec, digits: Digits, seed: int) -> _Measured:
    with executor(spec.name, **spec.options) as chosen:
        model = _make_compiled(chosen, seed)
        model.warmup(BATCH_SIZE)
        clock = _Clock()
        history = _fit(model, digits, epochs=1, verbose=0, callbacks=[clock])
        _, accuracy = model.evaluate(digits.test_images, digits.test_labels, verbose=0)
        return _Measured(
            spec.text,
            len(chosen.workers),
            chosen.workers[0].threads,
            BATCH_SIZE / clock.step_seconds(),
            model.get_weights(),
            accuracy,
            history.timing.notes,
        )


def _comparison(results: Sequence[_Measured]) -> Table:
    from rich import box
    from rich.table import Table

    first = results[0]
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("executor", no_wrap=True)
    for name in ("workers × threads", "samples/s", "speed-up", "largest difference in weights", "accuracy"):
        table.add_column(name, justify="right")
    for result in results:
        table.add_row(
            result.name,
            f"{result.workers} × {result.threads}",
            f"{result.samples_per_second:,.0f}",
            f"{result.samples_per_second / first.samples_per_second:.2f}×",
            "" if result is first else _format_difference(result.difference(first)),
            f"{result.accuracy:.2%}",
        )
    return table


def _format_difference(largest: float) -> str:
    return f"{largest:.1e}" if largest else "0"
