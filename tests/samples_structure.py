"""Samples of the ops that move elements about, reduce them, pick them by index, or multiply matrices."""

from __future__ import annotations

import numpy as np
from sampling import MAX, MIN, REPLICATED, SUM, Sample, Split, b, f, i

from miai_graph.ops import indexing, slicing, special

MOVES = [
    Sample("reshape", lambda m, x: m.reshape(x, (-1, 2, 3)), [f(None, 6)]),
    Sample("reshape", lambda m, x: x.reshape(-1), [f(None, 3, layout="transposed")], Split(0, 3), note="to rows"),
    Sample("reshape", lambda m, x: m.reshape(x, (-1, 1, 4)), [f(None, 4)]),
    Sample("reshape", lambda m, x: m.reshape(x, (3, 2)), [f(2, 3)], REPLICATED),
    Sample("reshape", lambda m, x: m.reshape(x, (0, 5)), [f(3, 0)], REPLICATED),
    Sample("reshape", lambda m, x: m.reshape(m.transpose(x), (3, -1)), [f(None, 3)], Split(1), note="of a transpose"),
    Sample(
        "reshape", lambda m, x: m.reshape(m.transpose(x), -1), [f(None, 3)], "mixes the rows", note="across the batch"
    ),
    Sample("reshape", lambda m, x: m.expand_dims(x, (0, -1)), [f(None, 3)], Split(1), functions=["expand_dims"]),
    Sample(
        "reshape", lambda m, x: m.squeeze(m.expand_dims(x, 1), 1), [f(None, 2)], functions=["squeeze"], note="squeeze"
    ),
    Sample("reshape", lambda m, x: m.squeeze(x), [f(1, 3, 1)], REPLICATED),
    Sample("reshape", lambda m, x: m.ravel(x), [f(None, 2)], Split(0, 2), functions=["ravel"], note="ravel"),
    Sample("reshape", lambda m, x: m.reshape(x, (-1, 3)), [b(None, 3, 1)], gradient=False),
    Sample("transpose", lambda m, x: m.transpose(x), [f(None, 3)], Split(1)),
    Sample("transpose", lambda m, x: m.transpose(x, (1, -1, 0)), [f(None, 3, 2, layout="strided")], Split(2)),
    Sample("transpose", lambda m, x: m.swapaxes(x, 1, -1), [f(None, 3, 2)], functions=["swapaxes"], note="swapaxes"),
    Sample(
        "transpose",
        lambda m, x: m.moveaxis(x, -1, 0),
        [f(None, 3, 2)],
        Split(1),
        functions=["moveaxis"],
        note="moveaxis",
    ),
    Sample("transpose", lambda m, x: x.T, [i(2, 0, 3)], REPLICATED, gradient=False),
    Sample("broadcast_to", lambda m, x: m.broadcast_to(x, (4, 2, 3)), [f(2, 1)], REPLICATED),
    Sample("broadcast_to", lambda m, x: m.broadcast_to(x, (0, 3)), [f(1, 3)], REPLICATED),
    Sample(
        "broadcast_to",
        lambda m, x: m.broadcast_to(m.sum(x, 0), (None, 3)),
        [f(None, 3)],
        reference=lambda x: np.broadcast_to(x.sum(0), x.shape),
        note="of a sum owed, over the batch",
    ),
    Sample("broadcast_to", lambda m, x: m.broadcast_to(m.sum(x, 0), (2, 3)), [f(None, 3)], SUM, note="of a sum owed"),
    Sample("broadcast_to", lambda m, x: m.zeros_like(x), [f(None, 3)], functions=["zeros_like"], note="zeros_like"),
    Sample(
        "broadcast_to",
        lambda m, x: m.ones_like(x),
        [i(None, 3)],
        gradient=False,
        functions=["ones_like"],
        note="ones_like",
    ),
    Sample(
        "broadcast_to",
        lambda m, x: m.full_like(x, 2.5, dtype="float64"),
        [i(None, 2)],
        gradient=False,
        functions=["full_like"],
        note="full_like",
    ),
]

