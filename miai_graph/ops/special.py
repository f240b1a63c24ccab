"""Special functions that NumPy does not have, or that their formulas would lose digits of.

Closed under vjp over `structure`, `elementwise` and this file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from miai_graph.node import Node
from miai_graph.op import Array, elementwise_cost, register
from miai_graph.ops.arithmetic import square
from miai_graph.ops.elementwise import ElementwiseOp, named_as
from miai_graph.ops.nonlinear import exp

_NEAR_ZERO = 0.46875
_NEAR_NUMERATOR = (
    1.85777706184603153e-1,
    3.16112374387056560,
    1.13864154151050156e2,
    3.77485237685302021e2,
    3.20937758913846947e3,
)
_NEAR_DENOMINATOR = (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3)
_FAR_NUMERATOR = (
    2.15311535474403846e-8,
    5.64188496988670089e-1,
    8.88314979438837594,
    6.61191906371416295e1,
    2.98635138197400131e2,
    8.81952221241769090e2,
    1.71204761263407058e3,
    2.05107837782607147e3,
    1.23033935479799725e3,
)
_FAR_DENOMINATOR = (
    1.0,
    1.57449261107098347e1,
    1.17693950891312499e2,
    5.37181101862009858e2,
    1.62138957456669019e3,
    3.29079923573345963e3,
    4.36261909014324716e3,
    3.43936767414372164e3,
    1.23033935480374942e3,
)
_SATURATED = 6.0
"""Where erf is 1 to the last digit of float64."""


class Expm1(ElementwiseOp):
    """Exponential less one: y = exp(x) - 1.

    Shapes: x any; y the same. Integers become float64, as in NumPy.
    Gradient: dx = g · (y + 1).
    Cost: one flop an element.
    Batch: element-wise.
    Care: keeps all digits of small x; inf above 88.7 in float32 and 709.7 in float64.
    """

    name = "expm1"
    accepts = "f"
    function = np.expm1

    def vjp(self, g: Node, output: Node, x: Node) -> Sequence[Node | None]:
        return [g * (output + 1.0)]


def _polynomial(coefficients: Sequence[float], x: Array) -> Array:
    """Horner's rule; the coefficient of the highest power first."""
    result = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        result *= x
        result += x.dtype.type(coefficient)
    return result


def _erf(x: Array) -> Array:
    size = np.minimum(np.abs(x), x.dtype.type(_SATURATED))
    squares = size * size
    near = x * (_polynomial(_NEAR_NUMERATOR, squares) / _polynomial(_NEAR_DENOMINATOR, squares))
    tail = np.exp(-squares) * (_polynomial(_FAR_NUMERATOR, size) / _polynomial(_FAR_DENOMINATOR, size))
    return np.where(size <= _NEAR_ZERO, near, np.copysign(x.dtype.type(1) - tail, x))


class Erf(ElementwiseOp):
    """Error function: y = 2/√π · ∫ exp(-t²) dt from 0 to x.

    Shapes: x any; y the same. Integers become float64.
    Gradient: dx = g · 2/√π · exp(-x²).
    Cost: 40 flops an element.
    Batch: element-wise.
    Care: within four units in the last place, for x near zero too; ±1 far out.
    Source: Cody 1969, "Rational Chebyshev approximations for the error function", Mathematics of Computation 23. His
        second approximation serves to the end here, since the tail is subtracted from 1.
    """

    name = "erf"
    accepts = "f"
    function = _erf
    cost = elementwise_cost(40)

    def vjp(self, g: Node, output: Node, x: Node) -> Sequence[Node | None]:
        return [g * (2.0 / math.sqrt(math.pi) * exp(-square(x)))]


class SquaredDeviation(ElementwiseOp):
    """Square of the difference to a mean: y = (x - m)², of which a variance is the mean.

    Shapes: x any; m, the mean of x along axes, repeated along them; y the same.
    Gradient: dx = 2 · g · (x - m); none for m.
    Cost: two flops an element.
    Batch: element-wise.
    Care: only to be added up along the axes of the mean: g is the same along them then, deviations add up to 0, and so
        does the gradient of m, which would take a pass over x of its own. That of dx is not 0, so m is no constant.
    """

    name = "squared_deviation"
    accepts = "f"
    arity = 2
    cost = elementwise_cost(2)

    def forward(self, *arrays: Array, **_: Any) -> Array:
        return np.square(np.subtract(*arrays))

    def vjp(self, g: Node, output: Node, x: Node, m: Node) -> Sequence[Node | None]:
        return [2.0 * g * (x - m), None]


expm1 = named_as(Expm1())
erf = named_as(Erf())
squared_deviation = register(SquaredDeviation())
