"""What the processes executor stands on: words to wait for, shared memory, and processes that end when they should."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from echo_worker import wait_politely

from executors.processes import launch, memory
from executors.processes.atomics import atomics, spins_for
from executors.processes.launch import THREAD_VARIABLES, WorkerProcess, environment, start
from executors.processes.memory import DEFAULT_KIND, NAMED_FOLDER, Segment
from miai_graph.errors import ExecutorError

ROOT = Path(__file__).parents[1]
PATIENCE_SECONDS = 5.0
CACHE_LINE = 64
KINDS = sorted({DEFAULT_KIND, "named"})
of_each_kind = pytest.mark.parametrize("kind", KINDS)
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc and /dev/shm")
on_posix = pytest.mark.skipif(sys.platform == "win32", reason="sends signals")


@pytest.fixture
def worker() -> Iterator[WorkerProcess]:
    started = start("echo_worker:serve", threads=1)
    yield started
    started.stop(PATIENCE_SECONDS)


def ask(worker: WorkerProcess, name: str, *arguments: Any) -> Any:
    worker.connection.send((name, *arguments))
    return worker.connection.recv()


def give(worker: WorkerProcess, segment: Segment) -> Any:
    """What the worker answers once it has added 1 to all bytes."""
    worker.connection.send(("add_one",))
    segment.send(worker.connection, worker.pid)
    return worker.connection.recv()


def run_script(text: str, **options: Any) -> subprocess.Popen[str]:
    """Another process that imports what this one can, as a script without a guard."""
    header = f"import sys; sys.path[:] = {sys.path!r}\n"
    code = header + textwrap.dedent(text)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT, **options)


def has_ended(pid: int) -> bool:
    """Whether there is no such process, or only what its parent has not collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def becomes_true(condition: Any) -> bool:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


# ---- words


def test_words_are_stored_and_loaded() -> None:
    words = np.zeros(2, np.int64)
    for value in (1, -1, 2**63 - 1, -(2**63)):
        atomics().store(words.ctypes.data, value)
        assert words.tolist() == [value, 0]
        assert atomics().load(words.ctypes.data) == value


def test_waiting_looks_at_all_words() -> None:
    words = np.full((3, 8), -9, np.int64)
    words[:, 0] = 5, 7, 6

    def waits(count: int, target: int) -> bool:
        return atomics().wait_until(words.ctypes.data, count, CACHE_LINE, target, 10)

    assert waits(3, 5)
    assert not waits(3, 6)
    assert waits(0, 6)
    words[0, 0] = 6
    assert waits(3, 6)
    assert not waits(3, 7)
    words[:, 0] = -2
    assert waits(3, -2)
    assert not waits(3, -1)


def test_waiting_gives_up_in_time() -> None:
    word = np.zeros(1, np.int64)
    spins = spins_for(5e-3)
    start_seconds = time.perf_counter()
    assert not atomics().wait_until(word.ctypes.data, 1, 0, 1, spins)
    assert 1e-3 < time.perf_counter() - start_seconds < 1
    assert not atomics().wait_until(word.ctypes.data, 1, 0, 1, 0)
    word[0] = 1
    assert atomics().wait_until(word.ctypes.data, 1, 0, 1, 0)


def test_words_go_to_and_fro_between_processes(worker: WorkerProcess) -> None:
    rounds = 10_000
    segment = Segment.create(2 * CACHE_LINE)
    worker.connection.send(("return_ball", rounds))
    segment.send(worker.connection, worker.pid)
    assert worker.connection.recv() == "ready"
    address = segment.bytes.ctypes.data
    for turn in range(1, rounds + 1):
        atomics().store(address, turn)
        wait_politely(address + CACHE_LINE, 1, 0, turn)
    assert worker.connection.recv() is None
    assert atomics().load(address + CACHE_LINE) == rounds


def test_other_threads_go_on_while_one_waits() -> None:
    words = np.zeros((2, 8), np.int64)
    here, there = words.ctypes.data, words[1:].ctypes.data

    def answer() -> None:
        for turn in range(1, 101):
            wait_politely(here, 1, 0, turn)
            atomics().store(there, turn)

    thread = Thread(target=answer)
    thread.start()
    for turn in range(1, 101):
        atomics().store(here, turn)
        assert atomics().wait_until(there, 1, 0, turn, spins_for(PATIENCE_SECONDS))
    thread.join()


# ---- memory


@of_each_kind
def test_memory_is_zeroed_and_shared(worker: WorkerProcess, kind: Any) -> None:
    segment = Segment.create(100_001, kind)
    assert segment.size_bytes == segment.bytes.size == 100_001
    assert segment.bytes.dtype == np.uint8
    assert segment.bytes.flags.writeable
    assert segment.bytes.ctypes.data % 4096 == 0
    assert not segment.bytes.any()
    segment.bytes[...] = 41
    assert give(worker, segment) == (segment.number, 100_001)
    assert (segment.bytes == 42).all()
    assert give(worker, segment) == (segment.number, 100_001)
    segment.settle()
    segment.settle()
    assert (segment.bytes == 43).all()
    with pytest.raises(ExecutorError, match="Send it before settle"):
        segment.send(worker.connection, worker.pid)


