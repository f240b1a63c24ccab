"""Arithmetic, element by element. Closed under vjp over `structure`, `elementwise`, `comparisons` and this file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from miai_graph.errors import ShapeError
from miai_graph.node import Node
from miai_graph.op import Array, as_node, elementwise_cost, no_derivative, register, register_function
from miai_graph.ops.elementwise import ElementwiseOp, named_as, where
from miai_graph.ops.structure import zeros_like
from miai_graph.placement import Partial, Placement, bilinear, elementwise, linear
from miai_graph.types import TensorType


class Add(ElementwiseOp):
    """Sum of two: y = a + b.

    Shapes: a and b broadcast together; y their common shape. Bool is not added: cast it.
    Gradient: da = g, db = g.
    Cost: one flop an element.
    Batch: element-wise; sums still owed may pass, if both are.
    """

    name = "add"
    arity = 2
    function = np.add
    batch = staticmethod(linear)

    def vjp(self, g: Node, output: Node, a: Node, b: Node) -> Sequence[Node | None]:
        return [g, g]


class Subtract(ElementwiseOp):
    """Difference: y = a - b.

    Shapes: a and b broadcast together; y their common shape.
    Gradient: da = g, db = -g.
    Cost: one flop an element.
    Batch: element-wise; sums still owed may pass, if both are.
    """

    name = "subtract"
    arity = 2
    function = np.subtract
    batch = staticmethod(linear)

    def vjp(self, g: Node, output: Node, a: Node, b: Node) -> Sequence[Node | None]:
        return [g, -g]


class Multiply(ElementwiseOp):
    """Product: y = a · b.

    Shapes: a and b broadcast together; y their common shape.
    Gradient: da = g · b, db = g · a.
    Cost: one flop an element.
    Batch: element-wise; one sum still owed may pass.
    """

    name = "multiply"
    arity = 2
    function = np.multiply
    batch = staticmethod(bilinear)

    def vjp(self, g: Node, output: Node, a: Node, b: Node) -> Sequence[Node | None]:
        return [g * b, g * a]


class Divide(ElementwiseOp):
    """Quotient: y = a / b.

    Shapes: a and b broadcast together; y their common shape. Integers become float64, as in NumPy.
    Gradient: da = g / b, db = -g · y / b.
    Cost: one flop an element.
    Batch: element-wise; a sum still owed in a may pass.
    Care: division by zero gives inf or nan, silently.
    """

    name = "divide"
    arity = 2
    accepts = "f"
    function = np.divide

    def vjp(self, g: Node, output: Node, a: Node, b: Node) -> Sequence[Node | None]:
        return [g / b, -g * output / b]

    def batch(self, placements: Sequence[Placement], output: TensorType, *_: TensorType) -> Placement | None:
        if placements[0] == Partial("sum"):
            return bilinear(placements, output)
        return elementwise(placements, output)


class Negative(ElementwiseOp):
    """Change of sign: y = -x.

    Shapes: x any; y the same.
    Gradient: dx = -g.
    Cost: one flop an element.
    Batch: element-wise; a sum still owed may pass.
    """

    name = "negative"
    function = np.negative
    batch = staticmethod(linear)

    def vjp(self, g: Node, output: Node, x: Node) -> Sequence[Node | None]:
        return [-g]


class Absolute(ElementwiseOp):
    """Absolute value: y = abs(x).

    Shapes: x any; y the same.
    Gradient: dx = g · sign(x); 0 at 0.
    Cost: one flop an element.
    Batch: element-wise.
    """

    name = "absolute"
    function = np.absolute

    def vjp(self, g: Node, output: Node, x: Node) -> Sequence[Node | None]:
        return [g * sign(x)]


class Sign(ElementwiseOp):
    """-1, 0 or 1, by the sign of x.

    Shapes: x any; y the same.
    Gradient: zero.
    Cost: one flop an element.
    Batch: element-wise.
    """

    name = "sign"
    function = np.sign
    vjp = no_derivative


class Square(ElementwiseOp):
    """Product with itself: y = x².

    Shapes: x any; y the same.
    Gradient: dx = 2 · g · x.
    Cost: one flop an element.
    Batch: element-wise.
    """

    name = "square"
    function = np.square

    def vjp(self, g: Node, output: Node, x: Node) -> Sequence[Node | None]:
        return [2.0 * g * x if x.type.is_floating else None]


class Maximum(ElementwiseOp):
    """The greater of two: y = max(a, b).

    Shapes: a and b broadcast together; y their common shape.
    Gradient: g to the greater; half to each where they are equal.
    Cost: one flop an element.
    Batch: element-wise.
    Care: nan if either is.
    """

    name = "maximum"
    arity = 2
    function = np.maximum

    def vjp(self, g: Node, output: Node, a: Node, b: Node) -> Sequence[Node | None]:
        return _shared_between(g, a > b, b > a)


class Minimum(ElementwiseOp):
    """The lesser of two: y = min(a, b).

    Shapes: a and b broadcast together; y their common shape.
    Gradient: g to the lesser; half to each where they are equal.
    Cost: one flop an element.
    Batch: element-wise.
    Care: nan if either is.
    """

    name = "minimum"
    arity = 2
    function = np.minimum

    def vjp(self, g: Node, output: Node, a: Node, b: Node) -> Sequence[Node | None]:
        return _shared_between(g, a < b, b < a)


def _shared_between(g: Node, first: Node, second: Node) -> list[Node | None]:
    """g to the one of two that a condition names, and half to each where neither does."""
    half = 0.5 * g
    zero = zeros_like(g)
    return [where(first, g, where(second, zero, half)), where(second, g, where(first, zero, half))]


add = named_as(Add())
subtract = named_as(Subtract())
multiply = named_as(Multiply())
divide = named_as(Divide(), "true_divide")
negative = named_as(Negative())
absolute = named_as(Absolute(), "abs")
sign = named_as(Sign())
square = named_as(Square())
maximum = named_as(Maximum())
minimum = named_as(Minimum())


class Clip(ElementwiseOp):
    """x held between two bounds: y = min(max(x, low), high).

    Shapes: x any; y the same. The bounds are numbers; either may be None. Use minimum and
    maximum for bounds that are arrays.
    Gradient: dx = g where low ≤ x ≤ high, else 0.
    Cost: two flops an element.
    Batch: element-wise.
    Care: nan stays nan.
    """

    name = "clip"
    attribute_names = ("low", "high")
    cost = elementwise_cost(2)

    def infer(self, *types: TensorType, low: float | None = None, high: float | None = None, **_: Any) -> TensorType:
        if low is not None and high is not None and low > high:
            raise ShapeError(f"expected a lower bound that is at most the upper one; found {low} and {high}")
        return super().infer(*types)

    def forward(self, *arrays: Array, low: float | None = None, high: float | None = None, **_: Any) -> Array:
        return np.clip(arrays[0], low, high)

    def vjp(self, g: Node, output: Node, x: Node, *, low: float | None, high: float | None) -> Sequence[Node | None]:
        inside = [x >= low] if low is not None else []
        inside += [x <= high] if high is not None else []
        if not inside:
            return [g]
        return [where(inside[0] if len(inside) == 1 else inside[0] & inside[1], g, zeros_like(g))]


_clip = register(Clip())


@register_function
def clip(x: Any, a_min: Any = None, a_max: Any = None) -> Node:
    """x held between two bounds, as `numpy.clip`: numbers, None, or anything that broadcasts to x's shape."""
    node = as_node(x)
    bounds = [bound for bound in (a_min, a_max) if bound is not None]
    if not bounds:
        return node
    if all(type(bound) is int or (type(bound) is float and node.type.is_floating) for bound in bounds):
        return _clip(node, low=a_min, high=a_max)
    held = x if a_min is None else maximum(x, a_min)
    return held if a_max is None else minimum(held, a_max)
