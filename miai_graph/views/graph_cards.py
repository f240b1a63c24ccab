"""The cards of a graph's picture: what stands on them, and in which colours."""

from __future__ import annotations

from collections.abc import Sequence

from miai_graph.context import BACKWARD, FORWARD, RECOMPUTE, UPDATE
from miai_graph.graph import Graph, format_attribute
from miai_graph.node import Node
from miai_graph.ops.leaves import RUN_NUMBERS, is_input, is_variable
from miai_graph.views import style
from miai_graph.views.canvas import NAME_SIZE, Card, Line, Sample
from miai_graph.views.folding import Piece, outer_scope
from miai_graph.views.graph_repeats import outermost_names
from miai_graph.views.palette import palette

INPUT, VARIABLE, SMALL = "input", "variable", "constant or view"

_LONGEST_NAME = 34


class CardMaker:
    """Makes the cards of one graph's pieces."""

    def __init__(self, graph: Graph, by_layer: bool) -> None:
        self.by_layer = by_layer
        self.names = graph.names
        self.outputs = set(graph.outputs)
        self.updated: dict[Node, list[str]] = {}
        for variable, value in graph.updates.items():
            self.updated.setdefault(value, []).append(self.names[variable])
        scopes = {outer_scope(node.scope) for node in graph.nodes if node.scope}
        self.outlined = scopes if not by_layer else set()

    def card(self, key: int, pieces: Sequence[Piece], column: int) -> Card:
        """The card of a piece, or of several that look alike, in the colours of their kind."""
        first = pieces[0]
        kind = kind_of(first, self.by_layer)
        alone = not self.by_layer or kind in (INPUT, VARIABLE) or (len(first.nodes) == 1 and not first.scope)
        lines = self._node_lines(first.nodes[0]) if alone else self._layer_lines(pieces)
        fill, frame = _colours(first, kind)
        lines += self._update_lines(pieces)
        is_output = any(node in self.outputs for piece in pieces for node in piece.nodes)
        scope = outer_scope(first.nodes[0].scope)
        return Card(
            key,
            lines,
            fill,
            frame,
            frame_width=2.2 if is_output else 0.9,
            badge=f"×{len(pieces)}" if len(pieces) > 1 else "",
            column=column,
            group=scope if scope in self.outlined else None,
        )

    def _node_lines(self, node: Node) -> list[Line]:
        name, type = self.names[node], str(node.type)
        title = style.shortened(name, _LONGEST_NAME)
        if is_input(node) or is_variable(node):
            return [Line(title, NAME_SIZE, bold=True), Line(type, colour=palette().faint_text)]
        if node.op.name == "constant":
            return [Line(f"{_value(node)} {type}", colour=palette().faint_text)]
        if is_small(node):
            return [Line(f"{node.op.name} {type}", colour=palette().faint_text)]
        naming = [] if name == node.op.name else [Line(title)]
        return [Line(node.op.name, NAME_SIZE, bold=True), *naming, Line(type, colour=palette().faint_text)]

    def _layer_lines(self, pieces: Sequence[Piece]) -> list[Line]:
        nodes = pieces[0].nodes
        worked = [node for node in nodes if node.inputs] or list(nodes)
        ops = list(dict.fromkeys(node.op.name for node in worked if not is_small(node)))
        listed = _listed(ops or list(dict.fromkeys(node.op.name for node in worked)))
        title = " … ".join(style.shortened(name, _LONGEST_NAME) for name in outermost_names(pieces))
        lines = [Line(title or listed, NAME_SIZE, bold=True)]
        lines += [Line(listed)] if title else []
        return [*lines, Line(_size(pieces), colour=palette().faint_text)]

    def _update_lines(self, pieces: Sequence[Piece]) -> list[Line]:
        targets = [name for piece in pieces for node in piece.nodes for name in self.updated.get(node, [])]
        shown = [Line(f"new {style.shortened(name, _LONGEST_NAME)}", bold=True) for name in targets[:3]]
        return shown + ([Line(f"and {len(targets) - 3} more", bold=True)] if len(targets) > 3 else [])


def _size(pieces: Sequence[Piece]) -> str:
    """How many nodes there are; the type of one that is alone. Layers that share constants need not have as many."""
    count = len(pieces[0].nodes)
    if all(len(piece.nodes) == count for piece in pieces):
        times = f"{len(pieces)} × " if len(pieces) > 1 else ""
        return f"{times}{count} nodes" if count > 1 else str(pieces[0].nodes[0].type)
    return f"{sum(len(piece.nodes) for piece in pieces)} nodes"


def _value(node: Node) -> str:
    value = node.attributes["value"]
    return f"{value.item():.6g}" if value.size == 1 else format_attribute(value)


def _listed(names: Sequence[str]) -> str:
    """The names, or as many as there is room for and the number of the others."""
    shown = 1
    while shown < len(names) and len(", ".join(names[: shown + 1])) <= _LONGEST_NAME:
        shown += 1
    return ", ".join(names[:shown]) + (f" + {len(names) - shown} more" if shown < len(names) else "")


def is_small(node: Node) -> bool:
    """Whether a node does no arithmetic worth a large box: constants, views, numbers of the run."""
    return node.op.name in ("constant", "full", "broadcast_to", *RUN_NUMBERS) or node.op.is_view


def kind_of(piece: Piece, by_layer: bool) -> str:
    """What the legend calls it: its phase, unless it is a single node of a kind of its own."""
    node = piece.nodes[0]
    if is_input(node):
        return INPUT
    if len(piece.nodes) > 1 or (by_layer and piece.scope):
        return piece.phase
    if is_variable(node):
        return VARIABLE
    return SMALL if is_small(node) else piece.phase


def _colours(piece: Piece, kind: str) -> tuple[str, str]:
    """Fill and frame."""
    if kind == INPUT:
        return palette().yellow, palette().yellow_line
    if kind == VARIABLE:
        return palette().purple, palette().purple_line
    fill = palette().paper if kind == SMALL else palette().phase_fills.get(piece.phase, palette().grey)
    return fill, palette().phase_frames.get(piece.phase, palette().line)


def legend(cards: Sequence[Card], kinds: Sequence[str], filled: bool) -> list[Sample]:
    """The entries for kinds of cards. `filled` says whether the fills tell them apart too, beside the frames."""
    samples = {
        kind: Sample(kind, card.fill if filled else palette().paper, card.frame)
        for card, kind in zip(cards, kinds, strict=True)
    }
    if not filled and FORWARD in samples:
        # They would look alike.
        samples.pop(SMALL, None)
    known = [INPUT, VARIABLE, FORWARD, RECOMPUTE, BACKWARD, UPDATE, SMALL]
    order = [*known, *sorted(set(samples) - set(known))]
    shown = [samples[kind] for kind in order if kind in samples]
    if any(card.frame_width > 1 for card in cards):
        shown.append(Sample("output (thick frame)", palette().paper, palette().line, 2.2))
    return shown
