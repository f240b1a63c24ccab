"""Training that is equal to the bit on one process and on several: a network with batch normalization and dropout.

python examples/reproducible_processes.py
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import miai_graph as mg
from miai_graph import layers
from miai_graph.digits import load_digits
from miai_graph.executor import Executor


def make_model() -> mg.Sequential:
    return mg.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Conv2D(16, 3, use_bias=False),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.3),
            layers.Dense(10, activation="softmax"),
        ]
    )


def train(executor: Executor, epochs: int) -> list[np.ndarray]:
    """The weights after training on an executor, always from the same seed."""
    mg.set_seed(0)
    digits = load_digits()
    model = make_model()
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"], executor=executor)
    start = time.perf_counter()
    model.fit(digits.train_images, digits.train_labels, epochs=epochs, verbose=0)
    seconds = time.perf_counter() - start
    _, accuracy = model.evaluate(digits.test_images, digits.test_labels, verbose=0)
    print(f"{executor!r}: {seconds:.2f} s, held out: {accuracy:.2%}")
    return model.get_weights()


def main(epochs: int) -> None:
    with mg.executor("serial", reproducible=True) as executor:
        expected = train(executor, epochs)
    for workers in (1, 2, 4):
        with mg.executor("processes", workers=workers, reproducible=True) as executor:
            found = train(executor, epochs)
        different = [a for a, b in zip(expected, found, strict=True) if a.tobytes() != b.tobytes()]
        if different:
            raise SystemExit(f"{len(different)} of {len(expected)} weights differ with {workers} workers")
    values = sum(weights.size for weights in expected)
    print(f"all {values:,} values of {len(expected)} weights are equal to the bit")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5)
    main(parser.parse_args().epochs)
