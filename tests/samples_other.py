"""Samples of losses, convolution, pooling, random ops and nodes without inputs, against naive references."""

from __future__ import annotations

import itertools
import math

import numpy as np
from sampling import REPLICATED, SUM, Sample, f, i

from miai_graph.node import apply
from miai_graph.ops import again, communication, convolution, leaves, parts, pooling, random, softmax
from miai_graph.ops.arithmetic import add

LOGITS = {"low": -5.0, "high": 5.0}


def _softmax(x, axis=-1):
    e = np.exp(x)
    return e / e.sum(axis, keepdims=True)


LOSSES = [
    Sample("softmax", lambda m, x: m.softmax(x), [f(None, 3)], reference=_softmax),
    Sample("softmax", lambda m, x: m.softmax(x, 1), [f(None, 3, 2)], reference=lambda x: _softmax(x, 1)),
    Sample("softmax", lambda m, x: m.softmax(x), [f(None, 1)], reference=_softmax),
    Sample("softmax", lambda m, x: m.softmax(x), [f(2, 0)], REPLICATED, reference=lambda x: x),
    Sample(
        "softmax", lambda m, x: m.softmax(x, 0), [f(None, 3)], reference=lambda x: _softmax(x, 0), note="over the batch"
    ),
    Sample("log_softmax", lambda m, x: m.log_softmax(x), [f(None, 3)], reference=lambda x: np.log(_softmax(x))),
    Sample(
        "log_softmax",
        lambda m, x: m.log_softmax(x, 0),
        [f(None, 3)],
        reference=lambda x: np.log(_softmax(x, 0)),
        note="over the batch",
    ),
    Sample(
        "sparse_softmax_cross_entropy",
        lambda m, x, y: m.sparse_softmax_cross_entropy(x, y),
        [f(None, 4), i(None, low=0, high=4)],
        reference=lambda x, y: -np.log(_softmax(x))[np.arange(len(y)), y],
    ),
    Sample(
        "sparse_softmax_cross_entropy",
        lambda m, x, y: m.sparse_softmax_cross_entropy(x, y),
        [f(None, 2, 3), i(None, 2, low=0, high=3, dtype="uint8")],
        reference=lambda x, y: -np.take_along_axis(np.log(_softmax(x)), y[..., None].astype(int), -1)[..., 0],
    ),
    Sample(
        "softmax_cross_entropy",
        lambda m, x, p: m.softmax_cross_entropy(x, p),
        [f(None, 4), f(None, 4, low=0.0, high=1.0)],
        reference=lambda x, p: -(p * np.log(_softmax(x))).sum(-1),
    ),
    Sample(
        "sigmoid_cross_entropy",
        lambda m, x, z: m.sigmoid_cross_entropy(x, z),
        [f(None, 4), f(None, 4, low=0.0, high=1.0)],
        reference=lambda x, z: -z * np.log(1 / (1 + np.exp(-x))) - (1 - z) * np.log(1 / (1 + np.exp(x))),
    ),
    Sample(
        "sigmoid_cross_entropy",
        lambda m, x: softmax.sigmoid_cross_entropy(x, 1.0),
        [f(None, 1, **LOGITS)],
        reference=lambda x: np.log1p(np.exp(-x)),
    ),
]


