"""The input of a model, and the layers that multiply by a matrix or look rows up in one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from miai_graph import activations, constraints, initializers, regularizers
from miai_graph.context import unique_name
from miai_graph.errors import ArgumentError
from miai_graph.layers.input_spec import InputSpec
from miai_graph.layers.layer import Layer, registry
from miai_graph.node import Node
from miai_graph.ops.casting import cast
from miai_graph.ops.indexing import take
from miai_graph.ops.leaves import input as input_node
from miai_graph.ops.linalg import matmul


def Input(  # noqa: N802
    shape: Sequence[int] | None = None,
    batch_size: int | None = None,
    dtype: Any = None,
    *,
    batch_shape: Sequence[int | None] | None = None,
    name: str | None = None,
) -> Node:
    """A node to be fed with the samples of a batch.

    Parameters
    ----------
    shape : of one sample, without the batch
    batch_size : the number of samples, if it is always the same; the graph is not split over the batch then
    dtype : float32 by default
    batch_shape : the shape with the batch (None), instead of `shape` and `batch_size`
    name : each input of a model has its own; "input" with a number by default

    Raises
    ------
    ArgumentError
        if neither or both of `shape` and `batch_shape` are given, or `batch_size` with the latter.
    """
    if (shape is None) == (batch_shape is None) or (batch_size is not None and shape is None):
        raise ArgumentError(
            "expected either shape, with or without batch_size, or batch_shape; "
            f"found {shape!r}, {batch_size!r} and {batch_shape!r}"
        )
    if shape is not None:
        if isinstance(shape, int):
            raise ArgumentError(f"expected a shape that is a tuple, such as ({shape},); found {shape!r}")
        batch_shape = (batch_size, *shape)
    return input_node(name or unique_name("input"), batch_shape, dtype or "float32")


@registry.register
class Dense(Layer):
    """A matrix multiplication with a bias: y = activation(x · kernel + bias).

    Input […, features], output […, units]. Weights: kernel [features, units], bias [units].

    Parameters
    ----------
    units : the length of the output's last axis
    activation : a function of nodes or its name; None: none
    use_bias : whether to add a bias
    kernel_initializer, bias_initializer : first values
    kernel_regularizer, bias_regularizer, activity_regularizer : penalties added to the loss
    kernel_constraint, bias_constraint : what is done to the weights after each update
    options : `Layer`'s
    """

    def __init__(
        self,
        units: int,
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
        self.units = positive(units, "units")
        self.activation = activations.get(activation)
        self.use_bias = use_bias
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.bias_initializer = initializers.get(bias_initializer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)
        self.bias_regularizer = regularizers.get(bias_regularizer)
        self.kernel_constraint = constraints.get(kernel_constraint)
        self.bias_constraint = constraints.get(bias_constraint)
        self.input_spec = InputSpec(min_ndim=2)

    def build(self, input_shape: Any) -> None:
        self.kernel = self.add_weight(
            (input_shape[-1], self.units),
            self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
            name="kernel",
        )
        self.bias = add_bias(self, self.units)
        self.input_spec = InputSpec(min_ndim=2, axes={-1: input_shape[-1]})

    def call(self, inputs: Node) -> Node:
        outputs = matmul(self.as_floats(inputs), self.kernel)
        return self.activation(outputs if self.bias is None else outputs + self.bias)


def positive(value: Any, meaning: str) -> int:
    """The value as an int; ArgumentError if it is not a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ArgumentError(f"expected a positive integer as {meaning}; found {value!r}")
    return int(value)


def add_bias(layer: Any, length: int) -> Node | None:
    """The bias of a layer with the arguments that Dense and Conv2D share, if it has one."""
    if not layer.use_bias:
        return None
    bias: Node = layer.add_weight(
        (length,),
        layer.bias_initializer,
        regularizer=layer.bias_regularizer,
        constraint=layer.bias_constraint,
        name="bias",
    )
    return bias


@registry.register
class Embedding(Layer):
    """Rows of a table, looked up by number: y = embeddings[x].

    Input of integers (floats are cut to them), any shape; output with one more axis, of `output_dim`. Weight:
    embeddings [input_dim, output_dim].

    Parameters
    ----------
    input_dim : the number of rows; inputs are from 0 to input_dim - 1 (negative ones count from the back), and one
        outside raises when the graph runs
    output_dim : the length of a row
    embeddings_initializer, embeddings_regularizer, embeddings_constraint : of the table
    mask_zero : False is the only one: there are no masks
    options : `Layer`'s
    """

    autocast = False  # large numbers would be rounded

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        embeddings_initializer: Any = "uniform",
        embeddings_regularizer: Any = None,
        embeddings_constraint: Any = None,
        mask_zero: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if mask_zero:
            raise ArgumentError(
                f"expected mask_zero=False, for layers know no masks; found {mask_zero!r}. "
                "Weight the samples instead, or multiply by (inputs != 0)"
            )
        self.input_dim = positive(input_dim, "input_dim")
        self.output_dim = positive(output_dim, "output_dim")
        self.embeddings_initializer = initializers.get(embeddings_initializer)
        self.embeddings_regularizer = regularizers.get(embeddings_regularizer)
        self.embeddings_constraint = constraints.get(embeddings_constraint)
        self.mask_zero = mask_zero
        self.input_spec = InputSpec()

    def build(self, input_shape: Any) -> None:
        self.embeddings = self.add_weight(
            (self.input_dim, self.output_dim),
            self.embeddings_initializer,
            regularizer=self.embeddings_regularizer,
            constraint=self.embeddings_constraint,
            name="embeddings",
        )

    def call(self, inputs: Node) -> Node:
        return take(self.embeddings, inputs if inputs.type.is_integer else cast(inputs, "int64"), axis=0)