JOINS = [
    Sample("slice", lambda m, x: x[:, 1:5:2], [f(None, 6)], note="with a step"),
    Sample("slice", lambda m, x: x[..., ::-1], [f(None, 3)], note="backwards"),
    Sample("slice", lambda m, x: x[:, -2:, None, 0], [f(None, 3, 2)], note="of all kinds"),
    Sample("slice", lambda m, x: x[:, 5:2:-2], [f(None, 7, layout="strided")], note="backwards with a step"),
    Sample("slice", lambda m, x: x[:, 2:2], [f(None, 3)], note="of nothing"),
    Sample("slice", lambda m, x: x[:, -10::-1], [f(None, 3)], note="of nothing, backwards"),
    Sample("slice", lambda m, x: x[-1], [i(3, 2)], REPLICATED, gradient=False),
    Sample("slice", lambda m, x: m.sum(x, 0)[1:], [f(None, 3)], SUM, note="of a sum owed"),
    Sample("slice", lambda m, x: m.flip(x, 1), [f(None, 3)], functions=["flip"], note="flip"),
    Sample("slice", lambda m, x: m.flip(x), [f(None, 3)], "reversed", note="flip of the batch"),
    Sample(
        "scatter_slice",
        lambda m, g: slicing._scatter_slice(g, shape=(*g.type.shape[:1], 6), key=((None, None, 1), (5, None, -2))),
        [f(None, 3)],
        reference=lambda g: np.stack([0 * g[:, 0], g[:, 2], 0 * g[:, 0], g[:, 1], 0 * g[:, 0], g[:, 0]], 1),
    ),
    Sample("pad", lambda m, x: m.pad(x, ((0, 0), (1, 2))), [f(None, 3)]),
    Sample("pad", lambda m, x: m.pad(x, 1, constant_values=2.5), [f(2, 3)], REPLICATED),
    Sample("pad", lambda m, x: m.pad(m.sum(x, 0), 1), [f(None, 3)], SUM, note="of a sum owed"),
    Sample("pad", lambda m, x: m.pad(x, (0, 2)), [i(0)], REPLICATED, gradient=False),
    Sample("concatenate", lambda m, x, y: m.concatenate([x, y], 1), [f(None, 3), f(None, 2)]),
    Sample("concatenate", lambda m, x, y: m.concatenate([x, y, x], axis=-1), [f(None, 1), i(None, 2)]),
    Sample("concatenate", lambda m, x, y: m.concatenate([x, y]), [f(2, 3), f(0, 3)], REPLICATED),
    Sample("concatenate", lambda m, x, y: m.concatenate([x, y], axis=None), [f(2, 2), f(3)], REPLICATED),
    Sample("concatenate", lambda m, x, y: m.concatenate([x, y]), [f(None, 2), f(None, 2)], "joined along the batch"),
    Sample(
        "concatenate", lambda m, x, y: m.stack([x, y], -1), [f(None, 2), f(None, 2)], functions=["stack"], note="stack"
    ),
]

