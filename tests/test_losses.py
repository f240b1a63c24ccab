"""Losses: values by their formulas, weights and reductions, gradients, extreme logits, parts of a batch, names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import miai_graph as mg
from miai_graph import activations, losses
from miai_graph.errors import ArgumentError, ExecutionError, ShapeError
from miai_graph.graph import Graph, check_graph
from miai_graph.interpreter import evaluate
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.ops.elementwise import identity
from miai_graph.split_interpreter import evaluate_split

ROWS, CLASSES = 6, 4
Feeds = dict[Node, Array]


@pytest.fixture(autouse=True)
def _seed() -> None:
    mg.set_seed(5)


def values_of(nodes: list[Node], feeds: Feeds) -> list[Array]:
    graph = Graph(nodes)
    check_graph(graph)
    size = len(next(iter(feeds.values()))) if feeds else 1
    return evaluate(graph, feeds, batch_size=size)[0]


def fed(**arrays: Array) -> tuple[list[Node], Feeds]:
    nodes = [mg.input(name, (None, *array.shape[1:]), array.dtype) for name, array in arrays.items()]
    return nodes, dict(zip(nodes, arrays.values(), strict=True))


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def softmax(x: Array) -> Array:
    exponentials = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(-1, keepdims=True))


LABELS = np.array([2, 0, 3, 1, 1, 2])
ONE_HOT = np.eye(CLASSES)[LABELS]
LOGITS = 2 * random(ROWS, CLASSES)
BITS = (random(ROWS, CLASSES, seed=2) > 0).astype("f8")


def binary(y: Array, p: Array) -> Array:
    return np.asarray(-(y * np.log(p) + (1 - y) * np.log(1 - p)).mean(-1))


def huber(y: Array, p: Array, delta: float) -> Array:
    e = np.abs(y - p)
    return np.asarray(np.where(e <= delta, e * e / 2, delta * (e - delta / 2)).mean(-1))


SIGMOIDS = 1 / (1 + np.exp(-LOGITS))
CASES: dict[str, tuple[losses.Loss, Array, Array, Array]] = {
    "mse": (losses.MeanSquaredError(), BITS, LOGITS, ((BITS - LOGITS) ** 2).mean(-1)),
    "mae": (losses.MeanAbsoluteError(), BITS, LOGITS, np.abs(BITS - LOGITS).mean(-1)),
    "huber": (losses.Huber(0.7), BITS, LOGITS, huber(BITS, LOGITS, 0.7)),
    "binary": (losses.BinaryCrossentropy(), BITS, SIGMOIDS, binary(BITS, SIGMOIDS)),
    "binary logits": (losses.BinaryCrossentropy(from_logits=True), BITS, LOGITS, binary(BITS, SIGMOIDS)),
    "binary smoothed": (
        losses.BinaryCrossentropy(label_smoothing=0.2),
        BITS,
        SIGMOIDS,
        binary(0.8 * BITS + 0.1, SIGMOIDS),
    ),
    "categorical": (
        losses.CategoricalCrossentropy(),
        ONE_HOT,
        3 * softmax(LOGITS),
        -(ONE_HOT * np.log(softmax(LOGITS))).sum(-1),
    ),
    "categorical logits": (
        losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.4),
        ONE_HOT,
        LOGITS,
        -((0.6 * ONE_HOT + 0.1) * np.log(softmax(LOGITS))).sum(-1),
    ),
    "sparse": (
        losses.SparseCategoricalCrossentropy(),
        LABELS,
        2 * softmax(LOGITS),
        -np.log(softmax(LOGITS)[range(ROWS), LABELS]),
    ),
    "sparse logits": (
        losses.SparseCategoricalCrossentropy(from_logits=True),
        LABELS[:, None].astype("f4"),
        LOGITS,
        -np.log(softmax(LOGITS)[range(ROWS), LABELS]),
    ),
}
of_each_case = pytest.mark.parametrize("case", CASES)


@of_each_case
def test_values_and_reductions_follow_the_formulas(case: str) -> None:
    loss, true, predicted, expected = CASES[case]
    (y, p), feeds = fed(y=true, p=predicted)
    weight = np.linspace(0.0, 2.0, ROWS)
    (w,), weight_feed = fed(w=weight)
    wanted: dict[Any, tuple[Any, Any]] = {
        "sum_over_batch_size": (expected.mean(), (expected * weight).sum() / ROWS),
        "mean": (expected.mean(), (expected * weight).mean()),
        "mean_with_sample_weight": (expected.mean(), (expected * weight).sum() / weight.sum()),
        "sum": (expected.sum(), (expected * weight).sum()),
        "none": (expected, expected * weight),
        None: (expected, expected * weight),
    }
    for reduction, (plain, weighted) in wanted.items():
        same = type(loss).from_config({**loss.get_config(), "reduction": reduction})
        found = values_of([same(y, p), same(y, p, w)], {**feeds, **weight_feed})
        np.testing.assert_allclose(found[0], plain, rtol=1e-12)
        np.testing.assert_allclose(found[1], weighted, rtol=1e-12)


@of_each_case
def test_gradients_agree_with_differences(case: str) -> None:
    loss, true, predicted, _ = CASES[case]
    (y, p, w), feeds = fed(y=true, p=predicted, w=np.linspace(0.5, 2.0, ROWS))
    mg.check_gradients(loss(y, p, w), [p], feeds, order=2)


@of_each_case
def test_parts_of_a_batch_give_what_the_whole_does(case: str) -> None:
    loss, true, predicted, _ = CASES[case]
    (y, x, w), feeds = fed(y=true, x=predicted, w=np.linspace(0.5, 2.0, ROWS))
    scale = mg.parameter(np.linspace(0.9, 1.1, CLASSES), name="scale", dtype="float64")
    for reduction in ("mean", "mean_with_sample_weight", "sum"):
        same = type(loss).from_config({**loss.get_config(), "reduction": reduction})
        value = same(y, x * scale, w)
        graph = Graph([value, mg.grad(value, [scale])[0]])
        whole = evaluate(graph, feeds, batch_size=ROWS)[0]
        for found, expected in zip(evaluate_split(graph, feeds, [1, 3, 2])[0], whole, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_known_values(dtype: str) -> None:
    p = np.array([[0.05, 0.95, 0], [0.1, 0.8, 0.1]], dtype)
    sparse = losses.sparse_categorical_crossentropy(np.array([1, 2]), p)
    dense = losses.categorical_crossentropy(np.array([[0, 1, 0], [0, 0, 1]]), p)
    both = losses.binary_crossentropy(np.array([[0, 1], [0, 0]]), np.array([[0.6, 0.4], [0.4, 0.6]], dtype))
    error = losses.huber(np.array([[0, 1], [0, 0]]), np.array([[0.6, 0.4], [0.4, 0.6]], dtype))
    found = values_of([sparse, dense, both, mg.mean(error)], {})
    assert [value.dtype for value in found] == [dtype] * 4
    np.testing.assert_allclose(found[0], [0.05129329, 2.30258509], rtol=1e-6)
    np.testing.assert_allclose(found[1], [0.05129329, 2.30258509], rtol=1e-6)
    np.testing.assert_allclose(found[2], [0.91629073, 0.71355818], rtol=1e-6)
    np.testing.assert_allclose(found[3], 0.155, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("from_logits", [True, False], ids=["logits", "activation"])
def test_extreme_logits_give_exact_losses_and_finite_gradients(from_logits: bool, dtype: str) -> None:
    x = mg.input("x", (3, 2), dtype)
    feeds = {x: np.array([[1e4, -1e4], [-1e4, 1e4], [1e4, 1e4]], dtype)}
    numbers = np.array([1, 1, 0])
    soft = x if from_logits else activations.softmax(x)
    apart = x if from_logits else activations.sigmoid(x)
    expected = {
        losses.sparse_categorical_crossentropy(numbers, soft, from_logits): [2e4, 0, np.log(2)],
        losses.categorical_crossentropy(np.eye(2)[numbers], soft, from_logits): [2e4, 0, np.log(2)],
        losses.binary_crossentropy(np.eye(2)[numbers], apart, from_logits): [1e4, 0, 5e3],
    }
    for node, row in expected.items():
        value, gradient = values_of([node, mg.grad(node.sum(), [x])[0]], feeds)
        np.testing.assert_allclose(value, row, rtol=1e-6)
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_certain_probabilities_are_held_away_from_zero_and_one(dtype: str) -> None:
    p = np.array([[1.0, 0.0]], dtype)
    nodes = [
        losses.sparse_categorical_crossentropy(np.array([1]), p),
        losses.categorical_crossentropy(np.array([[0, 1]]), p),
        losses.binary_crossentropy(np.array([[0, 1]]), p),
    ]
    for value in values_of(nodes, {}):
        np.testing.assert_allclose(value, -np.log(1e-7), rtol=2e-2 if dtype == "float32" else 1e-9)


def test_logits_are_found_behind_activations() -> None:
    x = mg.input("x", (None, 3))
    assert losses.logits_of(activations.softmax(x), "softmax", axis=1) is x
    assert losses.logits_of(activations.sigmoid(x), "sigmoid") is x
    assert losses.logits_of(activations.sigmoid(x), "softmax", axis=1) is None
    assert losses.logits_of(activations.softmax(x), "softmax", axis=0) is None
    assert losses.logits_of(2.0 * activations.softmax(x), "softmax", axis=1) is None
    assert losses.logits_of(x, "sigmoid") is None


def test_logits_are_found_behind_identities() -> None:
    x = mg.input("x", (None, 3))
    wrapped = identity(identity(activations.softmax(x)))
    assert losses.logits_of(wrapped, "softmax", axis=1) is x


def test_fused_losses_compute_no_logarithm_of_probabilities() -> None:
    (y, bits, x), _ = fed(y=LABELS, bits=BITS, x=LOGITS)
    fused = {
        "sparse_softmax_cross_entropy": losses.SparseCategoricalCrossentropy()(y, activations.softmax(x)),
        "softmax_cross_entropy": losses.CategoricalCrossentropy()(bits, activations.softmax(x)),
        "sigmoid_cross_entropy": losses.BinaryCrossentropy()(bits, activations.sigmoid(x)),
    }
    for name, loss in fused.items():
        ops = {node.op.name for node in Graph(loss).nodes}
        assert name in ops
        assert not ops & {"log", "softmax", "sigmoid", "clip"}
    square = mg.input("square", (3, 3))
    other = losses.sparse_categorical_crossentropy(np.zeros(3, int), activations.softmax(square, axis=0))
    assert "log" in {node.op.name for node in Graph(other).nodes}


def test_classes_may_lie_along_any_axis() -> None:
    scores, dense = random(3, CLASSES, 2), softmax(random(3, 2, CLASSES)).transpose(0, 2, 1)
    numbers = np.array([[0, 3], [2, 2], [1, 0]])
    (y, d, x), feeds = fed(y=numbers, d=dense, x=scores)
    last = mg.moveaxis(x, 1, -1)
    for from_logits, of in ((True, lambda z, _: z), (False, activations.softmax), (False, lambda z, _: mg.exp(z))):
        found = values_of(
            [
                losses.sparse_categorical_crossentropy(y, of(x, 1), from_logits, axis=1),
                losses.categorical_crossentropy(d, of(x, 1), from_logits, axis=1),
                losses.sparse_categorical_crossentropy(y, of(last, -1), from_logits),
                losses.categorical_crossentropy(mg.moveaxis(d, 1, -1), of(last, -1), from_logits),
            ],
            feeds,
        )
        np.testing.assert_allclose(found[0], found[2], rtol=1e-12)
        np.testing.assert_allclose(found[1], found[3], rtol=1e-12)


@pytest.mark.parametrize("ignored", [-1, 2, 255])
def test_an_ignored_class_counts_neither_in_the_sum_nor_in_the_mean(ignored: int) -> None:
    numbers = np.array([0, ignored, 3, ignored, 1, 0], np.int16)
    scores = LOGITS.copy()
    scores[1] = np.nan
    kept = numbers != ignored
    values = -np.log(softmax(scores[kept])[range(4), numbers[kept]])
    for from_logits in (True, False):
        (y, x, w), feeds = fed(y=numbers, x=scores if from_logits else softmax(scores), w=np.arange(1.0, 7.0))
        loss = losses.SparseCategoricalCrossentropy(from_logits, ignore_class=ignored)
        plain, weighted = loss(y, x), loss(y, x, w)
        each = losses.sparse_categorical_crossentropy(y, x, from_logits, ignore_class=ignored)
        found = values_of([plain, weighted, each, mg.grad(weighted, [x])[0]], feeds)
        np.testing.assert_allclose(found[0], values.mean(), rtol=1e-12)
        np.testing.assert_allclose(found[1], (values * np.arange(1.0, 7.0)[kept]).sum() / 4, rtol=1e-12)
        np.testing.assert_allclose(found[2][kept], values, rtol=1e-12)
        assert (found[2][~kept] == 0).all()
        assert (found[3][~kept] == 0).all()
        assert np.isfinite(found[3]).all()
        graph = Graph([plain])
        np.testing.assert_allclose(evaluate_split(graph, feeds, [1, 1, 4])[0][0], values.mean(), rtol=1e-12)


def test_a_batch_of_ignored_samples_has_a_loss_of_zero() -> None:
    (y, x), feeds = fed(y=np.full(3, 1), x=random(3, CLASSES))
    loss = losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=1)(y, x)
    assert [value.tolist() for value in values_of([loss, mg.grad(loss, [x])[0]], feeds)] == [0.0, [[0.0] * 4] * 3]


def test_weights_of_zero_give_zero() -> None:
    (y, p, w), feeds = fed(y=BITS, p=LOGITS, w=np.zeros(ROWS))
    loss = losses.MeanSquaredError(reduction="mean_with_sample_weight")(y, p, w)
    value, gradient = values_of([loss, mg.grad(loss, [p])[0]], feeds)
    assert value == 0
    assert (gradient == 0).all()


def test_one_value_a_sample_may_have_an_axis_of_its_own() -> None:
    numbers = np.arange(1.0, 5.0)
    shapes: list[tuple[Any, ...]] = [((4,), (4, 1)), ((4, 1), (4,)), ((4, 1), (4, 1))]
    for true, predicted in shapes:
        (y, p, w, column), feeds = fed(
            y=numbers.reshape(true), p=np.zeros(predicted), w=numbers, column=numbers.reshape(4, 1)
        )
        loss = losses.MeanSquaredError()
        found = values_of([loss(y, p), loss(y, p, w), loss(y, p, column)], feeds)
        np.testing.assert_allclose(found, [7.5, 25.0, 25.0])


def test_weights_broadcast_over_the_values_of_a_sample() -> None:
    (y, p, w), feeds = fed(y=random(3, 4, 5), p=random(3, 4, 5, seed=1), w=np.array([[1.0], [0.0], [2.0]]))
    values = ((feeds[y] - feeds[p]) ** 2).mean(-1)
    found = values_of([losses.MeanSquaredError()(y, p, w)], feeds)[0]
    np.testing.assert_allclose(found, (values * feeds[w]).sum() / 12)


def test_predictions_keep_their_dtype_unless_another_is_asked_for() -> None:
    (y, p), feeds = fed(y=LABELS, p=LOGITS.astype("f4"))
    for asked, dtype in ((None, "float32"), ("float64", "float64")):
        loss = losses.SparseCategoricalCrossentropy(from_logits=True, dtype=asked)
        assert values_of([loss(y, p)], feeds)[0].dtype == dtype
    assert losses.mean_squared_error(np.array([[1, 2]]), np.array([[1, 3]])).dtype == "float32"


def test_a_label_that_is_no_class_raises_when_the_graph_runs() -> None:
    for from_logits in (True, False):
        (y, p), feeds = fed(y=np.array([0, 4]), p=softmax(random(2, CLASSES)))
        with pytest.raises(ExecutionError, match="expected labels from 0 to 3"):
            values_of([losses.SparseCategoricalCrossentropy(from_logits)(y, p)], feeds)


def test_shapes_that_do_not_fit_are_refused() -> None:
    y, p = mg.input("y", (None, 3)), mg.input("p", (None, 4))
    for loss in (losses.CategoricalCrossentropy(), losses.BinaryCrossentropy()):
        with pytest.raises(ShapeError, match=r"predictions' shape\s+y_true: f32\[B,3\]"):
            loss(y, p)
    with pytest.raises(ShapeError, match="a label for each row"):
        losses.SparseCategoricalCrossentropy()(y, p)
    with pytest.raises(ShapeError, match="another axis than the batch"):
        losses.categorical_crossentropy(p, p, axis=0)
    with pytest.raises(ShapeError):
        losses.MeanSquaredError()(y, p)


def test_one_class_is_warned_of() -> None:
    p = mg.input("p", (None, 1))
    with pytest.warns(SyntaxWarning, match="Use binary_crossentropy"):
        losses.categorical_crossentropy(p, p)


def test_arguments_that_cannot_be_are_refused() -> None:
    with pytest.raises(ArgumentError, match="sum_over_batch_size"):
        losses.MeanSquaredError(reduction="average")
    with pytest.raises(ArgumentError, match="label_smoothing from 0 to 1"):
        losses.BinaryCrossentropy(label_smoothing=1.5)(np.ones((1, 2)), np.ones((1, 2)))
    with pytest.raises(ArgumentError, match="a loss, one of BinaryCrossentropy"):
        losses.get("cross")


def test_users_losses() -> None:
    class Cubes(losses.Loss):
        def call(self, y_true: Node, y_pred: Node) -> Node:
            assert y_true.dtype == y_pred.dtype
            return mg.mean(abs(y_true - y_pred) ** 3, -1)

    def cubes(y_true: Node, y_pred: Node) -> Node:
        return mg.mean(abs(y_true - y_pred) ** 3, -1)

    (y, p, w), feeds = fed(y=BITS.astype("i8"), p=LOGITS, w=np.arange(6.0))
    wanted = ((np.abs(BITS - LOGITS) ** 3).mean(-1) * np.arange(6.0)).mean()
    named = [losses.get(given.__name__, {given.__name__: given}) for given in (Cubes, cubes)]
    for loss in (losses.get(Cubes), losses.get(cubes), *named):
        assert loss.name == "cubes"
        np.testing.assert_allclose(values_of([loss(y, p, w)], feeds)[0], wanted)
    saved = losses.serialize(losses.get(cubes))
    assert saved["config"]["fn"] == "cubes"
    assert losses.get(saved, {"cubes": cubes}).fn is cubes


def test_names_and_configs() -> None:
    assert losses.get(None) is None
    for name in ("mse", "MSE", "mean_squared_error", "MeanSquaredError"):
        assert isinstance(losses.get(name), losses.MeanSquaredError)
    assert isinstance(losses.get("mae"), losses.MeanAbsoluteError)
    assert losses.get(losses.mean_absolute_error).fn is losses.mae
    for loss, *_ in CASES.values():
        saved = losses.serialize(loss)
        again = losses.get(saved)
        assert type(again) is type(loss)
        assert losses.serialize(again) == saved
    assert losses.serialize(losses.Huber(0.5))["config"] == {
        "delta": 0.5,
        "reduction": "sum_over_batch_size",
        "name": "huber_loss",
        "dtype": None,
    }


def test_crossentropy_is_chosen_by_shapes() -> None:
    shapes = {
        "BinaryCrossentropy": [((None,), (None, 1)), ((None, 1), (None, 1)), ((None,), (None,))],
        "SparseCategoricalCrossentropy": [((None,), (None, 3)), ((None, 1), (None, 3))],
        "CategoricalCrossentropy": [((None, 3), (None, 3))],
    }
    for name, pairs in shapes.items():
        for true, predicted in pairs:
            y, p = mg.input("y", true), mg.input("p", predicted)
            assert type(losses.for_output("crossentropy", y, p)).__name__ == name
            assert isinstance(losses.for_output("mse", y, p), losses.MeanSquaredError)


def test_nodes_of_a_loss_stand_in_its_scope() -> None:
    assert losses.MeanSquaredError(name="error")(BITS, LOGITS).scope == "error"
