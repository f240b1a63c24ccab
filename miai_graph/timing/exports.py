"""Timings for other programs: tables, graphs, and the files they are written to."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miai_graph.errors import ArgumentError, MissingDependencyError, SavingError
from miai_graph.graph import Graph
from miai_graph.timing.grouping import calling_processes
from miai_graph.timing.rates import Rates
from miai_graph.timing.records import TimingRecord
from miai_graph.timing.words import duration, percent

if TYPE_CHECKING:
    import networkx
    import pandas

    from miai_graph.timing.timing import Timing

_COLUMNS = [field.name for field in fields(TimingRecord) if field.name != "histogram"]
_DERIVED = ["share", "gflops", "gbytes"]
_LIGHT, _DARK = (255, 255, 255), (240, 140, 60)


def _rows(timing: Timing) -> Iterator[list[Any]]:
    """For each record its fields, and what is derived of them."""
    asking = calling_processes(timing)
    speeds = Rates(timing)
    total = sum(record.seconds for record in timing.records if record.worker not in asking)
    for record in timing.records:
        share = None if record.worker in asking else record.seconds / total if total else 0.0
        found = speeds.flops_per_second([record]), speeds.bytes_per_second([record])
        rates = [(rate or 0.0) / 1e9 for rate in found]
        yield [*(getattr(record, name) for name in _COLUMNS), share, *rates]


def records_to_pandas(timing: Timing) -> pandas.DataFrame:
    """The frame of `Timing.to_pandas`."""
    try:
        import pandas
    except ImportError as error:
        raise MissingDependencyError(
            "expected pandas, for frames; found none. Install it: pip install 'miai-graph[pandas]', or use to_csv"
        ) from error
    frame = pandas.DataFrame(list(_rows(timing)), columns=[*_COLUMNS, *_DERIVED])
    # An integer where there is a stage, without turning the others into floats.
    return frame.astype({"stage": "Int64", "share": "float64"})


def write_csv(timing: Timing, path: Any) -> None:
    """Write what `Timing.to_csv` does."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_COLUMNS, *_DERIVED])
    writer.writerows(["" if value is None else value for value in row] for row in _rows(timing))
    write_text(path, text.getvalue())


def write_json(path: Any, data: Any) -> None:
    """Write data as JSON; errors as for `write_text`."""
    write_text(path, json.dumps(data, separators=(",", ":"), allow_nan=False))


def write_text(path: Any, text: str) -> None:
    """Write a text file.

    Raises
    ------
    ArgumentError
        if `path` is neither a string nor a Path.
    SavingError
        if it cannot be written.
    """
    if not isinstance(path, str | os.PathLike):
        raise ArgumentError(f"expected a path that is a string or a Path; found {path!r}")
    try:
        Path(path).write_text(text, encoding="utf-8", newline="\n")
    except (OSError, ValueError) as error:
        raise SavingError(f"expected a path that can be written; found {path} ({error})") from error


def _graph_of(timing: Timing) -> Graph:
    if timing.graph is None:
        raise ArgumentError(
            f"expected a timing of a known graph; found {timing!r}, which has none. Give it to "
            "Timing.from_json(data, graph)"
        )
    return timing.graph


def _by_node(timing: Timing) -> tuple[dict[str, list[TimingRecord]], float]:
    """The records of each of the graph's nodes, and the seconds of all of them."""
    phases = {name: node.phase for node, name in _graph_of(timing).names.items()}
    records: dict[str, list[TimingRecord]] = defaultdict(list)
    for record in timing.records:
        # Overhead may be named as a node is.
        if phases.get(record.node) == record.phase:
            records[record.node].append(record)
    return records, sum(record.seconds for members in records.values() for record in members)


def timed_networkx(timing: Timing) -> networkx.MultiDiGraph:
    """The graph of `Timing.to_networkx`."""
    records, total = _by_node(timing)
    result = _graph_of(timing).to_networkx()
    for name in result.nodes:
        members = records.get(name, [])
        seconds = sum(record.seconds for record in members)
        result.nodes[name].update(
            seconds=seconds,
            share=seconds / total if total else 0.0,
            calls=max((record.calls for record in members), default=0),
            flops=sum(record.flops for record in members),
            bytes=sum(record.bytes for record in members),
            memory_bytes=sum(record.memory_bytes for record in members),
            workers=len({record.worker for record in members}),
            kernel=next((record.kernel for record in members if record.kernel), ""),
        )
    return result


def to_dot_text(timing: Timing) -> str:
    """The text of `Timing.to_dot`."""
    records, total = _by_node(timing)
    graph = _graph_of(timing)
    names = graph.names
    numbers = {node: number for number, node in enumerate(graph.nodes)}
    tree: dict[str, Any] = {}
    for node in graph.nodes:
        seconds = sum(record.seconds for record in records.get(names[node], ()))
        share = seconds / total if total else 0.0
        text = f"{names[node]}\n{node.op.name} {node.type}"
        if seconds:
            text += f"\n{duration(seconds / max(timing.steps, 1))}, {percent(share)}"
        _branch(tree, node.scope)[f"n{numbers[node]}"] = f"label={_quote(text)}, fillcolor={_quote(_colour(share))}"
    lines = ["digraph {", '  node [shape=box, style="rounded,filled", fontname="sans-serif"];']
    lines += _clusters(tree, "cluster", "  ")
    lines += [f"  n{numbers[source]} -> n{numbers[node]};" for node in graph.nodes for source in node.inputs]
    return "\n".join([*lines, "}", ""])


def _branch(tree: dict[str, Any], scope: str) -> dict[str, Any]:
    """The part of the tree in which nodes of that scope stand. The parts of scopes have names that end in "/"."""
    for part in scope.split("/") if scope else ():
        tree = tree.setdefault(f"{part}/", {})
    return tree


def _clusters(tree: Mapping[str, Any], name: str, indent: str) -> Sequence[str]:
    """The lines for nodes, and for layers as boxes around them."""
    lines: list[str] = []
    for number, (key, value) in enumerate(tree.items()):
        if isinstance(value, str):
            lines.append(f"{indent}{key} [{value}];")
            continue
        inner = f"{name}_{number}"
        lines += [f"{indent}subgraph {inner} {{", f"{indent}  label={_quote(key[:-1])};"]
        lines += [*_clusters(value, inner, f"{indent}  "), f"{indent}}}"]
    return lines


def _quote(text: str) -> str:
    """A string of Graphviz's language, with lines in the middle of boxes."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _colour(share: float) -> str:
    """From white for nothing to orange for half of the time and more, on both of which black can be read."""
    weight = min(2.0 * share, 1.0) ** 0.5
    return "#" + "".join(
        f"{round(light + (dark - light) * weight):02x}" for light, dark in zip(_LIGHT, _DARK, strict=True)
    )
