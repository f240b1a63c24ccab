"""Emulated hosts: they reach each other as fast as their links are, cables can be pulled, and nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from miai_graph.bench.networks import INTERFACE, EmulatedNetwork, can_emulate
from miai_graph.errors import ArgumentError, ExecutorError

REASON = can_emulate()
NAMESPACES = Path("/run/netns")

ECHO = """
import socket
with socket.create_server(("", 5000)) as server:
    print("listening", flush=True)
    connection, _ = server.accept()
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := connection.recv(1 << 20):
            connection.sendall(data[-1:])
"""
ASK = """
import socket, sys
with socket.create_connection((sys.argv[1], 5000), timeout=5) as connection:
    for number, line in enumerate(sys.stdin):
        connection.settimeout(float(line))
        question, answer = bytes([number]), b""
        try:
            connection.sendall(question)
            while not answer.endswith(question):
                answer = connection.recv(100)
            print("answer", flush=True)
        except TimeoutError:
            print("nothing", flush=True)
"""
SEND = """
import socket, sys, time
size = int(sys.argv[2])
with socket.create_connection((sys.argv[1], 5000), timeout=10) as connection:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for _ in range(int(sys.argv[3])):
        start = time.perf_counter()
        connection.sendall(bytes(size - 1) + b"x")
        while connection.recv(1000)[-1:] != b"x":
            pass
        print(8 * size / (time.perf_counter() - start))
"""
KILLED = """
import os, signal, sys
from miai_graph.bench.networks import EmulatedNetwork
network = EmulatedNetwork(hosts=1).__enter__()
sleeper = network.run(0, [sys.executable, "-c", "import signal; print('asleep', flush=True); signal.pause()"])
os.kill(os.getpid(), signal.SIGKILL)
"""


def needs_root(test: Any) -> Any:
    reason = f"hosts cannot be emulated: {REASON}"
    return pytest.mark.root(pytest.mark.skipif(REASON is not None, reason=reason)(test))


@pytest.fixture
def network() -> Iterator[EmulatedNetwork]:
    with EmulatedNetwork(hosts=3) as network:
        yield network


@contextmanager
def program(network: EmulatedNetwork, host: int, code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", code, *arguments]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with network.run(host, command, **pipes) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(10) == 0


@contextmanager
def echo(network: EmulatedNetwork, host: int) -> Iterator[None]:
    with program(network, host, ECHO) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"
        yield


def asked(process: subprocess.Popen[str], patience_seconds: float) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{patience_seconds}\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def left_of(pid: int) -> list[str]:
    found = [path.name for path in NAMESPACES.iterdir()] if NAMESPACES.exists() else []
    return [name for name in found if name.startswith(f"miai-{pid}-")]


@needs_root
def test_all_hosts_reach_each_other(network: EmulatedNetwork) -> None:
    for here, there in ((0, 1), (1, 2), (2, 0), (1, 1)):
        with echo(network, there), program(network, here, ASK, network.addresses[there]) as client:
            assert asked(client, 5) == "answer"


@needs_root
def test_hosts_reach_themselves_by_loopback(network: EmulatedNetwork) -> None:
    with echo(network, 0), program(network, 0, ASK, "127.0.0.1") as client:
        assert asked(client, 5) == "answer"


@needs_root
def test_hosts_have_no_way_out(network: EmulatedNetwork) -> None:
    with program(network, 0, "print(open('/proc/self/net/route').read())") as process:
        assert process.stdout is not None
        _, *routes = process.stdout.read().split("\n\n")[0].splitlines()
    assert [route.split()[0] for route in routes] == [INTERFACE]
    assert [route.split()[1] for route in routes] == ["0000000A"]  # 10.0.0.0, and no default


@needs_root
@pytest.mark.parametrize("bits_per_second", [1e9, 1e8])
def test_links_are_as_fast_as_said(bits_per_second: float) -> None:
    size = round(bits_per_second / 8 / 30)
    measured: list[float] = []
    with EmulatedNetwork(2, bits_per_second) as network:
        # The fastest of some, and of more on a machine too busy to send at all times.
        for _ in range(10):
            with echo(network, 1), program(network, 0, SEND, network.addresses[1], str(size), "20") as sender:
                assert sender.stdout is not None
                measured += map(float, sender.stdout.read().split())
            if max(measured) > 0.75 * bits_per_second:
                break
    assert 0.75 * bits_per_second < max(measured) < 1.1 * bits_per_second


@needs_root
def test_a_pulled_cable_and_back(network: EmulatedNetwork) -> None:
    with echo(network, 1), program(network, 0, ASK, network.addresses[1]) as client:
        assert asked(client, 5) == "answer"
        network.link_down(1)
        assert asked(client, 0.2) == "nothing"
        with echo(network, 2), program(network, 0, ASK, network.addresses[2]) as other:
            assert asked(other, 5) == "answer"
        network.link_up(1)
        assert asked(client, 10) == "answer"


@needs_root
def test_signals_reach_the_command(network: EmulatedNetwork) -> None:
    process = network.run(0, [sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process.send_signal(signal.SIGKILL)
    with process:
        assert process.wait(5) == -signal.SIGKILL


@needs_root
def test_nothing_is_left_behind() -> None:
    starts_another = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    with EmulatedNetwork(1) as network:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = network.run(0, [sys.executable, "-c", starts_another], **pipes)
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        assert left_of(os.getpid())
    assert left_of(os.getpid()) == []
    # Only when the process that it started is gone too, nobody holds the pipe.
    with process:
        assert process.stdout.read() == b""


@needs_root
def test_what_a_killed_process_left_is_removed_by_the_next() -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        killed.wait(10)
        with EmulatedNetwork(1):
            # Only when the sleeper is gone too, nobody holds the pipe.
            assert killed.stdout.read() in ("asleep\n", "")
            # Another test may have come first, and not be quite done.
            deadline = time.monotonic() + 5
            while left_of(killed.pid):
                assert time.monotonic() < deadline


@needs_root
def test_two_networks_do_not_meet() -> None:
    with EmulatedNetwork(2) as one, EmulatedNetwork(2) as other:
        assert one.addresses == other.addresses
        with echo(one, 1), program(one, 0, ASK, one.addresses[1]) as client:
            other.link_down(1)
            assert asked(client, 5) == "answer"


@pytest.mark.parametrize(("hosts", "bits_per_second"), [(0, 1e9), (1000, 1e9), (2, 0.0), (2, float("nan"))])
def test_arguments_out_of_range(hosts: int, bits_per_second: float) -> None:
    with pytest.raises(ArgumentError, match="expected"):
        EmulatedNetwork(hosts, bits_per_second)


@pytest.mark.skipif(REASON is None, reason="hosts can be emulated")
def test_where_hosts_cannot_be_emulated_it_says_so() -> None:
    with pytest.raises(ExecutorError, match="expected a machine that can emulate hosts"):
        EmulatedNetwork().__enter__()


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    if REASON is None:
        assert can_emulate() == "there is no program 'ip'"
    else:
        assert can_emulate() is not None
