"""What hosts find out about each other before they work together."""

from __future__ import annotations

import itertools
import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hosts_inspected import CLOCK_SECONDS, Inspected, inspected, other_host

import miai_graph as mg
from executors import Hosts
from executors.hosts.cluster import Message
from executors.hosts.connection.embedded import EmbeddedCluster
from executors.hosts.connection.security import new_token
from executors.hosts.crew import Host, named_apart
from executors.hosts.facts import host_facts, installed_version
from executors.hosts.in_process import InProcessCluster
from executors.hosts.preflight import obstacle_sentence, preflight, tournament, version_differences
from executors.hosts.probing import knock
from miai_graph import layers
from miai_graph.passes.cutting import check_hosts

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8")
with_signals = pytest.mark.skipif(sys.platform == "win32", reason="needs signals")


@pytest.fixture
def cluster() -> Iterator[EmbeddedCluster]:
    """A cluster for a test that breaks it."""
    with EmbeddedCluster(3) as made:
        yield made


# Who meets whom


@pytest.mark.parametrize("players", range(10))
def test_each_pair_meets_once_and_nobody_two_at_a_time(players: int) -> None:
    rounds = list(tournament(players))
    met = [frozenset(pair) for pairs in rounds for pair in pairs]
    assert len(met) == len(set(met))
    assert set(met) == {frozenset(pair) for pair in itertools.combinations(range(players), 2)}
    for pairs in rounds:
        busy = [player for pair in pairs for player in pair]
        assert len(busy) == len(set(busy))


# Hosts that are well


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_hosts_in_this_process(count: int) -> None:
    with InProcessCluster(count) as cluster:
        found = preflight(cluster, inspected(cluster))
        assert (found.problems, found.remarks) == ([], [])
        check_hosts(np.ones(count), found.links, count)
        between = ~np.eye(count, dtype=bool)
        assert (found.links.latency[between] < 0.1).all()
        assert (found.links.bandwidth[between] > 1e6).all()
        assert all(abs(offset.nanoseconds) < 1e9 for offset in found.offsets.values())
        assert found.offsets.keys() == set(cluster.addresses)


@on_linux
def test_hosts_at_several_addresses() -> None:
    with EmbeddedCluster(3, hosts=("127.0.0.2", "127.0.0.3", "127.0.0.4")) as cluster:
        found = preflight(cluster, inspected(cluster))
        assert (found.problems, found.remarks) == ([], [])
        between = ~np.eye(3, dtype=bool)
        assert (found.links.latency[between] < 0.1).all()
        assert (found.links.bandwidth[between] > 1e6).all()
        assert all(abs(offset.nanoseconds) <= offset.uncertainty + 1e6 for offset in found.offsets.values())


def test_two_hosts_are_quick() -> None:
    with EmbeddedCluster(2) as cluster:
        hosts = inspected(cluster)
        taken = []
        for _ in range(5):
            started = time.perf_counter()
            preflight(cluster, hosts)
            taken.append(time.perf_counter() - started)
        assert min(taken) < 0.3


# Ports


def test_an_open_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert knock(f"tls://127.0.0.1:{server.getsockname()[1]}") is None
    assert knock("in-process-0") is None


def test_a_closed_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert knock(f"tls://127.0.0.1:{port}") == "connection refused"


@on_linux
def test_a_port_that_does_not_answer() -> None:
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(2):  # the queue is full then, and the system ignores who knocks
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        assert knock(f"tls://127.0.0.1:{server.getsockname()[1]}", 0.3) == "no answer within 0.3 s"


def test_sentences_say_what_to_do() -> None:
    here = "host laptop-b (192.168.0.7)"
    assert obstacle_sentence(here, "laptop-a", "tls://192.168.0.4:8788", "connection refused") == (
        "host laptop-b (192.168.0.7) cannot reach laptop-a at 192.168.0.4 port 8788: connection refused; allow that "
        "port in laptop-a's firewall"
    )
    assert "join again with --host" in obstacle_sentence(here, "laptop-a", "tls://127.0.0.1:8788", "connection refused")
    assert "into one network" in obstacle_sentence(here, "laptop-a", "tls://[fd00::1]:8788", "network is unreachable")


# Hosts that are not well


def test_a_host_that_nobody_reaches(cluster: EmbeddedCluster) -> None:
    hosts = inspected(cluster)
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    gone = Inspected(f"tls://127.0.0.1:{free}", "gone", hosts[0].versions)
    started = time.monotonic()
    found = preflight(cluster, [*hosts, gone])
    assert time.monotonic() - started < 5
    (problem,) = found.problems
    assert problem.startswith(f"host gone (127.0.0.1:{free}) does not answer: ")
    assert (found.links.latency[3, :3] > 1000).all()
    assert (found.links.latency[:3, :3][~np.eye(3, dtype=bool)] < 0.1).all()
    check_hosts(np.ones(4), found.links, 4)


def test_a_host_that_was_killed(cluster: EmbeddedCluster) -> None:
    hosts = inspected(cluster)
    process = psutil.Process(cluster.pids[hosts[1].address])
    process.kill()
    started = time.monotonic()
    found = preflight(cluster, hosts)
    assert time.monotonic() - started < 6
    assert any("does not answer" in text and hosts[1].address[6:] in text for text in found.problems)
    assert found.links.latency[0, 2] < 0.1
    assert found.links.latency[0, 1] > 1000


@with_signals
def test_a_host_that_is_frozen(cluster: EmbeddedCluster) -> None:
    hosts = inspected(cluster)
    process = psutil.Process(cluster.pids[hosts[0].address])
    process.suspend()
    started = time.monotonic()
    found = preflight(cluster, hosts)
    taken = time.monotonic() - started
    process.resume()
    assert taken < 7
    assert [text for text in found.problems if "no answer within 5 s" in text]
    assert found.links.latency[1, 2] < 0.1


