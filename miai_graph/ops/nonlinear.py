"""Powers, exponentials and other curves, element by element. Closed under vjp over `arithmetic` and this file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from miai_graph.node import Node
from miai_graph.op import Array, elementwise_cost, register
from miai_graph.ops.arithmetic import square
from miai_graph.ops.elementwise import ElementwiseOp, named_as, where


class Power(ElementwiseOp):
    """a to the power b, element by element: y = a ** b.

    Shapes: a and b broadcast together; y their common shape.
    Gradient: da = g · b · a ** (b - 1), where b ≠ 0, else 0; db = g · y · log a, where a > 0, else 0.
    Cost: one flop an element.
    Batch: element-wise.
    Care: a negative base with a broken exponent gives nan. `x ** 2` builds `square`, `x ** 0.5` `sqrt`, `x ** -1` a
    quotient.
    """

    name = "power"
    arity = 2
    function = np.power

    def __call__(self, *inputs: Any, name: str | None = None, **attributes: Any) -> Node:
        self._check_call(inputs, attributes)
        base, exponent = inputs
        if isinstance(base, Node) and base.type.is_floating and type(exponent) in (int, float):
            if exponent == 1:
                return base
            if exponent == 2:
                return square(base)
            if exponent == 0.5:
                return sqrt(base)
            if exponent == -1:
                return 1.0 / base
        return super().__call__(base, exponent, name=name)

    def vjp(self, g: Node, output: Node, a: Node, b: Node) -> Sequence[Node | None]:
        if not a.type.is_floating:
            return [None, None]
        safe_exponent = where(b == 0, 1.0, b - 1.0)
        safe_base = where(a > 0, a, 1.0)
        return [where(b == 0, 0.0, g * b * a**safe_exponent), where(a > 0, g * output * log(safe_base), 0.0)]


class Exp(ElementwiseOp):
    """Natural exponential: y = exp(x).

    Shapes: x any; y the same. Integers become float64, as in NumPy.
    Gradient: dx = g · y.
    Cost: one flop an element.
    Batch: element-wise.
    Care: inf above 88.7 in float32 and 709.7 in float64.
    """

    name = "exp"
    accepts = "f"
    function = np.exp

    def vjp(self, g: Node, output: Node, x: Node) -> Sequence[Node | None]:
        return [g * output]


class Log(ElementwiseOp):
    """Natural logarithm: y = log(x).

    Shapes: x any; y the same. Integers become float64, as in NumPy.
    Gradient: dx = g / x.
    Cost: one flop an element.
    Batch: element-wise.
    Care: -inf at 0 and nan below, silently.
    """

    name = "log"
    accepts = "f"
    function = np.log

    def vjp(self, g: Node, output: Node, x: Node) -> Sequence[Node | None]:
        return [g / x]


class Sqrt(ElementwiseOp):
    """Square root: y = √x.

    Shapes: x any; y the same. Integers become float64, as in NumPy.
    Gradient: dx = g / (2 · y); inf at 0.
    Cost: one flop an element.
    Batch: element-wise.
    Care: nan below 0, silently.
    """

    name = "sqrt"
    accepts = "f"
    function = np.sqrt

    def vjp(self, g: Node, output: Node, x: Node) -> Sequence[Node | None]:
        return [0.5 * g / output]


def _rsqrt(x: Array) -> Array:
    return 1 / np.sqrt(x)


class Rsqrt(ElementwiseOp):
    """Reciprocal of the square root: y = 1 / √x.

    Shapes: x any; y the same. Integers become float64.
    Gradient: dx = -g · y / (2 · x).
    Cost: two flops an element.
    Batch: element-wise.
    Care: inf at 0 and nan below, silently.
    """

    name = "rsqrt"
    accepts = "f"
    function = _rsqrt
    cost = elementwise_cost(2)

    def vjp(self, g: Node, output: Node, x: Node) -> Sequence[Node | None]:
        return [-0.5 * g * output / x]


class Tanh(ElementwiseOp):
    """Hyperbolic tangent: y = tanh(x).

    Shapes: x any; y the same. Integers become float64, as in NumPy.
    Gradient: dx = g · (1 - y²).
    Cost: one flop an element.
    Batch: element-wise.
    """

    name = "tanh"
    accepts = "f"
    function = np.tanh

    def vjp(self, g: Node, output: Node, x: Node) -> Sequence[Node | None]:
        return [g * (1.0 - square(output))]


def _sigmoid(x: Array) -> Array:
    # tanh neither overflows nor loses the small values: exp(-x) would for x below -88 in float32.
    half = np.asarray(0.5, x.dtype)
    return half * np.tanh(half * x) + half


class Sigmoid(ElementwiseOp):
    """Logistic function: y = 1 / (1 + exp(-x)), computed as (1 + tanh(x / 2)) / 2.

    Shapes: x any; y the same. Integers become float64.
    Gradient: dx = g · y · (1 - y).
    Cost: four flops an element.
    Batch: element-wise.
    Care: never overflows; exact to rounding of 1, so very negative x give 0. For a loss use the ones that take logits.
    """

    name = "sigmoid"
    accepts = "f"
    function = _sigmoid
    cost = elementwise_cost(4)

    def vjp(self, g: Node, output: Node, x: Node) -> Sequence[Node | None]:
        return [g * output * (1.0 - output)]


def _relu(x: Array) -> Array:
    return np.maximum(x, np.zeros((), x.dtype))


class Relu(ElementwiseOp):
    """Rectifier: y = max(x, 0).

    Shapes: x any; y the same.
    Gradient: dx = g where x > 0, else 0; so 0 at 0.
    Cost: one flop an element.
    Batch: element-wise.
    Care: nan stays nan.
    Source: Nair and Hinton 2010, "Rectified linear units improve restricted Boltzmann machines".
    """

    name = "relu"
    function = _relu

    def vjp(self, g: Node, output: Node, x: Node) -> Sequence[Node | None]:
        return [relu_gradient(g, output)]


def _relu_gradient(g: Array, y: Array) -> Array:
    return g * (y > 0)


class ReluGradient(ElementwiseOp):
    """What the rectifier's output lets through of a cotangent: dx = g where y > 0, else 0.

    Shapes: g and y of one shape; dx too.
    Gradient: dg = the same of the cotangent; dy = 0.
    Cost: two flops an element.
    Batch: element-wise.
    """

    name = "relu_gradient"
    arity = 2
    function = _relu_gradient
    cost = elementwise_cost(2)

    def vjp(self, g: Node, output: Node, upstream: Node, y: Node) -> Sequence[Node | None]:
        return [relu_gradient(g, y), None]


power = named_as(Power(), "pow")
exp = named_as(Exp())
log = named_as(Log())
sqrt = named_as(Sqrt())
rsqrt = named_as(Rsqrt())
tanh = named_as(Tanh())
sigmoid = named_as(Sigmoid())
relu = named_as(Relu())


relu_gradient = register(ReluGradient())
