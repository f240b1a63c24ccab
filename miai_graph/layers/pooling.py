"""Layers that make images [batch, height, width, channels] smaller by taking maxima or means."""

from __future__ import annotations

from typing import Any

from miai_graph.layers.convolution import check_data_format, valid_or_same
from miai_graph.layers.input_spec import InputSpec
from miai_graph.layers.layer import Layer, registry
from miai_graph.node import Node
from miai_graph.ops.convolution import as_pair
from miai_graph.ops.pooling import average_pool2d, global_average_pool2d, global_max_pool2d, max_pool2d


class Pooling2D(Layer):
    """What the layers that pool over windows have in common.

    Parameters
    ----------
    pool_size : the window, an integer or one for each of height and width
    strides : from one window to the next; None: as the window is large
    padding : "valid" (whole windows only), or "same"
    data_format : "channels_last" is the only one
    name, options : `Layer`'s
    """

    def __init__(
        self,
        pool_size: Any = (2, 2),
        strides: Any = None,
        padding: str = "valid",
        data_format: str | None = None,
        name: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(name=name, **options)
        check_data_format(data_format)
        self.pool_size = as_pair(pool_size, "pool_size")
        self.strides = self.pool_size if strides is None else as_pair(strides, "strides")
        self.padding = valid_or_same(padding)
        self.data_format = data_format
        self.input_spec = InputSpec(ndim=4)


@registry.register
class MaxPooling2D(Pooling2D):
    """The greatest element of each window. See `Pooling2D` for the parameters."""

    def call(self, inputs: Node) -> Node:
        return max_pool2d(self.as_floats(inputs), self.pool_size, self.strides, self.padding)


@registry.register
class AveragePooling2D(Pooling2D):
    """The mean of each window; padding does not count. See `Pooling2D` for the parameters."""

    def call(self, inputs: Node) -> Node:
        return average_pool2d(self.as_floats(inputs), self.pool_size, self.strides, self.padding)


class GlobalPooling2D(Layer):
    """What the layers that pool over the whole image have in common.

    Parameters
    ----------
    data_format : "channels_last" is the only one
    keepdims : whether height and width stay, as axes of length one
    options : `Layer`'s
    """

    def __init__(self, data_format: str | None = None, keepdims: bool = False, **options: Any) -> None:
        super().__init__(**options)
        check_data_format(data_format)
        self.data_format = data_format
        self.keepdims = keepdims
        self.input_spec = InputSpec(ndim=4)


@registry.register
class GlobalAveragePooling2D(GlobalPooling2D):
    """The mean of each channel over the image: [batch, channels]. See `GlobalPooling2D` for the parameters."""

    def call(self, inputs: Node) -> Node:
        return global_average_pool2d(self.as_floats(inputs), self.keepdims)


@registry.register
class GlobalMaxPooling2D(GlobalPooling2D):
    """The greatest of each channel over the image: [batch, channels]. See `GlobalPooling2D` for the parameters."""

    def call(self, inputs: Node) -> Node:
        return global_max_pool2d(self.as_floats(inputs), self.keepdims)