@of_each_kind
def test_memory_of_several_workers(kind: Any) -> None:
    workers = [start("echo_worker:serve", threads=1) for _ in range(2)]
    segments = [Segment.create(size, kind) for size in (10, 5000)]
    assert segments[0].number != segments[1].number
    for each in workers:
        for segment in segments:
            assert give(each, segment) == (segment.number, segment.size_bytes)
    for segment in segments:
        segment.settle()
        assert (segment.bytes == 2).all()
    for each in workers:
        each.stop(PATIENCE_SECONDS)


def test_a_default_timeout_of_sockets_changes_nothing() -> None:
    socket.setdefaulttimeout(1e-3)
    try:
        started = start("echo_worker:serve", threads=1)
        segment = Segment.create(8)
        assert give(started, segment) == (segment.number, 8)
        assert ask(started, "echo", 1) == 1
    finally:
        socket.setdefaulttimeout(None)
    started.stop(PATIENCE_SECONDS)


@of_each_kind
def test_memory_outlives_the_segment_as_long_as_arrays_do(kind: Any) -> None:
    segment = Segment.create(8000, kind)
    view = segment.bytes[:800].view(np.int64)[::2]
    del segment
    gc.collect()
    view[...] = 7
    assert view.sum() == 7 * 50


@on_linux
@of_each_kind
def test_memory_is_unmapped_with_its_last_array(worker: WorkerProcess, kind: Any) -> None:
    def mappings() -> list[str]:
        return [line for line in Path("/proc/self/maps").read_text().splitlines() if "miai" in line]

    gc.collect()
    before = mappings()
    segment = Segment.create(8000, kind)
    give(worker, segment)
    view = segment.bytes[8:]
    del segment
    assert len(mappings()) == len(before) + 1
    del view
    assert mappings() == before


@on_linux
@of_each_kind
def test_memory_leaks_no_descriptors(worker: WorkerProcess, kind: Any) -> None:
    def descriptors() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), ask(worker, "open_descriptors")

    give(worker, Segment.create(4096, kind))
    gc.collect()
    before = descriptors()
    for cycle in range(200):
        segment = Segment.create(4096, kind)
        give(worker, segment)
        if cycle % 2:
            segment.settle()
    del segment
    assert descriptors() == before


@of_each_kind
def test_more_memory_than_there_is(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    unique = f"-{kind}-{os.getpid()}"
    monkeypatch.setattr(memory, "token_hex", lambda size: unique)
    for size_bytes in (2**47, 2**70):
        with pytest.raises(ExecutorError, match=rf"expected {size_bytes:,} bytes of shared memory.*executor='serial'"):
            Segment.create(size_bytes, kind)
        assert not (NAMED_FOLDER / f"{memory.NAME_PREFIX}{unique}").exists()


@on_linux
def test_named_memory_is_reserved() -> None:
    segment = Segment.create(1_000_000, "named")
    file = NAMED_FOLDER / str(segment.source)
    assert file.stat().st_blocks * 512 >= 1_000_000
    del segment
    assert not file.exists()


@on_linux
@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "sys.exit()"])
@of_each_kind
def test_nothing_stays_behind_and_nothing_is_printed(kind: Any, end: str) -> None:
    script = f"""
        import os, sys
        from executors.processes.launch import start
        from executors.processes.memory import Segment
        worker = start("echo_worker:serve", threads=1)
        segment = Segment.create(4096, {kind!r})
        name = segment.source
        worker.connection.send(("add_one",))
        segment.send(worker.connection, worker.pid)
        worker.connection.recv()
        segment.settle()
        kept = segment.bytes[1:]
        print(name, flush=True)
        if {end!r} == "sys.exit()":
            worker.stop(5)
        {end}
    """
    process = run_script(script, stderr=subprocess.PIPE)
    output, errors = process.communicate(timeout=30)
    assert errors == ""
    assert process.returncode in (0, -9)
    assert not (NAMED_FOLDER / output.strip()).exists()


# ---- processes


def test_workers_answer_and_stop() -> None:
    workers = [start("echo_worker:serve", threads=1) for _ in range(2)]
    for number, each in enumerate(workers):
        each.connection.send(("echo", {"number": number}))
    unheard: list[Connection] = [each.connection for each in workers]
    heard = []
    while unheard:
        for connection in wait(unheard):
            heard.append(connection.recv()["number"])
            unheard.remove(connection)
    assert sorted(heard) == [0, 1]
    for each in workers:
        assert each.is_alive()
        assert "still running" in repr(each)
        each.stop(PATIENCE_SECONDS)
        each.stop(PATIENCE_SECONDS)
        assert not each.is_alive()
        assert each.describe_exit() == "ended with exit code 0"


