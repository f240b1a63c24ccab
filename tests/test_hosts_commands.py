"""The commands ``miai-graph cluster``, run as users run them."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from executors.hosts.cluster import CLOCK, Cluster
from executors.hosts.commands import _welcome
from executors.hosts.connection.dask_cluster import DaskCluster
from executors.hosts.connection.security import credentials, new_token, write_token
from miai_graph.commands import main
from miai_graph.errors import ClusterLostError

PATIENCE_SECONDS = 40.0
MAIN = [sys.executable, "-c", "from miai_graph.commands import main; main()", "cluster"]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="ends commands by signals")


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [item.getsockname()[1] for item in taken]


class Command:
    """A command that runs, and what it has said so far."""

    def __init__(self, process: subprocess.Popen[bytes], output: int) -> None:
        self.process = process
        self.pid = process.pid
        self._output = output
        self.said = ""

    def hears(self, pattern: str) -> re.Match[str]:
        """Wait until it says this, after what was heard before."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (found := re.search(pattern, self.said)):
            assert select.select([self._output], [], [], max(0, deadline - time.monotonic()))[0], self.said
            try:
                piece = os.read(self._output, 2**16)
            except OSError:  # the terminal is closed
                piece = b""
            assert piece, f"it has ended: {self.said}"
            self.said += piece.decode().replace("\r", "")
        self.said = self.said[found.end() :]
        return found

    def rest(self) -> str:
        """What it says until it ends."""
        while True:
            try:
                piece = os.read(self._output, 2**16)
            except OSError:
                return self.said
            if not piece:
                return self.said
            self.said += piece.decode().replace("\r", "")

    def workers(self) -> list[int]:
        return [child.pid for child in psutil.Process(self.pid).children()]

    def end(self, how: int = signal.SIGINT) -> int:
        self.process.send_signal(how)
        self.rest()
        return self.process.wait(PATIENCE_SECONDS)


@contextmanager
def command(*arguments: str, token: str | None = None) -> Iterator[Command]:
    """Run a command whose output is a pipe."""
    environment = {key: value for key, value in os.environ.items() if key != "MIAI_GRAPH_TOKEN"}
    if token is not None:
        environment["MIAI_GRAPH_TOKEN"] = token
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen([*MAIN, *arguments], env=environment, bufsize=0, **streams) as process:  # type: ignore
        assert process.stdout is not None
        try:
            yield Command(process, process.stdout.fileno())
        finally:
            process.kill()


@contextmanager
def terminal_command(*arguments: str) -> Iterator[tuple[Command, int]]:
    """Run a command at a terminal; the number is its keyboard."""
    keyboard, screen = os.openpty()
    environment = {key: value for key, value in os.environ.items() if key != "MIAI_GRAPH_TOKEN"}
    with subprocess.Popen(
        [*MAIN, *arguments], env=environment, stdin=screen, stdout=screen, stderr=screen, start_new_session=True
    ) as process:
        os.close(screen)
        try:
            yield Command(process, keyboard), keyboard
        finally:
            process.kill()
            os.close(keyboard)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def answers(cluster: Cluster, count: int) -> bool:
    addresses = list(cluster.addresses)
    calls = [cluster.call(address, CLOCK) for address in addresses]
    return len([call.result(PATIENCE_SECONDS) for call in calls]) == count


def test_what_is_shown_on_a_network() -> None:
    text = _welcome("192.168.0.4", ["10.0.0.4"], 8786, range(8788, 8790), "and the token.")
    assert "On each other machine type:\n\n    miai-graph cluster join 192.168.0.4\n" in text
    assert "Firewalls must let in TCP ports 8786 and 8788-8789 here, and TCP port 8788 on the others." in text
    assert "This machine has other addresses, too: 10.0.0.4." in text
    assert 'executor=mg.executor("hosts", address="192.168.0.4")' in text


