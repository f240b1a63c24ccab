"""Comparisons and logic, element by element: a bool for each pair. Their derivatives are zero."""

from __future__ import annotations

import numpy as np

from miai_graph.op import no_derivative
from miai_graph.ops.elementwise import BOOL, ElementwiseOp, named_as


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
