"""A slow host gets less to do, by the time that it was measured to take."""

from __future__ import annotations

import numpy as np
import pytest
from slow_op import slowed

import miai_graph as mg
from executors import Hosts, Serial
from executors.hosts.connection.embedded import EmbeddedCluster
from executors.hosts.executable import RECONSIDER_AFTER_STEPS
from executors.hosts.layout import shares_by_time

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
