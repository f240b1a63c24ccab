"""Random graphs for property tests: made of ops that keep values finite and shapes broadcastable to (batch, 3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

import miai_graph as mg
from miai_graph.interpreter import evaluate
from miai_graph.ops.elementwise import identity


@dataclass
class DrawnGraph:
    """A graph with its inputs, in order, and the parameter that it reads and updates."""

    graph: mg.Graph
    inputs: list[mg.Node]
    parameter: mg.Node

    def arrays(self, batch_size: int) -> list[np.ndarray]:
        rng = np.random.default_rng(batch_size)
        return [rng.uniform(-1, 1, (batch_size, 3)), rng.uniform(-1, 1, 3)]

    def feeds(self, batch_size: int) -> dict[mg.Node, np.ndarray]:
        return dict(zip(self.inputs, self.arrays(batch_size), strict=True))

    def values(self, graph: mg.Graph, batch_size: int) -> list[np.ndarray]:
        outputs, updates = evaluate(graph, self.feeds(batch_size), batch_size=batch_size)
        return [*outputs, *updates.values()]


UNARY = {
    "tanh": mg.tanh,
    "negative": mg.negative,
    "absolute": mg.absolute,
    "relu": mg.relu,
    "sigmoid": mg.sigmoid,
    "square": lambda a: mg.tanh(mg.square(a)),
    "identity": identity,
    "stop_gradient": mg.stop_gradient,
    "times one": lambda a: 1.0 * a,
    "plus number": lambda a: a + 0.25,
    "times ones": lambda a: a * mg.ones_like(a),
    "folded": lambda a: a + mg.exp(mg.negative(np.ones(1))),
    "there and back": lambda a: mg.reshape(mg.reshape(a, -1), a.type.shape),
    "turned twice": lambda a: mg.transpose(mg.transpose(a)),
    "single": lambda a: mg.cast(mg.cast(a, "float32"), "float64"),
    "mean": mg.mean,
    "root": lambda a: mg.rsqrt(1.0 + mg.square(a)),
}
ALONG_AXIS = {
    "sum": lambda a: mg.tanh(mg.sum(a, -1, keepdims=True)),
    "first axis": lambda a: mg.tanh(mg.mean(a, 0)),
    "backwards": lambda a: a[..., ::-1],
    "greatest": lambda a: mg.max(a, -1, keepdims=True),
    "softmax": mg.softmax,
    "joined": lambda a: mg.concatenate([a, -a], -1)[..., ::2],
    "padded": lambda a: mg.pad(a, [(0, 0)] * (a.ndim - 1) + [(1, 0)])[..., 1:],
}
BINARY = {
    "add": mg.add,
    "subtract": mg.subtract,
    "multiply": lambda a, b: mg.tanh(a * b),
    "maximum": mg.maximum,
    "where": lambda a, b: mg.where(a > b, a, b * 0.5),
    "divide": lambda a, b: a / (1.0 + mg.square(b)),
}


@st.composite
def drawn_graphs(draw: st.DrawFn) -> DrawnGraph:
    mg.set_seed(0)
    x, y = mg.input("x", (None, 3), "float64"), mg.input("y", (3,), "float64")
    w = mg.parameter(np.array([0.5, -0.25, 0.75]), "w")
    nodes = [x, y, w]
    for _ in range(draw(st.integers(1, 10))):
        name = draw(st.sampled_from([*UNARY, *ALONG_AXIS, *BINARY]))
        first = draw(st.sampled_from(nodes[-6:]))
        if name in BINARY:
            nodes.append(BINARY[name](first, draw(st.sampled_from(nodes[-6:]))))
        elif name in UNARY:
            nodes.append(UNARY[name](first))
        elif first.ndim and first.shape[-1] is not None:
            nodes.append(ALONG_AXIS[name](first))
    (gradient,) = mg.grad(mg.mean(mg.tanh(nodes[-1] * w)), [w])
    outputs = draw(st.lists(st.sampled_from(nodes), max_size=2))
    return DrawnGraph(mg.Graph([nodes[-1], gradient, *outputs], {w: w - 0.1 * gradient}), [x, y], w)
