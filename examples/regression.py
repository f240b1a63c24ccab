"""A regression: how far a disease has gone after a year, from ten measurements (the diabetes data of scikit-learn).

Beside the network, linear regression on the same split, so that one sees what the network is worth here.

    python examples/regression.py
"""

from __future__ import annotations

import argparse

import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import miai_graph as mg
from miai_graph import layers, regularizers


def main(epochs: int) -> float:
    mg.set_seed(0)
    x, y = load_diabetes(return_X_y=True, scaled=False)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.25, random_state=0)
    scaler = StandardScaler().fit(x_train)
    x_train, x_test = scaler.transform(x_train), scaler.transform(x_test)
    mean, spread = y_train.mean(), y_train.std()

    penalty = regularizers.L2(0.02)
    model = mg.Sequential(
        [
            layers.Input((10,)),
            layers.Dense(32, activation="tanh", kernel_regularizer=penalty),
            layers.Dropout(0.2),
            layers.Dense(1, kernel_regularizer=penalty),
        ]
    )
    model.compile(optimizer="rmsprop", loss="mean_squared_error", metrics=["mean_absolute_error"])
    model.fit(x_train, (y_train - mean) / spread, batch_size=16, epochs=epochs)

    predicted = model.predict(x_test)[:, 0] * spread + mean
    error = float(np.abs(predicted - y_test).mean())
    linear = float(np.abs(LinearRegression().fit(x_train, y_train).predict(x_test) - y_test).mean())
    print(
        f"mean absolute error: network {error:.1f}, linear regression {linear:.1f}, always the mean "
        f"{np.abs(y_test - mean).mean():.1f}"
    )
    return error


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=60)
    main(parser.parse_args().epochs)
