"""Messages between the user's process and hosts, and among hosts: over real connections, between real processes."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import psutil
import pytest
from hosts_echo import MAKER

from executors.hosts.cluster import CLOCK, Cluster, HostUnreachableError, Message, RemoteError
from executors.hosts.connection.embedded import EmbeddedCluster
from executors.hosts.connection.host_process import HostProcess
from executors.hosts.connection.loading import load
from miai_graph.errors import ArgumentError, ExecutorError

PATIENCE_SECONDS = 30.0
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8")
with_signals = pytest.mark.skipif(sys.platform == "win32", reason="needs signals")


def result(future: Future[Any]) -> Any:
    return future.result(PATIENCE_SECONDS)


def ask(cluster: Cluster, address: str, name: str, *arrays: Any, **content: Any) -> Message:
    return result(cluster.call(address, name, Message(content, arrays)))


def wait_until(condition: Any, seconds: float = PATIENCE_SECONDS) -> float:
    """Seconds until it was true."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds
        time.sleep(0.005)
    return time.monotonic() - started


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(2, maker=MAKER) as made:
        yield made


@pytest.fixture
def mortal() -> Iterator[EmbeddedCluster]:
    """A cluster for a test that breaks it."""
    with EmbeddedCluster(2, maker=MAKER) as made:
        yield made


# Messages


@pytest.mark.parametrize(
    "dtype", ["f2", "f4", "f8", "c8", "c16", "?", "i1", "u8", ">f4", "M8[s]", "m8[ms]", "U5", "S3"]
)
def test_arrays_of_every_dtype_come_back_as_they_were(cluster: EmbeddedCluster, dtype: str) -> None:
    arrays = [np.arange(12).astype(dtype).reshape(3, 4), np.zeros((), dtype), np.zeros((0, 3), dtype)]
    back = ask(cluster, cluster.addresses[0], "echo", *arrays).arrays
    for given, found in zip(arrays, back, strict=True):
        assert found.dtype == given.dtype
        np.testing.assert_array_equal(found, given)
        assert found.shape == given.shape


@pytest.mark.parametrize("size", [0, 1, 7, 4096, 2**17 - 1, 2**17, 2**20 + 3, 64 * 2**20])
def test_arrays_of_every_size_come_back_as_they_were(cluster: EmbeddedCluster, size: int) -> None:
    given = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    (found,) = ask(cluster, cluster.addresses[-1], "echo", given).arrays
    assert np.array_equal(found, given)


def test_arrays_arrive_aligned_and_can_be_written_to(cluster: EmbeddedCluster) -> None:
    arrays = [np.ones(shape) for shape in (3, 2**12, 2**18)] + [np.zeros(1, "i1"), np.ones((2, 2**17))]
    for given in (arrays, [np.zeros(1, "?"), *arrays[::-1]]):
        message = ask(cluster, cluster.addresses[0], "described", *given)
        there = message.content["arrays"]
        assert [(writable, aligned) for _, _, writable, aligned in there] == [(True, True)] * len(given)
        assert all(array.flags.writeable and array.flags.aligned for array in message.arrays)


def test_arrays_need_not_be_contiguous(cluster: EmbeddedCluster) -> None:
    given = np.arange(2**16, dtype="f4").reshape(2**8, 2**8)[::2, ::-3]
    (found,) = ask(cluster, cluster.addresses[0], "echo", given).arrays
    np.testing.assert_array_equal(found, given)


def test_content_is_plain_data(cluster: EmbeddedCluster) -> None:
    content = {"text": "ä", "list": [1, [2.5, None, True]], "map": {"a": {"b": []}}, "bytes": b"\0", "int": -(2**63)}
    assert ask(cluster, cluster.addresses[0], "echo", **content).content == content
    assert ask(cluster, cluster.addresses[0], "echo", scalar=np.float32(0.5)).content == {"scalar": 0.5}


