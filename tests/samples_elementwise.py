"""Samples of the ops that work element by element."""

from __future__ import annotations

import math

import numpy as np
from sampling import REPLICATED, SUM, Sample, Split, b, f, i

from miai_graph.ops import casting, elementwise, nonlinear, special

POSITIVE = {"low": 0.2, "high": 3.0}

ARITHMETIC = [
    Sample("add", lambda m, x, y: m.add(x, y), [f(None, 3), f(None, 3)]),
    Sample("add", lambda m, x, y: x + y, [f(None, 3), f(3)]),
    Sample("add", lambda m, x, y: x + y, [f(None, 1, 4), f(5, 1)]),
    Sample("add", lambda m, x, y: x + y, [f(None, 0), f(1)]),
    Sample("add", lambda m, x, y: x + y, [f(), f()], REPLICATED),
    Sample("add", lambda m, x, y: x + y, [i(None, 3, dtype="int8"), i(3, dtype="int32")], gradient=False),
    Sample("add", lambda m, x, y: x + y, [i(None, dtype="uint8", low=0), f(1)]),
    Sample("add", lambda m, x: x + 2, [i(None, dtype="uint8", low=0)], gradient=False, note="uint8 + 2"),
    Sample("add", lambda m, x: 2.5 + x, [f(None, 2, layout="transposed")], note="2.5 + transposed"),
    Sample("add", lambda m, x, y: m.sum(x, 0) + m.sum(y, 0), [f(None, 2), f(None, 2)], SUM, note="of sums owed"),
    Sample("subtract", lambda m, x, y: m.subtract(x, y), [f(None, 3), f(None, 1)]),
    Sample("subtract", lambda m, x: 1 - x, [f(None, 2, layout="strided")], note="1 - strided"),
    Sample("subtract", lambda m, x: x - m.mean(x, 0), [f(None, 3)], note="of the mean over the batch"),
    Sample("multiply", lambda m, x, y: m.multiply(x, y), [f(None, 3), f(None, 3)]),
    Sample("multiply", lambda m, x, y: x * y, [f(None, 1), f(1, 4)]),
    Sample("multiply", lambda m, x: x * x, [f(None, 2, layout="reversed")], note="by itself"),
    Sample("multiply", lambda m, x, y: x * y, [b(None, 2), f(2)]),
    Sample("multiply", lambda m, x, y: m.sum(x) * y, [f(None, 2), f(3)], SUM, note="of a sum owed"),
    Sample("divide", lambda m, x, y: m.divide(x, y), [f(None, 3), f(None, 3, **POSITIVE)]),
    Sample("divide", lambda m, x: 1 / x, [f(None, 3, **POSITIVE)], note="1 / x"),
    Sample("divide", lambda m, x, y: x / y, [i(None, dtype="int32"), i(1, low=1, dtype="int32")], gradient=False),
    Sample("divide", lambda m, x, y: m.sum(x) / y, [f(None, 2), f(3, **POSITIVE)], SUM, note="of a sum owed"),
    Sample("power", lambda m, x, y: m.power(x, y), [f(None, 3, **POSITIVE), f(3)]),
    Sample("power", lambda m, x: m.pow(x, 3), [f(None, 3)], functions=["pow"], note="x ** 3"),
    Sample("power", lambda m, x: x**-2.0, [f(None, 3, **POSITIVE)], note="x ** -2.0"),
    Sample("power", lambda m, x: 2.0**x, [f(None, 3)], note="2.0 ** x"),
    Sample("power", lambda m, x: x**0.5, [f(None, 3, **POSITIVE)], note="x ** 0.5"),
    Sample("power", lambda m, x: x**-1, [f(None, 3, **POSITIVE)], note="x ** -1"),
    Sample("power", lambda m, x: x**1, [f(None, 3)], note="x ** 1"),
    Sample("power", lambda m, x: x**2, [i(None, dtype="int16")], gradient=False, note="int16 ** 2"),
    Sample("power", lambda m, x: x**2.0, [i(None)], gradient=False, note="int64 ** 2.0"),
    Sample("maximum", lambda m, x, y: m.maximum(x, y), [f(None, 3), f(None, 3)]),
    Sample("maximum", lambda m, x: m.maximum(x, 0.1), [f(None, 5)], note="of a number"),
    Sample("maximum", lambda m, x, y: m.maximum(x, y), [i(None, 3), i(3)], gradient=False),
    Sample("minimum", lambda m, x, y: m.minimum(x, y), [f(None, 3), f(3)]),
    Sample("minimum", lambda m, x: m.minimum(0.1, x), [f(None, 5)], note="of a number"),
]

