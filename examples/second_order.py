"""Derivatives of derivatives: Newton's method, with Hessian-vector products that never form the Hessian.

Logistic regression with a quadratic penalty has one minimum. Gradient descent creeps towards it; Newton's method is
there in a few steps. Each solves H d = g by conjugate gradients, which need the Hessian only times a vector: that is
the derivative of ⟨g, v⟩.

    python examples/second_order.py
"""

from __future__ import annotations

import argparse

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import StandardScaler

import miai_graph as mg


def main(steps: int) -> float:
    mg.set_seed(0)
    data = load_breast_cancer()
    features = StandardScaler().fit_transform(data.data)
    labels = data.target.astype("f8")

    x = mg.input("x", shape=(None, 30), dtype="float64")
    y = mg.input("y", shape=(None,), dtype="float64")
    w = mg.parameter(np.zeros(30), name="w")
    loss = mg.mean(mg.sigmoid_cross_entropy(x @ w, y)) + 0.005 * mg.sum(w**2)
    (gradient,) = mg.grad(loss, [w])

    v = mg.input("v", shape=(30,), dtype="float64")
    (product,) = mg.grad(mg.sum(gradient * v), [w])  # a gradient is a graph like any other

    value = mg.function([x, y], [loss, gradient])
    hessian_times = mg.function([x, y, v], [product])

    def solve(g: np.ndarray) -> np.ndarray:
        """Conjugate gradients for H d = g."""
        d, r = np.zeros(30), g.copy()
        p, rr = r.copy(), r @ r
        while rr > 1e-20:
            (hp,) = hessian_times(features, labels, p)
            step = rr / (p @ hp)
            d, r = d + step * p, r - step * hp
            p, rr = r + (r @ r) / rr * p, r @ r
        return d

    print("step  loss          length of the gradient")
    for step in range(steps):
        current, g = value(features, labels)
        print(f"{step:4d}  {current:.10f}  {np.linalg.norm(g):.2e}")
        mg.assign(w, w.value - solve(g))
    current, g = value(features, labels)
    print(f"{steps:4d}  {current:.10f}  {np.linalg.norm(g):.2e}")
    return float(np.linalg.norm(g))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    main(parser.parse_args().steps)
