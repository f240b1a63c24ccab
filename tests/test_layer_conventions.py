"""What all layers have in common: names, building, weights, freezing, configs, and a user's own layers."""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np
import pytest

import miai_graph as mg
from miai_graph import layers, regularizers
from miai_graph.errors import ArgumentError, DTypeError, DuplicateNameError, ModelError, ShapeError
from miai_graph.graph import Graph
from miai_graph.layers.layer import LayerCall, registry
from miai_graph.registry import custom_object_scope


def features(*shape: int, name: str = "x", dtype: str = "float32") -> mg.Node:
    return mg.input(name, (None, *shape), dtype)


def names(layer: Any) -> list[str]:
    return [weight.name for weight in layer.weights]


class Scale(layers.Layer):
    """The user's own layer, as it is documented."""

    def build(self, input_shape):
        self.factor = self.add_weight((input_shape[-1],), "ones", name="factor")

    def call(self, x):
        return x * self.factor


class Tower(layers.Layer):
    """Layers in a list that grows, in a private attribute, and in a dictionary; a parameter of its own."""

    def __init__(self, widths, **options):
        super().__init__(**options)
        self.widths = widths
        self.stack = []
        for width in widths:
            self.stack.append(layers.Dense(width, name=f"dense_{len(self.stack)}"))
        self._norm = layers.BatchNormalization()
        self.ends = {"first": Scale(), "last": (Scale(),)}
        self.shift = mg.parameter(np.zeros(3, "f4"), name="shift")

    def call(self, x, training=False):
        x = self._norm(self.ends["first"](x)) + self.shift
        for layer in self.stack:
            x = layer(x)
        return self.ends["last"][0](x)


# Names


def test_names_are_those_of_keras() -> None:
    made = [layers.Dense(1), layers.Dense(1), layers.Conv2D(1, 1), layers.MaxPooling2D(), layers.BatchNormalization()]
    made += [layers.ReLU(), layers.GlobalAveragePooling2D(), layers.Dense(1, name="mine"), layers.Dense(1)]
    assert [layer.name for layer in made] == [
        *("dense", "dense_1", "conv2d", "max_pooling2d", "batch_normalization"),
        *("re_lu", "global_average_pooling2d", "mine", "dense_2"),
    ]
    mg.set_seed(0)
    assert layers.Dense(1).name == "dense"
    own = [("Conv2DBlock", "conv2d_block"), ("_Hidden", "hidden"), ("HTTPServer", "http_server"), ("A", "a")]
    for name, expected in own:
        assert type(name, (layers.Layer,), {})().name == expected


@pytest.mark.parametrize("name", ["", "a/b", 3])
def test_names_are_strings_without_slashes(name: Any) -> None:
    with pytest.raises(ArgumentError, match="expected a name"):
        layers.Dense(1, name=name)


def test_one_name_for_two_layers_is_refused_where_they_meet() -> None:
    first, second = layers.Dense(2, name="same"), layers.Dense(2, name="same")
    with pytest.raises(DuplicateNameError, match=r"test_layer_conventions\.py"):
        Graph([second(first(features(2)))])


# Building


def test_weights_are_made_once_and_named_alike_however_a_layer_is_built() -> None:
    class Pair(layers.Layer):
        def __init__(self, **options):
            super().__init__(**options)
            self.one, self.two = layers.Dense(2, name="one"), layers.Dense(2, name="two")

        def build(self, input_shape):
            self.gain = self.add_weight(name="gain")
            self.one.build(input_shape)
            self.two.build((*input_shape[:-1], 2))

        def call(self, x):
            return self.two(self.one(x)) * self.gain

    expected = ["pair/gain", "pair/one/kernel", "pair/one/bias", "pair/two/kernel", "pair/two/bias"]
    built, called = Pair(name="pair"), Pair(name="pair")
    built.build((None, 3))
    assert built.built
    assert built.one.built
    assert not called.built
    called(features(3))
    assert names(built) == names(called) == expected
    before = built.weights
    built(features(3))
    assert [a is b for a, b in zip(built.weights, before, strict=True)] == [True] * 5


def test_a_layer_inside_of_another_is_built_when_it_is_called() -> None:
    layer = Tower([2, 3])
    assert names(layer) == ["shift"]
    layer(features(3))
    assert names(layer) == [
        "shift",
        "tower/dense_0/kernel",
        "tower/dense_0/bias",
        "tower/dense_1/kernel",
        "tower/dense_1/bias",
        *(f"tower/batch_normalization/{name}" for name in ("gamma", "beta", "moving_mean", "moving_variance")),
        "tower/scale/factor",
        "tower/scale_1/factor",
    ]
    assert len(layer.trainable_weights) == len(layer.weights) - 2
    assert layer.count_params() == 3 + 8 + 9 + 12 + 6


def test_building_may_call_the_class_above() -> None:
    class Twice(Scale):
        def build(self, input_shape):
            super().build(input_shape)
            self.more = self.add_weight(input_shape[1:], name="more")

    layer = Twice()
    layer(features(3))
    assert names(layer) == ["twice/factor", "twice/more"]


