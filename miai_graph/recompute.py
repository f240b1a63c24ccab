"""Values that are computed again in the backward pass instead of being kept from the forward pass.

Nodes are dealt out to segments. Of a segment only what others read is kept, and what does not grow with the batch;
where the gradient needs another of its values, the segment is computed once more from what it reads, just before. So
memory is traded for work (Chen, Xu, Zhang and Guestrin 2016, "Training deep nets with sublinear memory cost").
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from miai_graph.context import FORWARD, RECOMPUTE, building_on_behalf_of
from miai_graph.errors import ArgumentError
from miai_graph.node import Node, apply
from miai_graph.op import constant
from miai_graph.ops.again import _again
from miai_graph.ops.leaves import is_variable
from miai_graph.ops.structure import BroadcastTo

SegmentOf = Callable[[Node], Hashable]
"""In which segment a node is computed again; None or False: its value is kept."""


def as_segments(recompute: Any, nodes: Sequence[Node]) -> SegmentOf:
    """What `grad` is told to compute again, as a function of nodes.

    Parameters
    ----------
    recompute : see `grad`
    nodes : those that the loss is computed from

    Raises
    ------
    ArgumentError
        for anything else, and for names of scopes that there are not.
    """
    if callable(recompute):
        return recompute
    parts = [recompute] if isinstance(recompute, str | Node) else list(recompute) if _is_list(recompute) else None
    if parts is not None and parts and all(isinstance(part, Node) for part in parts):
        chosen = set(parts)
        return chosen.__contains__
    if parts is None or not all(isinstance(name, str) for part in parts for name in as_group(part)):
        raise ArgumentError(
            f"expected names of layers, nodes, or a function of a node to recompute; found {recompute!r}"
        )
    return segments_of_scopes([as_group(part) for part in parts], nodes)


def as_group(part: Any) -> Sequence[Any]:
    """The names of what is computed again together."""
    return list(part) if _is_list(part) else [part]


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def segments_of_scopes(groups: Iterable[Sequence[str]], nodes: Iterable[Node]) -> SegmentOf:
    """A segment for each group of scopes: of what is computed together. Alone, each scope, and each call of its layer,
    is a segment of its own.

    Parameters
    ----------
    groups : names of scopes, or patterns of names with ``*`` and ``?``
    nodes : where these scopes are

    Raises
    ------
    ArgumentError
        for a name of no scope, with those that there are.
    """
    scopes = scopes_of(nodes)
    segments: dict[str, Hashable] = {}
    for number, group in enumerate(groups):
        for pattern in group:
            found = [scope for scope in scopes if fnmatchcase(scope, pattern)]
            if not found:
                raise ArgumentError(f"expected layers to recompute among {', '.join(scopes)}; found {pattern!r}")
            for scope in found:
                segments.setdefault(scope, number if len(group) > 1 else scope)

    def segment_of(node: Node) -> Hashable:
        if node.phase != FORWARD:
            return None
        found = next((segments[scope] for scope in enclosing(node.scope) if scope in segments), None)
        return (found, node.call) if isinstance(found, str) else found

    return segment_of


def scopes_of(nodes: Iterable[Node]) -> list[str]:
    """The scopes of the forward pass, with those around them, in the order in which they were built."""
    own = dict.fromkeys(node.scope for node in nodes if node.phase == FORWARD and node.inputs)
    return list(dict.fromkeys(scope for inner in own for scope in enclosing(inner)))


def enclosing(scope: str) -> list[str]:
    """A scope and those around it, the outermost first."""
    names = scope.split("/") if scope else []
    return ["/".join(names[: count + 1]) for count in range(len(names))]


class Recomputation:
    """What vector-Jacobian products see of the nodes that they are computed for.

    Parameters
    ----------
    nodes : those that the loss is computed from
    loss : whose value is kept
    segment_of : where each of them is computed again
    """

    def __init__(self, nodes: Sequence[Node], loss: Node, segment_of: SegmentOf) -> None:
        self._has_batch = any(node.type.batch_axes for node in nodes)
        self._segments: dict[Node, Hashable] = {}
        self._members: dict[Hashable, list[Node]] = {}
        for node in nodes:
            segment = segment_of(node)
            if segment is not None and segment is not False:
                self._segments[node] = segment
                self._members.setdefault(segment, []).extend([node] if self._can_be_repeated(node) else [])
        self._kept = {loss}
        for node in nodes:
            own = self._segments.get(node)
            self._kept.update(source for source in node.inputs if self._segments.get(source) != own)
        self._copies: dict[Node, Node] = {}
        self._seen: set[Hashable] = set()
        self._latest: Node | None = None

    def seen(self, node: Node, g: Node) -> tuple[Node, list[Node]]:
        """A node and its inputs as the gradient is to read them.

        Parameters
        ----------
        g : the cotangent of the node; the first of a segment is what computing it again waits for
        """
        if self._is_large(g) or self._latest is None:
            self._latest = g
        segment = self._segments.get(node)
        if segment is None:
            return node, list(node.inputs)
        if segment not in self._seen:
            self._seen.add(segment)
            self._repeat(self._members[segment], self._latest)
        return self._read(node), [self._read(source) for source in node.inputs]

    def _read(self, node: Node) -> Node:
        return node if node in self._kept else self._copies.get(node, node)

    def _is_large(self, node: Node) -> bool:
        """Whether it is worth while not to keep a value: whether it grows with the batch, where there is one."""
        return bool(node.type.batch_axes) or not self._has_batch

    def _is_view_of_small(self, node: Node) -> bool:
        return isinstance(node.op, BroadcastTo) and not self._is_large(node.inputs[0])

    def _can_be_repeated(self, node: Node) -> bool:
        return bool(node.inputs) and self._is_large(node) and not self._is_view_of_small(node)

    def _repeat(self, members: Sequence[Node], after: Node) -> None:
        """Copies of the nodes of a segment, in order. Those that nothing reads are in no graph."""
        marked: dict[Node, Node] = {}

        def mark(source: Node) -> Node:
            if source not in marked:
                with building_on_behalf_of(source, RECOMPUTE):
                    marked[source] = apply(_again, [source, after], None, f"{source.name}/again", exact_name=True)
            return marked[source]

        for node in members:
            inputs = [
                mark(source) if self._must_be_marked(source) else self._copies.get(source, source)
                for source in node.inputs
            ]
            if all(new is old for new, old in zip(inputs, node.inputs, strict=True)):
                inputs[0] = mark(inputs[0])
            with building_on_behalf_of(node, RECOMPUTE):
                self._copies[node] = apply(node.op, inputs, node.attributes, f"{node.name}/again", exact_name=True)

    def _must_be_marked(self, source: Node) -> bool:
        is_in_memory = source.op is constant or is_variable(source) or self._is_view_of_small(source)
        is_copied = source in self._copies and source not in self._kept
        return self._is_large(source) and not is_copied and not is_in_memory
