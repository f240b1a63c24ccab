"""Every op, by the table of samples: types, values, gradients, parts of the batch, kernels, costs, documentation."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from samples import COUNT, SAMPLES
from sampling import Sample, assert_close

import miai_graph as mg
from miai_graph.gradient import grad
from miai_graph.interpreter import evaluate
from miai_graph.op import Op, _UserOp, ops
from miai_graph.passes.batch_analysis import analyse_batch
from miai_graph.placement import Unsplittable
from miai_graph.split_interpreter import evaluate_split
from miai_graph.types import bind_type

of_each_sample = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
of_both_precisions = pytest.mark.parametrize("floating", ["float32", "float64"])
DOCUMENTED = ("Shapes:", "Gradient:", "Cost:", "Batch:")


def built_in_ops() -> dict[str, Op]:
    return {name: op for name, op in ops.items() if not isinstance(op, _UserOp)}


def values_of(sample: Sample, batch_size: int, floating: str):
    """The node, its inputs, what is fed, and the interpreter's result."""
    node, inputs = sample.node(floating)
    arrays = sample.arrays(batch_size, floating)
    graph = mg.Graph([node])
    mg.check_graph(graph)
    (found,), _ = evaluate(graph, dict(zip(inputs, arrays, strict=True)), batch_size=batch_size)
    return node, inputs, arrays, found


@of_both_precisions
@of_each_sample
def test_the_definition_gives_what_the_reference_does(sample: Sample, floating: str) -> None:
    for batch_size in (1, 3):
        node, _, arrays, found = values_of(sample, batch_size, floating)
        expected = sample.expected(arrays)
        assert found.shape == bind_type(node.type, batch_size).shape
        assert found.dtype == node.dtype
        if sample.numpy_dtype:
            assert found.dtype == expected.dtype
        assert_close(found, expected, times=1 if found.dtype == expected.dtype else 10)


@of_both_precisions
@of_each_sample
def test_serial_gives_what_the_interpreter_does(sample: Sample, floating: str) -> None:
    node, inputs = sample.node(floating)
    outputs = [node]
    if sample.gradient:
        outputs += grad(loss_of(node), [x for x in inputs if x.type.is_floating])
    step = mg.function(inputs, outputs)
    for batch_size in (1, 2, 5):
        arrays = sample.arrays(batch_size, floating, seed=batch_size)
        step.executable.step = 0
        expected, _ = evaluate(mg.Graph(outputs), dict(zip(inputs, arrays, strict=True)), batch_size=batch_size)
        for found, wanted in zip(step(*arrays), expected, strict=True):
            assert found.dtype == wanted.dtype
            assert_close(found, wanted, times=10)


SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 3e38, -3e38, 1.0, -1.0]


@of_both_precisions
@of_each_sample
def test_serial_treats_special_values_as_the_interpreter_does(sample: Sample, floating: str) -> None:
    node, inputs = sample.node(floating)
    rng = np.random.default_rng(0)
    arrays = [
        rng.choice(SPECIAL, array.shape).astype(array.dtype) if array.dtype.kind == "f" else array
        for array in sample.arrays(4, floating)
    ]
    if sample.op in ("conv2d", "conv2d_input_gradient"):  # what meets only the zeros around an image is left out
        arrays[1] = np.where(np.isfinite(arrays[1]), arrays[1], 0.5).astype(arrays[1].dtype)
    (expected,), _ = evaluate(mg.Graph([node]), dict(zip(inputs, arrays, strict=True)), batch_size=4)
    (found,) = mg.function(inputs, [node])(*arrays)
    if sample.op in ("conv2d", "conv2d_input_gradient"):  # nan may spread to neighbours in the same image
        assert not np.isfinite(found[~np.isfinite(expected)]).any()
        spread = np.isnan(found) & ~np.isnan(expected).all(axis=(1, 2, 3), keepdims=True)
        assert np.isnan(expected).any(axis=(1, 2, 3))[spread.any(axis=(1, 2, 3))].all()
        found = np.where(spread, expected, found)
        # Of large products that cancel each other there remains what was rounded off of them, in some order.
        positive = [np.nan_to_num(np.abs(array), posinf=0.0) for array in arrays]
        (magnitudes,), _ = evaluate(mg.Graph([node]), dict(zip(inputs, positive, strict=True)), batch_size=4)
        with np.errstate(invalid="ignore"):
            is_rounding = np.abs(found - expected) <= 10 * np.finfo(found.dtype).eps * magnitudes
        found = np.where(is_rounding & np.isfinite(magnitudes), expected, found)
    if (sample.op, node.dtype.kind) != ("cast", "i"):  # which integer nan becomes is not specified
        assert_close(found, expected, times=10)


