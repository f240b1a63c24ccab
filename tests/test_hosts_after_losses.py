"""After losses: what is repeated is what was done, and nothing is left behind on hosts, in files or in memory."""

from __future__ import annotations

import gc
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from faulty_ops import has_ended, wait_until
from hosts_faults import (
    INSPECTED,
    Layered,
    Unreliable,
    assert_close,
    batch,
    kept,
    kill,
    places,
    seconds_until,
    train,
    undisturbed,
)

import miai_graph as mg
from executors import Hosts, Serial
from executors.hosts.connection.dask_cluster import DaskCluster
from executors.hosts.connection.embedded import EmbeddedCluster
from executors.hosts.connection.security import credentials, new_token
from executors.hosts.in_process import InProcessCluster
from miai_graph import layers
from miai_graph.feeding import Rows, Table
from miai_graph.ops.leaves import variable_of
from miai_graph.state import state

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sends signals, and looks into /proc")

STEPS = 6


@pytest.fixture
def model(tmp_path: Path) -> Layered:
    return Layered(tmp_path)


@pytest.fixture
def token() -> str:
    return new_token()


# ---- what is repeated is what was done


@pytest.fixture
def pair() -> Iterator[tuple[InProcessCluster, Hosts]]:
    with InProcessCluster(3) as cluster, Hosts(cluster, 3) as executor:
        yield cluster, executor


def lose_one(cluster: InProcessCluster) -> None:
    cluster.kill(list(cluster.addresses)[-1])


def test_values_that_were_set_survive(pair: tuple[InProcessCluster, Hosts]) -> None:
    cluster, executor = pair

    def run(step: mg.Function, model: Layered, lose: Callable[[], None]) -> list[np.ndarray]:
        train(step, range(3))
        assert model.parameters[0].value.any()
        train(step, range(3, 5))
        mg.assign(model.parameters[1], np.full((8, 8), 0.1, "f4"))
        lose()
        train(step, range(5, 7))
        mg.assign(model.rate, 0.01)
        lose()
        train(step, range(7, 9))
        return model.values()

    model, same_model = Layered(), Layered()
    expected = run(same_model.function(Serial()), same_model, lambda: None)
    assert_close(run(model.function(executor), model, lambda: lose_one(cluster)), expected)


def test_the_learning_rate_of_each_step(pair: tuple[InProcessCluster, Hosts]) -> None:
    cluster, executor = pair

    def fit(executor: object, lose: Callable[[], None]) -> list[np.ndarray]:
        mg.set_seed(3)
        model = mg.Sequential([layers.Input((6,)), *(layers.Dense(8, "relu") for _ in range(3)), layers.Dense(3)])
        model.compile(mg.optimizers.SGD(0.1, momentum=0.9), "mse", executor=executor)
        x, y = batch(0)[0], np.ones((8, 3), "f4")
        for number in range(6):
            model.train_on_batch(x, y)
            if number in (2, 4):
                model.optimizer.learning_rate = 0.1 / number
                lose()
        return model.get_weights()

    assert_close(fit(executor, lambda: lose_one(cluster)), fit(Serial(), lambda: None))


def test_arrays_that_are_overwritten_afterwards(pair: tuple[InProcessCluster, Hosts]) -> None:
    cluster, executor = pair
    model = Layered()
    step = model.function(executor)
    x, y = batch(0)
    for number in range(3):
        x[...], y[...] = batch(number)
        step(x, y)
    table = Table([np.concatenate(parts) for parts in zip(batch(3), batch(4), strict=True)])
    list(step.executable.run(Rows(table, np.arange(start, start + 8)) for start in (0, 8)))
    for array in (x, y, *table):
        array[...] = 0
    lose_one(cluster)
    step(*batch(5))
    assert_close(model.values(), undisturbed(range(6)))


def test_a_function_that_is_gone(pair: tuple[InProcessCluster, Hosts]) -> None:
    """Its steps are repeated, too."""
    cluster, executor = pair
    model = Layered()
    train(model.function(executor), range(3))
    gc.collect()
    lose_one(cluster)
    train(model.function(executor), range(3, 5))
    assert_close(model.values(), undisturbed(range(5)))


