"""What is said between processes besides steps: plain data, pickled, for executables and plans and never in a step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from executors.processes.memory import Kind
from miai_graph.graph_data import GraphData
from miai_graph.op import Array


@dataclass(frozen=True)
class Location:
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


@dataclass(frozen=True)
class SetUp:
    """The first message to a worker."""

    index: int
    workers: int
    is_crowded: bool
    memory: Kind
    has_bells: bool


@dataclass(frozen=True)
class Received:
    """The answer to a segment that has a name."""


@dataclass(frozen=True)
class SegmentFollows:
    """The next thing on the connection is a segment."""


@dataclass(frozen=True)
class DropSegments:
    """Nobody uses these any more."""

    numbers: tuple[int, ...]


@dataclass(frozen=True)
class NewGraph:
    """What an executable computes, at first by so many workers and on batches of this size."""

    executable: int
    graph: GraphData
    inputs: tuple[str, ...]
    workers: int
    batch_size: int
    is_reproducible: bool


@dataclass(frozen=True)
class DropExecutable:
    """An executable is gone, and its plans with it."""

    executable: int


@dataclass(frozen=True)
class NewPlan:
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
    variables: tuple[tuple[Location, Location], ...]
    exchange: Location
    turns: Location
    indices: Location
    stamps: Location
    threads: int | None
    slots: tuple[tuple[Location, ...], ...]


@dataclass(frozen=True)
class NewBinding:
    """Prepare a plan for a step in which the graph's variables have these versions."""

    plan: int
    versions: Array


@dataclass(frozen=True)
class AreYouReady:
    """Answer with `Ready` when everything that was said before is done."""


@dataclass(frozen=True)
class Ready:
    """The answer."""


@dataclass(frozen=True)
class NewTable:
    """Arrays in memory from which batches are rows, one for each input of the executable."""

    table: int
    arrays: tuple[Location, ...]


@dataclass(frozen=True)
class DropTable:
    """Batches will not come from there any more."""

    table: int


@dataclass(frozen=True)
class TellTiming:
    """Answer with `timing.recorder.Timed`."""

    executable: int


@dataclass(frozen=True)
class ResetTiming:
    """Begin to count anew."""

    executable: int


@dataclass(frozen=True)
class Failed:
    """A worker's step failed: the text of the error, whether a node is to blame, and the lines that led to it."""

    text: str
    is_execution: bool
    lines: str
