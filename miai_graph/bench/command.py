"""The command ``miai-graph bench``."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click

from miai_graph.bench.chart import plot_growth, plot_results
from miai_graph.bench.growth import GROWTHS, measure_growth
from miai_graph.bench.hosts_measure import HOSTS, SCALED, measure_hosts, measurements
from miai_graph.bench.hosts_report import print_hosts_results
from miai_graph.bench.hosts_results import HostsResults
from miai_graph.bench.hosts_sides import OwnSide, Side, TorchSide
from miai_graph.bench.machine import check_peer, describe_machine, has_peer
from miai_graph.bench.measure import Tell, measure_row
from miai_graph.bench.networks import EmulatedNetwork
from miai_graph.bench.report import print_results
from miai_graph.bench.results import Results
from miai_graph.bench.specs import PEERS, SideSpec, check_distinct, parse_executors, parse_peers
from miai_graph.bench.timing_cost import format_costs, measure_timing_cost
from miai_graph.bench.workloads import WORKLOADS, workload
from miai_graph.errors import ArgumentError
from miai_graph.executor import executor_names
from miai_graph.terminal import print_rich, print_text, terminal_console
from miai_graph.timing.exports import write_text
from miai_graph.views.style import check_path, save

LINK_BITS_PER_SECOND = 1e9
_POINTS = 5


@click.command()
@click.argument("names", nargs=-1, metavar="[WORKLOADS]...")
@click.option("--batch", "batches", metavar="N,N", help="Batch sizes. [default: those of each workload]")
@click.option(
    "--executors",
    metavar="NAME:OPTION=VALUE,...",
    help="Executors with their options, the first of which the others are compared with. "
    "[default: serial:threads=1, and all that are installed]",
)
@click.option(
    "--vs",
    "peers",
    metavar="NAME,...",
    help=f"What to compare with: {', '.join(PEERS)}. [default: nothing; with --grow torch and jax, where installed]",
)
@click.option("--rounds", type=click.IntRange(min=1), help="How often each has its turn. [default: 5; 3 with --grow]")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    help="How long a turn is measured. [default: 1; 0.3 with --grow]",
)
@click.option("--peer-python", default=sys.executable, help="The Python that has PyTorch and JAX. [default: this one]")
@click.option(
    "--hosts",
    is_flag=True,
    help="On two emulated hosts (Linux, as root), with a link of 1 Gbit/s: pipelines of stacked_mlp, and workloads "
    f"data parallel. [default: {', '.join(SCALED)}]",
)
@click.option("--ops", is_flag=True, help="Also where the time goes on executors, by op, beside what is possible.")
@click.option("--timing", is_flag=True, help="What recording times costs on the serial executor, and nothing else.")
@click.option(
    "--grow",
    type=click.Choice(list(GROWTHS)),
    help="Networks that grow instead of WORKLOADS: what a step costs by batch, or by depth, width or nodes.",
)
@click.option("--points", type=click.IntRange(min=1), help="At how many sizes, with --grow. [default: 5]")
@click.option("--sizes", "grown_sizes", metavar="N,N", help="At these sizes, with --grow.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="A file for all figures.")
@click.option("--chart", type=click.Path(dir_okay=False, path_type=Path), help="A file for a picture: png, svg or pdf.")
def bench(
    names: Sequence[str],
    batches: str | None,
    executors: str | None,
    peers: str | None,
    rounds: int | None,
    seconds: float | None,
    peer_python: str,
    hosts: bool,
    ops: bool,
    timing: bool,
    grow: str | None,
    points: int | None,
    grown_sizes: str | None,
    json_path: Path | None,
    chart: Path | None,
) -> None:
    """Measure training steps of the standard WORKLOADS (all of them by default) on executors, in PyTorch and in JAX.

    Each side is a process of its own; they run in turns, so that what else the machine does hits all of them.
    """
    if grow is not None:
        if names or hosts or ops or timing or batches is not None:
            raise ArgumentError(
                "expected no workloads, --batch, --hosts, --ops or --timing with --grow. Leave them out"
            )
        if points is not None and grown_sizes is not None:
            raise ArgumentError("expected --points or --sizes; found both. Leave one out")
        at = GROWTHS[grow].sizes(points or _POINTS) if grown_sizes is None else sorted(_sizes(grown_sizes, "sizes"))
        specs = _specs(executors or _grown_executors(), _installed_peers(peer_python) if peers is None else peers)
        _bench_growth(
            grow, at, specs, {"rounds": rounds or 3, "seconds": seconds or 0.3}, peer_python, json_path, chart
        )
        return
    if points is not None or grown_sizes is not None:
        raise ArgumentError("expected --grow with --points or --sizes. Add it")
    rounds, seconds, peers = rounds or 5, seconds or 1.0, peers or ""
    chosen = [workload(name) for name in names or (SCALED if hosts else WORKLOADS)]
    sizes = None if batches is None else _sizes(batches)
    if timing:
        if hosts or ops or peers or executors is not None or chart is not None:
            raise ArgumentError(
                "expected no --hosts, --ops, --vs, --executors or --chart with --timing. Leave them out"
            )
        pairs = [(item.name, batch) for item in chosen for batch in sizes or item.batches[:1]]
        _bench_timing(pairs, rounds * seconds, json_path)
        return
    if hosts:
        if ops or executors is not None or chart is not None:
            raise ArgumentError("expected no --ops, --executors or --chart with --hosts. Leave them out")
        settings = {"bits_per_second": LINK_BITS_PER_SECOND, "rounds": rounds, "seconds": seconds}
        _bench_hosts([item.name for item in chosen], sizes, settings, peers, peer_python, json_path)
        return
    default = ",".join(dict.fromkeys(["serial:threads=1", *executor_names()]))
    specs = _specs(executors or default, peers)
    _check(specs, peer_python, chart)
    results = Results(describe_machine(), {"rounds": rounds, "seconds": seconds}, [spec.text for spec in specs])
    pairs = [(item.name, batch) for item in chosen for batch in sizes or item.batches]
    with _progress(len(pairs)) as begin:
        for name, batch in pairs:
            tell = begin(f"{name}, batch {batch}")
            results.rows.append(measure_row(name, batch, specs, rounds, seconds, peer_python, tell, with_ops=ops))
    print_rich(partial(print_results, results))
    _write(results.to_json, json_path)
    if chart is not None:
        save(plot_results(results), chart)


def _specs(executors: str, peers: str) -> list[SideSpec]:
    specs = [*parse_executors(executors), *parse_peers(peers)]
    check_distinct(specs)
    return specs


def _check(specs: Sequence[SideSpec], peer_python: str, chart: Path | None) -> None:
    """Before anything is measured: what is wrong with where peers are, or with the picture's path."""
    check_path(chart)
    for library in sorted({spec.library for spec in specs if spec.is_peer}):
        check_peer(peer_python, library)


