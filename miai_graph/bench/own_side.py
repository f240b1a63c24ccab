"""A side of the benchmark that trains on one of our executors, with the steps that `fit` runs."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from miai_graph.bench.exchange import Answer, Problem, serve
from miai_graph.bench.memory import begin_growth, growth_since, peak_bytes, resident_bytes
from miai_graph.bench.workloads import workload
from miai_graph.callbacks import Callback
from miai_graph.context import BACKWARD, FORWARD, UPDATE
from miai_graph.cores import usable_cores
from miai_graph.executor import Executable, Executor, executor
from miai_graph.feeding import Batch, Rows, Table
from miai_graph.function import function
from miai_graph.ops.leaves import input as input_node
from miai_graph.ops.leaves import parameter
from miai_graph.ops.reductions import mean
from miai_graph.timing.table import format_table

EMPTY_BATCH = 8
OPS_SHOWN = 12
COMPUTING = (FORWARD, BACKWARD, UPDATE)
"""The phases in which a worker works."""


class _Step(Callback):
    """Takes note of when a step is done."""

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        self.ended = time.perf_counter()


class OwnSide:
    """Trains one workload on one executor."""

    def __init__(self, name: str, problem: Problem, executor_name: str, options: dict[str, Any]) -> None:
        self.workload = workload(name)
        self.problem = problem
        self._name, self._options = executor_name, options
        self._executor: Executor | None = None
        self._bytes_before: int | None = None

    def ready(self) -> Answer:
        return {"versions": {"numpy": np.__version__}}

    def fresh(self) -> Answer:
        """A new model, with a first step: its time is that from the call of `fit` on, planning included."""
        start = time.perf_counter()
        model = self.workload.model()
        build_seconds = time.perf_counter() - start
        model.set_weights(list(self.problem.weights.values()))
        if self._executor is None:
            self._bytes_before = begin_growth()
        x, y, batch = self.problem.x, self.problem.y, self.problem.rows.shape[1]
        start = time.perf_counter()
        who = self._started()
        first = _Step()
        history = model.fit(x, y, batch, steps_per_epoch=1, shuffle=False, verbose=0, executor=who, callbacks=[first])
        seconds = first.ended - start
        source = model._source(x, y, None, batch)
        step = model._step_cache.train(model.compiled_arguments, source.targets, source.weights, who)
        self._model, self._executable = model, step.executable
        # Workers may have started meanwhile: from the next step on all shall take part.
        step.executable.warmup(batch)
        table = Table([x, y])
        self._batches = itertools.cycle([Rows(table, rows) for rows in self.problem.rows])
        next(self._batches)
        return {
            "seconds": seconds,
            "losses": history.history["loss"],
            "build_seconds": build_seconds,
            "threads": min(usable_cores(), sum(worker.threads for worker in who.workers)),
            "work": {"flops": self._flops(), "optimizer_bytes": self._optimizer_bytes()},
        }

    def steps(self, count: int) -> Answer:
        """Train for some steps, each timed."""
        return timed(self._executable, itertools.islice(self._batches, count))

    def compute(self, count: int) -> Answer:
        """Train for some steps; for each worker, the seconds that it computes in each of them."""
        before = self._computed()
        stages: list[list[float]] = [[] for _ in before]
        for batch in itertools.islice(self._batches, count):
            # One by one: hosts would have begun the next step.
            for _ in self._executable.run([batch]):
                pass
            after = self._computed()
            for stage, start, end in zip(stages, before, after, strict=True):
                stage.append(end - start)
            before = after
        return {"stages": stages}

    def _computed(self) -> list[float]:
        """The seconds that each worker has computed so far, without sending and waiting."""
        found: dict[int, float] = {}
        for record in self._executable.timing.records:
            if record.phase in COMPUTING:
                found[record.worker] = found.get(record.worker, 0.0) + record.seconds
        return [found[worker] for worker in sorted(found)]

    def _flops(self) -> int:
        """Of a step, without the update: that is bound by memory."""
        timing = self._executable.timing
        return sum(record.flops for record in timing.records if record.phase in (FORWARD, BACKWARD)) // timing.steps

    def _optimizer_bytes(self) -> int:
        """What the update reads and writes at least."""
        slots = self._model.optimizer._slots
        kept = sum(slot.value.nbytes for own in slots.values() for slot in own.values())
        parameters = sum(key.type.size_bytes for key in slots)
        return 3 * parameters + 2 * kept

    def memory(self) -> Answer:
        """The most bytes that computed values take, and by how many the processes have grown.

        Memory that processes share counts in each of them.
        """
        timing = self._executable.timing
        computing = {record.worker for record in timing.records if record.phase in COMPUTING}
        grown, workers = growth_since(self._bytes_before), self._worker_growth()
        return {
            "values_bytes": timing.peak_bytes * len(computing),
            "resident_bytes": None if grown is None or workers is None else grown + workers,
        }

    def _worker_growth(self) -> int | None:
        """By how much the peaks of other processes are above what new ones have after a step of next to nothing."""
        others = _other_processes(self._started())
        if not others:
            return 0
        with executor(self._name, **self._options) as idle:
            _run_empty(idle, 1)
            before = [resident_bytes(process) for process in _other_processes(idle)]
        known = [(peak_bytes(process), start) for process, start in zip(others, before, strict=True)]
        if any(peak is None or start is None for peak, start in known):
            return None
        return sum(max(0, peak - start) for peak, start in known if peak is not None and start is not None)

    def empty(self, count: int) -> Answer:
        """Steps of a graph with next to nothing in it, each timed: what an executor costs by itself."""
        return _run_empty(self._started(), count)

    def ops(self) -> Answer:
        """A table of where the time of all steps with this model went."""
        return {"table": format_table(self._executable.timing, "op", "seconds", OPS_SHOWN, width=None)}

    def weights(self, path: str) -> Answer:
        """Write the weights to a file."""
        values: dict[str, Any] = dict(zip(self.problem.weights, self._model.get_weights(), strict=True))
        np.savez(path, **values)
        return {}

    def close(self) -> None:
        if self._executor is not None:
            self._executor.close()

    def _started(self) -> Executor:
        if self._executor is None:
            self._executor = executor(self._name, **self._options)
        return self._executor


def _other_processes(who: Executor) -> list[int]:
    """The processes on this machine, besides this one, that an executor computes in."""
    here = socket.gethostname()
    return [worker.pid for worker in who.workers if worker.host == here and worker.pid != os.getpid()]


def _run_empty(who: Executor, count: int) -> Answer:
    x, w = input_node("x", (None, 1)), parameter(np.ones((), np.float32), "w")
    made = function([x], [mean(x)], {w: 0.5 * w}, who)
    made.executable.warmup(EMPTY_BATCH)
    rows = Rows(Table([np.ones((EMPTY_BATCH, 1), np.float32)]), np.arange(EMPTY_BATCH))
    return timed(made.executable, itertools.repeat(rows, count))


def timed(executable: Executable, batches: Iterator[Batch]) -> Answer:
    """Run on batches; the seconds from one result to the next, and the losses."""
    seconds, losses = [], []
    start = time.perf_counter()
    for outputs in executable.run(batches):
        losses.append(float(outputs[0]))
        end = time.perf_counter()
        seconds.append(end - start)
        start = end
    return {"seconds": seconds, "losses": losses}


def main() -> None:
    """Serve the orders of a benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", required=True)
    parser.add_argument("--problem", required=True, type=Path)
    parser.add_argument("--executor", required=True)
    parser.add_argument("--options", default={}, type=json.loads)
    arguments = parser.parse_args()
    side = OwnSide(arguments.workload, Problem.load(arguments.problem), arguments.executor, arguments.options)
    try:
        orders = (side.fresh, side.steps, side.compute, side.memory, side.empty, side.ops, side.weights)
        serve(side.ready, {order.__name__: order for order in orders})
    finally:
        side.close()


if __name__ == "__main__":
    main()
