"""Books what goes by beside the steps, so that each worker's records sum to the time on the wall."""

from __future__ import annotations

import os
import socket
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from time import perf_counter_ns
from typing import Any, TypeVar

from miai_graph.context import WAIT
from miai_graph.timing.records import CALLBACKS, DATA, IDLE, LOOP, VALIDATION, TimedWorker, TimingRecord
from miai_graph.timing.timing import Timing

T = TypeVar("T")
Run = Callable[[Iterable[Any]], Iterator[T]]


def seconds_by_worker(records: Iterable[TimingRecord]) -> dict[int, float]:
    """The time that is booked for each worker."""
    result: dict[int, float] = defaultdict(float)
    for record in records:
        result[record.worker] += record.seconds
    return result


def plain_record(name: str, phase: str, worker: TimedWorker, calls: int, seconds: float) -> TimingRecord:
    """A record of what is no node, of which single calls are not known."""
    mean = seconds / max(calls, 1)
    where = worker.index, worker.host
    return TimingRecord(name, name, "", phase, *where, calls, seconds, mean, mean, 0, 0, worker.stage)


def with_idle(
    records: Iterable[TimingRecord], workers: Iterable[TimedWorker], wall_seconds: float, calls: int
) -> list[TimingRecord]:
    """Records, under the names of the workers' hosts, and what is left of the time on the wall as idle time of each."""
    workers = list(workers)
    hosts = {worker.index: worker.host for worker in workers}
    busy = [_on(hosts.get(record.worker, record.host), record) for record in records if record.phase != IDLE]
    booked = seconds_by_worker(busy)
    rests = ((worker, wall_seconds - booked.get(worker.index, 0.0)) for worker in workers)
    return [*busy, *(plain_record(IDLE, IDLE, worker, calls, rest) for worker, rest in rests if calls and rest > 0)]


def _on(host: str, record: TimingRecord) -> TimingRecord:
    return record if record.host == host else replace(record, host=host)


class Tally:
    """How often something was done, and how long it took."""

    def __init__(self) -> None:
        self.calls = 0
        self.total_ns = 0
        self._min_ns = 1 << 62
        self._max_ns = 0

    def add(self, elapsed_ns: int) -> None:
        """Count a call."""
        self.calls += 1
        self.total_ns += elapsed_ns
        if elapsed_ns < self._min_ns:
            self._min_ns = elapsed_ns
        if elapsed_ns > self._max_ns:
            self._max_ns = elapsed_ns

    @property
    def seconds(self) -> float:
        return self.total_ns / 1e9

    def records(self, name: str, worker: TimedWorker) -> list[TimingRecord]:
        """One, if anything was done."""
        if not self.calls:
            return []
        record = plain_record(name, name, worker, self.calls, self.seconds)
        if self._max_ns:
            record = replace(record, min_seconds=self._min_ns / 1e9, max_seconds=self._max_ns / 1e9)
        return [record]


class TrainingClock:
    """Times what training does beside its steps, in the calling process.

    Parameters
    ----------
    begun_ns : when the call began of which this is: what was before `start` is start-up
    callbacks : counts the time of callbacks
    """

    def __init__(self, begun_ns: int, callbacks: Tally) -> None:
        self._begun_ns = begun_ns
        self._callbacks = callbacks
        self._data, self._validation = Tally(), Tally()
        self._running_ns = 0
        self._stopped_ns = 0
        self.start()

    def start(self) -> None:
        """Training begins."""
        self._started_ns = perf_counter_ns()

    def stop(self) -> None:
        """Training is over: what comes after it, such as asking workers for their times, is none of its steps."""
        self._stopped_ns = perf_counter_ns()

    def drawing(self, batches: Iterator[T], at_once: int = 1) -> Iterator[T]:
        """The same batches, timed while they are drawn.

        Parameters
        ----------
        at_once : how many are drawn before the first of them is used
        """
        data = self._data
        while True:
            start_ns = perf_counter_ns()
            drawn = list(islice(batches, at_once))
            data.total_ns += perf_counter_ns() - start_ns
            if not drawn:
                return
            data.calls += len(drawn)
            yield from drawn

    def running(self, run: Run[T]) -> Run[T]:
        """The same function, timed while it computes, without the batches that it draws meanwhile."""

        def timed(batches: Iterable[Any]) -> Iterator[T]:
            results = run(batches)
            while True:
                start_ns = perf_counter_ns() - self._data.total_ns
                result = next(results, None)
                self._running_ns += perf_counter_ns() - self._data.total_ns - start_ns
                if result is None:
                    return
                yield result

        return timed

    @contextmanager
    def validating(self) -> Iterator[None]:
        """Within the block the model is tested. Callbacks are booked apart."""
        start_ns = perf_counter_ns() - self._callbacks.total_ns
        try:
            yield
        finally:
            self._validation.add(perf_counter_ns() - self._callbacks.total_ns - start_ns)

    def complete(self, ask_timing: Callable[[], Timing], caller: int) -> Timing:
        """What an executable has timed, with all the time of training up to now.

        Parameters
        ----------
        ask_timing : gives what the executable has timed
        caller : the number of the worker that is this process; another one than the workers' if it only waits for them
        """
        asked_ns = perf_counter_ns()
        timing = ask_timing()
        answered_ns = perf_counter_ns()
        ended_ns = self._stopped_ns or answered_ns
        wall = max((ended_ns - self._started_ns) / 1e9 - timing.start_up_seconds, 0.0)
        records = [record for record in timing.records if record.phase != IDLE]
        workers = list(timing.unmeasured_workers)
        own = next((worker for worker in workers if worker.index == caller), None)
        if own is None:
            own = TimedWorker(caller, socket.gethostname(), os.getpid())
            workers.append(own)
            waited = max(self._running_ns / 1e9 - timing.start_up_seconds, 0.0)
            records.append(plain_record(WAIT, WAIT, own, timing.steps, waited))
        for worker in workers:
            records += self._validation.records(VALIDATION, worker)
        records += [*self._data.records(DATA, own), *self._callbacks.records(CALLBACKS, own)]
        if not self._stopped_ns:
            records.append(plain_record("timing", LOOP, own, 1, (answered_ns - asked_ns) / 1e9))
        rest = wall - seconds_by_worker(records)[caller]
        records.append(plain_record(LOOP, LOOP, own, timing.steps, max(rest, 0.0)))
        return Timing(
            with_idle(records, workers, wall, timing.steps),
            timing.steps,
            timing.start_up_seconds + (self._started_ns - self._begun_ns + answered_ns - ended_ns) / 1e9,
            timing.peak_bytes,
            timing.notes,
            timing.slices,
            wall_seconds=wall,
            workers=workers,
            graph=timing.graph,
            typical_step=timing.typical_step,
            measure=timing.measure,
        )