@pytest.mark.parametrize(
    "message", [Message({"a": object()}), Message({}, [np.array([object()])])], ids=["it", "array"]
)
def test_what_would_have_to_be_pickled_is_refused(cluster: EmbeddedCluster, message: Message) -> None:
    for sent in (cluster.call(cluster.addresses[0], "echo", message), cluster.post(cluster.addresses[0], message)):
        with pytest.raises(ArgumentError, match=r"expected .* in a message; found"):
            result(sent)


# Calls


def test_a_call_that_takes_long_holds_nobody_up(cluster: EmbeddedCluster) -> None:
    for address in cluster.addresses:
        gate = cluster.call(address, "gate", Message({"number": 7}))
        quick = [cluster.call(address, "echo", Message({"number": number})) for number in range(20)]
        assert [result(future).content["number"] for future in quick] == list(range(20))
        assert not gate.done()
        ask(cluster, address, "open")
        assert result(gate).content["number"] == 7


def test_calls_from_many_threads(cluster: EmbeddedCluster) -> None:
    def work(number: int) -> float:
        address = cluster.addresses[number % 2]
        return float(ask(cluster, address, "echo", np.full(10_000, number, "f4")).arrays[0].sum())

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(work, range(40))) == [number * 10_000.0 for number in range(40)]


def test_the_clock_is_read_at_once(cluster: EmbeddedCluster) -> None:
    for address in cluster.addresses:
        times = [ask(cluster, address, CLOCK).content["ns"] for _ in range(3)]
        assert times == sorted(set(times))


def test_what_a_service_raises_is_told(cluster: EmbeddedCluster) -> None:
    address = cluster.addresses[0]
    with pytest.raises(RemoteError, match="ValueError: too much") as caught:
        ask(cluster, address, "fail", text="too much")
    assert caught.value.address == address
    assert "hosts_echo.py" in caught.value.lines
    assert ask(cluster, address, "echo", a=1).content == {"a": 1}


def test_the_answer_may_be_given_up(cluster: EmbeddedCluster) -> None:
    address = cluster.addresses[0]
    gate = cluster.call(address, "gate")
    assert gate.cancel()
    ask(cluster, address, "open")
    assert ask(cluster, address, "echo", a=1).content == {"a": 1}


# Posts


def test_a_post_is_done_when_it_was_taken(cluster: EmbeddedCluster) -> None:
    address = cluster.addresses[0]
    given = np.arange(2**18)
    result(cluster.post(address, Message({"a": 1}, [given])))
    found = ask(cluster, address, "taken")
    assert found.content == {"a": 1}
    np.testing.assert_array_equal(found.arrays[0], given)


def test_a_post_that_is_not_taken_fails(cluster: EmbeddedCluster) -> None:
    with pytest.raises(RemoteError, match="not this one"):
        result(cluster.post(cluster.addresses[0], Message({"fail": True})))
    there = cluster.addresses[1]
    result(cluster.post(there, Message({"a": 1})))
    assert ask(cluster, there, "taken").content == {"a": 1}


@pytest.mark.parametrize("size", [10, 2**16, 2**19])
def test_posts_among_hosts_keep_their_order_and_their_arrays(cluster: EmbeddedCluster, size: int) -> None:
    here, there = cluster.addresses
    for to in (there, here):  # also to oneself
        ask(cluster, here, "forward", np.zeros(size, "f4"), to=to, count=12)
        for number in range(12):
            found = ask(cluster, to, "taken")
            assert found.content == {"number": number}
            assert np.all(found.arrays[0] == number)


def test_posts_both_ways_at_once(cluster: EmbeddedCluster) -> None:
    here, there = cluster.addresses
    sent = [
        cluster.call(a, "forward", Message({"to": b, "count": 8}, [np.zeros(2**20, "f4")]))
        for a, b in [(here, there), (there, here)]
    ]
    for future in sent:
        result(future)
    for address in (here, there):
        assert [ask(cluster, address, "taken").content["number"] for _ in range(8)] == list(range(8))


# Membership