def test_layers_without_weights_are_built_by_the_first_call() -> None:
    layer = layers.Flatten()
    layer(features(3, 2))
    assert layer.built
    assert layer.weights == []
    layers.Flatten().build((None, 3))


# Weights


def test_add_weight_takes_what_keras_does() -> None:
    layer = layers.Layer(dtype="float64")
    kernel = layer.add_weight((3, 2))
    assert kernel.dtype == np.float64
    assert 0 < abs(kernel.value).max() <= np.sqrt(6 / 5)
    count = layer.add_weight(dtype="int64", trainable=False, name="count")
    assert (count.shape, count.value) == ((), 0)
    assert layer.add_weight(4, initializer=_filled).value.tolist() == [7] * 4
    assert names(layer) == ["variable", "variable_1", "count"]
    assert layer.non_trainable_weights == [count]
    with pytest.raises(ShapeError, match="known shape"):
        layer.add_weight((None, 3))
    with pytest.raises(ShapeError, match="from the initializer"):
        layer.add_weight((3,), initializer=lambda shape, dtype: np.zeros(2))
    with pytest.raises(DTypeError, match="trained"):
        layer.add_weight((3,), dtype="int64")


def _filled(shape, dtype):
    return np.full(shape, 7, dtype)


def test_parameters_come_before_variables() -> None:
    layer = layers.Layer()
    layer.add_weight(trainable=False, name="average")
    layer.add_weight(name="kernel")
    assert names(layer) == ["kernel", "average"]


def test_get_and_set_weights() -> None:
    layer = layers.Dense(2)
    with pytest.raises(ArgumentError, match="call it on a node"):
        layer.set_weights([np.zeros((3, 2))])
    layer(features(3))
    before = layer.get_weights()
    for bad, error in [
        ([np.ones((3, 2))], ArgumentError),
        ([np.ones((3, 2)), np.ones(3)], ShapeError),
        ([np.ones((3, 2)), np.ones(2, complex)], DTypeError),
        ([np.ones((3, 2)), ["a", "b"]], DTypeError),
    ]:
        with pytest.raises(error, match="expected"):
            layer.set_weights(bad)
        for found, expected in zip(layer.get_weights(), before, strict=True):
            np.testing.assert_array_equal(found, expected)
    layer.set_weights([np.full((3, 2), 2), [3.0, 4.0]])
    assert layer.bias.value.tolist() == [3, 4]
    layer.get_weights()[0][:] = 0
    assert layer.kernel.value.min() == 2


def test_a_shared_layer_has_its_weights_once() -> None:
    layer = layers.Dense(3)
    output = layer(layer(features(3)))
    assert [node.name for node in Graph([output]).variables] == ["dense/kernel", "dense/bias"]

    class Both(layers.Layer):
        def __init__(self):
            super().__init__()
            self.left = self.right = layer
            self.outer = self

        def call(self, x):
            return self.left(self.right(x))

    both = Both()
    both(features(3))
    assert both.weights == layer.weights == both.trainable_weights
    assert [part.name for part in both.walk()] == ["both", "dense"]


def test_freezing_reaches_all_below_and_ends_penalties() -> None:
    layer = Tower([2])
    layer.stack[0].kernel_regularizer = regularizers.L2(0.1)
    layer(features(3))
    assert len(layer.regularization_losses()) == 1
    layer.stack[0].trainable = False
    assert layer.regularization_losses() == []
    assert "tower/dense_0/kernel" not in [weight.name for weight in layer.trainable_weights]
    layer.trainable = False
    assert layer.trainable_weights == []
    assert layer.non_trainable_weights == layer.weights
    layer.trainable = True
    assert layer.stack[0].trainable
    assert layers.Dense(1, trainable=False).trainable is False


def test_constraints_by_weight() -> None:
    layer = layers.Dense(2, kernel_constraint="non_neg")
    layer(features(3))
    ((weight, rule),) = layer.weight_constraints().items()
    assert weight is layer.kernel
    assert rule(layer.kernel).shape == (3, 2)


# Calling


def test_floats_are_cast_to_the_dtype_of_the_layer() -> None:
    layer = layers.Dense(2, dtype="float64")
    assert layer(features(3)).dtype == layer.kernel.dtype == np.float64
    assert layers.Dense(2)(features(3, dtype="float64")).dtype == np.float32
    assert layers.Add()([features(3), features(3, name="y", dtype="float64")]).dtype == np.float32


def test_arrays_become_constants() -> None:
    (found,) = mg.function([], [layers.Flatten()(np.ones((2, 3, 4)))])()
    assert found.shape == (2, 12)


def test_nodes_know_the_outermost_call_that_built_them() -> None:
    layer, x = Tower([2]), features(3)
    output = layer(x)
    assert isinstance(output.call, LayerCall)
    assert output.call.layer is layer
    assert output.call.inputs is x
    assert output.call.outputs is output
    assert (layer.input, layer.output) == (x, output)
    built = [node for node in Graph([output]).nodes if node.inputs]
    assert {node.call.layer for node in built} == {layer}
    assert "tower/dense_0" in {node.scope for node in built}
    again = layer(features(3))
    assert layer.output is output
    assert again.call is not output.call
    with pytest.raises(ModelError, match="was not yet"):
        _ = layers.Dense(2).output


