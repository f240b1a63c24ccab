"""Where the time went: recorded for each node and worker, always on."""

from miai_graph.timing.records import Slice, TimedWorker, TimingRecord, merge_calls
from miai_graph.timing.timing import Timing

__all__ = ["Slice", "TimedWorker", "Timing", "TimingRecord", "merge_calls"]