def test_two_clients_of_one_cluster(cluster: EmbeddedCluster) -> None:
    token = load("connection.security").new_token()
    dask_cluster, security = load("connection.dask_cluster"), load("connection.security")
    with EmbeddedCluster(1, token=token, maker=MAKER) as first:
        (address,) = first.addresses
        gate = first.call(address, "gate")
        with dask_cluster.DaskCluster(first.scheduler_address, security.credentials(token), MAKER) as second:
            assert second.addresses == [address]
            assert ask(second, address, "open")
        assert result(gate)
        assert ask(first, address, "echo", a=1).content == {"a": 1}


@on_linux
def test_hosts_at_several_addresses() -> None:
    places = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
    with EmbeddedCluster(3, hosts=places, maker=MAKER) as cluster:
        assert [address.split("//")[1].split(":")[0] for address in cluster.addresses] == list(places)
        first, *others = cluster.addresses
        for other in others:
            ask(cluster, first, "forward", to=other, count=1)
            assert ask(cluster, other, "taken").content == {"number": 0}


def test_only_the_stated_ports_listen(cluster: EmbeddedCluster) -> None:
    for address, pid in cluster.pids.items():
        listening = [entry.laddr for entry in psutil.Process(pid).net_connections() if entry.status == "LISTEN"]
        assert [f"tls://{ip}:{port}" for ip, port in listening] == [address]
    ours = [entry.laddr for entry in psutil.Process().net_connections() if entry.status == "LISTEN"]
    assert [f"tls://{ip}:{port}" for ip, port in ours] == [cluster.scheduler_address]


def test_the_token_is_in_no_command_line_nor_environment() -> None:
    token = load("connection.security").new_token()
    with EmbeddedCluster(1, token=token, maker=MAKER) as cluster:
        (pid,) = cluster.pids.values()
        process = psutil.Process(pid)
        assert not any(token in text for text in (*process.cmdline(), *process.environ().values()))


# Loss


def test_a_killed_host_is_named_at_once(mortal: EmbeddedCluster) -> None:
    lost, left = mortal.addresses
    gate = mortal.call(lost, "gate")
    ask(mortal, lost, "echo")
    ask(mortal, left, "forward", to=lost, count=1)
    ask(mortal, lost, "taken")
    started = time.monotonic()
    psutil.Process(mortal.pids[lost]).kill()
    with pytest.raises(HostUnreachableError) as caught:
        result(gate)
    assert caught.value.address == lost
    assert wait_until(lambda: list(mortal.addresses) == [left]) < 1
    for future in (mortal.call(lost, "echo"), mortal.post(lost, Message())):
        with pytest.raises(HostUnreachableError):
            result(future)
    ask(mortal, left, "forward", to=lost, count=3)
    missed = [ask(mortal, left, "missed").content for _ in range(3)]
    assert {tuple(item.values()) for item in missed} == {(lost, "it has left the cluster")}
    assert time.monotonic() - started < 3
    assert ask(mortal, left, "echo", a=1).content == {"a": 1}


def test_a_host_that_comes_back_is_reached_again() -> None:
    security = load("connection.security")
    shown = security.credentials(token := security.new_token())
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with EmbeddedCluster(1, token=token, maker=MAKER) as cluster:
        (first,) = cluster.addresses
        for life in range(2):
            with HostProcess(1) as process:
                process.join(cluster.scheduler_address, shown, host="127.0.0.1", port=port, maker=MAKER)
                back = process.joined(PATIENCE_SECONDS)
                assert list(cluster.addresses) == [first, back]
                ask(cluster, first, "forward", to=back, count=2)
                result(cluster.post(back, Message({"number": 2})))
                assert sorted(ask(cluster, back, "taken").content["number"] for _ in range(3)) == [0, 1, 2]
                if life == 0:
                    psutil.Process(process.pid).kill()
                    wait_until(lambda: list(cluster.addresses) == [first])
                    ask(cluster, first, "forward", to=back, count=1)
                    assert ask(cluster, first, "missed").content["address"] == back