REDUCTIONS = [
    Sample("sum", lambda m, x: m.sum(x), [f(None, 3)], SUM),
    Sample("sum", lambda m, x: m.sum(x, axis=1), [f(None, 3)], note="of rows"),
    Sample("sum", lambda m, x: m.sum(x, axis=(0, -1), keepdims=True), [f(None, 3, 2)], SUM),
    Sample("sum", lambda m, x: m.sum(x, 0), [f(0, 3)], REPLICATED),
    Sample("sum", lambda m, x: m.sum(x, ()), [f(None, 3)], note="along no axis"),
    Sample("sum", lambda m, x: m.sum(x), [b(None, 3)], SUM, gradient=False),
    Sample("sum", lambda m, x: m.sum(x, -1), [i(None, 3, dtype="int8")], gradient=False),
    Sample("sum", lambda m, x: m.sum(x, 0), [i(None, 3, dtype="uint16", low=0)], SUM, gradient=False),
    Sample("sum", lambda m, x: m.sum(x, 1), [f(None, 4, 3, layout="transposed")], note="of transposed"),
    Sample("sum", lambda m, x: m.mean(x), [f(None, 3)], SUM, functions=["mean"], note="mean"),
    Sample("sum", lambda m, x: m.mean(x, 1, keepdims=True), [i(None, 3)], gradient=False, note="mean of integers"),
    Sample("sum", lambda m, x: m.var(x, 0), [f(None, 3)], SUM, functions=["var"], note="var"),
    Sample("sum", lambda m, x: m.var(x, axis=(1, 2), ddof=1), [f(None, 3, 2)], note="var with ddof"),
    Sample("squared_deviation", lambda m, x: m.var(x, 0, keepdims=True), [f(None, 3)], SUM, note="in var"),
    Sample(
        "squared_deviation",
        lambda m, x, y: special.squared_deviation(x, y),
        [f(None, 3), f(3)],
        reference=lambda x, y: np.square(x - y),
        gradient=False,
    ),
    Sample("max", lambda m, x: m.max(x), [f(None, 3)], MAX, functions=["max"]),
    Sample("max", lambda m, x: m.max(x, -1, keepdims=True), [f(None, 3)], note="of rows"),
    Sample("max", lambda m, x: m.amax(x, (0, 2)), [i(None, 3, 2)], MAX, gradient=False, functions=["amax"]),
    Sample("max", lambda m, x: m.max(x, 1), [b(None, 3)], gradient=False),
    Sample("max", lambda m, x: m.max(x, 0) + m.sum(x, 0), [f(None, 3)], REPLICATED, note="plus a sum owed"),
    Sample("min", lambda m, x: m.min(x, 0), [f(None, 3)], MIN),
    Sample("min", lambda m, x: m.amin(x, 1), [f(None, 1, 2)], functions=["amin"]),
    Sample("argmax", lambda m, x: m.argmax(x, -1), [f(None, 5)], gradient=False),
    Sample("argmax", lambda m, x: m.argmax(x), [i(3, 4)], REPLICATED, gradient=False),
    Sample(
        "argmax", lambda m, x: m.argmax(x, 0), [f(None, 2)], "mixes the samples", gradient=False, note="over the batch"
    ),
    Sample(
        "logsumexp",
        lambda m, x: m.logsumexp(x, 1, keepdims=True),
        [f(None, 3)],
        reference=lambda x: np.log(np.exp(x).sum(1, keepdims=True)),
    ),
    Sample(
        "logsumexp", lambda m, x: m.logsumexp(x), [f(2, 3)], REPLICATED, reference=lambda x: np.log(np.exp(x).sum())
    ),
    Sample(
        "logsumexp",
        lambda m, x: m.logsumexp(x, (0, 1)),
        [f(None, 3)],
        REPLICATED,
        reference=lambda x: np.log(np.exp(x).sum()),
        note="over the batch",
    ),
    Sample("batch_size", lambda m, x: m.shape(x)[0] * 2, [f(None, 3)], REPLICATED, gradient=False, functions=["shape"]),
]