def test_a_cluster_on_one_table() -> None:
    """One machine starts it and shows the token, one is asked for it and joins, and a client uses both."""
    port, worker, other = free_ports(3)
    places = ["--host", "127.0.0.1", "--port", str(port), "--worker-port", str(worker), "--threads", "1"]
    with terminal_command("start", *places) as (start, _):
        line = start.hears(r"    miai-graph cluster join (\S+) --worker-port (\d+)\n")
        assert line.groups() == (f"127.0.0.1:{port}", str(max(worker + 1, 8788)))
        token = start.hears(r"shown only now:\s+((?:[0-9a-z]{4}-){8}[0-9a-z]{4})\n")[1]
        with terminal_command("join", line[1], "--worker-port", str(other), "--threads", "1") as (join, keyboard):
            join.hears("Token of the cluster")
            os.write(keyboard, f"{token}\n".encode())
            found = join.hears(r"127.0.0.1:(\d+) has joined the cluster at (\S+)\.")
            assert found.groups() == (str(other), line[1])
            assert token not in join.said
            with DaskCluster(line[1], credentials(token)) as cluster:
                assert list(cluster.addresses) == [f"tls://127.0.0.1:{number}" for number in (worker, other)]
                assert answers(cluster, 2)
                members = [start.pid, join.pid, *start.workers(), *join.workers()]
                assert len(members) == 4
                listening = [
                    entry.laddr.port
                    for pid in members
                    for entry in psutil.Process(pid).net_connections()
                    if entry.status == psutil.CONN_LISTEN
                ]
                assert sorted(listening) == sorted([port, worker, other])
                assert not any(token in text for pid in members for text in psutil.Process(pid).cmdline())
                assert join.end() == 0
                wait_until(lambda: len(cluster.addresses) == 1)
                assert start.end(signal.SIGTERM) == 0
                with pytest.raises(ClusterLostError, match=r"expected the scheduler at .* to answer; found that"):
                    _ = cluster.addresses
        wait_until(lambda: not any(map(alive, members)))


def test_what_drops_out_joins_again(tmp_path: Path) -> None:
    """A worker that dies, and a cluster that is started again."""
    port, first = free_ports(2)
    token, file = new_token(), tmp_path / "token"
    write_token(token, file)
    address = f"127.0.0.1:{port}"
    start_line = ["start", "--host", "127.0.0.1", "--port", str(port), "--no-worker", "--token-file", str(file)]
    join_line = ["join", address, "--worker-port", str(first), "--threads", "1"]
    with command(*join_line, token=token) as join:
        assert "found nobody listening there" in join.rest()
        assert join.process.wait() == 1
    with command(*start_line) as start:
        start.hears(f"the token that is in {re.escape(str(file))}")
        with command(*join_line, token=token) as join:
            join.hears("has joined the cluster")
            with DaskCluster(address, credentials(token)) as cluster:
                (pid,) = join.workers()
                os.kill(pid, signal.SIGKILL)
                join.hears(r"has left the cluster: its process killed by signal 9 \(SIGKILL\)")
                join.hears(f"127.0.0.1:{first} has joined again")
                assert answers(cluster, 1)
            start.end()
            join.hears("has left the cluster: its connection with the scheduler ended")
            with command(*start_line) as again:
                again.hears("The cluster is ready")
                join.hears("has joined again")
                with DaskCluster(address, credentials(token)) as cluster:
                    assert answers(cluster, 1)
            assert join.end() == 0


def test_several_hosts_on_one_machine() -> None:
    token = new_token()
    (port, worker) = free_ports(2)
    places = ["--host", "127.0.0.1", "--port", str(port), "--worker-port", str(worker)]
    with command("start", *places, "--workers", "2", token=token) as start:
        start.hears(rf"cluster join 127\.0\.0\.1:{port} --worker-port {max(worker + 2, 8788)}\n")
        start.hears("the token that is in MIAI_GRAPH_TOKEN")
        with DaskCluster(f"127.0.0.1:{port}", credentials(token)) as cluster:
            assert answers(cluster, 2)


def test_who_joins_and_leaves_is_told_in_a_line_each() -> None:
    token, name = new_token(), re.escape(socket.gethostname())
    port, worker, first, second = free_ports(4)
    places = ["--host", "127.0.0.1", "--port", str(port), "--worker-port", str(worker)]

    def line(host: int, what: str, count: str) -> str:
        return rf"\d\d:\d\d:\d\d  {name} \(127\.0\.0\.1:{host}\) has {what} the cluster: {count} now\.\n"

    with command("start", *places, "--workers", "2", token=token) as start:
        start.hears("Ctrl-C ends the cluster.\n")
        join = ["join", f"127.0.0.1:{port}", "--threads", "1"]
        with command(*join, "--worker-port", str(first), token=token) as one:
            start.hears(f"^{line(first, 'joined', '3 hosts')}$")
            with command(*join, "--worker-port", str(second), token=token) as other:
                start.hears(f"^{line(second, 'joined', '4 hosts')}$")
                assert other.end() == 0
            start.hears(f"^{line(second, 'left', '3 hosts')}$")
            one.hears("Ctrl-C leaves the cluster")
            os.kill(one.workers()[0], signal.SIGKILL)
            start.hears(f"^{line(first, 'left', '2 hosts')}")
            start.hears(f"^{line(first, 'joined', '3 hosts')}$")
        start.hears(line(first, "left", "2 hosts"))
        start.process.send_signal(signal.SIGINT)
        assert start.rest() == "\nThe end.\n"


