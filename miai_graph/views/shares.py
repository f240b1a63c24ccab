"""Which share of the time, or of something else that is measured, went into nodes and layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from miai_graph.context import COMMUNICATION, WAIT
from miai_graph.timing import Timing, TimingRecord
from miai_graph.timing.grouping import records_of_workers

MEASURES: dict[str, tuple[str, Callable[[TimingRecord], float]]] = {
    "time": ("the time", lambda record: record.seconds),
    "bytes": ("the memory traffic", lambda record: record.bytes),
    "memory": ("the memory of values", lambda record: record.memory_bytes),
    "wait": ("the waiting", lambda record: record.seconds if record.phase == WAIT else 0.0),
}
"""What is shared out, in words, and how much of it a record has."""


class Shares:
    """Shares of all workers together, from 0 to 1.

    Parameters
    ----------
    timing : where the records are
    of : a key of `MEASURES`
    """

    def __init__(self, timing: Timing, of: str = "time") -> None:
        _, measured = MEASURES[of]
        records = records_of_workers(timing)
        self._total = sum(measured(record) for record in records)
        # Who waits is not slow itself: as in tables, waits are of no layer, unless they are what is asked for.
        self._parts = [
            (place, measured(record))
            for place, record in zip(drawn_records(records), records, strict=True)
            if of != "time" or record.phase != WAIT
        ]
        self._by_node: dict[str, float] = defaultdict(float)
        for record, part in self._parts:
            self._by_node[record.node] += part

    def of_nodes(self, names: Iterable[str]) -> float:
        """The share of the nodes of these names."""
        return self._share(sum(self._by_node.get(name, 0.0) for name in names))

    def of_layers(self, layers: Collection[str], phase: str | None = None) -> dict[str, float]:
        """The share of each of the layers; what layers do inside of others counts for the outer one.

        Parameters
        ----------
        layers : their names
        phase : the only one to count; None: all
        """
        sums = dict.fromkeys(layers, 0.0)
        for record, part in self._parts:
            if phase is None or record.phase == phase:
                owner = owning_layer(record, sums)
                if owner is not None:
                    sums[owner] += part
        return {layer: self._share(value) for layer, value in sums.items()}

    def _share(self, value: float) -> float:
        return value / self._total if self._total else 0.0


def drawn_records(records: Sequence[TimingRecord]) -> list[TimingRecord]:
    """The same, with the names and phases of nodes that pictures have.

    What partitioning puts in, such as ``dense/matmul/barrier``, counts for the node that needs it.
    """
    phases = {record.node: record.phase for record in records if record.phase not in (COMMUNICATION, WAIT)}
    return [_drawn(record, phases) for record in records]


def _drawn(record: TimingRecord, phases: Mapping[str, str]) -> TimingRecord:
    base = record.node.removesuffix(f"/{record.op}")
    if record.phase not in (COMMUNICATION, WAIT) or base not in phases:
        return record
    return replace(record, node=base, phase=phases[base])


def owning_layer(record: TimingRecord, layers: Collection[str]) -> str | None:
    """The outermost of the layers that the record belongs to."""
    return next((part for part in record.layer.split("/") if part in layers), None)


def format_share(share: float) -> str:
    """``0.3 %``, ``27 %``; and ``<0.1 %`` for what is not nothing."""
    if share <= 0.0:
        return "0 %"
    if share < 0.001:
        return "<0.1 %"
    return f"{share:.1%}".replace("%", " %") if share < 0.1 else f"{share:.0%}".replace("%", " %")


def kernel_note(records: Iterable[TimingRecord]) -> list[str]:
    """A line about times of single nodes, where some of them are computed together."""
    is_shared = any(record.kernel for record in records)
    return ["nodes that one kernel computes share its time by their arithmetic"] if is_shared else []


def rest_note(drawn: float, what: str = "the time") -> list[str]:
    """A line about what no box shows, if that is much."""
    rest = 1.0 - drawn
    return [f"{format_share(rest)} of {what} went into what is not drawn here"] if rest > 0.005 else []
