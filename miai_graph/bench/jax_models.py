"""The workloads in JAX: pure functions of weights by name, which lie in memory as ours do, channels last.

JAX is passed in, so that this file can be imported where it is not installed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from miai_graph.bench.grown import SCALE, SHIFT, chain_length, mlp_size
from miai_graph.bench.torch_models import BLOCKS_OF_RESNET, HEADS, NORM_EPSILON

Weights = Mapping[str, Any]
Forward = Callable[[Any, Weights, Any], Any]

LAYOUT = ("NHWC", "HWIO", "NHWC")


def dense(w: Weights, name: str, x: Any) -> Any:
    """A product with a kernel, and a bias if there is one."""
    y = x @ w[f"{name}/kernel"]
    return y + w[f"{name}/bias"] if f"{name}/bias" in w else y


def convolution(jax: Any, w: Weights, name: str, x: Any, stride: int = 1, padding: int = 0) -> Any:
    """A convolution of images, with a bias if it has one."""
    around = [(padding, padding)] * 2
    y = jax.lax.conv_general_dilated(x, w[f"{name}/kernel"], (stride, stride), around, dimension_numbers=LAYOUT)
    return y + w[f"{name}/bias"] if f"{name}/bias" in w else y


def max_pool(jax: Any, x: Any) -> Any:
    """Over squares of 2 × 2."""
    size = (1, 2, 2, 1)
    return jax.lax.reduce_window(x, -math.inf, jax.lax.max, size, size, "VALID")


def dense_network(jax: Any, w: Weights, x: Any) -> Any:
    """Dense layers with ReLU, and a last one without."""
    count = sum(name.startswith("dense_") for name in w) // 2
    for place in range(count - 1):
        x = jax.nn.relu(dense(w, f"dense_{place}", x))
    return dense(w, f"dense_{count - 1}", x)


def flattened(x: Any) -> Any:
    return x.reshape(len(x), -1)


def lenet(jax: Any, w: Weights, x: Any) -> Any:
    """Two convolutions, each followed by max pooling, and dense layers."""
    x = max_pool(jax, jax.nn.relu(convolution(jax, w, "conv_0", x, padding=2)))
    x = max_pool(jax, jax.nn.relu(convolution(jax, w, "conv_1", x)))
    return dense_network(jax, w, flattened(x))


def deep_cnn(jax: Any, w: Weights, x: Any) -> Any:
    """Three convolutions, the first with a stride, and dense layers."""
    x = jax.nn.relu(convolution(jax, w, "conv_0", x, stride=2))
    x = jax.nn.relu(convolution(jax, w, "conv_1", x))
    x = jax.nn.relu(convolution(jax, w, "conv_2", x))
    return dense_network(jax, w, flattened(x))


def resnet8(jax: Any, w: Weights, x: Any) -> Any:
    """Three residual blocks of normalized convolutions, and the mean over places."""
    x = jax.nn.relu(normalized_convolution(jax, w, "stem", x, 1))
    for block, stride in BLOCKS_OF_RESNET:
        inner = jax.nn.relu(normalized_convolution(jax, w, f"block_{block}_a", x, stride))
        inner = normalized_convolution(jax, w, f"block_{block}_b", inner, 1)
        shortcut = x if stride == 1 else convolution(jax, w, f"block_{block}_shortcut", x, stride)
        x = jax.nn.relu(inner + shortcut)
    return dense(w, "dense_0", x.mean((1, 2)))


def normalized_convolution(jax: Any, w: Weights, name: str, x: Any, stride: int) -> Any:
    """A 3 × 3 convolution and batch normalization by the statistics of the batch.

    The moving averages are not kept: no step depends on them.
    """
    y, norm = convolution(jax, w, name, x, stride, padding=1), f"{name}_norm"
    mean, variance = y.mean((0, 1, 2)), y.var((0, 1, 2))
    return (y - mean) * (w[f"{norm}/gamma"] * jax.lax.rsqrt(variance + NORM_EPSILON)) + w[f"{norm}/beta"]


def char_gpt(jax: Any, w: Weights, x: Any) -> Any:
    """A transformer that predicts the next character at each place."""
    h = w["token/embeddings"][x] + w["position/places"]
    blocks = sum(name.endswith("_up/bias") for name in w)
    for block in range(blocks):
        h = h + attention(jax, w, f"block_{block}_attention", layer_norm(jax, w, f"block_{block}_norm_a", h))
        inner = dense(w, f"block_{block}_up", layer_norm(jax, w, f"block_{block}_norm_b", h))
        h = h + dense(w, f"block_{block}_down", jax.nn.relu(inner))
    return dense(w, "head", layer_norm(jax, w, "norm", h))


def layer_norm(jax: Any, w: Weights, name: str, x: Any) -> Any:
    """Layer normalization over the last axis, scaled and shifted."""
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + NORM_EPSILON) * w[f"{name}/gamma"] + w[f"{name}/beta"]


def attention(jax: Any, w: Weights, name: str, x: Any) -> Any:
    """Causal self-attention with several heads."""
    batch, length, width = x.shape
    parts = dense(w, f"{name}/project_in", x).reshape(batch, length, 3, HEADS, width // HEADS)
    q, k, v = parts[:, :, 0], parts[:, :, 1], parts[:, :, 2]
    mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    return dense(w, f"{name}/project_out", mixed.reshape(batch, length, width))


def chain(_: Any, w: Weights, x: Any, length: int) -> Any:
    """A dense layer, and after it operations that scale and shift in turns."""
    h = dense(w, "dense_0", x)
    for place in range(length):
        h = h + SHIFT if place % 2 else h * SCALE
    return h


FORWARDS: dict[str, Forward] = {
    "digits_mlp": dense_network,
    "mnist_mlp": dense_network,
    "wide_mlp": dense_network,
    "lenet": lenet,
    "deep_cnn": deep_cnn,
    "resnet8": resnet8,
    "char_gpt": char_gpt,
    "stacked_mlp": dense_network,
}
"""The forward passes by the workload's name."""


def forward_of(name: str) -> Forward:
    """The forward pass of a workload, or of a network of any size."""
    length = chain_length(name)
    if length is not None:
        return partial(chain, length=length)
    return dense_network if mlp_size(name) is not None else FORWARDS[name]
