"""The table of layers: how each is made, what it is called on, and what it should give, in plain NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sampling import Value, f, i

from miai_graph import layers
from miai_graph.node import Node

Weights = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class LayerSample:
    """A row of the table.

    kind : the name of the class
    reference : from the weights by name and the arrays fed to the output, when the layer is used, not trained
    options : the constructor's arguments
    values : what is fed; several make a list
    symmetric : whether padding is as wide on both sides
    """

    kind: str
    reference: Callable[..., Any]
    values: Sequence[Value]
    options: Mapping[str, Any] = field(default_factory=dict)
    symmetric: bool = True

    @property
    def title(self) -> str:
        given = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.kind}({given})"

    def layer(self, floating: str = "float64", **options: Any) -> Any:
        return getattr(layers, self.kind)(**self.options, dtype=floating, **options)

    def nodes(self, floating: str = "float64") -> list[Node]:
        return [value.node(f"x{place}", floating) for place, value in enumerate(self.values)]

    def arrays(self, batch_size: int, floating: str = "float64", seed: int = 0) -> list[np.ndarray]:
        rng = np.random.default_rng([seed, len(self.title)])
        return [value.array(rng, batch_size, floating) for value in self.values]


def given(parts: Sequence[Any]) -> Any:
    """What a layer is called on: the only part, or a list of them."""
    return parts[0] if len(parts) == 1 else list(parts)


def random_weights(layer: Any, seed: int = 0) -> list[np.ndarray]:
    """Values for a layer's weights; variances are positive."""
    rng = np.random.default_rng(seed)
    drawn = [np.asarray(rng.normal(size=weight.shape), weight.dtype) for weight in layer.weights]
    return [
        abs(value) + value.dtype.type(0.5) if "variance" in weight.name else value
        for weight, value in zip(layer.weights, drawn, strict=True)
    ]


def by_name(layer: Any) -> dict[str, np.ndarray]:
    return {weight.name.rpartition("/")[2]: weight.value for weight in layer.weights}


