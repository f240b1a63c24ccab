"""Memory and order: buffers never overlap while they live, and nothing is overwritten that is still needed."""

from __future__ import annotations

import numpy as np
import pytest
from drawn_graphs import DrawnGraph, drawn_graphs
from hypothesis import given, settings
from hypothesis import strategies as st

import miai_graph as mg
from miai_graph.errors import ExecutionError
from miai_graph.kernels.compiler.native import processor
from miai_graph.kernels.numpy_kernels import ROWS_ADDED_AT_ONCE
from miai_graph.ops.leaves import variable_of
from miai_graph.plan.bound import BoundPlan
from miai_graph.plan.memory import Lifetime, Workspace, assign_offsets
from miai_graph.plan.program import Storage, make_program
from miai_graph.state import ALIGNMENT_BYTES, state


@st.composite
def lifetimes(draw: st.DrawFn) -> list[Lifetime]:
    spans = draw(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 8), st.integers(0, 400)), max_size=30))
    return [Lifetime(first, first + length, size) for first, length, size in sorted(spans)]


@given(lifetimes())
def test_buffers_that_live_together_lie_apart(spans: list[Lifetime]) -> None:
    offsets, end = assign_offsets(spans)
    for place, (first, offset) in enumerate(zip(spans, offsets, strict=True)):
        assert offset % ALIGNMENT_BYTES == 0
        assert offset + first.size_bytes <= end
        for second, other in zip(spans[:place], offsets, strict=False):
            together = first.first <= second.last and second.first <= first.last
            apart = offset + first.size_bytes <= other or other + second.size_bytes <= offset
            assert apart or not together or 0 in (first.size_bytes, second.size_bytes)


