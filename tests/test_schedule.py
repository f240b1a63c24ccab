"""Pipeline schedules: that each order can go on, what it keeps, and how long it takes on a virtual clock."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miai_graph.errors import ArgumentError
from miai_graph.plan.schedule import (
    BACKWARD_SWEEP,
    FORWARD_SWEEP,
    KINDS,
    Task,
    bubble,
    choose_ahead,
    choose_parts,
    in_flight,
    schedule,
    schedules,
    simulate,
)

F, B = FORWARD_SWEEP, BACKWARD_SWEEP
kinds = st.sampled_from(KINDS)
stage_counts = st.integers(1, 8)
part_counts = st.integers(1, 20)
aheads = st.integers(0, 3)


def training(stages: int) -> list[tuple[int, ...]]:
    """Forward and backward pass on all stages, as one task on the last."""
    return [*[(F, B)] * (stages - 1), (F,)]


def seconds_of(stages: int, forward: float, backward: float):
    """What tasks take where all stages are equal, and the last one has both passes in one task."""

    def seconds(stage: int, task: Task) -> float:
        if stage == stages - 1:
            return forward + backward
        return backward if task.sweep == B else forward

    return seconds


def shown(tasks: list[Task]) -> str:
    return " ".join(f"{'FB'[task.sweep]}{task.part}" for task in tasks)


def test_the_orders_of_three_stages() -> None:
    assert [shown(tasks) for tasks in schedules("1f1b", training(3), 4)] == [
        "F0 F1 F2 B0 F3 B1 B2 B3",
        "F0 F1 B0 F2 B1 F3 B2 B3",
        "F0 F1 F2 F3",
    ]
    assert [shown(tasks) for tasks in schedules("gpipe", training(3), 3)] == [
        "F0 F1 F2 B0 B1 B2",
        "F0 F1 F2 B0 B1 B2",
        "F0 F1 F2",
    ]
    assert [shown(tasks) for tasks in schedules("1f1b", training(3), 5, ahead=2)] == [
        "F0 F1 F2 F3 F4 B0 B1 B2 B3 B4",
        "F0 F1 F2 B0 F3 B1 F4 B2 B3 B4",
        "F0 F1 F2 F3 F4",
    ]


@given(kinds, st.lists(st.sets(st.integers(0, 1)), min_size=1, max_size=8), part_counts, aheads)
def test_any_stages_with_forward_or_backward_tasks_can_go_on(kind, sweeps, parts, ahead) -> None:
    orders = schedules(kind, sweeps, parts, ahead=ahead)
    for own, tasks in zip(sweeps, orders, strict=True):
        assert Counter(tasks) == Counter(Task(sweep, part) for sweep in own for part in range(parts))
    simulate(orders, lambda stage, task: 1, send_seconds=1)


@given(kinds, st.lists(st.sets(st.integers(0, 4)), min_size=1, max_size=6), st.integers(1, 6), aheads)
def test_data_may_go_to_and_fro_more_often(kind, sweeps, parts, ahead) -> None:
    orders = schedules(kind, sweeps, parts, ahead=ahead)
    assert sum(map(len, orders)) == parts * sum(map(len, sweeps))
    simulate(orders, lambda stage, task: 1)


@given(kinds, stage_counts, part_counts, aheads)
def test_tasks_start_when_what_they_need_is_there(kind, stages, parts, ahead) -> None:
    found = simulate(schedules(kind, training(stages), parts, ahead=ahead), seconds_of(stages, 2, 3), 1)
    for stage in range(stages - 1):
        for part in range(parts):
            assert found.starts[stage + 1][Task(F, part)] >= found.ends[stage][Task(F, part)] + 1
            above = Task(F if stage == stages - 2 else B, part)
            assert found.starts[stage][Task(B, part)] >= found.ends[stage + 1][above] + 1
    for starts, ends in zip(found.starts, found.ends, strict=True):
        assert all(start >= end for start, end in zip(list(starts.values())[1:], ends.values(), strict=False))


@given(kinds, stage_counts, part_counts, aheads)
def test_a_last_stage_may_have_two_tasks(kind, stages, parts, ahead) -> None:
    sweeps = [(F, B)] * stages
    found = simulate(schedules(kind, sweeps, parts, ahead=ahead), lambda stage, task: 1)
    assert found.seconds >= 2 * (parts + stages - 1)
    if kind == "1f1b" and not ahead:
        assert found.seconds == 2 * (parts + stages - 1)


@given(stage_counts, part_counts, aheads)
def test_1f1b_keeps_no_more_parts_than_stages(stages, parts, ahead) -> None:
    for stage, tasks in enumerate(schedules("1f1b", [(F, B)] * stages, parts, ahead=ahead)):
        least = min(stages - stage, parts)
        assert least <= in_flight(tasks) <= min(least + ahead, parts)
        if stage == stages - 1:
            assert in_flight(tasks) == 1
    assert in_flight(schedule("1f1b", 0, stages, parts, (F, B), ahead=ahead)) == (
        min(stages + ahead, parts) if stages > 1 else 1
    )


@given(stage_counts, part_counts)
def test_gpipe_keeps_all_parts(stages, parts) -> None:
    assert in_flight(schedule("gpipe", 0, stages, parts, (F, B))) == parts


def test_what_is_kept_without_a_backward_pass() -> None:
    assert in_flight(schedule("1f1b", 0, 3, 8, (F,))) == 1
    assert in_flight([]) == 0
    assert in_flight([Task(0, 0), Task(0, 1), Task(1, 1), Task(2, 1), Task(1, 0)]) == 2


@given(kinds, stage_counts, part_counts, st.integers(1, 9), st.integers(1, 9))
def test_equal_stages_have_exactly_the_bubble(kind, stages, parts, forward, backward) -> None:
    found = simulate(schedules(kind, training(stages), parts), seconds_of(stages, forward, backward))
    assert found.seconds == (parts + stages - 1) * (forward + backward)
    assert found.bubbles == [bubble(stages, parts)] * stages


def test_a_forward_pass_alone() -> None:
    found = simulate(schedules("1f1b", [(F,)] * 3, 4), lambda stage, task: 1)
    assert (found.seconds, found.bubbles) == (6, [bubble(3, 4)] * 3)


def test_uneven_stages_and_messages() -> None:
    found = simulate(schedules("gpipe", [(F,), (F,)], 2), lambda stage, task: (1, 3)[stage], send_seconds=2)
    assert found.starts == [{Task(F, 0): 0, Task(F, 1): 1}, {Task(F, 0): 3, Task(F, 1): 6}]
    assert found.ends[1] == {Task(F, 0): 6, Task(F, 1): 9}
    assert found.bubbles == [7 / 9, 3 / 9]


def test_messages_travel_one_after_another() -> None:
    found = simulate(schedules("gpipe", [(F,), (F,)], 3), lambda stage, task: 1, send_seconds=5)
    assert list(found.starts[1].values()) == [6, 11, 16]


def test_nothing_takes_no_time() -> None:
    assert simulate([[], []], lambda stage, task: 1).seconds == 0
    assert simulate(schedules("gpipe", [(F,)], 2), lambda stage, task: 0).bubbles == [0.0]


def test_an_order_that_waits_for_ever_is_named() -> None:
    both = [Task(F, 0), Task(F, 1)]
    with pytest.raises(ArgumentError, match="stage 0 does, for what it needs for part 0 of sweep 1"):
        simulate([[Task(F, 0), Task(B, 0), Task(F, 1)], [both[1], both[0]]], lambda stage, task: 1)
    with pytest.raises(ArgumentError, match="part 0 of sweep 0 twice on stage 0"):
        simulate([[Task(F, 0), Task(F, 0)]], lambda stage, task: 1)


@pytest.mark.parametrize(
    "arguments",
    [
        ("zigzag", 0, 2, 4, (F, B)),
        ("1f1b", 2, 2, 4, (F, B)),
        ("1f1b", -1, 2, 4, (F, B)),
        ("gpipe", 0, 2, 0, (F, B)),
    ],
)
def test_arguments_are_checked(arguments) -> None:
    with pytest.raises(ArgumentError, match="expected"):
        schedule(*arguments)
    with pytest.raises(ArgumentError, match="-1 ahead"):
        schedule("1f1b", 0, 2, 4, (F, B), ahead=-1)
    with pytest.raises(ArgumentError, match="'zigzag'"):
        schedules("zigzag", [(F, 2)], 4)


@given(stage_counts, st.integers(1, 64), st.floats(0, 10), st.floats(0, 1))
def test_the_number_of_parts_is_the_best(stages, batch_size, stage_seconds, overhead_seconds) -> None:
    def step_seconds(parts: int) -> float:
        return (parts + stages - 1) * (stage_seconds / parts + overhead_seconds)

    found = choose_parts(stages, batch_size, stage_seconds, overhead_seconds)
    assert 1 <= found <= batch_size
    assert step_seconds(found) <= min(map(step_seconds, range(1, batch_size + 1))) * (1 + 1e-9)


def test_numbers_of_parts() -> None:
    assert choose_parts(1, 256, 1.0, 0.0) == 1
    assert choose_parts(2, 256, 1.0, 0.0) == 256
    assert choose_parts(2, 256, 0.2, 0.002) == 10
    assert choose_parts(4, 1, 1.0, 0.01) == 1


@given(st.integers(2, 6), st.integers(1, 16), st.integers(1, 3), st.integers(1, 3), st.integers(0, 12))
def test_sending_is_hidden_by_going_ahead(stages, parts, forward, backward, quarters) -> None:
    """As long as a link is not slower than a stage, the step is as fast as with any number of parts ahead."""
    send_seconds = min(quarters / 4, forward + backward)

    def step_seconds(ahead: int) -> float:
        orders = schedules("1f1b", training(stages), parts, ahead=ahead)
        return simulate(orders, seconds_of(stages, forward, backward), send_seconds).seconds

    chosen = choose_ahead(stages, parts, forward + backward, send_seconds)
    assert step_seconds(chosen) == pytest.approx(min(map(step_seconds, range(3 * stages + 1))))
    exposed = 2 * (stages - 1) * send_seconds
    assert step_seconds(chosen) <= (parts + stages - 1) * (forward + backward) + exposed + 1e-9


def test_nothing_is_ahead_where_sending_is_free() -> None:
    assert choose_ahead(4, 8, 0.1, 0.0) == 0
    assert choose_ahead(1, 8, 0.1, 0.5) == 0
    assert choose_ahead(4, 1, 0.1, 0.5) == 0
    assert choose_ahead(2, 8, 0.1, 0.02) == 1
    assert choose_ahead(2, 8, 0.1, 0.08) == 2
    assert choose_ahead(2, 8, 0.0, 0.08) == 1
