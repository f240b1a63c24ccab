"""Which pieces of a graph come again and again: layers of a training step, forward and backward, and their updates."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from miai_graph.graph import Graph
from miai_graph.node import Node
from miai_graph.ops.leaves import is_input, is_variable
from miai_graph.views.columns import BACKWARD_COLUMN, FORWARD_COLUMN, columns_of
from miai_graph.views.folding import Piece
from miai_graph.views.repeats import Run, folded_runs

MOST_PIECES = 24
"""Larger drawings of layers have repeats folded, unless the caller says otherwise, and no lines that hide all else."""

_LEAST_TIMES_BESIDE = 3
_NUMBERS_OF_DRAWS = frozenset({"seed", "stream"})
"""Attributes in which random ops that look alike differ."""

Pair = tuple[int, int]


@dataclass(frozen=True)
class Repeat:
    """Blocks of pieces that look alike, by their numbers.

    copies : for each block, its pieces; those at one place of their blocks look alike
    """

    copies: Sequence[Sequence[int]]

    @property
    def times(self) -> int:
        """How many blocks there are."""
        return len(self.copies)

    @property
    def members(self) -> list[int]:
        """All pieces, in order."""
        return [number for copy in self.copies for number in copy]


@dataclass(frozen=True)
class _Unit:
    """A piece, as `folded_runs` needs it."""

    key: int
    kind: Hashable
    is_output: bool


def links_between(graph: Graph, pieces: Sequence[Piece]) -> list[Pair]:
    """Which pieces need which others, by their numbers."""
    return _links(graph, pieces, graph.nodes)


def carrying_links(graph: Graph, pieces: Sequence[Piece]) -> list[Pair]:
    """The same without those along which a layer shares only its constants with others, and numbers of the run."""
    carrying = _carrying(graph)
    constant = [node for piece in pieces if carrying.isdisjoint(piece.nodes) for node in piece.nodes]
    return _links(graph, pieces, carrying.union(constant))


def repeats_of(graph: Graph, pieces: Sequence[Piece]) -> list[Repeat]:
    """The blocks that occur several times one after another, within forward and within backward; and beside each other.

    Layers are alike if all they do is: forward, backward, and updates. Drawn once, they still make a graph without
    cycles. What does not depend on inputs and variables, such as a constant that many layers share, links nothing.
    """
    carrying = _carrying(graph)
    links = _links(graph, pieces, carrying)
    columns = columns_of(pieces, links_between(graph, pieces))
    units = _units(graph, pieces, carrying)
    found: list[Repeat] = []
    for column in (FORWARD_COLUMN, BACKWARD_COLUMN):
        found += _repeats_in_chain([unit for unit in units if columns[unit.key] == column], links)
    found += _repeats_beside(units, links, found, columns)
    folded = [repeat.members for repeat in found]
    return found if _is_acyclic(joined_links(links_between(graph, pieces), folded)) else []


def outermost_names(pieces: Sequence[Piece]) -> list[str]:
    """The layers of the first piece and of the last, in the order of forward: one if that is the same; none for ""."""
    ordered = sorted(pieces, key=lambda piece: max(node.origin for node in piece.nodes))
    scopes = [piece.scope for piece in ordered if piece.scope]
    return list(dict.fromkeys((*scopes[:1], *scopes[-1:])))


def joined_links(links: Sequence[Pair], groups: Sequence[Collection[int]]) -> list[Pair]:
    """The links that are left if all of a group have the number of its first."""
    first = {number: min(group) for group in groups for number in group}
    joined = ((first.get(source, source), first.get(target, target)) for source, target in links)
    return [(source, target) for source, target in dict.fromkeys(joined) if source != target]


def _links(graph: Graph, pieces: Sequence[Piece], sources: Collection[Node]) -> list[Pair]:
    piece_of = {node: number for number, piece in enumerate(pieces) for node in piece.nodes}
    wanted = set(sources)
    links = dict.fromkeys(
        (piece_of[source], piece_of[node]) for node in graph.nodes for source in node.inputs if source in wanted
    )
    return [(source, target) for source, target in links if source != target]


def _carrying(graph: Graph) -> set[Node]:
    """The nodes that depend on what is fed, or on variables."""
    found: set[Node] = set()
    for node in graph.nodes:
        if is_input(node) or is_variable(node) or any(source in found for source in node.inputs):
            found.add(node)
    return found


# What looks alike


def _units(graph: Graph, pieces: Sequence[Piece], carrying: Collection[Node]) -> list[_Unit]:
    """The pieces in an order in which links lead on."""
    import networkx

    looks = _Looks(carrying)
    own = [looks.of_piece(piece) for piece in pieces]
    by_scope: dict[str, list[Hashable]] = defaultdict(list)
    for piece, look in zip(pieces, own, strict=True):
        if piece.scope:
            by_scope[piece.scope].append((piece.phase, look))
    outputs = set(graph.outputs)
    ordered = networkx.DiGraph(links_between(graph, pieces))
    ordered.add_nodes_from(range(len(pieces)))
    return [
        _Unit(
            number,
            None if any(map(is_input, piece.nodes)) else (piece.phase, own[number], tuple(by_scope[piece.scope])),
            any(node in outputs for node in piece.nodes),
        )
        for number in networkx.lexicographical_topological_sort(ordered, key=lambda n: pieces[n].nodes[-1].index)
        for piece in [pieces[number]]
    ]


class _Looks:
    """What pieces have in common that look alike: ops, types and attributes, and how they are linked."""

    def __init__(self, carrying: Collection[Node]) -> None:
        self._carrying = carrying
        self._numbers: dict[Hashable, int] = {}
        self._of_others: dict[Node, int] = {}

    def of_piece(self, piece: Piece) -> Hashable:
        """A constant that layers share is within one of them only: it counts where it is used."""
        nodes = [node for node in piece.nodes if node in self._carrying]
        places = {node: place for place, node in enumerate(nodes)}
        return tuple((*_look(node), tuple(self._of_source(source, places) for source in node.inputs)) for node in nodes)

    def _of_source(self, source: Node, places: Mapping[Node, int]) -> Hashable:
        if source in places:
            return places[source]
        return str(source.type) if source in self._carrying else ("computed", self._of_other(source))

    def _of_other(self, node: Node) -> int:
        """A number that two nodes share if they are computed alike, from nothing."""
        if node not in self._of_others:
            look = (*_look(node), tuple(map(self._of_other, node.inputs)))
            self._of_others[node] = self._numbers.setdefault(look, len(self._numbers))
        return self._of_others[node]


def _look(node: Node) -> tuple[str, str, Hashable]:
    is_named = is_input(node) or is_variable(node)
    attributes = () if is_named else tuple(sorted((key, _readable(value)) for key, value in node.attributes.items()))
    return node.op.name, str(node.type), tuple(pair for pair in attributes if pair[0] not in _NUMBERS_OF_DRAWS)


def _readable(value: Any) -> str:
    return f"{value.dtype} {value.tolist()}" if isinstance(value, np.ndarray) else repr(value)


# Where they repeat


def _repeats_in_chain(units: Sequence[_Unit], links: Sequence[Pair]) -> list[Repeat]:
    """The blocks of one column.

    What needs nothing is no part of the chain, such as a variable; what several need of that tells them from others.
    """
    keys = {unit.key for unit in units}
    within = [link for link in links if keys.issuperset(link)]
    users = Counter(source for source, _ in within)
    starts = keys - {target for _, target in within}
    shared: dict[int, list[int]] = defaultdict(list)
    for source, target in within:
        if source in starts and users[source] > 1:
            shared[target].append(source)
    chained = [
        unit if unit.kind is None else replace(unit, kind=(unit.kind, tuple(shared[unit.key])))
        for unit in units
        if unit.key not in starts or not users[unit.key]
    ]
    runs = folded_runs(chained, [link for link in within if link[0] not in starts])
    return [Repeat(copies) for copies in _copies(runs)]


def _copies(runs: Sequence[Run[_Unit]]) -> list[list[list[int]]]:
    """For each repeat its copies, whether it is a chain in one run or a block in several."""
    blocks: dict[Hashable, list[list[int]]] = {}
    for number, run in enumerate(runs):
        if run.times > 1:
            key = ("run", number) if run.block is None else run.block
            copies = blocks.setdefault(key, [[] for _ in range(run.times)])
            length = len(run.pattern)
            for place, unit in enumerate(run.units):
                copies[place // length].append(unit.key)
    return list(blocks.values())


def _repeats_beside(
    units: Sequence[_Unit], links: Sequence[Pair], found: Sequence[Repeat], columns: Sequence[int]
) -> list[Repeat]:
    """Pieces that look alike, need the same, and are needed by the same; where the blocks found are taken as one."""
    place_of = {
        number: (repeat, place)
        for repeat, blocks in enumerate(found)
        for copy in blocks.copies
        for place, number in enumerate(copy)
    }
    sources: dict[int, set[Hashable]] = defaultdict(set)
    targets: dict[int, set[Hashable]] = defaultdict(set)
    for source, target in links:
        sources[target].add(place_of.get(source, source))
        targets[source].add(place_of.get(target, target))
    alike: dict[Hashable, list[int]] = defaultdict(list)
    for unit in units:
        key = unit.key
        if unit.kind is not None and key not in place_of:
            near = frozenset(sources[key]), frozenset(targets[key])
            alike[unit.kind, unit.is_output, columns[key], near].append(key)
    return [Repeat([[number] for number in own]) for own in alike.values() if len(own) >= _LEAST_TIMES_BESIDE]


def _is_acyclic(links: Sequence[Pair]) -> bool:
    import networkx

    return bool(networkx.is_directed_acyclic_graph(networkx.DiGraph(links)))
