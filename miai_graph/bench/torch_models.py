"""The workloads in PyTorch, at the settings that are fastest there: images channels last in memory, fused attention.

PyTorch is passed in, so that this file can be imported where it is not installed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from miai_graph.bench.exchange import Array
from miai_graph.bench.grown import SCALE, SHIFT, chain_length, mlp_size

Weights = Mapping[str, Any]
Forward = Callable[[Any, Weights, Any], Any]

HEADS = 4
NORM_EPSILON = 1e-3
BATCH_NORM_MOMENTUM = 0.01
BLOCKS_OF_RESNET = ((0, 1), (1, 2), (2, 2))
BUFFERS = ("moving_mean", "moving_variance")


def make_module(torch: Any, forward: Forward, weights: Mapping[str, Array]) -> Any:
    """A module with these weights, and `by_name`, the tensors."""

    class Network(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.by_name: dict[str, Any] = {}
            for name, value in weights.items():
                tensor = to_torch(torch, name, value)
                key = name.replace("/", "_")
                if name.endswith(BUFFERS):
                    self.register_buffer(key, tensor)
                else:
                    self.register_parameter(key, torch.nn.Parameter(tensor))
                self.by_name[name] = getattr(self, key)

        def forward(self, x: Any) -> Any:
            return forward(torch, self.by_name, x)

    return Network()


def to_torch(torch: Any, name: str, value: Array) -> Any:
    """A weight as PyTorch's layers keep it: of dense layers transposed, of convolutions channels last in memory."""
    tensor = torch.from_numpy(value.copy())
    if name.endswith("/kernel") and value.ndim == 4:
        return tensor.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
    return tensor.T.contiguous() if name.endswith("/kernel") else tensor


def from_torch(name: str, tensor: Any) -> Array:
    """A weight as it was before `to_torch`."""
    value: Array = tensor.detach().numpy()
    if name.endswith("/kernel"):
        value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
    return value


def dense(torch: Any, w: Weights, name: str, x: Any) -> Any:
    return torch.nn.functional.linear(x, w[f"{name}/kernel"], w.get(f"{name}/bias"))


def convolution(torch: Any, w: Weights, name: str, x: Any, stride: int = 1, padding: int = 0) -> Any:
    """A convolution of images, with a bias if it has one."""
    kernel, bias = w[f"{name}/kernel"], w.get(f"{name}/bias")
    return torch.nn.functional.conv2d(x, kernel, bias, stride=stride, padding=padding)


def dense_network(torch: Any, w: Weights, x: Any) -> Any:
    """Dense layers with ReLU, and a last one without."""
    count = sum(name.startswith("dense_") for name in w) // 2
    for place in range(count - 1):
        x = torch.relu(dense(torch, w, f"dense_{place}", x))
    return dense(torch, w, f"dense_{count - 1}", x)


def flattened(x: Any) -> Any:
    """Rows of numbers, in the order in which they lie in memory."""
    return x.permute(0, 2, 3, 1).flatten(1)


def lenet(torch: Any, w: Weights, x: Any) -> Any:
    """Two convolutions, each followed by max pooling, and dense layers."""
    pool = torch.nn.functional.max_pool2d
    x = pool(torch.relu(convolution(torch, w, "conv_0", x.permute(0, 3, 1, 2), padding=2)), 2)
    x = pool(torch.relu(convolution(torch, w, "conv_1", x)), 2)
    return dense_network(torch, w, flattened(x))


def deep_cnn(torch: Any, w: Weights, x: Any) -> Any:
    """Three convolutions, the first with a stride, and dense layers."""
    x = torch.relu(convolution(torch, w, "conv_0", x.permute(0, 3, 1, 2), stride=2))
    x = torch.relu(convolution(torch, w, "conv_1", x))
    x = torch.relu(convolution(torch, w, "conv_2", x))
    return dense_network(torch, w, flattened(x))


def resnet8(torch: Any, w: Weights, x: Any) -> Any:
    """Three residual blocks of normalized convolutions, and the mean over places."""
    x = torch.relu_(normalized_convolution(torch, w, "stem", x.permute(0, 3, 1, 2), 1))
    for block, stride in BLOCKS_OF_RESNET:
        inner = torch.relu_(normalized_convolution(torch, w, f"block_{block}_a", x, stride))
        inner = normalized_convolution(torch, w, f"block_{block}_b", inner, 1)
        shortcut = x if stride == 1 else convolution(torch, w, f"block_{block}_shortcut", x, stride)
        x = torch.relu_(inner.add_(shortcut))
    return dense(torch, w, "dense_0", x.mean((2, 3)))


def normalized_convolution(torch: Any, w: Weights, name: str, x: Any, stride: int) -> Any:
    """A 3 × 3 convolution and batch normalization, in training mode."""
    norm = f"{name}_norm"
    return torch.nn.functional.batch_norm(
        convolution(torch, w, name, x, stride, padding=1),
        w[f"{norm}/moving_mean"],
        w[f"{norm}/moving_variance"],
        w[f"{norm}/gamma"],
        w[f"{norm}/beta"],
        training=True,
        momentum=BATCH_NORM_MOMENTUM,
        eps=NORM_EPSILON,
    )


def char_gpt(torch: Any, w: Weights, x: Any) -> Any:
    """A transformer that predicts the next character at each place."""
    h = torch.nn.functional.embedding(x, w["token/embeddings"]) + w["position/places"]
    blocks = sum(name.endswith("_up/bias") for name in w)
    for block in range(blocks):
        h = h + attention(torch, w, f"block_{block}_attention", layer_norm(torch, w, f"block_{block}_norm_a", h))
        inner = dense(torch, w, f"block_{block}_up", layer_norm(torch, w, f"block_{block}_norm_b", h))
        h = h + dense(torch, w, f"block_{block}_down", torch.relu_(inner))
    return dense(torch, w, "head", layer_norm(torch, w, "norm", h))


def layer_norm(torch: Any, w: Weights, name: str, x: Any) -> Any:
    return torch.nn.functional.layer_norm(x, x.shape[-1:], w[f"{name}/gamma"], w[f"{name}/beta"], NORM_EPSILON)


def attention(torch: Any, w: Weights, name: str, x: Any) -> Any:
    """Causal self-attention with several heads."""
    batch, length, width = x.shape
    parts = dense(torch, w, f"{name}/project_in", x).view(batch, length, 3, HEADS, width // HEADS)
    q, k, v = parts.permute(2, 0, 3, 1, 4)
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return dense(torch, w, f"{name}/project_out", mixed.transpose(1, 2).reshape(batch, length, width))


def chain(torch: Any, w: Weights, x: Any, length: int) -> Any:
    """A dense layer, and after it operations that scale and shift in turns."""
    h = dense(torch, w, "dense_0", x)
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
