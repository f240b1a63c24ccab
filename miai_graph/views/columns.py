"""Which column of a drawing each piece of a graph stands in: forward, backward, or update."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from miai_graph.context import BACKWARD, FORWARD, UPDATE
from miai_graph.views.folding import Piece

FORWARD_COLUMN, BACKWARD_COLUMN, UPDATE_COLUMN = 0, 1, 2

_COLUMNS = {FORWARD: FORWARD_COLUMN, BACKWARD: BACKWARD_COLUMN, UPDATE: UPDATE_COLUMN}


def columns_of(pieces: Sequence[Piece], links: Sequence[tuple[int, int]]) -> list[int]:
    """Forward in the first column, where links run down; backward, and what needs it, beside, where they run up.

    Parameters
    ----------
    links : which piece, by its number, is needed by which
    """
    columns = [_COLUMNS.get(piece.phase, FORWARD_COLUMN) for piece in pieces]
    sources: dict[int, list[int]] = defaultdict(list)
    users: dict[int, list[int]] = defaultdict(list)
    for source, target in links:
        sources[target].append(source)
        users[source].append(target)
    order = sorted(range(len(pieces)), key=lambda number: pieces[number].nodes[-1].index)
    for number in order:
        if columns[number] == FORWARD_COLUMN and any(columns[source] > FORWARD_COLUMN for source in sources[number]):
            columns[number] = UPDATE_COLUMN
    for number in reversed(order):
        # What is computed from nothing, such as a constant, stands with those that use it.
        if columns[number] == FORWARD_COLUMN and users[number] and not sources[number]:
            columns[number] = min(columns[user] for user in users[number])
    return columns
