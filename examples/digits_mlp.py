"""Digits with a multilayer perceptron, and where the time of a step goes.

python examples/digits_mlp.py
"""

from __future__ import annotations

import argparse

import miai_graph as mg
from miai_graph import callbacks, layers, optimizers
from miai_graph.digits import load_digits


def main(epochs: int) -> float:
    mg.set_seed(0)
    digits = load_digits()

    model = mg.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(10),  # logits: the loss below takes them as they are, which is faster and more exact
        ]
    )
    model.compile(
        optimizer=optimizers.SGD(learning_rate=0.05, momentum=0.9),
        loss=mg.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    history = model.fit(
        digits.train_images,
        digits.train_labels,
        epochs=epochs,
        validation_split=0.1,
        callbacks=[callbacks.EarlyStopping("val_accuracy", patience=10, restore_best_weights=True)],
    )

    _, accuracy = model.evaluate(digits.test_images, digits.test_labels)
    print(f"accuracy on digits held out: {accuracy:.1%}, after {len(history.epoch)} epochs")
    history.timing.table(by="op", limit=8)
    return float(accuracy)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=50)
    main(parser.parse_args().epochs)
