"""What an executor is, and how it is found by name.

Executors are separate: this package never imports one. They are entry points of the group ``miai_graph.executors``, so
anyone can ship another.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Self

from miai_graph.errors import ArgumentError, ExecutorError
from miai_graph.feeding import Batch
from miai_graph.graph import Graph
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.ops.leaves import assign

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from miai_graph.timing import Timing

ENTRY_POINT_GROUP = "miai_graph.executors"


@dataclass(frozen=True, slots=True)
class Worker:
    """One of the processes that an executor computes in."""

    index: int
    pid: int
    host: str
    threads: int


class Executable(ABC):
    """A graph made ready to run on an executor."""

    step: int
    """The number of the next call, from which random ops take their numbers. It may be set."""

    caller: int = 0
    """The number of the worker that is the calling process; one more than theirs if it only waits for them."""

    @abstractmethod
    def __call__(self, *arrays: Any) -> list[Array]:
        """Run once on arrays for the inputs, apply the updates, and return the outputs.

        If it raises, nothing was updated.
        """

    @abstractmethod
    def run(self, batches: Iterable[Batch]) -> Iterator[list[Array]]:
        """Run on each batch in turn. An executor may place the next batch while it computes on this one."""

    @abstractmethod
    def warmup(self, batch_size: int) -> None:
        """Prepare everything for batches of this size, without running."""

    @property
    @abstractmethod
    def timing(self) -> Timing:
        """Where the time of all calls so far went."""

    @abstractmethod
    def reset_timing(self, trace_steps: Collection[int] = ()) -> None:
        """Begin to count anew.

        Parameters
        ----------
        trace_steps : the numbers, from 0 on, of steps from now on that are traced, beside the first and the last
        """

    @property
    def kernels(self) -> str:
        """Which nodes each kernel computes, as text; empty where the executor does not tell."""
        return ""

    @property
    @abstractmethod
    def state(self) -> MutableMapping[Node, Array]:
        """The values of the graph's variables, by node: copies when read."""


class Executor(ABC):
    """Runs graphs. Use it in a ``with`` statement, or close it."""

    name: str
    closed: bool = False

    @abstractmethod
    def compile(
        self, graph: Graph, inputs: Sequence[Node], outputs: Sequence[Node], updates: Mapping[Node, Node]
    ) -> Executable:
        """Make a graph ready to run.

        Parameters
        ----------
        graph : of the outputs and updates
        inputs : the nodes that are fed at each call, in that order; the graph may use fewer, not more
        """

    @property
    @abstractmethod
    def workers(self) -> Sequence[Worker]:
        """The processes that it computes in."""

    def close(self) -> None:
        """Give back processes, threads and memory. Doing it twice does nothing; values in the state stay."""
        self.closed = True

    def require_open(self) -> None:
        if self.closed:
            raise ExecutorError(f"expected an executor that is open; found {self!r}, which was closed. Make another")

    def __enter__(self) -> Self:
        self.require_open()
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class VariableValues(MutableMapping[Node, Array]):
    """The values of some variables, by node: what `Executable.state` gives."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = nodes

    def __getitem__(self, node: Node) -> Array:
        if not any(node is own for own in self._nodes):
            raise KeyError(getattr(node, "name", node))
        return node.value

    def __setitem__(self, node: Node, value: Array) -> None:
        self[node]
        assign(node, value)

    def __delitem__(self, node: Node) -> None:
        raise ArgumentError("variables cannot be deleted from a graph")

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)


@cache
def _entry_points() -> Mapping[str, EntryPoint]:
    import importlib.metadata

    return {
        point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    } | _own_entry_points()


@cache
def _own_entry_points() -> dict[str, EntryPoint]:
    """Those that come with this package: to look through all that are installed takes ten times as long."""
    import importlib.metadata

    try:
        points = importlib.metadata.distribution("miai-graph").entry_points
    except importlib.metadata.PackageNotFoundError:
        return {}
    return {point.name: point for point in points.select(group=ENTRY_POINT_GROUP)}


def executor_names() -> list[str]:
    """The names that `executor` knows."""
    return sorted(_entry_points())


def executor(name: str, **options: Any) -> Executor:
    """A new executor of the kind named, with its options.

    >>> mg.executor("serial", threads=1)

    Raises
    ------
    ExecutorError
        if there is none of that name, or it cannot be loaded.
    ArgumentError
        if it does not take one of the options.
    """
    point = _own_entry_points().get(name) or _entry_points().get(name)
    if point is None:
        known = ", ".join(repr(name) for name in executor_names())
        advice = f"There are: {known}" if known else "None are installed: run pip install -e . in the checkout"
        raise ExecutorError(f"expected the name of an executor; found {name!r}. {advice}")
    try:
        kind = point.load()
    except (ImportError, AttributeError) as error:
        raise ExecutorError(
            f"expected executor {name!r} at {point.value}; it cannot be loaded ({error}). Another package of the name "
            f"{point.module.partition('.')[0]!r} may stand before it: see miai-graph doctor"
        ) from error
    accepted = inspect.signature(kind)
    try:
        accepted.bind(**options)
    except TypeError as error:
        names = ", ".join(accepted.parameters) or "none"
        raise ArgumentError(f"expected options of executor {name!r} ({names}); found others: {error}") from None
    made: Executor = kind(**options)
    return made


_shared: dict[str, Executor] = {}


def as_executor(given: str | Executor) -> Executor:
    """The executor itself, or the one that all who give this name share in this process."""
    if isinstance(given, Executor):
        given.require_open()
        return given
    if not isinstance(given, str):
        raise ExecutorError(f"expected an executor or the name of one; found {given!r}")
    shared = _shared.get(given)
    if shared is None or shared.closed:
        shared = _shared[given] = executor(given)
    return shared
