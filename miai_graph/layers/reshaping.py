"""Layers that give their input another shape; the batch axis stays first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from miai_graph.errors import ArgumentError
from miai_graph.layers.convolution import check_data_format
from miai_graph.layers.input_spec import InputSpec
from miai_graph.layers.layer import Layer, registry
from miai_graph.node import Node
from miai_graph.ops.structure import reshape, transpose
from miai_graph.types import int_dims


@registry.register
class Flatten(Layer):
    """All axes but the batch as one: [batch, features]."""

    def __init__(self, data_format: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        check_data_format(data_format)
        self.data_format = data_format
        self.input_spec = InputSpec(min_ndim=1)

    def call(self, inputs: Node) -> Node:
        batch, *features = inputs.type.shape
        return reshape(inputs, (batch, math.prod(int_dims(tuple(features)))))


@registry.register
class Reshape(Layer):
    """The elements of each sample under another shape.

    Parameters
    ----------
    target_shape : without the batch; one length may be -1, what is left
    options : `Layer`'s
    """

    def __init__(self, target_shape: Sequence[int], **options: Any) -> None:
        super().__init__(**options)
        if not all(isinstance(length, int) and length >= -1 for length in target_shape):
            raise ArgumentError(f"expected a target_shape of integers, without the batch; found {target_shape!r}")
        self.target_shape = tuple(target_shape)
        self.input_spec = InputSpec(min_ndim=1)

    def call(self, inputs: Node) -> Node:
        return reshape(inputs, (inputs.type.shape[0], *self.target_shape))


@registry.register
class Permute(Layer):
    """The axes of each sample in another order.

    Parameters
    ----------
    dims : the numbers of the axes, from 1 (0 is the batch), in their new order
    options : `Layer`'s
    """

    def __init__(self, dims: Sequence[int], **options: Any) -> None:
        super().__init__(**options)
        if sorted(dims) != list(range(1, len(dims) + 1)):
            raise ArgumentError(f"expected dims with each of 1 to {len(dims)} once; found {dims!r}")
        self.dims = tuple(dims)
        self.input_spec = InputSpec(ndim=len(dims) + 1)

    def call(self, inputs: Node) -> Node:
        return transpose(inputs, (0, *self.dims))
