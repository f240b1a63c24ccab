"""A picture of a graph: its nodes, or its layers, with forward, backward and update side by side."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from miai_graph.errors import ArgumentError
from miai_graph.graph import Graph
from miai_graph.node import Node
from miai_graph.timing import Timing
from miai_graph.timing.difference import TimingDifference
from miai_graph.views import style
from miai_graph.views.canvas import Card, Line, Sheet, draw_sheet
from miai_graph.views.colouring import Colouring, colouring_of
from miai_graph.views.columns import MOST_LINKS, UPDATE_COLUMN, columns_of, lines_of
from miai_graph.views.folding import Piece, fold_by_layer
from miai_graph.views.graph_cards import CardMaker, kind_of, legend
from miai_graph.views.graph_repeats import MOST_PIECES, Repeat, carrying_links, links_between, repeats_of
from miai_graph.views.layout import Edge, layered
from miai_graph.views.palette import palette, paper
from miai_graph.views.regions import outlined_regions
from miai_graph.views.wrapping import wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_NODES = 120
"""Larger graphs are drawn by layer, unless the caller says otherwise."""


def plot_graph(
    graph: Graph,
    path: Any = None,
    *,
    by: str | None = None,
    timing: Timing | TimingDifference | None = None,
    colour_by: str | None = None,
    fold: bool | None = None,
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
    fold : whether blocks that come again and again are drawn once, with how often they come. By default those of
        layers, where there are more than 24 boxes
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
    if not isinstance(fold, bool | None):
        raise ArgumentError(f"expected fold to be True, False or None; found {fold!r}")
    if not isinstance(graph, Graph):
        raise ArgumentError(f"expected a Graph to draw, such as mg.Graph([loss]); found {graph!r}")
    colouring = colouring_of(timing, colour_by)
    pieces, by_layer = pieces_of(graph, by)
    folds = (by_layer and len(pieces) > MOST_PIECES) if fold is None else fold
    repeats = repeats_of(graph, pieces) if folds else []
    with paper(dark=dark):
        figure = draw_sheet(_sheet(graph, pieces, repeats, colouring, by_layer))
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


@dataclass(frozen=True)
class _Stack:
    """Pieces that are drawn as one card; mostly one piece.

    repeat : the number of the repeat that they are of, or None
    """

    members: Sequence[int]
    repeat: int | None = None


def _stacks(pieces: Sequence[Piece], repeats: Sequence[Repeat]) -> list[_Stack]:
    folded = {number for repeat in repeats for number in repeat.members}
    single = [_Stack([number]) for number in range(len(pieces)) if number not in folded]
    alike = [
        _Stack(members, number)
        for number, repeat in enumerate(repeats)
        for members in zip(*repeat.copies, strict=True)
    ]  # fmt: skip
    return sorted([*single, *alike], key=lambda stack: min(stack.members))


def _links_of_stacks(stacks: Sequence[_Stack], links: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The links between stacks, by their numbers; without those from one block to the next that looks like it."""
    place = {member: (number, copy) for number, stack in enumerate(stacks) for copy, member in enumerate(stack.members)}
    pairs: dict[tuple[int, int], None] = {}
    for source, target in links:
        (first, first_copy), (second, second_copy) = place[source], place[target]
        is_within = stacks[first].repeat is not None and stacks[first].repeat == stacks[second].repeat
        if first != second and (not is_within or first_copy == second_copy):
            pairs[first, second] = None
    return list(pairs)


def _sheet(
    graph: Graph, pieces: Sequence[Piece], repeats: Sequence[Repeat], colouring: Colouring | None, by_layer: bool
) -> Sheet:
    all_links = links_between(graph, pieces)
    stacks = _stacks(pieces, repeats)
    piece_columns = columns_of(pieces, all_links)
    columns = [piece_columns[stack.members[0]] for stack in stacks]
    links = lines = _links_of_stacks(stacks, all_links)
    if by_layer and len(pieces) > MOST_PIECES:
        lines = _links_of_stacks(stacks, carrying_links(graph, pieces))
    if by_layer and len(stacks) > MOST_PIECES:
        lines = lines_of(lines, columns)
    maker = CardMaker(graph, by_layer)
    cards = [_card(maker, number, stack, pieces, columns[number]) for number, stack in enumerate(stacks)]
    samples = legend(cards, [kind_of(pieces[stack.members[0]], by_layer) for stack in stacks], filled=colouring is None)
    notes = _left_out(len(links) - len(lines))
    if colouring is not None:
        of_pieces = _values(pieces, maker.names, colouring, by_layer)
        values = [_joined([of_pieces[member] for member in stack.members], colouring) for stack in stacks]
        colouring.scale(values)
        cards = [_coloured(card, value, colouring) for card, value in zip(cards, values, strict=True)]
        samples += colouring.samples
        notes += [*colouring.notes(values), *(() if by_layer else colouring.kernel_notes)]
    last = _never_used_backward(columns, lines)
    edges = [Edge(source, target, upward=columns[source] > 0 or target in last) for source, target in lines]
    boxes = [card.box for card in cards]
    drawing = wrapped(layered(boxes, edges), boxes, edges)
    return Sheet(
        cards,
        drawing,
        title=_title(graph, by_layer),
        samples=samples,
        regions=outlined_regions(boxes, drawing),
        edge_colours=[
            palette().phase_lines.get(pieces[stacks[target].members[0]].phase, palette().line) for _, target in lines
        ],
        bar=None if colouring is None else colouring.bar,
        notes=notes,
    )


def _card(maker: CardMaker, key: int, stack: _Stack, pieces: Sequence[Piece], column: int) -> Card:
    card = maker.card(key, [pieces[member] for member in stack.members], column)
    return card if stack.repeat is None else replace(card, group=("repeat", stack.repeat))


def _joined(values: Sequence[Any], colouring: Colouring) -> Any:
    return values[0] if len(values) == 1 else colouring.joined(values)


def _left_out(lines: int) -> list[str]:
    if not lines:
        return []
    what = "1 line is" if lines == 1 else f"{lines} lines are"
    why = f"of shared constants, from forward to backward, or where over {MOST_LINKS} come together"
    return [f"{what} left out: {why}"]


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
