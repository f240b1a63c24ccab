"""Layers that slide a kernel over images [batch, height, width, channels]."""

from __future__ import annotations

from typing import Any

from miai_graph import activations, constraints, initializers, regularizers
from miai_graph.errors import ArgumentError, ShapeError
from miai_graph.layers.core import add_bias, positive
from miai_graph.layers.input_spec import InputSpec
from miai_graph.layers.layer import Layer, registry
from miai_graph.node import Node
from miai_graph.ops.convolution import as_pair, conv2d


def check_data_format(data_format: str | None) -> None:
    """Images have their channels last."""
    if data_format not in (None, "channels_last"):
        raise ArgumentError(
            f"expected data_format 'channels_last'; found {data_format!r}. "
            "Transpose the images: images.transpose(0, 2, 3, 1)"
        )


def valid_or_same(padding: Any) -> str:
    """The padding in small letters; ArgumentError if it is another one."""
    if not isinstance(padding, str) or padding.lower() not in ("valid", "same"):
        raise ArgumentError(f"expected padding 'valid' or 'same'; found {padding!r}")
    return padding.lower()


@registry.register
class Conv2D(Layer):
    """A two-dimensional convolution with a bias: y = activation(x ∗ kernel + bias).

    Input [batch, height, width, channels], output [batch, new height, new width, filters]. Weights: kernel [kernel
    height, kernel width, channels / groups, filters], bias [filters]. As in all such libraries, the kernel is not
    flipped.

    Parameters
    ----------
    filters : the number of output channels; a multiple of `groups`
    kernel_size, strides, dilation_rate : an integer, or one for each of height and width
    padding : "valid" (none), or "same": the output is as large as the input divided by the strides, rounded up
    data_format : "channels_last" is the only one
    groups : the channels are cut into this many groups, each with filters of its own
    activation : a function of nodes or its name; None: none
    use_bias : whether to add a bias
    kernel_initializer, bias_initializer : first values
    kernel_regularizer, bias_regularizer, activity_regularizer : penalties added to the loss
    kernel_constraint, bias_constraint : what is done to the weights after each update
    options : `Layer`'s
    """

    def __init__(
        self,
        filters: int,
        kernel_size: Any,
        strides: Any = (1, 1),
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: Any = (1, 1),
        groups: int = 1,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(activity_regularizer=activity_regularizer, **options)
        check_data_format(data_format)
        self.filters = positive(filters, "filters")
        self.kernel_size = as_pair(kernel_size, "kernel_size")
        self.strides = as_pair(strides, "strides")
        self.padding = valid_or_same(padding)
        self.data_format = data_format
        self.dilation_rate = as_pair(dilation_rate, "dilation_rate")
        self.groups = positive(groups, "groups")
        self.activation = activations.get(activation)
        self.use_bias = use_bias
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.bias_initializer = initializers.get(bias_initializer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)
        self.bias_regularizer = regularizers.get(bias_regularizer)
        self.kernel_constraint = constraints.get(kernel_constraint)
        self.bias_constraint = constraints.get(bias_constraint)
        if self.filters % self.groups:
            raise ArgumentError(f"expected filters that groups divides; found {self.filters} and {self.groups}")
        self.input_spec = InputSpec(ndim=4)

    def build(self, input_shape: Any) -> None:
        channels = input_shape[-1]
        if channels % self.groups:
            raise ShapeError(f"expected channels that groups={self.groups} divides; found shape {input_shape}")
        self.kernel = self.add_weight(
            (*self.kernel_size, channels // self.groups, self.filters),
            self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
            name="kernel",
        )
        self.bias = add_bias(self, self.filters)
        self.input_spec = InputSpec(ndim=4, axes={-1: channels})

    def call(self, inputs: Node) -> Node:
        outputs = conv2d(
            self.as_floats(inputs), self.kernel, self.strides, self.padding, self.dilation_rate, self.groups
        )
        return self.activation(outputs if self.bias is None else outputs + self.bias)
