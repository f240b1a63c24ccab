"""The command ``miai-graph bench``."""

from __future__ import annotations

import io
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from miai_graph.bench.chart import plot_results
from miai_graph.bench.machine import check_torch, describe_machine
from miai_graph.bench.measure import Tell, measure_row
from miai_graph.bench.report import print_results
from miai_graph.bench.results import Results
from miai_graph.bench.specs import PEERS, check_distinct, parse_executors, parse_peers
from miai_graph.bench.workloads import WORKLOADS, workload
from miai_graph.errors import ArgumentError
from miai_graph.executor import executor_names
from miai_graph.terminal import print_text
from miai_graph.views.style import check_path

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
@click.option("--torch-python", default=sys.executable, help="The Python that has PyTorch. [default: this one]")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="A file for all figures.")
@click.option("--chart", type=click.Path(dir_okay=False, path_type=Path), help="A file for a picture: png, svg or pdf.")
def bench(
    names: Sequence[str],
    batches: str | None,
    executors: str | None,
    peers: str,
    rounds: int,
    seconds: float,
    torch_python: str,
    json_path: Path | None,
    chart: Path | None,
) -> None:
    """Measure training steps of the standard WORKLOADS (all of them by default) on executors and in PyTorch.

    Each side is a process of its own; they run in turns, so that what else the machine does hits all of them.
    """
    chosen = [workload(name) for name in names or WORKLOADS]
    sizes = None if batches is None else _sizes(batches)
    default = ",".join(dict.fromkeys(["serial:threads=1", *executor_names()]))
    specs = [*parse_executors(executors or default), *parse_peers(peers)]
    check_distinct(specs)
    check_path(chart)
    if any(spec.is_peer for spec in specs):
        check_torch(torch_python)
    results = Results(describe_machine(), {"rounds": rounds, "seconds": seconds}, [spec.text for spec in specs])
    pairs = [(item.name, batch) for item in chosen for batch in sizes or item.batches]
    with _progress(len(pairs)) as begin:
        for name, batch in pairs:
            tell = begin(f"{name}, batch {batch}")
            results.rows.append(measure_row(name, batch, specs, rounds, seconds, torch_python, tell))
    _show(results)
    if json_path is not None:
        results.save(json_path)
    if chart is not None:
        plot_results(results, chart)


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


def _show(results: Results) -> None:
    """Print, as wide as the table is if this is no terminal, and in characters that the output knows."""
    from rich.console import Console

    if sys.stdout.isatty():
        print_results(results, Console())
        return
    text = io.StringIO()
    print_results(results, Console(file=text, width=_WIDE))
    print_text("\n".join(line.rstrip() for line in text.getvalue().splitlines()))
