"""Where the time went: recorded for each node and worker, always on."""

from miai_graph.timing.difference import DifferenceRecord, TimingDifference
from miai_graph.timing.records import Slice, TimedWorker, TimingRecord, merge_calls
from miai_graph.timing.timing import Timing
from miai_graph.timing.verdict import Verdict

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
