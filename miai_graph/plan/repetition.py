"""Values that are cheaper to compute again than to keep: what one kernel would write for others to read.

A sum or product of one large value and of numbers that are repeated along its axes costs nothing while the large value
is read. If all who read it go over the same elements, they compute it themselves, and read the large value instead.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from miai_graph.context import UPDATE
from miai_graph.node import Node
from miai_graph.plan.uses import Use
from miai_graph.types import ElementCount

CHEAP = {"add", "subtract", "multiply", "negative", "square"}

MOST_REPEATED = 4
"""Operations that are done again for one value."""


@dataclass(frozen=True)
class Share:
    """What one kernel computes.

    Attributes
    ----------
    nodes : in order
    results : those of them that it writes
    repeated : those of them that an earlier kernel computes too
    """

    nodes: Sequence[Node]
    results: Sequence[Node]
    repeated: frozenset[Node]


def with_repetition(
    chains: Iterable[Sequence[Node]],
    uses: Mapping[Node, Sequence[Use]],
    roots: Mapping[Node, Node],
    is_stored: Callable[[Node], bool],
    iterations: Mapping[Node, Hashable],
    most_nodes: int,
) -> list[Share]:
    """The chains, some of them with nodes that are computed by others too, or instead.

    Parameters
    ----------
    uses, roots : of each step; see `uses_of` and `Program`
    is_stored : whether a node's value must be in memory whoever reads it
    iterations : of each step; nodes for which they differ are not computed together
    most_nodes : in a chain
    """
    repetition = _Repetition(chains, uses, roots, is_stored, iterations, most_nodes)
    repetition.leave_to_readers()
    return repetition.shares()


class _Repetition:
    """Chains are known by their numbers, in the order in which they are computed."""

    def __init__(
        self,
        chains: Iterable[Sequence[Node]],
        uses: Mapping[Node, Sequence[Use]],
        roots: Mapping[Node, Node],
        is_stored: Callable[[Node], bool],
        iterations: Mapping[Node, Hashable],
        most_nodes: int,
    ) -> None:
        self._places = {node: place for place, node in enumerate(uses)}
        self._chains = [set(nodes) for nodes in sorted(chains, key=lambda nodes: self._places[nodes[-1]])]
        self._uses, self._roots = uses, roots
        self._is_stored, self._iterations, self._most_nodes = is_stored, iterations, most_nodes
        self._holders: dict[Node, list[int]] = {}
        """The chains that each node is in."""
        for number, nodes in enumerate(self._chains):
            self._holders.update((node, [number]) for node in nodes)

    def _ordered(self, nodes: Iterable[Node]) -> list[Node]:
        return sorted(nodes, key=self._places.__getitem__)

    def shares(self) -> list[Share]:
        """What each chain has come to."""
        result = []
        for number, nodes in enumerate(map(self._ordered, self._chains)):
            results = [node for node in nodes if self._is_result(node, number)]
            repeated = frozenset(node for node in nodes if min(self._holders[node]) != number)
            result.append(Share(nodes, results, repeated))
        return [share for share in result if share.results]

    def leave_to_readers(self) -> None:
        """Have values computed by the chains that read them, where all who do can."""
        for number, chain in enumerate(self._chains):
            for node in self._ordered(node for node in chain if node.op.name in CHEAP):
                readers = self._readers(node, number)
                recipe = self._recipe(node, number) if readers else None
                if recipe is None or any(len(self._chains[reader] | recipe) > self._most_nodes for reader in readers):
                    continue
                for reader in readers:
                    for member in recipe - self._chains[reader]:
                        self._holders[member].append(reader)
                    self._chains[reader] |= recipe
                self._drop(node, number)

    def _readers(self, node: Node, number: int) -> set[int]:
        """The other chains that read a value; none if anything else does."""
        if node.phase == UPDATE or self._is_stored(node) or self._holders[node] != [number]:
            return set()
        readers: set[int] = set()
        for use in self._uses[node]:
            if use.reader not in self._holders or use.reader.phase == UPDATE:
                return set()
            if self._iterations[use.reader] != self._iterations[node]:
                return set()
            readers.update(self._holders[use.reader])
        return readers - {number}

    def _recipe(self, node: Node, number: int) -> set[Node] | None:
        """What computes the value from what is in memory anyway; None where that would cost more than reading it."""
        recipe: set[Node] = set()
        large: set[Node] = set()
        waiting = [node]
        while waiting:
            member = waiting.pop()
            if member.op.name not in CHEAP or len(recipe) == MOST_REPEATED:
                return None
            recipe.add(member)
            for source in member.inputs:
                if source in self._chains[number] and not self._is_result(source, number):
                    waiting.append(source)
                elif not self._is_small(source, node):
                    large.add(source)
        return recipe if len(large) < 2 and all(source.dtype == node.dtype for source in large) else None

    def _is_result(self, node: Node, number: int) -> bool:
        """Whether a chain writes the value: others read it who do not compute it themselves."""
        if min(self._holders[node]) != number:
            return False
        return self._is_stored(node) or any(not self._computes_itself(use.reader, node) for use in self._uses[node])

    def _computes_itself(self, reader: Node | None, node: Node) -> bool:
        """Whether a reader of a value is computed by chains alone that compute the value too."""
        return reader in self._holders and set(self._holders[reader]) <= set(self._holders[node])

    def _is_small(self, source: Node, node: Node) -> bool:
        """Whether little memory is read where a value is, compared to a node's."""
        own, other = (ElementCount.of(each.type.shape) for each in (self._roots[source], node))
        return own.power < other.power or (own.power == other.power and 2 * own.factor <= other.factor)

    def _drop(self, node: Node, number: int) -> None:
        """Take a node out of a chain that does not read it, and what is computed for it alone."""
        chain, waiting = self._chains[number], [node]
        while waiting:
            member = waiting.pop()
            if member not in chain or any(use.reader in chain for use in self._uses[member]):
                continue
            if not self._is_result(member, number):
                chain.remove(member)
                self._holders[member].remove(number)
                waiting += member.inputs
