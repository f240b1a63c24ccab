"""The first values of weights: Keras's initializers, as functions from a shape to an array.

>>> kernel = mg.parameter(initializers.GlorotUniform(seed=1)((64, 10)), name="kernel")
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from miai_graph.context import current_seed, next_stream
from miai_graph.errors import ArgumentError, DTypeError, ShapeError
from miai_graph.op import Array
from miai_graph.ops.random import as_seed, generator
from miai_graph.registry import Configurable, Registry
from miai_graph.types import as_dtype, as_shape, int_dims

TRUNCATION = 2.0
"""The standard deviations from the mean at which the truncated normal distribution ends."""

TRUNCATED_STDDEV = 0.87962566103423978
"""The standard deviation that is left of 1 then."""


class Initializer(Configurable):
    """What all have in common. A subclass defines `values`, or `__call__` itself."""

    def __call__(self, shape: Sequence[int], dtype: Any = "float32") -> Array:
        """A new array.

        Parameters
        ----------
        shape : integers
        dtype : NumPy's; random values are floats only

        Raises
        ------
        ShapeError, DTypeError
            if the initializer has no values of that shape or dtype.
        """
        return self.values(int_dims(as_shape(shape)), as_dtype(dtype))

    def values(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        raise NotImplementedError(f"{type(self).__name__} has no method values(shape, dtype)")


_registry = Registry("an initializer", Initializer)
get = _registry.get
serialize = _registry.serialize


@_registry.register
class Zeros(Initializer):
    """0 everywhere."""

    def values(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return np.zeros(shape, dtype)


@_registry.register
class Ones(Initializer):
    """1 everywhere."""

    def values(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return np.ones(shape, dtype)


@_registry.register
class Constant(Initializer):
    """One number everywhere."""

    def __init__(self, value: float = 0.0) -> None:
        if not isinstance(value, int | float | np.number | np.bool_):
            raise ArgumentError(f"expected a number as value of Constant; found {value!r}")
        self.value = value

    def values(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return np.full(shape, self.value, dtype)


@_registry.register
class Identity(Initializer):
    """A matrix with `gain` on its diagonal and 0 elsewhere."""

    def __init__(self, gain: float = 1.0) -> None:
        self.gain = gain

    def values(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        if len(shape) != 2:
            raise ShapeError(f"expected the shape of a matrix, for Identity; found {shape}")
        return (self.gain * np.eye(*shape)).astype(dtype)


class RandomInitializer(Initializer):
    """What random ones have in common. A subclass defines ``draw(random, shape, dtype)``.

    Parameters
    ----------
    seed : an integer from 0 to 2**63 - 1 gives the same values at each call. None gives others at each call, but the
        same in the same code after `set_seed`.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = None if seed is None else as_seed(seed)

    def values(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        if dtype.kind != "f":
            raise DTypeError(
                f"expected float32 or float64 for the random values of {type(self).__name__}; found {dtype}"
            )
        random = generator(current_seed(), next_stream()) if self.seed is None else generator(self.seed, stream=0)
        return self.draw(random, shape, dtype)

    def draw(self, random: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        raise NotImplementedError(f"{type(self).__name__} has no method draw(random, shape, dtype)")


@_registry.register
class RandomNormal(RandomInitializer):
    """Normally distributed values."""

    def __init__(self, mean: float = 0.0, stddev: float = 0.05, seed: int | None = None) -> None:
        super().__init__(seed)
        self.mean = mean
        self.stddev = stddev

    def draw(self, random: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return _scaled(_normal(random, shape, dtype), self.stddev, self.mean)


@_registry.register
class TruncatedNormal(RandomInitializer):
    """Normally distributed values, of which those beyond two standard deviations from the mean are drawn again.

    Their own standard deviation is 0.88 · stddev, therefore.
    """

    def __init__(self, mean: float = 0.0, stddev: float = 0.05, seed: int | None = None) -> None:
        super().__init__(seed)
        self.mean = mean
        self.stddev = stddev

    def draw(self, random: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return _scaled(_truncated_normal(random, shape, dtype), self.stddev, self.mean)


@_registry.register
class RandomUniform(RandomInitializer):
    """Values equally likely anywhere between two bounds."""

    def __init__(self, minval: float = -0.05, maxval: float = 0.05, seed: int | None = None) -> None:
        super().__init__(seed)
        self.minval = minval
        self.maxval = maxval

    def draw(self, random: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return _scaled(_uniform(random, shape, dtype), self.maxval - self.minval, self.minval)


@_registry.register
class VarianceScaling(RandomInitializer):
    """Values of mean 0 and variance scale / n, where n is the number of a unit's inputs or outputs: see `compute_fans`.

    Parameters
    ----------
    scale : a number above 0
    mode : n is the number of inputs for "fan_in", of outputs for "fan_out", and the mean of both for "fan_avg"
    distribution : "truncated_normal" (also called "normal"), "untruncated_normal" or "uniform"
    seed : as for all random initializers
    input_axes, output_axes : the axes whose lengths multiply to the two numbers; None for those of a Dense or
        convolution kernel

    Raises
    ------
    ArgumentError
        for other values.
    """

    def __init__(
        self,
        scale: float = 1.0,
        mode: str = "fan_in",
        distribution: str = "truncated_normal",
        seed: int | None = None,
        input_axes: Sequence[int] | None = None,
        output_axes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(seed)
        if not scale > 0:
            raise ArgumentError(f"expected a scale above 0; found {scale!r}")
        if mode not in ("fan_in", "fan_out", "fan_avg"):
            raise ArgumentError(f"expected mode 'fan_in', 'fan_out' or 'fan_avg'; found {mode!r}")
        distribution = {"normal": "truncated_normal"}.get(distribution, distribution)
        if distribution not in ("truncated_normal", "untruncated_normal", "uniform"):
            raise ArgumentError(
                f"expected distribution 'truncated_normal', 'untruncated_normal' or 'uniform'; found {distribution!r}"
            )
        self.scale = scale
        self.mode = mode
        self.distribution = distribution
        self.input_axes = input_axes
        self.output_axes = output_axes

    def draw(self, random: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        fan_in, fan_out = compute_fans(shape, self.input_axes, self.output_axes)
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[self.mode]
        stddev = math.sqrt(self.scale / max(1.0, fan))
        match self.distribution:
            case "truncated_normal":
                return _scaled(_truncated_normal(random, shape, dtype), stddev / TRUNCATED_STDDEV, 0.0)
            case "untruncated_normal":
                return _scaled(_normal(random, shape, dtype), stddev, 0.0)
            case _:
                limit = math.sqrt(3.0) * stddev
                return _scaled(_uniform(random, shape, dtype), 2 * limit, -limit)


def compute_fans(
    shape: Sequence[int], input_axes: Sequence[int] | None = None, output_axes: Sequence[int] | None = None
) -> tuple[int, int]:
    """The numbers of inputs and outputs of a unit, for a kernel of the shape.

    A Dense kernel is [inputs, outputs], that of a convolution [window…, inputs, outputs]: a unit sees the whole window.
    A vector has its length as both, a scalar 1.
    """
    if input_axes is not None and output_axes is not None:
        return math.prod(shape[axis] for axis in input_axes), math.prod(shape[axis] for axis in output_axes)
    if len(shape) < 2:
        return (shape[0], shape[0]) if shape else (1, 1)
    *window, inputs, outputs = shape
    return math.prod(window) * inputs, math.prod(window) * outputs


class NamedVarianceScaling(VarianceScaling):
    """A `VarianceScaling` of which only the seed and the axes are left to choose."""

    choice: tuple[float, str, str]

    def __init__(
        self,
        seed: int | None = None,
        input_axes: Sequence[int] | None = None,
        output_axes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(*self.choice, seed, input_axes, output_axes)


@_registry.register
class GlorotUniform(NamedVarianceScaling):
    """Uniform within ±√(6 / (fan_in + fan_out)): variances stay, forward and backward, through tanh and the like.

    Source: Glorot and Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks", eq. 16.
    """

    choice = (1.0, "fan_avg", "uniform")


@_registry.register
class GlorotNormal(NamedVarianceScaling):
    """Truncated normal of variance 2 / (fan_in + fan_out). Source: as for `GlorotUniform`, eq. 12."""

    choice = (1.0, "fan_avg", "truncated_normal")


@_registry.register
class HeUniform(NamedVarianceScaling):
    """Uniform within ±√(6 / fan_in): variances stay through relu. Source: as for `HeNormal`."""

    choice = (2.0, "fan_in", "uniform")


@_registry.register
class HeNormal(NamedVarianceScaling):
    """Truncated normal of variance 2 / fan_in: variances stay through relu.

    Source: He, Zhang, Ren and Sun 2015, "Delving deep into rectifiers", arXiv:1502.01852, eq. 10.
    """

    choice = (2.0, "fan_in", "truncated_normal")


@_registry.register
class LecunUniform(NamedVarianceScaling):
    """Uniform within ±√(3 / fan_in). Source: as for `LecunNormal`."""

    choice = (1.0, "fan_in", "uniform")


@_registry.register
class LecunNormal(NamedVarianceScaling):
    """Truncated normal of variance 1 / fan_in: variances stay through selu.

    Source: LeCun, Bottou, Orr and Müller 1998, "Efficient BackProp", section 4.6.
    """

    choice = (1.0, "fan_in", "truncated_normal")


@_registry.register
class Orthogonal(RandomInitializer):
    """A random matrix of orthonormal columns, times `gain`; of orthonormal rows if it has fewer of them.

    All axes but the last count as rows, so it serves for convolutions too.

    Source: Saxe, McClelland and Ganguli 2014, arXiv:1312.6120. For all such matrices to be equally likely, the diagonal
    of R in the QR decomposition must be positive: Mezzadri 2007, arXiv:math-ph/0609050, section 5.
    """

    def __init__(self, gain: float = 1.0, seed: int | None = None) -> None:
        super().__init__(seed)
        self.gain = gain

    def draw(self, random: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        if len(shape) < 2:
            raise ShapeError(f"expected a shape of two axes or more, for Orthogonal; found {shape}")
        rows, columns = math.prod(shape[:-1]), shape[-1]
        tall = random.standard_normal((max(rows, columns), min(rows, columns)))
        q, r = np.linalg.qr(tall)
        q *= np.where(np.diagonal(r) < 0, -self.gain, self.gain)
        return (q if rows >= columns else q.T).reshape(shape).astype(dtype)


def _uniform(random: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    return random.random(shape, dtype.type)


def _normal(random: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    return random.standard_normal(shape, dtype.type)


def _truncated_normal(random: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    result = _normal(random, (math.prod(shape),), dtype)
    outside = np.flatnonzero(abs(result) > TRUNCATION)
    while outside.size:
        result[outside] = _normal(random, outside.shape, dtype)
        outside = outside[abs(result[outside]) > TRUNCATION]
    return result.reshape(shape)


def _scaled(values: Array, factor: float, shift: float) -> Array:
    """The values times the factor, plus the shift, in place."""
    values *= values.dtype.type(factor)
    values += values.dtype.type(shift)
    return values


zeros, ones, constant, identity, orthogonal = Zeros, Ones, Constant, Identity, Orthogonal
random_normal, truncated_normal, random_uniform = RandomNormal, TruncatedNormal, RandomUniform
variance_scaling = VarianceScaling
glorot_uniform, glorot_normal = GlorotUniform, GlorotNormal
he_uniform, he_normal = HeUniform, HeNormal
lecun_uniform, lecun_normal = LecunUniform, LecunNormal

_registry.alias(zero=Zeros, one=Ones, normal=RandomNormal, uniform=RandomUniform)
