"""``miai-graph doctor``: what it says of a cluster, and of what stands at an address instead of one."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
from hosts_inspected import PATIENCE_SECONDS, other_host

import miai_graph as mg
from executors.hosts.connection.credentials import write_certificates
from executors.hosts.connection.embedded import EmbeddedCluster
from executors.hosts.connection.security import TOKEN_VARIABLE, credentials, new_token, write_token
from executors.hosts.doctor import describe_port, examine
from miai_graph.bench.networks import EmulatedNetwork, can_emulate
from miai_graph.doctor import Report, examine_cluster, sentence
from miai_graph.errors import ArgumentError, MiaiGraphError

REASON = can_emulate()
COMMAND = (sys.executable, "-c", "from miai_graph.commands import main; main()")
TOKEN = new_token()
CERTIFICATE_OPTIONS = ("tls_ca_file", "tls_cert", "tls_key")
HTTP_ANSWER = b"HTTP/1.1 400 Bad Request\r\n\r\n"
on_posix = pytest.mark.skipif(os.name != "posix", reason="files have no such permissions")
with_signals = pytest.mark.skipif(sys.platform == "win32", reason="needs signals")


def needs_root(test: Any) -> Any:
    reason = f"hosts cannot be emulated: {REASON}"
    return pytest.mark.root(pytest.mark.skipif(REASON is not None, reason=reason)(test))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedCluster]:
    """A cluster, and its token where the doctor looks for it."""
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    with EmbeddedCluster(2, token=TOKEN) as made:
        yield made


def run(*arguments: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, "doctor", *arguments]
    environment = {**os.environ, **variables}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False, env=environment)


def only_problem(report: Report) -> str:
    assert report.facts == {}
    (problem,) = report.problems
    return problem


# Clusters


def test_a_cluster_is_shown(cluster: EmbeddedCluster, tmp_path: Path) -> None:
    finished = run(cluster.scheduler_address, folder=tmp_path)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert finished.stderr == ""
    assert "hosts:        2" in finished.stdout
    assert "No problems found." in finished.stdout
    hosts, pairs = finished.stdout.split("\n\n")[1:3]
    for address in cluster.addresses:
        (row,) = [line for line in hosts.splitlines() if f"({address[6:]})" in line]
        assert re.search(r"\) +\d+ +1 +[\d.]+ +[\d.]+ +([\d.]+|unknown) +[+-][\d.]+ ± [\d.]+ +\d", row)
    assert len(pairs.splitlines()) == 3
    assert all(re.search(r" +\d+\.\d\d +[\d,]+$", line) for line in pairs.splitlines()[1:])


@on_posix
def test_the_token_may_be_in_a_file(cluster: EmbeddedCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE)
    write_token(TOKEN, tmp_path / "token")
    report = examine_cluster(cluster.scheduler_address, tmp_path / "token")
    assert report.problems == []
    assert len(report.tables) == 2


def test_certificates_instead_of_a_token(
    cluster: EmbeddedCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE)
    files = dict(zip(CERTIFICATE_OPTIONS, write_certificates(credentials(TOKEN), tmp_path), strict=True))
    report = examine(cluster.scheduler_address, **files)
    assert report.problems == []
    assert len(report.tables) == 2
    files.pop("tls_key")
    with pytest.raises(ArgumentError, match="Give all three, or none"):
        examine(cluster.scheduler_address, **files)


def test_certificates_on_the_command_line(cluster: EmbeddedCluster, tmp_path: Path) -> None:
    files = write_certificates(credentials(TOKEN), tmp_path)
    options = [f"--{name.replace('_', '-')}={file}" for name, file in zip(CERTIFICATE_OPTIONS, files, strict=True)]
    found = run(cluster.scheduler_address, *options, folder=tmp_path, **{TOKEN_VARIABLE: ""})
    assert (found.returncode, found.stderr) == (0, "")
    found = run(cluster.scheduler_address, options[0], folder=tmp_path, **{TOKEN_VARIABLE: ""})
    assert "Give all three, or none" in found.stdout + found.stderr


def test_a_cluster_without_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    with EmbeddedCluster(0, token=TOKEN) as cluster:
        report = examine_cluster(cluster.scheduler_address)
    assert report.problems == ["There are no hosts in this cluster: type miai-graph cluster join on some."]


def test_versions_and_clocks_that_differ(
    cluster: EmbeddedCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with other_host(cluster, TOKEN, tmp_path, monkeypatch):
        report = examine_cluster(cluster.scheduler_address)
    (problem,) = report.problems
    assert problem.startswith("Versions of miai-graph differ: ")
    assert problem.endswith("Install the same version on each.")
    told = " ".join(report.remarks)
    assert "Versions of NumPy differ" in told
    assert "3 minutes ahead" in told
    assert "0.0.9  3.99.1  2.1.7" in report.tables[0]


@with_signals
def test_a_frozen_host_is_named(cluster: EmbeddedCluster) -> None:
    address = cluster.addresses[0]
    process = psutil.Process(cluster.pids[address])
    process.suspend()
    started = time.monotonic()
    report = examine_cluster(cluster.scheduler_address)
    taken = time.monotonic() - started
    process.resume()
    assert taken < 12
    assert any(address[6:] in problem and "does not answer" in problem for problem in report.problems)


def test_programs_that_keep_cores_busy_are_noticed(cluster: EmbeddedCluster) -> None:
    with ExitStack() as stack:
        for _ in range(os.cpu_count() or 1):
            spinning = subprocess.Popen(
                [sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE
            )
            stack.enter_context(spinning)
            stack.callback(spinning.kill)
            assert spinning.stdout is not None
            spinning.stdout.readline()
        report = examine_cluster(cluster.scheduler_address)
    expected = 0 if "unknown" in report.tables[0] else 2
    assert len([remark for remark in report.remarks if "is under load" in remark]) == expected, report


# What is no cluster


def test_another_token(cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, new_token())
    assert "found that it has another one. Type the one" in only_problem(examine_cluster(cluster.scheduler_address))


def test_what_stands_in_the_way_is_told_without_a_chain_of_errors(
    cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In Python, too: users read the message, and not how it was found out."""
    monkeypatch.setenv(TOKEN_VARIABLE, new_token())
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = f"127.0.0.1:{server.getsockname()[1]}"
    for address, told in ((cluster.scheduler_address, "it has another one"), (free, "nobody listening there")):
        with pytest.raises(MiaiGraphError, match=told) as caught:
            mg.executor("hosts", address=address)
        lines = "".join(traceback.format_exception(caught.value))
        assert lines.count("Traceback") == 1
        assert "SSL" not in lines
        assert "ConnectionRefusedError" not in lines


