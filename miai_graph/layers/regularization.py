"""Layers that disturb their input in training, so that the model does not rely on single elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from miai_graph.errors import ArgumentError
from miai_graph.layers.layer import Layer, registry
from miai_graph.node import Node
from miai_graph.ops.random import bernoulli
from miai_graph.types import broadcast_shapes
from miai_graph.ops.structure import cast


@registry.register
class Dropout(Layer):
    """In training sets elements to zero at random, and scales the others so that the mean stays; else does nothing.

    (Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting", section 4.)

    Parameters
    ----------
    rate : the probability of an element to be dropped, from 0 to 1
    noise_shape : the shape of the mask, which broadcasts to the input's; None in it stands for the input's own length.
        (None, 1, 1, None) drops whole channels of images.
    seed : of the masks; None: the one of `set_seed`
    options : `Layer`'s
    """

    def __init__(
        self, rate: float, noise_shape: Sequence[int | None] | None = None, seed: int | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        if isinstance(rate, bool) or not 0 <= rate <= 1:
            raise ArgumentError(f"expected a rate from 0 to 1; found {rate!r}")
        self.rate = rate
        self.noise_shape = None if noise_shape is None else tuple(noise_shape)
        self.seed = seed

    def call(self, inputs: Node, training: bool = False) -> Node:
        if not training or self.rate == 0:
            return inputs
        shape = inputs.type.shape
        if self.noise_shape is not None:
            if len(self.noise_shape) != inputs.ndim:
                raise ArgumentError(f"expected a noise_shape of {inputs.ndim} lengths; found {self.noise_shape}")
            mask_shape = tuple(own if dim is None else dim for own, dim in zip(shape, self.noise_shape, strict=True))
            broadcast_shapes(mask_shape, shape)
            shape = mask_shape
        if self.rate == 1:
            return inputs * 0.0
        kept = cast(bernoulli(shape, 1.0 - self.rate, seed=self.seed), inputs.dtype)
        return inputs * (kept * (1.0 / (1.0 - self.rate)))
