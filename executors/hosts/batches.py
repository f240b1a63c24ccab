"""Batches on their way: drawn one ahead, sent ahead, and ordered ahead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from executors.hosts.conversation import OrderedStep
from executors.hosts.plans import StepPlan
from miai_graph.feeding import Batch, CheckedBatch


@dataclass(frozen=True, eq=False)
class Fed:
    """A batch on its way to the hosts.

    ticket : of its step
    given, kept : what was fed, and a copy of it, for what was given may change
    sent : by future, the address
    """

    ticket: int
    plan: StepPlan
    given: CheckedBatch
    kept: CheckedBatch
    sent: Mapping[Future[None], str]

    def is_of(self, batch: CheckedBatch) -> bool:
        """Whether it is this batch."""
        return self.given.source is batch.source and self.given.indices is batch.indices


@dataclass(frozen=True, eq=False)
class OrderedBatch(OrderedStep):
    """A step of which is known what it computes.

    fed : its batch
    step, versions : its number, and those of the values that it reads, by address
    """

    fed: Fed = field(kw_only=True)
    step: int = field(kw_only=True)
    versions: Mapping[str, Sequence[int]] = field(kw_only=True)

    def is_like(self, other: OrderedBatch) -> bool:
        """Whether it would compute the same."""
        return self.step == other.step and self.versions == other.versions


class Upcoming:
    """Batches that are drawn one ahead, and not earlier: their arrays may be those of the batch before.

    Attributes
    ----------
    error : what was raised instead of a batch, for after the steps before
    """

    def __init__(self, batches: Iterable[Batch]) -> None:
        self.error: Exception | None = None
        self._batches = iter(batches)
        self._drawn: Batch | None = None

    def look(self) -> Batch | None:
        """The next batch, if there is one."""
        if self._drawn is None and self.error is None:
            try:
                self._drawn = next(self._batches, None)
            except Exception as error:
                self.error = error
        return self._drawn

    def take(self) -> Batch | None:
        """The next batch, which is done with then."""
        batch, self._drawn = self.look(), None
        return batch
