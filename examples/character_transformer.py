"""A character-level transformer, put together from layers and ops, learns to write like Python's own documentation.

The text is the language reference that comes with Python itself (`pydoc_data.topics`), so nothing is downloaded.
(Vaswani et al. 2017, arXiv:1706.03762; layer normalization before each part, as in GPT-2.)

    python examples/character_transformer.py
"""

from __future__ import annotations

import argparse
import math
from pydoc_data.topics import topics

import numpy as np

import miai_graph as mg
from miai_graph import layers, losses, optimizers

CONTEXT = 64


class CausalSelfAttention(layers.Layer):
    """Each character looks at those before it, with several heads."""

    def __init__(self, heads: int, **options):
        super().__init__(**options)
        self.heads = heads

    def build(self, input_shape):
        width = input_shape[-1]
        self.project_in = layers.Dense(3 * width, use_bias=False, name="project_in")
        self.project_out = layers.Dense(width, use_bias=False, name="project_out")

    def call(self, x):
        _, length, width = x.shape
        size = width // self.heads
        parts = self.project_in(x).reshape((None, length, 3, self.heads, size))
        q, k, v = (mg.transpose(parts[:, :, part], (0, 2, 1, 3)) for part in range(3))  # [batch, heads, length, size]
        scores = q @ mg.transpose(k, (0, 1, 3, 2)) * (1 / math.sqrt(size))
        future = np.triu(np.ones((length, length), bool), 1)
        weights = mg.softmax(mg.where(future, -1e9, scores))
        mixed = mg.transpose(weights @ v, (0, 2, 1, 3)).reshape((None, length, width))
        return self.project_out(mixed)


class PositionEmbedding(layers.Layer):
    """Adds to each place of the sequence a vector of its own."""

    def build(self, input_shape):
        self.places = self.add_weight(input_shape[1:], "uniform", name="places")

    def call(self, x):
        return x + self.places


def make_model(characters: int, width: int, blocks: int, heads: int) -> mg.Model:
    inputs = layers.Input((CONTEXT,), dtype="int64", name="characters")
    h = PositionEmbedding()(layers.Embedding(characters, width)(inputs))
    for _ in range(blocks):
        h = h + CausalSelfAttention(heads)(layers.LayerNormalization()(h))
        inner = layers.Dense(4 * width, activation="relu")(layers.LayerNormalization()(h))
        h = h + layers.Dense(width)(inner)
    return mg.Model(inputs, layers.Dense(characters)(layers.LayerNormalization()(h)))


def write(model: mg.Model, start: str, alphabet: str, length: int, temperature: float = 0.5) -> str:
    """Let the model go on from a start, one character after another."""
    rng = np.random.default_rng(0)
    numbers = [alphabet.index(character) for character in start]
    for _ in range(length):
        window = numbers[-CONTEXT:]
        padded = np.array([window + [0] * (CONTEXT - len(window))])
        logits = model.predict(padded)[0, len(window) - 1] / temperature
        probabilities = np.exp(logits - logits.max(), dtype=np.float64)
        numbers.append(int(rng.choice(len(alphabet), p=probabilities / probabilities.sum())))
    return "".join(alphabet[number] for number in numbers)


def main(epochs: int, samples: int, width: int, blocks: int, length: int) -> float:
    mg.set_seed(0)
    text = "\n".join(topics[name] for name in sorted(topics)).encode("ascii", "ignore").decode()
    alphabet = "".join(sorted(set(text)))
    encoded = np.array([alphabet.index(character) for character in text[:300_000]])
    starts = np.random.default_rng(0).integers(0, len(encoded) - CONTEXT - 1, samples)
    windows = np.stack([encoded[start : start + CONTEXT + 1] for start in starts])

    model = make_model(len(alphabet), width, blocks, heads=4)
    model.compile(
        optimizer=optimizers.Adam(2e-3),
        loss=losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.summary()
    history = model.fit(windows[:, :-1], windows[:, 1:], batch_size=32, epochs=epochs, verbose=2)
    final = history.history["loss"][-1]
    print(f"{final / math.log(2):.2f} bits a character; a uniform guess takes {math.log2(len(alphabet)):.2f}")
    print("\n" + write(model, "The statement", alphabet, length))
    return float(final)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--length", type=int, default=300, help="of the text to be written at the end")
    arguments = parser.parse_args()
    main(arguments.epochs, arguments.samples, arguments.width, arguments.blocks, arguments.length)
