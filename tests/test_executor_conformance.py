"""What every executor must do: the same calls give the same results and the same errors.

A new executor is one more row of `EXECUTORS`.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from drawn_graphs import drawn_graphs
from hypothesis import HealthCheck, given, settings
from reference_executor import Reference

import miai_graph as mg
from executors import Hosts, Processes, Serial
from executors.hosts.in_process import InProcessCluster
from miai_graph.errors import ArgumentError, DTypeError, ExecutionError, ExecutorError, FeedError, ShapeError
from miai_graph.executor import Executor, as_executor
from miai_graph.feeding import Rows
from miai_graph.interpreter import evaluate
from miai_graph.op import ops

pytestmark = pytest.mark.filterwarnings("ignore:expected micro-batches that go through the stages")


def hosts_here(stages: int, replicas: int, **options: Any) -> Executor:
    """Hosts that are objects in this process."""
    return Hosts(InProcessCluster(stages * replicas), stages, replicas, **options)


EXECUTORS: dict[str, Callable[[], Executor]] = {
    "reference": Reference,
    "serial": Serial,
    "serial, one thread": lambda: Serial(threads=1),
    "serial, reproducible": lambda: Serial(reproducible=True, shards=4),
    **{f"processes, {count} workers": partial(Processes, count, wait_for_workers=True) for count in (1, 2, 3)},
    "processes, beginning alone": lambda: Processes(2),
    "processes, reproducible": lambda: Processes(2, reproducible=True, shards=4, wait_for_workers=True),
    **{
        f"hosts, {stages} stages, {replicas} replicas, {micro_batches} micro-batches": partial(
            hosts_here, stages, replicas, micro_batches=micro_batches
        )
        for stages in (1, 2, 3)
        for replicas in (1, 2)
        for micro_batches in (1, 4)
    },
    "hosts, gpipe": lambda: hosts_here(2, 1, micro_batches=3, schedule="gpipe"),
    "hosts, reproducible": lambda: hosts_here(2, 2, reproducible=True, shards=4),
    "hosts, over TLS sockets": lambda: Hosts(stages=2, replicas=1, micro_batches=2),
    "hosts, replicas over TLS sockets": lambda: Hosts(stages=1, replicas=2),
}


@pytest.fixture(scope="module", params=EXECUTORS.values(), ids=EXECUTORS)
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    """One for all tests that leave it open, and its workers alive."""
    with request.param() as made:
        yield made


@pytest.fixture(params=EXECUTORS.values(), ids=EXECUTORS)
def own_executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    with request.param() as made:
        yield made


class Classifier:
    """A model with what training needs: batch statistics, noise, a penalty, an optimizer's slots, a counter."""

    def __init__(self) -> None:
        mg.set_seed(7)
        rng = np.random.default_rng(1)
        self.x, self.y = mg.input("x", (None, 6)), mg.input("y", (None,), "int64")
        shapes = {"w": (6, 8), "scale": (8,), "v": (8, 3), "c": (3,)}
        self.parameters = [
            mg.parameter(0.5 * rng.standard_normal(shape), name, dtype="float32") for name, shape in shapes.items()
        ]
        self.slots = [mg.variable(np.zeros(p.shape, "f4"), f"{p.name}/slot") for p in self.parameters]
        self.count = mg.variable(0, "count")
        w, scale, v, c = self.parameters
        h = self.x @ w
        h = (h - mg.mean(h, 0)) * mg.rsqrt(mg.var(h, 0) + 1e-3) * scale
        h = mg.relu(h) * mg.random.bernoulli((None, 8), 0.8, dtype="float32")
        logits = h @ v + c
        self.loss = mg.mean(mg.sparse_softmax_cross_entropy(logits, self.y)) + 0.01 * mg.sum(w**2)
        self.hits = mg.sum(mg.argmax(logits, -1) == self.y)
        updates = {self.count: self.count + 1}
        for p, slot, g in zip(self.parameters, self.slots, mg.grad(self.loss, self.parameters), strict=True):
            velocity = 0.9 * slot + g
            updates |= {slot: velocity, p: p - 0.1 * velocity}
        self.updates = updates

    def function(self, executor: Executor) -> mg.Function:
        return mg.function([self.x, self.y], [self.loss, self.hits], self.updates, executor)

    def values(self) -> list[np.ndarray]:
        return [node.value for node in (*self.parameters, *self.slots, self.count)]


