"""A picture of a graph: its nodes, or its layers, with forward, backward and update side by side."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from miai_graph.context import BACKWARD, FORWARD, UPDATE
from miai_graph.errors import ArgumentError
from miai_graph.graph import Graph, format_attribute
from miai_graph.node import Node
from miai_graph.ops.leaves import RUN_NUMBERS, is_input, is_variable
from miai_graph.timing import Timing
from miai_graph.timing.difference import TimingDifference
from miai_graph.views import style
from miai_graph.views.canvas import NAME_SIZE, Card, Line, Sample, Sheet, draw_sheet
from miai_graph.views.colouring import Colouring, colouring_of
from miai_graph.views.columns import UPDATE_COLUMN, columns_of
from miai_graph.views.folding import Piece, fold_by_layer, outer_scope
from miai_graph.views.layout import Edge, layered
from miai_graph.views.palette import palette, paper
from miai_graph.views.regions import outlined_regions
from miai_graph.views.wrapping import wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_NODES = 120
"""Larger graphs are drawn by layer, unless the caller says otherwise."""

INPUT, VARIABLE, SMALL = "input", "variable", "constant or view"

_LONGEST_NAME = 34


def plot_graph(
    graph: Graph,
    path: Any = None,
    *,
    by: str | None = None,
    timing: Timing | TimingDifference | None = None,
    colour_by: str | None = None,
    dark: bool = False,
    dpi: float = style.DPI,
) -> Figure:
    """Draw a graph: forward from top to bottom, and beside it backward and updates from bottom to top.

    Parameters
    ----------
    graph : what to draw
    path : a file to write, .png, .svg or .pdf; None: none
    by : "op": a box a node, with its op, name and type; "layer": a box for each layer and phase. By default "op"
        for up to 120 nodes
    timing : colours the boxes; a difference of two timings colours them by what changed
    colour_by : what the colours tell of the timing: shares of the "time" (by default), of the time of "wait", of
        "bytes" moved or of the "memory" of values; or which "stage" or "worker" it was on
    dark : whether for dark paper
    dpi : pixels an inch, for .png

    Returns
    -------
    A matplotlib figure, which does not belong to pyplot.

    Raises
    ------
    ArgumentError
        if an argument is of another kind.
    SavingError
        if the file cannot be written.
    """
    target = style.check_path(path)
    if not isinstance(graph, Graph):
        raise ArgumentError(f"expected a Graph to draw, such as mg.Graph([loss]); found {graph!r}")
    colouring = colouring_of(timing, colour_by)
    pieces, by_layer = pieces_of(graph, by)
    with paper(dark=dark):
        figure = draw_sheet(_sheet(graph, pieces, colouring, by_layer))
    return style.save(figure, target, dpi)


def pieces_of(graph: Graph, by: str | None) -> tuple[list[Piece], bool]:
    """What the boxes stand for, and whether that is layers. `by` is that of `plot_graph`.

    Raises
    ------
    ArgumentError
        if it is something else.
    """
    if by not in (None, "op", "layer"):
        raise ArgumentError(f"expected by to be 'op' or 'layer'; found {by!r}")
    by_layer = by == "layer" or (by is None and len(graph) > MOST_NODES)
    if by_layer:
        return fold_by_layer(graph), True
    return [Piece(node.scope, node.phase, [node]) for node in graph.nodes], False


def links_between(graph: Graph, pieces: Sequence[Piece]) -> list[tuple[int, int]]:
    """Which pieces need which others, by their numbers."""
    piece_of = {node: number for number, piece in enumerate(pieces) for node in piece.nodes}
    links = dict.fromkeys((piece_of[source], piece_of[node]) for node in graph.nodes for source in node.inputs)
    return [(source, target) for source, target in links if source != target]


def _values(pieces: Sequence[Piece], names: Mapping[Node, str], colouring: Colouring, by_layer: bool) -> list[Any]:
    """The value of each piece: by its layer and phase where it is all there is of them, else by its nodes' names."""
    kinds = Counter((piece.scope, piece.phase) for piece in pieces)
    scopes = {piece.scope for piece in pieces if piece.scope}
    of_layers = {phase: colouring.of_layers(scopes, phase) for phase in {piece.phase for piece in pieces}}
    return [
        of_layers[piece.phase][piece.scope]
        if by_layer and piece.scope and kinds[piece.scope, piece.phase] == 1
        else colouring.of_nodes(names[node] for node in piece.nodes)
        for piece in pieces
    ]


