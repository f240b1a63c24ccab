"""Running a step over batches, and what is told of it on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from miai_graph.callbacks import CallbackList, Logs
from miai_graph.errors import FeedError
from miai_graph.feeding import Batch
from miai_graph.model.sources import Batches
from miai_graph.model.steps import Step
from miai_graph.op import Array
from miai_graph.timing.booking import Run


class RunningTotals:
    """The means of an epoch so far: of losses, weighted by batch sizes, and of metrics, by their counts.

    A metric may belong to several steps, so sums are kept here and lent to it for its result.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._losses = [0.0] * len(step.losses)
        self._metrics = [(0.0, 0.0)] * len(step.metrics)
        self._samples = 0

    def add(self, outputs: Sequence[Array], samples: int) -> None:
        """Count one batch, from the outputs of a step."""
        count = len(self._losses)
        self._samples += samples
        self._losses = [sum_ + float(loss) * samples for sum_, loss in zip(self._losses, outputs[:count], strict=True)]
        added = zip(outputs[count::2], outputs[count + 1 :: 2], strict=True)
        self._metrics = [
            (total + float(new_total), weight + float(new_weight))
            for (total, weight), (new_total, new_weight) in zip(self._metrics, added, strict=True)
        ]

    def logs(self) -> Logs:
        """The figures by name."""
        figures = {name: sum_ / self._samples for name, sum_ in zip(self._step.losses, self._losses, strict=True)}
        for placed, (total, weight) in zip(self._step.metrics, self._metrics, strict=True):
            placed.metric.reset_state()
            placed.metric.add_totals(total, weight)
            figures[placed.name] = float(placed.metric.result())
        return figures


def run_epoch(
    step: Step,
    batches: Batches,
    listeners: CallbackList,
    kind: str,
    is_stopped: Callable[[], bool],
    run: Run[list[Array]] | None = None,
) -> tuple[Logs, int]:
    """Run a step on each batch.

    Parameters
    ----------
    kind : "train" or "test": which moments the listeners are told of
    is_stopped : asked after each batch
    run : the executable's, by default

    Returns
    -------
    the figures of the epoch, and the number of batches

    Raises
    ------
    FeedError
        if there is no batch.
    """
    totals = RunningTotals(step)
    ends = listeners.listens(f"on_{kind}_batch_end")
    number = -1
    for number, (outputs, size) in enumerate(run_batches(run or step.executable.run, batches, listeners, kind)):
        totals.add(outputs, size)
        if ends:
            listeners.call(f"on_{kind}_batch_end", number, totals.logs())
        if is_stopped():
            break
    if number < 0:
        raise FeedError("expected at least one batch; found none. An iterator can be gone through only once")
    return totals.logs(), number + 1


def run_batches(
    run: Run[list[Array]], batches: Batches, listeners: CallbackList, kind: str
) -> Iterator[tuple[list[Array], int]]:
    """The outputs for each batch, with its size; `run` is that of an executable."""
    begin = f"on_{kind}_batch_begin"
    if listeners.listens(begin):
        # One by one: an executor that looks ahead would make batches begin before the last one ended.
        for number, (batch, size) in enumerate(batches):
            listeners.call(begin, number, {})
            for outputs in run([batch]):
                yield outputs, size
        return
    sizes: list[int] = []

    def feed() -> Iterator[Batch]:
        for batch, size in batches:
            sizes.append(size)
            yield batch

    for number, outputs in enumerate(run(feed())):
        yield outputs, sizes[number]
