"""Sides of the benchmark as they are written on the command line: ``serial:threads=1``, ``torch-ddp``."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from miai_graph.errors import ArgumentError, ExecutorError
from miai_graph.executor import executor_names

PEERS: Mapping[str, tuple[str, ...]] = {
    "torch": ("threads",),
    "torch-compile": ("threads",),
    "torch-ddp": ("processes", "threads"),
    "jax": ("threads",),
}
"""What there is to compare with, and its options."""


@dataclass(frozen=True)
class SideSpec:
    """A side: its name, with options for it.

    Attributes
    ----------
    text : as it was written
    name : of an executor or a peer
    """

    text: str
    name: str
    options: Mapping[str, Any]

    @property
    def is_peer(self) -> bool:
        return self.name in PEERS

    @property
    def library(self) -> str:
        """The one that a peer needs."""
        return self.name.partition("-")[0]


def parse_executors(text: str) -> list[SideSpec]:
    """The executors of a list such as ``serial:threads=1,serial,processes:workers=2``.

    Raises
    ------
    ArgumentError, ExecutorError
        if it cannot be understood, or names an executor that is not installed.
    """
    specs = _parse(text)
    for spec in specs:
        if spec.name not in executor_names():
            known = ", ".join(executor_names())
            raise ExecutorError(f"expected the name of an executor; found {spec.name!r}. There are: {known}")
    return specs


def parse_peers(text: str) -> list[SideSpec]:
    """The peers of a list such as ``torch:threads=2,torch-ddp``.

    Raises
    ------
    ArgumentError
        if it cannot be understood, or names a peer or an option that is not known.
    """
    specs = _parse(text)
    for spec in specs:
        if spec.name not in PEERS:
            raise ArgumentError(f"expected the name of a peer; found {spec.name!r}. There are: {', '.join(PEERS)}")
        for option, value in spec.options.items():
            if option not in PEERS[spec.name]:
                known = ", ".join(PEERS[spec.name])
                raise ArgumentError(f"expected an option of {spec.name!r}; found {option!r}. There are: {known}")
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ArgumentError(f"expected a positive integer as {option} of {spec.name!r}; found {value!r}")
    return specs


def check_distinct(specs: Sequence[SideSpec]) -> None:
    """Raise ArgumentError if two sides are the same."""
    texts = [spec.text for spec in specs]
    twice = sorted({text for text in texts if texts.count(text) > 1})
    if twice:
        raise ArgumentError(f"expected sides that differ; found {', '.join(map(repr, twice))} more than once")


def _parse(text: str) -> list[SideSpec]:
    return [_parse_one(part) for part in _parts(text)]


def _parts(text: str) -> list[str]:
    """The sides' texts. A comma also stands between options, so what has none of a side's signs belongs to the last."""
    parts: list[str] = []
    for piece in filter(None, (piece.strip() for piece in text.split(","))):
        is_option = "=" in piece and ":" not in piece.partition("=")[0]
        if is_option and not (parts and ":" in parts[-1]):
            raise ArgumentError(f"expected sides such as 'serial:threads=1,serial'; found {piece!r} without its side")
        parts = [*parts[:-1], f"{parts[-1]},{piece}"] if is_option else [*parts, piece]
    return parts


def _parse_one(text: str) -> SideSpec:
    name, _, rest = text.partition(":")
    options = {}
    for piece in filter(None, rest.split(",")):
        option, sign, value = piece.partition("=")
        if not sign or not option.isidentifier():
            raise ArgumentError(f"expected options such as 'threads=1' after {name!r}; found {piece!r}")
        options[option] = _value(value)
    return SideSpec(text, name, options)


def _value(text: str) -> Any:
    """A number, a truth value or None if it reads as one, else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