def test_what_is_handed_through_is_a_node_of_the_call() -> None:
    class Both(layers.Layer):
        def call(self, inputs):
            return inputs, [inputs[0] + inputs[1]]

    x, y = features(2), features(2, name="y")
    (first, second), (total,) = Both()([x, y])
    assert {node.call.layer.name for node in (first, second, total)} == {"both"}
    arrays = np.ones((1, 2), "f4"), np.zeros((1, 2), "f4")
    np.testing.assert_array_equal(mg.function([x, y], [first, second])(*arrays), arrays)


def test_inputs_and_outputs_may_be_dictionaries() -> None:
    class Joined(layers.Layer):
        def build(self, input_shape):
            self.shapes = input_shape

        def call(self, inputs):
            return {"sum": inputs["a"] + inputs["b"][0], "same": inputs["a"]}

    layer, x, y = Joined(), features(2), features(2, name="y", dtype="float64")
    outputs = layer({"a": x, "b": (y,)})
    assert layer.shapes == {"a": (None, 2), "b": [(None, 2)]}
    assert {name: node.dtype.name for name, node in outputs.items()} == {"sum": "float32", "same": "float32"}
    assert outputs["same"].call.outputs is outputs


def test_arguments_reach_call_even_if_it_is_wrapped() -> None:
    def logged(function):
        @functools.wraps(function)
        def wrapper(*args, **keywords):
            return function(*args, **keywords)

        return wrapper

    class Shifted(layers.Layer):
        @logged
        def call(self, x, by=0.0, *, training=False):
            return x + by if training else x

    x = features(2)
    output = Shifted()(x, training=True, by=2.0)
    assert mg.function([x], [output])(np.zeros((1, 2), "f4"))[0].tolist() == [[2, 2]]
    assert output.call.arguments == {"by": 2.0, "training": True}


def test_call_must_be_defined_and_return_nodes() -> None:
    class Absent(layers.Layer):
        pass

    class Wrong(layers.Layer):
        def call(self, x):
            return None

    with pytest.raises(ModelError, match="define call"):
        Absent()(features(2))
    with pytest.raises(ModelError, match="found None"):
        Wrong()(features(2))


def test_a_call_that_fails_leaves_no_weights_of_a_wrong_shape() -> None:
    layer = layers.Conv2D(4, 3, groups=2)
    with pytest.raises(ShapeError, match="divides"):
        layer(features(8, 8, 3))
    assert not layer.built
    assert layer(features(8, 8, 2)).shape == (None, 6, 6, 4)
    assert layer.kernel.shape == (3, 3, 1, 4)


# Configs


def test_configs_hold_what_is_not_the_default() -> None:
    layer = layers.Dense(
        np.int64(3), "relu", kernel_regularizer=regularizers.L1L2(0.1, 0.2), dtype="float64", trainable=False
    )
    config = json.loads(json.dumps(layer.get_config()))
    assert config["units"] == 3
    assert config["activation"] == "relu"
    assert config["kernel_regularizer"] == {"class_name": "L1L2", "config": {"l1": 0.1, "l2": 0.2}}
    assert (config["dtype"], config["trainable"]) == ("float64", False)
    again = layers.Dense.from_config(config)
    assert again.get_config() == layer.get_config()
    assert (again.trainable, again.dtype) == (False, np.float64)
    assert {"dtype", "trainable", "activity_regularizer"}.isdisjoint(layers.Flatten().get_config())
    with pytest.raises(ArgumentError, match="expected"):
        layers.Dense.from_config({"unit": 3})


def test_own_layers_are_saved_and_made_again() -> None:
    layer = Tower([2, 3], name="mine")
    x = features(3)
    layer(x)
    text = json.dumps(registry.serialize(layer))
    assert json.loads(text) == {"class_name": "Tower", "config": {"widths": [2, 3], "name": "mine"}}
    with pytest.raises(ArgumentError, match="custom_objects"):
        registry.get(json.loads(text))
    with custom_object_scope({"Tower": Tower}):
        again = registry.get(json.loads(text))
    output = again(x)
    again.set_weights(layer.get_weights())
    value = np.random.default_rng(0).normal(size=(4, 3)).astype("f4")
    np.testing.assert_array_equal(mg.function([x], [output])(value), mg.function([x], [layer.output])(value))


def test_an_own_layer_in_few_lines_is_trained() -> None:
    layer, x = Scale(), features(2)
    loss = mg.mean(mg.square(layer(x) - x * np.array([2.0, -1.0], "f4")))
    (gradient,) = mg.grad(loss, layer.trainable_weights)
    step = mg.function([x], [loss], {layer.factor: layer.factor - 0.5 * gradient})
    value = np.random.default_rng(0).normal(size=(50, 2)).astype("f4")
    for _ in range(60):
        (found,) = step(value)
    assert found < 1e-6
    np.testing.assert_allclose(layer.factor.value, [2, -1], atol=1e-3)
