"""What layers do in training only: batch statistics, moving averages, dropout, penalties; and second derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sampling import assert_close

import miai_graph as mg
from miai_graph import layers
from miai_graph.graph import Graph
from miai_graph.interpreter import evaluate
from miai_graph.layers.layer import collect_updates_and_losses, training_mode


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


class TestBatchNormalization:
    @pytest.mark.parametrize(("shape", "axis"), [((4,), -1), ((3, 5, 4), -1), ((3, 5), 1)])
    def test_normalizes_by_the_batch_and_moves_averages(self, shape: tuple[int, ...], axis: int) -> None:
        layer = layers.BatchNormalization(axis, momentum=0.9, epsilon=0.01, dtype="float64")
        x = mg.input("x", (None, *shape), "float64")
        output = layer(x, training=True)
        channels = x.shape[axis]
        gamma, beta, mean, variance = 1 + normal(4, channels, seed=1) ** 2
        layer.set_weights([gamma, beta, mean, variance])
        value = 3 + 2 * normal(7, *shape)
        (found,) = mg.function([x], [output], layer.updates)(value)

        last = np.moveaxis(value, axis, -1)
        others = tuple(range(last.ndim - 1))
        expected = (last - last.mean(others)) / np.sqrt(last.var(others) + 0.01) * gamma + beta
        assert_close(found, np.moveaxis(expected, -1, axis))
        assert_close(layer.moving_mean.value, 0.9 * mean + 0.1 * last.mean(others))
        assert_close(layer.moving_variance.value, 0.9 * variance + 0.1 * last.var(others))

    def test_is_used_with_its_averages_if_frozen(self) -> None:
        layer = layers.BatchNormalization()
        x = mg.input("x", (None, 3))
        layer(x)
        layer.trainable = False
        frozen = layer(x, training=True)
        assert not layer.updates
        assert layer.trainable_weights == []
        assert len(layer.non_trainable_weights) == 4
        value = 5 + normal(4, 3).astype("f4")
        used, trained = mg.function([x], [layer(x), frozen])(value)
        np.testing.assert_array_equal(used, trained)
        layer.trainable = True
        layer(x, training=True)
        assert list(layer.updates) == [layer.moving_mean, layer.moving_variance]

    def test_called_twice_moves_twice_in_order(self) -> None:
        layer = layers.BatchNormalization(momentum=0.9, dtype="float64")
        x, y = (mg.input(name, (None, 2), "float64") for name in "xy")
        with collect_updates_and_losses() as left, training_mode(True):
            outputs = [layer(x), layer(y)]
        assert len(left.updates) == 2
        first, second = 1 + normal(5, 2), 2 + normal(5, 2, seed=1)
        mg.function([x, y], outputs, left.updates)(first, second)
        assert_close(layer.moving_mean.value, 0.9 * 0.1 * first.mean(0) + 0.1 * second.mean(0))

    @pytest.mark.parametrize("make", [layers.BatchNormalization, layers.LayerNormalization])
    @pytest.mark.parametrize("axis", [0, -2, 2])
    def test_needs_an_axis_other_than_the_batch(self, make: Any, axis: int) -> None:
        with pytest.raises(mg.errors.ShapeError, match=r"expected [\s\S]* at: .*test_layers_in_training\.py"):
            make(axis)(mg.input("x", (None, 3)))

    @pytest.mark.parametrize("options", [{"axis": [1]}, {"momentum": 1.5}, {"epsilon": -1}, {"renorm": True}])
    def test_refuses_arguments_that_make_no_sense(self, options: dict[str, Any]) -> None:
        with pytest.raises(mg.errors.ArgumentError, match="expected"):
            layers.BatchNormalization(**options)


class TestDropout:
    def values(self, layer: Any, shape: tuple[int, ...], *, step: int = 0) -> np.ndarray:
        """What becomes of ones in training."""
        x = mg.input("x", (None, *shape[1:]))
        graph = Graph([layer(x, training=True)])
        return evaluate(graph, {x: np.ones(shape, "f4")}, batch_size=shape[0], step=step)[0][0]

    @pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
    def test_drops_a_share_and_keeps_the_mean(self, rate: float) -> None:
        found = self.values(layers.Dropout(rate), (200, 500))
        assert set(np.unique(found)) == {np.float32(0), np.float32(1 / (1 - rate))}
        count = found.size
        assert abs((found == 0).mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / count)
        assert abs(found.mean() - 1) < 5 * np.sqrt(rate / (1 - rate) / count)

    def test_of_rate_0_drops_nothing_and_of_rate_1_all(self) -> None:
        assert (self.values(layers.Dropout(0), (3, 4)) == 1).all()
        assert (self.values(layers.Dropout(1), (3, 4)) == 0).all()

    def test_does_nothing_in_use(self) -> None:
        x = mg.input("x", (None, 4))
        value = normal(3, 4).astype("f4")
        for output in (layers.Dropout(0.5)(x), layers.Dropout(0.5)(x, training=False)):
            np.testing.assert_array_equal(mg.function([x], [output])(value)[0], value)

    def test_masks_share_what_noise_shape_says(self) -> None:
        found = self.values(layers.Dropout(0.5, noise_shape=(None, 1, 1, None)), (6, 4, 3, 8))
        assert (found == found[:, :1, :1]).all()
        assert len(np.unique(found[:, 0, 0], axis=0)) == 6
        found = self.values(layers.Dropout(0.5, noise_shape=[1, None]), (6, 40))
        assert (found == found[:1]).all()
        assert 0 < (found == 0).mean() < 1

    def test_masks_differ_from_step_to_step_layer_to_layer_and_seed_to_seed(self) -> None:
        shape, layer = (8, 16), layers.Dropout(0.5, seed=7)
        x = mg.input("x", (None, 16))
        nodes = [layer(x, training=True), layer(x, training=True), layers.Dropout(0.5, seed=7)(x, training=True)]
        feeds = {x: np.ones(shape, "f4")}
        found = [evaluate(Graph(nodes), feeds, batch_size=8, step=step)[0] for step in (0, 1, 0)]
        masks = [mask.tobytes() for step in found[:2] for mask in step]
        assert len(set(masks)) == len(masks)
        np.testing.assert_array_equal(found[0], found[2])

    def test_gradients_pass_where_elements_do(self) -> None:
        x = mg.input("x", (None, 50))
        y = layers.Dropout(0.25)(x, training=True)
        (gradient,) = mg.grad(mg.sum(mg.square(y)), [x])
        values = normal(7, 50).astype("f4")
        found, derivative = evaluate(Graph([y, gradient]), {x: values}, batch_size=7)[0]
        scale = np.float32(1 / 0.75)
        np.testing.assert_array_equal(found, np.where(found == 0, 0, values * scale))
        np.testing.assert_array_equal(derivative, 2 * found * scale)

    def test_the_mask_takes_a_byte_an_element(self) -> None:
        y = layers.Dropout(0.5)(mg.input("x", (None, 50)), training=True)
        masks = [node for node in Graph([y]).nodes if node.op.name == "random_bernoulli"]
        assert [mask.dtype for mask in masks] == [bool]

    def test_set_seed_starts_masks_anew(self) -> None:
        found = []
        for seed in (1, 1, 2):
            mg.set_seed(seed)
            found.append(self.values(layers.Dropout(0.5), (8, 16)).tobytes())
        assert found[0] == found[1] != found[2]

    @pytest.mark.parametrize(
        "options",
        [
            {"rate": -0.1},
            {"rate": 1.1},
            {"rate": True},
            {"rate": 0.5, "noise_shape": 3},
            {"rate": 0.5, "noise_shape": (None, 0)},
            {"rate": 0.5, "noise_shape": "no"},
            {"rate": 0.5, "seed": -1},
        ],
    )
    def test_refuses_arguments_that_make_no_sense(self, options: dict[str, Any]) -> None:
        with pytest.raises(mg.errors.ArgumentError, match="expected"):
            layers.Dropout(**options)

    @pytest.mark.parametrize("noise_shape", [(None,), (None, 1, 1), (None, 3), (2, None)])
    def test_noise_shape_must_broadcast_to_the_input(self, noise_shape: Any) -> None:
        x = mg.input("x", (None, 4))
        layer = layers.Dropout(0.5, noise_shape)
        assert layer(x).shape == (None, 4)
        with pytest.raises((mg.errors.ArgumentError, mg.errors.ShapeError), match=r"test_layers_in_training\.py"):
            layer(x, training=True)


def block() -> layers.Layer:
    class Block(layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.norm = layers.BatchNormalization()
            self.drop = layers.Dropout(0.5)

        def call(self, x: mg.Node, training: bool = False) -> mg.Node:
            self.add_loss(mg.sum(x) if training else mg.mean(x))
            return self.drop(self.norm(x), training=False)

    return Block()


def test_the_mode_reaches_layers_inside_unless_they_are_told_otherwise() -> None:
    layer, x = block(), mg.input("x", (None, 3))
    layer(x)
    assert not layer.updates
    output = layer(x, training=True)
    assert list(layer.updates) == [layer.norm.moving_mean, layer.norm.moving_variance]
    assert "random_bernoulli" not in {node.op.name for node in Graph([output]).nodes}
    with training_mode(True):
        layer(x)
    assert len(layer.updates) == 2
    (loss,) = layer.losses
    assert mg.function([x], [loss])(np.ones((4, 3), "f4"))[0] == 12


def test_what_a_call_leaves_behind_goes_to_the_trace_of_a_model() -> None:
    layer, x = block(), mg.input("x", (None, 3))
    with collect_updates_and_losses() as left:
        layer(x, training=True)
    assert len(left.updates) == 2
    assert len(left.losses) == 1
    assert not layer.updates
    assert not layer.losses


def test_nothing_is_left_behind_outside_of_calls() -> None:
    layer = layers.Dense(2)
    layer.build((None, 3))
    with pytest.raises(mg.errors.ModelError, match="within the call"):
        layer.add_loss(mg.sum(layer.kernel))
    with pytest.raises(mg.errors.ModelError, match="within the call"):
        layer.add_update(layer.kernel, mg.negative)


def test_a_loss_that_a_layer_adds_is_a_scalar() -> None:
    class Careless(layers.Layer):
        def call(self, x: mg.Node) -> mg.Node:
            self.add_loss(x)
            return x

    with pytest.raises(mg.errors.ShapeError, match="expected a scalar"):
        Careless()(mg.input("x", (None, 3)))


@pytest.mark.parametrize("shape", [(None, 3), (5, 3)])
def test_penalties_on_outputs_are_divided_by_the_batch_size(shape: tuple[int | None, ...]) -> None:
    layer = layers.Dense(2, activity_regularizer="l2", kernel_regularizer="l1", dtype="float64")
    x = mg.input("x", shape, "float64")
    output = layer(x)
    value = normal(5, 3)
    loss = mg.function([x], [output, *layer.losses])(value)
    activity, weight = loss[1:]
    assert_close(activity, 0.01 * (loss[0] ** 2).sum() / 5)
    assert_close(weight, 0.01 * abs(layer.kernel.value).sum())
    layer.trainable = False
    assert len(layer.losses) == 1


def hessian_vector_product(loss: mg.Node, wrt: list[mg.Node], directions: list[np.ndarray]) -> list[mg.Node]:
    products = [
        mg.sum(gradient * direction) for gradient, direction in zip(mg.grad(loss, wrt), directions, strict=True)
    ]
    total = products[0]
    for product in products[1:]:
        total = total + product
    return mg.grad(total, wrt)


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.Conv2D(3, 3, strides=2, padding="same", dtype="float64"),
        lambda: layers.MaxPooling2D(3, 2, "same", dtype="float64"),
        lambda: layers.AveragePooling2D(3, 2, "same", dtype="float64"),
        lambda: layers.BatchNormalization(dtype="float64"),
        lambda: layers.LayerNormalization(dtype="float64"),
        lambda: layers.LayerNormalization(axis=(1, 2, 3), dtype="float64"),
        lambda: layers.Dense(2, dtype="float64"),
        lambda: layers.Softmax((1, 2), dtype="float64"),
    ],
    ids=["Conv2D", "MaxPooling2D", "AveragePooling2D", "BatchNorm", "LayerNorm", "LayerNorm all", "Dense", "Softmax"],
)
def test_second_derivatives(make: Callable[[], Any]) -> None:
    """H v against central differences of the gradient, with respect to input and weights together."""
    layer = make()
    x = mg.parameter(normal(2, 5, 5, 2), name="x")
    output = layer(x, training=True)
    loss = mg.sum(mg.tanh(output) * normal(*output.shape, seed=1))
    wrt = [x, *layer.trainable_weights]
    points = [node.value for node in wrt]
    directions = [normal(*point.shape, seed=seed) for seed, point in enumerate(points, 2)]
    found = evaluate(Graph(hessian_vector_product(loss, wrt, directions)), {}, batch_size=1)[0]
    gradients, sides = Graph(mg.grad(loss, wrt)), []
    for move in (1e-5, -1e-5):
        for node, point, direction in zip(wrt, points, directions, strict=True):
            mg.assign(node, point + move * direction)
        sides.append(evaluate(gradients, {}, batch_size=1)[0])
    for product, ahead, behind in zip(found, *sides, strict=True):
        expected = (ahead - behind) / 2e-5
        assert np.linalg.norm(product - expected) <= 1e-7 * max(np.linalg.norm(expected), 1.0)
        assert np.linalg.norm(expected) > 1e-3
