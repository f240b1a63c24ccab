"""Layers that apply a function element by element, or along one axis, and have no weights."""

from __future__ import annotations

from typing import Any

from miai_graph import activations
from miai_graph.layers.layer import Layer, registry
from miai_graph.node import Node
from miai_graph.ops.softmax import softmax


@registry.register
class Activation(Layer):
    """A function of nodes, by name or itself: y = activation(x)."""

    def __init__(self, activation: Any, **options: Any) -> None:
        super().__init__(**options)
        self.activation = activations.get(activation)

    def call(self, inputs: Node) -> Node:
        return self.activation(inputs)


@registry.register
class ReLU(Layer):
    """Rectifier: x where it is above `threshold`, at most `max_value`, and negative_slope · (x - threshold) below.

    Parameters
    ----------
    max_value : the greatest value of the output; None: no limit
    negative_slope, threshold : not negative
    options : `Layer`'s
    """

    def __init__(
        self, max_value: float | None = None, negative_slope: float = 0.0, threshold: float = 0.0, **options: Any
    ) -> None:
        super().__init__(**options)
        self.max_value = max_value
        self.negative_slope = negative_slope
        self.threshold = threshold

    def call(self, inputs: Node) -> Node:
        return activations.relu(
            inputs, negative_slope=self.negative_slope, max_value=self.max_value, threshold=self.threshold
        )


@registry.register
class Softmax(Layer):
    """Exponentials divided by their sum along an axis, the last by default."""

    def __init__(self, axis: int = -1, **options: Any) -> None:
        super().__init__(**options)
        self.axis = axis

    def call(self, inputs: Node) -> Node:
        return softmax(inputs, self.axis)
