"""The costs that ops state, in numbers: flops as their docstrings say, and each array moved once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import miai_graph as mg
from miai_graph.op import Cost
from miai_graph.types import bind_type

BATCH = 4
ELEMENTS = BATCH * 6
MATRIX, ROW, LABELS = 4 * ELEMENTS, 4 * BATCH, 8 * BATCH
"""Bytes of x [4,6] in float32, of a number for each sample, and of a label for each."""

COSTS: dict[str, tuple[Callable[[mg.Node, mg.Node], mg.Node], int, int]] = {
    "exp": (lambda x, i: mg.exp(x), ELEMENTS, 2 * MATRIX),
    "add": (lambda x, i: x + 2 * x, ELEMENTS, 3 * MATRIX),
    "sigmoid": (lambda x, i: mg.sigmoid(x), 4 * ELEMENTS, 2 * MATRIX),
    "clip": (lambda x, i: mg.clip(x, 0.0, 1.0), 2 * ELEMENTS, 2 * MATRIX),
    "where": (lambda x, i: mg.where(x > 0, x, -x), ELEMENTS, 3 * MATRIX + ELEMENTS),
    "cast": (lambda x, i: mg.cast(x, "float64"), ELEMENTS, 3 * MATRIX),
    "sum": (lambda x, i: mg.sum(x, axis=1), ELEMENTS, MATRIX + ROW),
    "max": (lambda x, i: mg.max(x, axis=1), ELEMENTS, MATRIX + ROW),
    "argmax": (lambda x, i: mg.argmax(x, axis=1), ELEMENTS, MATRIX + LABELS),
    "logsumexp": (lambda x, i: mg.logsumexp(x, axis=1), 4 * ELEMENTS, MATRIX + ROW),
    "softmax": (lambda x, i: mg.softmax(x), 5 * ELEMENTS, 2 * MATRIX),
    "log_softmax": (lambda x, i: mg.log_softmax(x), 5 * ELEMENTS, 2 * MATRIX),
    "sparse_softmax_cross_entropy": (
        lambda x, i: mg.sparse_softmax_cross_entropy(x, i),
        5 * ELEMENTS,
        MATRIX + LABELS + ROW,
    ),
    "softmax_cross_entropy": (lambda x, i: mg.softmax_cross_entropy(x, x), 7 * ELEMENTS, 2 * MATRIX + ROW),
    "sigmoid_cross_entropy": (lambda x, i: mg.sigmoid_cross_entropy(x, x), 8 * ELEMENTS, 3 * MATRIX),
    "take": (lambda x, i: mg.take(np.zeros((10, 3), "f4"), i, axis=0), 0, 2 * 3 * ROW + LABELS),
    "one_hot": (lambda x, i: mg.one_hot(i, 5), 5 * BATCH, LABELS + 5 * ROW),
    "matmul": (lambda x, i: x @ np.zeros((6, 5), "f4"), 2 * BATCH * 6 * 5, MATRIX + 4 * 30 + 5 * ROW),
    "concatenate": (lambda x, i: mg.concatenate([x, x], 1), 0, 4 * MATRIX),
    "pad": (lambda x, i: mg.pad(x, ((0, 0), (1, 1))), 0, MATRIX + 8 * ROW),
    "slice": (lambda x, i: x[:, ::2], 0, 0),
    "transpose": (lambda x, i: mg.transpose(x), 0, 0),
    "reshape": (lambda x, i: x.reshape(-1), 0, 0),
    "broadcast_to": (lambda x, i: mg.broadcast_to(np.zeros(6, "f4"), (None, 6)), 0, 0),
}


@pytest.mark.parametrize("name", COSTS)
def test_cost(name: str) -> None:
    build, flops, size_bytes = COSTS[name]
    node = build(mg.input("x", (None, 6)), mg.input("i", (None,), "int64"))
    assert node.op.name == name
    types = [bind_type(source.type, BATCH) for source in node.inputs]
    assert node.op.cost(bind_type(node.type, BATCH), *types, **node.attributes) == Cost(flops, size_bytes)
