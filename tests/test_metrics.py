"""Metrics: known values, totals that add up over batches and parts of a batch, weights, names."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import miai_graph as mg
from miai_graph import activations, losses, metrics
from miai_graph.errors import ArgumentError, FeedError, ShapeError
from miai_graph.graph import Graph, check_graph
from miai_graph.interpreter import evaluate
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.split_interpreter import evaluate_split

ROWS, CLASSES = 11, 4


@pytest.fixture(autouse=True)
def _seed() -> None:
    mg.set_seed(8)


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).random(shape)


LABELS = np.random.default_rng(4).integers(0, CLASSES, ROWS)
ONE_HOT = np.eye(CLASSES)[LABELS]
SCORES = random(ROWS, CLASSES)
PROBABILITIES = SCORES / SCORES.sum(1, keepdims=True)
BITS = (random(ROWS, 3, seed=2) > 0.5).astype("f8")
GUESSES = 0.1 + 0.8 * random(ROWS, 3, seed=3)
RANKS = (SCORES[range(ROWS), LABELS][:, None] < SCORES).sum(1)
SURPRISE = -np.log(PROBABILITIES[range(ROWS), LABELS])

CASES: dict[str, tuple[metrics.Metric, Array, Array, Array]] = {
    "accuracy": (metrics.Accuracy(), BITS, np.ones_like(BITS), BITS.mean(1)),
    "binary": (metrics.BinaryAccuracy(), BITS, GUESSES, ((GUESSES > 0.5) == BITS).mean(1)),
    "binary threshold": (metrics.BinaryAccuracy(threshold=0.3), BITS, GUESSES, ((GUESSES > 0.3) == BITS).mean(1)),
    "binary column": (metrics.BinaryAccuracy(), BITS[:, 0], GUESSES[:, :1], (GUESSES[:, 0] > 0.5) == BITS[:, 0]),
    "categorical": (metrics.CategoricalAccuracy(), ONE_HOT, SCORES, RANKS == 0),
    "sparse": (metrics.SparseCategoricalAccuracy(), LABELS, SCORES, RANKS == 0),
    "sparse column": (metrics.SparseCategoricalAccuracy(), LABELS[:, None].astype("f4"), SCORES, RANKS == 0),
    "top k": (metrics.TopKCategoricalAccuracy(2), ONE_HOT, SCORES, RANKS < 2),
    "sparse top k": (metrics.SparseTopKCategoricalAccuracy(3), LABELS, SCORES, RANKS < 3),
    "sorted": (
        metrics.SparseTopKCategoricalAccuracy(2, from_sorted_ids=True),
        LABELS,
        np.argsort(-SCORES),
        RANKS < 2,
    ),
    "binary crossentropy": (
        metrics.BinaryCrossentropy(),
        BITS,
        GUESSES,
        -(BITS * np.log(GUESSES) + (1 - BITS) * np.log(1 - GUESSES)).mean(1),
    ),
    "crossentropy": (metrics.CategoricalCrossentropy(), ONE_HOT, PROBABILITIES, SURPRISE),
    "sparse crossentropy": (metrics.SparseCategoricalCrossentropy(), LABELS, SCORES, SURPRISE),
    "sparse logits": (
        metrics.SparseCategoricalCrossentropy(from_logits=True),
        LABELS,
        np.log(PROBABILITIES) + 3.0,
        SURPRISE,
    ),
    "mse": (metrics.MeanSquaredError(), BITS, GUESSES, ((BITS - GUESSES) ** 2).mean(1)),
    "mse of numbers": (metrics.MeanSquaredError(), BITS[:, 0], GUESSES[:, 0], (BITS[:, 0] - GUESSES[:, 0]) ** 2),
    "mae": (metrics.MeanAbsoluteError(), BITS, GUESSES, np.abs(BITS - GUESSES).mean(1)),
    "wrapper": (metrics.MeanMetricWrapper("huber", delta=9.0), BITS, GUESSES, ((BITS - GUESSES) ** 2).mean(1) / 2),
}
of_each_case = pytest.mark.parametrize("case", CASES)
WEIGHTS = np.linspace(0.0, 3.0, ROWS)


@of_each_case
def test_results_of_uneven_batches_are_those_of_the_whole(case: str) -> None:
    metric, true, predicted, values = CASES[case]
    for weights in (None, WEIGHTS):
        metric.reset_state()
        for part in (slice(0, 5), slice(5, 6), slice(6, ROWS)):
            metric.update_state(true[part], predicted[part], None if weights is None else weights[part])
        np.testing.assert_allclose(metric.result(), np.average(values, weights=weights), rtol=1e-6)
        assert metric.count == pytest.approx(ROWS if weights is None else WEIGHTS.sum())


@of_each_case
def test_totals_are_the_same_on_parts_of_a_batch(case: str) -> None:
    metric, true, predicted, values = CASES[case]
    y = mg.input("y", (None, *true.shape[1:]), true.dtype)
    p = mg.input("p", (None, *predicted.shape[1:]), predicted.dtype)
    w = mg.input("w", (None,), "float64")
    feeds = {y: true, p: predicted, w: WEIGHTS}
    graph = Graph([*metric.totals(y, p), *metric.totals(y, p, w)])
    check_graph(graph)
    expected = [values.sum(), ROWS, (values * WEIGHTS).sum(), WEIGHTS.sum()]
    np.testing.assert_allclose(evaluate(graph, feeds, batch_size=ROWS)[0], expected, rtol=1e-6)
    np.testing.assert_allclose(evaluate_split(graph, feeds, [3, 1, 7])[0], expected, rtol=1e-6)


@of_each_case
def test_configs_make_equal_metrics(case: str) -> None:
    metric = CASES[case][0]
    saved = metrics.serialize(metric)
    again = metrics.get(saved)
    assert type(again) is type(metric)
    assert metrics.serialize(again) == saved
    assert again.count == 0


def test_metrics_by_name() -> None:
    assert metrics.get(None) is None
    assert isinstance(metrics.get("mse"), metrics.MeanSquaredError)
    assert isinstance(metrics.get("root_mean_squared_error"), metrics.RootMeanSquaredError)
    assert metrics.get("sparse_categorical_accuracy").name == "sparse_categorical_accuracy"
    with pytest.raises(ArgumentError, match="a metric, one of Accuracy"):
        metrics.get("precession")


def test_known_values() -> None:
    accuracy = metrics.SparseCategoricalAccuracy()
    assert accuracy([2, 1], [[0.1, 0.6, 0.3], [0.05, 0.95, 0]]) == 0.5
    accuracy.reset_state()
    assert accuracy([2, 1], [[0.1, 0.6, 0.3], [0.05, 0.95, 0]], sample_weight=[0.7, 0.3]) == pytest.approx(0.3)
    assert metrics.Accuracy()([1, 2, 3, 4], [0, 2, 3, 4]) == 0.75
    error = metrics.RootMeanSquaredError()
    assert error([[0, 1], [0, 0]], [[1, 1], [0, 0]]) == 0.5
    error.reset_state()
    assert error([[0, 1], [0, 0]], [[1, 1], [0, 0]], [1, 0]) == pytest.approx(math.sqrt(0.5))


def test_mean_of_values() -> None:
    mean = metrics.Mean()
    assert mean.result() == 0
    assert mean([1, 3, 5, 7]) == 4
    mean.reset_state()
    assert mean([1, 3, 5, 7], sample_weight=[1, 1, 0, 0]) == 2
    mean.reset_state()
    assert mean([[1.0, 3.0], [5.0, 7.0]], [1.0, 3.0]) == 5
    mean.reset_state()
    assert mean([[1.0, 3.0], [5.0, 7.0]], [[1.0, 0.0], [0.0, 1.0]]) == 4
    mean.reset_state()
    assert mean(3.0) == 3
    assert mean([1.0, 2.0, 3.0], 2.0) == pytest.approx((3 + 12) / 7)
    assert metrics.get(metrics.serialize(mean)).name == "mean"


def test_totals_from_a_training_loop_are_added_up() -> None:
    metric = metrics.MeanSquaredError()
    metric.add_totals(3.0, 2.0)
    metric.add_totals(1.0, 6.0)
    assert metric.result() == 0.5
    metric.reset_state()
    assert (metric.total, metric.count) == (0.0, 0.0)


def test_many_small_batches_lose_no_digits() -> None:
    mean = metrics.Mean()
    for _ in range(1000):
        mean.add_totals(0.1, 1.0)
    mean.add_totals(1e9, 1.0)
    assert mean.result() == pytest.approx((1e9 + 100) / 1001, rel=1e-12)


def test_values_of_a_sample_that_are_several_count_by_their_mean() -> None:
    y, p = np.zeros((3, 2), int), np.eye(2)[[[0, 1], [0, 0], [1, 1]]]
    metric = metrics.SparseCategoricalAccuracy()
    assert metric(y, p, [1.0, 2.0, 0.0]) == pytest.approx(2.5 / 3)
    metric.reset_state()
    assert metric(y, p, [[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]) == 0.5


@pytest.mark.parametrize(("k", "expected"), [(1, [1, 0, 0]), (2, [1, 1, 0]), (3, [1, 1, 0])])
def test_top_k_counts_equal_scores_as_not_above_and_nan_as_above(k: int, expected: list[int]) -> None:
    scores = np.array([[0.4, 0.4, 0.2], [0.7, 0.2, 0.1], [np.nan] * 3])
    found = metrics.sparse_top_k_categorical_accuracy(np.array([1, 1, 0]), scores, k)
    assert evaluate(Graph([found]), {}, batch_size=1)[0][0].tolist() == expected


def test_scores_without_bound_are_ranked() -> None:
    scores = np.array([[-np.inf, np.inf, 0.0]])
    for label, rank in ((0, 3), (1, 1), (2, 2)):
        for k in (1, 2, 3):
            assert metrics.SparseTopKCategoricalAccuracy(k)([label], scores) == float(rank <= k)


def test_an_ignored_class_has_no_weight() -> None:
    metric = metrics.SparseCategoricalCrossentropy(ignore_class=-1)
    y, p = np.array([0, -1, 1]), np.array([[0.5, 0.5], [0.1, 0.9], [0.2, 0.8]])
    expected = -np.log([0.5, 0.8])
    assert metric(y, p, np.array([1.0, 5.0, 3.0])) == pytest.approx(np.average(expected, weights=[1, 3]))


SHAPES: dict[str, list[tuple[Any, Any]]] = {
    "Binary": [((None,), (None, 1)), ((None, 1), (None, 1)), ((None, 5, 1), (None, 5, 1)), ((None,), (None,))],
    "SparseCategorical": [((None,), (None, 3)), ((None, 1), (None, 3)), ((None, 5), (None, 5, 3))],
    "Categorical": [((None, 3), (None, 3)), ((None, 5, 3), (None, 5, 3))],
}


@pytest.mark.parametrize("kind", SHAPES)
def test_accuracy_and_crossentropy_are_chosen_by_shapes(kind: str) -> None:
    for true, predicted in SHAPES[kind]:
        y, p = mg.input("y", true, "int64"), mg.input("p", predicted)
        for name in ("accuracy", "acc", "Accuracy"):
            metric = metrics.for_outputs(name, y, p, None)
            assert type(metric).__name__ == f"{kind}Accuracy"
            assert metric.name == name
            assert [node.shape for node in metric.totals(y, p)] == [(), ()]
        for loss in (losses.MeanSquaredError(), losses.BinaryCrossentropy(from_logits=True)):
            entropy: Any = metrics.for_outputs("ce", y, p, loss)
            assert type(entropy).__name__ == f"{kind}Crossentropy"
            assert entropy.name == "ce"
            assert entropy.from_logits == isinstance(loss, losses.BinaryCrossentropy)


def test_metrics_for_outputs_by_other_identifiers() -> None:
    y, p = mg.input("y", (None, 3)), mg.input("p", (None, 3))

    def spread(y_true: Node, y_pred: Node) -> Node:
        return mg.max(abs(y_true - y_pred), -1)

    own = metrics.MeanSquaredError(name="mine")
    assert metrics.for_outputs(own, y, p) is own
    assert own.name == "mine"
    assert metrics.for_outputs("mse", y, p).name == "mse"
    assert metrics.for_outputs(metrics.MeanAbsoluteError, y, p).name == "mean_absolute_error"
    wrapped = metrics.for_outputs(spread, y, p)
    assert wrapped.name == "spread"
    assert wrapped([[0.0, 1.0]], [[4.0, 0.0]]) == 4
    assert metrics.for_outputs(losses.huber, y, p).name == "huber"


def test_metrics_of_activations_use_their_logits() -> None:
    y, x = mg.input("y", (None,), "int64"), mg.input("x", (None, 2))
    total, _ = metrics.SparseCategoricalCrossentropy().totals(y, activations.softmax(x))
    feeds = {y: np.array([1]), x: np.array([[1e4, -1e4]], np.float32)}
    assert evaluate(Graph([total]), feeds, batch_size=1)[0][0] == 2e4


def test_totals_have_the_dtype_asked_for() -> None:
    y, p = mg.input("y", (None, 2)), mg.input("p", (None, 2))
    assert [node.dtype for node in metrics.MeanSquaredError().totals(y, p)] == ["float32"] * 2
    assert [node.dtype for node in metrics.MeanSquaredError(dtype="float64").totals(y, p)] == ["float64"] * 2


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(FeedError, match="as many samples"):
        metrics.Accuracy().update_state([1, 2, 3], [1, 2])
    with pytest.raises(ShapeError, match="a true value for each prediction"):
        metrics.BinaryAccuracy().update_state(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(ShapeError, match="a true value for each prediction"):
        metrics.CategoricalAccuracy().update_state([1, 0], np.ones((2, 4)))
    with pytest.raises(ArgumentError, match="an integer of at least 1 as k"):
        metrics.TopKCategoricalAccuracy(0).update_state(np.ones((2, 3)), np.ones((2, 3)))


def test_users_metric() -> None:
    class Largest(metrics.Metric):
        def totals(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> tuple[Node, Node]:
            return mg.sum(mg.max(abs(y_true - y_pred), -1)), mg.sum(mg.ones_like(y_pred[..., 0]))

    metric = metrics.get(Largest)
    assert metric.name == "largest"
    assert metric(np.zeros((2, 2)), np.array([[1.0, 2.0], [4.0, 0.0]])) == 3
