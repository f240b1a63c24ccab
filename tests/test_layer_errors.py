"""What layers say when they are made or called in a way that cannot work."""

from __future__ import annotations

from typing import Any

import pytest

import miai_graph as mg
from miai_graph import layers
from miai_graph.errors import ArgumentError, DTypeError, ShapeError


def features(*shape: int, name: str = "x") -> mg.Node:
    return mg.input(name, (None, *shape))


WRONG_INPUTS = {
    "another width": (layers.Dense, {"units": 2}, [(3,), (4,)], ShapeError, "length 3 along axis -1"),
    "a vector": (layers.Dense, {"units": 2}, [()], ShapeError, "at least 2 axes"),
    "no image": (layers.Conv2D, {"filters": 2, "kernel_size": 3}, [(8, 8)], ShapeError, "4 axes"),
    "other channels": (
        layers.Conv2D,
        {"filters": 2, "kernel_size": 3},
        [(8, 8, 3), (8, 8, 1)],
        ShapeError,
        "length 3 along axis -1",
    ),
    "too small an image": (layers.Conv2D, {"filters": 2, "kernel_size": 3}, [(2, 2, 1)], ShapeError, "expected"),
    "groups": (layers.Conv2D, {"filters": 2, "kernel_size": 3, "groups": 2}, [(8, 8, 3)], ShapeError, "groups=2"),
    "pooling": (layers.MaxPooling2D, {}, [(8, 8)], ShapeError, "4 axes"),
    "global": (layers.GlobalMaxPooling2D, {}, [(8,)], ShapeError, "4 axes"),
    "another rank": (layers.BatchNormalization, {}, [(8, 3), (3,)], ShapeError, "3 axes"),
    "other lengths": (layers.LayerNormalization, {}, [(8, 3), (8, 4)], ShapeError, "length 3 along axis 2"),
    "permute": (layers.Permute, {"dims": (2, 1)}, [(3, 4, 5)], ShapeError, "3 axes"),
    "reshape": (layers.Reshape, {"target_shape": (4, -1)}, [(6,)], ShapeError, "divides"),
    "softmax": (layers.Softmax, {"axis": 2}, [(6,)], ShapeError, "axis"),
}


@pytest.mark.parametrize("case", WRONG_INPUTS)
def test_wrong_inputs_are_told_with_shapes_layer_and_line(case: str) -> None:
    make, options, shapes, error, text = WRONG_INPUTS[case]
    layer = make(**options, name="mine")
    for place, shape in enumerate(shapes[:-1]):
        layer(features(*shape, name=f"x{place}"))
    x = features(*shapes[-1], name="wrong")
    with pytest.raises(error) as caught:
        layer(x)
    message = str(caught.value)
    assert text in message
    assert "in layer: mine" in message
    assert f"input 0: {x.type} wrong ({__file__}:" in message
    assert message.count("  at: ") == 1
    assert message.rpartition("  at: ")[2].startswith(__file__)


@pytest.mark.parametrize(
    "layer", [layers.Dense(2), layers.Conv2D(2, 3), layers.Flatten(), layers.Dropout(0.5), layers.BatchNormalization()]
)
def test_one_node_is_expected_where_there_is_one_input(layer: Any) -> None:
    with pytest.raises(ArgumentError, match="expected one node"):
        layer([features(3), features(3, name="y")])


@pytest.mark.parametrize("inputs", [features(3), [], [features(3), features(4, name="y")]])
def test_merging_layers_expect_lists_that_fit(inputs: Any) -> None:
    for layer in (layers.Add(), layers.Subtract()):
        with pytest.raises((ArgumentError, ShapeError), match="expected"):
            layer(inputs)
    with pytest.raises(ArgumentError, match="two nodes"):
        layers.Subtract()([features(3)] * 3)


def test_a_layer_of_several_inputs_may_specify_each() -> None:
    class Pair(layers.Layer):
        def __init__(self):
            super().__init__()
            self.input_spec = [layers.InputSpec(ndim=2), layers.InputSpec(min_ndim=2, max_ndim=3, axes={1: 4})]

        def call(self, inputs):
            return inputs[0]

    layer, x, y = Pair(), features(3), features(4, 2, name="y")
    assert layer([x, y]).shape == (None, 3)
    for wrong in ([x], [y, x], x, [x, features(4, 2, 2)]):
        with pytest.raises((ArgumentError, ShapeError), match="expected"):
            layer(wrong)


WRONG_ARGUMENTS = [
    (layers.Dense, {"units": 0}),
    (layers.Dense, {"units": "3"}),
    (layers.Dense, {"units": None}),
    (layers.Dense, {"units": 2.5}),
    (layers.Dense, {"units": True}),
    (layers.Dense, {"units": 2, "input_shape": (3,)}),
    (layers.Dense, {"units": 2, "activation": "no such"}),
    (layers.Dense, {"units": 2, "kernel_initializer": "no such"}),
    (layers.Embedding, {"input_dim": 3, "output_dim": -1}),
    (layers.Embedding, {"input_dim": 3, "output_dim": 2, "mask_zero": True}),
    (layers.Conv2D, {"filters": 3, "kernel_size": 0}),
    (layers.Conv2D, {"filters": 3, "kernel_size": (3, 3, 3)}),
    (layers.Conv2D, {"filters": 3, "kernel_size": 3, "padding": "causal"}),
    (layers.Conv2D, {"filters": 3, "kernel_size": 3, "data_format": "channels_first"}),
    (layers.Conv2D, {"filters": 3, "kernel_size": 3, "groups": 2}),
    (layers.MaxPooling2D, {"padding": 1}),
    (layers.AveragePooling2D, {"strides": 0}),
    (layers.GlobalMaxPooling2D, {"data_format": "channels_first"}),
    (layers.ReLU, {"negative_slope": -1}),
    (layers.ReLU, {"max_value": -1}),
    (layers.ReLU, {"threshold": None}),
    (layers.Reshape, {"target_shape": (None, 2)}),
    (layers.Permute, {"dims": (0, 1)}),
    (layers.Dense, {"units": 2, "dtype": "float16"}),
]


@pytest.mark.parametrize(("make", "options"), WRONG_ARGUMENTS)
def test_wrong_arguments_are_told_at_once(make: Any, options: dict[str, Any]) -> None:
    with pytest.raises((ArgumentError, DTypeError), match=r"expected .*; found"):
        make(**options)
