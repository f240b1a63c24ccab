"""A picture of an error in building: what was built so far, and in red what could not be joined to it."""

from __future__ import annotations

import textwrap
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from miai_graph.errors import ArgumentError, MiaiGraphError
from miai_graph.graph import Graph
from miai_graph.messages import Failure
from miai_graph.views import style
from miai_graph.views.canvas import NAME_SIZE, Card, Line, Sample, Sheet, draw_sheet
from miai_graph.views.folding import Piece
from miai_graph.views.graph_cards import CardMaker, kind_of, legend
from miai_graph.views.graph_repeats import links_between
from miai_graph.views.graph_view import pieces_of
from miai_graph.views.layout import Edge, layered
from miai_graph.views.palette import palette, paper
from miai_graph.views.wrapping import wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FAILED = "failed"
MOST_PIECES = 40
"""So many boxes are drawn: those that are nearest to what failed."""

_MOST_CHARACTERS, _MOST_LINES = 46, 6
_WRONG_WIDTH = 2.0

Link = tuple[int, int]


def plot_error(
    error: MiaiGraphError, path: Any = None, *, by: str | None = None, dark: bool = False, dpi: float = style.DPI
) -> Figure:
    """Draw what an error in building a graph or a model is about: the nodes so far, and the bad edges in red.

    Parameters
    ----------
    error : such as a `ShapeError` that an op or a layer raised
    path : a file to write, .png, .svg or .pdf; None: none
    by : "op" or "layer", as for `plot_graph`
    dark : whether for dark paper
    dpi : pixels an inch, for .png

    Returns
    -------
    A matplotlib figure, which does not belong to pyplot.

    Raises
    ------
    ArgumentError
        if an argument is of another kind, or the error does not come from joining nodes.
    SavingError
        if the file cannot be written.
    """
    target = style.check_path(path)
    failure = getattr(error, "failure", None)
    if not isinstance(failure, Failure) or not failure.inputs:
        raise ArgumentError(
            f"expected an error that an op or a layer raised when it was called on nodes; found {error!r}. "
            "Catch it: except mg.errors.GraphError as error"
        )
    graph = Graph(dict.fromkeys(failure.inputs))
    pieces, by_layer = pieces_of(graph, by)
    with paper(dark=dark):
        figure = draw_sheet(_sheet(error, failure, graph, pieces, by_layer))
    return style.save(figure, target, dpi)


def _sheet(error: MiaiGraphError, failure: Failure, graph: Graph, pieces: Sequence[Piece], by_layer: bool) -> Sheet:
    links = links_between(graph, pieces)
    joined = [number for number, piece in enumerate(pieces) if set(piece.nodes) & set(failure.inputs)]
    shown = _nearest(joined, links)
    maker = CardMaker(graph, by_layer)
    cards = [replace(maker.card(number, [pieces[number]], 0), frame_width=0.9, group=None) for number in shown]
    samples = legend(cards, [kind_of(pieces[number], by_layer) for number in shown], filled=True)
    cards.append(_failed_card(error, failure))
    sound = [(source, target) for source, target in links if source in shown and target in shown]
    edges = [Edge(source, target) for source, target in sound] + [Edge(number, FAILED) for number in joined]
    boxes = [card.box for card in cards]
    wrong = len(joined)
    return Sheet(
        cards,
        wrapped(layered(boxes, edges), boxes, edges),
        title=f"{type(error).__name__}: {failure.name} does not fit its input{'' if wrong == 1 else 's'}",
        samples=[*samples, Sample("what failed", palette().wrong_fill, palette().wrong, _WRONG_WIDTH)],
        edge_colours=[palette().line] * len(sound) + [palette().wrong] * wrong,
        edge_widths=[0.9] * len(sound) + [_WRONG_WIDTH] * wrong,
        notes=_notes(failure, len(pieces) - len(shown)),
    )


def _nearest(starts: Collection[int], links: Sequence[Link]) -> list[int]:
    """The pieces from which few links lead to the given ones, those included, in order."""
    found = dict.fromkeys(starts)
    waiting = deque(starts)
    while waiting and len(found) < MOST_PIECES:
        piece = waiting.popleft()
        new = [source for source, target in links if target == piece and source not in found]
        found.update(dict.fromkeys(new))
        waiting.extend(new)
    return sorted(found)


def _failed_card(error: MiaiGraphError, failure: Failure) -> Card:
    said = str(error).splitlines()[0].removeprefix(f"{failure.name}: ")
    lines = textwrap.wrap(said, _MOST_CHARACTERS, max_lines=_MOST_LINES, placeholder=" …")
    return Card(
        FAILED,
        [
            Line(f"✗ {failure.name}", NAME_SIZE, bold=True, colour=palette().wrong),
            *(Line(line) for line in lines),
            *([Line(f"in layer {failure.scope}", colour=palette().faint_text)] if failure.scope else []),
        ],
        palette().wrong_fill,
        palette().wrong,
        _WRONG_WIDTH,
    )


def _notes(failure: Failure, left_out: int) -> list[str]:
    notes = [f"at {failure.source}"] if failure.source else []
    return [*notes, f"{left_out} boxes further up are not drawn"] if left_out else notes
