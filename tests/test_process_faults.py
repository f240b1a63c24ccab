"""Processes that are killed or fail in the middle of a step: what is told, what stays, and how it goes on."""

from __future__ import annotations

import gc
import os
import re
import signal
import sys
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from conftest import running
from faulty_ops import Training, batch, has_ended, meanwhile, process_state, same, wait_until

import miai_graph as mg
from executors import Processes
from executors.processes import choice
from executors.processes.pool import Pool
from miai_graph.errors import ExecutionError, ExecutorError, WorkerLostError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sends signals, and looks into /proc")

REACTION_SECONDS = 5.0
REPETITIONS = 30


@pytest.fixture(autouse=True)
def _all_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs as small as these would soon be computed by one worker."""
    monkeypatch.setattr(choice, "TRIAL_STEPS", sys.maxsize)


@pytest.fixture
def training(tmp_path: Path) -> Training:
    return Training(tmp_path)


@pytest.fixture(params=[False, True], ids=["fast", "reproducible"])
def executor(request: pytest.FixtureRequest) -> Iterator[Processes]:
    with Processes(2, reproducible=request.param, wait_for_workers=True) as made:
        yield made


@pytest.fixture
def fast_executor() -> Iterator[Processes]:
    with Processes(2, wait_for_workers=True) as made:
        yield made


def worker_pid(executor: Processes) -> int:
    return executor.workers[1].pid


def kill_worker(executor: Processes) -> None:
    pid = worker_pid(executor)
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)


def wait_for_end(pid: int) -> None:
    """Wait until a child has ended, and all of its threads; it is left to be collected."""
    with suppress(ChildProcessError):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def assert_goes_on(training: Training, step: mg.Function, expected: list[list[np.ndarray]], done: int) -> None:
    """The values are those of so many steps, and the next ones give what they would have given."""
    assert step.executable.step == done
    assert same(training.values(), expected[done])
    for number in range(done, len(expected) - 1):
        step(*batch(number))
    assert same(training.values(), expected[-1])


# ---- kill -9 of a worker


@pytest.mark.parametrize("place", ["forward", "backward", "update"])
def test_a_worker_killed_while_it_computes(training: Training, executor: Processes, place: str) -> None:
    expected = training.history(executor, 6)
    step, pid = training.function(executor), worker_pid(executor)
    for number in range(3):
        step(*batch(number))
    training.orders.give(pid, place, "block")

    def kill() -> None:
        training.orders.wait_for(pid, place)
        os.kill(pid, signal.SIGKILL)

    start = time.monotonic()
    found = rf"worker 1 of 2 \(process {pid}\) killed by signal 9 \(SIGKILL\), while it computed at .*obey"
    with meanwhile(kill), pytest.raises(WorkerLostError, match=found):
        step(*batch(3))
    assert time.monotonic() - start < REACTION_SECONDS
    assert has_ended(pid)
    assert_goes_on(training, step, expected, 3)
    assert worker_pid(executor) != pid


def test_a_worker_killed_at_a_barrier(training: Training, executor: Processes) -> None:
    expected = training.history(executor, 4)
    step, pid = training.function(executor), worker_pid(executor)
    step(*batch(0))
    training.orders.give(os.getpid(), "forward", "block")
    training.orders.give(pid, "backward", "go_on")

    def kill() -> None:
        training.orders.wait_for(os.getpid(), "forward")
        training.orders.wait_for(pid, "backward")
        wait_until(lambda: process_state(pid) == "S")
        os.kill(pid, signal.SIGKILL)
        training.orders.let_go()

    with meanwhile(kill), pytest.raises(WorkerLostError, match=rf"process {pid}\) killed by .*SIGKILL.*, while it"):
        step(*batch(1))
    assert_goes_on(training, step, expected, 1)


def test_a_worker_killed_between_two_calls(training: Training, executor: Processes) -> None:
    expected = training.history(executor, 4)
    step, pid = training.function(executor), worker_pid(executor)
    step(*batch(0))
    kill_worker(executor)
    assert_goes_on(training, step, expected, 1)
    assert worker_pid(executor) != pid
    kill_worker(executor)
    step.executable.reset_timing()
    kill_worker(executor)
    assert step.timing.steps == 0
    kill_worker(executor)
    (loss,) = mg.function([training.x, training.y], training.loss, executor=executor)(*batch(0))
    assert np.isfinite(loss)


@pytest.mark.parametrize(("done", "noticed"), [(1, "between two steps"), (2, "before it computed")])
def test_a_worker_killed_between_two_steps_of_a_run(
    training: Training, executor: Processes, done: int, noticed: str
) -> None:
    expected = training.history(executor, 4)
    step, pid = training.function(executor), worker_pid(executor)
    results = step.executable.run(map(batch, range(4)))
    for _ in range(done):
        next(results)
    kill_worker(executor)
    # The first two steps are prepared by all workers, for values change places.
    with pytest.raises(WorkerLostError, match=rf"process {pid}\) killed by .*SIGKILL.*, {noticed}"):
        next(results)
    assert_goes_on(training, step, expected, done)


def test_a_worker_killed_while_it_prepares(training: Training, executor: Processes) -> None:
    expected = training.history(executor, 4)
    step, pid = training.function(executor), worker_pid(executor)
    step(*batch(0))
    training.orders.give(pid, "prepare", "block")

    def kill() -> None:
        training.orders.wait_for(pid, "prepare")
        os.kill(pid, signal.SIGKILL)

    found = rf"worker 1 of 2 \(process {pid}\) killed by .*SIGKILL.*, while it prepared"
    with meanwhile(kill), pytest.raises(WorkerLostError, match=found):
        step(*batch(1, size=5))
    assert_goes_on(training, step, expected, 1)


def what_is_left() -> list[int]:
    """How many descriptors, shared mappings, threads and children, and names of shared memory there are."""
    gc.collect()
    mappings = Path("/proc/self/maps").read_text().count("miai")
    names = [name for name in os.listdir("/dev/shm") if name.startswith("miai")]
    return [len(os.listdir("/proc/self/fd")), mappings, len(running()), len(names)]


def assert_no_more(found: Sequence[int], before: Sequence[int]) -> None:
    assert all(now <= then for now, then in zip(found, before, strict=True)), (found, before)


def test_kills_at_random_moments_leave_nothing(training: Training, fast_executor: Processes) -> None:
    executor, steps = fast_executor, 300
    expected = training.history(executor, steps)
    step = training.function(executor)
    rng = np.random.default_rng(0)
    told: list[tuple[int, str]] = []
    for repetition in range(REPETITIONS):
        training.restart(step)
        if repetition % 3:
            # The others are hit while they start and prepare.
            step(*batch(0))
            training.restart(step)
        pid = worker_pid(executor)
        is_over = Event()

        def kill(pid: int = pid, delay: float = rng.uniform(0, 0.03), is_over: Event = is_over) -> None:
            is_over.wait(delay)
            os.kill(pid, signal.SIGKILL)

        done = 0
        try:
            with meanwhile(kill):
                for done in range(steps):
                    step(*batch(done))
                    if has_ended(pid):
                        break
                done += 1
        except WorkerLostError as error:
            told.append((pid, str(error)))
        wait_for_end(pid)
        assert step.executable.step == done
        assert same(training.values(), expected[done])
        if repetition == 3:
            step(*batch(0))
            before = what_is_left()
    step(*batch(0))
    assert_no_more(what_is_left(), before)
    assert told
    assert all(f"process {pid}) killed by signal 9 (SIGKILL), " in error for pid, error in told)


def test_opening_and_closing_leaves_nothing(training: Training) -> None:
    for repetition in range(REPETITIONS):
        with Processes(2, wait_for_workers=True) as executor:
            training.function(executor)(*batch(repetition))
            if repetition % 2:
                os.kill(worker_pid(executor), signal.SIGKILL)
        if repetition == 3:
            before = what_is_left()
    assert_no_more(what_is_left(), before)


def test_a_closed_pool_is_gone_without_a_search_for_garbage() -> None:
    gc.collect()
    gc.disable()
    try:
        pool = Pool(2, 1)
        pool.block("values", 1000)
        gone = [weakref.ref(each) for each in (pool, pool.leader)]
        pool.stop()
        del pool
        assert [reference() for reference in gone] == [None, None]
    finally:
        gc.enable()


def test_functions_and_plans_that_are_gone_leave_nothing(training: Training, fast_executor: Processes) -> None:
    training.function(fast_executor)(*batch(0))
    before = what_is_left()
    for _ in range(3):
        step = training.function(fast_executor)
        for number, size in enumerate((8, 5, 6, 8, 11)):
            step(*batch(number, size))
        del step
        assert_no_more(what_is_left(), before)


# ---- failures of a node


@pytest.mark.parametrize(
    ("order", "cause"),
    [("fail", "ValueError: told to fail"), ("run_out_of_memory", "MemoryError: told to run out of memory")],
)
@pytest.mark.parametrize("place", ["forward", "backward", "update"])
def test_a_node_that_fails_in_a_worker(
    training: Training, fast_executor: Processes, place: str, order: str, cause: str
) -> None:
    expected = training.history(fast_executor, 3)
    step, pid = training.function(fast_executor), worker_pid(fast_executor)
    step(*batch(0))
    training.orders.give(pid, place, order)
    found = rf"obey failed: {cause}\n  node: .*obey[\s\S]*faulty_ops.py[\s\S]*worker: 1 of 2 \(process {pid}\)"
    with pytest.raises(ExecutionError, match=found):
        step(*batch(1))
    assert has_ended(pid)
    assert_goes_on(training, step, expected, 1)


@pytest.mark.parametrize(("order", "code"), [("exit_politely", 3), ("exit_at_once", 7)])
def test_a_node_that_ends_its_worker(training: Training, fast_executor: Processes, order: str, code: int) -> None:
    expected = training.history(fast_executor, 3)
    step, pid = training.function(fast_executor), worker_pid(fast_executor)
    step(*batch(0))
    training.orders.give(pid, "backward", order)
    found = rf"worker 1 of 2 \(process {pid}\) ended with exit code {code}, while it computed at .*obey"
    with pytest.raises(WorkerLostError, match=found):
        step(*batch(1))
    assert_goes_on(training, step, expected, 1)


@pytest.mark.parametrize("place", ["forward", "backward"])
def test_a_node_that_fails_in_worker_0(training: Training, fast_executor: Processes, place: str) -> None:
    expected = training.history(fast_executor, 3)
    step, pid = training.function(fast_executor), worker_pid(fast_executor)
    step(*batch(0))
    training.orders.give(os.getpid(), place, "fail")
    with pytest.raises(ExecutionError, match=r"obey failed: ValueError: told to fail\n  node: .*obey"):
        step(*batch(1))
    assert has_ended(pid)
    assert_goes_on(training, step, expected, 1)


def test_a_node_that_exits_in_worker_0(training: Training, fast_executor: Processes) -> None:
    expected = training.history(fast_executor, 3)
    step, pid = training.function(fast_executor), worker_pid(fast_executor)
    step(*batch(0))
    training.orders.give(os.getpid(), "backward", "exit_politely")
    with pytest.raises(SystemExit):
        step(*batch(1))
    assert has_ended(pid)
    assert_goes_on(training, step, expected, 1)


def test_a_worker_that_cannot_prepare(training: Training, fast_executor: Processes) -> None:
    expected = training.history(fast_executor, 3)
    step, pid = training.function(fast_executor), worker_pid(fast_executor)
    step(*batch(0))
    training.orders.give(pid, "prepare", "fail")
    with pytest.raises(ExecutorError, match=rf"told to fail[\s\S]*worker: 1 of 2 \(process {pid}\)"):
        step(*batch(1, size=5))
    assert has_ended(pid)
    assert_goes_on(training, step, expected, 1)


def test_an_error_names_the_line_of_the_user(training: Training, fast_executor: Processes) -> None:
    step = training.function(fast_executor)
    training.orders.give(worker_pid(fast_executor), "forward", "fail")
    with pytest.raises(ExecutionError) as caught:
        step(*batch(0))
    assert re.search(r"node: f32\[B,8\] obey .*faulty_ops\.py:\d+", str(caught.value))
