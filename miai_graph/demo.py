"""The demonstration: a convolutional network learns handwritten digits, on one's own machine, in under a minute."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from miai_graph import layers, views
from miai_graph.context import set_seed
from miai_graph.digits import load_digits
from miai_graph.model import Sequential


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


def run_demo(
    folder: Path, *, epochs: int = 15, executor: str = "serial", seed: int = 0, verbose: str | int = "auto"
) -> float:
    """Train, test, and write pictures.

    Parameters
    ----------
    folder : where the pictures go; made if it is not there
    epochs, executor : as for `Model.fit`
    verbose : "auto" is a bar on a terminal, and else a line an epoch
    seed : of weights, dropout and shuffling

    Returns
    -------
    the share of the held-out digits that are read right
    """
    set_seed(seed)
    digits = load_digits()
    model = make_digits_cnn()
    model.summary()
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"], executor=executor)
    print(f"\nTraining on {len(digits.train_labels)} handwritten digits, executor {executor!r}:")
    start = time.perf_counter()
    history = model.fit(
        digits.train_images,
        digits.train_labels,
        batch_size=32,
        epochs=epochs,
        verbose=(1 if sys.stdout.isatty() else 2) if verbose == "auto" else verbose,
    )
    seconds = time.perf_counter() - start
    _, accuracy = model.evaluate(digits.test_images, digits.test_labels, verbose=0)
    rate = epochs * len(digits.train_labels) / seconds
    print(f"\n{accuracy:.2%} of the {len(digits.test_labels)} digits held out are read right,")
    print(f"after {seconds:.1f} s of training at {rate:,.0f} samples a second. Where the time went:\n")
    history.timing.table(limit=12)
    predictions = model.predict(digits.test_images, verbose=0)
    folder.mkdir(parents=True, exist_ok=True)
    views.plot_model(model, folder / "model.png", timing=history.timing)
    views.plot_history(history, folder / "curves.png")
    views.plot_predictions(digits.test_images, digits.test_labels, predictions, folder / "predictions.png", count=24)
    print(f"\nPictures: {', '.join(str(folder / name) for name in ('model.png', 'curves.png', 'predictions.png'))}")
    wrong = int(np.sum(predictions.argmax(axis=1) != digits.test_labels))
    print(f"{wrong} of {len(digits.test_labels)} digits were read wrong.")
    return float(accuracy)
