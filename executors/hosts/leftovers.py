"""What objects of the user's process leave on hosts when they are gone."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TypeVar
from weakref import finalize

Item = TypeVar("Item")


class Leftovers:
    """Programs and values that nobody will ask for any more.

    Objects go at any moment, in any thread: that is only noted, for somebody to look at later.
    """

    def __init__(self) -> None:
        self._programs: deque[Mapping[str, int]] = deque()
        self._keys: deque[int] = deque()

    def note_programs(self, owner: object, programs: Mapping[str, int]) -> None:
        """When this object is gone, its programs are left, given by address."""
        finalize(owner, self._programs.append, programs).atexit = False

    def note_key(self, owner: object, key: int) -> None:
        """When this object is gone, the values of this key are left."""
        finalize(owner, self._keys.append, key).atexit = False

    def take(self) -> tuple[list[Mapping[str, int]], list[int]]:
        """What is left now: programs and keys."""
        return _emptied(self._programs), _emptied(self._keys)


def _emptied(queue: deque[Item]) -> list[Item]:
    return [queue.popleft() for _ in range(len(queue))]
