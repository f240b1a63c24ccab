"""Functions over the one state: simultaneous updates, all or nothing, what may be fed, and where the time goes."""

from __future__ import annotations

import gc
import io
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import miai_graph as mg
from miai_graph.errors import (
    ArgumentError,
    DTypeError,
    DuplicateNameError,
    ExecutionError,
    ExecutorError,
    FeedError,
    ShapeError,
)
from miai_graph.ops.leaves import variable_of, variable_of_zeros
from miai_graph.state import State, aligned_bytes, state
from miai_graph.types import TensorType

COUNTER = {"name": "counter", "dtype": "int64"}


def test_updates_are_simultaneous() -> None:
    a, b = mg.variable(np.array([1.0, 2.0]), "a"), mg.variable(np.array([3.0, 4.0]), "b")
    swap = mg.function([], [a, b], {a: b, b: a})
    for first, second in (([1, 2], [3, 4]), ([3, 4], [1, 2]), ([1, 2], [3, 4])):
        found = swap()
        np.testing.assert_array_equal(found, [first, second])
        np.testing.assert_array_equal([a.value, b.value], [second, first])


def test_updates_may_be_views_of_other_variables() -> None:
    a, b = mg.variable(np.arange(3.0), "a"), mg.variable(np.arange(3.0) + 10, "b")
    mg.function([], [], {a: b[::-1], b: mg.reshape(a[None], (3,))})()
    np.testing.assert_array_equal(a.value, [12, 11, 10])
    np.testing.assert_array_equal(b.value, [0, 1, 2])


def test_updates_may_be_fed_values() -> None:
    x = mg.input("x", (3,), "float64")
    a = mg.variable(np.zeros(3), "a")
    step = mg.function([x], [x], {a: x})
    (found,) = step(np.arange(3.0))
    np.testing.assert_array_equal(found, a.value)


def test_a_failing_node_changes_nothing_and_is_named() -> None:
    n = mg.input("n", (None,), "int64")
    table = mg.parameter(np.zeros((3, 2)), "table")
    counter = mg.variable(0, **COUNTER)
    rows = mg.take(table, n, 0)
    step = mg.function([n], [rows], {counter: counter + 1, table: table + 1.0})
    step([0, 2])
    with pytest.raises(ExecutionError) as caught:
        step([0, 1, 3])
    text = str(caught.value)
    assert "take failed: IndexError: expected indices from -3 to 2; found 3 at position (2,)" in text
    assert f"node: {rows.type} take ({__file__}:{rows.source.line})" in text
    assert "input 0: float64[3, 2] table" in text
    assert isinstance(caught.value.__cause__, IndexError)
    assert counter.value == 1
    assert step.executable.step == 1
    np.testing.assert_array_equal(table.value, np.ones((3, 2)))
    step([1])
    assert counter.value == 2


@pytest.fixture
def own_op():
    """Make a user's op of one input from its forward."""
    made = []

    def make(forward):
        definition = type("of_a_test", (), {"infer": lambda x: x, "forward": staticmethod(forward)})
        made.append(definition)
        return mg.op(definition)

    yield make
    from_registry = mg.op.__globals__["ops"]
    from_registry.pop("of_a_test", None)


def test_an_interrupt_while_computing_changes_nothing(own_op) -> None:
    counter = mg.variable(0.0, "counter", dtype="float64")

    def interrupted(x):
        if x == 1:
            signal.raise_signal(signal.SIGINT)
        return x + 1

    step = mg.function([], [], {counter: own_op(interrupted)(counter)})
    step()
    with pytest.raises(KeyboardInterrupt):
        step()
    assert counter.value == 1
    assert step.executable.step == 1


@pytest.mark.parametrize(
    "forward", [lambda x: x[:1], lambda x: x.astype("f4"), lambda x: 3.0, lambda x: None, lambda x: 1 / 0]
)
def test_a_users_forward_that_breaks_its_promise_is_an_error(own_op, forward) -> None:
    x = mg.input("x", (None,), "float64")
    step = mg.function([x], [own_op(forward)(x)])
    with pytest.raises(ExecutionError, match=r"of_a_test[\s\S]*test_functions_and_state.py"):
        step(np.ones(2))