@with_signals
def test_a_host_that_does_not_answer_another(cluster: EmbeddedCluster) -> None:
    here, there, _ = cluster.addresses
    process = psutil.Process(cluster.pids[there])
    process.suspend()
    answer = cluster.call(here, "probe", Message({"address": there})).result(6).content
    process.resume()
    assert "failed" in answer


# Versions and clocks


def test_versions_and_clocks_that_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = new_token()
    with EmbeddedCluster(1, token=token) as cluster, other_host(cluster, token, tmp_path, monkeypatch) as other:
        hosts = inspected(cluster)
        found = preflight(cluster, hosts, hosts[0].versions)
    (problem,) = found.problems
    own = hosts[0].versions["miai-graph"]
    place = other[6:]
    assert problem.startswith(f"versions of miai-graph differ: {own} on ")
    assert "this machine; 0.0.9 on " in problem
    assert f"({place})" in problem
    assert "Install the same version" in problem
    assert len(found.remarks) == 3
    assert "versions of Python differ" in found.remarks[0]
    assert "3.99 on" in found.remarks[0]
    assert "versions of NumPy differ" in found.remarks[1]
    assert f"({place}) is 3 minutes ahead of this machine's" in found.remarks[2]
    offset = found.offsets[other]
    assert abs(offset.nanoseconds - CLOCK_SECONDS * 10**9) <= offset.uncertainty + 10**6
    assert found.links.latency[0, 1] < 0.1


def test_patches_of_python_do_not_differ() -> None:
    assert version_differences({"a": {"Python": "3.11.7"}, "b": {"Python": "3.11.9"}}) == ([], [])
    problems, remarks = version_differences({"a": {"Python": "3.11.7"}, "b": {"Python": "3.12.0"}})
    assert problems == []
    assert remarks == ["versions of Python differ: 3.11 on a; 3.12 on b. That is allowed"]


# What users are told of hosts


def names_of(*hosts: tuple[str, str]) -> list[str]:
    described = [Host(address, name, name, 1, 1, 1e9, 1e9, "x86_64", (), {}) for name, address in hosts]
    return [host.name for host in named_apart(described)]


def test_hosts_of_one_machine_have_names_of_their_own() -> None:
    assert names_of(("ann", "tls://10.0.0.4:8788"), ("bob", "tls://10.0.0.5:8788")) == ["ann", "bob"]
    assert names_of(("ann", "tls://10.0.0.4:8788"), ("bob", "tls://10.0.0.5:1"), ("ann", "tls://10.0.0.4:8789")) == [
        "ann:8788",
        "bob",
        "ann:8789",
    ]
    assert names_of(("mac", "tls://10.0.0.4:8788"), ("mac", "tls://[fd00::1]:8788")) == [
        "mac at 10.0.0.4",
        "mac at fd00::1",
    ]
    machines = [("mac", "tls://10.0.0.4:8788"), ("mac", "tls://10.0.0.4:8789"), ("mac", "tls://10.0.0.5:8788")]
    assert names_of(*machines) == ["mac at 10.0.0.4:8788", "mac at 10.0.0.4:8789", "mac at 10.0.0.5"]


def notes_of(*between: layers.Layer, **options: Any) -> str:
    """What is told after some steps of a small model on two hosts in this process."""
    with Hosts(InProcessCluster(2), **options) as hosts:
        first, last = layers.Dense(8, "relu", name="a"), layers.Dense(2, name="b")
        model = mg.Sequential([layers.Input((4,)), first, *between, last])
        model.compile("sgd", "mse", executor=hosts)
        x, y = np.zeros((40, 4), "f4"), np.zeros((40, 2), "f4")
        return "\n".join(model.fit(x, y, batch_size=32, verbose=0).timing.notes)


def test_cuts_and_micro_batches_are_told_with_their_reasons() -> None:
    notes = notes_of()
    name = re.escape(socket.gethostname())
    assert re.search(rf"^2 stages: a.* on {name} at in-process-\d \(.*\); .* on {name} at in-process-\d \(", notes)
    assert re.search(r"At batch sizes 32 and 8: 1 micro-batch, schedule 1f1b: so a step should take .* \(the", notes)
    assert "At batch sizes 32 and 8: 4 micro-batches, schedule gpipe." in notes_of(micro_batches=4, schedule="gpipe")
    assert "8: 1 micro-batch on each replica, for one stage keeps no" in notes_of(stages=1, replicas=2)
    assert "8: 2 micro-batches, schedule 1f1b, one for each shard." in notes_of(reproducible=True, shards=2)


def test_what_stops_a_pipeline_is_named_by_its_layer() -> None:
    notes = notes_of(layers.BatchNormalization(name="normal"))
    assert "1 micro-batch, schedule 1f1b; more would hardly overlap, for the whole batch is needed in" in notes
    assert re.search(r"The pipeline runs empty \d+ times in each step, for layer normal needs the whole batch\.", notes)
    assert __file__ not in notes


# Facts


def test_speeds_are_measured_in_a_moment() -> None:
    taken = []
    for _ in range(5):
        started = time.perf_counter()
        facts = host_facts(measure=True)
        taken.append(time.perf_counter() - started)
        assert facts["flops_per_second"] > 1e8
        assert facts["bytes_per_second"] > 1e8
    assert min(taken) < 0.1  # 0.045 on a machine that has nothing else to do


def test_versions_that_are_not_there() -> None:
    assert installed_version("no-such-package") == "not installed"
    assert installed_version("distributed")[0].isdigit()
