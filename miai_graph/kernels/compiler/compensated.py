"""Sums whose errors do not grow with their length: of each addition what was rounded off is kept.

Ogita, Rump and Oishi 2005, "Accurate sum and dot product".
"""

from __future__ import annotations

from collections.abc import Sequence

from miai_graph.kernels.compiler.vectors import Vector

LONGEST_CHAIN = 64
"""Additions one after another that keep no errors; their sums are added up with them."""


def with_parts(totals: Sequence[Vector], parts: Sequence[Vector]) -> list[Vector]:
    """Totals, and behind them their errors, with one more part each."""
    count = len(parts)
    new = [total + part for total, part in zip(totals[:count], parts, strict=True)]
    lost = [
        error + _rounding(total, part, result)
        for total, part, result, error in zip(totals[:count], parts, new, totals[count:], strict=True)
    ]
    return new + lost


def with_errors(totals: Sequence[Vector]) -> list[Vector]:
    """The final sums, of totals and behind them their errors."""
    count = len(totals) // 2
    return [total + error for total, error in zip(totals[:count], totals[count:], strict=True)]


def _rounding(a: Vector, b: Vector, total: Vector) -> Vector:
    """What a + b is more than what they were rounded to; 0 where that is not finite."""
    share = total - a
    error = (a - (total - share)) + (b - share)
    return error.compare("ord", error).choose(error, error.as_same(0.0))