TRAINING = """
    import numpy as np
    import miai_graph as mg

    x = mg.input("x", (None, 3))
    shapes = [(), (5,), (2, 2), (7,)] * 5
    counters = [mg.variable(np.zeros(shape, "i8"), f"counter {n}") for n, shape in enumerate(shapes)]
    first, second = mg.variable(np.zeros(3), "first"), mg.variable(np.ones(3), "second")
    updates = {counter: counter + 1 for counter in counters} | {first: second, second: first}
    step = mg.function([x], [mg.sum(x)], updates)
    array = np.ones((2, 3), "f4")
    for _ in range(150):
        try:
            print("running", flush=True)
            while True:
                step(array)
        except KeyboardInterrupt:
            counts = {int(element) for counter in counters for element in counter.value.ravel()}
            assert counts == {step.executable.step}, counts
            (count,) = counts
            assert (first.value == count % 2).all() and (second.value == 1 - count % 2).all()
    print("whole")
"""


def test_a_step_commits_whole_however_often_it_is_interrupted() -> None:
    arguments = [sys.executable, "-c", textwrap.dedent(TRAINING)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            number = 0
            while process.stdout.readline() == "running\n":
                time.sleep(0.0005 + 0.000013 * number)
                process.send_signal(signal.SIGINT)
                number += 1
            out, error = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (number, process.returncode) == (150, 0), error
    assert out == ""


def test_what_a_function_needs() -> None:
    x, y = mg.input("x", (None, 3)), mg.input("y", (None, 3))
    w = mg.parameter(np.ones(3, "f4"), "w")
    with pytest.raises(FeedError, match=r"found none for\n  f32\[B,3\] y"):
        mg.function([x], [x + y])
    with pytest.raises(ArgumentError, match=r"mg\.input as inputs; found <variable w"):
        mg.function([x, w], [x * w])
    with pytest.raises(ArgumentError, match="each input once"):
        mg.function([x, x], [x])
    with pytest.raises(DuplicateNameError, match="inputs of different names"):
        mg.function([x, mg.input("x", (3,))], [x])
    with pytest.raises(ExecutorError, match=r"found 'parallel'\. There are: .*'serial'"):
        mg.function([x], [x], executor="parallel")
    with pytest.raises(ExecutorError, match="found 3"):
        mg.function([x], [x], executor=3)
    (unused,) = mg.function([x, y], [x * 2.0])(np.ones((1, 3)), np.ones((1, 3)))
    np.testing.assert_array_equal(unused, [[2, 2, 2]])
    assert repr(mg.function(x, x)) == "<Function (x) of 1 nodes>"


def test_values_are_shared_and_outlive_executors() -> None:
    counter = mg.variable(0, **COUNTER)
    with mg.executor("serial") as own:
        first = mg.function([], [counter], {counter: counter + 1}, executor=own)
        second = mg.function([], [counter], {counter: counter * 10})
        first()
        second()
        first()
        assert counter.value == 11
    with pytest.raises(ExecutorError, match="open"):
        first()
    assert counter.value == 11
    assert second()[0] == 11
    mg.assign(counter, 5)
    assert second()[0] == 5


def test_values_are_copies_and_keep_their_type() -> None:
    source = np.ones(2, "f4")
    w = mg.parameter(source, "w")
    source[:] = 9
    w.value[:] = 7
    np.testing.assert_array_equal(w.value, [1, 1])
    mg.assign(w, np.arange(2))
    assert w.value.dtype == np.float32
    assert mg.parameter(1.0).value.dtype == np.float32
    assert mg.variable(1).value.dtype == np.int64


@pytest.mark.parametrize(
    ("value", "error"),
    [(np.ones(3), ShapeError), (1.0, ShapeError), (np.ones(2, complex), DTypeError), (["a", "b"], DTypeError)],
)
def test_assigning_what_does_not_fit_leaves_the_value(value, error: type[Exception]) -> None:
    w = mg.parameter(np.ones(2, "f4"), "w")
    with pytest.raises(error, match="'w'"):
        mg.assign(w, value)
    np.testing.assert_array_equal(w.value, [1, 1])
    n = mg.variable(3, "n")
    with pytest.raises(DTypeError, match=r"array.astype\('int64'\)"):
        mg.assign(n, 1.5)
    assert n.value == 3


def test_placing_moves_values_and_functions_go_on() -> None:
    variables = [mg.variable(np.full(shape, 2.0), f"v{n}") for n, shape in enumerate([(3,), (), (2, 2), (0,)])]
    integers = mg.variable(7, "integers")
    step = mg.function([], [*variables, integers], {v: v * 2.0 for v in variables} | {integers: integers + 1})
    step()
    blocks = []

    class Elsewhere:
        def allocate(self, size_bytes: int) -> np.ndarray:
            blocks.append(aligned_bytes(size_bytes))
            return blocks[-1]

        def suits(self, pairs) -> bool:
            return any(np.shares_memory(pairs[0][0], block) for block in blocks)

    keys = [variable_of(node) for node in (*variables, integers)]
    generation = state.generation
    state.place(keys, keys, Elsewhere())
    assert state.generation > generation
    assert len(blocks) == 4  # of each dtype one for the values and one for the next ones
    step()
    for variable in variables:
        assert (variable.value == 8).all()
        array = state.array(variable_of(variable))
        assert array.size == 0 or any(np.shares_memory(array, block) for block in blocks)
        assert array.ctypes.data % 64 == 0
    assert integers.value == 9
    generation = state.generation
    state.place(keys)
    assert state.generation == generation


@pytest.mark.parametrize("steps", range(4))
@pytest.mark.parametrize("sets", [False, True])
def test_what_begins_with_zeros_is_moved_once_it_has_changed(steps: int, sets: bool) -> None:
    class Elsewhere:
        def allocate(self, size_bytes: int) -> np.ndarray:
            return aligned_bytes(size_bytes)

        def suits(self, pairs) -> bool:
            return False

    total = variable_of_zeros(TensorType(np.dtype("f4"), (5,)), "total")
    one = mg.parameter(np.ones(5, "f4"), "one")
    step = mg.function([], [], {total: total + one})
    if sets:
        mg.assign(total, np.full(5, 10, "f4"))
    for _ in range(steps):
        step()
    for _ in range(2):
        # A value may lie in the arrays of even versions under the number 0 again.
        state.place([variable_of(total)], memory=Elsewhere())
        np.testing.assert_array_equal(total.value, np.full(5, steps + 10 * sets))
    step()
    np.testing.assert_array_equal(total.value, np.full(5, steps + 10 * sets + 1))


def test_a_state_forgets_variables_that_nobody_refers_to() -> None:
    own = State()
    w = mg.parameter(np.ones(2), "w")
    key = variable_of(w)
    own.add(key, np.ones(2))
    assert key in own
    count = len(own._places)
    del w, key
    assert len(own._places) == count - 1


def test_two_threads_may_call_one_function() -> None:
    x = mg.input("x", (None, 4))
    counter = mg.variable(0, **COUNTER)
    step = mg.function([x], [mg.sum(x)], {counter: counter + 1})

    def work(number: int) -> bool:
        array = np.full((1 + number % 3, 4), number, "f4")
        return all(step(array)[0] == array.sum() for _ in range(50))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(8)))
    assert counter.value == step.timing.steps == 400


