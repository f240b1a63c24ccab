"""The command line, ``miai-graph``. Other packages add commands through the entry points ``miai_graph.commands``."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path

import click

from miai_graph import __version__
from miai_graph.demo import run_demo
from miai_graph.doctor import examine, examine_cluster
from miai_graph.errors import MiaiGraphError
from miai_graph.terminal import print_text

ENTRY_POINT_GROUP = "miai_graph.commands"

_FILE = click.Path(dir_okay=False, path_type=Path)

LAZY_COMMANDS: Mapping[str, str] = {"bench": "miai_graph.bench.command", "warmup": "miai_graph.warmup"}
"""Commands by name, and the modules that have them: imported when they are called, or told of in the help."""


class _Group(click.Group):
    """Commands that tell errors of this library in their own words, without a traceback."""

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted([*super().list_commands(context), *LAZY_COMMANDS])

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in LAZY_COMMANDS:
            return super().get_command(context, name)
        command: click.Command = getattr(importlib.import_module(LAZY_COMMANDS[name]), name)
        return command

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except (MiaiGraphError, OSError) as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Group)
@click.version_option(__version__, prog_name="miai-graph")
def main() -> None:
    """A graph-based autodiff engine for ordinary CPUs, with interchangeable executors."""


@main.command()
@click.option(
    "--epochs", default=15, show_default=True, type=click.IntRange(min=1), help="How often to go over the digits."
)
@click.option(
    "--executor",
    "executors",
    multiple=True,
    metavar="NAME:OPTION=VALUE,...",
    help="Who trains; may be given several times. The first one trains for all epochs; then the others are compared "
    "with it. [default: serial:threads=1, and all that are installed]",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of weights, dropout and order.")
@click.option(
    "--output",
    default="miai_demo",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder for the pictures and the report.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the results and the timing as JSON, for programs; all else goes to standard error.",
)
def demo(epochs: int, executors: Sequence[str], seed: int, output: Path, as_json: bool) -> None:
    """Train a convolutional network on handwritten digits, draw what it learns, and compare the executors."""
    with redirect_stdout(sys.stderr if as_json else sys.stdout):
        result = run_demo(output, epochs=epochs, executors=executors, seed=seed, verbose="auto")
    if as_json:
        click.echo(json.dumps(result.to_json()))


@main.command()
@click.argument("address", required=False)
@click.option("--token-file", type=_FILE, help="A file that only you can read, with the cluster's token.")
@click.option("--tls-ca-file", type=_FILE, help="Instead of a token: an authority's certificate,")
@click.option("--tls-cert", type=_FILE, help="a certificate that it issued for this machine,")
@click.option("--tls-key", type=_FILE, help="and the private key of that; all in PEM format.")
def doctor(address: str | None, **files: Path | None) -> None:
    """Look at this machine and installation, or at the cluster at ADDRESS; one sentence for each problem.

    The cluster's token is asked for, or comes from a file or the environment variable MIAI_GRAPH_TOKEN.
    """
    report = examine() if address is None else examine_cluster(address, **files)
    for name, value in report.facts.items():
        print_text(f"{name + ':':<14}{value}")
    for table in report.tables:
        print_text(f"\n{table}")
    if report.tables:
        click.echo()
    for remark in report.remarks:
        click.secho(f"note: {remark}", fg="yellow")
    for problem in report.problems:
        click.secho(f"problem: {problem}", fg="red")
    if not report.problems:
        click.secho("No problems found.", fg="green")
    raise SystemExit(1 if report.problems else 0)


def add_installed_commands() -> None:
    """Add the commands that other packages bring."""
    for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        main.add_command(point.load(), point.name)


add_installed_commands()