def test_surroundings_of_a_worker(worker: WorkerProcess) -> None:
    found = ask(worker, "surroundings")
    assert found["pid"] == worker.pid
    assert found["path"] == [entry or os.getcwd() for entry in sys.path]
    assert found["arguments"] == ["-c"]
    assert "pytest" not in found["main"]
    assert found["ignores interrupts"]
    assert found["input"] == ""
    assert found["inheritable"] == []


def test_threads_of_a_worker() -> None:
    started = start("echo_worker:serve", threads=3)
    found = ask(started, "surroundings")["environment"]
    started.stop(PATIENCE_SECONDS)
    assert {name: found[name] for name in THREAD_VARIABLES} == dict.fromkeys(THREAD_VARIABLES, "3")
    assert os.environ.items() <= {**environment(3), **os.environ}.items()


def test_imports_do_not_look_into_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("signal", "enum", "socket", "multiprocessing"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the working directory')")
    monkeypatch.chdir(tmp_path)
    started = start("echo_worker:serve", threads=1)
    assert ask(started, "echo", 1) == 1
    started.stop(PATIENCE_SECONDS)


@on_posix
def test_kill_is_described(worker: WorkerProcess) -> None:
    assert ask(worker, "echo", 1) == 1
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(EOFError):
        worker.connection.recv()
    assert worker.describe_exit() == "killed by signal 9 (SIGKILL)"
    worker.stop(0)
    worker.kill()


def test_exit_code_is_described(worker: WorkerProcess) -> None:
    worker.connection.send(("leave", 3))
    with pytest.raises(EOFError):
        worker.connection.recv()
    assert worker.describe_exit() == "ended with exit code 3"


@on_posix
def test_a_worker_that_does_not_stop_is_killed(worker: WorkerProcess) -> None:
    ask(worker, "echo", 1)
    os.kill(worker.pid, signal.SIGSTOP)
    worker.stop(0.05)
    assert worker.describe_exit() == "killed by signal 9 (SIGKILL)"


@on_posix
def test_interrupts_are_ignored_from_the_first_moment() -> None:
    started = start("echo_worker:serve", threads=1)
    os.kill(started.pid, signal.SIGINT)
    assert ask(started, "echo", 1) == 1
    os.kill(started.pid, signal.SIGINT)
    assert ask(started, "echo", 2) == 2
    started.stop(PATIENCE_SECONDS)
    assert started.describe_exit() == "ended with exit code 0"
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_an_interpreter_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.spawn, "_python_exe", os.fsencode("/no/python"))
    with pytest.raises(ExecutorError, match=r"expected to start a worker; found FileNotFoundError.*set_executable"):
        start("echo_worker:serve", threads=1)


@on_linux
@pytest.mark.parametrize("closed", [(1,), (0, 1, 2)])
def test_workers_of_a_process_without_standard_streams(closed: tuple[int, ...], tmp_path: Path) -> None:
    script = f"""
        import os
        for number in {closed}:
            os.close(number)
        from executors.processes.launch import start
        workers = [start("echo_worker:serve", threads=1) for _ in range(2)]
        answers = []
        for worker in workers:
            worker.connection.send(("say", "lost"))
            answers.append(worker.connection.recv())
            worker.connection.send(("echo", 7))
            answers.append(worker.connection.recv())
            worker.stop(5)
            answers.append(worker.describe_exit())
        open({str(tmp_path / "found")!r}, "w").write(repr(answers))
    """
    process = run_script(script, stderr=subprocess.DEVNULL)
    assert process.communicate(timeout=30)[0] == ""
    assert (tmp_path / "found").read_text() == repr([None, 7, "ended with exit code 0"] * 2)


PARENT = """
    import os, signal, sys
    from executors.processes.launch import start
    workers = [start("echo_worker:serve", threads=1) for _ in range(2)]
    for worker in workers:
        worker.connection.send(("echo", 1))
    for worker in workers:
        worker.connection.recv()
"""


@on_linux
def test_workers_end_when_their_parent_is_killed() -> None:
    parent = run_script(PARENT + "    print(*[worker.pid for worker in workers], flush=True); signal.pause()")
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert not any(has_ended(pid) for pid in pids)
    parent.kill()
    parent.wait()
    assert becomes_true(lambda: all(has_ended(pid) for pid in pids))
    parent.stdout.close()


@on_linux
def test_a_fork_does_not_keep_workers_alive() -> None:
    script = """
    child = os.fork()
    if child == 0:
        signal.pause()
    print(child, *[worker.pid for worker in workers], flush=True)
    signal.pause()
    """
    parent = run_script(PARENT + script)
    assert parent.stdout is not None
    child, *pids = [int(pid) for pid in parent.stdout.readline().split()]
    parent.kill()
    parent.wait()
    try:
        assert becomes_true(lambda: all(has_ended(pid) for pid in pids))
        assert not has_ended(child)
    finally:
        os.kill(child, signal.SIGKILL)
    parent.stdout.close()
