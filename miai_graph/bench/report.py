"""The results as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from miai_graph.bench.results import CHANGE_TOLERANCE, CHECKED_STEPS, LOSS_TOLERANCE, Results, Row, SideResult

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def print_results(results: Results, console: Console) -> None:
    """The machine, the times of steps and of first steps, and what is to be known of them."""
    print_facts({**results.machine, **_versions(results)}, console)
    console.print(_steps_table(results))
    console.print(_first_steps_table(results))
    if any(side.resident_bytes is not None for row in results.rows for side in row.sides):
        console.print(_memory_table(results))
    for note in _notes(results):
        console.print(note, highlight=False, markup=False)
    for row in results.rows:
        for side in row.sides:
            if side.ops:
                console.print(
                    f"\n{row.workload}, batch {row.batch}, {side.side}, by op:", highlight=False, markup=False
                )
                console.print(side.ops, highlight=False, markup=False)


def print_facts(facts: Mapping[str, str], console: Console) -> None:
    """One in a line, by name."""
    for name, text in facts.items():
        console.print(f"{name + ':':<12} {text}", highlight=False, markup=False)
    console.print()


def _steps_table(results: Results) -> Table:
    table = _table(
        results,
        "milliseconds a step (median of the rounds' medians), times as fast as the first side, share of the limit",
    )
    for row in results.rows:
        table.add_row(row.workload, str(row.batch), *(_step_cell(row, place) for place in range(len(row.sides))))
    table.add_section()
    means = (results.mean_ratio(place) for place in range(len(results.sides)))
    table.add_row("geometric mean", "", *("" if mean is None else f"{mean:.2f}×" for mean in means))
    return table


def _step_cell(row: Row, place: int) -> str:
    side, ratio = row.sides[place], row.ratio(place)
    if side.median is None:
        return "failed"
    text, share = milliseconds(side.median), row.share_of_limit(place)
    if place > 0:
        text += "  not comparable" if ratio is None else f"  {ratio:.2f}×"
    return text if share is None else f"{text} {share:4.0%}"


def _first_steps_table(results: Results) -> Table:
    table = _table(results, "milliseconds to make the model + to the end of the first step, cold / warm")
    for row in results.rows:
        cells = (_first_cell(side) for side in row.sides)
        table.add_row(row.workload, str(row.batch), *cells)
    return table


def _first_cell(side: SideResult) -> str:
    return f"{milliseconds(side.build)} + {milliseconds(side.first_cold)} / {milliseconds(side.first_warm)}"


def _memory_table(results: Results) -> Table:
    table = _table(
        results,
        "megabytes of computed values in a step / of processes in all, beyond those before the first step; at most",
    )
    for row in results.rows:
        cells = (f"{_megabytes(side.values_bytes)} / {_megabytes(side.resident_bytes)}" for side in row.sides)
        table.add_row(row.workload, str(row.batch), *cells)
    return table


def _megabytes(size: int | None) -> str:
    return "–" if size is None else f"{size / 1e6:.2f}" if size < 1e6 else f"{size / 1e6:.1f}"


def _table(results: Results, title: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    table.add_column("workload")
    table.add_column("batch", justify="right")
    for side in results.sides:
        table.add_column(side, justify="right")
    return table


def milliseconds(seconds: float | None) -> str:
    """With three digits that tell."""
    if seconds is None:
        return "–"
    figure = seconds * 1e3
    digits = 3 if figure < 1 else 2 if figure < 10 else 1 if figure < 100 else 0
    return f"{figure:.{digits}f}"


def _versions(results: Results) -> dict[str, str]:
    """Of the peers' libraries; ours are among the facts of the machine."""
    sides = [side for row in results.rows for side in row.sides]
    return {name: version for side in sides for name, version in side.versions.items() if name != "numpy"}


def _notes(results: Results) -> list[str]:
    notes = _notes_on_limits(results)
    if len(results.sides) > 1:
        notes.append(
            f"Losses of the first {CHECKED_STEPS} steps from the same weights agree within {LOSS_TOLERANCE:.1%}, and "
            f"what the first one changes in the weights within {CHANGE_TOLERANCE:.0%}, but where it says otherwise."
        )
    if any(side.values_bytes is not None for row in results.rows for side in row.sides):
        notes.append(
            "Our executors keep parameters and what optimizers keep twice, so that a step counts wholly or not at all. "
            "Gradients of small parameters lie in the second copy; both copies are among what processes have, and "
            "neither among computed values."
        )
    empty = {side.side: side.empty for row in results.rows for side in row.sides if side.empty is not None}
    if empty:
        times = ", ".join(f"{side} {seconds * 1e6:.0f} µs" for side, seconds in empty.items())
        notes.append(f"A step of next to nothing: {times}.")
    for row in results.rows:
        notes += [_note(row, side) for side in row.sides if side.problem is not None or not side.is_comparable]
    return notes


def _notes_on_limits(results: Results) -> list[str]:
    """The speeds that limits are computed from, over all rows."""
    found = {threads: peaks for row in results.rows for threads, peaks in row.peaks.items()}
    for row in results.rows:
        found |= {threads: peaks.best(found[threads]) for threads, peaks in row.peaks.items()}
    if not found:
        return []
    speeds = "; ".join(
        f"{peaks.flops_per_second / 1e9:.0f} GFLOP/s and {peaks.bytes_per_second / 1e9:.0f} GB/s with {threads} "
        + ("thread" if threads == 1 else "threads")
        for threads, peaks in sorted(found.items())
    )
    return [
        "The limit of a workload is its arithmetic at the speed of large products, and the optimizer's bytes at that "
        f"of memory. Measured between the rounds, at best: {speeds}."
    ]


def _note(row: Row, side: SideResult) -> str:
    where = f"{row.workload}, batch {row.batch}, {side.side}"
    if side.problem is not None:
        return f"{where} failed: {side.problem}"
    if side.loss_difference is None or side.change_difference is None:
        return f"{where} is not comparable: the first side failed."
    return (
        f"{where} is not comparable with the first side: losses of the first {CHECKED_STEPS} steps differ by "
        f"{side.loss_difference:.2%}, and what the first one changes in the weights by {side.change_difference:.1%}."
    )
