"""The processes executor in scripts, threads, forks and other surroundings, and what stays when they end."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from faulty_ops import Orders, Training, batch, has_ended, nested, process_state, running_sum, same

import miai_graph as mg
from executors import Processes, Serial
from executors.processes import choice
from miai_graph import callbacks, layers
from miai_graph.errors import ExecutorError
from miai_graph.model import Sequential

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sends signals, and looks into /proc")

ROOT = Path(__file__).parents[1]
END_SECONDS = 5.0
STOP_SECONDS = 1.0
INTERRUPTS = 10

PRELUDE = f"""
import os, sys, time
sys.path[:] = {sys.path!r}
import numpy as np
import miai_graph as mg
from executors import Processes
from executors.processes import choice
choice.TRIAL_STEPS = sys.maxsize
from faulty_ops import Training, batch, same
"""


@pytest.fixture(autouse=True)
def _all_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs as small as these would soon be computed by one worker."""
    monkeypatch.setattr(choice, "TRIAL_STEPS", sys.maxsize)


@pytest.fixture
def training(tmp_path: Path) -> Training:
    return Training(tmp_path)


@pytest.fixture
def executor() -> Iterator[Processes]:
    with Processes(2, wait_for_workers=True) as made:
        yield made


def start(text: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """A script in a session of its own."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    command = [sys.executable, *(arguments or ("-c", PRELUDE + textwrap.dedent(text)))]
    return subprocess.Popen(command, start_new_session=True, **pipes, **options)


def finish(process: subprocess.Popen[str], input: str | None = None) -> tuple[str, str]:
    """What it printed; kills what is left of it after a while."""
    try:
        return process.communicate(input, timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise


def run(text: str) -> str:
    """What a script prints; its errors are this process's."""
    process = start(text)
    output, errors = finish(process)
    assert process.returncode == 0, errors
    assert errors == ""
    return output


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    assert line, finish(process)[1]
    return line


def assert_end(pids: list[int]) -> None:
    deadline = time.monotonic() + END_SECONDS
    while not all(map(has_ended, pids)):
        assert time.monotonic() < deadline, [process_state(pid) for pid in pids]
        time.sleep(0.01)


# ---- Ctrl-C


def test_control_c_stops_at_once_and_training_goes_on(tmp_path: Path) -> None:
    process = start(f"""
        executor, training = Processes(2, wait_for_workers=True), Training({str(tmp_path)!r})
        expected = training.history(executor, 1000)
        step = training.function(executor)
        print("ready", flush=True)
        for interrupt in range({INTERRUPTS}):
            if interrupt % 3:  # else it is interrupted while workers start and prepare
                step(*batch(0))
            training.restart(step)
            pid = executor.workers[1].pid
            try:
                print(pid, flush=True)
                while True:
                    for number in range(1000):
                        step(*batch(number))
                    training.restart(step)
            except KeyboardInterrupt:
                print("stopped", flush=True)
            done = step.executable.step
            print(same(training.values(), expected[done]), flush=True)
        model = mg.Sequential([mg.layers.Input((6,)), mg.layers.Dense(3)])
        model.compile("sgd", "mse", executor=executor)
        model.fit(np.ones((8, 6)), np.ones((8, 3)), epochs=2, verbose=0)
        print("fitted", executor.workers[1].pid, flush=True)
    """)
    assert line_of(process) == "ready"
    pids = []
    chance = random.Random(0)
    for _ in range(INTERRUPTS):
        pids.append(int(line_of(process)))
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(chance.uniform(0, 0.05))
        pressed = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        assert line_of(process) == "stopped"
        assert time.monotonic() - pressed < STOP_SECONDS
        assert line_of(process) == "True"
    word, pid = line_of(process).split()
    assert word == "fitted"
    assert finish(process) == ("", "")
    assert_end([*pids, int(pid)])


@pytest.mark.parametrize("who", ["worker", "main"])
def test_control_c_while_one_computes_and_the_other_waits(tmp_path: Path, who: str) -> None:
    process = start(f"""
        executor, training = Processes(2, wait_for_workers=True), Training({str(tmp_path)!r})
        step = training.function(executor)
        step(*batch(0))
        before = training.values()
        main, worker = os.getpid(), executor.workers[1].pid
        training.orders.give({who}, "forward", "block")
        print(main, worker, flush=True)
        try:
            step(*batch(1))
        except KeyboardInterrupt:
            print(same(training.values(), before), os.path.exists(f"/proc/{{worker}}"), flush=True)
    """)
    main, worker = map(int, line_of(process).split())
    Orders(tmp_path).wait_for(worker if who == "worker" else main, "forward")
    pressed = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    assert line_of(process) == "True False"
    assert time.monotonic() - pressed < STOP_SECONDS
    assert finish(process) == ("", "")
    assert_end([worker])


# ---- kill -9 of the parent


@pytest.mark.parametrize("moment", ["idle", "computing", "waiting"])
def test_workers_end_with_their_parent(tmp_path: Path, moment: str) -> None:
    process = start(
        f"""
        executor, training = Processes(3, wait_for_workers=True), Training({str(tmp_path)!r})
        step = training.function(executor)
        step(*batch(0))
        pids = [worker.pid for worker in executor.workers]
        if {moment!r} != "idle":
            training.orders.give(pids[1 if {moment!r} == "computing" else 0], "forward", "block")
        print(*pids, flush=True)
        if {moment!r} != "idle":
            step(*batch(0))
        sys.stdin.read()
    """,
        stdin=subprocess.PIPE,
    )
    main, *workers = map(int, line_of(process).split())
    if moment != "idle":
        Orders(tmp_path).wait_for(workers[0] if moment == "computing" else main, "forward")
    os.kill(main, signal.SIGKILL)
    assert_end(workers)
    finish(process)


# ---- surroundings

SCRIPT = (
    PRELUDE
    + """
training = Training(".")
executor = Processes(2, wait_for_workers=True)
step = training.function(executor)
before = step(*batch(0))[0]
for number in range(20):
    step(*batch(0))
print(bool(step(*batch(0))[0] < before), *[worker.pid for worker in executor.workers])
"""
)


@pytest.mark.parametrize("way", ["file", "command", "input", "interactive"])
def test_ways_to_run_a_script_without_a_guard_or_close(tmp_path: Path, way: str) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    arguments = {"file": [str(script)], "command": ["-c", SCRIPT], "input": ["-"], "interactive": ["-i", "-q"]}[way]
    process = start("", *arguments, stdin=subprocess.PIPE)
    typed = SCRIPT.replace("    step(*batch(0))\n", "    step(*batch(0))\n\n") if way == "interactive" else SCRIPT
    output, errors = finish(process, typed if way in ("input", "interactive") else "")
    assert process.returncode == 0, errors
    falls, *pids = output.split()[-3:]
    assert falls == "True"
    assert_end(list(map(int, pids)))
    if way != "interactive":
        assert errors == ""


def test_an_op_of_the_script_is_named_and_computed_by_one_worker(tmp_path: Path) -> None:
    script = tmp_path / "own_op.py"
    script.write_text(
        PRELUDE
        + textwrap.dedent("""
        @mg.op
        class doubled:
            def infer(x):
                return x
            def forward(x):
                return x + x
            batch = mg.placement.elementwise

        x = mg.input("x", (None,))
        w = mg.parameter(1.0, "w")
        step = mg.function([x], [mg.sum(doubled(x)) * w], {w: w + 1}, Processes(2, wait_for_workers=True))
        print(*[float(step(np.ones(4, "f4"))[0]) for _ in range(2)], float(w.value))
    """)
    )
    process = start("", str(script))
    output, errors = finish(process)
    assert output.split() == ["8.0", "16.0", "3.0"]
    assert "op doubled is defined in __main__ (own_op.py:" in errors
    assert "computed by one worker" in errors


def test_a_graph_that_cannot_be_split_is_computed_by_one_worker(executor: Processes) -> None:
    x = mg.input("x", (None, 2))
    with pytest.warns(UserWarning, match=r"running_sum[\s\S]*test_process_uses.py[\s\S]*states no batch rule") as found:
        step = mg.function([x], [running_sum(x) * 2], executor=executor)
    assert found[0].filename == __file__
    array = np.arange(8, dtype="f4").reshape(4, 2)
    with Serial() as serial:
        (expected,) = mg.function([x], [running_sum(x) * 2], executor=serial)(array)
    np.testing.assert_array_equal(step(array)[0], expected)


def test_an_executor_that_nobody_has_any_more_ends_its_workers(training: Training) -> None:
    executor = Processes(2, wait_for_workers=True)
    pid = executor.workers[1].pid
    step = training.function(executor)
    step(*batch(0))
    values = training.values()
    del executor, step
    gc.collect()
    assert has_ended(pid)
    assert same(training.values(), values)


def test_closing_twice_ends_workers_and_keeps_values(training: Training, executor: Processes) -> None:
    step, pid = training.function(executor), executor.workers[1].pid
    step(*batch(0))
    values = training.values()
    executor.close()
    executor.close()
    assert has_ended(pid)
    assert same(training.values(), values)
    with pytest.raises(ExecutorError, match="closed"):
        step(*batch(0))


# ---- several at once


def test_two_pools_train_one_model_in_turn(training: Training) -> None:
    with (
        Processes(2, reproducible=True, wait_for_workers=True) as one,
        Processes(3, reproducible=True, wait_for_workers=True) as other,
    ):
        expected = training.history(one, 12)
        steps = [training.function(one), training.function(other)]
        for number in range(12):
            step = steps[number % 2]
            step.executable.step = number
            step(*batch(number))
        assert same(training.values(), expected[12])
        mappings = Path("/proc/self/maps").read_text().count("miai")
        for number in range(12):
            steps[number % 2](*batch(number))
        gc.collect()
        assert Path("/proc/self/maps").read_text().count("miai") <= mappings


def test_training_in_a_thread(training: Training, executor: Processes) -> None:
    expected = training.history(executor, 5)
    step = training.function(executor)
    thread = Thread(target=lambda: [step(*batch(number)) for number in range(5)])
    thread.start()
    thread.join()
    assert same(training.values(), expected[5])


def test_two_threads_train_two_models_and_one_model_at_once(tmp_path: Path, executor: Processes) -> None:
    first, second = Training(tmp_path), Training(tmp_path)
    expected = first.history(executor, 50)
    steps = first.function(executor), second.function(executor)
    problems: list[BaseException] = []

    def train(step: mg.Function, data: int | None) -> None:
        try:
            for number in range(50):
                step(*batch(number if data is None else data))
        except BaseException as error:
            problems.append(error)

    def train_both(step: mg.Function, other: mg.Function, data: int | None) -> None:
        threads = [Thread(target=train, args=(one, data)) for one in (step, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not problems

    train_both(*steps, None)
    assert same(first.values(), expected[50])
    assert same(second.values(), expected[50])
    first.restart(steps[0])
    train_both(steps[0], steps[0], 7)
    assert steps[0].executable.step == 100


def test_evaluating_within_fit(executor: Processes) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((32, 6)), rng.integers(0, 3, 32)
    found: list[float] = []

    class Evaluate(callbacks.Callback):
        def on_train_batch_end(self, number: int, logs: Any = None) -> None:
            found.append(self.model.evaluate(x, y, verbose=0))
            assert self.model.predict(x, verbose=0).shape == (32, 3)

    def fit(*extra: callbacks.Callback) -> list[np.ndarray]:
        mg.set_seed(3)
        model = Sequential([layers.Input((6,)), layers.Dense(3, activation="softmax")])
        model.compile("adam", "sparse_categorical_crossentropy", executor=executor)
        model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=list(extra))
        return model.get_weights()

    assert same(fit(Evaluate()), fit())
    assert found[-1] < found[0]


def test_a_step_within_a_step_is_refused(training: Training, executor: Processes) -> None:
    expected = training.history(executor, 3)
    step = training.function(executor)
    step(*batch(0))
    x = mg.input("x", (None,))
    inner = mg.function([x], [x + 1], executor=executor)
    nested[:] = [lambda: inner(np.ones(4, "f4"))]
    training.orders.give(os.getpid(), "forward", "run_a_graph")
    with pytest.raises(ExecutorError, match=r"one step at a time[\s\S]*executor='serial'"):
        step(*batch(1))
    assert same(training.values(), expected[1])
    step(*batch(1))
    assert same(training.values(), expected[2])
    np.testing.assert_array_equal(inner(np.ones(4, "f4"))[0], np.full(4, 2.0))


def test_a_fork_while_another_thread_trains(tmp_path: Path) -> None:
    output = run(f"""
        import warnings
        from threading import Event, Thread
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads, which is what is tried here
        executor, training = Processes(2, wait_for_workers=True), Training({str(tmp_path)!r})
        step, serial, is_over = training.function(executor), training.function("serial"), Event()

        def train():
            while not is_over.is_set():
                step(*batch(0))

        thread = Thread(target=train)
        thread.start()
        for _ in range(10):
            child = os.fork()
            if child == 0:
                serial(*batch(0))
                os._exit(0)
            print(os.waitpid(child, 0)[1])
        is_over.set()
        thread.join()
    """)
    assert output.split() == ["0"] * 10


def test_after_a_fork_both_go_on(tmp_path: Path) -> None:
    output = run(f"""
        executor, training = Processes(2, wait_for_workers=True), Training({str(tmp_path)!r})
        expected = training.history(executor, 6)
        step, serial = training.function(executor), training.function("serial")
        step(*batch(0))
        child = os.fork()
        if child == 0:
            known = same(training.values(), expected[1])
            for number in range(1, 6):
                step(*batch(number))
            trained = same(training.values(), expected[6])
            serial(*batch(0))
            changed = not same(training.values(), expected[6])
            print("child", known, trained, changed, executor.workers[1].pid, flush=True)
            executor.close()
            os._exit(0)
        print("status", os.waitpid(child, 0)[1], same(training.values(), expected[1]))
        for number in range(1, 6):
            step(*batch(number))
        print("parent", same(training.values(), expected[6]), executor.workers[1].pid)
    """)
    child, status, parent = output.splitlines()
    assert child.startswith("child True True True ")
    assert status == "status 0 True"
    assert parent.startswith("parent True ")
    pids = [int(line.split()[-1]) for line in (child, parent)]
    assert pids[0] != pids[1]
    assert_end(pids)
