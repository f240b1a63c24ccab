"""Layers with the same weights give the same numbers as Keras 3 on its torch backend; skipped where that is missing.

Outputs, then, in a small model, the loss, its gradients, and the weights over five steps of each optimizer.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import test_against_keras as comparison
from layer_samples import SAMPLES, LayerSample, given, random_weights

import miai_graph as mg
from miai_graph import layers, losses, optimizers
from miai_graph.layers.layer import collect_updates_and_losses, snake_case
from miai_graph.ops.leaves import variable_of

pytestmark = pytest.mark.filterwarnings("ignore")
keras, torch = comparison.keras, comparison.torch
assert_close, as_numpy = comparison.assert_close, comparison.as_numpy
floating = comparison.dtype
torch.set_num_threads(1)  # for arrays as small as these, more take longer

BATCH, CLASSES = 6, 3
# Where padding is not as wide on both sides, Keras counts it on torch.
COMPARABLE = [sample for sample in SAMPLES if sample.symmetric or sample.kind != "AveragePooling2D"]
# With an axis of features, for a dense layer before.
TRAINABLE = [sample for sample in COMPARABLE if len(sample.values[0].shape) > 1]
every_sample = pytest.mark.parametrize("sample", COMPARABLE, ids=lambda sample: sample.title)
RULES: dict[str, dict[str, Any]] = {
    "SGD": {"learning_rate": 0.05, "momentum": 0.9, "nesterov": True},
    "RMSprop": {"learning_rate": 0.01},
    "Adam": {"learning_rate": 0.01},
}
# Of arguments for which there is nothing here, and which come last.
ONLY_IN_KERAS = {
    "Dense": ["lora_rank", "lora_alpha", "quantization_config"],
    "Embedding": ["weights", "lora_rank", "lora_alpha", "quantization_config"],
    "BatchNormalization": ["renorm", "renorm_clipping", "renorm_momentum", "synchronized"],
}


def their_layer(sample: LayerSample, dtype: str) -> Any:
    return getattr(keras.layers, sample.kind)(**sample.options, dtype=dtype)


def tensors(arrays: Sequence[np.ndarray]) -> list[Any]:
    return [torch.tensor(array) for array in arrays]


@every_sample
@pytest.mark.parametrize("training", [False, True])
def test_outputs(sample: LayerSample, training: bool, floating: str) -> None:
    training = training and sample.kind != "Dropout"
    ours, theirs = sample.layer(floating), their_layer(sample, floating)
    arrays, nodes = sample.arrays(BATCH, floating), sample.nodes(floating)
    output = ours(given(nodes), training=training)
    theirs.build(given([array.shape for array in arrays]))
    weights = random_weights(ours)
    ours.set_weights(weights)
    theirs.set_weights(weights)
    assert [node.name.rpartition("/")[2] for node in ours.weights] == [weight.name for weight in theirs.weights]
    assert len(ours.trainable_weights) == len(theirs.trainable_weights)
    (found,) = mg.function(nodes, [output], ours.updates)(*arrays)
    takes_mode = "training" in inspect.signature(theirs.call).parameters
    expected = theirs(given(tensors(arrays)), **({"training": training} if takes_mode else {}))
    assert found.dtype == floating
    assert_close(found, as_numpy(expected.detach()), floating, "output")
    for weight, value in zip(ours.weights, theirs.weights, strict=True):
        assert_close(weight.value, as_numpy(value), floating, weight.name)


class OurModel:
    """A dense layer for each input, the layer of a sample, and a classifier: its training step."""

    def __init__(self, sample: LayerSample, dtype: str, training: bool) -> None:
        self.inputs = sample.nodes(dtype)
        self.labels = mg.input("labels", (None,), "int64")
        self.parts = [*befores(layers, sample, dtype), sample.layer(dtype), *ends(layers, dtype)]
        with collect_updates_and_losses() as left:
            logits = through(self.parts, self.inputs, training)
        self.loss = losses.SparseCategoricalCrossentropy(from_logits=True)(self.labels, logits)
        self.updates = left.updates
        self.weights = [weight for part in self.parts for weight in part.weights]
        self.trainable = [weight for weight in self.weights if variable_of(weight).trainable]
        rng = np.random.default_rng(1)
        for weight in self.weights:
            low, high = (0.5, 1.5) if "variance" in weight.name else (-0.6, 0.6)
            mg.assign(weight, rng.uniform(low, high, weight.shape).astype(dtype))

    def step(self, rule: str) -> mg.Function:
        gradients = mg.grad(self.loss, self.trainable)
        updates = getattr(optimizers, rule)(**RULES[rule]).updates(gradients, self.trainable)
        return mg.function([*self.inputs, self.labels], [self.loss, *gradients], {**self.updates, **updates})


class TheirModel:
    """The same, of Keras's parts."""

    def __init__(self, sample: LayerSample, dtype: str, training: bool, weights: Sequence[np.ndarray]) -> None:
        self.training = training
        self.parts = [*befores(keras.layers, sample, dtype), their_layer(sample, dtype), *ends(keras.layers, dtype)]
        through(self.parts, tensors(sample.arrays(BATCH, dtype)), training=False)
        self.weights = [weight for part in self.parts for weight in part.weights]
        for weight, value in zip(self.weights, weights, strict=True):
            weight.assign(value)
        self.trainable = [weight for weight in self.weights if weight.trainable]

    def loss_and_gradients(self, arrays: Sequence[np.ndarray], labels: np.ndarray) -> list[Any]:
        logits = through(self.parts, tensors(arrays), self.training)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(torch.tensor(labels), logits)
        return [loss, *torch.autograd.grad(loss, [weight.value for weight in self.trainable])]


