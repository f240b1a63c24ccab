"""Adds up the stamps of the node loop: in memory of constant size, for every step."""

from __future__ import annotations

import socket
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from miai_graph.context import WAIT
from miai_graph.graph import Graph
from miai_graph.node import Node
from miai_graph.op import Cost
from miai_graph.timing.records import OVERHEAD, TimingRecord, merge_group

ROWS_BESIDE_NODES = 3


class Recorder:
    """Adds up the stamps of one plan's steps.

    Parameters
    ----------
    graph : from which the nodes are, for their names
    nodes, costs : what is computed between one stamp and the next, and the work it is
    """

    def __init__(self, graph: Graph, nodes: Sequence[Node], costs: Sequence[Cost]) -> None:
        self._graph = graph
        self._nodes = nodes
        self._costs = costs
        self.reset()

    def reset(self) -> None:
        """Forget all calls."""
        self.calls = 0
        count = len(self._nodes) + ROWS_BESIDE_NODES
        self._total_ns = np.zeros(count, np.int64)
        self._min_ns = np.full(count, np.iinfo(np.int64).max)
        self._max_ns = np.zeros(count, np.int64)
        self._step_ns = np.empty(count, np.int64)

    def add(self, start_ns: int, stamps: np.ndarray[Any, np.dtype[np.int64]], end_ns: int, waited_ns: int = 0) -> None:
        """Book a call: before the first stamp it was feeding, after the last one committing, but for what it waited."""
        step = self._step_ns
        np.subtract(stamps[1:], stamps[:-1], step[1:-2])
        step[0] = stamps[0] - start_ns
        step[-2] = waited_ns
        step[-1] = end_ns - stamps[-1] - waited_ns
        self._total_ns += step
        np.minimum(self._min_ns, step, out=self._min_ns)
        np.maximum(self._max_ns, step, out=self._max_ns)
        self.calls += 1

    def records(self, worker: int = 0) -> list[TimingRecord]:
        """What was booked."""
        if not self.calls:
            return []
        names = self._graph.names
        host = socket.gethostname()
        nothing = Cost(0, 0)
        rows = [
            ("feed", "feed", "", OVERHEAD, nothing),
            *(
                (names[node], node.op.name, node.scope, node.phase, cost)
                for node, cost in zip(self._nodes, self._costs, strict=True)
            ),
            ("wait", "wait", "", WAIT, nothing),
            ("commit", "commit", "", OVERHEAD, nothing),
        ]
        records = [
            TimingRecord(
                node=name,
                op=op,
                layer=layer,
                phase=phase,
                worker=worker,
                host=host,
                calls=self.calls,
                seconds=int(self._total_ns[place]) / 1e9,
                min_seconds=int(self._min_ns[place]) / 1e9,
                max_seconds=int(self._max_ns[place]) / 1e9,
                flops=cost.flops * self.calls,
                bytes=cost.bytes * self.calls,
            )
            for place, (name, op, layer, phase, cost) in enumerate(rows)
            if phase != WAIT or self._total_ns[place]
        ]
        # A node that is computed for several parts of a batch is one all the same.
        parts: dict[tuple[str, str], list[TimingRecord]] = defaultdict(list)
        for record in records:
            parts[record.node, record.phase].append(record)
        return [merge_group(members) for members in parts.values()]
