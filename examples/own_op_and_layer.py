"""An op and a layer of one's own: softsign, and a layer that scales it with a slope for each feature that is learned.

python examples/own_op_and_layer.py
"""

from __future__ import annotations

import argparse

import numpy as np

import miai_graph as mg
from miai_graph import layers


@mg.op
class softsign:
    """y = x / (1 + abs(x)), element by element."""

    def infer(x):  # the type of the output, from those of the inputs
        return x

    def forward(x):  # in plain NumPy
        return x / (1 + np.abs(x))

    def vjp(g, output, x):  # for each input: its share of the cotangent g, made of nodes
        return [g / mg.square(1.0 + abs(x))]

    batch = mg.placement.elementwise  # works on each element alone, so the batch may be split


class ScaledSoftsign(layers.Layer):
    """softsign(slope · x), with one slope for each feature."""

    def build(self, input_shape):
        self.slope = self.add_weight((input_shape[-1],), "ones", name="slope")

    def call(self, x):
        return softsign(self.slope * x)


def main(epochs: int) -> float:
    mg.set_seed(0)

    # The derivative is checked against differences, the derivative of the derivative too.
    x = mg.input("x", shape=(None, 3))
    rng = np.random.default_rng(0)
    mg.check_gradients(mg.sum(softsign(x)), [x], {x: rng.normal(size=(5, 3))}, order=2)
    print("the derivatives of softsign are right")

    angles = rng.uniform(-3, 3, (2000, 1)).astype("f4")
    model = mg.Sequential(
        [layers.Input((1,)), layers.Dense(32), ScaledSoftsign(), layers.Dense(32), ScaledSoftsign(), layers.Dense(1)]
    )
    model.compile(optimizer=mg.optimizers.Adam(0.01), loss="mse")
    model.fit(angles, np.sin(2 * angles), epochs=epochs)
    loss = float(model.evaluate(angles, np.sin(2 * angles)))
    print(f"mean squared error of sin(2x): {loss:.5f}")

    model.save("own_layer.miai")
    again = mg.load_model("own_layer.miai", custom_objects={"ScaledSoftsign": ScaledSoftsign})
    print(f"loaded again: {float(again.evaluate(angles, np.sin(2 * angles))):.5f}")
    return loss


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40)
    main(parser.parse_args().epochs)