def test_posts_under_way_to_a_killed_host_fail(mortal: EmbeddedCluster) -> None:
    lost, left = mortal.addresses
    process = psutil.Process(mortal.pids[lost])
    ask(mortal, left, "forward", to=lost, count=1)
    process.suspend()
    ask(mortal, left, "forward", np.zeros(2**22, "f4"), to=lost, count=4)
    posts = [mortal.post(lost, Message({}, [np.zeros(2**22, "f4")])) for _ in range(4)]
    process.kill()
    for post in posts:
        with pytest.raises(HostUnreachableError):
            result(post)
    assert [ask(mortal, left, "missed").content["address"] for _ in range(4)] == [lost] * 4


@with_signals
def test_a_frozen_host_is_dropped(mortal: EmbeddedCluster) -> None:
    lost, left = mortal.addresses
    gate = mortal.call(lost, "gate")
    ask(mortal, lost, "echo")
    psutil.Process(mortal.pids[lost]).suspend()
    started = time.monotonic()
    with pytest.raises(HostUnreachableError, match="not heard of for 6 s"):
        result(gate)
    assert 4 < time.monotonic() - started < 12
    assert list(mortal.addresses) == [left]
    psutil.Process(mortal.pids[lost]).resume()
    assert wait_until(lambda: not alive(mortal.pids[lost])) < 5  # it notices that it was dropped, and ends


def test_an_address_where_nobody_is(cluster: EmbeddedCluster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started = time.monotonic()
    for future in (cluster.call(address := f"tls://127.0.0.1:{port}", "echo"), cluster.post(address, Message())):
        with pytest.raises(HostUnreachableError, match="nobody listens there"):
            result(future)
    assert time.monotonic() - started < 1


# The end


def test_closing_leaves_nothing_behind() -> None:
    cluster = EmbeddedCluster(2, maker=MAKER)
    gate = cluster.call(cluster.addresses[0], "gate")
    cluster.close()
    cluster.close()
    assert not any(alive(pid) for pid in cluster.pids.values())
    assert gate.done()
    with pytest.raises(ExecutorError, match="closed"):
        _ = cluster.addresses
    with pytest.raises(ExecutorError, match="closed"):
        cluster.call("tls://127.0.0.1:1", "echo")


def test_a_cluster_that_is_dropped_is_closed() -> None:
    cluster = EmbeddedCluster(1, maker=MAKER)
    pids = list(cluster.pids.values())
    del cluster
    gc.collect()
    assert wait_until(lambda: not any(map(alive, pids))) < 5


SCRIPT = f"""
import sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from executors.hosts.connection.embedded import EmbeddedCluster
cluster = EmbeddedCluster(2, maker={MAKER!r})
cluster.call(cluster.addresses[0], "gate")
print(*cluster.pids.values(), flush=True)
"""


def script(ending: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT + ending], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_cluster_ends_with_its_script() -> None:
    with script("") as process:
        output, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, errors) == (0, "")
    assert not any(alive(int(pid)) for pid in output.split())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
def test_a_fork_leaves_the_cluster_alone() -> None:
    fork = "import os; child = os.fork(); child or sys.exit(); print(os.waitpid(child, 0)[1])\n"
    fork += "print(cluster.call(cluster.addresses[0], 'echo').result(20).content)"
    with script(fork) as process:
        output, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, output.splitlines()[-2:]) == (0, ["0", "{}"]), errors


@with_signals
def test_hosts_end_when_their_client_is_killed() -> None:
    with script("input = sys.stdin.read; import time; time.sleep(60)") as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        os.kill(process.pid, signal.SIGKILL)
    assert wait_until(lambda: not any(map(alive, pids))) < 5


def test_hosts_that_cannot_start_are_told_of() -> None:
    with pytest.raises(ExecutorError, match=r"found ModuleNotFoundError: .*no_such_module"):
        EmbeddedCluster(1, maker="no_such_module:make_service")
