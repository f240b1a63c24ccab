"""Values of the forward pass that are computed a second time for the backward pass, instead of being kept until then.

What a normalization makes of a large value costs next to nothing to make again, while that value is kept for the
backward pass anyway: x and relu(a · x + b) need not both be in memory all the time.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Sequence

from miai_graph.context import BACKWARD, FORWARD
from miai_graph.graph import Graph
from miai_graph.node import Node, derive, reapply
from miai_graph.ops.elementwise import ElementwiseOp
from miai_graph.ops.leaves import is_input, is_variable
from miai_graph.passes.rewrite import with_inputs, with_replaced
from miai_graph.types import ElementCount

CHEAP = {"add", "subtract", "multiply", "negative", "square", "relu"}

MOST_OPERATIONS = 6
"""That are done again for one value."""


def compute_again(graph: Graph) -> Graph:
    """The graph in which such values are computed by nodes of the backward pass for those who read them there."""
    found = _Found(graph)
    if not found.recipes:
        return graph
    replaced: dict[Node, Node] = {}
    again = _Again(found, replaced)
    for node in graph.nodes:
        inputs = [again.of(source, node) if node.phase == BACKWARD else replaced[source] for source in node.inputs]
        is_leaf = is_input(node) or is_variable(node)
        # All nodes behind the first new one are built anew: they stand in the order in which they were built.
        replaced[node] = reapply(node, inputs) if again.has_begun and not is_leaf else with_inputs(node, inputs)
    return with_replaced(graph, replaced)


class _Found:
    """The values of a graph that are to be computed again.

    Attributes
    ----------
    recipes : for each of them what computes it from what is kept, in order
    joining : who alone in the backward pass goes over its elements, if anybody does
    """

    def __init__(self, graph: Graph) -> None:
        self._places = {node: place for place, node in enumerate(graph.nodes)}
        self._readers: dict[Node, list[Node]] = {node: [] for node in graph.nodes}
        for node in graph.nodes:
            for source in dict.fromkeys(node.inputs):
                self._readers[source].append(node)
        self._stays = {*graph.outputs, *graph.updates.values()}
        self._cheaply_made = {node for node in graph.nodes if _is_cheaply_made(node)}
        self._needed_until: dict[Node, int] = {}
        for node in reversed(graph.nodes):
            self._needed_until[node] = self._last_need(node)
        self.recipes: dict[Node, Sequence[Node]] = {}
        self.joining: dict[Node, Node] = {}
        for node in graph.nodes:
            recipe = self._recipe(node)
            if recipe is not None:
                self.recipes[node] = recipe
                readers = [reader for reader in self._readers[node] if _goes_over_elements(reader)]
                if len(readers) == 1:
                    self.joining[node] = readers[0]

    def _last_need(self, node: Node) -> int:
        """The place of the last who needs the value: to read it, or to compute again what is cheap to compute."""
        return max(
            (
                (self._needed_until if reader.op.is_view or reader in self._cheaply_made else self._places)[reader]
                for reader in self._readers[node]
            ),
            default=self._places[node],
        )

    def _recipe(self, node: Node) -> Sequence[Node] | None:
        if node.phase != FORWARD or not node.type.batch_axes or node not in self._cheaply_made or node in self._stays:
            return None
        if not self._is_read_backward(node):
            return None
        recipe: list[Node] = []
        value = node
        while value.phase == FORWARD and value in self._cheaply_made:
            recipe += [value, *(source for source in dict.fromkeys(value.inputs) if _is_made_of_small(source, value))]
            (value,) = _large_inputs(value)
        is_kept = self._needed_until[value] > self._needed_until[node] or value in self._stays
        return recipe[::-1] if is_kept and 0 < len(recipe) <= MOST_OPERATIONS else None

    def _is_read_backward(self, node: Node) -> bool:
        """Whether anything but what goes over its elements reads the value in the backward pass."""
        return any(
            self._is_read_backward(reader)
            if reader.op.is_view and reader.phase == FORWARD
            else reader.phase == BACKWARD and not _goes_over_elements(reader)
            for reader in self._readers[node]
        )


class _Again:
    """Builds nodes that compute values a second time: once for the one who goes over the elements, if there is one, of
    whose kernel they become a part, and once for all others.

    Parameters
    ----------
    replaced : the node that stands for each so far

    Attributes
    ----------
    has_begun : whether there is any such node yet
    """

    def __init__(self, found: _Found, replaced: dict[Node, Node]) -> None:
        self.has_begun = False
        self._recipes, self._joining = found.recipes, found.joining
        self._replaced = replaced
        self._built: dict[tuple[Node, bool], Node] = {}

    def of(self, node: Node, reader: Node) -> Node:
        """What stands for a value, or a view of it, for a reader in the backward pass."""
        if node.op.is_view and node.phase == FORWARD:
            inner = self.of(node.inputs[0], node)
            return self._replaced[node] if inner is self._replaced[node.inputs[0]] else self._view(node, inner)
        if node not in self._recipes:
            return self._replaced[node]
        joins = self._joining.get(node) is reader
        if (node, joins) not in self._built:
            self.has_begun = True
            new = ChainMap[Node, Node]({}, self._replaced)
            for member in self._recipes[node]:
                new[member] = _in_backward_pass(member, [new[source] for source in member.inputs])
            self._built[node, joins] = new[node]
        return self._built[node, joins]

    def _view(self, node: Node, inner: Node) -> Node:
        if (node, False) not in self._built:
            self._built[node, False] = _in_backward_pass(node, [inner, *node.inputs[1:]])
        return self._built[node, False]


def _in_backward_pass(node: Node, inputs: Sequence[Node]) -> Node:
    return derive(node, node.op, inputs, node.attributes, BACKWARD)


def _goes_over_elements(node: Node) -> bool:
    return node.phase == BACKWARD and isinstance(node.op, ElementwiseOp)


def _is_cheaply_made(node: Node) -> bool:
    """Whether it takes no more than to go over the elements of one large value."""
    return node.op.name in CHEAP and node.dtype.kind == "f" and len(_large_inputs(node)) == 1


def _large_inputs(node: Node) -> set[Node]:
    """Those that are not repeated along axes of the node's, nor made of nothing else."""
    return {source for source in node.inputs if not _is_small(source, node) and not _is_made_of_small(source, node)}


def _is_made_of_small(source: Node, node: Node) -> bool:
    """Whether it is as cheap to make as to read: of what is repeated along axes of the node's alone."""
    if _is_small(source, node) or source.op.name not in CHEAP or source.phase != FORWARD:
        return False
    return all(_is_small(each, node) for each in source.inputs)


def _is_small(source: Node, node: Node) -> bool:
    while source.op.name in ("broadcast_to", "reshape"):
        source = source.inputs[0]
    if source.type.shape == node.type.shape:
        return False
    own, other = (ElementCount.of(each.type.shape) for each in (source, node))
    return own.power < other.power or (own.power == other.power and 2 * own.factor <= other.factor)