def batches(*sizes: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(3)
    return [(rng.standard_normal((size, 6)).astype("f4"), rng.integers(0, 3, size)) for size in sizes]


def expected_training(sizes) -> tuple[list[list[np.ndarray]], list[np.ndarray]]:
    model = Classifier()
    with Reference() as reference:
        losses = list(model.function(reference).executable.run(batches(*sizes)))
    return losses, model.values()


def assert_same(found, expected) -> None:
    for value, wanted in zip(found, expected, strict=True):
        assert value.dtype == wanted.dtype
        np.testing.assert_allclose(value, wanted, rtol=2e-4, atol=2e-5)


def test_training_gives_the_same_with_several_batch_sizes(executor: Executor) -> None:
    sizes = (8, 5, 8, 16, 1, 7)
    losses, values = expected_training(sizes)
    model = Classifier()
    step = model.function(executor)
    for batch, expected in zip(batches(*sizes), losses, strict=True):
        assert_same(step(*batch), expected)
    assert_same(model.values(), values)
    assert model.count.value == step.executable.step == len(sizes)


def test_run_gives_what_calls_give(executor: Executor) -> None:
    sizes = (4, 4, 3)
    losses, values = expected_training(sizes)
    model = Classifier()
    executable = model.function(executor).executable
    found = executable.run(iter(batches(*sizes)))
    for expected in losses:
        assert_same(next(found), expected)
    assert next(found, None) is None
    assert_same(model.values(), values)
    assert list(executable.run([])) == []


def test_results_stay_when_the_next_call_is_made(executor: Executor) -> None:
    model = Classifier()
    found = list(model.function(executor).executable.run(batches(4, 4)))
    assert found[0][0] != found[1][0]


def test_rows_of_arrays_are_batches(executor: Executor) -> None:
    (whole,) = batches(20)
    rows = [np.array([3, 1, 19, 0]), np.arange(5), np.array([7])]
    model, same = Classifier(), Classifier()
    found = list(model.function(executor).executable.run([Rows(whole, indices) for indices in rows]))
    with Reference() as reference:
        taken = [tuple(array[indices] for array in whole) for indices in rows]
        expected = list(same.function(reference).executable.run(taken))
    for value, wanted in zip(found, expected, strict=True):
        assert_same(value, wanted)
    executable = model.function(executor).executable
    for indices in (np.array([20]), np.array([-1]), np.array([], int)):
        with pytest.raises(FeedError, match="expected"):
            list(executable.run([Rows(whole, indices)]))


def test_rows_are_cast_and_inputs_without_batch_are_whole(executor: Executor) -> None:
    x, y = mg.input("x", (None, 2)), mg.input("y", (2,))
    arrays = [np.arange(8.0).reshape(4, 2), np.array([1, 10], "i4")]
    executable = mg.function([x, y], [x * y], executor=executor).executable
    ((found,),) = executable.run([Rows(arrays, np.array([3, 0]))])
    np.testing.assert_array_equal(found, [[6, 70], [0, 10]])


def test_random_numbers_are_the_same_at_the_same_step(executor: Executor) -> None:
    mg.set_seed(5)
    x = mg.input("x", (None,))
    noise = [mg.random.normal((None, 3)), mg.random.uniform((2,)), mg.random.bernoulli((None,))]
    step = mg.function([x], noise, executor=executor)
    array = np.zeros(4, "f4")
    found = [step(array) for _ in range(3)]
    for number, values in enumerate(found):
        expected, _ = evaluate(mg.Graph(noise), {}, batch_size=4, step=number)
        assert_same(values, expected)
    step.executable.step = 1
    assert_same(step(array), found[1])
    assert step.executable.step == 2


def test_updates_are_simultaneous_and_outputs_see_the_values_before(executor: Executor) -> None:
    a, b = mg.variable(np.arange(3.0), "a"), mg.variable(np.ones(3), "b")
    swap = mg.function([], [a, a + b], {a: b, b: a}, executor)
    np.testing.assert_array_equal(swap(), [[0, 1, 2], [1, 2, 3]])
    np.testing.assert_array_equal(a.value, [1, 1, 1])
    np.testing.assert_array_equal(b.value, [0, 1, 2])


def test_nothing_but_updates(executor: Executor) -> None:
    a = mg.variable(1, "a")
    step = mg.function([], [], {a: a * 2}, executor)
    assert [step(), step()] == [(), ()]
    assert a.value == 4


def test_a_failing_node_changes_nothing(own_executor: Executor) -> None:
    model = Classifier()
    step = model.function(own_executor)
    good, bad = batches(4, 4)
    bad[1][2] = 3
    step(*good)
    before = model.values()
    with pytest.raises(ExecutionError, match=r"labels from 0 to 2[\s\S]*found 3[\s\S]*test_executor_conformance.py"):
        step(*bad)
    assert_same(model.values(), before)
    assert step.executable.step == 1
    step(*good)
    assert model.count.value == 2


def test_a_users_op_runs_and_its_failure_is_named(own_executor: Executor) -> None:
    @mg.op
    class picky:
        def infer(x, *, limit):
            return x

        def forward(x, *, limit):
            if abs(x).max() > limit:
                raise ValueError("too large")
            return 2 * x

    try:
        x = mg.input("x", (None,), "float64")
        with warnings.catch_warnings():
            # Other processes cannot get an op that is defined here, and say that they do without them.
            warnings.filterwarnings("ignore", message="expected a graph that workers can compute parts of")
            step = mg.function([x], [mg.exp(picky(x, limit=3.0))], executor=own_executor)
        np.testing.assert_allclose(step([1.0, 2.0])[0], np.exp([2.0, 4.0]))
        with pytest.raises(ExecutionError, match=r"picky failed: ValueError: too large\n  node: f64\[B\] picky"):
            step([4.0])
    finally:
        del ops["picky"]


def test_wrong_feeds_are_refused_in_the_same_words(executor: Executor) -> None:
    model = Classifier()
    step = model.function(executor)
    ((x, y),) = batches(4)
    before = model.values()
    for arrays in ((x,), (x, y, y), (x[:2], y), (x[:0], y[:0]), (x.T, y), (x, x[:, 0]), (x.astype(object), y)):
        with pytest.raises(FeedError) as caught:
            step(*arrays)
        with Reference() as reference, pytest.raises(FeedError) as wanted:
            Classifier.function(model, reference)(*arrays)
        assert str(caught.value) == str(wanted.value)
    assert_same(model.values(), before)
    with pytest.raises(FeedError, match="found none for"):
        mg.function([model.x], [model.loss], executor=executor)


def test_values_can_be_read_and_set(executor: Executor) -> None:
    model = Classifier()
    step = model.function(executor)
    values = step.executable.state
    w, v = model.parameters[0], model.parameters[2]
    assert set(values) == {*model.parameters, *model.slots, model.count}
    assert len(values) == 9
    values[w] = np.ones((6, 8))
    np.testing.assert_array_equal(w.value, np.ones((6, 8)))
    values[w][:] = 5
    assert values[w][0, 0] == 1
    with pytest.raises(ShapeError, match="'v'"):
        values[v] = np.ones(3)
    with pytest.raises(DTypeError, match="count"):
        values[model.count] = 0.5
    with pytest.raises(KeyError):
        values[model.x]
    with pytest.raises(ArgumentError):
        del values[w]
    mg.assign(w, np.zeros((6, 8)))
    found = step(*batches(4)[0])
    other = Classifier()
    mg.assign(other.parameters[0], np.zeros((6, 8)))
    with Reference() as reference:
        assert_same(found, other.function(reference)(*batches(4)[0]))


def test_functions_and_executors_share_values(executor: Executor) -> None:
    count = mg.variable(0, "count")
    first = mg.function([], [count], {count: count + 1}, executor)
    second = mg.function([], [count], {count: count + 10})
    third = mg.function([], [count], {count: count + 100}, executor)
    assert [int(step()[0]) for step in (first, second, third, first)] == [0, 1, 11, 111]
    assert count.value == 112


def test_a_closed_executor_refuses_and_values_stay(own_executor: Executor) -> None:
    model = Classifier()
    step = model.function(own_executor)
    step(*batches(4)[0])
    before = model.values()
    own_executor.close()
    own_executor.close()
    for use in (
        lambda: step(*batches(4)[0]),
        lambda: model.function(own_executor),
        lambda: next(step.executable.run(batches(4))),
        own_executor.__enter__,
    ):
        with pytest.raises(ExecutorError, match="expected an executor that is open"):
            use()
    assert_same(model.values(), before)


def test_a_with_statement_closes_also_on_errors(own_executor: Executor) -> None:
    with pytest.raises(ZeroDivisionError), own_executor:
        raise ZeroDivisionError
    assert own_executor.closed


def test_timing_counts_and_names(executor: Executor) -> None:
    model = Classifier()
    step = model.function(executor)
    step.executable.warmup(4)
    assert step.timing.steps == 0
    for batch in batches(4, 4, 3):
        step(*batch)
    timing = step.timing
    assert timing.steps == 3
    workers = {worker.index for worker in executor.workers}
    assert {record.worker for record in timing.records} <= workers
    assert all(record.seconds >= 0 and record.calls <= 3 for record in timing.records)
    assert isinstance(timing.format_table(), str)
    step.executable.reset_timing()
    assert step.timing.steps == 0
    step(*batches(3)[0])
    assert step.timing.steps == 1


def test_workers_are_told(executor: Executor) -> None:
    assert [worker.index for worker in executor.workers] == list(range(len(executor.workers)))
    assert all(worker.pid > 0 and worker.threads >= 1 and worker.host for worker in executor.workers)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=drawn_graphs())