PICKS = [
    Sample("take", lambda m, x, n: m.take(x, n, axis=0), [f(4, 3), i(None, high=4)]),
    Sample("take", lambda m, x, n: m.take(x, n, axis=-1), [f(None, 4), i(2, 2, high=4, dtype="int32")]),
    Sample("take", lambda m, x, n: m.take(x, n), [f(2, 3), i(None, high=5)], note="of all laid out flat"),
    Sample("take", lambda m, x, n: x[n], [f(5, 2), i(None, 3, low=0, dtype="uint8")], note="by index"),
    Sample("take", lambda m, x: x[[0, -1, 0]], [f(3, 2)], REPLICATED, note="by a list"),
    Sample("take", lambda m, x, n: m.take(x, n, 1), [f(None, 3), i(0)], note="of nothing"),
    Sample("take", lambda m, x: m.take(m.sum(x, 0), [1, 1], 0), [f(None, 3)], SUM, note="of a sum owed"),
    Sample(
        "scatter_add",
        lambda m, x, n, u: indexing.scatter_add(x, n, u),
        [f(4, 2), i(None, high=4), f(None, 2)],
        REPLICATED,
        reference=lambda x, n, u: _added(x, n, u),
        functions=["scatter_add"],
    ),
    Sample(
        "scatter_add",
        lambda m, n, u: indexing._scatter_add(n, u, length=4, axis=1),
        [i(3, high=4), f(None, 3, 2)],
        reference=lambda n, u: _added(np.zeros((len(u), 4, 2), u.dtype), (slice(None), n), u),
        note="along axis 1",
    ),
    Sample(
        "scatter_add",
        lambda m, n, u: indexing._scatter_add(n, u, length=3, axis=0),
        [i(None, 2, low=0, high=3), f(None, 2)],
        SUM,
        reference=lambda n, u: _added(np.zeros(3, u.dtype), n, u),
        note="of a batch",
    ),
    Sample(
        "scatter_add",
        lambda m, n, x: indexing._scatter_add(n, m.sum(x, 0), length=3, axis=0),
        [i(2, low=0, high=3), f(None, 2)],
        SUM,
        reference=lambda n, x: _added(np.zeros(3, x.dtype), n, x.sum(0)),
        note="of a sum owed",
    ),
    Sample(
        "one_hot",
        lambda m, n: m.one_hot(n, 3),
        [i(None, 2, low=-1, high=4)],
        gradient=False,
        reference=lambda n: (n[..., None] == np.arange(3)).astype("float32"),
    ),
    Sample(
        "one_hot",
        lambda m, n: m.one_hot(n, 2, dtype="int8"),
        [i(None, low=0, high=2, dtype="uint8")],
        gradient=False,
        reference=lambda n: np.eye(2, dtype="int8")[n],
    ),
]


def _added(x, places, updates):
    result = x.copy()
    np.add.at(result, places, updates)
    return result


MATRICES = [
    Sample("matmul", lambda m, x, y: m.matmul(x, y), [f(None, 3), f(3, 2)]),
    Sample("matmul", lambda m, x, y: x @ y, [f(None, 3), f(3)]),
    Sample("matmul", lambda m, x, y: x @ y, [f(3), f(3, 2)], REPLICATED),
    Sample("matmul", lambda m, x, y: x @ y, [f(3), f(3)], REPLICATED),
    Sample("matmul", lambda m, x, y: x @ y, [f(None, 2, 3), f(3, 4)]),
    Sample("matmul", lambda m, x, y: x @ y, [f(None, 2, 3), f(None, 3, 2)]),
    Sample("matmul", lambda m, x, y: x @ y, [f(2, 3), f(None, 3, 2)]),
    Sample("matmul", lambda m, x, y: x @ y, [f(2, 1, 2, 3), f(4, 3, 2)], REPLICATED),
    Sample("matmul", lambda m, x, y: m.transpose(x) @ y, [f(None, 3), f(None, 2)], SUM, note="over the batch"),
    Sample("matmul", lambda m, x: x @ m.transpose(x), [f(None, 3)], "with each other", note="of samples"),
    Sample("matmul", lambda m, x, y: m.sum(x, 0) @ y, [f(None, 2, 3), f(3, 2)], SUM, note="of a sum owed"),
    Sample("matmul", lambda m, x, y: x @ y, [f(None, 0), f(0, 2)]),
    Sample("matmul", lambda m, x, y: x @ y, [i(None, 3, dtype="int32"), i(3, 2)], gradient=False),
    Sample(
        "matmul", lambda m, x, y: x @ y, [f(None, 3, layout="strided"), f(3, 2, layout="reversed")], note="of strided"
    ),
    Sample("matmul", lambda m, x, y: m.dot(x, y), [f(None, 3), f(3, 2)], functions=["dot"], note="dot"),
    Sample("multiply", lambda m, x, y: m.dot(x, y), [f(None, 3), f()], note="dot of a scalar"),
]

SAMPLES = [*MOVES, *JOINS, *REDUCTIONS, *PICKS, *MATRICES]
