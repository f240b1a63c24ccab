"""A cluster on a network of its own: cables are pulled, hosts crash and freeze, strangers knock, the scheduler ends."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
from faulty_ops import wait_until

from executors.hosts.connection.addresses import SCHEDULER_PORT, WORKER_PORT
from executors.hosts.connection.security import new_token
from miai_graph.bench.networks import EmulatedNetwork, can_emulate

REASON = can_emulate()
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(REASON is not None, reason=f"hosts cannot be emulated: {REASON}"),
]

ANSWER_SECONDS = 60.0
CRASH_SECONDS, SILENCE_SECONDS = 3.0, 12.0
CLUSTER = [sys.executable, "-c", "from miai_graph.commands import main; main()", "cluster"]
USER = str(Path(__file__).with_name("hosts_user.py"))
DESK, FIRST, SECOND, STRANGER = range(4)
"""The emulated hosts: the user's with the scheduler, two that compute, and one that does not belong there."""


class Bench:
    """A network with a cluster, and the user's process on it.

    Attributes
    ----------
    workers : the addresses of the hosts that compute
    """

    def __init__(self, network: EmulatedNetwork) -> None:
        self.network = network
        self._processes: list[subprocess.Popen[str]] = []
        self._environment = os.environ | {"MIAI_GRAPH_TOKEN": new_token(), "PYTHONUNBUFFERED": "1"}
        self.scheduler = self.type(DESK, "start", "--host", network.addresses[DESK], "--no-worker")
        _read_until(self.scheduler, "is ready")
        self.joined = {host: self.type(host, "join", network.addresses[DESK]) for host in (FIRST, SECOND)}
        self.workers = [f"tls://{network.addresses[host]}:{WORKER_PORT}" for host in self.joined]
        for process in self.joined.values():
            _read_until(process, "has joined")
        command = [sys.executable, USER, network.addresses[DESK]]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._user = network.run(DESK, command, env=self._environment, **pipes)
        self._processes.append(self._user)
        self._told: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._listener = Thread(target=self._listen)
        self._listener.start()

    def close(self) -> None:
        """End all processes."""
        for process in (self._user, *self.joined.values(), self.scheduler):
            process.kill()
        self._listener.join()
        for process in self._processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def type(self, host: int, *words: str, token: str | None = None) -> subprocess.Popen[str]:
        """Type ``miai-graph cluster …`` on a host."""
        environment = self._environment | ({"MIAI_GRAPH_TOKEN": token} if token else {})
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = self.network.run(host, [*CLUSTER, *words], env=environment, **pipes)
        self._processes.append(process)
        return process

    def _listen(self) -> None:
        assert self._user.stdout is not None
        for line in self._user.stdout:
            self._told.put(json.loads(line))

    def tell(self, word: str) -> None:
        """Tell the user's process to ``go`` or to ``halt``."""
        assert self._user.stdin is not None
        self._user.stdin.write(word + "\n")
        self._user.stdin.flush()

    def hear(self, key: str) -> dict[str, Any]:
        """The next thing of a kind that it says."""
        while True:
            told = self._told.get(timeout=ANSWER_SECONDS)
            if key in told:
                return told

    def start(self) -> None:
        """Begin to train."""
        self.tell("go")
        self.hear("trains")

    def halt(self) -> list[str]:
        """End the training, and see that nothing of it was lost; returns the hosts that are used."""
        self.tell("halt")
        found = self.hear("steps")
        assert found["is_same"]
        hosts: list[str] = found["hosts"]
        return hosts

    def worker(self, host: int) -> psutil.Process:
        """The process on a host that computes."""
        (worker,) = psutil.Process(self.joined[host].pid).children()
        return worker

    def trained_with_all(self) -> None:
        """Train until all hosts take part, from the next epoch on after they have joined."""
        hosts: list[str] = []
        deadline = time.monotonic() + ANSWER_SECONDS
        while sorted(hosts) != sorted(self.workers):
            assert time.monotonic() < deadline
            self.start()
            hosts = self.halt()

    def named_after(self, address: str, since: float) -> float:
        """Seconds until the user's process knew that a host is lost."""
        while (told := self.hear("lost"))["lost"] != address:
            pass
        return float(told["at"]) - since


