"""Where the time went: what all workers took for each node, ready to be looked at.

The node loop stamps the time after each kernel; a `Recorder` adds the differences up. What a call does besides its
nodes is booked too, so that the parts add up to the whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TextIO

from miai_graph.graph import Graph, views
from miai_graph.terminal import plain_text, print_text, terminal_width
from miai_graph.timing.chrome_trace import chrome_trace
from miai_graph.timing.data import timing_arguments, timing_to_data
from miai_graph.timing.difference import TimingDifference
from miai_graph.timing.exports import (
    records_to_pandas,
    timed_networkx,
    to_dot_text,
    write_csv,
    write_json,
    write_text,
)
from miai_graph.timing.grouping import GroupBy, SortBy, add_up, group_name, sorted_groups
from miai_graph.timing.html import html_table
from miai_graph.timing.records import Slice, TimedWorker, TimingRecord
from miai_graph.timing.table import format_table, remarks, table_columns
from miai_graph.timing.timeline import format_timeline
from miai_graph.timing.verdict import Verdict, judge

if TYPE_CHECKING:
    import networkx
    import pandas

_NOTEBOOK_ROWS = 20


class Timing:
    """A snapshot of where the time went.

    >>> timing = history.timing  # or step.timing
    >>> print(timing.verdict())
    >>> timing.table("op", limit=5)
    >>> timing.timeline()
    >>> (timing - other).table()

    Attributes
    ----------
    records : one `TimingRecord` for each node and worker
    steps : how many calls are counted
    start_up_seconds : spent outside of the steps: on compiling, and on preparing for each size of batch
    peak_bytes : the most memory that a plan uses for computed values and scratch
    notes : what else is to be known of how the steps were run
    slices : what each worker did, one after the other, in the steps that were traced
    wall_seconds : how long the steps took, with all that is between them; None: as long as the longest worker's records
    graph : the graph that was timed, whose names the records bear; None where there is none
    typical_step : of the steps that were traced, the last one on a batch of the commonest size, which the last one of
        an epoch often is not; None: not known
    measure : adds to a worker what takes long to find out; called when `workers` is first read. None: nothing is
        left to find out
    """

    def __init__(
        self,
        records: Iterable[TimingRecord],
        steps: int,
        start_up_seconds: float = 0.0,
        peak_bytes: int = 0,
        notes: Iterable[str] = (),
        slices: Iterable[Slice] = (),
        *,
        wall_seconds: float | None = None,
        workers: Iterable[TimedWorker] = (),
        graph: Graph | None = None,
        typical_step: int | None = None,
        measure: Callable[[TimedWorker], TimedWorker] | None = None,
    ) -> None:
        self.records = tuple(records)
        self.steps = steps
        self.start_up_seconds = start_up_seconds
        self.peak_bytes = peak_bytes
        self.notes = tuple(notes)
        self.slices = tuple(slices)
        self._workers = tuple(workers)
        self.measure = measure
        self.graph = graph
        self.typical_step = typical_step
        self.wall_seconds = self.seconds if wall_seconds is None else wall_seconds

    @property
    def workers(self) -> tuple[TimedWorker, ...]:
        """One `TimedWorker` each, with all that is to be found out; empty where they are not known."""
        if self.measure is not None:
            self._workers, self.measure = tuple(map(self.measure, self._workers)), None
        return self._workers

    @property
    def unmeasured_workers(self) -> tuple[TimedWorker, ...]:
        """The workers, as far as they are known."""
        return self._workers

    @property
    def seconds(self) -> float:
        """The time of all steps together, without start-up; the greatest of the workers'."""
        by_worker: dict[int, float] = defaultdict(float)
        for record in self.records:
            by_worker[record.worker] += record.seconds
        return max(by_worker.values(), default=0.0)

    def grouped(self, by: GroupBy = "layer", sort: SortBy = "seconds") -> list[TimingRecord]:
        """Records added up over nodes and workers, one for each group, with the group's name as `node`.

        Time that belongs to no layer or op stands under its phase's name in parentheses. A calling process that only
        gives the workers their work, and waits for them, is left out. ``calls`` of a group is that of its most called
        node. What the members of a group do not have in common is "", None, or -1 for the worker.

        Parameters
        ----------
        by : "layer", "op", "node", "phase", "worker", "host" or "stage"
        sort : "seconds", the longest first; "order", of the model: as the nodes were built; "name"; or "calls"

        Raises
        ------
        ArgumentError
            if there is no such grouping or order.
        """
        return [add_up(group_name(members[0], by), members) for members in sorted_groups(self, by, sort)]

    def table(
        self,
        by: GroupBy = "layer",
        limit: int | None = 30,
        file: TextIO | None = None,
        *,
        sort: SortBy = "seconds",
        width: int | None = None,
    ) -> None:
        """Print where the time went, in characters that the file's encoding has.

        ``mean`` is that of a step, of all workers together. Nodes that one kernel computes share its time by their
        arithmetic, and have its speed. GFLOP/s and GB/s are those while computing, and
        ``roofline`` is the share of what the workers can do at their measured peaks; it is more than 100 % where values
        come from caches, which are faster than memory.

        Parameters
        ----------
        by, sort : as for `grouped`
        limit : the number of rows; the rest are one row. None: all
        file : standard output by default
        width : the most characters in a line; None: as many as the terminal has
        """
        width = terminal_width(file) if width is None else width
        print_text(self.format_table(by, limit, sort=sort, width=width), file)

    def format_table(
        self,
        by: GroupBy = "layer",
        limit: int | None = 30,
        *,
        sort: SortBy = "seconds",
        width: int | None = None,
        ascii_only: bool = False,
    ) -> str:
        """The text that `table` prints; in ASCII characters, if that is asked for."""
        text = format_table(self, by, sort, limit, width)
        return plain_text(text) if ascii_only else text

    def timeline(self, step: int | None = None, *, file: TextIO | None = None, width: int | None = None) -> None:
        """Print what each worker did in a step: a lane for each, with computing, sending, waiting and idling.

        The characters are those that the file's encoding has.

        Parameters
        ----------
        step : its number; None: the last one that was traced
        file : standard output by default
        width : the most characters in a line; None: as many as the terminal has

        Raises
        ------
        ArgumentError
            if that step was not traced.
        """
        width = terminal_width(file) if width is None else width
        print_text(self.format_timeline(step, width=width), file)

    def format_timeline(self, step: int | None = None, *, width: int | None = None, ascii_only: bool = False) -> str:
        """The text that `timeline` prints; in ASCII characters, if that is asked for."""
        text = format_timeline(self, step, width)
        return plain_text(text) if ascii_only else text

    def verdict(self, *, ascii_only: bool = False) -> Verdict:
        """A handful of sentences: where the time goes, and what to change next, as far as the figures tell.

        Parameters
        ----------
        ascii_only : whether to keep to ASCII characters, for an output that knows no others
        """
        sentences = judge(self)
        return Verdict(map(plain_text, sentences)) if ascii_only else sentences

    def plot(self, path: Any = None, kind: str = "layers", **options: Any) -> Any:
        """Draw bars of "layers", a "timeline" or a "roofline"; see `miai_graph.views.plot_timing`."""
        return views["plot_timing"](self, path, kind, **options)

    def __sub__(self, other: object) -> TimingDifference:
        """How the times of a step differ; see `TimingDifference`."""
        return TimingDifference(self, other) if isinstance(other, Timing) else NotImplemented

    def to_json(self) -> dict[str, Any]:
        """Plain data, as Python's json writes it; without the graph."""
        return timing_to_data(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any], graph: Graph | None = None) -> Timing:
        """The timing of which `to_json` gave the data.

        Parameters
        ----------
        graph : that was timed, where it is at hand

        Raises
        ------
        SavingError
            if the data is not that of a timing.
        """
        return cls(**timing_arguments(data), graph=graph)

    def to_pandas(self) -> pandas.DataFrame:
        """A frame with a row for each record, with share, gflops (GFLOP/s) and gbytes (GB/s) besides.

        Shares are of the time of all workers; there is none for a calling process that is no worker. What one kernel
        computes has its speed.

        Raises
        ------
        MissingDependencyError
            if pandas is not installed.
        """
        return records_to_pandas(self)

    def to_csv(self, path: Any) -> None:
        """Write a row for each record, with the columns of `to_pandas`.

        Raises
        ------
        ArgumentError, SavingError
            if `path` is none, or cannot be written.
        """
        write_csv(self, path)

    def to_chrome_trace(self, path: Any) -> None:
        """Write the traced steps in the Trace Event Format, which ui.perfetto.dev and chrome://tracing open.

        There is a process for each host and a thread for each worker, and arrows from forward to backward passes and
        from what is sent to who receives it. A slice of a kernel that computes several nodes bears the name of one of
        them, and lists all as ``computes``.

        Raises
        ------
        ArgumentError, SavingError
            if no step was traced; if `path` is none, or cannot be written.
        """
        write_json(path, chrome_trace(self))

    def to_networkx(self) -> networkx.MultiDiGraph:
        """The graph as `Graph.to_networkx` gives it, with the times as attributes of its nodes.

        These are seconds, share (of all nodes of the graph), calls, flops, bytes, memory_bytes, workers (how many)
        and kernel (as in `TimingRecord`).

        Raises
        ------
        ArgumentError
            if the graph is not known.
        """
        return timed_networkx(self)

    def to_dot(self, path: Any = None) -> str:
        """The graph in Graphviz's language: layers as clusters, nodes with their share of the time and coloured by it.

        Parameters
        ----------
        path : a file to write the text to; None: none

        Raises
        ------
        ArgumentError, SavingError
            if the graph is not known; if `path` is none, or cannot be written.
        """
        text = to_dot_text(self)
        if path is not None:
            write_text(path, text)
        return text

    def __str__(self) -> str:
        return self.format_table()

    def __repr__(self) -> str:
        return f"<Timing of {self.steps} steps, {self.seconds:.3f} s, {len(self.records)} records>"

    def _repr_html_(self) -> str:
        columns = table_columns(self, "layer", "seconds", _NOTEBOOK_ROWS)
        return html_table(columns, [*self.verdict(), *remarks(self)])
