"""Where a host finds what others have sent it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from threading import Condition

from miai_graph.errors import MiaiGraphError
from miai_graph.op import Array

Key = Hashable
"""Says which of the things that are sent in a step it is."""


class StepAborted(MiaiGraphError):  # noqa: N818  what happened is no error of this host
    """Somebody else's failure ended the step."""


class Mailbox:
    """What has been sent, by step and key. The steps of a session have tickets, which grow."""

    def __init__(self) -> None:
        self._arrived = Condition()
        self._letters: dict[tuple[int, Key], Sequence[Array]] = {}
        self._aborted = -1
        self._ended = -1
        self._reason = ""

    def put(self, ticket: int, key: Key, arrays: Sequence[Array]) -> None:
        """Keep what arrived, unless its step is over. Never waits."""
        with self._arrived:
            if ticket > self._aborted:
                self._letters[ticket, key] = arrays
                self._arrived.notify_all()

    def take(self, ticket: int, key: Key) -> Sequence[Array]:
        """What was or will be sent.

        Raises
        ------
        StepAborted
            when the step is given up.
        """
        letter = ticket, key
        with self._arrived:
            while letter not in self._letters:
                if ticket <= self._aborted:
                    raise StepAborted(self._reason)
                self._arrived.wait()
            return self._letters.pop(letter)

    def end(self, ticket: int) -> None:
        """Note that this step was computed."""
        with self._arrived:
            self._ended = ticket
            self._arrived.notify_all()

    def wait_until_over(self, ticket: int) -> None:
        """Wait until a step was computed, or given up."""
        with self._arrived:
            while ticket > max(self._ended, self._aborted):
                self._arrived.wait()

    def forget(self, before: int) -> None:
        """Drop what was sent for earlier steps and never taken, or is yet to arrive."""
        with self._arrived:
            if before > self._aborted + 1:
                self._aborted, self._reason = before - 1, "it is over"
                self._drop()

    def abort(self, ticket: int, reason: str) -> None:
        """Give up this step and those before it: who waits is told, and what arrives late is dropped."""
        with self._arrived:
            if ticket > self._aborted:
                self._aborted, self._reason = ticket, reason
                self._drop()
            self._arrived.notify_all()

    def _drop(self) -> None:
        self._letters = {letter: arrays for letter, arrays in self._letters.items() if letter[0] > self._aborted}

    def __len__(self) -> int:
        """How many things wait to be taken."""
        return len(self._letters)