def befores(library: Any, sample: LayerSample, dtype: str) -> list[Any]:
    """A layer for each input of floats, which gives the layer of the sample something to pass gradients to."""
    lengths = [value.shape[-1] for value in sample.values if value.dtype == "float"]
    return [library.Dense(length, activation="tanh", dtype=dtype) for length in lengths]


def ends(library: Any, dtype: str) -> list[Any]:
    return [library.Flatten(dtype=dtype), library.Dense(CLASSES, dtype=dtype)]


def through(parts: Sequence[Any], inputs: Sequence[Any], training: bool) -> Any:
    """The logits: each input through a layer of its own if there is one, then one layer after another."""
    *first, layer, flatten, last = parts
    changed = [before(x) for before, x in zip(first, inputs, strict=True)] if first else list(inputs)
    takes_mode = "training" in inspect.signature(layer.call).parameters
    joined = layer(given(changed), **({"training": training} if takes_mode else {}))
    return last(flatten(joined))


@pytest.mark.parametrize("sample", TRAINABLE, ids=lambda sample: sample.title)
@pytest.mark.parametrize("rule", RULES)
def test_five_training_steps(sample: LayerSample, rule: str, floating: str) -> None:
    training = sample.kind != "Dropout"
    ours = OurModel(sample, floating, training)
    theirs = TheirModel(sample, floating, training, [weight.value for weight in ours.weights])
    step, optimizer = ours.step(rule), getattr(keras.optimizers, rule)(**RULES[rule])
    for number in range(5):
        arrays = sample.arrays(BATCH, floating, seed=number)
        labels = np.random.default_rng(number).integers(0, CLASSES, BATCH)
        found = step(*arrays, labels)
        expected = [as_numpy(value.detach()) for value in theirs.loss_and_gradients(arrays, labels)]
        optimizer.apply(tensors(expected[1:]), theirs.trainable)
        if number == 0:
            assert_close(found[0], expected[0], floating, "loss")
            for weight, mine, their in zip(ours.trainable, found[1:], expected[1:], strict=True):
                assert_close(mine, their, floating, f"gradient of {weight.name}")
        for mine, their in zip(ours.weights, theirs.weights, strict=True):
            assert_close(mine.value, as_numpy(their), floating, f"{mine.name} after step {number}")


