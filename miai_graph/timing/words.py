"""How times, shares and names are written."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from unicodedata import combining, east_asian_width

_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def duration(seconds: float) -> str:
    """With three digits that count: ``1.23 s``, ``12.3 ms``, ``45 µs``."""
    size = abs(seconds)
    factor, unit = next((pair for pair in _UNITS if size >= pair[0]), _UNITS[-1])
    figure = seconds / factor
    digits = 0 if abs(figure) >= 99.5 else 1 if abs(figure) >= 9.95 else 2
    return f"{figure:.{digits}f} {unit}"


def percent(share: float) -> str:
    """``39 %``, and ``0.4 %`` for what is little."""
    return f"{share:.1%}".replace("%", " %") if 0.0 < abs(share) < 0.0095 else f"{share:.0%}".replace("%", " %")


def enumerate_words(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def plural(count: int, word: str) -> str:
    """``1 step``, ``2 steps``."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def printable(name: str) -> str:
    """The name without characters that would break a line, or turn it round."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in name)


def text_cells(text: str) -> int:
    """How many places of a terminal's line a text takes."""
    return sum(map(_cells, text))


def _cells(character: str) -> int:
    return 0 if combining(character) else 2 if east_asian_width(character) in "WF" else 1


def shorten(name: str, width: int) -> str:
    """The name, without its middle if it takes more places than that."""
    if text_cells(name) <= width:
        return name
    front = _beginning(name, (width - 1) // 2)
    back = _beginning(name[::-1], width - 1 - text_cells(front))[::-1]
    return f"{front}…{back}"


def _beginning(text: str, width: int) -> str:
    """As much of the text as takes no more places."""
    return text[: sum(taken <= width for taken in accumulate(map(_cells, text)))]
