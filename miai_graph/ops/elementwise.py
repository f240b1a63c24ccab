"""Ops that work element by element. Users' operands broadcast; in the graph all inputs of a node have one shape.

Closed under vjp over `structure` and this file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from miai_graph.errors import ArgumentError, DTypeError, ShapeError
from miai_graph.node import Node, apply, functions
from miai_graph.op import Array, Op, as_node, elementwise_cost, no_derivative, register, register_function
from miai_graph.ops.structure import _broadcast_to, cast, promoted, zeros_like
from miai_graph.placement import Partial, Placement, bilinear, elementwise, linear
from miai_graph.types import TensorType, broadcast_shapes

BOOL = np.dtype(bool)


def broadcast_together(nodes: Sequence[Node]) -> list[Node]:
    """The nodes repeated to their common shape, by `broadcast_to` nodes where needed."""
    shapes = [node.type.shape for node in nodes]
    if all(shape == shapes[0] for shape in shapes):
        return list(nodes)
    target = broadcast_shapes(*shapes)
    return [node if node.type.shape == target else _broadcast_to(node, shape=target) for node in nodes]


class ElementwiseOp(Op):
    """What ops that work element by element have in common.

    ``accepts`` says which dtypes are worked on as they are, ``arity`` how many inputs there are, and ``function`` is
    NumPy's that computes it.
    """

    accepts = "fiu"
    arity = 1
    attribute_names: tuple[str, ...] = ()
    function: Callable[..., Array]
    result_dtype: np.dtype[Any] | None = None

    def __call__(self, *inputs: Any, name: str | None = None, **attributes: Any) -> Node:
        self._check_call(inputs, attributes)
        nodes = [self._admit(node) for node in promoted(inputs)]
        # infer says it again, with the inputs' lines
        with suppress(ShapeError):
            nodes = broadcast_together(nodes)
        return apply(self, nodes, attributes, name)

    def _check_call(self, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> None:
        unknown = [name for name in attributes if name not in self.attribute_names]
        if len(inputs) != self.arity or unknown:
            raise ArgumentError(
                f"{self.name}: expected {self.arity} inputs and no other arguments; found {len(inputs)} inputs"
                + (f" and {', '.join(unknown)}" if unknown else "")
            )

    def _admit(self, node: Node) -> Node:
        """Cast integers to float, as NumPy does, for functions such as exp that are not closed over integers."""
        if node.dtype.kind in self.accepts:
            return node
        if self.accepts == "f" and node.dtype.kind in "iu":
            return cast(node, np.float64)
        if self.accepts == "f" and node.dtype == BOOL:
            return cast(node, np.float32)
        raise DTypeError(f"{self.name}: expected numbers; found {node.type} {node.name}")

    def infer(self, *types: TensorType, **_: Any) -> TensorType:
        first = types[0]
        for other in types[1:]:
            if other.shape != first.shape:
                broadcast_shapes(first.shape, other.shape)
                raise ShapeError(f"expected inputs of one shape; found {first} and {other}")
            if other.dtype != first.dtype:
                raise DTypeError(f"expected inputs of one dtype; found {first} and {other}")
        if first.dtype.kind not in self.accepts:
            raise DTypeError(f"expected dtypes of kind {self.accepts}; found {first}")
        return first if self.result_dtype is None else first.with_dtype(self.result_dtype)

    def forward(self, *arrays: Array, **_: Any) -> Array:
        return np.asarray(type(self).function(*arrays))

    cost = elementwise_cost(1)
    batch = staticmethod(elementwise)


def named_as(op: ElementwiseOp, *names: str) -> ElementwiseOp:
    """Register the op, and let operators and NumPy's functions of these names build it."""
    for name in (op.name, *names):
        functions[name] = op
    return register(op)


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


class Where(ElementwiseOp):
    """Choice by element: y = a where the condition holds, else b.

    Shapes: condition (bool), a and b broadcast together; y their common shape and a's and b's common dtype.
    Gradient: da = g where the condition holds, else 0; db the other way round.
    Cost: one flop an element.
    Batch: element-wise.
    Care: both branches are computed; where one gives nan, guard its input, or the gradient is nan.
    """

    name = "where"
    arity = 3

    def __call__(self, *inputs: Any, name: str | None = None, **attributes: Any) -> Node:
        self._check_call(inputs, attributes)
        condition, a, b = inputs
        test = as_node(condition)
        choices = promoted([a, b])
        nodes = [cast(test, bool), *choices]
        with suppress(ShapeError):
            nodes = broadcast_together(nodes)
        return apply(self, nodes, {}, name)

    def infer(self, *types: TensorType, **_: Any) -> TensorType:
        condition, a, b = types
        if condition.dtype != BOOL or a.dtype != b.dtype or not condition.shape == a.shape == b.shape:
            raise ShapeError(f"expected bool and two of one type, of one shape; found {condition}, {a}, {b}")
        return a

    def forward(self, *arrays: Array, **_: Any) -> Array:
        return np.where(*arrays)

    def vjp(self, g: Node, output: Node, condition: Node, a: Node, b: Node) -> Sequence[Node | None]:
        zero = zeros_like(g)
        return [None, where(condition, g, zero), where(condition, zero, g)]


class Comparison(ElementwiseOp):
    """What comparisons have in common: a bool for each pair of elements."""

    accepts = "fiub"
    result_dtype = BOOL
    vjp = no_derivative


