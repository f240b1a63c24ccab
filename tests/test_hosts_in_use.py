"""Hosts in use: shares by measured time, stages by hand, what is timed and told."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from slow_op import slowed

import miai_graph as mg
from executors import Hosts, Serial
from executors.hosts.connection.embedded import EmbeddedCluster
from executors.hosts.executable import RECONSIDER_AFTER_STEPS
from executors.hosts.in_process import InProcessCluster
from executors.hosts.layout import shares_by_time
from miai_graph import layers
from miai_graph.errors import ArgumentError

ROWS = 32


def test_shares_by_time() -> None:
    assert shares_by_time([0.5, 0.5], [1.0, 1.0]) == pytest.approx([0.5, 0.5])
    assert shares_by_time([0.5, 0.5], [3.0, 1.0]) == pytest.approx([0.25, 0.75])
    # Both took as long with shares of 1 to 3, so these are right.
    assert shares_by_time([0.25, 0.75], [2.0, 2.0]) == pytest.approx([0.25, 0.75])


def train(executor, pid: int) -> tuple[np.ndarray, mg.Function]:
    mg.set_seed(0)
    rng = np.random.default_rng(0)
    x, y = mg.input("x", (None, 6)), mg.input("y", (None,), "int64")
    w = mg.parameter(rng.standard_normal((6, 3)), "w", dtype="float32")
    loss = mg.mean(mg.sparse_softmax_cross_entropy(slowed(x, pid=pid) @ w, y))
    (g,) = mg.grad(loss, [w])
    step = mg.function([x, y], [loss], {w: w - 0.1 * g}, executor)
    for _ in range(RECONSIDER_AFTER_STEPS[0] + 2):
        step(rng.standard_normal((ROWS, 6)).astype("f4"), rng.integers(0, 3, ROWS))
    return w.value, step


def test_a_slow_replica_gets_fewer_rows_and_the_result_is_the_same() -> None:
    with EmbeddedCluster(2) as cluster, Hosts(cluster, stages=1, replicas=2) as hosts:
        address, pid = next(iter(cluster.pids.items()))
        found, step = train(hosts, pid)
        layout = step.executable._plans.layout
        slow = [addresses[0] for addresses in layout.grid].index(address)
        assert layout.shares[slow] < 0.2
        rows = {part.size for part in step.executable._plans.find(ROWS).dealing.parts[slow]}
        assert max(rows) <= 0.2 * ROWS
    with Serial() as serial:
        expected, _ = train(serial, pid=-1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def small_model() -> mg.Sequential:
    mg.set_seed(0)
    return mg.Sequential(
        [layers.Input((6,)), layers.Dense(8, "relu"), layers.Dropout(0.5), layers.Dense(8, "relu"), layers.Dense(3)]
    )


def test_stages_by_hand_serve_training_validation_and_prediction() -> None:
    """Dropout is not part of a prediction, and losses and metrics are on no stage that was named."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((24, 6)).astype("f4"), rng.integers(0, 3, 24)
    found = []
    for executor in (Serial(), Hosts(InProcessCluster(2), stages=[["dense", "dropout"], ["dense_1"]])):
        with executor:
            model = small_model()
            loss = mg.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile("sgd", loss, metrics=["accuracy"], executor=executor)
            model.fit(x, y, batch_size=8, epochs=2, validation_data=(x, y), verbose=0)
            found.append([*model.get_weights(), model.predict(x, verbose=0)])
    for value, expected in zip(*found, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)


def test_a_name_that_no_layer_has_is_told_when_training() -> None:
    with Hosts(InProcessCluster(2), stages=[["dense"], ["dence_1"]]) as executor:
        model = small_model()
        model.compile("sgd", "mse", executor=executor)
        with pytest.raises(ArgumentError, match=r"expected names of layers as stages, .*; found 'dence_1'"):
            model.fit(np.zeros((8, 6), "f4"), np.zeros((8, 3), "f4"), verbose=0)


def forward_calls(step: mg.Function) -> Counter[str]:
    """How often each node was computed, on all hosts together: another cut may move it to another one."""
    calls: Counter[str] = Counter()
    for record in step.timing.records:
        if record.phase == "forward":
            calls[record.node] += record.calls
    return calls


def test_what_was_timed_is_kept_when_the_graph_is_laid_out_anew() -> None:
    with Hosts(InProcessCluster(2), stages=2) as hosts:
        _, step = train(hosts, pid=-1)
        before = forward_calls(step)
        hosts.crew.generation += 1
        step(np.zeros((ROWS, 6), "f4"), np.zeros(ROWS, int))
        after = forward_calls(step)
    assert before
    assert min(before.values()) >= RECONSIDER_AFTER_STEPS[0] + 2
    assert all(after[node] > calls for node, calls in before.items())


def test_a_loss_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with InProcessCluster(2) as cluster, Hosts(cluster, stages=2) as hosts:
        _, step = train(hosts, pid=-1)
        capsys.readouterr()
        cluster.kill(cluster.addresses[-1])
        step(np.zeros((ROWS, 6), "f4"), np.zeros(ROWS, int))
    told = capsys.readouterr().err
    assert told.startswith("Lost: host ")
    assert "1 host is left to go on with" in told
