"""Hosts that are killed, frozen, late or different, and users who interrupt: what is told, how soon, and what stays."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event

import numpy as np
import psutil
import pytest
from faulty_ops import meanwhile, same, wait_until
from hosts_faults import (
    IMPATIENT,
    Layered,
    Unreliable,
    assert_close,
    batch,
    greet_often,
    is_named,
    kept,
    kill,
    places,
    seconds_until,
    train,
    undisturbed,
)
from hosts_inspected import other_host

import miai_graph as mg
from executors import Hosts, Serial
from executors.hosts import session
from executors.hosts.connection.dask_cluster import DaskCluster
from executors.hosts.connection.embedded import EmbeddedCluster
from executors.hosts.connection.host_process import HostProcess
from executors.hosts.connection.security import credentials, new_token
from executors.hosts.in_process import InProcessCluster
from miai_graph import layers
from miai_graph.errors import ClusterLostError, ExecutionError, ExecutorError, HostLostError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sends signals, and looks into /proc")

STEPS = 6
FREEZE_SECONDS = 12.0
CRASH_SECONDS = 3.0

Note = Callable[[str, float], None]


@pytest.fixture
def note(record_property: Callable[[str, object], None]) -> Note:
    """Note how long it took until something was named: in the report, and on the screen."""

    def write(what: str, seconds: float) -> None:
        record_property(what, round(seconds, 3))
        print(f"{what}: named after {seconds:.3f} s")

    return write


@pytest.fixture
def model(tmp_path: Path) -> Layered:
    return Layered(tmp_path)


# ---- kill -9 of each role, in the middle of a step


@pytest.mark.parametrize(("stage", "place"), [(0, "update"), (1, "forward"), (2, "backward")])
def test_a_stage_killed_while_it_computes(model: Layered, stage: int, place: str, note: Note) -> None:
    with EmbeddedCluster(3) as cluster, Hosts(cluster, 3, micro_batches=2) as executor:
        step = model.function(executor)
        train(step, range(3))
        address = places(step)[0, stage]
        model.orders.give(cluster.pids[address], place, "block")

        def crash() -> None:
            model.orders.wait_for(cluster.pids[address], place)
            kill(cluster, address)
            seconds = seconds_until(is_named(executor, address), time.monotonic())
            note(f"stage {stage} killed, {place}", seconds)
            assert seconds < CRASH_SECONDS

        with meanwhile(crash):
            train(step, range(3, STEPS))
        assert rf"({address}), stage {stage} of replica 0, in step 3: " in executor.crew.notes[-1]
        assert len(executor.workers) == 2
        assert_close(model.values(), undisturbed(range(STEPS)))


@pytest.mark.parametrize("replica", [0, 1])
def test_a_replica_killed_while_it_computes(model: Layered, replica: int, note: Note) -> None:
    with EmbeddedCluster(2) as cluster, Hosts(cluster, 1, 2) as executor:
        step = model.function(executor)
        train(step, range(3))
        address = places(step)[replica, 0]
        model.orders.give(cluster.pids[address], "backward", "block")

        def crash() -> None:
            model.orders.wait_for(cluster.pids[address], "backward")
            kill(cluster, address)
            note(f"replica {replica} killed", seconds_until(is_named(executor, address), time.monotonic()))

        with meanwhile(crash):
            train(step, range(3, STEPS))
        assert_close(model.values(), undisturbed(range(STEPS)))


def test_to_the_bit(tmp_path: Path) -> None:
    """Two of four are killed, one after another; steps are reproducible."""
    expected = undisturbed(range(STEPS), Serial(reproducible=True))
    model = Layered()
    with EmbeddedCluster(4) as cluster, Hosts(cluster, 2, 2, reproducible=True) as executor:
        step = model.function(executor)
        for number in range(STEPS):
            if number in (2, 4):
                kill(cluster, places(step)[0, number // 2 - 1])
            step(*batch(number))
        assert same(model.values(), expected)


def test_two_at_once(note: Note) -> None:
    model = Layered()
    with EmbeddedCluster(3) as cluster, Hosts(cluster, 3) as executor:
        step = model.function(executor)
        train(step, range(3))
        lost = [places(step)[0, stage] for stage in (0, 2)]
        start = time.monotonic()
        for address in lost:
            kill(cluster, address)
        train(step, range(3, STEPS))
        for address in lost:
            assert executor.crew.why_lost(address)
        note("two killed at once, and the step done by the third", time.monotonic() - start)
        assert_close(model.values(), undisturbed(range(STEPS)))


def test_the_last_host(note: Note) -> None:
    model = Layered()
    with EmbeddedCluster(1) as cluster, Hosts(cluster, 1) as executor:
        step = model.function(executor)
        train(step, range(3))
        start = time.monotonic()
        kill(cluster, cluster.addresses[0])
        with pytest.raises(HostLostError, match=r"(?s)stage 0 .*, 3 steps before\. Start them again"):
            step(*batch(3))
        note("the last host killed", time.monotonic() - start)
        assert step.executable.step == 0
        assert_close(model.values(), undisturbed([]))
        with pytest.raises(ExecutorError, match="expected at least one host"):
            step(*batch(0))
    step = model.function(Serial())
    train(step, range(STEPS))
    assert_close(model.values(), undisturbed(range(STEPS)))


def test_random_moments() -> None:
    rng = np.random.default_rng(0)
    expected = undisturbed(range(40))
    for _ in range(3):
        model, is_over = Layered(), Event()
        with EmbeddedCluster(3) as cluster, Hosts(cluster, 3, micro_batches=2) as executor:
            step = model.function(executor)
            step(*batch(0))
            victims = rng.permutation(list(cluster.pids.values()))[:2]

            def crash(victims: np.ndarray = victims, is_over: Event = is_over) -> None:
                for pid in victims:
                    is_over.wait(rng.uniform(0, 0.15))
                    os.kill(pid, signal.SIGKILL)

            with meanwhile(crash):
                train(step, range(1, 40))
            assert_close(model.values(), expected)


# ---- losses at each call of the protocol


CALLS = ["program", "plan", "set_values", "run", "get_values"]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("replicas", [1, 2])
def test_lost_when_called(name: str, replicas: int) -> None:
    model = Layered()
    calls = 4 if name in ("run", "get_values") else 2
    with Unreliable(3 * replicas, (name, calls)) as cluster, Hosts(cluster, 3, replicas, micro_batches=2) as executor:
        step = model.function(executor)
        for number in range(20):
            step(*batch(number))
            if number % 7 == 6:
                assert model.parameters[0].value.any()
        assert cluster.all_happened
        train(step, range(20, 22))
        assert_close(model.values(), undisturbed(range(22)))


@pytest.mark.parametrize("second", CALLS)
def test_lost_while_recovering(second: str) -> None:
    model = Layered()
    with Unreliable(4, ("run", 18), (second, 2)) as cluster, Hosts(cluster, 4) as executor:
        step = model.function(executor)
        train(step, range(24))
        assert cluster.all_happened
        assert_close(model.values(), undisturbed(range(24)))


def test_lost_at_every_call_of_a_snapshot_and_after() -> None:
    expected = undisturbed(range(20))
    for calls in range(1, 9):
        model = Layered()
        with Unreliable(3, ("get_values", calls), ("run", 4)) as cluster, Hosts(cluster, 3) as executor:
            step = model.function(executor)
            for number in range(20):
                step(*batch(number))
                if number % 6 == 5:
                    _ = model.parameters[0].value
            assert_close(model.values(), expected)


# ---- frozen, and back


def test_a_host_that_is_frozen_is_named_and_one_that_wakes_up_soon_is_used_on(note: Note) -> None:
    model = Layered()
    with EmbeddedCluster(3) as cluster, Hosts(cluster, 3) as executor:
        step = model.function(executor)
        train(step, range(2))
        first, _, last = (psutil.Process(cluster.pids[places(step)[0, stage]]) for stage in range(3))
        first.suspend()
        with meanwhile(lambda: (time.sleep(1.0), first.resume())):
            step(*batch(2))
        assert len(executor.workers) == 3
        last.suspend()
        start, address = time.monotonic(), places(step)[0, 2]
        with meanwhile(lambda: note("frozen", seconds_until(is_named(executor, address), start))):
            step(*batch(3))
        assert time.monotonic() - start < FREEZE_SECONDS
        assert len(executor.workers) == 2
        last.resume()
        train(step, range(4, STEPS))
        list(step.executable.run(map(batch, range(STEPS, STEPS + 3))))
        assert_close(model.values(), undisturbed(range(STEPS + 3)))


def test_a_host_that_was_given_up_in_a_step_and_is_there_again(model: Layered) -> None:
    """It still waits in the middle of the old step: what it has is of no use."""
    with EmbeddedCluster(2) as cluster, Hosts(cluster, 2) as executor:
        step = model.function(executor)
        train(step, range(2))
        stages = places(step)
        # The first stage waits for the second one, which blocks, and is reported lost for no reason.
        model.orders.give(cluster.pids[stages[0, 1]], "forward", "block")

        def accuse() -> None:
            model.orders.wait_for(cluster.pids[stages[0, 1]], "forward")
            executor.crew._watch.report(stages[0, 0], "somebody thinks so")
            model.orders.let_go()

        with meanwhile(accuse):
            step(*batch(2))
        assert len(executor.workers) == 1
        list(step.executable.run(map(batch, range(3, STEPS))))
        assert len(executor.workers) == 2
        assert_close(model.values(), undisturbed(range(STEPS)))


# ---- hosts that join


def test_a_host_that_joins_is_used_from_the_next_run_on() -> None:
    model = Layered()
    with InProcessCluster(1) as cluster, Hosts(cluster) as executor:
        step = model.function(executor)
        train(step, range(2))
        cluster.join()
        train(step, range(2, 4))
        assert len(executor.workers) == 1
        list(step.executable.run(map(batch, range(4, STEPS))))
        assert len(executor.workers) == 2
        assert len(set(places(step).values())) == 2
        assert_close(model.values(), undisturbed(range(STEPS)))


def test_others_take_the_place_of_the_last_host() -> None:
    model = Layered()
    with InProcessCluster(1) as cluster, Hosts(cluster) as executor:
        step = model.function(executor)
        train(step, range(2))
        cluster.kill(cluster.addresses[0])
        with pytest.raises(HostLostError):
            step(*batch(2))
        cluster.join()
        train(step, range(STEPS))
        assert_close(model.values(), undisturbed(range(STEPS)))


@pytest.fixture
def token() -> str:
    return new_token()


def test_a_late_host_that_differs_is_left_out(token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Layered()
    with EmbeddedCluster(1, token=token) as cluster, Hosts(cluster) as executor:
        step = model.function(executor)
        train(step, range(2))
        with other_host(cluster, token, tmp_path, monkeypatch) as address:
            list(step.executable.run(map(batch, range(2, STEPS))))
            assert any(address in text and "miai-graph 0.0.9" in text for text in executor.crew.notes)
        assert len(executor.workers) == 1
        assert_close(model.values(), undisturbed(range(STEPS)))


def test_mixed_versions_are_refused(token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        EmbeddedCluster(1, token=token) as cluster,
        other_host(cluster, token, tmp_path, monkeypatch) as address,
        pytest.raises(ExecutorError, match=rf"{address}.* has miai-graph 0\.0\.9"),
    ):
        Hosts(cluster)


def test_other_cpu_features_are_refused_if_bits_matter(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features = np.show_config(mode="dicts")["SIMD Extensions"]["found"]
    if not features:
        pytest.skip("NumPy has nothing to do without here")
    with EmbeddedCluster(1, token=token) as cluster:
        with monkeypatch.context() as within:
            within.setenv("NPY_DISABLE_CPU_FEATURES", features[-1])
            process = HostProcess(1)
        with process:
            process.join(cluster.scheduler_address, credentials(token), host="127.0.0.1", port=0)
            address = process.joined(30)
            dask = DaskCluster(cluster.scheduler_address, credentials(token))
            with pytest.raises(ExecutorError, match=rf"{address}.*CPU features.*{features[-1]}"):
                Hosts(dask, reproducible=True)
            with Hosts(cluster) as executor:
                assert len(executor.workers) == 2


# ---- the scheduler, and the user's process

CLUSTER = [sys.executable, "-c", "from miai_graph.commands import main; main()", "cluster"]


def test_the_scheduler_killed(token: str, tmp_path: Path, note: Note, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {"MIAI_GRAPH_TOKEN": token, "PYTHONUNBUFFERED": "1"}
    start = [*CLUSTER, "start", "--host", "127.0.0.1", "--port", str(port), "--no-worker"]
    monkeypatch.setenv("MIAI_GRAPH_TOKEN", token)
    scheduler = subprocess.Popen(start, env=environment, stdout=subprocess.PIPE, text=True)
    with scheduler, HostProcess(1) as one, HostProcess(1) as two:
        assert scheduler.stdout is not None
        scheduler.stdout.readline()
        for host in (one, two):
            host.join(f"tls://127.0.0.1:{port}", credentials(token), host="127.0.0.1", port=0)
        for host in (one, two):
            host.joined(30)
        model = mg.Sequential([layers.Input((6,)), layers.Dense(8, activation="relu"), layers.Dense(3)])
        first, (x, y) = model.get_weights(), (batch(0)[0], np.ones((8, 3), "f4"))
        with Hosts(f"127.0.0.1:{port}") as executor:
            model.compile("sgd", "mse", executor=executor)
            for _ in range(3):
                model.train_on_batch(x, y)
            scheduler.kill()
            killed = time.monotonic()
            found = r"(?s)scheduler at .*cluster start.*The values are those of the last snapshot.* can be saved"
            with pytest.raises(ClusterLostError, match=found):  # noqa: PT012  at which step cannot be said
                for _ in range(1000):
                    model.train_on_batch(x, y)
            note("the scheduler killed", time.monotonic() - killed)
            assert time.monotonic() - killed < CRASH_SECONDS
            model.save(tmp_path / "model.miai")
        saved, steps = model.get_weights(), int(model.optimizer.iterations.value)
        model.set_weights(first)
        model.compile("sgd", "mse", executor="serial")
        for _ in range(steps):
            model.train_on_batch(x, y)
        assert_close(mg.load_model(tmp_path / "model.miai").get_weights(), model.get_weights())
        assert_close(saved, model.get_weights())


USER = """
import sys
sys.path[:0] = {path!r}
from hosts_faults import Layered, batch, greet_often
from executors import Hosts
greet_often()
executor = Hosts({address!r})
model = Layered()
step = model.function(executor)
for number in range(1000000):
    step(*batch(number % 5))
    if number == 3:
        print("trains", flush=True)
