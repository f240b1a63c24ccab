"""Whether it pays to let hosts begin the next step before this one is committed."""

from __future__ import annotations

LONGEST_PAUSE = 64


class Foresight:
    """Remembers whether steps that were ordered ahead could be used. They cannot if values are set between two steps,
    as by a callback that changes the learning rate after each batch; what hosts have begun is of no use then.

    After each failure there is a pause, twice as long as the one before.
    """

    def __init__(self) -> None:
        self._pause = 0
        self._left = 0

    def allows(self) -> bool:
        """Whether to order the next step ahead. Asked once a step."""
        self._left = max(0, self._left - 1)
        return self._left == 0

    def was_right(self) -> None:
        """The step that was ordered ahead is the one that is wanted."""
        self._pause = 0

    def was_wrong(self) -> None:
        """It is not."""
        self._pause = min(2 * self._pause + 1, LONGEST_PAUSE)
        self._left = self._pause + 1