def finished(*arguments: str, token: str | None = None) -> tuple[int, str]:
    with command(*arguments, token=token) as running:
        said = running.rest()
        return running.process.wait(PATIENCE_SECONDS), said


def is_one_sentence(said: str, expected: str) -> bool:
    return expected in said and said.startswith("Error: ") and said.count("\n") == 1


def test_what_stands_in_the_way_is_told_in_one_sentence() -> None:
    token = new_token()
    port, worker = free_ports(2)
    places = ["--host", "127.0.0.1", "--port", str(port), "--worker-port", str(worker)]
    with (
        command("start", *places, "--no-worker", token=token) as start,
        socket.create_server(("127.0.0.1", 0)) as taken,
    ):
        start.hears("The cluster is ready")
        used = str(taken.getsockname()[1])
        for arguments, given, expected in [
            (["join", f"127.0.0.1:{port}"], new_token(), "found that it has another one. Type the one that"),
            (
                ["join", f"127.0.0.1:{port}", "--worker-port", used],
                token,
                f"expected port {used} to be free; found it in",
            ),
            (["start", *places, "--no-worker"], token, f"expected port {port} to be free; found it in use"),
        ]:
            code, said = finished(*arguments, token=given)
            assert code == 1
            assert is_one_sentence(said, expected), said


@pytest.mark.parametrize(
    ("arguments", "token", "expected"),
    [
        (["join", "127.0.0.1"], "1" * 35, "35 of them in the environment variable MIAI_GRAPH_TOKEN"),
        (["join", "127.0.0.1"], None, "found neither, and no terminal"),
        (["join", "a b"], None, "expected the address of a cluster"),
        (["join", "127.0.0.1", "--host", "laptop"], None, "expected --host to be an address"),
        (["join", "127.0.0.1", "--tls-cert", "a"], None, "Give all three, or none"),
        (["start"], None, "expected a terminal to show the new token at"),
    ],
)
def test_wrong_arguments_are_told_in_one_sentence(arguments: list[str], token: str | None, expected: str) -> None:
    found = CliRunner().invoke(main, ["cluster", *arguments], env={"MIAI_GRAPH_TOKEN": token})
    assert found.exit_code == 1
    assert is_one_sentence(found.output, expected), found.output


def test_a_new_token_can_go_to_a_file(tmp_path: Path) -> None:
    port, worker = free_ports(2)
    file = tmp_path / "token"
    places = ["--host", "127.0.0.1", "--port", str(port), "--worker-port", str(worker), "--no-worker"]
    with command("start", *places, "--token-file", str(file)) as start:
        start.hears("which only you can read")
        assert file.stat().st_mode & 0o777 == 0o600
        with DaskCluster(f"127.0.0.1:{port}", credentials(file.read_text())) as cluster:
            assert list(cluster.addresses) == []
        assert file.read_text().strip() not in start.said


def test_certificates_instead_of_a_token(tmp_path: Path) -> None:
    token = new_token()
    folder = tmp_path / "certificates"
    code, said = finished("certificate", str(folder), token=token)
    assert code == 0
    assert f"--tls-ca-file {folder / 'ca.pem'}" in said
    assert token not in said
    files = [f"--tls-ca-file={folder / 'ca.pem'}", f"--tls-cert={folder / 'certificate.pem'}"]
    files.append(f"--tls-key={folder / 'key.pem'}")
    port, worker, other = free_ports(3)
    places = ["--host", "127.0.0.1", "--port", str(port), "--worker-port", str(worker)]
    with command("start", *places, "--threads", "1", *files) as start:
        start.hears("with a certificate of the same authority")
        with command("join", f"127.0.0.1:{port}", "--worker-port", str(other), *files) as join:
            join.hears("has joined the cluster")
            with DaskCluster(f"127.0.0.1:{port}", credentials(token)) as cluster:
                assert answers(cluster, 2)


def test_workers_end_when_their_command_is_killed() -> None:
    token = new_token()
    port, worker = free_ports(2)
    places = ["--host", "127.0.0.1", "--port", str(port), "--worker-port", str(worker)]
    with command("start", *places, token=token) as start:
        start.hears("The cluster is ready")
        workers = start.workers()
        start.process.kill()
        wait_until(lambda: not any(map(alive, workers)))