def loss_of(node: mg.Node) -> mg.Node:
    """A scalar that depends on each element in a way of its own, and more than linearly."""
    return mg.sum(mg.tanh(0.3 * node) * (node + 1.0))


@pytest.mark.parametrize(
    "sample", [s for s in SAMPLES.values() if s.gradient], ids=[t for t, s in SAMPLES.items() if s.gradient]
)
def test_gradients_of_first_and_second_order(sample: Sample) -> None:
    node, inputs = sample.node()
    feeds = dict(zip(inputs, sample.arrays(2), strict=True))
    mg.check_gradients(loss_of(node), [x for x in inputs if x.type.is_floating], feeds, order=2)


@of_each_sample
def test_parts_of_the_batch_give_the_whole(sample: Sample) -> None:
    node, inputs, arrays, whole = values_of(sample, 6, "float64")
    graph = mg.Graph([node])
    analysis = analyse_batch(graph)
    if isinstance(sample.placement, str):
        assert isinstance(analysis.placements[node], Unsplittable)
        assert any(sample.placement in analysis.placements[obstacle].reason for obstacle in analysis.obstacles)
        return
    assert analysis.placements[node] == sample.placement
    (parts,), _ = evaluate_split(graph, dict(zip(inputs, arrays, strict=True)), [1, 3, 2])
    assert parts.dtype == whole.dtype
    assert_close(parts, whole)


@pytest.mark.parametrize(
    "sample", [s for s in SAMPLES.values() if s.gradient], ids=[t for t, s in SAMPLES.items() if s.gradient]
)
def test_parts_of_the_batch_give_the_whole_gradients(sample: Sample) -> None:
    node, inputs = sample.node()
    graph = mg.Graph(grad(loss_of(node), [x for x in inputs if x.type.is_floating]))
    feeds = dict(zip(inputs, sample.arrays(6), strict=True))
    if analyse_batch(graph).obstacles:
        assert isinstance(sample.placement, str)
        return
    whole, _ = evaluate(graph, feeds, batch_size=6)
    for found, expected in zip(evaluate_split(graph, feeds, [1, 3, 2])[0], whole, strict=True):
        assert_close(found, expected, times=10)


@of_each_sample
def test_costs_can_be_computed(sample: Sample) -> None:
    node, _ = sample.node()
    outputs = [node, *grad(loss_of(node), [node])] if sample.gradient else [node]
    for built in mg.Graph(outputs).nodes:
        types = [bind_type(source.type, 3) for source in built.inputs]
        cost = built.op.cost(bind_type(built.type, 3), *types, **built.attributes)
        assert type(cost.flops) is int
        assert type(cost.bytes) is int
        assert cost.flops >= 0
        assert cost.bytes >= 0


@of_each_sample
def test_the_op_named_is_in_the_graph(sample: Sample) -> None:
    node, _ = sample.node()
    assert sample.op in {built.op.name for built in mg.Graph([node]).nodes} or sample.note


def test_each_op_has_a_sample_and_titles_are_unique() -> None:
    # What is received must have been sent: see test_pipeline.
    assert set(built_in_ops()) - {sample.op for sample in SAMPLES.values()} == {"receive"}
    assert len(SAMPLES) == COUNT


def test_each_public_function_that_builds_nodes_has_a_sample() -> None:
    others = {"assign", "input"}
    sampled = {name for sample in SAMPLES.values() for name in (sample.op, *sample.functions)}
    building = {
        name
        for name, value in vars(mg).items()
        if isinstance(value, Op)
        or (inspect.isfunction(value) and value.__module__.startswith("miai_graph.ops."))
        or name == "random"
    }
    assert building - sampled - others == set()


