"""What surrounds the building of a node: its scope, phase and source line, unique names, and the seed.

All of it is per thread of control (`contextvars`), apart from the names and random streams, which are the process's:
`set_seed` starts them anew, so the same code after it builds the same graph with the same numbers.
"""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from types import FrameType
from typing import Any

import numpy as np

from miai_graph.errors import ArgumentError

FORWARD, BACKWARD, UPDATE, COMMUNICATION, WAIT = "forward", "backward", "update", "communication", "wait"
RECOMPUTE = "recompute"


@dataclass(frozen=True, slots=True)
class SourceLine:
    """The line of the user's code that built something."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

    @property
    def short(self) -> str:
        """With the file's name only."""
        return f"{Path(self.file).name}:{self.line}"


@dataclass(frozen=True, slots=True)
class BuildContext:
    """What new nodes take from their surroundings.

    scope : the layers being called, outermost first, joined by "/"
    phase : "forward", "recompute", "backward", "update" or "communication"
    source : the line to blame; None: look for it on the stack
    call : the outermost layer call that builds the node, if any
    origin : the index of the node on behalf of which others are built, if any
    """

    scope: str = ""
    phase: str = FORWARD
    source: SourceLine | None = None
    call: Any = None
    origin: int | None = None


_NOWHERE = BuildContext()
_context: ContextVar[BuildContext] = ContextVar("miai_graph_build", default=_NOWHERE)


def current_context() -> BuildContext:
    return _context.get()


@contextmanager
def build_context(**changes: Any) -> Iterator[BuildContext]:
    """Within the block, new nodes take the fields given from here."""
    token = _context.set(replace(_context.get(), **changes))
    try:
        yield _context.get()
    finally:
        _context.reset(token)


def building_on_behalf_of(node: Any, phase: str) -> AbstractContextManager[BuildContext]:
    """A context in which new nodes get the scope and source line of `node`, as its gradient does."""
    return build_context(scope=node.scope, source=node.source, phase=phase, call=None, origin=node.origin)


@contextmanager
def name_scope(name: str) -> Iterator[str]:
    """Within the block, the names of new nodes start with ``name/``.

    Shown as one box in pictures and one line in tables. Layers open one with their own name.
    """
    outer = current_context().scope
    with build_context(scope=f"{outer}/{name}" if outer else name) as context:
        yield context.scope


_own_folders: set[str] = {f"{Path(__file__).parent}{os.sep}"}


def hide_from_source_lines(folder: str) -> None:
    """Do not take code in this folder for the user's (executors say so of themselves)."""
    _own_folders.add(f"{folder}{os.sep}")
    _is_own.cache_clear()


def user_source_line() -> SourceLine | None:
    """The innermost line on the stack that is not this library's own."""
    frame, _ = _user_frame()
    return None if frame is None else SourceLine(frame.f_code.co_filename, frame.f_lineno)


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the innermost line on the stack that is not this library's own."""
    _, depth = _user_frame()
    warnings.warn(message, category, stacklevel=depth)


def _user_frame() -> tuple[FrameType | None, int]:
    """The innermost frame that is not this library's own, and how many there are from the caller's to it."""
    frame: FrameType | None = sys._getframe(1)
    depth = 1
    while frame is not None and _is_own(frame.f_code.co_filename):
        frame = frame.f_back
        depth += 1
    return frame, depth


@functools.cache
def _is_own(file: str) -> bool:
    """Whether code in a file is this library's own, or Python's machinery of imports."""
    return file.startswith((*_own_folders, "<frozen"))


class _Numbering:
    """Counters behind unique names and random streams, and the seed."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.restart(seed=None)

    def restart(self, seed: int | None) -> None:
        with self._lock:
            self.seed = int.from_bytes(os.urandom(7)) if seed is None else seed
            self._names: dict[str, int] = {}
            self._streams = 0

    def unique(self, name: str) -> str:
        """The name itself the first time, ``name_1``, ``name_2`` … after that."""
        with self._lock:
            if not self._is_taken(name):
                self._names[name] = 1
                return name
            number = self._names.get(name, 1)
            # "a", "a_1", "a": the third must not become a second "a_1".
            while self._is_taken(f"{name}_{number}"):
                number += 1
            self._names[name] = number + 1
            return f"{name}_{number}"

    def _is_taken(self, name: str) -> bool:
        """Whether the name was given. Numbered names are known by the count of their base, not kept one by one."""
        if name in self._names:
            return True
        base, _, number = name.rpartition("_")
        return number.isdecimal() and str(int(number)) == number and 0 < int(number) < self._names.get(base, 0)

    def next_stream(self) -> int:
        with self._lock:
            self._streams += 1
            return self._streams


_numbering = _Numbering()


def unique_name(name: str) -> str:
    """A name that no other call since `set_seed` got."""
    return _numbering.unique(name)


def next_stream() -> int:
    """A number that no other random node, initializer or shuffling since `set_seed` got."""
    return _numbering.next_stream()


def current_seed() -> int:
    return _numbering.seed


def set_seed(seed: int) -> None:
    """Start names and random streams anew, from `seed`.

    The same code run afterwards gives the same names, weights, dropout masks and shuffling, whatever was built before.

    Parameters
    ----------
    seed : an integer from 0 to 2**63 - 1

    Raises
    ------
    ArgumentError
        for anything else.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**63:
        raise ArgumentError(f"expected a seed that is an integer from 0 to 2**63 - 1; found {seed!r}")
    _numbering.restart(int(seed))
