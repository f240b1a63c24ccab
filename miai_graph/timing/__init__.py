"""Where the time went: recorded for each node and worker, always on."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from miai_graph.timing.difference import DifferenceRecord, TimingDifference
    from miai_graph.timing.records import Slice, TimedWorker, TimingRecord, merge_calls
    from miai_graph.timing.timing import Timing
    from miai_graph.timing.verdict import Verdict

_MODULES = {
    "DifferenceRecord": "difference",
    "Slice": "records",
    "TimedWorker": "records",
    "Timing": "timing",
    "TimingDifference": "difference",
    "TimingRecord": "records",
    "Verdict": "verdict",
    "merge_calls": "records",
}

__all__ = [
    "DifferenceRecord",
    "Slice",
    "TimedWorker",
    "Timing",
    "TimingDifference",
    "TimingRecord",
    "Verdict",
    "merge_calls",
]


def __getattr__(name: str) -> Any:
    """Who only records times, such as a worker process, need not load what looks at them."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"miai_graph.timing.{_MODULES[name]}"), name)