"""


@pytest.fixture
def _greets_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "GREETING_SECONDS", session.GREETING_SECONDS)
    greet_often()


@pytest.mark.usefixtures("_greets_often")
def test_the_users_process_killed(token: str, note: Note) -> None:
    model = Layered()
    with EmbeddedCluster(2, token=token, maker=IMPATIENT) as cluster, Hosts(cluster, 2) as executor:
        step = model.function(executor)
        train(step, range(2))
        before = kept(cluster)
        script = USER.format(path=[p for p in sys.path if p], address=cluster.scheduler_address)
        environment = os.environ | {"MIAI_GRAPH_TOKEN": token}
        with subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE) as user:
            assert user.stdout is not None
            assert user.stdout.readline()
            sessions = kept(cluster)["sessions"]
            user.kill()
        assert sessions == 2 * before["sessions"]
        killed = time.monotonic()
        train(step, range(2, 4))
        note("the user's process killed, hosts had let go", seconds_until(lambda: kept(cluster) == before, killed))
        train(step, range(4, STEPS))
        assert_close(model.values(), undisturbed(range(STEPS)))


@pytest.mark.usefixtures("_greets_often")
def test_a_user_who_was_away_for_long() -> None:
    """Hosts have let go of the session; its steps are repeated."""
    model = Layered()
    with EmbeddedCluster(2, maker=IMPATIENT) as cluster, Hosts(cluster, 2) as executor:
        step = model.function(executor)
        train(step, range(3))
        executor.crew._watch.greet = None
        wait_until(lambda: kept(cluster)["sessions"] == 0)
        train(step, range(3, STEPS))
        assert len(executor.workers) == 2
        notes = " ".join(executor.crew.notes)
        assert notes.count("had let go of the values") >= 1
        list(step.executable.run(map(batch, range(STEPS, 2 * STEPS))))
        assert " ".join(executor.crew.notes) == notes
        assert_close(model.values(), undisturbed(range(2 * STEPS)))


# ---- interrupts and failures


@pytest.mark.parametrize("place", ["forward", "update"])
def test_ctrl_c_in_the_middle_of_a_step(model: Layered, place: str) -> None:
    with EmbeddedCluster(2) as cluster, Hosts(cluster, 2, micro_batches=2) as executor:
        step = model.function(executor)
        train(step, range(3))
        pid = cluster.pids[places(step)[0, 1]]
        model.orders.give(pid, place, "block")

        def interrupt() -> None:
            model.orders.wait_for(pid, place)
            os.kill(os.getpid(), signal.SIGINT)
            model.orders.let_go()

        with meanwhile(interrupt), pytest.raises(KeyboardInterrupt):
            step(*batch(3))
        assert step.executable.step == 3
        assert_close(model.values(), undisturbed(range(3)))
        train(step, range(3, STEPS))
        assert_close(model.values(), undisturbed(range(STEPS)))


def test_ctrl_c_at_random_moments() -> None:
    """Whatever it interrupts: the values are those of the steps that were committed, and so are those that follow."""
    rng = np.random.default_rng(0)
    model = Layered()
    with Unreliable(2) as cluster, Hosts(cluster, 2) as executor:
        step = model.function(executor)
        step(*batch(0))
        executor.session._snapshot_steps = 3
        done = 1
        for _ in range(25):
            is_over = Event()

            def interrupt(is_over: Event = is_over, delay: float = rng.uniform(0, 0.02)) -> None:
                if not is_over.wait(delay):
                    os.kill(os.getpid(), signal.SIGINT)

            try:
                with meanwhile(interrupt):
                    try:
                        for _ in range(3):
                            step(*batch(done))
                            done += 1
                    finally:
                        is_over.set()
            except KeyboardInterrupt:
                pass
            assert step.executable.step - done in (0, 1)
            done = step.executable.step
        assert_close(model.values(), undisturbed(range(done)))


def test_a_node_that_fails_on_a_host(model: Layered, note: Note) -> None:
    with EmbeddedCluster(3) as cluster, Hosts(cluster, 3, micro_batches=2) as executor:
        step = model.function(executor)
        train(step, range(2))
        address = places(step)[0, 1]
        model.orders.give(cluster.pids[address], "backward", "fail")
        start = time.monotonic()
        name = socket.gethostname()
        found = (
            rf"(?s)obey failed: ValueError: told to fail\n  node: .*obey.*hosts_faults.py.*host: {name} \({address}\)"
        )
        with pytest.raises(ExecutionError, match=found):
            step(*batch(2))
        note("a node failed", time.monotonic() - start)
        assert len(executor.workers) == 3
        train(step, range(2, STEPS))
        assert_close(model.values(), undisturbed(range(STEPS)))


def test_strangers_at_the_ports_do_not_disturb(model: Layered) -> None:
    """Neither noise, nor a plain connection, nor another token."""
    with EmbeddedCluster(2) as cluster, Hosts(cluster, 2) as executor:
        step = model.function(executor)
        step(*batch(0))
        doors = [cluster.scheduler_address, *cluster.addresses]
        is_over = Event()

        def disturb() -> None:
            stranger = credentials(new_token()).context()
            while not is_over.is_set():
                for door in doors:
                    host, port = door.removeprefix("tls://").split(":")
                    with socket.create_connection((host, int(port)), 5) as plain:
                        plain.sendall(secrets.token_bytes(4096))
                    with (
                        suppress(OSError),
                        socket.create_connection((host, int(port)), 5) as plain,
                        stranger.wrap_socket(plain) as secure,
                    ):
                        secure.sendall(b"\0" * 64)
                        assert not secure.recv(1)

        with meanwhile(disturb):
            train(step, range(1, 30))
            is_over.set()
        assert len(executor.workers) == 2
        assert_close(model.values(), undisturbed(range(30)))


def test_stopping_at_a_loss() -> None:
    model = Layered()
    with InProcessCluster(2) as cluster, Hosts(cluster, 2, on_host_lost="stop") as executor:
        step = model.function(executor)
        train(step, range(2))
        executor.session.fetch()
        train(step, range(2, 4))
        lost = places(step)[0, 1]
        cluster.kill(lost)
        with pytest.raises(HostLostError, match=rf"(?s){lost}\), stage 1 .*, 2 steps before\. on_host_lost='continue'"):
            step(*batch(4))
        assert step.executable.step == 2
        assert_close(model.values(), undisturbed(range(2)))
        train(step, range(2, STEPS))
        assert_close(model.values(), undisturbed(range(STEPS)))
