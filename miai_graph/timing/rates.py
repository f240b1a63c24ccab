"""How fast nodes were computed, and how fast the machine could have been."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from miai_graph.timing.grouping import NOT_COMPUTING, records_by_kernel
from miai_graph.timing.records import TimingRecord

if TYPE_CHECKING:
    from miai_graph.timing.timing import Timing


class Rates:
    """Speeds while computing.

    All nodes that one kernel computes are as fast as the kernel: the memory traffic of those of them that read and
    write memory is shared out as their time is.
    """

    def __init__(self, timing: Timing) -> None:
        self._workers = {worker.index: worker for worker in timing.workers}
        self._bytes: dict[tuple[str, str, int], float] = {}
        for members in records_by_kernel(timing.records).values():
            seconds = sum(record.seconds for record in members)
            moved = sum(record.bytes for record in members)
            if len(members) > 1 and seconds:
                self._bytes |= {_key(record): moved * record.seconds / seconds for record in members}

    def bytes_of(self, record: TimingRecord) -> float:
        """The record's part of the memory traffic."""
        return self._bytes.get(_key(record), record.bytes)

    def flops_per_second(self, records: Sequence[TimingRecord]) -> float | None:
        """Of these records together; None: there was no arithmetic."""
        working = _working(records)
        return _rate(sum(record.flops for record in working), working)

    def bytes_per_second(self, records: Sequence[TimingRecord]) -> float | None:
        """Of these records together; None: nothing was moved."""
        working = _working(records)
        return _rate(sum(map(self.bytes_of, working)), working)

    def roofline_share(self, records: Iterable[TimingRecord]) -> float | None:
        """How much of what the workers could do at best they did, from 0 to 1; None: not known.

        Above 1 where values come from caches, which are faster than the memory that was measured.
        """
        seconds = least = 0.0
        for record in records:
            if record.phase in NOT_COMPUTING:
                continue
            bound = self._least_seconds(record)
            if bound is None:
                return None
            least += bound
            seconds += record.seconds
        return least / seconds if least and seconds else None

    def _least_seconds(self, record: TimingRecord) -> float | None:
        """The time that the record's work takes at the measured peaks of its worker; None: they are not known."""
        worker = self._workers.get(record.worker)
        if worker is None or not worker.flops_per_second or not worker.bytes_per_second:
            return None
        return max(record.flops / worker.flops_per_second, self.bytes_of(record) / worker.bytes_per_second)


def _key(record: TimingRecord) -> tuple[str, str, int]:
    return record.node, record.phase, record.worker


def _rate(amount: float, records: Sequence[TimingRecord]) -> float | None:
    seconds = sum(record.seconds for record in records)
    return amount / seconds if amount and seconds else None


def _working(records: Sequence[TimingRecord]) -> Sequence[TimingRecord]:
    """Those that compute; all where none does, such as those that send."""
    return [record for record in records if record.phase not in NOT_COMPUTING] or records
