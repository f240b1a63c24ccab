"""Which share of the time went into nodes and layers, from a timing's records."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Any

from miai_graph.errors import ArgumentError
from miai_graph.timing import Timing


class Shares:
    """Shares of the time of all workers together, from 0 to 1."""

    def __init__(self, timing: Timing) -> None:
        self._records = timing.records
        self._total = sum(record.seconds for record in timing.records)
        self._by_node: dict[str, float] = defaultdict(float)
        for record in timing.records:
            self._by_node[record.node] += record.seconds

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
        seconds = dict.fromkeys(layers, 0.0)
        for record in self._records:
            if phase is None or record.phase == phase:
                owner = next((part for part in record.layer.split("/") if part in seconds), None)
                if owner is not None:
                    seconds[owner] += record.seconds
        return {layer: self._share(value) for layer, value in seconds.items()}

    def _share(self, seconds: float) -> float:
        return seconds / self._total if self._total else 0.0


def format_share(share: float) -> str:
    """``0.3 %``, ``27 %``; and ``<0.1 %`` for what is not nothing."""
    if share <= 0.0:
        return "0 %"
    if share < 0.001:
        return "<0.1 %"
    return f"{share:.1%}".replace("%", " %") if share < 0.1 else f"{share:.0%}".replace("%", " %")


def rest_note(drawn: float) -> list[str]:
    """A line about the time that no box shows, if that is much."""
    rest = 1.0 - drawn
    return [f"{format_share(rest)} of the time went into what is not drawn here"] if rest > 0.005 else []


def check_timing(timing: Any) -> None:
    """Raise ArgumentError if it is neither None nor a Timing with records."""
    if timing is not None and not isinstance(timing, Timing):
        raise ArgumentError(f"expected a Timing, such as history.timing, or None; found {timing!r}")
