"""The fonts of pictures: one that is everywhere, and, for characters that it lacks, those that the machine has."""

from __future__ import annotations

import unicodedata
from functools import cache, lru_cache

from miai_graph.timing.words import printable

FONT = "DejaVu Sans"
"""Comes with matplotlib, so pictures are the same everywhere."""

FALLBACKS = (
    "STIXGeneral",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans CJK KR",
    "Noto Sans SC",
    "Noto Sans JP",
    "Noto Sans KR",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "Hiragino Sans",
    "PingFang SC",
    "Apple SD Gothic Neo",
    "Microsoft YaHei",
    "SimHei",
    "Yu Gothic",
    "MS Gothic",
    "Malgun Gothic",
    "Arial Unicode MS",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Noto Emoji",
    "Segoe UI Emoji",
    "Segoe UI Symbol",
    "Symbola",
)
"""Asked in this order, as far as they are installed. Fonts of coloured pictures are none that matplotlib can draw."""

MISSING = "\N{REPLACEMENT CHARACTER}"


@cache
def families() -> list[str]:
    """The fonts that there are, the first one first."""
    from matplotlib.font_manager import fontManager

    installed = {entry.name for entry in fontManager.ttflist}
    return [FONT, *(name for name in FALLBACKS if name in installed)]


@lru_cache(maxsize=4096)
def drawable(text: str) -> str:
    """The text, with a mark in the place of each character that no font has, or that would break the line."""
    text = printable(text)
    return text if text.isascii() else "".join(map(_drawable, text))


@cache
def _drawable(character: str) -> str:
    if any(ord(character) in characters for characters in _characters()):
        return character
    return "" if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me") else MISSING


@cache
def _characters() -> list[frozenset[int]]:
    """What each of the fonts can draw, in its plain and in its bold form."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    files = [
        [findfont(FontProperties(family=family, weight=weight)) for weight in ("normal", "bold")]
        for family in families()
    ]
    return [frozenset.intersection(*(frozenset(get_font(file).get_charmap()) for file in pair)) for pair in files]
