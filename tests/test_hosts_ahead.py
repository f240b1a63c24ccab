"""Steps that hosts begin before the step before them is committed: what that may never change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future

import numpy as np
import pytest
from faulty_ops import same
from hosts_faults import Layered, Unreliable, assert_close, batch, undisturbed

import miai_graph as mg
from executors import Hosts, Serial
from executors.hosts.cluster import Message
from executors.hosts.foresight import LONGEST_PAUSE, Foresight
from executors.hosts.in_process import InProcessCluster
from miai_graph.errors import ExecutionError

STEPS = 12
HOSTS = 2


@mg.op
class picky:
    """The identity, except that it fails on numbers above 1000."""

    def infer(x):
        return x

    def forward(x):
        if x.max() > 1000:
            raise ValueError("expected small numbers")
        return x.copy()

    def vjp(g, output, x):
        return [g]

    batch = mg.placement.elementwise


class Watched(InProcessCluster):
    """Hosts in this process. Notes which steps are ordered ahead.

    Attributes
    ----------
    ordered : the tickets of steps, with whether they were ordered ahead
    """

    def __init__(self, hosts: int = HOSTS) -> None:
        self.ordered: dict[int, bool] = {}
        super().__init__(hosts)

    def call(self, address: str, name: str, message: Message | None = None) -> Future[Message]:
        if name == "run" and message is not None:
            self.ordered[message.content["ticket"]] = message.content["is_ahead"]
        return super().call(address, name, message)

    @property
    def ahead(self) -> int:
        return sum(self.ordered.values())


@pytest.fixture
def cluster() -> Iterator[Watched]:
    with Watched() as cluster:
        yield cluster


@pytest.fixture(params=[(2, 1), (1, 2)], ids=["stages", "replicas"])
def hosts(request: pytest.FixtureRequest, cluster: Watched) -> Iterator[Hosts]:
    stages, replicas = request.param
    with Hosts(cluster, stages, replicas, micro_batches=2) as executor:
        yield executor


def run(step: mg.Function, numbers: range, between: Callable[[int], object] = lambda number: None) -> list[float]:
    """A step on each of these batches, from an iterator. Returns the losses."""
    losses = []
    for number, (loss,) in zip(numbers, step.executable.run(map(batch, numbers)), strict=False):
        losses.append(float(loss))
        between(number)
    return losses


def test_all_steps_but_the_first_and_those_behind_a_look_at_the_cut_are_ordered_ahead(
    hosts: Hosts, cluster: Watched
) -> None:
    model = Layered()
    run(model.function(hosts), range(STEPS))
    assert len(cluster.ordered) == STEPS
    assert cluster.ahead == STEPS - 2
    assert_close(model.values(), undisturbed(range(STEPS)))


def test_steps_by_hand_are_not_ordered_ahead(hosts: Hosts, cluster: Watched) -> None:
    step = Layered().function(hosts)
    for number in range(3):
        step(*batch(number))
    assert cluster.ahead == 0


def test_predictions_are_ordered_ahead(hosts: Hosts, cluster: Watched) -> None:
    model = Layered()
    losses = run(model.evaluation(hosts), range(5))
    with Serial() as serial:
        np.testing.assert_allclose(losses, run(model.evaluation(serial), range(5)), rtol=1e-5)
    assert cluster.ahead == 4


def set_rate(model: Layered, number: int) -> None:
    mg.assign(model.rate, np.float64(0.1 / (number + 1)))


def test_values_that_are_set_after_each_step_hold_for_the_next(hosts: Hosts, cluster: Watched) -> None:
    model, twin = Layered(), Layered()
    losses = run(model.function(hosts), range(STEPS), lambda number: set_rate(model, number))
    with Serial() as serial:
        expected = run(twin.function(serial), range(STEPS), lambda number: set_rate(twin, number))
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert_close(model.values(), twin.values())
    assert cluster.ahead <= STEPS // 2


def test_values_that_are_read_after_each_step_are_those_of_that_step(hosts: Hosts, cluster: Watched) -> None:
    model, twin = Layered(), Layered()
    seen: list[np.ndarray] = []
    expected: list[np.ndarray] = []
    run(model.function(hosts), range(STEPS), lambda number: seen.append(model.parameters[number % 5].value))
    with Serial() as serial:
        run(twin.function(serial), range(STEPS), lambda number: expected.append(twin.parameters[number % 5].value))
    assert_close(seen, expected)


def test_another_function_on_the_same_hosts_between_steps(hosts: Hosts) -> None:
    model, twin = Layered(), Layered()
    evaluate = model.evaluation(hosts)
    seen: list[float] = []
    expected: list[float] = []
    run(model.function(hosts), range(STEPS), lambda number: seen.append(float(evaluate(*batch(99))[0])))
    with Serial() as serial:
        check = twin.evaluation(serial)
        run(twin.function(serial), range(STEPS), lambda number: expected.append(float(check(*batch(99))[0])))
    np.testing.assert_allclose(seen, expected, rtol=1e-4)


def test_two_iterations_in_turns(hosts: Hosts) -> None:
    model = Layered()
    step = model.function(hosts)
    even = step.executable.run(map(batch, range(0, STEPS, 2)))
    odd = step.executable.run(map(batch, range(1, STEPS, 2)))
    for number in range(STEPS):
        next(odd if number % 2 else even)
    assert_close(model.values(), undisturbed(range(STEPS)))


def test_an_iteration_that_is_left_has_made_the_steps_that_were_taken(hosts: Hosts, cluster: Watched) -> None:
    model = Layered()
    step = model.function(hosts)
    for number, _ in enumerate(step.executable.run(map(batch, range(STEPS)))):
        if number == 2:
            break
    assert step.executable.step == 3
    assert hosts.session.ahead == []
    assert_close(model.values(), undisturbed(range(3)))
    run(step, range(3, STEPS))
    assert_close(model.values(), undisturbed(range(STEPS)))


def test_an_iteration_that_is_kept_but_not_gone_on_with_keeps_nobody_waiting(hosts: Hosts) -> None:
    model = Layered()
    step = model.function(hosts)
    kept = step.executable.run(map(batch, range(STEPS)))
    next(kept)
    assert_close(model.values(), undisturbed(range(1)))
    for number in range(1, 4):
        step(*batch(number))
    assert_close(model.values(), undisturbed(range(4)))
    kept.close()
    assert_close(model.values(), undisturbed(range(4)))


def picky_model() -> tuple[Layered, mg.Node]:
    model = Layered()
    x = picky(model.x)
    return model, mg.mean(
        mg.sparse_softmax_cross_entropy(mg.relu(x @ model.parameters[0]) @ np.ones((8, 3), "f4"), model.y)
    )


@pytest.mark.parametrize("between", [False, True], ids=["", "with another function between"])
def test_a_step_that_fails_ahead_fails_in_its_turn(hosts: Hosts, between: bool) -> None:
    model, loss = picky_model()
    w = model.parameters[0]
    (gradient,) = mg.grad(loss, [w])
    step = mg.function([model.x, model.y], [loss], {w: w - 0.1 * gradient}, hosts)
    evaluate = model.evaluation(hosts)
    good, other = batch(0), batch(1)
    bad = good[0] * 1e6, good[1]
    taken = step.executable.run(iter([good, other, bad, good]))
    for _ in range(2):
        next(taken)
        if between:
            evaluate(*good)
    value = w.value
    with pytest.raises(ExecutionError, match=r"expected small numbers[\s\S]*host: "):
        next(taken)
    assert step.executable.step == 2
    same([w.value], [value])
    step(*good)
    assert step.executable.step == 3


@pytest.mark.parametrize("place", [3, 7, 12, 20])
def test_a_host_that_is_lost_while_steps_are_ordered_ahead(place: int) -> None:
    model = Layered()
    with Unreliable(3, ("run", place)) as cluster, Hosts(cluster, 2, 1, micro_batches=2) as executor:
        run(model.function(executor), range(STEPS))
        assert cluster.all_happened
        assert_close(model.values(), undisturbed(range(STEPS)))


@pytest.mark.parametrize("are_lost", [False, True], ids=["", "after a loss"])
def test_what_was_timed_can_be_read_when_the_executor_is_closed(are_lost: bool) -> None:
    model = Layered()
    with Watched() as cluster:
        with Hosts(cluster, 2) as executor:
            step = model.function(executor)
            run(step, range(STEPS))
            before = step.timing
            if are_lost:
                cluster.kill(cluster.addresses[0])
        after = step.timing
        assert before.steps == STEPS
        if are_lost:
            # Values that are brought home may have to be computed anew.
            assert STEPS <= after.steps <= 2 * STEPS
            assert {record.node for record in before.records} <= {record.node for record in after.records}
        else:
            assert (after.steps, after.records) == (STEPS, before.records)
        assert {piece.step for piece in after.slices} == {0, STEPS - 1}


def test_after_steps_that_were_ordered_in_vain_there_are_longer_and_longer_pauses() -> None:
    foresight = Foresight()
    pauses, length = [], 0
    while len(pauses) < 9:
        if foresight.allows():
            pauses.append(length)
            foresight.was_wrong()
            length = 0
        else:
            length += 1
    assert pauses == [0, 1, 3, 7, 15, 31, 63, LONGEST_PAUSE, LONGEST_PAUSE]
    foresight.was_right()
    foresight.was_wrong()
    assert [foresight.allows() for _ in range(2)] == [False, True]
