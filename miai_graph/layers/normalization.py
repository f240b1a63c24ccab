"""Layers that shift and scale their input to mean 0 and variance 1, and then to what is learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from miai_graph import constraints, initializers, regularizers
from miai_graph.errors import ArgumentError, ShapeError
from miai_graph.layers.input_spec import InputSpec
from miai_graph.layers.layer import Layer, registry
from miai_graph.node import Node
from miai_graph.ops.nonlinear import rsqrt
from miai_graph.ops.parts import average_over_parts, each_part, mean_of_part, repeat_in_part
from miai_graph.ops.reductions import mean
from miai_graph.ops.special import squared_deviation
from miai_graph.ops.structure import reshape
from miai_graph.types import normalize_axes, normalize_axis


class Normalization(Layer):
    """The arguments that the normalizing layers share.

    Parameters
    ----------
    epsilon : added to the variance, so that nothing is divided by zero
    center, scale : whether there is a beta to add, and a gamma to multiply by
    beta_initializer, gamma_initializer : first values
    beta_regularizer, gamma_regularizer : penalties added to the loss
    beta_constraint, gamma_constraint : what is done to the weights after each update
    options : `Layer`'s
    """

    def __init__(
        self,
        epsilon: float,
        center: bool,
        scale: bool,
        beta_initializer: Any,
        gamma_initializer: Any,
        beta_regularizer: Any,
        gamma_regularizer: Any,
        beta_constraint: Any,
        gamma_constraint: Any,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not epsilon >= 0:
            raise ArgumentError(f"expected an epsilon of at least 0; found {epsilon!r}")
        self.epsilon = epsilon
        self.center = center
        self.scale = scale
        self.beta_initializer = initializers.get(beta_initializer)
        self.gamma_initializer = initializers.get(gamma_initializer)
        self.beta_regularizer = regularizers.get(beta_regularizer)
        self.gamma_regularizer = regularizers.get(gamma_regularizer)
        self.beta_constraint = constraints.get(beta_constraint)
        self.gamma_constraint = constraints.get(gamma_constraint)
        self.input_spec = InputSpec(min_ndim=1)

    def _add_gamma_and_beta(self, shape: Sequence[int]) -> None:
        self.gamma = self.beta = None
        if self.scale:
            self.gamma = self.add_weight(
                shape,
                self.gamma_initializer,
                regularizer=self.gamma_regularizer,
                constraint=self.gamma_constraint,
                name="gamma",
            )
        if self.center:
            self.beta = self.add_weight(
                shape,
                self.beta_initializer,
                regularizer=self.beta_regularizer,
                constraint=self.beta_constraint,
                name="beta",
            )

    def _shift_and_scale(
        self, differences: Node, variance: Node, shape: Sequence[int], *, is_of_part: bool = False
    ) -> Node:
        """gamma · differences / √(variance + ε) + beta; the weights broadcast as if they had `shape`.

        Parameters
        ----------
        is_of_part : whether each part of the batch has a variance of its own; see `ops.parts`
        """
        factor = rsqrt(variance + self.epsilon)
        if self.gamma is not None:
            factor = factor * reshape(each_part(self.gamma) if is_of_part else self.gamma, shape)
        if is_of_part:
            factor = repeat_in_part(factor, differences.type.shape)
        outputs = differences * factor
        return outputs if self.beta is None else outputs + reshape(self.beta, shape)


@registry.register
class BatchNormalization(Normalization):
    """Normalizes each channel over the batch (Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1).

    In training with the mean and (biased) variance of the batch, which also move the moving averages, once a step:
    moving = momentum · moving + (1 - momentum) · batch. Otherwise, and if the layer is not trainable, with these.

    Executors that compute a batch in parts still take the mean and variance of all of it, so all give the same; but in
    the middle of each step they wait for each other, and a pipeline runs empty. With ``synchronized=False`` nobody
    waits: each part - a micro-batch, a worker's rows - is normalized with its own mean and variance, and the moving
    averages get the average of these over the parts. Results then depend on how the batch is cut, which an executor may
    change while it runs; where it is not cut they are the same. With ``reproducible=True`` the parts are the shards,
    and all executors give equal bits.

    Weights: gamma, beta, moving_mean, moving_variance, each [channels].

    Parameters
    ----------
    axis : of the channels
    momentum : of the moving averages
    moving_mean_initializer, moving_variance_initializer : their first values
    synchronized : whether mean and variance are those of the whole batch; unlike Keras's, True by default
    options : `Normalization`'s and `Layer`'s, with Keras's defaults
    """

    def __init__(
        self,
        axis: int = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        moving_mean_initializer: Any = "zeros",
        moving_variance_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        synchronized: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(
            epsilon,
            center,
            scale,
            beta_initializer,
            gamma_initializer,
            beta_regularizer,
            gamma_regularizer,
            beta_constraint,
            gamma_constraint,
            **options,
        )
        if not 0 <= momentum <= 1:
            raise ArgumentError(f"expected a momentum from 0 to 1; found {momentum!r}")
        if isinstance(axis, bool) or not isinstance(axis, int):
            raise ArgumentError(f"expected an axis that is an integer; found {axis!r}")
        if not isinstance(synchronized, bool):
            raise ArgumentError(f"expected synchronized to be True or False; found {synchronized!r}")
        self.axis = axis
        self.momentum = momentum
        self.synchronized = synchronized
        self.moving_mean_initializer = initializers.get(moving_mean_initializer)
        self.moving_variance_initializer = initializers.get(moving_variance_initializer)

    def build(self, input_shape: Any) -> None:
        axis = normalize_axis(self.axis, len(input_shape))
        if input_shape[axis] is None:
            raise ShapeError(f"expected channels along axis {self.axis}; found the batch, in shape {input_shape}")
        channels = (input_shape[axis],)
        self._add_gamma_and_beta(channels)
        self.moving_mean = self.add_weight(channels, self.moving_mean_initializer, trainable=False, name="moving_mean")
        self.moving_variance = self.add_weight(
            channels, self.moving_variance_initializer, trainable=False, name="moving_variance"
        )
        self.input_spec = InputSpec(ndim=len(input_shape), axes={axis: input_shape[axis]})

    def call(self, inputs: Node, training: bool = False) -> Node:
        values = self.as_floats(inputs)
        axis = normalize_axis(self.axis, values.ndim)
        shape = [1] * values.ndim
        shape[axis] = self.moving_mean.type.size
        if not (training and self.trainable):
            differences = values - reshape(self.moving_mean, shape)
            return self._shift_and_scale(differences, reshape(self.moving_variance, shape), shape)
        others = [place for place in range(values.ndim) if place != axis]
        if not self.synchronized and values.type.batch_axes:
            return self._normalize_parts(values, others, shape)
        batch_mean = mean(values, others, keepdims=True)
        differences = values - batch_mean
        batch_variance = mean(squared_deviation(values, batch_mean), others, keepdims=True)
        self._move(self.moving_mean, batch_mean)
        self._move(self.moving_variance, batch_variance)
        return self._shift_and_scale(differences, batch_variance, shape)

    def _normalize_parts(self, values: Node, axes: Sequence[int], shape: Sequence[int]) -> Node:
        """Each part of the batch with its own mean and variance."""
        part_mean = mean_of_part(values, axes)
        repeated_mean = repeat_in_part(part_mean, values.type.shape)
        differences = values - repeated_mean
        part_variance = mean_of_part(squared_deviation(values, repeated_mean), axes)
        self._move(self.moving_mean, average_over_parts(part_mean))
        self._move(self.moving_variance, average_over_parts(part_variance))
        return self._shift_and_scale(differences, part_variance, shape, is_of_part=True)

    def _move(self, average: Node, batch: Node) -> None:
        batch_value = reshape(batch, average.shape) * (1.0 - self.momentum)

        def moved(before: Node) -> Node:
            return before * self.momentum + batch_value

        self.add_update(average, moved)


@registry.register
class LayerNormalization(Normalization):
    """Normalizes each sample over the axes given (Ba, Kiros and Hinton 2016, arXiv:1607.06450, section 3).

    Weights: gamma and beta, of the lengths of these axes.

    Parameters
    ----------
    axis : the axis, or axes, to normalize over: the last by default
    options : `Normalization`'s and `Layer`'s, with Keras's defaults
    """

    def __init__(
        self,
        axis: int | Sequence[int] = -1,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(
            epsilon,
            center,
            scale,
            beta_initializer,
            gamma_initializer,
            beta_regularizer,
            gamma_regularizer,
            beta_constraint,
            gamma_constraint,
            **options,
        )
        self.axis = axis if isinstance(axis, int) else list(axis)

    def build(self, input_shape: Any) -> None:
        axes = normalize_axes(self.axis, len(input_shape))
        if any(input_shape[axis] is None for axis in axes):
            raise ShapeError(f"expected axes other than the batch; found {self.axis} in shape {input_shape}")
        lengths = {axis: input_shape[axis] for axis in axes}
        self._add_gamma_and_beta(list(lengths.values()))
        self.input_spec = InputSpec(ndim=len(input_shape), axes=lengths)

    def call(self, inputs: Node) -> Node:
        values = self.as_floats(inputs)
        axes = normalize_axes(self.axis, values.ndim)
        shape = [dim if axis in axes and dim is not None else 1 for axis, dim in enumerate(values.shape)]
        sample_mean = mean(values, axes, keepdims=True)
        variance = mean(squared_deviation(values, sample_mean), axes, keepdims=True)
        return self._shift_and_scale(values - sample_mean, variance, shape)
