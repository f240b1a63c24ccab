"""What hosts are timed at is of finished steps, whole, whenever it is read; and stays when a host is killed."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np
import pytest
from faulty_ops import wait_until
from hosts_faults import is_named, kill

import miai_graph as mg
from executors import Hosts
from executors.hosts.cluster import Message
from executors.hosts.connection.embedded import EmbeddedCluster
from executors.hosts.in_process import InProcessCluster
from executors.hosts.watch import DRIFT, ClockOffset
from miai_graph import callbacks, layers
from miai_graph.context import BACKWARD, FORWARD
from miai_graph.errors import HostLostError
from miai_graph.timing import Timing

BATCH_SIZE, STEPS_OF_AN_EPOCH, EPOCHS = 16, 12, 2
ROWS = BATCH_SIZE * STEPS_OF_AN_EPOCH - 5


class Watched(EmbeddedCluster):
    """Processes on this machine. Notes how many steps they are told to begin before the one before is finished."""

    def __init__(self) -> None:
        self.ahead = 0
        super().__init__(2, 1)

    def call(self, address: str, name: str, message: Message | None = None) -> Future[Message]:
        if name == "run" and message is not None:
            self.ahead += message.content["is_ahead"]
        return super().call(address, name, message)


@pytest.fixture
def cluster() -> Iterator[Watched]:
    with Watched() as made:
        yield made


def train(executor: Hosts, callback: callbacks.Callback) -> mg.Sequential:
    model = mg.Sequential([layers.Input((8,)), layers.Dense(64, "relu"), layers.Dense(64, "relu"), layers.Dense(3)])
    model.compile("adam", mg.losses.SparseCategoricalCrossentropy(from_logits=True), executor=executor)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((ROWS, 8)).astype("f4"), rng.integers(0, 3, ROWS)
    callback.set_model(model)
    model.fit(x, y, BATCH_SIZE, epochs=EPOCHS, verbose=0, callbacks=[callback])
    return model


def assert_of_whole_steps(timing: Timing, steps: int) -> None:
    """Each node was computed once a step, on one host or on another, if the graph was cut anew."""
    assert timing.steps == steps
    calls: Counter[str] = Counter()
    for record in timing.records:
        if record.phase in (FORWARD, BACKWARD):
            assert sum(record.histogram) == record.calls
            calls[record.node] += record.calls
    assert len(calls) > 12
    assert set(calls.values()) == {steps}


def assert_sums_close(timing: Timing) -> None:
    booked: dict[int, float] = defaultdict(float)
    for record in timing.records:
        booked[record.worker] += record.seconds
    assert booked.keys() == {worker.index for worker in timing.workers}
    for seconds in booked.values():
        assert seconds == pytest.approx(timing.wall_seconds, rel=0.01)


def test_whenever_it_is_read_it_is_of_whole_steps(cluster: Watched) -> None:
    read: list[Timing] = []

    class Reader(callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            read.append(self.model.history.timing)

    with Hosts(cluster, 2, micro_batches=2) as executor:
        timing = train(executor, Reader()).history.timing
    assert cluster.ahead > len(read)
    assert len(read) == EPOCHS * STEPS_OF_AN_EPOCH
    for number, found in enumerate(read):
        assert_of_whole_steps(found, number + 1)
        assert {piece.step for piece in found.slices} == {0, found.typical_step, number}
    assert_of_whole_steps(timing, len(read))


def test_the_last_whole_batch_is_traced_and_told_of(cluster: Watched) -> None:
    with Hosts(cluster, 2, micro_batches=2) as executor:
        timing = train(executor, callbacks.Callback()).history.timing
    last = EPOCHS * STEPS_OF_AN_EPOCH - 1
    assert timing.typical_step == last - 1
    assert {piece.step for piece in timing.slices} == {0, last - 1, last}
    assert any(f"In step {last - 1} the pipeline" in sentence for sentence in timing.verdict())


@pytest.mark.skipif(sys.platform != "linux", reason="sends signals")
@pytest.mark.parametrize("number", [0, 1])
def test_a_host_that_is_killed_leaves_what_it_was_timed_at(cluster: Watched, number: int) -> None:
    ended = 0

    class Killer(callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            nonlocal ended
            ended += 1
            if ended == STEPS_OF_AN_EPOCH + 3:
                address = executor.crew.hosts[number].address
                kill(cluster, address)
                wait_until(is_named(executor, address))

    killer = Killer()
    with Hosts(cluster, 2, micro_batches=2, on_host_lost="stop") as executor:
        pids = [worker.pid for worker in executor.workers]
        with pytest.raises(HostLostError):
            train(executor, killer)
        timing = killer.model.history.timing
        assert [worker.pid for worker in timing.workers[:2]] == pids
        assert {worker.stage for worker in timing.workers} == {0, 1, None}
        assert_of_whole_steps(timing, ended)
        assert_sums_close(timing)
        assert {(piece.step, piece.worker) for piece in timing.slices} == {
            (step, worker) for step in (0, ended - 1) for worker in (0, 1)
        }


@pytest.mark.skipif(sys.platform != "linux", reason="sends signals")
def test_who_goes_on_after_a_loss_keeps_its_number(cluster: Watched) -> None:
    class Killer(callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                kill(cluster, executor.crew.hosts[0].address)

    with Hosts(cluster, 2, micro_batches=2) as executor:
        pids = [worker.pid for worker in executor.workers]
        timing = train(executor, Killer()).history.timing
        assert [worker.pid for worker in executor.workers] == pids[1:]
    # What was lost with it was done again.
    assert timing.steps >= EPOCHS * STEPS_OF_AN_EPOCH
    assert_of_whole_steps(timing, timing.steps)
    assert_sums_close(timing)
    assert [worker.pid for worker in timing.workers[:2]] == pids
    last = max(piece.step for piece in timing.slices)
    assert last == EPOCHS * STEPS_OF_AN_EPOCH - 1
    assert {piece.worker for piece in timing.slices if piece.step == last} == {1}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, processes may count time from other beginnings")
def test_clocks_of_processes_are_as_far_apart_as_is_said(cluster: Watched) -> None:
    with Hosts(cluster, 2) as executor:
        timing = train(executor, callbacks.Callback()).history.timing
        for host, worker in zip(executor.crew.hosts, timing.workers, strict=False):
            clock = executor.crew.clock(host.address)
            assert clock is not None
            assert abs(clock.nanoseconds) <= clock.uncertainty
            assert 0 < worker.clock_uncertainty_seconds < 0.1
    uncertainties = [piece.uncertainty_seconds for piece in timing.slices]
    assert 0 < min(uncertainties) <= max(uncertainties) < 0.1


def test_clocks_are_compared_however_short_a_training_is() -> None:
    with Hosts(InProcessCluster(2), 2) as executor:
        step = mg.function([x := mg.input("x", (None, 8))], [mg.sum(mg.tanh(x))], executor=executor)
        step(np.ones((BATCH_SIZE, 8), "f4"))
        timing = step.timing
    assert all(worker.clock_uncertainty_seconds > 0 for worker in timing.workers)


def test_a_clock_is_known_best_for_the_time_when_it_was_measured() -> None:
    measured_ns = 10**12
    clock = ClockOffset(5, 100, measured_ns)
    second_ns = 10**9
    for at_ns in (measured_ns - second_ns, measured_ns + second_ns):
        aged = clock.aged(at_ns)
        assert (aged.nanoseconds, aged.uncertainty) == (5, 100 + round(DRIFT * second_ns))
    assert clock.aged(measured_ns) == clock