def _read_until(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    while text not in (line := process.stdout.readline()):
        assert line, "the process has ended"


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with EmulatedNetwork(hosts=4) as network, closing(Bench(network)) as made:
        assert sorted(made.hear("ready")["ready"]) == sorted(made.workers)
        yield made


Note = Callable[[str, float], None]


@pytest.fixture
def note(record_property: Callable[[str, object], None]) -> Note:
    """Note how long it took until something was named: in the report, and on the screen."""

    def write(what: str, seconds: float) -> None:
        record_property(what, round(seconds, 3))
        print(f"{what}: {seconds:.3f} s")

    return write


def test_a_crash_and_the_way_back(bench: Bench, note: Note) -> None:
    bench.trained_with_all()
    bench.start()
    start = time.monotonic()
    bench.worker(FIRST).kill()
    seconds = bench.named_after(bench.workers[0], start)
    note("a host killed", seconds)
    assert seconds < CRASH_SECONDS
    assert bench.halt() == [bench.workers[1]]
    bench.trained_with_all()
    note("a host killed, and used again", time.monotonic() - start)


def test_a_cable_pulled_and_put_back(bench: Bench, note: Note) -> None:
    bench.trained_with_all()
    bench.start()
    bench.network.link_down(SECOND)
    start = time.monotonic()
    seconds = bench.named_after(bench.workers[1], start)
    note("a host unplugged", seconds)
    assert seconds < SILENCE_SECONDS
    assert bench.halt() == [bench.workers[0]]
    bench.network.link_up(SECOND)
    start = time.monotonic()
    bench.trained_with_all()
    note("a host plugged in again, and used again", time.monotonic() - start)


def test_a_lid_closed_and_opened(bench: Bench, note: Note) -> None:
    bench.trained_with_all()
    bench.start()
    worker = bench.worker(FIRST)
    worker.suspend()
    start = time.monotonic()
    seconds = bench.named_after(bench.workers[0], start)
    note("a host frozen", seconds)
    assert seconds < SILENCE_SECONDS
    assert bench.halt() == [bench.workers[1]]
    worker.resume()
    start = time.monotonic()
    bench.trained_with_all()
    note("a host awake again, and used again", time.monotonic() - start)


KNOCK = f"""
import os, socket, ssl, sys
for address in sys.argv[1:]:
    for port in ({SCHEDULER_PORT}, {WORKER_PORT}):
        for greeting in (os.urandom(4096), b"GET / HTTP/1.1\\r\\n\\r\\n", b"\\0" * 64):
            try:
                with socket.create_connection((address, port), 2) as plain:
                    plain.sendall(greeting)
                context = ssl._create_unverified_context()
                with context.wrap_socket(socket.create_connection((address, port), 2)) as secure:
                    secure.sendall(greeting)
                    print("heard" if secure.recv(1) else "refused")
            except OSError:
                pass
"""


def test_strangers_are_kept_out_and_do_not_disturb(bench: Bench) -> None:
    bench.trained_with_all()
    bench.start()
    other = bench.type(STRANGER, "join", bench.network.addresses[DESK], token=new_token())
    knocking = [sys.executable, "-c", KNOCK, *bench.network.addresses[:3]]
    noise = bench.network.run(STRANGER, knocking, stdout=subprocess.PIPE, text=True)
    assert "expected the token of the cluster" in other.communicate(timeout=ANSWER_SECONDS)[0]
    assert other.returncode == 1
    assert "heard" not in noise.communicate(timeout=ANSWER_SECONDS)[0]
    assert sorted(bench.halt()) == sorted(bench.workers)


def test_the_scheduler_killed(note: Note) -> None:
    """The last snapshot is there, and the training can go on by other means."""
    with EmulatedNetwork(hosts=3) as network, closing(Bench(network)) as bench:
        bench.trained_with_all()
        bench.start()
        os.kill(bench.scheduler.pid, signal.SIGKILL)
        start = time.monotonic()
        raised = bench.hear("raised")
        note("the scheduler killed", raised["at"] - start)
        assert raised["raised"] == "ClusterLostError"
        assert "The values are those of the last snapshot" in raised["text"]
        assert bench.hear("steps")["is_same"]
        wait_until(lambda: not any(psutil.Process(process.pid).children() for process in bench.joined.values()))