def test_a_step_number_that_was_set(pair: tuple[InProcessCluster, Hosts]) -> None:
    cluster, executor = pair

    def run(executor: object, lose: Callable[[], None]) -> float:
        mg.set_seed(1)
        x, w = mg.input("x", (None, 3)), mg.parameter(np.zeros((3, 2), "f4"), "w")
        noise = mg.random.uniform((None, 2), dtype="float32")
        step = mg.function([x], [], {w: w + mg.mean(x @ w + noise)}, executor=executor)
        for number in range(6):
            if number == 3:
                step.executable.step = 100
            if number == 5:
                lose()
            step(np.ones((4, 3), "f4"))
        return float(w.value.sum())

    assert run(executor, lambda: lose_one(cluster)) == pytest.approx(run(Serial(), lambda: None), rel=1e-5)


def test_batches_of_a_run_that_was_left(pair: tuple[InProcessCluster, Hosts]) -> None:
    """What was sent ahead is not taken for another batch, and is let go of."""
    _, executor = pair
    model = Layered()
    step = model.function(executor)
    table = [np.concatenate(parts) for parts in zip(*map(batch, range(4)), strict=True)]
    rows = [Rows(table, np.arange(start, start + 8)) for start in (0, 8, 16, 24)]
    next(step.executable.run([rows[0], rows[3]]))
    list(step.executable.run([rows[1], rows[2]]))
    assert_close(model.values(), undisturbed(range(3)))


def test_a_function_called_between_the_steps_of_a_run(pair: tuple[InProcessCluster, Hosts]) -> None:
    """The batch that was sent ahead stays, also when the other one fails or hosts are lost."""
    cluster, executor = pair
    model = Layered()
    step, evaluate = model.function(executor), model.evaluation(executor)
    for number, _ in enumerate(step.executable.run(map(batch, range(STEPS)))):
        (loss,) = evaluate(*batch(100))
        assert np.isfinite(loss)
        if number == 3:
            lose_one(cluster)
            evaluate(*batch(100))
    assert_close(model.values(), undisturbed(range(STEPS)))


class Loses(mg.callbacks.Callback):
    """Lets something happen in the second epoch."""

    def __init__(self, lose: Callable[[], None]) -> None:
        super().__init__()
        self._lose = lose

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        if epoch == 1:
            self._lose()


def test_fit_evaluate_and_predict_with_losses() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((70, 6)).astype("f4")
    y = (x.sum(1) > 0).astype("int64")

    def generator() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, 64, 16):
            yield x[start : start + 16].copy(), y[start : start + 16].copy()

    def run(executor: object, lose: Callable[[], None]) -> list[np.ndarray]:
        found = []
        for seed in range(2):
            mg.set_seed(seed)
            model = mg.Sequential([layers.Input((6,)), *(layers.Dense(8, "relu") for _ in range(3)), layers.Dense(2)])
            loss = mg.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile("adam", loss, metrics=["accuracy"], executor=executor)
            loses = Loses(lose)
            history = model.fit(x, y, batch_size=16, epochs=3, validation_split=0.2, verbose=0, callbacks=[loses])
            model.fit(generator(), epochs=1, steps_per_epoch=4, verbose=0)
            lose()
            found += [np.array(history.history["val_loss"]), model.predict(x, verbose=0), *model.get_weights()]
            found.append(np.array(model.evaluate(x, y, verbose=0)))
        return found

    with InProcessCluster(5) as cluster, Hosts(cluster) as executor:
        assert_close(run(executor, lambda: lose_one(cluster)), run(Serial(), lambda: None))
        assert len(executor.workers) == 1


def test_two_executors_on_one_cluster(token: str) -> None:
    first, second = Layered(), Layered()
    with EmbeddedCluster(3, token=token, maker=INSPECTED) as cluster, Hosts(cluster, 3) as one:
        dask = DaskCluster(cluster.scheduler_address, credentials(token))
        with Hosts(dask, 2) as two:
            steps = [first.function(one), second.function(two)]
            for number in range(STEPS):
                if number == 3:
                    kill(cluster, places(steps[0])[0, 1])
                for step in steps:
                    step(*batch(number))
            for model in (first, second):
                assert_close(model.values(), undisturbed(range(STEPS)))
        # Values that another executor has are brought home before this one uses them.
        step = second.function(one)
        train(step, range(STEPS, STEPS + 2))
        assert_close(second.values(), undisturbed(range(STEPS + 2)))
        assert kept(cluster)["sessions"] == 2


