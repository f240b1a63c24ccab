"""The standard workloads: small to middle-sized networks whose training step says how fast an executor is.

The data are random, of the shapes of digits, MNIST, CIFAR and text: how long a step takes does not depend on them.
Steps are small, so that two sides that do the same do not drift apart by rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from miai_graph import layers, losses, optimizers
from miai_graph.bench.exchange import Problem
from miai_graph.bench.grown import FEATURES, SCALE, SHIFT, chain_length, mlp_size
from miai_graph.context import set_seed
from miai_graph.errors import ArgumentError
from miai_graph.model import Model, Sequential
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.ops.arithmetic import multiply
from miai_graph.ops.convolution import conv2d
from miai_graph.ops.elementwise import where
from miai_graph.ops.linalg import matmul
from miai_graph.ops.nonlinear import relu
from miai_graph.ops.softmax import softmax
from miai_graph.ops.structure import reshape, transpose

CONTEXT, VOCABULARY, WIDTH, HEADS, BLOCKS = 64, 65, 128, 4, 2
STACK_WIDTH, STACK_DEPTH = 1024, 8
SAMPLES = 1024
BATCHES = 32
"""How many batches of row numbers are prepared; they are gone through again and again."""


@dataclass(frozen=True)
class Workload:
    """A network with an optimizer, and the batch sizes at which it is usually measured.

    Attributes
    ----------
    build : makes the model, not yet compiled
    optimizer : the name of a class of `optimizers`
    options : its arguments
    input_shape : of one sample
    classes : the labels are from 0 to below it
    labels : the shape of one sample's labels
    tokens : whether the inputs are integers below `classes` instead of floats
    """

    name: str
    build: Callable[[], Model]
    batches: tuple[int, ...]
    optimizer: str
    options: dict[str, Any]
    input_shape: tuple[int, ...]
    classes: int = 10
    labels: tuple[int, ...] = field(default=())
    tokens: bool = False

    def model(self, seed: int = 0) -> Model:
        """The compiled model, with the same first weights whenever it is made."""
        set_seed(seed)
        model = self.build()
        model.compile(
            optimizer=getattr(optimizers, self.optimizer)(**self.options),
            loss=losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        return model

    def problem(self, batch: int, seed: int = 0) -> Problem:
        """Data, the rows of each batch, and first weights: all that two sides need to do the same."""
        rng = np.random.default_rng(seed)
        samples = max(SAMPLES, batch)
        x: Array
        if self.tokens:
            x = rng.integers(0, self.classes, (samples, *self.input_shape))
        else:
            x = rng.random((samples, *self.input_shape), np.float32)
        y = rng.integers(0, self.classes, (samples, *self.labels))
        passes = -(-BATCHES * batch // samples)
        order = np.concatenate([np.arange(samples), *(rng.permutation(samples) for _ in range(passes))])
        rows = order[: BATCHES * batch].reshape(BATCHES, batch)
        weights = {node.name: node.value for node in self.model(seed).weights}
        return Problem(x, y, rows, weights, self.optimizer, self.options)


def digits_mlp() -> Model:
    return _dense_network(64, [128])


def mnist_mlp() -> Model:
    return _dense_network(784, [256, 128])


def wide_mlp() -> Model:
    return _dense_network(784, [1024, 2048, 2048, 2048])


def stacked_mlp() -> Model:
    """Equal layers, the last one without an activation."""
    names = [f"dense_{place}" for place in range(STACK_DEPTH)]
    inner = [layers.Dense(STACK_WIDTH, activation="relu", name=name) for name in names[:-1]]
    last = layers.Dense(STACK_WIDTH, name=names[-1])
    return Sequential([layers.Input((STACK_WIDTH,), name="features"), *inner, last])


def lenet() -> Model:
    """LeNet-5 with ReLU and max-pooling (LeCun, Bottou, Bengio and Haffner 1998)."""
    return Sequential(
        [
            layers.Input((28, 28, 1), name="image"),
            layers.Conv2D(6, 5, padding="same", activation="relu", name="conv_0"),
            layers.MaxPooling2D(name="pool_0"),
            layers.Conv2D(16, 5, activation="relu", name="conv_1"),
            layers.MaxPooling2D(name="pool_1"),
            layers.Flatten(name="flatten"),
            *_dense_layers([120, 84]),
        ]
    )


def deep_cnn() -> Model:
    return Sequential(
        [
            layers.Input((28, 28, 1), name="image"),
            layers.Conv2D(32, 3, strides=2, activation="relu", name="conv_0"),
            layers.Conv2D(64, 5, activation="relu", name="conv_1"),
            layers.Conv2D(128, 7, activation="relu", name="conv_2"),
            layers.Flatten(name="flatten"),
            *_dense_layers([1024, 1024, 1024]),
        ]
    )


def resnet8() -> Model:
    """A residual network of three blocks (He, Zhang, Ren and Sun 2015, arXiv:1512.03385, section 4.2)."""
    image = layers.Input((32, 32, 3), name="image")
    h = relu(_normalized_convolution(image, 16, 1, "stem"))
    for block, (channels, stride) in enumerate([(16, 1), (32, 2), (64, 2)]):
        inner = relu(_normalized_convolution(h, channels, stride, f"block_{block}_a"))
        inner = _normalized_convolution(inner, channels, 1, f"block_{block}_b")
        if stride > 1:
            h = layers.Conv2D(channels, 1, strides=stride, use_bias=False, name=f"block_{block}_shortcut")(h)
        h = relu(h + inner)
    return Model(image, layers.Dense(10, name="dense_0")(layers.GlobalAveragePooling2D(name="pool")(h)))


def char_gpt() -> Model:
    """A transformer that predicts the next character; layer normalization before each part, as in GPT-2."""
    characters = layers.Input((CONTEXT,), dtype="int64", name="characters")
    h = _PositionEmbedding(name="position")(layers.Embedding(VOCABULARY, WIDTH, name="token")(characters))
    for block in range(BLOCKS):
        attention = _CausalSelfAttention(name=f"block_{block}_attention")
        h = h + attention(layers.LayerNormalization(name=f"block_{block}_norm_a")(h))
        inner = layers.LayerNormalization(name=f"block_{block}_norm_b")(h)
        inner = layers.Dense(4 * WIDTH, activation="relu", name=f"block_{block}_up")(inner)
        h = h + layers.Dense(WIDTH, name=f"block_{block}_down")(inner)
    return Model(characters, layers.Dense(VOCABULARY, name="head")(layers.LayerNormalization(name="norm")(h)))


def grown_mlp(depth: int, width: int) -> Model:
    """Weights are such that signals neither vanish nor explode in many layers (He, Zhang, Ren and Sun 2015)."""
    hidden = [
        layers.Dense(width, activation="relu", kernel_initializer="he_uniform", name=f"dense_{place}")
        for place in range(depth)
    ]
    last = layers.Dense(10, name=f"dense_{depth}")
    return Sequential([layers.Input((FEATURES,), name="features"), *hidden, last])


def chain(length: int) -> Model:
    """A dense layer, and after it nodes that scale and shift in turns."""
    features = layers.Input((FEATURES,), name="features")
    h = layers.Dense(10, name="dense_0")(features)
    for place in range(length):
        h = h + SHIFT if place % 2 else h * SCALE
    return Model(features, h)


def _dense_network(width: int, hidden: list[int]) -> Model:
    return Sequential([layers.Input((width,), name="features"), *_dense_layers(hidden)])


def _dense_layers(hidden: list[int]) -> list[layers.Layer]:
    """Dense layers with ReLU, and one without for ten classes."""
    inner = [layers.Dense(units, activation="relu", name=f"dense_{place}") for place, units in enumerate(hidden)]
    return [*inner, layers.Dense(10, name=f"dense_{len(hidden)}")]


class _Convolution3x3(layers.Conv2D):
    """With a ring of zeros around the image, as in the paper: "same" pads only one side where the stride is 2."""

    def call(self, inputs: Node) -> Node:
        return conv2d(inputs, self.kernel, self.strides, padding=1)


def _normalized_convolution(h: Node, channels: int, stride: int, name: str) -> Node:
    convolved = _Convolution3x3(channels, 3, strides=stride, use_bias=False, name=name)(h)
    return layers.BatchNormalization(name=f"{name}_norm")(convolved)


class _CausalSelfAttention(layers.Layer):
    """Each character looks at those before it, with several heads (Vaswani et al. 2017, arXiv:1706.03762)."""

    def build(self, input_shape: Any) -> None:
        self.project_in = layers.Dense(3 * WIDTH, use_bias=False, name="project_in")
        self.project_out = layers.Dense(WIDTH, use_bias=False, name="project_out")

    def call(self, inputs: Node) -> Node:
        size = WIDTH // HEADS
        parts = reshape(self.project_in(inputs), (None, CONTEXT, 3, HEADS, size))
        q, k, v = (transpose(parts[:, :, part], (0, 2, 1, 3)) for part in range(3))
        scores = multiply(matmul(q, transpose(k, (0, 1, 3, 2))), 1 / math.sqrt(size))
        future = np.triu(np.ones((CONTEXT, CONTEXT), bool), 1)
        mixed = transpose(matmul(softmax(where(future, -1e9, scores)), v), (0, 2, 1, 3))
        return self.project_out(reshape(mixed, (None, CONTEXT, WIDTH)))


class _PositionEmbedding(layers.Layer):
    """Adds to each place of the sequence a vector of its own."""

    def build(self, input_shape: Any) -> None:
        self.places = self.add_weight(input_shape[1:], "uniform", name="places")

    def call(self, inputs: Node) -> Node:
        return inputs + self.places


_SGD = {"learning_rate": 0.001, "momentum": 0.9}
_ADAM = {"learning_rate": 1e-4, "epsilon": 1e-9}
# With a small epsilon, weights whose gradient is but a rounding error take whole steps, each side in its own direction.
# A large one also hides that Keras adds it below the root, and PyTorch beside it.
_RMSPROP = {"learning_rate": 1.0, "epsilon": 1e4}

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("digits_mlp", digits_mlp, (32,), "SGD", _SGD, (64,)),
        Workload("mnist_mlp", mnist_mlp, (64,), "Adam", _ADAM, (784,)),
        Workload("wide_mlp", wide_mlp, (64, 256), "RMSprop", _RMSPROP, (784,)),
        Workload("lenet", lenet, (64,), "Adam", _ADAM, (28, 28, 1)),
        Workload("deep_cnn", deep_cnn, (32, 256), "RMSprop", _RMSPROP, (28, 28, 1)),
        Workload("resnet8", resnet8, (64,), "SGD", _SGD, (32, 32, 3)),
        Workload("char_gpt", char_gpt, (16,), "Adam", _ADAM, (CONTEXT,), VOCABULARY, (CONTEXT,), tokens=True),
    )
}
"""The standard workloads by name."""

STACKED_MLP = Workload(
    "stacked_mlp", stacked_mlp, (256, 512), "SGD", {"learning_rate": 0.1}, (STACK_WIDTH,), STACK_WIDTH
)
"""For pipelines: equally many of its layers take equally long."""

ALL_WORKLOADS = {**WORKLOADS, STACKED_MLP.name: STACKED_MLP}


def workload(name: str) -> Workload:
    """The workload of a name, also that of a network of any size (see `grown`); ArgumentError if there is none."""
    size, length = mlp_size(name), chain_length(name)
    if size is not None:
        return Workload(name, partial(grown_mlp, *size), (64,), "SGD", _SGD, (FEATURES,))
    if length is not None:
        return Workload(name, partial(chain, length), (64,), "SGD", _SGD, (FEATURES,))
    if name not in ALL_WORKLOADS:
        raise ArgumentError(f"expected the name of a workload; found {name!r}. There are: {', '.join(ALL_WORKLOADS)}")
    return ALL_WORKLOADS[name]
