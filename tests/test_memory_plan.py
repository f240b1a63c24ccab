"""What keeps the memory of a step small: where values lie, and which are computed again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from test_plan import lifetimes

import miai_graph as mg
from miai_graph.context import BACKWARD, FORWARD, UPDATE, build_context
from miai_graph.interpreter import evaluate
from miai_graph.kernels.compiler.native import processor
from miai_graph.ops.leaves import variable_of
from miai_graph.passes.pooled_masks import mask_pooled
from miai_graph.passes.second_computation import compute_again
from miai_graph.passes.simplify import simplify
from miai_graph.plan.bound import BoundPlan
from miai_graph.plan.fusion import LARGE_UPDATE_BYTES
from miai_graph.plan.memory import Lifetime, Scratch, Workspace, assign_offsets, used_until
from miai_graph.plan.program import Storage, make_program
from miai_graph.state import ALIGNMENT_BYTES, state

needs_native_code = pytest.mark.skipif(processor() is None, reason="nothing is fused without native code")


def make_plan(graph: mg.Graph, batch_size: int) -> BoundPlan:
    state.place(map(variable_of, graph.variables), map(variable_of, graph.updates))
    return BoundPlan(make_program(graph), batch_size, state, Workspace())


def descent(shape: tuple[int, int]) -> tuple[mg.Graph, mg.Node, mg.Node]:
    """A step of gradient descent on a matrix, with the matrix and its gradient."""
    x = mg.input("x", (None, shape[0]))
    w = mg.parameter(np.ones(shape, "f4"), "w")
    loss = mg.mean(mg.square(x @ w))
    gradient = mg.grad(loss, [w])[0]
    graph = simplify(mg.Graph([loss], {w: w - 0.1 * gradient}))
    (product,) = [node for node in graph.nodes if node.op.name == "matmul" and node.phase == BACKWARD]
    return graph, w, product


@needs_native_code
def test_a_small_gradient_lies_where_the_next_value_will() -> None:
    graph, w, gradient = descent((30, 20))
    plan = make_plan(graph, 4)
    assert plan.program.storage[gradient] is Storage.NEXT
    first, second = state.arrays(variable_of(w))
    for held, spare in ((0, second), (1, first)):
        (arrays,) = plan.bind(held).arrays
        assert np.shares_memory(arrays[gradient], spare)
        assert arrays[gradient].shape == spare.shape
    assert plan.buffer_bytes < 30 * 20 * 4


@needs_native_code
def test_a_large_parameter_is_updated_as_soon_as_its_gradient_is_there() -> None:
    width = int((LARGE_UPDATE_BYTES / 4) ** 0.5)
    x = mg.input("x", (None, width))
    weights = [mg.parameter(np.eye(width, dtype="f4"), f"w{place}") for place in range(3)]
    y = x
    for weight in weights:
        y = y @ weight
    loss = mg.mean(mg.square(y))
    found = mg.grad(loss, weights)
    with build_context(phase=UPDATE):
        updates = {w: w - 0.1 * g for w, g in zip(weights, found, strict=True)}
    graph = simplify(mg.Graph([loss], updates))
    plan = make_plan(graph, 2)
    assert [plan.program.storage[source] for source in weights] == [Storage.STATE] * 3
    assert LARGE_UPDATE_BYTES < plan.buffer_bytes < 1.2 * LARGE_UPDATE_BYTES
    array = np.random.default_rng(0).normal(size=(2, width)).astype("f4")
    expected = evaluate(graph, {x: array}, batch_size=2)[1]
    step = mg.function([x], [loss], graph.updates)
    step(array)
    for weight, value in expected.items():
        np.testing.assert_allclose(weight.value, value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("function", [mg.softmax, mg.log_softmax])
def test_softmax_lies_where_logits_did_unless_they_are_read_again(function) -> None:
    x, w = mg.input("x", (None, 64)), mg.input("w", (64, 64))
    logits = x @ w
    normal = function(logits)
    once, again = (make_program(mg.Graph(outputs)) for outputs in ([normal @ w], [normal @ w, logits @ w]))
    assert once.takes_over == {normal: logits}
    assert not again.takes_over


@pytest.mark.parametrize("classes", [10, 65])
def test_softmax_of_rows_that_end_within_a_vector_lies_elsewhere(classes: int) -> None:
    x, w = mg.input("x", (None, classes)), mg.input("w", (classes, classes))
    assert not make_program(mg.Graph([mg.softmax(x @ w) @ w])).takes_over


@needs_native_code
def test_gradients_that_are_read_otherwise_keep_their_memory() -> None:
    x = mg.input("x", (None, 5))
    w = mg.parameter(np.ones((5, 3), "f4"), "w")
    v = mg.parameter(np.ones((5, 3), "f4"), "v")
    loss = mg.mean(mg.square(x @ w))
    gradient = mg.grad(loss, [w])[0]
    for outputs, updates in (
        ([loss, gradient], {w: w - gradient}),
        ([loss], {w: w - gradient, v: v - 2.0 * gradient * v}),
        ([loss], {w: w - gradient[::-1]}),
    ):
        graph = simplify(mg.Graph(outputs, updates))
        (product,) = [node for node in graph.nodes if node.op.name == "matmul" and node.phase == BACKWARD]
        storage = make_program(graph).storage[product]
        array = np.random.default_rng(0).normal(size=(4, 5)).astype("f4")
        before = {target: target.value for target in updates}
        wanted = evaluate(graph, {x: array}, batch_size=4)
        found = mg.function([x], outputs, updates)(array)
        for value, expected in zip(found, wanted[0], strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-5)
        for target in updates:
            np.testing.assert_allclose(target.value, wanted[1][target], rtol=1e-5)
            mg.assign(target, before[target])
        assert storage is Storage.OWN or len(updates) == 2


def test_what_normalizations_give_is_computed_again() -> None:
    rng = np.random.default_rng(0)
    x = mg.input("x", (None, 6, 6, 4))
    kernels = [mg.parameter(rng.normal(size=(3, 3, 4, 4)).astype("f4")) for _ in range(4)]
    scale = mg.parameter(np.array([1.0, -2.0, 0.5, 3.0], "f4"))
    h = mg.conv2d(x, kernels[0], padding="same")
    for kernel in kernels[1:]:
        differences = h - mg.mean(h, (0, 1, 2), keepdims=True)
        deviation = mg.sqrt(mg.mean(mg.square(differences), (0, 1, 2), keepdims=True) + 1e-3)
        h = mg.conv2d(mg.relu(differences * (scale / deviation)), kernel, padding="same")
    loss = mg.mean(mg.square(h))
    simple = simplify(mg.Graph([loss, *mg.grad(loss, [*kernels, scale])]))
    graph = compute_again(simple)
    assert {node.phase for node in graph.nodes if node.op.name == "relu"} == {FORWARD, BACKWARD}
    for node in graph.nodes:
        if node.op.name == "relu" and node.phase == FORWARD:
            readers = (each for each in graph.nodes if each.phase == BACKWARD)
            assert not any(source is node for reader in readers for source in reader.inputs)
    array = np.random.default_rng(2).normal(size=(3, 6, 6, 4)).astype("f4")
    expected = evaluate(simple, {x: array}, batch_size=3)[0]
    for found in (evaluate(graph, {x: array}, batch_size=3)[0], mg.function([x], simple.outputs)(array)):
        for value, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(value, wanted, rtol=1e-3, atol=1e-5)
    if processor() is not None:
        assert make_plan(graph, 3).buffer_bytes < make_plan(simple, 3).buffer_bytes


def test_what_is_kept_for_nothing_else_is_not_computed_again() -> None:
    x = mg.input("x", (None, 5))
    weights = [mg.parameter(np.ones((5, 5), "f4")) for _ in range(2)]
    loss = mg.mean(mg.square(mg.relu(x @ weights[0] + 1.0) @ weights[1]))
    graph = simplify(mg.Graph([loss, *mg.grad(loss, weights)]))
    assert compute_again(graph) is graph


@pytest.mark.parametrize(
    ("size", "strides", "padding"),
    [(2, 2, "valid"), (2, 2, "same"), (3, 2, "same"), (2, 3, "valid"), ((1, 3), (1, 3), "valid")],
)
@pytest.mark.parametrize("channels", [1, 5, 19])
def test_rectifiers_before_pooling(size, strides, padding: str, channels: int) -> None:
    x = mg.input("x", (None, 7, 6, channels))
    w = mg.parameter(np.ones(channels, "f4"))
    b = mg.parameter(np.full(channels, -0.5, "f4"))
    pooled = mg.max_pool2d(mg.relu(x * w + b), size, strides, padding)
    loss = mg.mean(mg.square(mg.tanh(pooled)))
    simple = simplify(mg.Graph([loss, *mg.grad(loss, [w, b])]))
    graph = mask_pooled(simple, moves_sums=True)
    (masking,) = [node for node in graph.nodes if node.op.name == "relu_gradient"]
    assert masking.type == pooled.type
    assert any(node.op.name == "sum" and node.inputs[0] is masking for node in graph.nodes)
    array = np.random.default_rng(0).integers(-2, 3, (3, 7, 6, channels)).astype("f4")
    array[0, 0, 0] = np.nan
    expected = evaluate(simple, {x: array}, batch_size=3)[0]
    for found in (evaluate(graph, {x: array}, batch_size=3)[0], mg.function([x], simple.outputs)(array)):
        for value, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-6)


@needs_native_code
@pytest.mark.parametrize(("size", "strides", "shares"), [(2, 2, True), (3, 2, False), (2, 3, False), (4, 4, False)])
def test_gradients_of_pooling_lie_over_the_image_where_windows_cover_it_side_by_side(
    size: int, strides: int, shares: bool
) -> None:
    x = mg.input("x", (None, 6, 6, 3))
    w = mg.parameter(np.ones((1, 1, 3, 3), "f4"))
    pooled = mg.max_pool2d(mg.relu(mg.conv2d(x, w)), size, strides)
    loss = mg.sum(mg.square(pooled))
    program = make_program(mask_pooled(simplify(mg.Graph([loss, *mg.grad(loss, [w])])), moves_sums=True))
    (node,) = [node for node in program.graph.nodes if node.op.name == "max_pool2d_gradient"]
    assert (node in program.takes_over) == shares


@given(lifetimes())
def test_behind_what_is_used_nothing_lies(spans: list[Lifetime]) -> None:
    offsets, end = assign_offsets(spans)
    for step, used in enumerate(used_until(spans, offsets, 30)):
        alive = [
            offset + span.size_bytes
            for span, offset in zip(spans, offsets, strict=True)
            if span.first <= step <= span.last
        ]
        assert max(alive, default=0) <= used <= end
        assert used - max(alive, default=0) < ALIGNMENT_BYTES


def test_large_buffers_leave_no_holes_that_are_too_small_for_others() -> None:
    # In the order in which they come alive the third one fits into no gap.
    spans = [Lifetime(0, 1, 640), Lifetime(0, 3, 64), Lifetime(2, 3, 1280), Lifetime(3, 4, 640)]
    sizes = most_at_once(spans)
    assert assign_offsets(spans)[1] == sizes


def most_at_once(spans: Sequence[Lifetime]) -> int:
    steps = range(max(span.last for span in spans) + 1)
    return max(sum(span.size_bytes for span in spans if span.first <= step <= span.last) for step in steps)


def test_scratch_is_taken_from_the_end_of_what_is_free() -> None:
    workspace, free = Workspace(), np.zeros(256, np.uint8)
    scratch = Scratch(workspace, free)
    first, second = scratch.take((10,), "f4"), scratch.take((16,), "f8")
    large = scratch.take((100,), "f4")
    assert scratch.used_bytes == 448
    assert np.shares_memory(first, free[192:])
    assert np.shares_memory(second, free[64:192])
    assert not np.shares_memory(first, second)
    assert not np.shares_memory(large, free)
    assert workspace.size_bytes == 448