# ---- what is left behind


def test_many_steps_leave_nothing() -> None:
    model = Layered()
    with EmbeddedCluster(2, maker=INSPECTED) as cluster, Hosts(cluster, 2, micro_batches=2) as executor:
        step, evaluate = model.function(executor), model.evaluation(executor)

        def work(steps: int) -> list[int]:
            for _ in step.executable.run(batch(number, 8 + 8 * (number % 2)) for number in range(steps)):
                evaluate(*batch(0))
            next(step.executable.run([batch(0), batch(1)]))
            step(*batch(0))
            return [psutil.Process(pid).memory_info().rss for pid in cluster.pids.values()]

        before, held = work(60), kept(cluster)
        after = work(300)
        assert kept(cluster) == held
        assert held["letters"] == 0
        assert len(executor._journal.entries) <= 1000
        for now, then in zip(after, before, strict=True):
            assert now - then < 32 << 20


def test_functions_that_are_gone_leave_nothing_on_hosts() -> None:
    with Unreliable(2) as cluster, Hosts(cluster, 2) as executor:

        def work() -> dict[str, int]:
            model = Layered()
            step = model.function(executor)
            train(step, range(2))
            executor.session.fetch()
            del step, model
            gc.collect()
            last = Layered()
            last.function(executor)(*batch(0))
            executor.session.fetch()
            return kept(cluster)

        before = work()
        for _ in range(4):
            assert work() == before


def test_an_executor_that_is_dropped_is_closed() -> None:
    model = Layered()
    cluster = EmbeddedCluster(2)
    step = model.function(Hosts(cluster, 2))
    pids = list(cluster.pids.values())
    train(step, range(3))
    del step, cluster
    gc.collect()
    wait_until(lambda: all(map(has_ended, pids)))
    assert_close(model.values(), undisturbed(range(3)))


@pytest.fixture
def own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files are."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def test_nothing_is_left_after_a_failure_and_after_losses(model: Layered, own_files: Path) -> None:
    with suppress(ZeroDivisionError), EmbeddedCluster(2) as cluster, Hosts(cluster, 2) as executor:
        step = model.function(executor)
        train(step, range(2))
        kill(cluster, cluster.addresses[0])
        step(*batch(2))
        pids = list(cluster.pids.values())
        _ = 1 / 0
    assert all(map(has_ended, pids))
    assert not list(own_files.iterdir())


CRASH_SECONDS = 3.0

ALONE = """
import sys
sys.path[:0] = {path!r}
from hosts_faults import Layered, batch
from executors import Hosts
executor = Hosts()
step = Layered().function(executor)
step(*batch(0))
print(*(worker.pid for worker in executor.workers), flush=True)
while True:
    step(*batch(0))
"""


def test_embedded_hosts_end_with_the_user(own_files: Path) -> None:
    script = ALONE.format(path=[p for p in sys.path if p])
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as user:
        assert user.stdout is not None
        pids = [int(pid) for pid in user.stdout.readline().split()]
        user.kill()
    killed = time.monotonic()
    assert seconds_until(lambda: all(map(has_ended, pids)), killed) < CRASH_SECONDS
    assert not list(own_files.iterdir())


def test_a_small_value_is_read_without_bringing_all_home() -> None:
    model = Layered()
    with InProcessCluster(2) as cluster, Hosts(cluster, 2) as executor:
        step = model.function(executor)
        train(step, range(3))
        home = [state.is_away(variable_of(node)) for node in step.executable.variables]
        assert any(home)
        found = [node.value for node in step.executable.variables]
        assert [state.is_away(variable_of(node)) for node in step.executable.variables] == home
        executor.session.fetch()
        for node, value in zip(step.executable.variables, found, strict=True):
            np.testing.assert_array_equal(node.value, value)