@pytest.mark.parametrize("name", sorted(built_in_ops()))
def test_each_op_is_complete_and_documented(name: str) -> None:
    op = ops[name]
    for method in ("infer", "forward", "vjp", "cost", "batch"):
        assert callable(getattr(op, method, None)), method
    lines = inspect.getdoc(type(op)).splitlines()
    assert lines[0].endswith((".", ":"))
    found = [line.split(" ")[0] for line in lines if line.startswith(DOCUMENTED)]
    assert found == list(DOCUMENTED)


def run(node: mg.Node, *feeds: tuple[mg.Node, np.ndarray]) -> np.ndarray:
    graph = mg.Graph([node])
    mg.check_graph(graph)
    return evaluate(graph, dict(feeds), batch_size=3)[0][0]


lengths = st.integers(0, 3)
shapes = st.lists(lengths, max_size=4).map(tuple)


@given(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=3), st.booleans())
def test_broadcasting_is_that_of_numpy(drawn, transposed: bool) -> None:
    arrays = [np.arange(np.prod(shape, dtype=int), dtype="f8").reshape(shape) for shape in drawn.input_shapes]
    if transposed:
        arrays = [array.T.copy().T for array in arrays]
    a, b = (mg.input(name, array.shape, "float64") for name, array in zip("ab", arrays, strict=True))
    node = a * b + a
    assert node.shape == drawn.result_shape
    np.testing.assert_array_equal(run(node, (a, arrays[0]), (b, arrays[1])), arrays[0] * arrays[1] + arrays[0])
    feeds = {a: arrays[0] + 0.5, b: arrays[1]}
    mg.check_gradients(mg.sum(mg.square(node)), [a, b], feeds, directions=1, tolerance=1e-5)


@given(st.data(), shapes)
def test_reshaping_is_that_of_numpy(data, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    factors = [length for length in shape if length != 1]
    target = [*data.draw(st.permutations(factors)), *[1] * data.draw(st.integers(0, 2))]
    if target and data.draw(st.booleans()) and 0 not in target:
        target[data.draw(st.integers(0, len(target) - 1))] = -1
    x = mg.input("x", shape, "int64")
    np.testing.assert_array_equal(run(mg.reshape(x, target), (x, array)), array.reshape(target))


@given(st.data(), shapes)
def test_slicing_is_that_of_numpy(data, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape, dtype=int), dtype="f8").reshape(shape)
    key = data.draw(hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True))
    x = mg.input("x", shape, "float64")
    node = x[key]
    expected = array[key]
    assert node.shape == expected.shape
    np.testing.assert_array_equal(run(node, (x, array)), expected)
    (gradient,) = grad(mg.sum(node), [x])
    scattered = np.zeros(shape)
    scattered[key] = 1
    np.testing.assert_array_equal(run(gradient, (x, array)), scattered)


@given(st.integers(-10, 10) | st.none(), st.integers(-10, 10) | st.none(), st.integers(-4, 4).filter(bool))
def test_slices_beyond_the_ends_are_those_of_numpy(start, stop, step: int) -> None:
    for length in (0, 1, 5):
        array = np.arange(length)
        x = mg.input("x", length, "int64")
        np.testing.assert_array_equal(run(x[start:stop:step], (x, array)), array[start:stop:step])


@given(st.data(), shapes.filter(bool), st.sampled_from(["sum", "mean", "max", "min", "var"]), st.booleans())
def test_reductions_are_those_of_numpy(data, shape: tuple[int, ...], name: str, keepdims: bool) -> None:
    axes = data.draw(st.none() | hnp.valid_tuple_axes(len(shape)) | st.integers(-len(shape), len(shape) - 1))
    array = np.random.default_rng(0).standard_normal(shape)
    x = mg.input("x", shape, "float64")
    around = range(len(shape)) if axes is None else np.atleast_1d(np.array(axes, int))
    if name != "sum" and 0 in [shape[axis] for axis in around]:
        if name in ("max", "min"):
            with pytest.raises(mg.errors.ShapeError):
                getattr(mg, name)(x, axes)
        return
    node = getattr(mg, name)(x, axes, keepdims=keepdims)
    assert_close(run(node, (x, array)), getattr(np, name)(array, axis=axes, keepdims=keepdims))


