"""Whether figures are true: of nodes that sleep or spin for a known time, and of who waits, on each executor."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from slow_op import lasting, noted, sleeping

import miai_graph as mg
from executors import Hosts, Processes, Serial
from executors.hosts.in_process import InProcessCluster
from executors.processes import choice
from miai_graph import layers
from miai_graph.context import COMMUNICATION, WAIT
from miai_graph.executor import Executor
from miai_graph.timing import Timing, TimingRecord
from miai_graph.timing.records import IDLE

SECONDS = 0.02
STEPS = 6
ROWS = 24
MICRO_BATCHES = 2
ATTEMPTS = 16
MOST_STOOD = 0.2
"""The part of the time in which the worker of the slow node may stand idle, or wait."""

MAKERS: dict[str, Callable[[], Executor]] = {
    "serial": Serial,
    "processes": lambda: Processes(2, wait_for_workers=True),
    "hosts in this process": lambda: Hosts(InProcessCluster(2), stages=2, micro_batches=MICRO_BATCHES),
    "hosts": lambda: Hosts(stages=2, micro_batches=MICRO_BATCHES),
}


@pytest.fixture(scope="module", params=MAKERS)
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    with pytest.MonkeyPatch.context() as patch:
        # Small as the graphs are, all workers take part.
        patch.setattr(choice, "candidates", lambda most: [most])
        patch.setattr("executors.processes.executable.candidates", lambda most: [most])
        with MAKERS[request.param]() as made:
            yield made


def seconds_of(timing: Timing, worker: int, *phases: str) -> float:
    return sum(record.seconds for record in timing.records if record.worker == worker and record.phase in phases)


@pytest.mark.parametrize("spins", [False, True], ids=["sleeping", "spinning"])
def test_a_node_takes_as_long_as_it_takes(executor: Executor, spins: bool, tmp_path: Path) -> None:
    x, w = mg.input("x", (None, 8)), mg.parameter(np.ones((8, 8), "f4"), "w")
    y = lasting(mg.tanh(x @ w), seconds=SECONDS, spins=spins, folder=str(tmp_path), name="slow")
    loss = mg.mean(y * y)
    (g,) = mg.grad(loss, [w])
    step = mg.function([x], [loss], {w: w - 0.1 * g}, executor=executor)
    calls = MICRO_BATCHES if executor.name == "hosts" else 1

    def measure() -> Iterator[tuple[TimingRecord, np.ndarray, float]]:
        """For each worker that computes the node, its record, how long it was in each step, and the time it stood."""
        step.executable.reset_timing()
        for _ in range(STEPS):
            step(np.ones((ROWS, 8), "f4"))
        timing, known = step.timing, noted(tmp_path)
        records = [record for record in timing.records if record.node == "slow"]
        assert len(records) == len(known) == (2 if executor.name == "processes" else 1)
        for record in records:
            seconds = known[timing.workers[record.worker].pid][-STEPS * calls :]
            stood = seconds_of(timing, record.worker, IDLE, WAIT) / timing.wall_seconds
            yield record, seconds.reshape(STEPS, calls).sum(axis=1), stood

    step(np.ones((ROWS, 8), "f4"))
    for attempt in range(1, ATTEMPTS + 1):
        errors = []
        for record, truth, stood in measure():
            assert record.calls == STEPS
            found = np.array([record.seconds, record.min_seconds, record.max_seconds])
            expected = np.array([truth.sum(), truth.min(), truth.max()])
            # Never too little. Too much if another program takes the time between two looks at the clock.
            assert (found > expected).all()
            errors += [*(found / expected - 1), stood - MOST_STOOD]
        if max(errors) < 0.02:
            return
        assert attempt < ATTEMPTS, errors


@pytest.mark.parametrize("executor", ["hosts in this process", "hosts"], indirect=True)
def test_waiting_for_a_message_is_waiting(executor: Executor) -> None:
    # Long beside what messages and all else take on a busy machine.
    seconds = 4 * SECONDS

    class Sleep(layers.Layer):
        def call(self, x):
            return sleeping(x, seconds=seconds, name="sleep")

    model = mg.Sequential([layers.Input((8,)), layers.Dense(16, "relu"), Sleep(), layers.Dense(3)])
    model.compile("sgd", mg.losses.SparseCategoricalCrossentropy(from_logits=True), executor=executor)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((STEPS * ROWS, 8)).astype("f4"), rng.integers(0, 3, STEPS * ROWS)
    timing = model.fit(x, y, ROWS, shuffle=False, verbose=0).timing
    (slept,) = [record for record in timing.records if record.op == "sleeping"]
    assert slept.seconds >= STEPS * MICRO_BATCHES * seconds
    quick = 1 - slept.worker
    # Between steps, when the other stage is not done yet, it has no order to wait for.
    assert seconds_of(timing, quick, WAIT) > 0.5 * slept.seconds
    assert seconds_of(timing, quick, WAIT, IDLE) > 0.8 * slept.seconds
    assert seconds_of(timing, slept.worker, WAIT) < 0.2 * slept.seconds
    assert seconds_of(timing, quick, "forward", "backward", COMMUNICATION) < 0.2 * slept.seconds


def test_records_point_to_what_the_user_wrote(executor: Executor) -> None:
    """Also those of nodes that were rewritten, and of what was put between nodes."""
    x, w = mg.input("x", (None, 8)), mg.parameter(np.ones((8, 8), "f4"), "w")
    # What adds nothing, and multiplies by one, is left out; a quotient by a number becomes a product.
    loss = mg.mean(mg.tanh((x @ w + 0.0) * 1.0) / 4.0)
    (g,) = mg.grad(loss, [w])
    step = mg.function([x], [loss], {w: w - 0.1 * g}, executor=executor)
    step(np.ones((ROWS, 8), "f4"))
    timing = step.timing
    nodes = {name: node for node, name in timing.graph.names.items()}
    assert len(nodes) < len(step.graph)
    written = {node.name for node in step.graph.nodes}
    phases: dict[str, set[str]] = defaultdict(set)
    for record in timing.records:
        if record.phase in ("forward", "backward", "update"):
            node = nodes[record.node]
            assert node.source.file == __file__
            assert (node.phase, node.op.name, node.scope) == (record.phase, record.op, record.layer)
            phases[record.phase].add(record.node)
        elif record.phase == COMMUNICATION:
            assert nodes[record.node.rpartition("/")[0]].source.file == __file__
    assert phases["backward"]
    assert {"matmul", "tanh"} <= phases["forward"] <= written