def test_random_graphs_give_what_the_interpreter_does(executor: Executor, drawn) -> None:
    step = mg.function(drawn.inputs, drawn.graph.outputs, drawn.graph.updates, executor)
    for batch_size in (4, 1):
        expected = drawn.values(drawn.graph, batch_size)
        assert_same([*step(*drawn.arrays(batch_size)), drawn.parameter.value], expected)


def test_names_of_executors() -> None:
    assert "serial" in mg.executor_names()
    assert as_executor("serial") is as_executor("serial")
    with pytest.raises(ExecutorError, match=r"found 'abacus'\. There are: .*'serial'"):
        mg.executor("abacus")
    closed = mg.executor("serial")
    closed.close()
    with pytest.raises(ExecutorError, match="closed"):
        as_executor(closed)


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "two"])
def test_a_number_of_threads_is_positive(threads) -> None:
    with pytest.raises(ArgumentError, match="positive number of threads"):
        Serial(threads=threads)


def test_threads_are_limited_while_the_executor_is_open() -> None:
    (before,) = Serial().workers
    with Serial(threads=1) as one:
        assert one.workers[0].threads == 1
        assert repr(one) == "Serial(threads=1)"
    assert Serial().workers[0].threads == before.threads


def test_of_several_limits_on_threads_the_latest_holds() -> None:
    def threads() -> int:
        return Serial().workers[0].threads

    before = threads()
    first, second = Serial(threads=1), Serial(threads=before)
    first.close()
    first.close()
    assert threads() == before
    third = Serial(threads=1)
    second.close()
    assert threads() == 1
    del third
    gc.collect()
    assert threads() == before