@given(hnp.mutually_broadcastable_shapes(signature="(m?,k),(k,n?)->(m?,n?)", max_dims=2, max_side=3))
def test_matrix_products_are_those_of_numpy(drawn) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape) for shape in drawn.input_shapes)
    x, y = mg.input("x", a.shape, "float64"), mg.input("y", b.shape, "float64")
    node = x @ y
    assert_close(run(node, (x, a), (y, b)), np.matmul(a, b))
    mg.check_gradients(mg.sum(mg.square(node)), [x, y], {x: a, y: b}, directions=1)


def test_stacks_of_matrices_without_elements_have_products() -> None:
    x = mg.input("x", (None, 2, 0))
    assert_close(run(x @ np.ones((0, 4), "f4"), (x, np.ones((3, 2, 0), "f4"))), np.zeros((3, 2, 4), "f4"))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "uint64"])
def test_indices_need_not_hold_the_length(dtype: str) -> None:
    rows = np.arange(600.0).reshape(300, 2)
    x = mg.input("x", (None,), dtype)
    indices = np.array([100, 0, -1 if dtype.startswith("i") else 1]).astype(dtype)
    assert_close(run(mg.take(rows, x, 0), (x, indices)), rows[indices])
    expected = np.zeros(300)
    expected[indices] = 1.0
    assert_close(run(mg.scatter_add(np.zeros(300), x, mg.cast(x == x, "float64")), (x, indices)), expected)
    with pytest.raises(mg.errors.ExecutionError, match="expected indices from -3 to 2; found 100 at position"):
        run(mg.take(np.ones(3), x, 0), (x, indices))


@pytest.mark.parametrize("floating", ["float32", "float64"])
def test_the_mean_of_ones_is_one(floating: str) -> None:
    x = mg.input("x", (None,), floating)
    mean = mg.function([x], [mg.mean(x)])
    assert all(mean(np.ones(count))[0] == 1 for count in range(1, 200))


@of_both_precisions
def test_losses_are_safe_for_logits_of_any_size(floating: str) -> None:
    logits = np.array([[1e4, -1e4, 0], [-1e4, -1e4, -1e4], [1e4, 1e4, 1e4], [0, 88, -745]], floating)
    classes = np.array([1, 0, 2, 1])
    x, y = mg.input("x", (None, 3), floating), mg.input("y", (None,), "int64")
    p = mg.one_hot(y, 3, floating)
    losses = [
        mg.sparse_softmax_cross_entropy(x, y),
        mg.softmax_cross_entropy(x, p),
        mg.sigmoid_cross_entropy(x, p),
        mg.log_softmax(x),
        mg.softmax(x),
        mg.logsumexp(x, -1),
        mg.logsumexp(x),
        mg.softmax(x, 0),
    ]
    gradients = [grad(mg.sum(loss), [x])[0] for loss in losses]
    found = mg.function([x, y], [*losses, *gradients])(logits, classes)
    again, _ = evaluate(mg.Graph([*losses, *gradients]), {x: logits, y: classes}, batch_size=4)
    for value, other in zip(found, again, strict=True):
        assert np.isfinite(value).all()
        assert_close(value, other)
    np.testing.assert_allclose(found[0], [2e4, np.log(3), np.log(3), 0], rtol=1e-6)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6)
    np.testing.assert_allclose(found[2][0], [1e4, 1e4, np.log(2)], rtol=1e-6)


def test_a_users_op_needs_only_infer_and_forward() -> None:
    @mg.op
    class doubled_for_a_test:
        def infer(x):
            return x

        def forward(x):
            return 2 * x

    try:
        x = mg.input("x", (None, 2))
        node = doubled_for_a_test(x)
        (found,) = mg.function([x], [node])(np.ones((3, 2), "f4"))
        np.testing.assert_array_equal(found, np.full((3, 2), 2, "f4"))
        assert node.op.cost(bind_type(node.type, 3), bind_type(x.type, 3)) == mg.Cost(6, 48)
        assert isinstance(analyse_batch(mg.Graph([node])).placements[node], Unsplittable)
        with pytest.raises(mg.errors.GradientError, match=r"doubled_for_a_test has no derivative[\s\S]*vjp"):
            grad(mg.sum(node), [x])
    finally:
        del ops["doubled_for_a_test"]