def windows_of(
    x: np.ndarray, size: tuple[int, int], strides: tuple[int, int], same: bool = False, gap: int = 1, fill: float = 0.0
) -> np.ndarray:
    """All windows, (batch, rows, columns, channels, height, width): one loop over the places, for clarity."""
    reach = [gap * (length - 1) + 1 for length in size]
    if same:
        missing = [
            max((-(-length // step) - 1) * step + wide - length, 0)
            for length, step, wide in zip(x.shape[1:3], strides, reach, strict=True)
        ]
        x = np.pad(x, ((0, 0), *((m // 2, m - m // 2) for m in missing), (0, 0)), constant_values=fill)
    rows, columns = ((x.shape[1 + axis] - reach[axis]) // strides[axis] + 1 for axis in (0, 1))
    result = np.empty((len(x), rows, columns, x.shape[3], *size), x.dtype)
    for row in range(rows):
        for column in range(columns):
            top, left = row * strides[0], column * strides[1]
            window = x[:, top : top + reach[0] : gap, left : left + reach[1] : gap]
            result[:, row, column] = window.transpose(0, 3, 1, 2)
    return result


def convolution(
    w: Weights, x: np.ndarray, strides: tuple[int, int] = (1, 1), same: bool = False, gap: int = 1, groups: int = 1
) -> np.ndarray:
    kernel = w["kernel"]
    windows = windows_of(x, kernel.shape[:2], strides, same, gap)
    parts = [
        np.einsum("nrcihw,hwio->nrco", part, filters)
        for part, filters in zip(np.split(windows, groups, axis=3), np.split(kernel, groups, axis=3), strict=True)
    ]
    return np.concatenate(parts, axis=3) + w.get("bias", 0.0)


def average(x: np.ndarray, size: tuple[int, int], strides: tuple[int, int], same: bool = False) -> np.ndarray:
    return np.nanmean(windows_of(x, size, strides, same, fill=np.nan), axis=(4, 5))


def greatest(x: np.ndarray, size: tuple[int, int], strides: tuple[int, int], same: bool = False) -> np.ndarray:
    return windows_of(x, size, strides, same, fill=-math.inf).max((4, 5))


def batch_normalized(w: Weights, x: np.ndarray, axis: int = -1, epsilon: float = 1e-3) -> np.ndarray:
    last = np.moveaxis(x, axis, -1)
    unit = (last - w["moving_mean"]) / np.sqrt(w["moving_variance"] + epsilon)
    return np.moveaxis(unit * w.get("gamma", 1.0) + w.get("beta", 0.0), -1, axis)


def layer_normalized(w: Weights, x: np.ndarray, axes: tuple[int, ...] = (-1,), epsilon: float = 1e-3) -> np.ndarray:
    unit = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)
    return unit * w.get("gamma", 1.0) + w.get("beta", 0.0)


def softmax(x: np.ndarray, axes: Any) -> np.ndarray:
    exponentials = np.exp(x)
    return exponentials / exponentials.sum(axes, keepdims=True)


def rectified(x: np.ndarray) -> np.ndarray:
    return np.where(x >= 1.5, 1.5, np.where(x >= 0.5, x, 0.1 * (x - 0.5)))


IMAGES = f(None, 5, 6, 4)
PAIR = (f(None, 2, 3), f(None, 2, 3, low=-3.0))
RANKS = (f(None, 2, 3), f(None, 3))

SAMPLES = [
    LayerSample("Dense", lambda w, x: x @ w["kernel"] + w["bias"], [f(None, 4)], {"units": 3}),
    LayerSample(
        "Dense",
        lambda w, x: np.tanh(x @ w["kernel"]),
        [f(None, 2, 4)],
        {"units": 3, "activation": "tanh", "use_bias": False},
    ),
    LayerSample("Embedding", lambda w, x: w["embeddings"][x], [i(None, 4, low=0)], {"input_dim": 5, "output_dim": 3}),
    LayerSample("Conv2D", convolution, [IMAGES], {"filters": 3, "kernel_size": 3}),
    LayerSample(
        "Conv2D",
        lambda w, x: np.tanh(convolution(w, x, (2, 1))),
        [IMAGES],
        {"filters": 3, "kernel_size": (2, 3), "strides": (2, 1), "activation": "tanh", "use_bias": False},
    ),
    LayerSample(
        "Conv2D",
        lambda w, x: convolution(w, x, (2, 2), same=True),
        [IMAGES],
        {"filters": 2, "kernel_size": 3, "strides": 2, "padding": "same"},
        symmetric=False,
    ),
    LayerSample(
        "Conv2D",
        lambda w, x: convolution(w, x, same=True, gap=2, groups=2),
        [IMAGES],
        {"filters": 6, "kernel_size": 3, "padding": "same", "dilation_rate": 2, "groups": 2},
    ),
    LayerSample("MaxPooling2D", lambda w, x: greatest(x, (2, 2), (2, 2)), [IMAGES]),
    LayerSample(
        "MaxPooling2D",
        lambda w, x: greatest(x, (3, 3), (2, 2), same=True),
        [IMAGES],
        {"pool_size": 3, "strides": 2, "padding": "same"},
        symmetric=False,
    ),
    LayerSample("AveragePooling2D", lambda w, x: average(x, (2, 3), (2, 3)), [IMAGES], {"pool_size": (2, 3)}),
    LayerSample(
        "AveragePooling2D",
        lambda w, x: average(x, (3, 3), (1, 1), same=True),
        [IMAGES],
        {"pool_size": 3, "strides": 1, "padding": "same"},
    ),
    LayerSample(
        "AveragePooling2D",
        lambda w, x: average(x, (3, 2), (2, 2), same=True),
        [IMAGES],
        {"pool_size": (3, 2), "strides": 2, "padding": "SAME"},
        symmetric=False,
    ),
    LayerSample("GlobalAveragePooling2D", lambda w, x: x.mean((1, 2)), [IMAGES]),
    LayerSample("GlobalAveragePooling2D", lambda w, x: x.mean((1, 2), keepdims=True), [IMAGES], {"keepdims": True}),
    LayerSample("GlobalMaxPooling2D", lambda w, x: x.max((1, 2)), [IMAGES]),
    LayerSample("GlobalMaxPooling2D", lambda w, x: x.max((1, 2), keepdims=True), [IMAGES], {"keepdims": True}),
    LayerSample("BatchNormalization", batch_normalized, [f(None, 4)]),
    LayerSample(
        "BatchNormalization",
        lambda w, x: batch_normalized(w, x, epsilon=0.1),
        [IMAGES],
        {"momentum": 0.9, "epsilon": 0.1, "scale": False},
    ),
    LayerSample(
        "BatchNormalization",
        lambda w, x: batch_normalized(w, x, axis=1),
        [f(None, 3, 2)],
        {"axis": 1, "center": False},
    ),
    LayerSample("LayerNormalization", layer_normalized, [f(None, 4)]),
    LayerSample(
        "LayerNormalization",
        lambda w, x: layer_normalized(w, x, (2, 3), epsilon=0.1),
        [f(None, 2, 3, 4)],
        {"axis": [3, 2], "epsilon": 0.1},
    ),
    LayerSample("LayerNormalization", layer_normalized, [f(None, 2, 4)], {"center": False, "scale": False}),
    LayerSample("Activation", lambda w, x: 1 / (1 + np.exp(-x)), [f(None, 4)], {"activation": "sigmoid"}),
    LayerSample("ReLU", lambda w, x: np.maximum(x, 0), [f(None, 4)]),
    LayerSample(
        "ReLU", lambda w, x: rectified(x), [f(None, 7)], {"max_value": 1.5, "negative_slope": 0.1, "threshold": 0.5}
    ),
    LayerSample("Softmax", lambda w, x: softmax(x, -1), [f(None, 4)]),
    LayerSample("Softmax", lambda w, x: softmax(x, (1, 2)), [f(None, 2, 3)], {"axis": [1, 2]}),
    LayerSample("Dropout", lambda w, x: x, [f(None, 4)], {"rate": 0.4}),
    LayerSample("Flatten", lambda w, x: x.reshape(len(x), -1), [f(None, 2, 3, 4)]),
    LayerSample("Flatten", lambda w, x: x[:, np.newaxis], [f(None)]),
    LayerSample("Reshape", lambda w, x: x.reshape(len(x), 6, 4), [f(None, 2, 3, 4)], {"target_shape": (-1, 4)}),
    LayerSample("Permute", lambda w, x: x.transpose(0, 3, 1, 2), [f(None, 2, 3, 4)], {"dims": (3, 1, 2)}),
    LayerSample("Add", lambda w, *xs: xs[0] + xs[1] + xs[2], [*PAIR, f(None, 2, 3)]),
    LayerSample("Add", lambda w, x, y: x + y[:, np.newaxis], RANKS),
    LayerSample("Subtract", lambda w, x, y: x - y, PAIR),
    LayerSample("Multiply", lambda w, x, y: x * y, PAIR),
    LayerSample("Maximum", lambda w, x, y: np.maximum(x, y), PAIR),
    LayerSample("Minimum", lambda w, x, y: np.minimum(x, y[:, np.newaxis]), RANKS),
    LayerSample("Average", lambda w, *xs: (xs[0] + xs[1] + xs[2]) / 3, [*PAIR, f(None, 2, 3)]),
    LayerSample("Concatenate", lambda w, x, y: np.concatenate([x, y], -1), [f(None, 2, 3), f(None, 2, 1)]),
    LayerSample("Concatenate", lambda w, x, y: np.concatenate([x, y], 1), [f(None, 2, 3), f(None, 4, 3)], {"axis": 1}),
]
