"""Checks of the arguments that executors have in common."""

from __future__ import annotations

from miai_graph.errors import ArgumentError


def check_positive(name: str, value: int | None, none: str | None = None) -> None:
    """Raise ArgumentError unless it is a positive integer, or None where that means something."""
    if value is None and none is not None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        alternative = f", or None for {none}" if none is not None else ""
        raise ArgumentError(f"expected a positive number of {name}{alternative}; found {value!r}")


def check_flag(name: str, value: bool) -> None:
    """Raise ArgumentError unless it is True or False."""
    if not isinstance(value, bool):
        raise ArgumentError(f"expected {name} to be True or False; found {value!r}")
