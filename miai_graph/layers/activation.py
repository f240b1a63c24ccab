"""Layers that apply a function element by element, or along some axes, and have no weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from miai_graph import activations
from miai_graph.errors import ArgumentError
from miai_graph.layers.input_spec import InputSpec
from miai_graph.layers.layer import Layer, registry
from miai_graph.node import Node
from miai_graph.ops.nonlinear import exp
from miai_graph.ops.reductions import logsumexp


@registry.register
class Activation(Layer):
    """A function of nodes, by name or itself: y = activation(x)."""

    def __init__(self, activation: Any, **options: Any) -> None:
        super().__init__(**options)
        self.activation = activations.get(activation)
        self.input_spec = InputSpec()

    def call(self, inputs: Node) -> Node:
        return self.activation(self.as_floats(inputs))


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
        given = {"negative_slope": negative_slope, "threshold": threshold}
        for name, value in given.items() if max_value is None else {"max_value": max_value, **given}.items():
            if value is None or not value >= 0:
                raise ArgumentError(f"expected a {name} of at least 0; found {value!r}")
        self.max_value = max_value
        self.negative_slope = negative_slope
        self.threshold = threshold
        self.input_spec = InputSpec()

    def call(self, inputs: Node) -> Node:
        return activations.relu(
            self.as_floats(inputs),
            negative_slope=self.negative_slope,
            max_value=self.max_value,
            threshold=self.threshold,
        )


@registry.register
class Softmax(Layer):
    """Exponentials divided by their sum along an axis, the last by default, or over several."""

    def __init__(self, axis: int | Sequence[int] = -1, **options: Any) -> None:
        super().__init__(**options)
        self.axis = axis
        self.input_spec = InputSpec()

    def call(self, inputs: Node) -> Node:
        node = self.as_floats(inputs)
        if isinstance(self.axis, int):
            return activations.softmax(node, self.axis)
        return exp(node - logsumexp(node, self.axis, keepdims=True))
