"""Two moons: a small network learns to tell two interleaved half-circles apart, and the boundary between them is drawn.

python examples/two_moons.py
"""

from __future__ import annotations

import argparse

from sklearn.datasets import make_moons
from sklearn.model_selection import train_test_split

import miai_graph as mg
from miai_graph import layers
from miai_graph.views import plot_decision_boundary


def main(epochs: int, picture: str) -> float:
    mg.set_seed(0)
    points, classes = make_moons(n_samples=1000, noise=0.2, random_state=0)
    x_train, x_test, y_train, y_test = train_test_split(points, classes, test_size=0.25, random_state=0)

    model = mg.Sequential(
        [
            layers.Input((2,)),
            layers.Dense(32, activation="relu"),
            layers.Dense(32, activation="relu"),
            layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile(optimizer="adam", loss="binary_crossentropy", metrics=["accuracy"])
    model.fit(x_train, y_train, batch_size=32, epochs=epochs)

    _, accuracy = model.evaluate(x_test, y_test)
    print(f"accuracy on points held out: {accuracy:.1%}")
    plot_decision_boundary(lambda grid: model.predict(grid)[:, 0], x_test, y_test, picture)
    print(f"the boundary: {picture}")
    return float(accuracy)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--picture", default="two_moons.png")
    arguments = parser.parse_args()
    main(arguments.epochs, arguments.picture)