@given(lifetimes())
def test_the_block_is_no_longer_than_all_buffers_and_no_shorter_than_those_of_one_step(spans: list[Lifetime]) -> None:
    _, end = assign_offsets(spans)
    rounded = [-(-span.size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES for span in spans]
    assert end <= sum(rounded)
    for step in range(30):
        assert end >= sum(size for span, size in zip(spans, rounded, strict=True) if span.first <= step <= span.last)


def bound(outputs, updates=None, batch_size: int = 4) -> BoundPlan:
    return plan_of(mg.Graph(outputs, updates), batch_size)


def plan_of(graph: mg.Graph, batch_size: int) -> BoundPlan:
    state.place(map(variable_of, graph.variables), map(variable_of, graph.updates))
    return BoundPlan(make_program(graph), batch_size, state, Workspace())


def test_a_chain_takes_the_memory_of_two_values() -> None:
    x = mg.input("x", (None, 100))
    w = mg.parameter(np.eye(100, dtype="f4"), "w")
    y = x
    for _ in range(10):
        y = mg.tanh(y @ w)
    plan = bound([mg.sum(y)])
    size = 4 * 100 * 4
    assert plan.unshared_bytes == 20 * size + 4
    assert plan.buffer_bytes <= 2 * size + ALIGNMENT_BYTES


def test_training_takes_less_memory_than_all_values_together() -> None:
    x = mg.input("x", (None, 20))
    weights = [mg.parameter(np.eye(20, dtype="f4"), f"w{place}") for place in range(6)]
    y = x
    for w in weights:
        y = mg.relu(y @ w)
    loss = mg.mean(mg.square(y))
    gradients = mg.grad(loss, weights)
    plan = bound([loss], {w: w - 0.1 * g for w, g in zip(weights, gradients, strict=True)}, 500)
    assert plan.buffer_bytes < 0.6 * plan.unshared_bytes


@settings(max_examples=120)
@given(drawn_graphs())
def test_kernels_in_shared_memory_give_what_the_interpreter_does(drawn: DrawnGraph) -> None:
    step = mg.function(drawn.inputs, drawn.graph.outputs, drawn.graph.updates)
    before = drawn.parameter.value
    for batch_size in (3, 1, 4, 3):
        expected = drawn.values(drawn.graph, batch_size)
        found = step(*drawn.arrays(batch_size))
        for value, wanted in zip([*found, drawn.parameter.value], expected, strict=True):
            assert value.dtype == wanted.dtype
            np.testing.assert_allclose(value, wanted, rtol=1e-6, atol=1e-7)
        mg.assign(drawn.parameter, before)


@settings(max_examples=60)
@given(drawn_graphs())
def test_no_two_values_that_live_together_share_memory(drawn: DrawnGraph) -> None:
    plan = plan_of(drawn.graph, 3)
    program = plan.program
    (arrays,) = plan.bind(plan.turns()).arrays
    born = {node: position for position, node in enumerate(program.steps)}
    for node in program.steps:
        for other in program.steps:
            if born[other] >= born[node] or not np.shares_memory(arrays[node], arrays[other]):
                continue
            assert program.last_use[other] <= born[node]
            if program.last_use[other] == born[node]:
                assert program.takes_over[node] is other or other in chain_of(program, node)


def chain_of(program, node):
    while node in program.takes_over:
        node = program.takes_over[node]
        yield node


def test_in_place_needs_the_same_layout_and_the_last_use() -> None:
    x = mg.input("x", (None, 3))
    a = x @ np.eye(3, dtype="f4")
    b = a @ np.eye(3, dtype="f4")
    c = a * b
    backwards = c + c[:, ::-1]
    program = make_program(mg.Graph([backwards]))
    assert b not in program.takes_over
    assert any(program.takes_over[c] is source for source in (a, b))
    assert backwards not in program.takes_over


@pytest.mark.skipif(processor() is None, reason="nothing is fused without native code")
def test_chains_are_computed_at_once_in_the_memory_of_what_they_use_last() -> None:
    x = mg.input("x", (None, 3))
    a = x @ np.eye(3, dtype="f4")
    b = a + 1.0
    c = b * a
    d = mg.tanh(c)
    program = make_program(mg.Graph([mg.sum(c), d @ np.eye(3, dtype="f4")]))
    (fusion,) = program.fusions.values()
    assert [node.name for node in fusion.nodes] == [node.name for node in (b, c, d)]
    assert [node.name for node in fusion.results] == [node.name for node in (c, d)]
    assert program.storage[b] is Storage.PASSING
    assert program.takes_over[c] is a
    assert d not in program.takes_over
    assert all(program.steps[program.computed_at[node]] is d for node in (b, c, d))


def test_views_take_no_memory() -> None:
    x = mg.input("x", (None, 4))
    y = mg.square(x)
    views = [y.reshape(-1), y[:, 1:3], y.T, mg.broadcast_to(y[None], (2, None, 4)), mg.stop_gradient(y)]
    graph = mg.Graph(views)
    program = make_program(graph)
    assert [program.storage[view] for view in views] == [Storage.VIEW] * len(views)
    assert all(program.roots[view] is y for view in views)
    torn = y.T.reshape((2, 2, -1))
    assert make_program(mg.Graph([torn])).storage[torn] is Storage.OWN
    array = np.arange(8, dtype="f4").reshape(2, 4)
    for found, view in zip(mg.function([x], [*views, torn])(array), [*views, torn], strict=True):
        np.testing.assert_array_equal(found, mg.interpreter.evaluate(mg.Graph([view]), {x: array}, batch_size=2)[0][0])


def test_what_needs_the_batch_size_only_is_computed_once() -> None:
    x = mg.input("x", (None, 4))
    mean = mg.mean(x)
    program = make_program(mg.Graph([mean]))
    assert sorted(node.op.name for node in program.steps) == ["divide", "sum"]


def test_outputs_are_copies() -> None:
    x = mg.input("x", (None, 2))
    w = mg.parameter(np.ones(2, "f4"), "w")
    step = mg.function([x], [x, w, x * 2.0, x[:, ::-1]], {w: w + 1.0})
    array = np.ones((3, 2), "f4")
    first = step(array)
    kept = [value.copy() for value in first]
    for value in first:
        assert value.flags.owndata
        assert value.flags.writeable
    array[:] = 7
    step(array)
    for value, expected in zip(first, kept, strict=True):
        np.testing.assert_array_equal(value, expected)
    first[1][:] = 100
    np.testing.assert_array_equal(w.value, [3, 3])


def test_plans_are_kept_by_batch_size_and_their_memory_is_shared() -> None:
    x = mg.input("x", (None, 50))
    step = mg.function([x], [mg.sum(mg.tanh(mg.exp(x)))])
    executable = step.executable
    for batch_size in (8, 3, 8, 5, 3):
        step(np.zeros((batch_size, 50), "f4"))
    assert sorted(executable._plans) == [(3, 1), (5, 1), (8, 1)]
    # tanh takes over what exp wrote, and the sum needs one number, which takes a cache line.
    assert step.timing.peak_bytes == 8 * 50 * 4 + 64
    executable.warmup(2)
    assert (2, 1) in executable._plans
    plans = dict(executable._plans)
    step(np.zeros((8, 50), "f4"))
    assert executable._plans == plans


def test_plans_of_smaller_blocks_do_not_stay() -> None:
    x = mg.input("x", (None, 50))
    step = mg.function([x], [mg.sum(mg.tanh(mg.exp(x)))])
    for batch_size in (2, 9):
        step(np.zeros((batch_size, 50), "f4"))
    assert list(step.executable._plans) == [(9, 1)]
    assert step(np.zeros((2, 50), "f4"))[0] == pytest.approx(np.tanh(1) * 100)
    assert step.timing.steps == 3


@pytest.mark.parametrize("failing", range(3))
def test_whichever_kernel_fails_is_named_and_its_step_is_not_booked(failing: int) -> None:
    rows = [mg.input(f"rows{place}", (None,), "int64") for place in range(3)]
    tables = [mg.parameter(np.zeros((3, 2)), f"table{place}") for place in range(3)]
    step = mg.function(rows, [mg.take(table, row, 0) for table, row in zip(tables, rows, strict=True)])
    step([0], [0], [0])
    with pytest.raises(ExecutionError, match=rf"take failed[\s\S]*float64\[3, 2\] table{failing}"):
        step(*([3 if place == failing else 0] for place in range(3)))
    step([0], [0], [0])
    assert {record.calls for record in step.timing.records if record.op == "take"} == {2}


@pytest.mark.parametrize("shape", [(0,), (3, 0), ()])
def test_values_without_elements(shape: tuple[int, ...]) -> None:
    x = mg.input("x", (None, *shape))
    y = mg.exp(x) + 1.0
    (found, total) = mg.function([x], [y, mg.sum(y)])(np.zeros((2, *shape), "f4"))
    np.testing.assert_array_equal(found, np.full((2, *shape), 2, "f4"))
    assert total == found.sum()


@pytest.mark.parametrize("rows", [1, ROWS_ADDED_AT_ONCE, ROWS_ADDED_AT_ONCE + 1, 300 * ROWS_ADDED_AT_ONCE + 7])
def test_sums_of_many_rows_are_precise(rows: int) -> None:
    x = mg.input("x", (None, 3))
    array = np.random.default_rng(0).normal(1000.0, 1.0, (rows, 3)).astype("f4")
    reference = array.astype("f8")
    total, mean, variance = mg.function([x], [mg.sum(x, 0), mg.mean(x, 0), mg.var(x, 0)])(array)
    np.testing.assert_allclose(total, reference.sum(0), rtol=2e-6)
    np.testing.assert_allclose(mean, reference.mean(0), rtol=2e-6)
    np.testing.assert_allclose(variance, reference.var(0), rtol=1e-5)
