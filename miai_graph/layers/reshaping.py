"""Layers that give their input another shape; the batch axis stays first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from miai_graph.layers.convolution import check_data_format
from miai_graph.layers.layer import Layer, registry
from miai_graph.node import Node
from miai_graph.ops.structure import reshape, transpose


@registry.register
class Flatten(Layer):
    """All axes but the batch as one: [batch, features]."""

    def __init__(self, data_format: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        check_data_format(data_format)
        self.data_format = data_format

    def call(self, inputs: Node) -> Node:
        features = 1
        for dim in inputs.shape[1:]:
            features *= dim or 0
        return reshape(inputs, (inputs.type.shape[0], features))


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
        self.target_shape = tuple(target_shape)

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
        self.dims = tuple(dims)

    def call(self, inputs: Node) -> Node:
        return transpose(inputs, (0, *self.dims))
