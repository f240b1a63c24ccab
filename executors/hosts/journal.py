"""What it takes to repeat the steps since the last snapshot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

MOST_BYTES = 1 << 28
"""So much of the batches since the last snapshot is kept."""


@dataclass(frozen=True, eq=False)
class Entry:
    """A step that was committed: what repeats it, and the size of what it keeps."""

    repeat: Callable[[], object]
    size_bytes: int


@dataclass(eq=False)
class Journal:
    """The steps since the last snapshot.

    The executor keeps it, and the session only knows it: entries hold functions, which hold the executor.

    Attributes
    ----------
    entries : in the order in which they were committed
    before : by number, the versions at the snapshot
    seconds : that the steps took
    """

    entries: list[Entry] = field(default_factory=list)
    before: dict[int, int] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, entry: Entry, before: Mapping[int, int], seconds: float) -> None:
        """Note a step, once. Versions that are noted already stay."""
        for number, version in before.items():
            self.before.setdefault(number, version)
        if not self.entries or self.entries[-1] is not entry:
            self.entries.append(entry)
            self.seconds += seconds

    def clear(self) -> None:
        """There is a new snapshot."""
        self.entries.clear()
        self.before.clear()
        self.seconds = 0.0

    @property
    def is_full(self) -> bool:
        """Whether it keeps too much."""
        return sum(entry.size_bytes for entry in self.entries) > MOST_BYTES