def test_a_users_op_is_refused_without_what_it_needs() -> None:
    with pytest.raises(mg.errors.ArgumentError, match="has no infer and no forward"):
        mg.op(type("empty", (), {}))
    with pytest.raises(mg.errors.ArgumentError, match="no built-in op"):
        mg.op(type("add", (), {"infer": print, "forward": print}))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda x: mg.exp(x, x), mg.errors.ArgumentError, "expected 1 inputs"),
        (lambda x: mg.add(x), mg.errors.ArgumentError, "expected 2 inputs"),
        (lambda x: mg.add(x, x, out=x), mg.errors.ArgumentError, "out"),
        (lambda x: mg.where(x), mg.errors.ArgumentError, "expected 3 inputs"),
        (lambda x: x + np.ones((7, 9)), mg.errors.ShapeError, r"\[B,3\] and \[7,9\][\s\S]*test_ops.py"),
        (
            lambda x: mg.where(x > 0, x, np.ones((7, 9))),
            mg.errors.ShapeError,
            r"\[B,3\][\s\S]*\[7,9\][\s\S]*test_ops.py",
        ),
        (lambda x: x @ np.ones((4, 2), "f4"), mg.errors.ShapeError, r"\[B,3\] and \[4,2\][\s\S]*test_ops.py"),
        (
            lambda x: mg.expand_dims(x, 1) @ np.ones((2, 3, 4), "f4"),
            mg.errors.ShapeError,
            r"\[B,1,3\] and \[2,3,4\][\s\S]*test_ops.py",
        ),
        (lambda x: mg.max(mg.reshape(x, (-1, 3, 1))[:, :0], 1), mg.errors.ShapeError, "at least one element"),
        (lambda x: mg.reshape(x, (-1, 4)), mg.errors.ShapeError, "divides"),
        (lambda x: mg.reshape(x, (mg.shape(x)[0], 3)), mg.errors.ShapeError, "or None for the batch"),
        (lambda x: mg.sum(x, 2), mg.errors.ShapeError, "from -2 to 1; found 2"),
        (lambda x: mg.sum(x, 1.0), mg.errors.ArgumentError, "axis that is an integer"),
        (lambda x: x[0], mg.errors.ShapeError, "batch axis"),
        (lambda x: x[1:], mg.errors.ShapeError, "batch axis whole"),
        (lambda x: x[:, 3], mg.errors.ShapeError, "from -3 to 2"),
        (lambda x: x[:, :, 0], mg.errors.ShapeError, "at most 2 indices"),
        (lambda x: x[:, [True, False]], mg.errors.ArgumentError, "integers, slices"),
        (lambda x: x.T[[True, False, True]], mg.errors.DTypeError, "mg.where for masks"),
        (lambda x: x.T[[0.5]], mg.errors.DTypeError, "integers as indices"),
        (lambda x: mg.cast(x, "complex64"), mg.errors.DTypeError, "expected one of the dtypes"),
        (lambda x: mg.add(x, "one"), mg.errors.DTypeError, "expected"),
        (lambda x: mg.cast(x, "int8") + 300, mg.errors.DTypeError, "300"),
        (lambda x: mg.concatenate([]), mg.errors.ShapeError, "at least one"),
        (lambda x: mg.concatenate([x, mg.ones_like(x.T)], 1), mg.errors.ShapeError, r"[\s\S]*test_ops.py"),
        (lambda x: x & x, mg.errors.DTypeError, "expected bool"),
        (lambda x: mg.one_hot(x, 3), mg.errors.DTypeError, "integers"),
        (lambda x: mg.softmax(mg.cast(x, "int64"), 5), mg.errors.ShapeError, "axis"),
        (lambda x: mg.pad(x, 1), mg.errors.ShapeError, "no padding of the batch"),
        (lambda x: mg.pad(x, 1, "edge"), mg.errors.ArgumentError, "constant"),
        (lambda x: mg.pad(x, 0, constant_values=x), mg.errors.ArgumentError, "one number"),
        (lambda x: mg.squeeze(x, 1), mg.errors.ShapeError, "length one"),
        (lambda x: mg.take(x, [0], 0), mg.errors.ShapeError, "other than the batch"),
        (lambda x: x * np.array([None]), mg.errors.DTypeError, "array of numbers"),
    ],
)
def test_what_cannot_be_built_is_refused(call, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call(mg.input("x", (None, 3)))
