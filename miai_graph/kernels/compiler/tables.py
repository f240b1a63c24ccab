"""Tables of 64-bit words, in which native code finds all that it works on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from miai_graph.op import Array


class Words(np.ndarray[Any, np.dtype[np.int64]]):
    """A table of words that keeps the arrays whose addresses are in it."""

    kept: object


def table_of(words: Sequence[Array | int], kept: object = None) -> Words:
    """The words; arrays stand for their addresses.

    Parameters
    ----------
    kept : what else must live as long as the table
    """
    numbers = [word.ctypes.data if isinstance(word, np.ndarray) else word for word in words]
    table = np.array(numbers, np.int64).view(Words)
    table.kept = list(words), kept
    return table
