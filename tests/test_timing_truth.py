"""Whether what is timed is true: waits at barriers, sums, and traces of single steps, on each executor."""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from slow_op import SECONDS_PER_ROW, sleeping, slowed

import miai_graph as mg
from executors import Hosts, Processes, Serial
from executors.hosts.in_process import InProcessCluster
from executors.processes import choice
from miai_graph import layers
from miai_graph.context import COMMUNICATION, WAIT
from miai_graph.errors import ArgumentError, ModelError
from miai_graph.executor import Executor
from miai_graph.timing import Timing, TimingRecord, traces
from miai_graph.timing.records import CALLBACKS, DATA, HISTOGRAM_BINS, IDLE, LOOP, VALIDATION
from miai_graph.timing.traces import SLICES_LIMIT, TraceChoice

SLEEP_SECONDS = 0.02
STEPS = 6
ATTEMPTS = 5
ROWS = 24

MAKERS: dict[str, Callable[[], Executor]] = {
    "serial": Serial,
    "processes": lambda: Processes(2, wait_for_workers=True),
    "hosts": lambda: Hosts(InProcessCluster(2), stages=2, micro_batches=2),
}


@pytest.fixture(params=MAKERS)
def executor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Executor]:
    # Small as the graphs are, all workers take part.
    monkeypatch.setattr(choice, "candidates", lambda most: [most])
    monkeypatch.setattr("executors.processes.executable.candidates", lambda most: [most])
    with MAKERS[request.param]() as made:
        yield made


def sleeping_model(executor: Executor, seconds: float = SLEEP_SECONDS) -> mg.Sequential:
    """Two layers, with a node between them that sleeps."""

    class Sleep(layers.Layer):
        def call(self, x):
            return sleeping(x, seconds=seconds, name="sleep")

    model = mg.Sequential([layers.Input((8,)), layers.Dense(16, "relu"), Sleep(), layers.Dense(3)])
    model.compile("sgd", mg.losses.SparseCategoricalCrossentropy(from_logits=True), executor=executor)
    return model


