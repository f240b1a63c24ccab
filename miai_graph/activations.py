"""Keras's activation functions, as functions from a node to a node.

>>> activations.get("relu")(x)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import FunctionType
from typing import Any

from miai_graph.errors import ArgumentError
from miai_graph.node import Node
from miai_graph.op import as_node
from miai_graph.ops import nonlinear
from miai_graph.ops import softmax as _softmax_ops
from miai_graph.ops.arithmetic import absolute, clip, square
from miai_graph.ops.elementwise import where
from miai_graph.ops.nonlinear import exp
from miai_graph.ops.reductions import as_float_node
from miai_graph.ops.special import erf, expm1
from miai_graph.registry import Registry

SELU_ALPHA = 1.6732632423543772
SELU_SCALE = 1.0507009873554805
"""For which mean 0 and variance 1 are a fixed point of a layer with `selu`: Klambauer et al. 2017, equation 14."""

_registry = Registry("an activation function", FunctionType)
serialize = _registry.serialize


def get(identifier: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """The function meant, by its name or by itself; None stands for `linear`. See `Registry.get`."""
    return linear if identifier is None else _registry.get(identifier, custom_objects)


@_registry.register
def linear(x: Any) -> Node:
    """x itself."""
    return as_node(x)


@_registry.register
def relu(x: Any, negative_slope: float = 0.0, max_value: float | None = None, threshold: float = 0.0) -> Node:
    """Rectifier: x above the threshold, and negative_slope · (x - threshold) below; at most `max_value`.

    Parameters
    ----------
    negative_slope : 0 by default
    max_value : None for no bound
    threshold : 0 by default

    Raises
    ------
    ArgumentError
        for a negative `negative_slope` or `max_value`.

    The derivative at the threshold is that from below.
    """
    if negative_slope < 0 or (max_value is not None and max_value < 0):
        raise ArgumentError(
            "expected a negative_slope of at least 0, and a max_value of at least 0 or None; "
            f"found {negative_slope!r} and {max_value!r}"
        )
    node = as_float_node(x)
    above = nonlinear.relu(node) if threshold == 0 else where(node > threshold, node, 0.0)
    if max_value is not None:
        above = clip(above, 0.0, float(max_value))
    if negative_slope == 0:
        return above
    if threshold == 0 and max_value is None:
        return where(node > 0.0, node, negative_slope * node)
    return above - negative_slope * nonlinear.relu(threshold - node)


@_registry.register
def leaky_relu(x: Any, negative_slope: float = 0.2) -> Node:
    """x above 0, negative_slope · x below."""
    return relu(x, negative_slope)


@_registry.register
def sigmoid(x: Any) -> Node:
    """1 / (1 + exp(-x)). `miai_graph.losses` finds the logits behind it."""
    return nonlinear.sigmoid(x)


@_registry.register
def softmax(x: Any, axis: int = -1) -> Node:
    """Exponentials divided by their sum along an axis. `miai_graph.losses` finds the logits behind it."""
    return _softmax_ops.softmax(x, axis)


@_registry.register
def log_softmax(x: Any, axis: int = -1) -> Node:
    """The logarithm of softmax along an axis."""
    return _softmax_ops.log_softmax(x, axis)


@_registry.register
def tanh(x: Any) -> Node:
    """Hyperbolic tangent."""
    return nonlinear.tanh(x)


@_registry.register
def elu(x: Any, alpha: float = 1.0) -> Node:
    """x above 0, alpha · (exp(x) - 1) below.

    Source: Clevert, Unterthiner and Hochreiter 2016, arXiv:1511.07289, equation 15.
    """
    node = as_float_node(x)
    positive = node > 0.0
    # The exponential must not overflow where it is not chosen: inf times a zero gradient is nan.
    return where(positive, node, alpha * expm1(where(positive, 0.0, node)))


@_registry.register
def selu(x: Any) -> Node:
    """`elu` with an alpha and a scale that keep mean 0 and variance 1 from layer to layer.

    Source: Klambauer, Unterthiner, Mayr and Hochreiter 2017, arXiv:1706.02515, equation 2.
    """
    return SELU_SCALE * elu(x, SELU_ALPHA)


@_registry.register
def gelu(x: Any, approximate: bool = False) -> Node:
    """x · Φ(x), where Φ is the normal distribution's cumulative function.

    Parameters
    ----------
    approximate : by tanh, off by up to 5e-4, but faster

    Source: Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2.
    """
    node = as_float_node(x)
    if approximate:
        scale = math.sqrt(2.0 / math.pi)
        return 0.5 * node * (1.0 + nonlinear.tanh(node * (scale + 0.044715 * scale * square(node))))
    return 0.5 * node * (1.0 + erf(node * math.sqrt(0.5)))


@_registry.register
def softplus(x: Any) -> Node:
    """log(1 + exp(x)), without overflow for any finite x."""
    # It is the cross-entropy of "no", which is safe already.
    return _softmax_ops.sigmoid_cross_entropy(as_float_node(x), 0.0)


@_registry.register
def softsign(x: Any) -> Node:
    """x / (1 + abs(x))."""
    node = as_float_node(x)
    return node / (1.0 + absolute(node))


@_registry.register
def silu(x: Any) -> Node:
    """x · sigmoid(x), also known as swish. Source: Ramachandran, Zoph and Le 2017, arXiv:1710.05941, section 3."""
    node = as_float_node(x)
    return node * nonlinear.sigmoid(node)


@_registry.register
def exponential(x: Any) -> Node:
    """exp(x); inf above 88.7 in float32."""
    return exp(x)


@_registry.register
def hard_sigmoid(x: Any) -> Node:
    """x / 6 + 1/2, held between 0 and 1."""
    return clip(as_float_node(x) / 6.0 + 0.5, 0.0, 1.0)


swish = silu
_registry.alias(swish=silu)
