"""What is said between processes besides steps: plain data, pickled, for executables and plans and never in a step."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from executors.processes.memory import Kind
from miai_graph.graph_data import GraphData
from miai_graph.op import Array


class Location(NamedTuple):
    """An array in shared memory: the number of the segment, where in it, and the array's dtype and shape."""

    segment: int
    offset: int
    dtype: str
    shape: tuple[int, ...]

    def array(self, segment: Array) -> Array:
        """The array, in this process."""
        dtype = np.dtype(self.dtype)
        size_bytes = dtype.itemsize * int(np.prod(self.shape))
        return segment[self.offset : self.offset + size_bytes].view(dtype).reshape(self.shape)


class SetUp(NamedTuple):
    """The first message to a worker."""

    index: int
    workers: int
    is_crowded: bool
    memory: Kind
    has_bells: bool


class Received(NamedTuple):
    """The answer to a segment that has a name."""


class SegmentFollows(NamedTuple):
    """The next thing on the connection is a segment."""


class DropSegments(NamedTuple):
    """Nobody uses these any more."""

    numbers: tuple[int, ...]


class NewGraph(NamedTuple):
    """What an executable computes, mostly by so many workers."""

    executable: int
    graph: GraphData
    inputs: tuple[str, ...]
    workers: int
    is_reproducible: bool


class DropExecutable(NamedTuple):
    """An executable is gone, and its plans with it."""

    executable: int


class NewPlan(NamedTuple):
    """How an executable's graph is run on batches of one size.

    workers : how many take part
    parts : into how many parts the batch is cut
    variables : both arrays of each of the graph's variables
    exchange : the memory of the exchange
    turns, indices, stamps : where worker 0 writes which arrays hold the values, and row numbers; and where the
        workers write the times, each into its row
    threads : see `BoundPlan`
    slots : for the inputs, by place, the whole batch: two, in turn
    """

    plan: int
    executable: int
    batch_size: int
    workers: int
    parts: int
    is_reproducible: bool
    variables: tuple[tuple[Location, Location], ...]
    exchange: Location
    turns: Location
    indices: Location
    stamps: Location
    threads: int | None
    slots: tuple[tuple[Location, ...], ...]


class AreYouReady(NamedTuple):
    """Answer with `Ready` when everything that was said before is done."""


class Ready(NamedTuple):
    """The answer."""


class NewTable(NamedTuple):
    """Arrays in memory from which batches are rows, one for each input of the executable."""

    table: int
    arrays: tuple[Location, ...]


class DropTable(NamedTuple):
    """Batches will not come from there any more."""

    table: int


class TellTiming(NamedTuple):
    """Answer with `timing.recorder.Timed`."""

    executable: int


class ResetTiming(NamedTuple):
    """Begin to count anew."""

    executable: int


class Failed(NamedTuple):
    """A worker's step failed: the text of the error, whether a node is to blame, and the lines that led to it."""

    text: str
    is_execution: bool
    lines: str