def data(samples: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((samples, 8)).astype("f4"), rng.integers(0, 3, samples)


def sleeping_step(executor: Executor) -> mg.Function:
    x, w = mg.input("x", (None, 8)), mg.parameter(np.ones((8, 8), "f4"), "w")
    y = sleeping(mg.tanh(x @ w), seconds=SLEEP_SECONDS, name="sleep")
    loss = mg.mean(y * y)
    (g,) = mg.grad(loss, [w])
    return mg.function([x], [loss], {w: w - 0.1 * g}, executor=executor)


def sums(timing: Timing) -> dict[int, float]:
    result: dict[int, float] = defaultdict(float)
    for record in timing.records:
        result[record.worker] += record.seconds
    return result


def of_phase(timing: Timing, phase: str, worker: int) -> float:
    return sum(record.seconds for record in timing.records if (record.phase, record.worker) == (phase, worker))


def of_node(timing: Timing, name: str) -> list[TimingRecord]:
    return [record for record in timing.records if record.node == name]


def assert_sums_close(
    measure: Callable[[], tuple[Timing, float]], is_right: Callable[[Timing], bool] = lambda timing: True
) -> Timing:
    """Each worker's records sum to the time on the wall, and this is what a clock around it all shows.

    Another program may take the time between two looks at the clock, so there are several attempts.

    Parameters
    ----------
    is_right : what else must be true of one and the same attempt
    """
    for _ in range(ATTEMPTS):
        timing, seconds = measure()
        assert sums(timing).keys() == {worker.index for worker in timing.workers}
        for booked in sums(timing).values():
            assert booked == pytest.approx(timing.wall_seconds, rel=0.01)
        if timing.wall_seconds + timing.start_up_seconds == pytest.approx(seconds, rel=0.01) and is_right(timing):
            return timing
    pytest.fail(
        f"expected {seconds} s to be booked; found {timing.wall_seconds} + {timing.start_up_seconds}:\n"
        f"{timing.format_table('phase')}"
    )


class TestFigures:
    def test_waiting_at_a_barrier_is_waiting(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("executors.processes.executable.candidates", lambda most: [most])
        x, w = mg.input("x", (None, 8)), mg.parameter(np.ones((8, 8), "f4"), "w")
        with Processes(2, wait_for_workers=True) as executor:
            for slow, quick in ((0, 1), (1, 0)):
                y = slowed(mg.tanh(x @ w), pid=executor.workers[slow].pid)
                (g,) = mg.grad(mg.mean(y * y), [w])
                step = mg.function([x], [], {w: w - 0.1 * g}, executor=executor)
                step(np.ones((2 * ROWS, 8), "f4"))
                step.executable.reset_timing()
                for _ in range(STEPS):
                    step(np.ones((2 * ROWS, 8), "f4"))
                timing = step.timing
                late = STEPS * ROWS * SECONDS_PER_ROW
                assert of_phase(timing, WAIT, quick) > 0.8 * late
                assert of_phase(timing, WAIT, slow) < 0.2 * late
                computed = of_phase(timing, "forward", quick) + of_phase(timing, "backward", quick)
                assert computed + of_phase(timing, COMMUNICATION, quick) < 0.2 * late

    def test_calls_are_counted_by_the_time_they_took(self, executor: Executor) -> None:
        step = sleeping_step(executor)
        for _ in range(STEPS):
            step(np.ones((ROWS, 8), "f4"))
        timing = step.timing
        for record in timing.records:
            if record.histogram:
                assert len(record.histogram) == HISTOGRAM_BINS
                assert sum(record.histogram) == record.calls
        (record, *_) = of_node(timing, "sleep")
        least, most = (int(seconds * 1e9).bit_length() - 1 for seconds in (record.min_seconds, record.max_seconds))
        counted = np.flatnonzero(record.histogram)
        assert (counted[0], counted[-1]) == (least, most)

    def test_memory_of_values(self) -> None:
        x = mg.input("x", (None, 8))
        y = mg.exp(x, name="own")
        z = mg.tanh(mg.reshape(y, (None, 2, 4)), name="in_place")
        step = mg.function([x], [mg.sum(z)])
        step(np.ones((ROWS, 8), "f4"))
        found = {record.node: record.memory_bytes for record in step.timing.records}
        assert found["own"] == ROWS * 8 * 4
        assert found["sum"] == 4
        assert found["in_place"] == found["feed"] == found["commit"] == 0
        step(np.ones((2 * ROWS, 8), "f4"))
        (record,) = of_node(step.timing, "own")
        assert record.memory_bytes == 2 * ROWS * 8 * 4


class TestSums:
    def test_of_calls(self, executor: Executor) -> None:
        step = sleeping_step(executor)
        step(np.ones((ROWS, 8), "f4"))

        def measure() -> tuple[Timing, float]:
            step.executable.reset_timing()
            seconds = 0.0
            for _ in range(STEPS):
                start = time.perf_counter()
                step(np.ones((ROWS, 8), "f4"))
                seconds += time.perf_counter() - start
            return step.timing, seconds

        timing = assert_sums_close(measure)
        assert timing.steps == STEPS
        assert timing.graph is not None
        names = set(timing.graph.names.values())
        assert {record.node for record in timing.records if record.flops and record.phase != COMMUNICATION} <= names

    def test_of_training(self, executor: Executor) -> None:
        """What is beside the steps is booked in the process that does it, and what is left is idle time."""

        spent: Counter[str] = Counter()

        def sleep(purpose: str) -> None:
            start = time.perf_counter()
            time.sleep(SLEEP_SECONDS)
            spent[purpose] += time.perf_counter() - start

        class Slow(mg.callbacks.Callback):
            def on_train_begin(self, logs=None):
                # The look at the first batch is before training begins.
                spent.clear()

            def on_epoch_end(self, epoch, logs=None):
                sleep("callbacks")

        x, y = data(3 * ROWS)

        class Batches:
            def __iter__(self):
                for first in range(0, len(x), ROWS):
                    sleep("data")
                    yield x[first : first + ROWS], y[first : first + ROWS]

        model = sleeping_model(executor)

        def measure() -> tuple[Timing, float]:
            start = time.perf_counter()
            history = model.fit(Batches(), epochs=2, verbose=0, callbacks=[Slow()], validation_data=(x, y))
            return history.timing, time.perf_counter() - start

        caller = 2 if executor.name == "hosts" else 0

        def is_where_it_was_spent(timing: Timing) -> bool:
            extra = [of_phase(timing, phase, caller) - spent[phase] for phase in (DATA, CALLBACKS)]
            assert min(extra) >= 0
            return max(extra) < 0.5 * SLEEP_SECONDS

        timing = assert_sums_close(measure, is_where_it_was_spent)
        assert timing.steps == 6
        assert timing.workers[caller].pid == os.getpid()
        (validation,) = [record for record in of_node(timing, "validation") if record.worker == caller]
        assert (validation.phase, validation.calls) == (VALIDATION, 2)
        assert of_phase(timing, LOOP, caller) < 0.2 * timing.wall_seconds
        hosts = {worker.index: worker.host for worker in timing.workers}
        assert all(record.host == hosts[record.worker] for record in timing.records)

    def test_what_is_done_after_training_is_none_of_its_steps(self) -> None:
        with Serial() as executor:
            timing = sleeping_model(executor, 1e-4).fit(*data(2 * ROWS), ROWS, verbose=0).timing
        assert not of_node(timing, "timing")

    def test_timing_can_be_read_while_training_goes_on(self) -> None:
        found: list[Timing] = []

        class Reader(mg.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                found.append(self.model.history.timing)

        with Serial() as executor:
            history = sleeping_model(executor, 1e-4).fit(
                *data(2 * ROWS), ROWS, epochs=2, verbose=0, callbacks=[Reader()]
            )
        assert [timing.steps for timing in found] == [2, 4]
        assert history.timing.steps == 4
        assert found[0].wall_seconds < found[1].wall_seconds <= history.timing.wall_seconds
        with pytest.raises(ModelError, match="has not begun"):
            _ = mg.callbacks.History().timing


class TestTraces:
    def test_first_last_and_those_asked_for(self, executor: Executor) -> None:
        model = sleeping_model(executor, 1e-3)
        x, y = data(4 * ROWS)
        for _ in range(2):
            timing = model.fit(x, y, ROWS, epochs=3, verbose=0, trace_steps=[3, 5, 400]).timing
            # A step alone on another machine has no slice of this process.
            workers = {0} if executor.name == "serial" else {0, 1}
            assert {(piece.step, piece.worker) for piece in timing.slices} == {
                (step, worker) for step in (0, 3, 5, 11) for worker in workers
            }
            assert {piece.step for piece in model.fit(x, y, ROWS, verbose=0).timing.slices} == {0, 3}

    def test_a_trace_tells_what_the_records_tell(self, executor: Executor) -> None:
        step = sleeping_step(executor)
        step(np.ones((ROWS, 8), "f4"))
        timing = step.timing
        sliced: Counter[tuple[str, str, int]] = Counter()
        for piece in timing.slices:
            sliced[piece.node, piece.phase, piece.worker] += piece.seconds
        booked: Counter[tuple[str, str, int]] = Counter()
        phases = {record.node: record.phase for record in timing.records}
        for record in timing.records:
            if record.phase != IDLE:
                # A slice is of the node that stands for all that its kernel computes, reductions among them.
                phase = phases[record.kernel] if record.kernel else record.phase
                booked[record.kernel or record.node, phase, record.worker] += record.seconds
        assert sliced.keys() == booked.keys()
        for key, seconds in booked.items():
            assert sliced[key] == pytest.approx(seconds, abs=1e-8)
        assert min(piece.start_seconds for piece in timing.slices) == 0
        ends = max(piece.start_seconds + piece.seconds for piece in timing.slices)
        assert ends <= timing.wall_seconds + 2 * max(piece.uncertainty_seconds for piece in timing.slices) + 1e-8
        for worker in {piece.worker for piece in timing.slices}:
            assert_one_after_the_other([piece for piece in timing.slices if piece.worker == worker])

    def test_each_message_is_sent_and_received(self) -> None:
        with MAKERS["hosts"]() as executor:
            step = sleeping_step(executor)
            for _ in range(3):
                step(np.ones((ROWS, 8), "f4"))
            timing = step.timing
        linked = defaultdict(list)
        for piece in timing.slices:
            if piece.link is not None:
                linked[piece.link].append(piece)
        assert len(linked) >= 4
        for pieces in linked.values():
            send, receive = sorted(pieces, key=lambda piece: piece.phase)
            assert (send.phase, receive.phase) == (COMMUNICATION, WAIT)
            assert (send.step, send.micro_batch) == (receive.step, receive.micro_batch)
            assert send.worker != receive.worker
            assert send.start_seconds < receive.start_seconds + receive.seconds + 2 * send.uncertainty_seconds
        assert {piece.micro_batch for piece in timing.slices if piece.node == "sleep"} == {0, 1}

    def test_clocks_are_as_far_apart_as_is_said(self) -> None:
        """Hosts that are objects in this process have its clock."""
        with MAKERS["hosts"]() as executor:
            step = sleeping_step(executor)
            step(np.ones((ROWS, 8), "f4"))
            for _ in range(2):
                executor.crew._watch.look()
            for host in executor.crew.hosts:
                clock = executor.crew.clock(host.address).aged()
                later = executor.crew.clock(host.address).aged()
                assert abs(clock.nanoseconds) <= clock.uncertainty < 1e7
                assert later.uncertainty >= clock.uncertainty
            uncertainties = {piece.uncertainty_seconds for piece in step.timing.slices}
        assert 0 < min(uncertainties) <= max(uncertainties) < 1e-2

    def test_there_is_a_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with Serial() as executor:
            model = sleeping_model(executor, 1e-4)
            x, y = data(10 * ROWS)
            whole = model.fit(x, y, ROWS, verbose=0, trace_steps=range(10)).timing
            assert {piece.step for piece in whole.slices} == set(range(10))
            assert not whole.notes
            monkeypatch.setattr(traces, "SLICES_LIMIT", len(whole.slices) * 4 // 10)
            part = model.fit(x, y, ROWS, verbose=0, trace_steps=range(10)).timing
        shown = {piece.step for piece in part.slices}
        assert {0, 9} <= shown
        assert 4 <= len(shown) <= 6
        assert any("trace_steps names" in note for note in part.notes)

    def test_memory_does_not_grow_with_steps(self) -> None:
        chosen = TraceChoice(wanted=range(10**9))
        for number in range(0, 10**6, 100):
            chosen.takes(number, slices=1000)
        assert len(chosen.shown(10**6)) <= SLICES_LIMIT // 1000 + 2

    @pytest.mark.parametrize("wrong", [5, "5", [-1], [1.5], [True], range(-2, 3)])
    def test_what_is_no_step_is_refused(self, wrong: object) -> None:
        expected = r"trace_steps to be a range or a collection .*=range\(5, 8\)"
        with Serial() as executor, pytest.raises(ArgumentError, match=expected):
            sleeping_model(executor).fit(*data(ROWS), verbose=0, trace_steps=wrong)


def assert_one_after_the_other(pieces: Sequence[mg.timing.Slice]) -> None:
    for piece, following in itertools.pairwise(pieces):
        assert piece.start_seconds + piece.seconds == pytest.approx(following.start_seconds, abs=1e-8)
