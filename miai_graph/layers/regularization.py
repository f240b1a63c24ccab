"""Layers that disturb their input in training, so that the model does not rely on single elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from miai_graph.errors import ArgumentError
from miai_graph.layers.core import positive
from miai_graph.layers.input_spec import InputSpec
from miai_graph.layers.layer import Layer, registry
from miai_graph.node import Node
from miai_graph.ops.elementwise import where
from miai_graph.ops.random import as_seed, bernoulli
from miai_graph.ops.structure import zeros_like
from miai_graph.types import Shape, broadcast_shapes


@registry.register
class Dropout(Layer):
    """In training sets elements to zero at random, and scales the others so that the mean stays; else does nothing.

    (Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting", section 4.)

    Parameters
    ----------
    rate : the probability of an element to be dropped, from 0 to 1
    noise_shape : the shape of the mask, which broadcasts to the input's; None in it stands for the input's own length.
        (None, 1, 1, None) drops whole channels of images.
    seed : of the masks; None: the one of `set_seed`. Two layers have different masks, of one seed too
    options : `Layer`'s
    """

    def __init__(
        self, rate: float, noise_shape: Sequence[int | None] | None = None, seed: int | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        if isinstance(rate, bool) or not 0 <= rate <= 1:
            raise ArgumentError(f"expected a rate from 0 to 1; found {rate!r}")
        self.rate = rate
        self.noise_shape = None if noise_shape is None else _as_noise_shape(noise_shape)
        self.seed = None if seed is None else as_seed(seed)
        self.input_spec = InputSpec()

    def call(self, inputs: Node, training: bool = False) -> Node:
        values = self.as_floats(inputs)
        if not training or self.rate == 0:
            return values
        if self.rate == 1:
            return zeros_like(values)
        kept = bernoulli(self._mask_shape(values.type.shape), 1.0 - self.rate, seed=self.seed)
        return where(kept, values * (1.0 / (1.0 - self.rate)), 0.0)

    def _mask_shape(self, shape: Shape) -> Shape:
        if self.noise_shape is None:
            return shape
        if len(self.noise_shape) != len(shape):
            raise ArgumentError(f"expected a noise_shape of {len(shape)} lengths; found {self.noise_shape}")
        mask_shape = tuple(own if dim is None else dim for own, dim in zip(shape, self.noise_shape, strict=True))
        if broadcast_shapes(mask_shape, shape) != shape:
            raise ArgumentError(f"expected a noise_shape that broadcasts to the input's; found {self.noise_shape}")
        return mask_shape


def _as_noise_shape(noise_shape: Any) -> tuple[int | None, ...]:
    if isinstance(noise_shape, str | int):
        raise ArgumentError(f"expected a noise_shape that is a tuple of lengths and None; found {noise_shape!r}")
    return tuple(None if dim is None else positive(dim, "a length of noise_shape") for dim in noise_shape)
