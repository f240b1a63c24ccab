"""Digits with a convolutional network that has skip connections, batch normalization and dropout: a functional model.

python examples/digits_cnn.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import miai_graph as mg
from miai_graph import layers
from miai_graph.digits import load_digits


def residual_block(x: mg.Node, filters: int) -> mg.Node:
    """Two convolutions, with a way around them."""
    around = x if x.shape[-1] == filters else layers.Conv2D(filters, 1, use_bias=False)(x)
    h = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
    h = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(h))
    h = layers.Conv2D(filters, 3, padding="same", use_bias=False)(h)
    h = layers.BatchNormalization(momentum=0.9)(h)
    return layers.ReLU()(layers.Add()([h, around]))


def make_model() -> mg.Model:
    inputs = layers.Input((8, 8, 1), name="image")
    h = residual_block(inputs, 16)
    h = layers.MaxPooling2D()(residual_block(h, 32))
    h = layers.GlobalAveragePooling2D()(residual_block(h, 32))
    outputs = layers.Dense(10, activation="softmax")(layers.Dropout(0.2)(h))
    return mg.Model(inputs, outputs, name="digits_cnn")


def main(epochs: int, folder: Path) -> float:
    mg.set_seed(0)
    digits = load_digits()
    model = make_model()
    model.summary()
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(digits.train_images, digits.train_labels, epochs=epochs, validation_split=0.1)

    _, accuracy = model.evaluate(digits.test_images, digits.test_labels)
    print(f"accuracy on digits held out: {accuracy:.1%}")
    folder.mkdir(parents=True, exist_ok=True)
    mg.plot_model(model, folder / "digits_cnn.png", timing=history.timing)
    history.plot(folder / "digits_cnn_curves.png")
    model.save(folder / "digits_cnn.miai")
    again = mg.load_model(folder / "digits_cnn.miai")
    same = (again.predict(digits.test_images) == model.predict(digits.test_images)).all()
    print(f"saved and loaded: the same predictions to the bit: {same}")
    return float(accuracy)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--folder", type=Path, default=Path("digits_cnn"))
    arguments = parser.parse_args()
    main(arguments.epochs, arguments.folder)
