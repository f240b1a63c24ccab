"""Timings as plain data, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, fields
from typing import TYPE_CHECKING, Any

from miai_graph.errors import SavingError
from miai_graph.timing.records import Slice, TimedWorker, TimingRecord

if TYPE_CHECKING:
    from miai_graph.timing.timing import Timing

FORMAT = "miai_graph.timing"
VERSION = 1


def timing_to_data(timing: Timing) -> dict[str, Any]:
    """Dictionaries, lists, numbers and strings; slices, of which there are many, as rows under their fields' names."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "steps": timing.steps,
        "wall_seconds": timing.wall_seconds,
        "start_up_seconds": timing.start_up_seconds,
        "peak_bytes": timing.peak_bytes,
        "typical_step": timing.typical_step,
        "notes": list(timing.notes),
        "workers": [asdict(worker) for worker in timing.workers],
        "records": [{**asdict(record), "histogram": list(record.histogram)} for record in timing.records],
        "slices": {
            "fields": [field.name for field in fields(Slice)],
            "rows": [list(astuple(part)) for part in timing.slices],
        },
    }


def timing_arguments(data: Any) -> dict[str, Any]:
    """The arguments of the `Timing` that `timing_to_data` was given, but for the graph.

    Raises
    ------
    SavingError
        if the data is not that of a timing.
    """
    if not isinstance(data, Mapping) or data.get("format") != FORMAT or data.get("version") != VERSION:
        raise SavingError(f"expected what Timing.to_json gives, in version {VERSION}; found {_shown(data)}")
    try:
        slices = data["slices"]
        return {
            "records": [
                TimingRecord(**{**record, "histogram": tuple(record.get("histogram", ()))})
                for record in data["records"]
            ],
            "steps": data["steps"],
            "start_up_seconds": data["start_up_seconds"],
            "peak_bytes": data["peak_bytes"],
            "typical_step": data.get("typical_step"),
            "notes": data["notes"],
            "slices": [_slice(_named(slices["fields"], row)) for row in slices["rows"]],
            "wall_seconds": data["wall_seconds"],
            "workers": [TimedWorker(**worker) for worker in data["workers"]],
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SavingError(
            f"expected what Timing.to_json gives; found data that lacks or adds parts: {error}"
        ) from error


def _slice(values: dict[str, Any]) -> Slice:
    return Slice(**{**values, "nodes": tuple(values.get("nodes", ()))})


def _named(names: Sequence[str], row: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(names, row, strict=True))


def _shown(data: Any) -> str:
    if isinstance(data, Mapping):
        return f"format {data.get('format')!r}, version {data.get('version')!r}"
    return f"a {type(data).__name__}"
