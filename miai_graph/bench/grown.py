"""Networks of any size, whose names say it: ``mlp_4x256`` and ``chain_1000``.

Peers in other libraries use this file too, so it needs nothing else.
"""

from __future__ import annotations

import re

FEATURES = 64
SCALE, SHIFT = 0.9999, 1e-4
"""What the nodes of a chain multiply by and add, in turns: values stay of the same size however long it is."""

_MLP, _CHAIN = re.compile(r"mlp_([1-9]\d*)x([1-9]\d*)"), re.compile(r"chain_([1-9]\d*)")


def mlp_size(name: str) -> tuple[int, int] | None:
    """How many hidden layers a dense network of this name has, and how many units each; None: it is no such name."""
    match = _MLP.fullmatch(name)
    return None if match is None else (int(match[1]), int(match[2]))


def chain_length(name: str) -> int | None:
    """How many nodes a chain of this name has after its dense layer; None: it is no such name."""
    match = _CHAIN.fullmatch(name)
    return None if match is None else int(match[1])
