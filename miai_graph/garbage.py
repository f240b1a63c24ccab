"""Holding off Python's search for garbage while much is built that stays.

The search goes over all that was built so far, again and again, and finds next to nothing.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

_lock = RLock()
_holding: set[object] = set()
_is_wanted = True
"""Whether there was a search before it was held off."""


@contextmanager
def no_search_for_garbage() -> Iterator[None]:
    """Within the block, in all threads. Several may be within it at the same time."""
    own = object()
    try:
        _hold_off(own)
        yield
    finally:
        _release(own)


def _hold_off(who: object) -> None:
    global _is_wanted
    with _lock:
        if not _holding:
            _is_wanted = gc.isenabled()
        _holding.add(who)
        gc.disable()


def _release(who: object) -> None:
    with _lock:
        _holding.discard(who)
        if not _holding and _is_wanted:
            gc.enable()


def _begin_anew() -> None:
    """In a fork of the process, whose other threads are gone."""
    global _lock
    _lock = RLock()
    for who in list(_holding):
        _release(who)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