OF_ONE = [
    Sample("negative", lambda m, x: m.negative(x), [f(None, 3)]),
    Sample("negative", lambda m, x: -x, [i(None, dtype="int8")], gradient=False),
    Sample("absolute", lambda m, x: m.absolute(x), [f(None, 3)]),
    Sample("absolute", lambda m, x: m.abs(x), [i(None, 2)], gradient=False, functions=["abs"]),
    Sample("expm1", lambda m, x: special.expm1(x), [f(None, 3)], reference=np.expm1),
    Sample("erf", lambda m, x: special.erf(x), [f(None, 3)], reference=np.vectorize(math.erf), numpy_dtype=False),
    Sample("sign", lambda m, x: m.sign(x), [f(None, 3)]),
    Sample("exp", lambda m, x: m.exp(x), [f(None, 3, layout="transposed")]),
    Sample("exp", lambda m, x: m.exp(x), [i(None)], gradient=False),
    Sample("exp", lambda m, x: m.exp(x), [f(0)], REPLICATED),
    Sample("log", lambda m, x: m.log(x), [f(None, 3, **POSITIVE)]),
    Sample("sqrt", lambda m, x: m.sqrt(x), [f(None, 3, **POSITIVE)]),
    Sample("rsqrt", lambda m, x: m.rsqrt(x), [f(None, 3, **POSITIVE)], reference=lambda x: x**-0.5),
    Sample("square", lambda m, x: m.square(x), [f(None, 3)]),
    Sample("square", lambda m, x: m.square(x), [i(None, 1)], gradient=False),
    Sample("tanh", lambda m, x: m.tanh(x), [f(None, 3)]),
    Sample("sigmoid", lambda m, x: m.sigmoid(x), [f(None, 3)], reference=lambda x: 1 / (1 + np.exp(-x))),
    Sample("relu", lambda m, x: m.relu(x), [f(None, 3)], reference=lambda x: np.where(x > 0, x, 0)),
    Sample("relu", lambda m, x: m.relu(x), [i(None, 3)], gradient=False, reference=lambda x: np.where(x > 0, x, 0)),
    Sample(
        "relu_gradient",
        lambda m, g, y: nonlinear.relu_gradient(g, y),
        [f(None, 3), f(None, 3)],
        reference=lambda g, y: np.where(y > 0, g, 0),
    ),
    Sample("clip", lambda m, x: m.clip(x, -1, 1.05), [f(None, 5)], note="both"),
    Sample("clip", lambda m, x: m.clip(x, None, 0.5), [f(None, 5)], note="from above"),
    Sample("clip", lambda m, x: m.clip(x, -0.5, None), [f(None, 5)], note="from below"),
    Sample("clip", lambda m, x: m.clip(x, -1, 2), [i(None)], gradient=False),
    Sample("clip", lambda m, x: m.clip(x, -1.5, 2.5), [i(None)], gradient=False, note="integers between floats"),
    Sample("clip", lambda m, x, y: m.clip(x, y, y + 1), [f(None, 5), f(5, low=-1, high=0)], note="between arrays"),
    Sample("identity", lambda m, x: elementwise.identity(x), [f(None, 3)], reference=lambda x: x),
    Sample("stop_gradient", lambda m, x: m.stop_gradient(x), [f(None, 3)], reference=lambda x: x, gradient=False),
    Sample(
        "stop_gradient",
        lambda m, x: m.stop_gradient(m.sum(x)),
        [f(None, 3)],
        SUM,
        reference=lambda x: x.sum(),
        gradient=False,
        note="of a sum owed",
    ),
]

CHOICES = [
    Sample("where", lambda m, c, x, y: m.where(c, x, y), [b(None, 3), f(None, 3), f(3)]),
    Sample("where", lambda m, c, x: m.where(c > 0, x, 0.0), [f(None, 1), f(None, 4)]),
    Sample("where", lambda m, c, x: m.where(c, x, 7), [i(None, 3), i(3, dtype="int32")], gradient=False),
    Sample("equal", lambda m, x, y: m.equal(x, y), [i(None, 3), i(3)], gradient=False),
    Sample("equal", lambda m, x, y: x == y, [b(None, 3), b(3)], gradient=False),
    Sample("not_equal", lambda m, x, y: m.not_equal(x, y), [i(None, 3), i(3)], gradient=False),
    Sample("less", lambda m, x, y: m.less(x, y), [i(None, 3), f(3)], gradient=False),
    Sample("less_equal", lambda m, x, y: m.less_equal(x, y), [i(None, 3), i(3)], gradient=False),
    Sample("greater", lambda m, x: m.greater(x, 0), [f(None, 3)], gradient=False),
    Sample("greater_equal", lambda m, x, y: m.greater_equal(x, y), [i(None, 3), i(3)], gradient=False),
    Sample("logical_and", lambda m, x, y: m.logical_and(x, y), [b(None, 3), b(3)], gradient=False),
    Sample("logical_and", lambda m, x, y: x & y, [b(None, 1), b(3)], gradient=False, note="&"),
    Sample("logical_or", lambda m, x, y: m.logical_or(x, y), [b(None, 3), f(3)], gradient=False),
    Sample("logical_not", lambda m, x: m.logical_not(x), [i(None, 3, low=0, high=2)], gradient=False),
    Sample("logical_not", lambda m, x: ~x, [b(None, 3)], gradient=False, note="~"),
    Sample("isfinite", lambda m, x: m.isfinite(1 / x), [i(None, 3, low=-1, high=2)], gradient=False),
]

CASTS = [
    Sample("cast", lambda m, x: x.astype("float64"), [f(None, 3)], note="to float64"),
    Sample("cast", lambda m, x: x.astype("int32"), [f(None, 3)], gradient=False, note="to int32"),
    Sample("cast", lambda m, x: x.astype(bool), [i(None, 3, low=0, high=2)], gradient=False, note="to bool"),
    Sample(
        "cast",
        lambda m, x: casting.cast(x, "uint8"),
        [b(None)],
        gradient=False,
        reference=lambda x: x.astype("uint8"),
        functions=["cast"],
    ),
    Sample(
        "cast",
        lambda m, x: m.sum(x).astype("int64"),
        [i(None, 3, dtype="int16")],
        SUM,
        gradient=False,
        note="to what it is already",
    ),
    Sample("add", lambda m, x: m.transpose(x) + m.ones_like(m.transpose(x)), [f(None, 3)], Split(1), note="batch last"),
    Sample("add", lambda m, x: m.reshape(x, -1) + 1.0, [f(None, 3)], Split(0, 3), note="three rows a sample"),
]

SAMPLES = [*ARITHMETIC, *OF_ONE, *CHOICES, *CASTS]
