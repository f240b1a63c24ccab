"""Which layers of a model are computed again in the backward pass: those that `compile` names, or as many as it takes
to keep within a limit of memory.

Layers that are called one after another are put together in runs. Of a run only what it reads, and what others read of
it, is kept. With about √n runs of as many of the n layers, what is kept of all of them, and what is there at a time of
the one that is computed again, are about as much.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import isqrt
from typing import Any

from miai_graph.context import BACKWARD, FORWARD, RECOMPUTE
from miai_graph.errors import ArgumentError, ModelError
from miai_graph.graph import Graph
from miai_graph.interpreter import bind_attributes
from miai_graph.node import Node
from miai_graph.op import Cost
from miai_graph.passes.reasons import in_words, readable_size
from miai_graph.passes.simplify import simplify
from miai_graph.plan.layout import footprint_bytes
from miai_graph.plan.program import make_program
from miai_graph.recompute import SegmentOf, as_group, segments_of_scopes
from miai_graph.types import ElementCount, bind_type

ALL = "all"
_MOST_NAMES = 6
"""That are told of layers."""

_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_SIZE = re.compile(rf"(\d+(?:\.\d+)?) *({'|'.join(_UNITS)})", re.IGNORECASE)

Build = Callable[[SegmentOf | None], Graph]
"""Makes the training step in which so much is computed again."""


def as_recompute(value: Any) -> Any:
    """What `compile` was told, as plain data: None, "all", a number of bytes, or a list of lists of names.

    Raises
    ------
    ArgumentError
        for anything else.
    """
    if value is None or value is False:
        return None
    if value is True or value == ALL:
        return ALL
    size = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if size is not None:
        units = {name.lower(): size_bytes for name, size_bytes in _UNITS.items()}
        return int(float(size[1]) * units[size[2].lower()])
    if isinstance(value, int) and value > 0:
        return value
    parts = [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else []
    groups = [list(as_group(part)) for part in parts]
    if not groups or not all(group and all(isinstance(name, str) for name in group) for group in groups):
        raise ArgumentError(
            "expected recompute=None, 'all', names of layers, or a limit of memory such as 64_000_000 or '64 MB'; "
            f"found {value!r}"
        )
    return groups


def is_limit(recompute: Any) -> bool:
    """Whether it is a number of bytes, so that what is computed again depends on the batch."""
    return isinstance(recompute, int)


def chosen_segments(recompute: Any, nodes: Sequence[Node], build: Build, batch_size: int) -> SegmentOf | None:
    """What is to be computed again.

    Parameters
    ----------
    recompute : what `as_recompute` gave
    nodes : those that the loss is computed from
    build : see `Build`
    batch_size : that a limit is for

    Raises
    ------
    ArgumentError
        for names of layers that there are not.
    ModelError
        if more memory is needed than the limit, whatever is computed again.
    """
    if recompute is None:
        return None
    forward = [node for node in nodes if node.phase == FORWARD]
    layers = _layers_in_order(forward)
    if is_limit(recompute):
        return _Fitting(layers, build, recompute, batch_size).segments()
    if recompute == ALL:
        return _Runs.of(layers, _usual_length(layers)).segment_of
    return segments_of_scopes(recompute, [node for node in forward if node.call is not None])


def _usual_length(layers: Sequence[Sequence[Node]]) -> int:
    return max(isqrt(len(layers)), 1)


@dataclass(frozen=True)
class _Runs:
    """Runs of layers, by number.

    Attributes
    ----------
    numbers : of the run, by node
    chosen : those that are computed again
    """

    numbers: Mapping[Node, int]
    chosen: frozenset[int]

    @classmethod
    def of(cls, layers: Sequence[Sequence[Node]], length: int) -> _Runs:
        """Runs of about so many layers each, and of about as many bytes. What is in the last one is needed as soon as
        the backward pass begins, so it is kept."""
        sizes = [sum(map(_bytes_a_sample, nodes)) for nodes in layers]
        share = length * sum(sizes) / max(len(sizes), 1) or 1
        middles = [before + size / 2 for before, size in zip(accumulate(sizes, initial=0), sizes, strict=False)]
        numbers = [int(middle / share) for middle in middles]
        by_node = {node: number for nodes, number in zip(layers, numbers, strict=True) for node in nodes}
        return cls(by_node, frozenset(numbers[:-1]) - {*numbers[-1:]})

    def segment_of(self, node: Node) -> int | None:
        """See `SegmentOf`."""
        number = self.numbers.get(node)
        return number if number in self.chosen else None

    def only(self, chosen: Iterable[int]) -> _Runs:
        """With some of the runs computed again."""
        return _Runs(self.numbers, frozenset(chosen))


def _bytes_a_sample(node: Node) -> int:
    count = ElementCount.of(node.type.shape)
    return count.factor * node.dtype.itemsize if count.power else 0


def _layers_in_order(nodes: Sequence[Node]) -> list[list[Node]]:
    """The nodes of each call of a layer, with those behind it that are of none, in the order of the calls; nothing of
    what is behind the last one."""
    found: dict[Hashable, list[Node]] = {}
    waiting: list[Node] = []
    call = None
    for node in nodes:
        if node.call is None:
            waiting.append(node)
            continue
        if call is not None:
            found[call] += waiting
        call, waiting = node.call, []
        found.setdefault(call, []).append(node)
    return list(found.values())


@dataclass(frozen=True)
class Recomputed:
    """What a training step computes again for each sample, and what that costs and saves.

    Attributes
    ----------
    layers : by name, in order
    flops : that are done again
    saved_bytes : of values that are not kept from the forward pass to the backward pass
    """

    layers: Sequence[str]
    flops: int
    saved_bytes: int

    @classmethod
    def of(cls, graph: Graph) -> Recomputed:
        """What a graph computes again."""
        costs = sorted(_costs(graph, batch_size=1), key=lambda cost: cost[0].origin)
        return cls(
            list(dict.fromkeys(node.scope for node, _, _ in costs)),
            sum(flops for _, flops, _ in costs),
            sum(size_bytes for _, _, size_bytes in costs),
        )

    def __str__(self) -> str:
        if not self.layers:
            return "nothing is computed again in the backward pass"
        names = list(self.layers)
        told = in_words(names)
        if len(names) > _MOST_NAMES:
            told = f"{len(names)} layers, {', '.join(names[: _MOST_NAMES - 1])} … {names[-1]}"
        return (
            f"computed again in the backward pass: {told}; for each sample {self.flops:,} flops more and "
            f"{readable_size(self.saved_bytes)} less to keep"
        )


def _costs(graph: Graph, batch_size: int) -> Iterator[tuple[Node, int, int]]:
    """The nodes that are computed again, with their flops, and the bytes of those that the backward pass reads."""
    read: set[Node] = set()
    for node in reversed(graph.nodes):
        if node.phase == BACKWARD or (node in read and node.op.is_view):
            read.update(node.inputs)
    for node in graph.nodes:
        if node.phase == RECOMPUTE and not node.op.is_view:
            types = [bind_type(source.type, batch_size) for source in node.inputs]
            output = bind_type(node.type, batch_size)
            cost: Cost = node.op.cost(output, *types, **bind_attributes(node, batch_size))
            yield node, cost.flops, output.size_bytes if node in read else 0


@dataclass(frozen=True)
class _Trial:
    """Runs of a length, and the step in which all of them are computed again."""

    length: int
    runs: _Runs
    graph: Graph
    needed_bytes: int


class _Fitting:
    """Has as little computed again as will do for a limit.

    The longer runs are, the less is kept; but more is computed again, and is there at a time. So the shortest that will
    do are taken, and of them first those that save most for their flops.
    """

    def __init__(self, layers: Sequence[Sequence[Node]], build: Build, limit_bytes: int, batch_size: int) -> None:
        self._layers, self._build = layers, build
        self._limit_bytes, self._batch_size = limit_bytes, batch_size

    def segments(self) -> SegmentOf | None:
        """What is computed again; None: nothing has to be."""
        before = least = self._needed_bytes(self._graph(None))
        if before <= self._limit_bytes:
            return None
        shorter, longer = self._lengths()
        for length in (*reversed(shorter), *longer):
            trial = self._trial(length)
            if trial.needed_bytes <= self._limit_bytes:
                return self._fewest(self._with_shortest_runs(trial, shorter)).segment_of
            least = min(least, trial.needed_bytes)
        raise ModelError(
            f"expected a step on {self._batch_size} samples within recompute={self._limit_bytes:,} bytes of memory; "
            f"found that it takes {before:,}, and with layers computed again {least:,} at the least. "
            "Raise the limit, or give a smaller batch_size"
        )

    def _with_shortest_runs(self, fitting: _Trial, lengths: Sequence[int]) -> _Trial:
        """The shortest runs with which a step is small enough, by halving.

        Parameters
        ----------
        fitting : runs that will do
        lengths : shorter ones among those to try
        """
        low, high = 0, bisect_left(lengths, fitting.length)
        while low < high:
            middle = (low + high) // 2
            trial = self._trial(lengths[middle])
            if trial.needed_bytes <= self._limit_bytes:
                fitting, high = trial, middle
            else:
                low = middle + 1
        return fitting

    def _trial(self, length: int) -> _Trial:
        runs = _Runs.of(self._layers, length)
        graph = self._graph(runs.segment_of)
        return _Trial(length, runs, graph, self._needed_bytes(graph))

    def _graph(self, segment_of: SegmentOf | None) -> Graph:
        return simplify(self._build(segment_of))

    def _needed_bytes(self, graph: Graph) -> int:
        return footprint_bytes(make_program(graph), self._batch_size)

    def _lengths(self) -> tuple[list[int], list[int]]:
        """Of runs to try: 1, 2, 4 … up to about √n, with which least memory is needed as a rule; and longer ones."""
        count, usual = len(self._layers), _usual_length(self._layers)
        doubled = [1 << power for power in range(count.bit_length()) if 2 << power <= count]
        return [length for length in doubled if length < usual] + [usual], [n for n in doubled if n > usual]

    def _ranked(self, graph: Graph, runs: _Runs) -> list[int]:
        """The runs that save anything, those that save most for their flops first."""
        numbers = {node.origin: runs.segment_of(node) for nodes in self._layers for node in nodes}
        flops: dict[int, int] = defaultdict(int)
        saved: dict[int, int] = defaultdict(int)
        for node, own_flops, size_bytes in _costs(graph, self._batch_size):
            number = numbers.get(node.origin)
            if number is not None:
                flops[number] += own_flops
                saved[number] += size_bytes
        return sorted(saved, key=lambda number: (-saved[number] / (1 + flops[number]), number))

    def _fewest(self, trial: _Trial) -> _Runs:
        """So many of the runs as will do, by halving."""
        runs, ranked = trial.runs, self._ranked(trial.graph, trial.runs)
        low, high = 0, len(ranked)
        while high - low > 1:
            middle = (low + high) // 2
            if self._needed_bytes(self._graph(runs.only(ranked[:middle]).segment_of)) <= self._limit_bytes:
                high = middle
            else:
                low = middle
        return runs.only(ranked[:high])
