"""Which column of a drawing each piece of a graph stands in: forward, backward, or update; and which lines it gets."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from miai_graph.context import BACKWARD, FORWARD, RECOMPUTE, UPDATE
from miai_graph.views.folding import Piece

FORWARD_COLUMN, BACKWARD_COLUMN, UPDATE_COLUMN = 0, 1, 2

MOST_LINKS = 8
"""Where more come together, as in an optimizer, there are no lines: they would hide all else."""

_COLUMNS = {
    FORWARD: FORWARD_COLUMN,
    RECOMPUTE: BACKWARD_COLUMN,
    BACKWARD: BACKWARD_COLUMN,
    UPDATE: UPDATE_COLUMN,
}


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


def lines_of(links: Sequence[tuple[int, int]], columns: Sequence[int]) -> list[tuple[int, int]]:
    """The links that get lines in a large drawing: not those of which very many come together, and of those from
    forward to backward and updates only those where backward begins."""
    counts = Counter(target for _, target in links)
    goes_on = {target for source, target in links if columns[source] > FORWARD_COLUMN}
    return [
        (source, target)
        for source, target in links
        if counts[target] <= MOST_LINKS
        and not (columns[source] == FORWARD_COLUMN < columns[target] and target in goes_on)
    ]
