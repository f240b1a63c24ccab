"""How timings show themselves in notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from miai_graph.timing.table import Column


def html_table(columns: Sequence[Column], paragraphs: Iterable[str]) -> str:
    """What is to be said, and a plain table below it."""
    shown = [column for column in columns if any(column.cells) or not column.rank]
    rows = [_row("th", shown, [column.title for column in shown])]
    rows += [_row("td", shown, cells) for cells in zip(*(column.cells for column in shown), strict=True)]
    text = "".join(f"<p>{escape(paragraph)}</p>" for paragraph in paragraphs)
    return f"{text}<table>{''.join(rows)}</table>"


def _row(tag: str, columns: Sequence[Column], cells: Iterable[str]) -> str:
    parts = (
        f'<{tag} style="text-align: {"left" if column.is_name else "right"}">{escape(text)}</{tag}>'
        for column, text in zip(columns, cells, strict=True)
    )
    return f"<tr>{''.join(parts)}</tr>"
