"""Steps on processes that have not all started yet: they are computed by this process alone."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import miai_graph as mg
from executors import Processes, Serial
from executors.processes.executable import MOST_NODES_ALONE
from executors.processes.messages import AreYouReady
from miai_graph.errors import WorkerLostError
from miai_graph.executor import Executor
from miai_graph.function import Function

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are held up by signals")

ROWS = 12


@pytest.fixture(params=[{}, {"reproducible": True, "shards": 4}], ids=["as usual", "reproducible"])
def executor(request: pytest.FixtureRequest) -> Iterator[Processes]:
    """Its worker does not get on with starting before `go_on` is called."""
    while True:
        with Processes(2, **request.param) as made:
            os.kill(made.workers[1].pid, signal.SIGSTOP)
            if made.is_starting():
                yield made
                break


def go_on(executor: Executor) -> None:
    os.kill(executor.workers[1].pid, signal.SIGCONT)


def alone(executor: Processes) -> Serial:
    return Serial() if executor.shards is None else Serial(reproducible=True, shards=executor.shards)


def training(executor: Executor) -> Function:
    rng = np.random.default_rng(0)
    x, y = mg.input("x", (None, 5)), mg.input("y", (None, 3))
    w = mg.parameter(rng.standard_normal((5, 3)).astype("f4"), "w")
    loss = mg.mean((mg.tanh(x @ w) - y) ** 2)
    (dw,) = mg.grad(loss, [w])
    return mg.function([x, y], [loss], {w: w - 0.1 * dw}, executor)


def batch(number: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(number)
    return rng.standard_normal((ROWS, 5)).astype("f4"), rng.standard_normal((ROWS, 3)).astype("f4")


def losses(step: Function, numbers: range) -> list[float]:
    return [float(step(*batch(number))[0]) for number in numbers]


def workers_used(step: Function) -> int:
    return len({record.worker for record in step.timing.records if record.phase == "forward"})


def test_steps_do_not_wait_for_workers(executor: Processes) -> None:
    expected = losses(training(alone(executor)), range(8))
    step = training(executor)
    found = losses(step, range(4))
    assert workers_used(step) == 1
    assert "4 steps were computed by one worker, while the others started" in step.timing.notes
    go_on(executor)
    step.executable.warmup(ROWS)
    found += losses(step, range(4, 8))
    assert workers_used(step) == 2
    assert step.timing.steps == 8
    np.testing.assert_allclose(found, expected, rtol=0 if executor.shards else 1e-5)


def test_workers_join_in_the_middle_of_a_run(executor: Processes) -> None:
    expected = losses(training(alone(executor)), range(40))
    step = training(executor)
    run = step.executable.run(batch(number) for number in range(40))
    found = [float(next(run)[0]) for _ in range(10)]
    go_on(executor)
    executor.pool().ask(AreYouReady())
    found += [float(loss) for (loss,) in run]
    assert workers_used(step) == 2
    np.testing.assert_allclose(found, expected, rtol=0 if executor.shards else 1e-5)


@pytest.mark.parametrize("is_run", [True, False], ids=["run", "calls"])
def test_a_worker_that_ends_before_it_has_started(executor: Processes, is_run: bool) -> None:
    step = training(executor)
    run = step.executable.run(batch(number) for number in range(8)) if is_run else iter(lambda: step(*batch(0)), None)
    next(run)
    lost = executor.workers[1].pid
    os.kill(lost, signal.SIGKILL)
    os.waitid(os.P_PID, lost, os.WEXITED | os.WNOWAIT)
    with pytest.raises(WorkerLostError, match=rf"process {lost}\) killed by signal 9 .*, while it started"):
        next(run)
    assert step.timing.steps == 1
    assert executor.workers[1].pid != lost
    step.executable.warmup(ROWS)
    losses(step, range(1))
    assert workers_used(step) == 2


def test_an_executor_that_is_closed_before_workers_have_started(executor: Processes) -> None:
    step, pid = training(executor), executor.workers[1].pid
    losses(step, range(3))
    (before,) = step.executable.state.values()
    executor.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    np.testing.assert_array_equal(*step.executable.state.values(), before)


@pytest.mark.skipif(sys.platform != "linux", reason="what a process maps is told by Linux")
def test_workers_let_memory_go_that_they_never_used() -> None:
    with Processes(2) as executor:

        def mapped_by_worker() -> int:
            executor.pool().ask(AreYouReady())
            return Path(f"/proc/{executor.workers[1].pid}/maps").read_text().count("memfd")

        counts = []
        for _ in range(20):
            # Of one row at a time, which one worker computes.
            step = training(executor)
            step(*(array[:1] for array in batch(0)))
            del step
            counts.append(mapped_by_worker())
        assert counts[-1] <= counts[2] + 1


def test_they_wait_if_they_are_told_to() -> None:
    with Processes(2, wait_for_workers=True) as executor:
        step = training(executor)
        losses(step, range(1))
        assert workers_used(step) == 2
        assert len(step.timing.notes) == 1


def test_a_large_graph_is_not_prepared_twice() -> None:
    with Processes(2) as executor:
        x, w = mg.input("x", (None, 3)), mg.parameter(np.ones((3, 3), "f4"), "w")
        y = x @ w
        for number in range(MOST_NODES_ALONE):
            y = mg.tanh(y) + number / 1000
        step = mg.function([x], [mg.sum(y)], {w: 0.5 * w}, executor)
        for _ in range(2):
            step(np.ones((4, 3), "f4"))
        assert workers_used(step) == 2
