"""The results of the benchmark on hosts as tables for the terminal."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from miai_graph.bench.hosts_results import HostsResult, HostsResults, PipelineResult, ScalingResult
from miai_graph.bench.report import milliseconds, print_facts

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

NOTHING = "–"


def print_hosts_results(results: HostsResults, console: Console) -> None:
    """The machine, the pipelines, what is gained by a second host, and what is to be known of them."""
    titled = [
        *((result.pipeline.title, result) for result in itertools.chain(*results.pipelines)),
        *((result.scaling.title, result) for result in itertools.chain(*results.scalings)),
    ]
    versions = {name: text for _, result in titled for name, text in result.versions.items() if name != "numpy"}
    speed = f"{results.settings['bits_per_second'] / 1e9:g} Gbit/s"
    print_facts({**results.machine, **versions, "link": f"{speed}, between emulated hosts of one thread"}, console)
    if results.pipelines:
        console.print(_pipelines_table(results.pipelines))
    if results.scalings:
        console.print(_scalings_table(results.scalings))
    if results.pipelines:
        console.print("The ideal is the slowest stage's computing, and that of one micro-batch more.", highlight=False)
    for title, result in titled:
        if note := _note(result):
            console.print(f"{title}, {result.side} {note}", highlight=False, markup=False)


def _pipelines_table(pipelines: Sequence[Sequence[PipelineResult]]) -> Table:
    first = pipelines[0][0].side
    table = _table(
        "stacked_mlp in two stages: milliseconds a step, each stage's computing in it, and the step ÷ the ideal",
        ("batch", "micro-batches"),
        ("step", "computing", "÷ ideal", f"{first} is"),
    )
    for results in pipelines:
        for place, result in enumerate(results):
            about, ratio = result.pipeline, results[0].throughput_ratio(result)
            table.add_row(
                str(about.batch),
                f"{about.micro_batches} × {about.schedule}",
                result.side,
                milliseconds(result.median),
                " + ".join(map(milliseconds, result.stages)) or NOTHING,
                _factor(result.over_ideal),
                "" if place == 0 else NOTHING if ratio is None else f"{ratio:.2f}× as fast",
            )
        table.add_section()
    return table


def _scalings_table(scalings: Sequence[Sequence[ScalingResult]]) -> Table:
    table = _table(
        "data parallel: milliseconds a step",
        ("workload", "batch"),
        ("one host", "two hosts", "times as fast"),
    )
    for results in scalings:
        for result in results:
            alone, together = result.medians or (None, None)
            times = milliseconds(alone), milliseconds(together)
            about = result.scaling
            table.add_row(about.workload, str(about.batch), result.side, *times, _factor(result.speed_up))
        table.add_section()
    return table


def _table(title: str, what: Sequence[str], figures: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for name in what:
        table.add_column(name, justify="right")
    table.add_column("side")
    for name in figures:
        table.add_column(name, justify="right")
    return table


def _factor(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"


def _note(result: HostsResult) -> str | None:
    if result.problem is not None:
        return f"failed: {result.problem}"
    if result.loss_difference is None:
        return "is not comparable: the first side failed."
    if not result.is_comparable:
        return f"is not comparable with the first side: the first losses differ by {result.loss_difference:.2%}."
    return None
