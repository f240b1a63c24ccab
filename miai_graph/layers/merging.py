"""Layers that join several inputs into one output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

from miai_graph.errors import ArgumentError
from miai_graph.layers.layer import Layer, registry
from miai_graph.node import Node
from miai_graph.ops.arithmetic import add, maximum, minimum, multiply
from miai_graph.ops.joining import concatenate
from miai_graph.ops.structure import expand_dims


class Merge(Layer):
    """What the layers that join have in common: a list of nodes as input, of floats if one of them is."""

    def call(self, inputs: Any) -> Node:
        if not isinstance(inputs, list) or not inputs or not all(isinstance(node, Node) for node in inputs):
            raise ArgumentError(f"expected a list of nodes as input; found {inputs!r}")
        if any(node.type.is_floating for node in inputs):
            inputs = [self.as_floats(node) for node in inputs]
        return self.merge(inputs)

    def merge(self, nodes: Sequence[Node]) -> Node:
        """The output. A subclass defines it."""
        raise NotImplementedError(f"{type(self).__name__} has no method merge(nodes)")


class ElementwiseMerge(Merge):
    """What the layers that join element by element have in common: inputs broadcast, each sample's with its own.

    An input of fewer axes gets axes of length one, after the batch's.
    """

    function: Callable[[Node, Node], Node]

    def merge(self, nodes: Sequence[Node]) -> Node:
        rank = max(node.ndim for node in nodes)
        return self.combine([_with_rank(node, rank) for node in nodes])

    def combine(self, nodes: Sequence[Node]) -> Node:
        """The output, from inputs of one rank."""
        return reduce(type(self).function, nodes)


def _with_rank(node: Node, rank: int) -> Node:
    missing = rank - node.ndim
    return expand_dims(node, range(1, 1 + missing)) if missing else node


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
class Average(ElementwiseMerge):
    """The mean of the inputs, element by element."""

    def combine(self, nodes: Sequence[Node]) -> Node:
        return self.as_floats(reduce(add, nodes)) / len(nodes)


@registry.register
class Subtract(ElementwiseMerge):
    """The first of two inputs less the second, element by element."""

    def combine(self, nodes: Sequence[Node]) -> Node:
        if len(nodes) != 2:
            raise ArgumentError(f"expected a list of two nodes as input; found {len(nodes)}")
        return nodes[0] - nodes[1]


@registry.register
class Concatenate(Merge):
    """The inputs joined along an axis.

    Parameters
    ----------
    axis : the last by default; not the batch, which would mix the samples
    options : `Layer`'s
    """

    def __init__(self, axis: int = -1, **options: Any) -> None:
        super().__init__(**options)
        self.axis = axis

    def merge(self, nodes: Sequence[Node]) -> Node:
        return concatenate(nodes, self.axis)