@pytest.mark.parametrize("frozen", [False, True])
def test_penalties_and_frozen_batch_statistics(frozen: bool, floating: str) -> None:
    options = {"beta_regularizer": "l1", "gamma_regularizer": "l2", "activity_regularizer": "l2", "dtype": floating}
    ours, theirs = layers.BatchNormalization(**options), keras.layers.BatchNormalization(**options)
    x = mg.input("x", (None, 4), floating)
    value = comparison.random(BATCH, 4, dtype=floating)
    ours.build(x.shape)
    theirs.build(x.shape)
    weights = random_weights(ours)
    for layer in (ours, theirs):
        layer.trainable = not frozen
        layer.set_weights(weights)
    output = ours(x, training=True)
    found = mg.function([x], [output, *ours.losses], ours.updates)(value)
    expected = as_numpy(theirs(torch.tensor(value), training=True).detach())
    assert_close(found[0], expected, floating, "output")
    assert len(ours.losses) == len(theirs.losses) == (1 if frozen else 3)
    assert_close(sum(found[1:]), sum(float(loss) for loss in theirs.losses), floating, "penalties")
    for weight, their in zip(ours.weights, theirs.weights, strict=True):
        assert_close(weight.value, as_numpy(their), floating, weight.name)


def network(library: Any, dtype: str) -> Any:
    """A model of either library; the layers take their dtype from Keras's setting there."""
    options = {"dtype": dtype}
    return library.Sequential(
        [
            library.layers.Input((9, 8, 2), **options),
            library.layers.Conv2D(4, 3, padding="same", use_bias=False, kernel_regularizer="l2", **options),
            library.layers.BatchNormalization(**options),
            library.layers.ReLU(**options),
            library.layers.MaxPooling2D(**options),
            library.layers.Conv2D(3, 3, activation="tanh", kernel_constraint="unit_norm", **options),
            library.layers.LayerNormalization(activity_regularizer="l1", **options),
            library.layers.Flatten(**options),
            library.layers.Dense(CLASSES, activation="softmax", **options),
        ]
    )


def test_a_model_trained_on_five_batches(floating: str) -> None:
    ours, theirs = network(mg, floating), network(keras, floating)
    theirs.set_weights(ours.get_weights())
    for library, model in ((mg, ours), (keras, theirs)):
        optimizer = library.optimizers.Adam(0.01, clipnorm=1.0)
        model.compile(optimizer, "sparse_categorical_crossentropy")
    before = ours.get_weights()
    for seed in range(5):
        batch = comparison.random(BATCH, 9, 8, 2, dtype=floating, seed=seed), np.arange(BATCH) % CLASSES
        ours.train_on_batch(*batch)
        theirs.train_on_batch(*batch)
    for weight, start, their in zip(ours.weights, before, theirs.get_weights(), strict=True):
        assert_close(weight.value, their, floating, weight.name)
        assert comparison.difference(weight.value, start) > 1e-3
    assert_close(ours.evaluate(*batch, verbose=0), theirs.evaluate(*batch, verbose=0), floating, "loss")
    assert_close(ours.predict(batch[0], verbose=0), theirs.predict(batch[0], verbose=0), floating, "prediction")


KINDS = sorted({sample.kind for sample in SAMPLES})


@pytest.mark.parametrize("kind", KINDS)
def test_arguments_and_names_are_those_of_keras(kind: str) -> None:
    ours, theirs = (
        [
            (parameter.name, parameter.default)
            for parameter in inspect.signature(getattr(library, kind)).parameters.values()
            if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        ]
        for library in (layers, keras.layers)
    )
    for name in reversed(ONLY_IN_KERAS.get(kind, [])):
        assert theirs.pop()[0] == name
    if kind == "BatchNormalization":  # which has another default for the last
        assert ours.pop() == ("synchronized", True)
    if kind == "AveragePooling2D":  # which has a default for the one of MaxPooling2D only
        theirs[0] = ("pool_size", (2, 2))
    assert ours == theirs
    assert snake_case(kind) == keras.src.utils.naming.to_snake_case(kind)


@pytest.mark.parametrize("name", ["Conv2DBlock", "HTTPServer", "ResNet50", "MyLayer", "A", "ABCde", "X2Y"])
def test_names_of_own_layers_are_those_of_keras(name: str) -> None:
    assert snake_case(name) == keras.src.utils.naming.to_snake_case(name)
