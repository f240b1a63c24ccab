"""Each layer of the table: shapes, values, derivatives, and the same numbers from parts of the batch."""

from __future__ import annotations

import json

import numpy as np
import pytest
from layer_samples import SAMPLES, LayerSample, by_name, given, random_weights
from sampling import assert_close

import miai_graph as mg
from miai_graph import layers
from miai_graph.graph import Graph
from miai_graph.interpreter import evaluate
from miai_graph.layers.layer import registry
from miai_graph.split_interpreter import evaluate_split

BATCH = 6
every_sample = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.title)


def build(sample: LayerSample, floating: str = "float64", training: bool = False):
    """A layer with random weights, the nodes it is called on, and its output."""
    layer, nodes = sample.layer(floating), sample.nodes(floating)
    output = layer(given(nodes), training=training)
    layer.set_weights(random_weights(layer))
    return layer, nodes, output


def weighted_sum(node: mg.Node) -> mg.Node:
    """A scalar that no element has the same share in as another."""
    rest = node.shape[1:]
    shares = np.linspace(0.5, 1.5, int(np.prod(rest))).reshape(rest)
    return mg.sum(mg.tanh(node) * shares.astype(node.dtype))


def test_the_table_has_every_layer() -> None:
    public = {getattr(layers, name) for name in layers.__all__}
    own = {kind.__name__ for kind in public if isinstance(kind, type) and issubclass(kind, layers.Layer)}
    assert {sample.kind for sample in SAMPLES} == own - {"Layer"}
    assert own - {"Layer"} <= set(registry.names)


@every_sample
@pytest.mark.parametrize("floating", ["float32", "float64"])
def test_values_and_shapes(sample: LayerSample, floating: str) -> None:
    layer, nodes, output = build(sample, floating)
    arrays = sample.arrays(BATCH, floating)
    (found,) = mg.function(nodes, [output])(*arrays)
    expected = sample.reference(by_name(layer), *arrays)
    assert output.shape == (None, *found.shape[1:])
    assert found.dtype == output.dtype == floating
    assert_close(found, np.asarray(expected, floating), times=4)


@every_sample
@pytest.mark.parametrize("training", [False, True])
def test_gradients(sample: LayerSample, training: bool) -> None:
    layer, nodes, output = build(sample, training=training)
    floats = [node for node in nodes if node.type.is_floating]
    feeds = dict(zip(nodes, sample.arrays(BATCH), strict=True))
    mg.check_gradients(weighted_sum(output), [*floats, *layer.trainable_weights], feeds)


@every_sample
@pytest.mark.parametrize("training", [False, True])
def test_parts_of_the_batch_give_the_same(sample: LayerSample, training: bool) -> None:
    layer, nodes, output = build(sample, training=training)
    gradients = mg.grad(weighted_sum(output), [*layer.trainable_weights, *(n for n in nodes if n.type.is_floating)])
    graph = Graph([output, *gradients], layer.updates)
    feeds = dict(zip(nodes, sample.arrays(BATCH), strict=True))
    whole, whole_updates = evaluate(graph, feeds, batch_size=BATCH, step=3)
    for sizes in ([1, 3, 2], [5, 1]):
        parts, updates = evaluate_split(graph, feeds, sizes, step=3)
        for found, expected in zip(parts, whole, strict=True):
            assert_close(found, expected, times=100)
        assert updates.keys() == whole_updates.keys()
        for weight, value in updates.items():
            assert_close(value, whole_updates[weight], times=100)


@every_sample
def test_configs_survive_json(sample: LayerSample) -> None:
    layer, nodes, output = build(sample)
    text = json.dumps(registry.serialize(layer))
    again = registry.get(json.loads(text))
    assert json.dumps(registry.serialize(again)) == text
    assert (type(again), again.name, again.dtype) == (type(layer), layer.name, layer.dtype)
    copy = again(given(nodes))
    again.set_weights(layer.get_weights())
    arrays = sample.arrays(BATCH)
    np.testing.assert_array_equal(mg.function(nodes, [copy])(*arrays), mg.function(nodes, [output])(*arrays))


def test_integers_become_floats_of_the_layer() -> None:
    images = mg.input("images", (None, 4, 4, 3), "uint8")
    kinds = [
        layers.Conv2D(2, 3),
        layers.Dense(2),
        layers.BatchNormalization(),
        layers.LayerNormalization(),
        layers.MaxPooling2D(),
        layers.AveragePooling2D(),
        layers.GlobalAveragePooling2D(),
        layers.GlobalMaxPooling2D(),
        layers.Activation("sigmoid"),
        layers.ReLU(),
        layers.Softmax(),
        layers.Dropout(0.5),
        layers.Dropout(1.0),
    ]
    assert {layer(images, training=True).dtype.name for layer in kinds} == {"float32"}
    fraction = mg.input("fraction", (None, 4, 4, 3))
    joins = [layers.Add(), layers.Maximum(), layers.Concatenate(), layers.Average()]
    assert {layer([images, fraction]).dtype.name for layer in joins} == {"float32"}
    assert layers.Average()([images, images]).dtype.name == "float32"
    assert layers.Add()([images, images]).dtype.name == "uint8"
    assert layers.Flatten()(images).dtype.name == "uint8"


def test_embedding_takes_whole_floats_and_counts_negative_numbers_from_the_back() -> None:
    layer = layers.Embedding(5, 3)
    x = mg.input("x", (None,), "float32")
    (rows,) = mg.function([x], [layer(x)])(np.array([0, 4, -1], "f4"))
    np.testing.assert_array_equal(rows, layer.get_weights()[0][[0, 4, 4]])


def test_inputs_of_fixed_batch_size() -> None:
    x = layers.Input((3,), batch_size=4)
    assert x.shape == (4, 3)
    assert layers.Dense(2)(layers.Dropout(0.5)(x, training=True)).shape == (4, 2)
    assert layers.Input(batch_shape=(None, 3), dtype="float64", name="given").name == "given"
    assert [layers.Input((3,)).name, layers.Input((3,)).name] == ["input_1", "input_2"]


@pytest.mark.parametrize(
    "arguments",
    [{}, {"shape": (3,), "batch_shape": (None, 3)}, {"batch_shape": (None, 3), "batch_size": 2}, {"shape": 3}],
)
def test_inputs_need_one_shape(arguments: dict) -> None:
    with pytest.raises(mg.errors.ArgumentError, match="expected"):
        layers.Input(**arguments)