def test_building_in_two_threads_gives_unique_names() -> None:
    x = mg.input("x", (None,))
    names: list[str] = []
    threads = [threading.Thread(target=lambda: names.extend(mg.exp(x).name for _ in range(200))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(names)) == 600


def test_the_time_of_all_parts_is_the_time_of_the_calls() -> None:
    x = mg.input("x", (None, 64))
    w = mg.parameter(np.ones((64, 64), "f4"), "w")
    with mg.name_scope("dense"):
        y = mg.tanh(x @ w)
    (g,) = mg.grad(mg.sum(y), [w])
    step = mg.function([x], [mg.sum(y)], {w: w - 1e-6 * g})
    assert step.timing.steps == 0
    assert step.timing.records == ()
    arrays = [np.ones((size, 64), "f4") for size in (200, 300)]
    for array in arrays:
        step(array)
    before = step.timing
    start = time.perf_counter()
    for _ in range(30):
        for array in arrays:
            step(array)
    elapsed = time.perf_counter() - start
    timing = step.timing
    assert timing.steps - before.steps == 60
    assert 0.4 * elapsed < timing.seconds - before.seconds <= elapsed
    assert sum(record.seconds for record in timing.records) == pytest.approx(timing.seconds)
    products = [record for record in timing.records if record.op == "matmul"]
    assert {record.calls for record in timing.records} == {62}
    assert products[0].flops == 31 * 2 * 64 * 64 * (200 + 300)
    assert products[0].layer == "dense"
    assert {record.phase for record in timing.records} == {"forward", "backward", "overhead"}
    assert all(record.min_seconds <= record.seconds / record.calls <= record.max_seconds for record in timing.records)


def test_the_table_of_times() -> None:
    x = mg.input("x", (None, 8))
    with mg.name_scope("head"):
        y = mg.exp(x)
    step = mg.function([x], [mg.sum(y)])
    step(np.ones((2, 8)))
    text = step.timing.format_table("node")
    lines = text.splitlines()
    assert lines[0].startswith("node  ")
    assert lines[0].split()[1:10] == ["op", "calls", "total", "ms", "mean", "µs", "share", "GFLOP/s", "GB/s"]
    assert {line.split()[0] for line in lines[2:-1]} == {"head/exp", "sum", "feed", "commit"}
    assert lines[-1].startswith("1 step in 0.")
    out = io.StringIO()
    step.timing.table("layer", limit=1, file=out)
    assert "(2 more)" in out.getvalue()
    assert str(step.timing).splitlines()[0].split()[0] == "layer"
    with pytest.raises(ArgumentError, match="layer, op, node, phase, worker"):
        step.timing.table("colour")
    assert {record.node for record in step.timing.grouped("phase")} == {"forward", "overhead"}
    assert repr(step.timing).startswith("<Timing of 1 steps")


def test_preparing_is_start_up_and_checking_is_feeding() -> None:
    x = mg.input("x", (None, 4))
    step = mg.function([x], [mg.sum(x)])
    step.executable.warmup(2)
    prepared = step.timing.start_up_seconds
    step(np.ones((2, 4)))
    assert step.timing.start_up_seconds == prepared > 0
    step(np.ones((3, 4)))
    assert step.timing.start_up_seconds > prepared


def test_what_the_machine_can_do_is_measured_when_it_is_looked_at(monkeypatch) -> None:
    step = mg.function([], [mg.parameter(np.ones(2), "w") * 2.0])
    step()
    asked = []
    monkeypatch.setattr("executors.planned.known_peaks", lambda threads: (asked.append(threads), (3e9, 2e9))[1])
    timing = step.timing
    assert timing.grouped("node")
    (known,) = timing.unmeasured_workers
    assert (known.flops_per_second, asked) == (None, [])
    for _ in range(2):
        (worker,) = timing.workers
        assert (worker.flops_per_second, worker.bytes_per_second) == (3e9, 2e9)
    assert len(asked) == 1


def test_a_node_named_like_an_overhead_is_booked_apart() -> None:
    x = mg.input("x", (None, 4))
    step = mg.function([x], [mg.exp(x, name="feed"), mg.exp(-x, name="commit")])
    step(np.ones((2, 4)))
    assert sorted(record.node for record in step.timing.records) == ["commit", "commit", "feed", "feed", "negative"]


def test_nothing_is_left_of_functions_that_are_dropped() -> None:
    def build() -> tuple[weakref.ref, ...]:
        x = mg.input("x", (None, 4))
        w = mg.parameter(np.ones((4, 4), "f4"), "w")
        loss = mg.mean(mg.relu(x @ w))
        step = mg.function([x], [loss], {w: w - mg.grad(loss, [w])[0]})
        step(np.ones((2, 4)))
        return weakref.ref(step), weakref.ref(loss), weakref.ref(variable_of(w))

    gc.collect()
    gc.disable()
    try:
        assert all(reference() is None for reference in build())
    finally:
        gc.enable()