def _grown_executors() -> str:
    return ",".join(name for name in ("serial", "processes") if name in executor_names())


def _installed_peers(peer_python: str) -> str:
    return ",".join(name for name in ("torch", "jax") if has_peer(peer_python, name))


def _bench_growth(
    grow: str,
    sizes: Sequence[int],
    specs: Sequence[SideSpec],
    settings: Mapping[str, Any],
    peer_python: str,
    json_path: Path | None,
    chart: Path | None,
) -> None:
    """Measure networks that grow."""
    _check(specs, peer_python, chart)
    found = {**settings, "grow": grow, "sizes": list(sizes)}
    results = Results(describe_machine(), found, [spec.text for spec in specs])
    with _progress(len(sizes)) as begin:
        measure_growth(GROWTHS[grow], sizes, specs, results, peer_python, begin)
    print_rich(partial(print_results, results))
    _write(results.to_json, json_path)
    if chart is not None:
        save(plot_growth(results, sizes, GROWTHS[grow].title), chart)


def _bench_timing(pairs: Sequence[tuple[str, int]], seconds: float, json_path: Path | None) -> None:
    """Measure workloads at batch sizes with and without recording."""
    costs = []
    with _progress(len(pairs)) as begin:
        for name, batch in pairs:
            begin(f"{name}, batch {batch}")
            costs.append(measure_timing_cost(name, batch, seconds))
    print_text(format_costs(costs))
    _write(lambda: {"machine": describe_machine(), "costs": [cost.data for cost in costs]}, json_path)


def _bench_hosts(
    names: Sequence[str],
    batches: Sequence[int] | None,
    settings: Mapping[str, Any],
    peers: str,
    peer_python: str,
    json_path: Path | None,
) -> None:
    """Measure on emulated hosts."""
    if peers not in ("", "torch"):
        raise ArgumentError(f"expected --vs torch, or none, with --hosts; found {peers!r}")
    if peers:
        check_peer(peer_python, "torch")
    results = HostsResults(describe_machine(), settings)
    with EmulatedNetwork(HOSTS, settings["bits_per_second"]) as network:
        sides: list[Side] = [OwnSide(network), *([TorchSide(network, peer_python)] if peers else [])]
        measured = measurements(names, batches)
        with _progress(len(measured)) as begin:
            measure_hosts(measured, sides, results, begin)
    print_rich(partial(print_hosts_results, results))
    _write(results.to_json, json_path)


def _write(found: Callable[[], Mapping[str, Any]], path: Path | None) -> None:
    """As JSON, if there is a path; SavingError if the file cannot be written."""
    if path is not None:
        write_text(path, json.dumps(found(), indent=1) + "\n")


def _sizes(text: str, what: str = "batch sizes") -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise ArgumentError(f"expected {what} such as 16,64; found {text!r}")
    return list(dict.fromkeys(sizes))


@contextmanager
def _progress(rows: int) -> Iterator[Callable[[str], Tell]]:
    """Within the block, call what is given with the title of each row; it gives what tells of the row's parts."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = [BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}")]
    console = terminal_console(sys.stderr)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=rows)
        numbers = itertools.count()

        def begin(title: str) -> Tell:
            progress.update(task, completed=next(numbers))
            return lambda part: progress.update(task, description=f"{title}, {part}")

        yield begin
