"""What ops that work element by element have in common, and the plainest of them: choosing and passing on.

Users' operands broadcast; in the graph all inputs of a node have one shape. Closed under
vjp over `structure` and this file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from miai_graph.errors import ArgumentError, DTypeError, ShapeError
from miai_graph.messages import locates_errors
from miai_graph.node import Node, apply, functions
from miai_graph.op import Array, Op, as_node, elementwise_cost, no_derivative, register
from miai_graph.ops.casting import cast, promoted
from miai_graph.ops.structure import _broadcast_to, zeros_like
from miai_graph.placement import Placement, elementwise
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

    @locates_errors
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

    @locates_errors
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


where = named_as(Where())
identity = register(Identity())
stop_gradient = named_as(StopGradient())