class Equal(Comparison):
    """Whether two are equal: y = (a == b).

    Shapes: a and b broadcast together; y their common shape, bool.
    Gradient: zero.
    Cost: one flop an element.
    Batch: element-wise.
    Care: nan equals nothing.
    """

    name = "equal"
    arity = 2
    function = np.equal


class NotEqual(Comparison):
    """Whether two differ: y = (a != b).

    Shapes: a and b broadcast together; y their common shape, bool.
    Gradient: zero.
    Cost: one flop an element.
    Batch: element-wise.
    """

    name = "not_equal"
    arity = 2
    function = np.not_equal


class Less(Comparison):
    """Whether a is less than b: y = (a < b).

    Shapes: a and b broadcast together; y their common shape, bool.
    Gradient: zero.
    Cost: one flop an element.
    Batch: element-wise.
    """

    name = "less"
    arity = 2
    function = np.less


class LessEqual(Comparison):
    """Whether a is at most b: y = (a <= b).

    Shapes: a and b broadcast together; y their common shape, bool.
    Gradient: zero.
    Cost: one flop an element.
    Batch: element-wise.
    """

    name = "less_equal"
    arity = 2
    function = np.less_equal


class Greater(Comparison):
    """Whether a is greater than b: y = (a > b).

    Shapes: a and b broadcast together; y their common shape, bool.
    Gradient: zero.
    Cost: one flop an element.
    Batch: element-wise.
    """

    name = "greater"
    arity = 2
    function = np.greater


class GreaterEqual(Comparison):
    """Whether a is at least b: y = (a >= b).

    Shapes: a and b broadcast together; y their common shape, bool.
    Gradient: zero.
    Cost: one flop an element.
    Batch: element-wise.
    """

    name = "greater_equal"
    arity = 2
    function = np.greater_equal


class LogicalAnd(Comparison):
    """Whether both hold: y = a and b; numbers hold if they are not 0.

    Shapes: a and b broadcast together; y their common shape, bool.
    Gradient: zero.
    Cost: one flop an element.
    Batch: element-wise.
    """

    name = "logical_and"
    arity = 2
    function = np.logical_and


class LogicalOr(Comparison):
    """Whether one or both hold: y = a or b; numbers hold if they are not 0.

    Shapes: a and b broadcast together; y their common shape, bool.
    Gradient: zero.
    Cost: one flop an element.
    Batch: element-wise.
    """

    name = "logical_or"
    arity = 2
    function = np.logical_or


class LogicalNot(Comparison):
    """Whether it does not hold: y = not x; numbers hold if they are not 0.

    Shapes: x any; y the same, bool.
    Gradient: zero.
    Cost: one flop an element.
    Batch: element-wise.
    """

    name = "logical_not"
    function = np.logical_not


class IsFinite(Comparison):
    """Whether x is a number other than inf, -inf and nan.

    Shapes: x any; y the same, bool.
    Gradient: zero.
    Cost: one flop an element.
    Batch: element-wise.
    """

    name = "isfinite"
    function = np.isfinite


class Identity(ElementwiseOp):
    """x itself: y = x. Marks a place in the graph, such as the output of a layer that does nothing.

    Shapes: x any; y the same.
    Gradient: dx = g.
    Cost: nothing.
    Batch: passes, sums still owed too.
    """

    name = "identity"
    accepts = "fiub"
    is_view = True
    cost = elementwise_cost(0)

    def forward(self, *arrays: Array, **_: Any) -> Array:
        return arrays[0]

    def vjp(self, g: Node, output: Node, x: Node) -> Sequence[Node | None]:
        return [g]

    def batch(self, placements: Sequence[Placement], output: TensorType, *_: TensorType) -> Placement | None:
        return placements[0]


class StopGradient(ElementwiseOp):
    """x itself, as a constant to differentiation: y = x.

    Shapes: x any; y the same.
    Gradient: zero.
    Cost: nothing.
    Batch: passes, sums still owed too.
    """

    name = "stop_gradient"
    accepts = "fiub"
    is_view = True
    vjp = no_derivative
    cost = elementwise_cost(0)

    def forward(self, *arrays: Array, **_: Any) -> Array:
        return arrays[0]

    def batch(self, placements: Sequence[Placement], output: TensorType, *_: TensorType) -> Placement | None:
        return placements[0]


add = named_as(Add())
subtract = named_as(Subtract())
multiply = named_as(Multiply())
divide = named_as(Divide(), "true_divide")
power = named_as(Power(), "pow")
negative = named_as(Negative())
absolute = named_as(Absolute(), "abs")
sign = named_as(Sign())
exp = named_as(Exp())
log = named_as(Log())
sqrt = named_as(Sqrt())
rsqrt = named_as(Rsqrt())
square = named_as(Square())
tanh = named_as(Tanh())
sigmoid = named_as(Sigmoid())
relu = named_as(Relu())
relu_gradient = register(ReluGradient())
maximum = named_as(Maximum())
minimum = named_as(Minimum())
where = named_as(Where())
equal = named_as(Equal())
not_equal = named_as(NotEqual())
less = named_as(Less())
less_equal = named_as(LessEqual())
greater = named_as(Greater())
greater_equal = named_as(GreaterEqual())
logical_and = named_as(LogicalAnd())
logical_or = named_as(LogicalOr())
logical_not = named_as(LogicalNot())
isfinite = named_as(IsFinite())
identity = register(Identity())
stop_gradient = named_as(StopGradient())


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