def test_no_token(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "doctor", "127.0.0.1"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE},
    ) as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "problem: Expected the cluster's token in the environment variable" in output


def test_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    problem = only_problem(examine_cluster(f"127.0.0.1:{port}"))
    assert f"Expected a cluster at 127.0.0.1:{port}; found nobody listening there." in problem


@contextmanager
def program(answer: bytes) -> Iterator[str]:
    """One that takes connections and says this, or nothing, to whoever has said something."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        stopping = []

        def serve() -> None:
            while not stopping:
                connection, _ = server.accept()
                with connection:
                    while connection.recv(1 << 16):
                        if answer:
                            connection.sendall(answer)
                            break

        thread = Thread(target=serve)
        thread.start()
        port = server.getsockname()[1]
        yield f"127.0.0.1:{port}"
        stopping.append(True)
        socket.create_connection(("127.0.0.1", port)).close()
        thread.join()


def test_a_program_that_does_not_encrypt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    with program(HTTP_ANSWER) as address:
        problem = only_problem(examine_cluster(address))
    assert f"Expected a cluster at {address}; found somebody there who is not a cluster of miai_graph" in problem


def test_a_program_that_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    started = time.monotonic()
    with program(b"") as address:
        problem = only_problem(examine_cluster(address))
    assert time.monotonic() - started < 8
    assert f"Expected the scheduler of a cluster at {address}; found a program that takes connections" in problem


def test_a_host_instead_of_the_scheduler(cluster: EmbeddedCluster, tmp_path: Path) -> None:
    address = cluster.addresses[0]
    finished = run(address, folder=tmp_path)
    assert finished.returncode == 1
    assert (
        f"problem: Expected the scheduler of a cluster at {address}; found something else, such as a host"
        in finished.stdout
    )
    assert "Traceback" not in finished.stdout + finished.stderr


def test_no_address_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    assert "Expected the address of a cluster, such as" in only_problem(examine_cluster("http://a/b"))


# This machine


def test_packages_and_ports_of_this_machine(tmp_path: Path) -> None:
    finished = run(folder=tmp_path)
    assert re.search(r"^hosts: +distributed [\d.]+, cryptography [\d.]+, msgpack [\d.]+, psutil", finished.stdout, re.M)
    assert re.search(r"^ports: +8786 (free|in use), 8788 (free|in use)$", finished.stdout, re.M)


def test_packages_that_are_missing(tmp_path: Path) -> None:
    """As where only miai-graph itself was installed."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.metadata, sys\n"
        "sys.modules['distributed'] = None\n"
        "version = importlib.metadata.version\n"
        "def found(name):\n"
        "    if name == 'distributed':\n"
        "        raise importlib.metadata.PackageNotFoundError(name)\n"
        "    return version(name)\n"
        "importlib.metadata.version = found\n"
    )
    finished = run(folder=tmp_path, PYTHONPATH=str(tmp_path))
    assert "distributed not installed, " in finished.stdout
    assert "pip install 'miai-graph[hosts]' adds them" in finished.stdout
    assert finished.returncode == 0, finished.stdout + finished.stderr
    finished = run("127.0.0.1", folder=tmp_path, PYTHONPATH=str(tmp_path), **{TOKEN_VARIABLE: TOKEN})
    assert finished.returncode == 1
    assert "problem: Expected the packages that connect hosts; found no distributed." in finished.stdout


