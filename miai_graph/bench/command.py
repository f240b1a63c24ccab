"""The command ``miai-graph bench``."""

from __future__ import annotations

import io
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from miai_graph.bench.chart import plot_results
from miai_graph.bench.hosts_measure import HOSTS, SCALED, measure_hosts, measurements
from miai_graph.bench.hosts_report import print_hosts_results
from miai_graph.bench.hosts_results import HostsResults
from miai_graph.bench.hosts_sides import OwnSide, Side, TorchSide
from miai_graph.bench.machine import check_peer, describe_machine
from miai_graph.bench.measure import Tell, measure_row
from miai_graph.bench.networks import EmulatedNetwork
from miai_graph.bench.report import print_results
from miai_graph.bench.results import Results
from miai_graph.bench.specs import PEERS, check_distinct, parse_executors, parse_peers
from miai_graph.bench.timing_cost import format_costs, measure_timing_cost
from miai_graph.bench.workloads import WORKLOADS, workload
from miai_graph.errors import ArgumentError
from miai_graph.executor import executor_names
from miai_graph.terminal import print_text
from miai_graph.views.style import check_path

if TYPE_CHECKING:
    from rich.console import Console

LINK_BITS_PER_SECOND = 1e9
_WIDE = 220


@click.command()
@click.argument("names", nargs=-1, metavar="[WORKLOADS]...")
@click.option("--batch", "batches", metavar="N,N", help="Batch sizes. [default: those of each workload]")
@click.option(
    "--executors",
    metavar="NAME:OPTION=VALUE,...",
    help="Executors with their options, the first of which the others are compared with. "
    "[default: serial:threads=1, and all that are installed]",
)
@click.option("--vs", "peers", default="", metavar="NAME,...", help=f"What to compare with: {', '.join(PEERS)}.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(min=1), help="How often each has its turn.")
@click.option(
    "--seconds",
    default=1.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="How long a turn is measured.",
)
@click.option("--peer-python", default=sys.executable, help="The Python that has PyTorch and JAX. [default: this one]")
@click.option(
    "--hosts",
    is_flag=True,
    help="On two emulated hosts (Linux, as root), with a link of 1 Gbit/s: pipelines of stacked_mlp, and workloads "
    f"data parallel. [default: {', '.join(SCALED)}]",
)
@click.option("--timing", is_flag=True, help="What recording times costs on the serial executor, and nothing else.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="A file for all figures.")
@click.option("--chart", type=click.Path(dir_okay=False, path_type=Path), help="A file for a picture: png, svg or pdf.")
def bench(
    names: Sequence[str],
    batches: str | None,
    executors: str | None,
    peers: str,
    rounds: int,
    seconds: float,
    peer_python: str,
    hosts: bool,
    timing: bool,
    json_path: Path | None,
    chart: Path | None,
) -> None:
    """Measure training steps of the standard WORKLOADS (all of them by default) on executors, in PyTorch and in JAX.

    Each side is a process of its own; they run in turns, so that what else the machine does hits all of them.
    """
    chosen = [workload(name) for name in names or (SCALED if hosts else WORKLOADS)]
    sizes = None if batches is None else _sizes(batches)
    if timing:
        if hosts or peers or executors is not None or chart is not None:
            raise ArgumentError("expected no --hosts, --vs, --executors or --chart with --timing. Leave them out")
        pairs = [(item.name, batch) for item in chosen for batch in sizes or item.batches[:1]]
        _bench_timing(pairs, rounds * seconds, json_path)
        return
    if hosts:
        if executors is not None or chart is not None:
            raise ArgumentError(
                "expected neither --executors nor --chart with --hosts; found one of them. Leave it out"
            )
        settings = {"bits_per_second": LINK_BITS_PER_SECOND, "rounds": rounds, "seconds": seconds}
        _bench_hosts([item.name for item in chosen], sizes, settings, peers, peer_python, json_path)
        return
    default = ",".join(dict.fromkeys(["serial:threads=1", *executor_names()]))
    specs = [*parse_executors(executors or default), *parse_peers(peers)]
    check_distinct(specs)
    check_path(chart)
    for library in sorted({spec.library for spec in specs if spec.is_peer}):
        check_peer(peer_python, library)
    results = Results(describe_machine(), {"rounds": rounds, "seconds": seconds}, [spec.text for spec in specs])
    pairs = [(item.name, batch) for item in chosen for batch in sizes or item.batches]
    with _progress(len(pairs)) as begin:
        for name, batch in pairs:
            tell = begin(f"{name}, batch {batch}")
            results.rows.append(measure_row(name, batch, specs, rounds, seconds, peer_python, tell))
    _show(partial(print_results, results))
    if json_path is not None:
        results.save(json_path)
    if chart is not None:
        plot_results(results, chart)


def _bench_timing(pairs: Sequence[tuple[str, int]], seconds: float, json_path: Path | None) -> None:
    """Measure workloads at batch sizes with and without recording."""
    costs = []
    with _progress(len(pairs)) as begin:
        for name, batch in pairs:
            begin(f"{name}, batch {batch}")
            costs.append(measure_timing_cost(name, batch, seconds))
    print_text(format_costs(costs))
    if json_path is not None:
        found = {"machine": describe_machine(), "costs": [cost.data for cost in costs]}
        json_path.write_text(json.dumps(found, indent=1), encoding="utf-8")


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
    _show(partial(print_hosts_results, results))
    if json_path is not None:
        results.save(json_path)


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise ArgumentError(f"expected batch sizes such as 16,64; found {text!r}")
    return list(dict.fromkeys(sizes))


@contextmanager
def _progress(rows: int) -> Iterator[Callable[[str], Tell]]:
    """Within the block, call what is given with the title of each row; it gives what tells of the row's parts."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = [BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}")]
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=rows)
        numbers = itertools.count()

        def begin(title: str) -> Tell:
            progress.update(task, completed=next(numbers))
            return lambda part: progress.update(task, description=f"{title}, {part}")

        yield begin


def _show(print_to: Callable[[Console], None]) -> None:
    """Print, as wide as the table is if this is no terminal, and in characters that the output knows."""
    from rich.console import Console

    if sys.stdout.isatty():
        print_to(Console())
        return
    text = io.StringIO()
    print_to(Console(file=text, width=_WIDE))
    print_text("\n".join(line.rstrip() for line in text.getvalue().splitlines()))