def convolved(x, kernel, stride=1, pad=0):
    """Convolution of one group by loops: out[n,p,q] = Σ x[n, p·s + i - pad, q·s + j - pad] · kernel[i,j]."""
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height, width = kernel.shape[:2]
    rows, columns = ((x.shape[1 + axis] - kernel.shape[axis]) // stride + 1 for axis in (0, 1))
    result = np.zeros((len(x), rows, columns, kernel.shape[3]), x.dtype)
    for p, q, k, h in itertools.product(range(rows), range(columns), range(height), range(width)):
        result[:, p, q] += x[:, p * stride + k, q * stride + h] @ kernel[k, h]
    return result


def by_linearity(function, shape):
    """The matrix of a linear function of arrays of a shape, applied from the other side: its adjoint."""

    def adjoint(g):
        result = np.zeros(shape)
        for place in np.ndindex(*shape):
            unit = np.zeros(shape)
            unit[place] = 1
            result[place] = (function(unit) * g).sum()
        return result

    return adjoint


def pooled(x, reduce, size=2, stride=2):
    rows, columns = ((length - size) // stride + 1 for length in x.shape[1:3])
    result = np.zeros((len(x), rows, columns, x.shape[3]), x.dtype)
    for p, q in itertools.product(range(rows), range(columns)):
        result[:, p, q] = reduce(x[:, p * stride : p * stride + size, q * stride : q * stride + size], (1, 2))
    return result


GEOMETRY = {"strides": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "groups": 1}
WINDOW = {"pool_size": (2, 2), "strides": (2, 2), "padding": ((0, 0), (0, 0))}


def _with_batch(node, *shape):
    return (node.type.shape[0], *shape)


def _chosen(v, x):
    flat = [pooled_windows(array) for array in (v, x)]
    return np.take_along_axis(flat[0], flat[1].argmax(-1)[..., None], -1)[..., 0]


def pooled_windows(x):
    """The elements of each 2 × 2 window, last: (batch, rows, columns, channels, 4)."""
    return np.stack([x[:, k::2, h::2] for k in (0, 1) for h in (0, 1)], -1)


IMAGES = [
    Sample("conv2d", lambda m, x, k: m.conv2d(x, k), [f(None, 4, 3, 2), f(2, 2, 2, 3)], reference=convolved),
    Sample(
        "conv2d",
        lambda m, x, k: m.conv2d(x, k, strides=2, padding=1),
        [f(None, 5, 4, 1), f(3, 3, 1, 2)],
        reference=lambda x, k: convolved(x, k, 2, 1),
    ),
    Sample(
        "conv2d_input_gradient",
        lambda m, g, k: convolution._input_gradient(g, k, input_shape=_with_batch(g, 4, 3, 2), **GEOMETRY),
        [f(None, 3, 2, 1), f(2, 2, 2, 1)],
        reference=lambda g, k: by_linearity(lambda x: convolved(x, k), (len(g), 4, 3, 2))(g),
        numpy_dtype=False,
    ),
    Sample(
        "conv2d_kernel_gradient",
        lambda m, x, g: convolution._kernel_gradient(x, g, kernel_shape=(2, 2, 2, 1), **GEOMETRY),
        [f(None, 4, 3, 2), f(None, 3, 2, 1)],
        SUM,
        reference=lambda x, g: by_linearity(lambda k: convolved(x, k), (2, 2, 2, 1))(g),
        numpy_dtype=False,
    ),
    Sample("max_pool2d", lambda m, x: m.max_pool2d(x), [f(None, 4, 5, 2)], reference=lambda x: pooled(x, np.max)),
    Sample(
        "max_pool2d",
        lambda m, x: m.max_pool2d(x, 3, 1),
        [f(None, 4, 3, 1)],
        reference=lambda x: pooled(x, np.max, 3, 1),
    ),
    Sample(
        "max_pool2d_gradient",
        lambda m, g, x: pooling._max_pool2d_gradient(g, x, **WINDOW),
        [f(None, 2, 1, 2), f(None, 4, 2, 2)],
        reference=lambda g, x: by_linearity(lambda v: _chosen(v, x), x.shape)(g),
        numpy_dtype=False,
    ),
    Sample(
        "max_pool2d_select",
        lambda m, v, x: pooling._max_pool2d_select(v, x, **WINDOW),
        [f(None, 2, 4, 1), f(None, 2, 4, 1)],
        reference=_chosen,
    ),
    Sample(
        "average_pool2d", lambda m, x: m.average_pool2d(x), [f(None, 4, 5, 2)], reference=lambda x: pooled(x, np.mean)
    ),
    Sample(
        "average_pool2d_gradient",
        lambda m, g: pooling._average_pool2d_gradient(g, input_shape=_with_batch(g, 4, 5, 1), **WINDOW),
        [f(None, 2, 2, 1)],
        reference=lambda g: by_linearity(lambda x: pooled(x, np.mean), (len(g), 4, 5, 1))(g),
        numpy_dtype=False,
    ),
    Sample(
        "sum",
        lambda m, x: m.global_average_pool2d(x),
        [f(None, 2, 3, 2)],
        reference=lambda x: x.mean((1, 2)),
        functions=["global_average_pool2d"],
        note="global_average_pool2d",
    ),
    Sample(
        "max",
        lambda m, x: m.global_max_pool2d(x, keepdims=True),
        [f(None, 2, 3, 2)],
        reference=lambda x: x.max((1, 2), keepdims=True),
        functions=["global_max_pool2d"],
        note="global_max_pool2d",
    ),
]

MASK = 2**32 - 1


def words(seed, stream, step, row, count):
    """Philox4x32-10 in Python's integers: the first `count` words of a row."""
    found = []
    for block in range(-(-count // 4)):
        counter, key = [block, row, step, stream], [seed & MASK, seed >> 32]
        for _ in range(10):
            high, low = divmod(0xD2511F53 * counter[0], 2**32)
            other_high, other_low = divmod(0xCD9E8D57 * counter[2], 2**32)
            counter = [other_high ^ counter[1] ^ key[0], other_low, high ^ counter[3] ^ key[1], low]
            key = [(key[0] + 0x9E3779B9) & MASK, (key[1] + 0xBB67AE85) & MASK]
        found += counter
    return np.array(found[:count], np.uint32)


def uniform(row, count, dtype="float32"):
    """Numbers of the first random node after `set_seed(0)`, at step 0."""
    if dtype == "float64":
        high, low = words(0, 1, 0, row, 2 * count).reshape(-1, 2).T
        return ((high >> 5) * 2.0**26 + (low >> 6)) * 2.0**-53
    return (words(0, 1, 0, row, count) >> 8).astype("float32") * np.float32(2**-24)


def normal(row, count, dtype):
    u = uniform(row, -(-count // 2) * 2, dtype)
    radius, angle = np.sqrt(-2 * np.log(1 - u[::2])), 2 * math.pi * u[1::2]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).ravel()[:count]


RANDOM = [
    Sample(
        "random_uniform",
        lambda m, x: add(x, random.uniform((None, 5), -1.0, 3.0)),
        [f(None, 5)],
        reference=lambda x: x + np.stack([4 * uniform(row, 5) - 1 for row in range(len(x))]),
        numpy_dtype=False,
        functions=["random"],
    ),
    Sample(
        "random_normal",
        lambda m, x: add(x, random.normal((None, 3), 1.0, 2.0, x.dtype)),
        [f(None, 3)],
        reference=lambda x: x + np.stack([1 + 2 * normal(row, 3, x.dtype) for row in range(len(x))]),
    ),
    Sample(
        "random_bernoulli",
        lambda m, x: add(x, random.bernoulli((6,), 0.5, dtype="float32")),
        [f(6)],
        REPLICATED,
        reference=lambda x: x + (words(0, 1, 0, 0, 6) < 2**31),
        numpy_dtype=False,
    ),
]

LEAVES = [
    Sample("input", lambda m, x: x, [f(None, 3)]),
    Sample("constant", lambda m, x: m.multiply(x, np.arange(3)), [f(None, 3)]),
    Sample(
        "variable",
        lambda m, x: x + m.parameter(np.arange(3.0), dtype=x.dtype),
        [f(None, 3)],
        reference=lambda x: x + np.arange(3).astype(x.dtype),
        functions=["parameter"],
    ),
    Sample(
        "variable",
        lambda m, x: x + m.variable(2, dtype="int8"),
        [i(None)],
        gradient=False,
        reference=lambda x: x + 2,
        functions=["variable"],
    ),
    Sample(
        "batch_size", lambda m, x: x * leaves.batch_size(), [i(None)], gradient=False, reference=lambda x: x * len(x)
    ),
    Sample(
        "part_size",
        lambda m, x: x * parts._sum_over_parts(leaves.part_size()),
        [i(None)],
        gradient=False,
        reference=lambda x: x * len(x),
    ),
    Sample(
        "first_row", lambda m, x: random.uniform((None,)) * 0.0 + x, [f(None)], reference=lambda x: x, numpy_dtype=False
    ),
    Sample("step", lambda m, x: x + leaves.step(), [i(None)], gradient=False, reference=lambda x: x),
]


def alone(x):
    """What a worker waits for who has nobody to wait for."""
    return apply(communication._barrier, [x])


COMMUNICATION = [
    Sample(
        "barrier",
        lambda m, x: alone(x),
        [f(3)],
        REPLICATED,
        reference=lambda x: np.empty(0, bool),
        gradient=False,
    ),
    Sample(
        "send",
        lambda m, x: apply(communication._send, [x], {"stage": 1, "value": 0}),
        [f(2, 3)],
        REPLICATED,
        reference=lambda x: np.empty(0, bool),
        gradient=False,
    ),
    Sample(
        "contribute",
        lambda m, x, y: apply(communication._contribute, [x, y]),
        [f(2, 3), i(4)],
        REPLICATED,
        reference=lambda x, y: np.empty(0, bool),
        gradient=False,
    ),
    Sample(
        "await_commit",
        lambda m: apply(communication._await_commit, []),
        [],
        REPLICATED,
        reference=lambda: np.empty(0, bool),
        gradient=False,
    ),
    Sample(
        "all_reduce",
        lambda m, x: apply(communication._all_reduce, [x, alone(x)], {"reduction": "sum"}),
        [f(2, 3)],
        REPLICATED,
        reference=lambda x: x,
        gradient=False,
    ),
    Sample(
        "reduce_scatter",
        lambda m, x: apply(communication._reduce_scatter, [x, alone(x)], {"reduction": "max", "start": 1, "stop": 5}),
        [f(2, 3)],
        REPLICATED,
        reference=lambda x: x.reshape(-1)[1:5],
        gradient=False,
    ),
    Sample(
        "all_gather",
        lambda m, x: apply(communication._all_gather, [x], {"shape": (2, 3), "start": 0}),
        [f(6)],
        REPLICATED,
        reference=lambda x: x.reshape(2, 3),
        gradient=False,
    ),
    Sample(
        "gather_rows",
        lambda m, x: apply(communication._gather_rows, [x, alone(x)]),
        [f(2, 3)],
        REPLICATED,
        reference=lambda x: x,
        gradient=False,
    ),
    Sample(
        "rows_of_columns",
        lambda m, x: apply(communication._rows_of_columns, [x, alone(x)], {"columns": 3, "start": 0}),
        [f(2, 3)],
        REPLICATED,
        reference=lambda x: x,
        gradient=False,
    ),
]

PARTS = [
    Sample(
        "sum_of_part",
        lambda m, x: parts._sum_over_parts(parts._sum_of_part(x, axes=(0, 2))),
        [f(None, 3, 2)],
        SUM,
        reference=lambda x: x.sum((0, 2)),
    ),
    Sample(
        "sum_of_part",
        lambda m, x: parts._sum_of_part(x, axes=(1,)),
        [i(None, 3, dtype="int8")],
        gradient=False,
        reference=lambda x: x.sum(1),
    ),
    Sample(
        "repeat_in_part",
        lambda m, x, y: x * parts.repeat_in_part(parts.each_part(y), x.type.shape),
        [f(None, 2, 3), f(1, 1, 3)],
        reference=lambda x, y: x * y,
    ),
    Sample(
        "each_part",
        lambda m, x, y: x * parts.repeat_in_part(m.exp(parts.each_part(y)), x.type.shape),
        [f(None, 3), f(1, 3)],
        reference=lambda x, y: x * np.exp(y),
    ),
    Sample(
        "sum_over_parts",
        lambda m, x: parts.average_over_parts(parts.mean_of_part(x, [0])),
        [f(None, 3)],
        SUM,
        reference=lambda x: x.mean(0, keepdims=True),
    ),
]

AGAIN = [
    Sample("again", lambda m, x, after: again._again(x, after), [f(None, 3), f(None, 2)], reference=lambda x, after: x),
    Sample("again", lambda m, x, after: again._again(x, after), [f(2), f()], REPLICATED, reference=lambda x, after: x),
    Sample(
        "again",
        lambda m, x, after: again._again(m.sum(x, 0), after),
        [f(None, 3), f()],
        REPLICATED,
        reference=lambda x, after: x.sum(0),
        note="of a sum owed",
    ),
]

SAMPLES = [*LOSSES, *IMAGES, *RANDOM, *LEAVES, *COMMUNICATION, *PARTS, *AGAIN]