def _sheet(graph: Graph, pieces: Sequence[Piece], colouring: Colouring | None, by_layer: bool) -> Sheet:
    links = links_between(graph, pieces)
    columns = columns_of(pieces, links)
    maker = CardMaker(graph, by_layer)
    cards = [maker.card(number, piece, columns[number]) for number, piece in enumerate(pieces)]
    samples = legend(cards, [kind_of(piece, by_layer) for piece in pieces], filled=colouring is None)
    notes: list[str] = []
    if colouring is not None:
        values = _values(pieces, maker.names, colouring, by_layer)
        colouring.scale(values)
        cards = [_coloured(card, value, colouring) for card, value in zip(cards, values, strict=True)]
        samples += colouring.samples
        notes = colouring.notes(values)
    last = _never_used_backward(columns, links)
    edges = [Edge(source, target, upward=columns[source] > 0 or target in last) for source, target in links]
    boxes = [card.box for card in cards]
    drawing = wrapped(layered(boxes, edges), boxes, edges)
    return Sheet(
        cards,
        drawing,
        title=_title(graph, by_layer),
        samples=samples,
        regions=outlined_regions(boxes, drawing),
        edge_colours=[palette().phase_lines.get(pieces[target].phase, palette().line) for _, target in links],
        bar=None if colouring is None else colouring.bar,
        notes=notes,
    )


def _coloured(card: Card, value: Any, colouring: Colouring) -> Card:
    """The card in the colour of a value, which is written on it too."""
    text = colouring.text(value)
    lines = [replace(line, colour=palette().text) for line in card.lines]
    lines += [Line(text, bold=True)] if text else []
    return replace(card, lines=lines, fill=colouring.fill(value) or palette().paper)


def _never_used_backward(columns: Sequence[int], links: Sequence[tuple[int, int]]) -> set[int]:
    """The updates that no gradient needs: they stand above all else, so that backward can stand beside forward."""
    sources: dict[int, list[int]] = defaultdict(list)
    for source, target in links:
        sources[target].append(source)
    needed: set[int] = set()
    waiting = [number for number, column in enumerate(columns) if column != UPDATE_COLUMN]
    while waiting:
        number = waiting.pop()
        if number not in needed:
            needed.add(number)
            waiting += sources[number]
    return set(range(len(columns))) - needed


def _title(graph: Graph, by_layer: bool) -> str:
    def count(number: int, noun: str) -> str:
        return f"{number} {noun}{'' if number == 1 else 's'}"

    parts = [count(len(graph.inputs), "input"), count(len(graph.outputs), "output")]
    parts += [count(len(graph.updates), "update")] if graph.updates else []
    return f"Graph of {count(len(graph), 'node')}{', by layer' if by_layer else ''}: {', '.join(parts)}"


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

    def card(self, key: int, piece: Piece, column: int) -> Card:
        """The card of a piece, in the colours of its kind."""
        node = piece.nodes[0]
        kind = kind_of(piece, self.by_layer)
        alone = not self.by_layer or kind in (INPUT, VARIABLE) or (len(piece.nodes) == 1 and not piece.scope)
        lines = self._node_lines(node) if alone else self._layer_lines(piece)
        fill, frame = _colours(piece, kind)
        lines += self._update_lines(piece)
        is_output = any(node in self.outputs for node in piece.nodes)
        scope = outer_scope(node.scope)
        return Card(
            key,
            lines,
            fill,
            frame,
            frame_width=2.2 if is_output else 0.9,
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

    def _layer_lines(self, piece: Piece) -> list[Line]:
        worked = [node for node in piece.nodes if node.inputs] or list(piece.nodes)
        ops = list(dict.fromkeys(node.op.name for node in worked if not is_small(node)))
        listed = _listed(ops or list(dict.fromkeys(node.op.name for node in worked)))
        title = style.shortened(piece.scope, _LONGEST_NAME) or listed
        lines = [Line(title, NAME_SIZE, bold=True)]
        lines += [Line(listed)] if piece.scope else []
        size = f"{len(piece.nodes)} nodes" if len(piece.nodes) > 1 else str(piece.nodes[0].type)
        return [*lines, Line(size, colour=palette().faint_text)]

    def _update_lines(self, piece: Piece) -> list[Line]:
        targets = [name for node in piece.nodes for name in self.updated.get(node, [])]
        shown = [Line(f"new {style.shortened(name, _LONGEST_NAME)}", bold=True) for name in targets[:3]]
        return shown + ([Line(f"and {len(targets) - 3} more", bold=True)] if len(targets) > 3 else [])


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
    known = [INPUT, VARIABLE, FORWARD, BACKWARD, UPDATE, SMALL]
    order = [*known, *sorted(set(samples) - set(known))]
    shown = [samples[kind] for kind in order if kind in samples]
    if any(card.frame_width > 1 for card in cards):
        shown.append(Sample("output (thick frame)", palette().paper, palette().line, 2.2))
    return shown
