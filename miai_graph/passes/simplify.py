"""Say the same with fewer and smaller nodes: fold constants, share what is computed twice, compute before repeating.

Nodes that no output or update needs vanish by themselves: a graph is what its outputs are computed from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from miai_graph.context import building_on_behalf_of
from miai_graph.errors import ExecutionError
from miai_graph.graph import Graph, structure_key
from miai_graph.interpreter import evaluate_node
from miai_graph.node import Node, apply
from miai_graph.op import as_node, constant
from miai_graph.ops.arithmetic import multiply
from miai_graph.ops.casting import _cast
from miai_graph.ops.elementwise import ElementwiseOp, broadcast_together, identity
from miai_graph.ops.leaves import is_input, is_variable
from miai_graph.ops.parts import _each_part, _repeat_in_part, _sum_over_parts
from miai_graph.ops.structure import _broadcast_to, _reshape, _transpose
from miai_graph.passes.rewrite import Rule, rewrite, with_inputs
from miai_graph.passes.scaled_sums import scale_sums
from miai_graph.passes.transposed_products import transpose_products
from miai_graph.types import ElementCount, int_dims

FOLDED_ELEMENTS_LIMIT = 4096
"""Constants are not folded into larger ones than this, unless their inputs are as large."""


def simplify(graph: Graph) -> Graph:
    """The graph with all rules applied, until they have nothing more to say.

    Its outputs and updates are the same to rounding.
    """
    simplest = _Simplest()
    return rewrite(scale_sums(transpose_products(rewrite(graph, simplest))), simplest)


class _Simplest:
    """Called with a node, gives the simplest one that computes the same: one for all that compute the same.

    What it gave stays the simplest, so graphs of nodes that it knows already are soon done.
    """

    def __init__(self) -> None:
        self._known: dict[Node, Node] = {}
        self._shared: dict[Any, Node] = {}

    def __call__(self, node: Node) -> Node:
        found = self._known.get(node)
        if found is None:
            found = self._known[node] = self._find(node)
            self._known[found] = found
        return found

    def _find(self, node: Node) -> Node:
        # Of what a rule builds, no rule has seen the inputs yet.
        node = with_inputs(node, [self(source) for source in node.inputs])
        for rule in RULES:
            simpler = rule(node)
            if simpler is not None:
                return self(simpler)
        if is_input(node) or is_variable(node):
            return node
        return self._shared.setdefault(structure_key(node, node.inputs), node)


def fold_constants(node: Node) -> Node | None:
    """An op on constants, some of which may be repeated, is a constant; unless there are as many as parts to add up."""
    if node.op in (_broadcast_to, _sum_over_parts) or not any(source.op is constant for source in node.inputs):
        return None
    if not all(map(_is_constant, node.inputs)):
        return None
    count = ElementCount.of(node.type.shape)
    limit = max(FOLDED_ELEMENTS_LIMIT, *(source.type.size for source in node.inputs if source.op is constant))
    if count.power or count.factor > limit:
        return None
    try:
        value = np.ascontiguousarray(evaluate_node(node, [_constant_value(source) for source in node.inputs], 0))
    except ExecutionError:
        return None  # it fails when the graph runs, as it would without this rule
    with building_on_behalf_of(node, node.phase):
        return as_node(value.reshape(node.type.shape))


def _is_constant(node: Node) -> bool:
    """Whether it is a constant, or one that is repeated."""
    if node.op is constant:
        return True
    return node.op is _broadcast_to and node.inputs[0].op is constant and not node.type.batch_axes


def _constant_value(node: Node) -> Any:
    """What a constant is, repeated if it is to be."""
    if node.op is constant:
        return node.attributes["value"]
    return np.broadcast_to(node.inputs[0].attributes["value"], int_dims(node.type.shape))


def drop_multiplication_by_one(node: Node) -> Node | None:
    """x · 1 is x, also for nan and -0."""
    if node.op is not multiply:
        return None
    first, second = node.inputs
    if _is_one(second):
        return first
    return second if _is_one(first) else None


def _is_one(node: Node) -> bool:
    source = node.inputs[0] if node.op is _broadcast_to else node
    return source.op is constant and source.type.size == 1 and bool(source.attributes["value"].item() == 1)


def drop_changes_of_nothing(node: Node) -> Node | None:
    """Reshaping, transposing, repeating or casting to what it is already, and what is the identity once all gradients
    are taken."""
    if node.op in (identity, _each_part):
        return node.inputs[0]
    if node.op in (_reshape, _broadcast_to, _cast) and node.type == node.inputs[0].type:
        return node.inputs[0]
    if node.op is _transpose and node.attributes["axes"] == tuple(range(node.ndim)):
        return node.inputs[0]
    return None


def forget_for_whom_it_repeats(node: Node) -> Node | None:
    """Repeating in each part of the batch differs from any repeating in its gradient only."""
    if node.op is not _repeat_in_part:
        return None
    return _build(node, _broadcast_to, node.inputs, dict(node.attributes))


def join_reshapes(node: Node) -> Node | None:
    """Reshaping what was reshaped is reshaping once."""
    if node.op is not _reshape or node.inputs[0].op is not _reshape:
        return None
    return _build(node, _reshape, [node.inputs[0].inputs[0]], dict(node.attributes))


def join_transposes(node: Node) -> Node | None:
    """Transposing what was transposed is transposing once."""
    if node.op is not _transpose or node.inputs[0].op is not _transpose:
        return None
    inner = node.inputs[0]
    axes = tuple(inner.attributes["axes"][axis] for axis in node.attributes["axes"])
    return _build(node, _transpose, [inner.inputs[0]], {"axes": axes})


def join_broadcasts(node: Node) -> Node | None:
    """Repeating what was repeated is repeating once: both align axes at the end."""
    if node.op is not _broadcast_to or node.inputs[0].op is not _broadcast_to:
        return None
    return _build(node, _broadcast_to, [node.inputs[0].inputs[0]], dict(node.attributes))


def rearrange_before_repeating(node: Node) -> Node | None:
    """A repeated single number stays one when it is reshaped or transposed: repeat it to the final shape at once."""
    if node.op not in (_reshape, _transpose) or node.inputs[0].op is not _broadcast_to:
        return None
    source = node.inputs[0].inputs[0]
    if ElementCount.of(source.type.shape) != ElementCount(1, 0):
        return None
    scalar = _build(node, _reshape, [source], {"shape": ()}) if source.ndim else source
    return _build(node, _broadcast_to, [scalar], {"shape": node.type.shape})


def compute_before_repeating(node: Node) -> Node | None:
    """An element-wise op on inputs that are all repeated is done on what they repeat."""
    if not isinstance(node.op, ElementwiseOp) or not node.inputs:
        return None
    if any(source.op is not _broadcast_to for source in node.inputs):
        return None
    sources = [source.inputs[0] for source in node.inputs]
    with building_on_behalf_of(node, node.phase):
        small = broadcast_together(sources)
    if small[0].type.shape == node.type.shape:
        return None
    computed = _build(node, node.op, small, dict(node.attributes))
    return _build(node, _broadcast_to, [computed], {"shape": node.type.shape})


RULES: Sequence[Rule] = (
    drop_changes_of_nothing,
    forget_for_whom_it_repeats,
    fold_constants,
    drop_multiplication_by_one,
    join_reshapes,
    join_transposes,
    join_broadcasts,
    rearrange_before_repeating,
    compute_before_repeating,
)


def _build(origin: Node, op: Any, inputs: Sequence[Node], attributes: dict[str, Any]) -> Node:
    """A node on behalf of the one that it replaces."""
    with building_on_behalf_of(origin, origin.phase):
        return apply(op, inputs, attributes)
