"""Layers that join several inputs into one output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

from miai_graph.errors import ArgumentError
from miai_graph.layers.layer import Layer, registry
from miai_graph.node import Node
from miai_graph.ops.elementwise import add, maximum, minimum, multiply
from miai_graph.ops.structure import concatenate


def _check_inputs(layer: Layer, inputs: Any, least: int = 2) -> Sequence[Node]:
    if not isinstance(inputs, list) or len(inputs) < least:
        raise ArgumentError(f"expected a list of at least {least} nodes as input of layer {layer.name!r}; found {inputs!r}")
    return inputs


class ElementwiseMerge(Layer):
    """What the layers that join element by element have in common: inputs that broadcast together."""

    function: Callable[[Node, Node], Node]

    def call(self, inputs: Sequence[Node]) -> Node:
        return reduce(type(self).function, _check_inputs(self, inputs))


@registry.register
class Add(ElementwiseMerge):
    """The sum of the inputs, element by element."""

    function = add


@registry.register
class Multiply(ElementwiseMerge):
    """The product of the inputs, element by element."""

    function = multiply


@registry.register
class Maximum(ElementwiseMerge):
    """The greatest of the inputs, element by element."""

    function = maximum


@registry.register
class Minimum(ElementwiseMerge):
    """The least of the inputs, element by element."""

    function = minimum


@registry.register
class Average(Layer):
    """The mean of the inputs, element by element."""

    def call(self, inputs: Sequence[Node]) -> Node:
        nodes = _check_inputs(self, inputs)
        return reduce(add, nodes) * (1.0 / len(nodes))


@registry.register
class Subtract(Layer):
    """The first of two inputs less the second, element by element."""

    def call(self, inputs: Sequence[Node]) -> Node:
        nodes = _check_inputs(self, inputs)
        if len(nodes) != 2:
            raise ArgumentError(f"expected two nodes as input of layer {self.name!r}; found {len(nodes)}")
        return nodes[0] - nodes[1]


@registry.register
class Concatenate(Layer):
    """The inputs joined along an axis.

    Parameters
    ----------
    axis : the last by default; not the batch, which would mix the samples
    options : `Layer`'s
    """

    def __init__(self, axis: int = -1, **options: Any) -> None:
        super().__init__(**options)
        self.axis = axis

    def call(self, inputs: Sequence[Node]) -> Node:
        return concatenate(_check_inputs(self, inputs, least=1), self.axis)