def test_ports() -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        assert describe_port(port) == f"{port} in use"
    assert describe_port(port) == f"{port} free"
    assert "8786" in examine().facts["ports"]


@pytest.mark.parametrize("text", ["Is it?", "it is.", "no, it is"])
def test_sentences(text: str) -> None:
    assert sentence(text) in ("Is it?", "It is.", "No, it is.")


# Ports that are blocked


@contextmanager
def emulated_cluster(network: EmulatedNetwork) -> Iterator[None]:
    """A cluster of all hosts of a network but the first one, which has the scheduler."""
    with ExitStack() as stack:
        for host, address in enumerate(network.addresses):
            what = ["join", network.addresses[0]] if host else ["start", "--no-worker"]
            named = ["unshare", "--uts", "sh", "-c", f'hostname laptop-{"sabc"[host]} && exec "$@"', "sh"]
            process = start(network, host, *named, *COMMAND, "cluster", *what, "--host", address)
            stack.enter_context(process)
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline()  # it is ready, or has joined
        yield


def start(network: EmulatedNetwork, host: int, *command: str) -> subprocess.Popen[str]:
    environment = {**os.environ, TOKEN_VARIABLE: TOKEN}
    return network.run(host, command, stdout=subprocess.PIPE, text=True, env=environment)


def set_rules(network: EmulatedNetwork, host: int, *rules: str) -> None:
    for rule in rules:
        with start(network, host, "ip", "rule", *rule.split()) as process:
            assert process.wait(PATIENCE_SECONDS) == 0


def examined(network: EmulatedNetwork) -> str:
    """What the doctor prints on the first host."""
    with start(network, 0, *COMMAND, "doctor", network.addresses[0]) as process:
        output, _ = process.communicate(timeout=60)
    return output


@needs_root
def test_ports_that_firewalls_block() -> None:
    with EmulatedNetwork(4, bits_per_second=1e8) as network, emulated_cluster(network):
        output = examined(network)
        assert "No problems found." in output
        rates = [float(rate.replace(",", "")) for rate in re.findall(r"laptop-.*laptop-.* ([\d,]+)$", output, re.M)]
        assert len(rates) == 6
        assert all(40 < rate < 130 for rate in rates), output

        # What arrives is looked at before it is known to be for this host.
        blocked = [f"add pref 50 from {address} ipproto tcp dport 8788 blackhole" for address in network.addresses[1:3]]
        set_rules(network, 3, "add pref 100 lookup local", "del pref 0", *blocked)
        started = time.monotonic()
        output = examined(network)
        assert time.monotonic() - started < 12
        assert re.findall("problem: (.*)", output) == [
            "Hosts laptop-a (10.0.0.2) and laptop-b (10.0.0.3) cannot reach laptop-c at 10.0.0.4 port 8788: no answer "
            "within 3 s; allow that port in laptop-c's firewall."
        ]
        assert re.search(r"laptop-b \(10.0.0.3\)  laptop-c \(10.0.0.4\) +none +none", output)
        assert re.search(r"laptop-b \(10.0.0.3\)  laptop-a \(10.0.0.2\) +[\d.]+ +\d+", output)

        set_rules(network, 0, "add pref 50 to 10.0.0.4 ipproto tcp dport 8788 unreachable")
        assert re.findall("problem: (.*)", examined(network)) == [
            "This machine cannot reach the host at 10.0.0.4 port 8788: network is unreachable; bring both into "
            "one network; if they are, allow that port in the host's firewall."
        ]
