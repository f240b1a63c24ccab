"""What models refuse: each mistake gives one error, in words that help, and changes nothing.

What only shows in a later batch, such as a batch from an iterator, leaves the model as the last whole step left it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import miai_graph as mg
from miai_graph import errors, layers, losses
from miai_graph.errors import ArgumentError, ExecutionError, ExecutorError, FeedError, MiaiGraphError, ModelError
from miai_graph.model import Model, Sequential

RNG = np.random.default_rng(0)
X = RNG.normal(size=(20, 4)).astype("float32")
Y = RNG.normal(size=(20, 2)).astype("float32")
LABELS = RNG.integers(0, 2, size=20)


def trained() -> Sequential:
    """A model with moving averages and an optimizer's state, all of which are not 0."""
    model = Sequential(
        [layers.Input((4,), name="x"), layers.Dense(3), layers.BatchNormalization(), layers.Dense(2, name="y")]
    )
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(X, Y, verbose=0)
    return model


@pytest.fixture
def model() -> Iterator[Sequential]:
    """A model that must be as it was after the test, and usable."""
    made = trained()
    before = state_of(made)
    yield made
    assert all(np.array_equal(one, other) for one, other in zip(before, state_of(made), strict=True))
    made.train_on_batch(X, Y)


def state_of(model: Any) -> list[Any]:
    return [*model.get_weights(), *(node.value for node in model.optimizer.variables)]


OBJECTS = np.array([[1, "a", None, 2.0]] * 20, dtype=object)
WITH_NAN = np.where(np.arange(40).reshape(20, 2) == 5, np.nan, Y)

BAD_ARRAYS: list[tuple[str, dict[str, Any], str]] = [
    ("no x", {"x": None}, "found None as x"),
    ("no y", {"y": None}, "targets for y; found None"),
    ("features", {"x": X[:, :3]}, r"\(None, 4\).*x.*\(20, 3\)"),
    ("rank", {"x": X[:, :, None]}, r"\(None, 4\).*\(20, 4, 1\)"),
    ("vector", {"x": X[:, 0]}, r"\(None, 4\).*\(20,\)"),
    ("number", {"x": 3.0}, r"at least one sample as input 'x'; found shape \(\)"),
    ("objects", {"x": OBJECTS}, "dtype object"),
    ("strings", {"x": X.astype(str)}, "dtype <U"),
    ("complex", {"x": X.astype("complex64")}, "dtype complex64"),
    ("dates", {"x": X.astype("datetime64[s]")}, "dtype datetime64"),
    ("records", {"x": np.zeros(20, [("a", "f4")])}, "expected numbers"),
    ("ragged", {"x": [[1.0], [1.0, 2.0]]}, "expected an array as input 'x'; found list"),
    ("text", {"x": "data.csv"}, "dtype <U8"),
    ("empty", {"x": X[:0], "y": Y[:0]}, "at least one sample"),
    ("shorter y", {"y": Y[:-1]}, "as many samples in each array; found 20 in input, 19 in target"),
    ("longer y", {"y": np.concatenate([Y, Y])}, "as many samples in each array; found 20 in input, 40 in target"),
    ("two inputs", {"x": [X, X]}, r"\(None, 4\).*\(2, 20, 4\)"),
    ("other input", {"x": {"z": X}}, "input for x; found z"),
    ("other output", {"y": {"z": Y}}, "target for y; found z"),
    ("nan", {"y": WITH_NAN}, r"target 'y'; found nan at position \(2, 1\) \(1 in all\)"),
    ("target of strings", {"y": Y.astype(str)}, "target 'y'"),
    ("target of objects", {"y": OBJECTS}, "target 'y'"),
    ("target of another shape", {"y": X}, r"\(None, 2\).*\(None, 4\)"),
    ("class numbers", {"y": LABELS}, "sparse_categorical_crossentropy"),
    (
        "short weights",
        {"sample_weight": np.ones(19)},
        "as many samples in each array; found 20 in input, 20 in target, 19 in sample_weight",
    ),
    ("nan weights", {"sample_weight": np.full(20, np.nan)}, "sample_weight; found nan"),
    ("weights of strings", {"sample_weight": ["a"] * 20}, "sample_weight"),
]


class TestData:
    @pytest.mark.parametrize(
        ("change", "words"), [case[1:] for case in BAD_ARRAYS], ids=[case[0] for case in BAD_ARRAYS]
    )
    @pytest.mark.parametrize("method", ["fit", "evaluate", "train_on_batch", "test_on_batch"])
    def test_that_do_not_fit(self, model: Sequential, method: str, change: dict[str, Any], words: str) -> None:
        with pytest.raises(FeedError, match=words):
            getattr(model, method)(**{"x": X, "y": Y, **change})

    @pytest.mark.parametrize("change", [{"x": X[:, :3]}, {"x": OBJECTS}, {"x": X[:0]}, {"x": None}])
    def test_to_predict(self, model: Sequential, change: dict[str, Any]) -> None:
        with pytest.raises(FeedError):
            model.predict(**change)
        with pytest.raises(FeedError):
            model.predict_on_batch(**change)

    @pytest.mark.parametrize(
        "given",
        [
            iter([]),
            [],
            iter([(X, Y, np.ones(20), 1)]),
            iter([X]),
            iter([(X[:, :3], Y)]),
            iter([(X[:0], Y[:0])]),
            iter([(X, Y[:-1])]),
        ],
        ids=["none", "empty list", "four parts", "no targets", "features", "no samples", "lengths"],
    )
    def test_in_batches(self, model: Sequential, given: Any) -> None:
        with pytest.raises(FeedError):
            model.fit(given)

    def test_in_a_later_batch_leave_what_was_learned_before(self) -> None:
        model = trained()
        with pytest.raises(FeedError, match=r"\(20, 3\)"):
            model.fit(iter([(X, Y), (X[:, :3], Y)]), verbose=0)
        assert int(model.optimizer.iterations.value) == 2
        assert np.isfinite(model.fit(X, Y, verbose=0).history["loss"]).all()

    def test_for_validation(self, model: Sequential) -> None:
        for wrong in ((X, Y[:-1]), (X[:, :3], Y), (X, WITH_NAN), X, (X,), iter([])):
            with pytest.raises(FeedError):
                model.fit(X, Y, validation_data=wrong)

    def test_weighted_by_class(self, model: Sequential) -> None:
        three = Sequential([layers.Input((3, 4)), layers.Dense(2)])
        three.compile("sgd", "mse")
        with pytest.raises(FeedError, match="one class a sample"):
            three.fit(np.zeros((5, 3, 4)), np.zeros((5, 3, 2)), class_weight={0: 1.0})
        for wrong in ([1.0, 2.0], {"a": 1.0}, {0: "much"}, {0: float("nan")}, 3.0):
            with pytest.raises(ArgumentError, match="class_weight"):
                model.fit(X, Y, class_weight=wrong)

    def test_that_fail_in_the_graph_change_nothing(self) -> None:
        model = Sequential([layers.Input((2,)), layers.Embedding(5, 3), layers.Flatten(), layers.Dense(1)])
        model.compile("adam", "mse")
        good = np.ones((10, 2))
        model.fit(good, good[:, 0], verbose=0)
        before = state_of(model)
        with pytest.raises(ExecutionError, match="take failed"):
            model.fit(good * 7, good[:, 0], verbose=0)
        assert all(np.array_equal(one, other) for one, other in zip(before, state_of(model), strict=True))
        model.fit(good, good[:, 0], verbose=0)


class TestArguments:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            *(({"batch_size": wrong}, "batch_size") for wrong in (0, -1, 2.0, 2.5, "32", True)),
            *(({"epochs": wrong}, "epochs") for wrong in (-1, 1.5, "3", None, True)),
            ({"initial_epoch": 2}, "initial_epoch"),
            *(({"validation_split": wrong}, "validation_split") for wrong in (-0.1, 1.0, 1.5, float("nan"), "half")),
            *(({"steps_per_epoch": wrong}, "steps_per_epoch") for wrong in (0, -1, 1.5)),
            ({"validation_data": (X, Y), "validation_steps": 0}, "validation_steps"),
            ({"validation_data": (X, Y), "validation_freq": 0}, "validation_freq"),
            ({"validation_data": (X, Y), "validation_batch_size": 0}, "validation_batch_size"),
            ({"verbose": 3}, "verbose"),
            ({"callbacks": ["early_stopping"]}, "callbacks"),
        ],
    )
    def test_of_fit(self, model: Sequential, change: dict[str, Any], words: str) -> None:
        with pytest.raises(ArgumentError, match=words):
            model.fit(X, Y, **change)

    def test_a_split_that_leaves_nothing(self, model: Sequential) -> None:
        with pytest.raises(FeedError, match="both sides"):
            model.fit(X[:1], Y[:1], validation_split=0.1)

    @pytest.mark.parametrize("change", [{"batch_size": 0}, {"steps": 0}, {"steps": 1.5}, {"verbose": 7}])
    def test_of_evaluate_and_predict(self, model: Sequential, change: dict[str, Any]) -> None:
        for call in (lambda: model.evaluate(X, Y, **change), lambda: model.predict(X, **change)):
            with pytest.raises(ArgumentError):
                call()

    @pytest.mark.parametrize("wrong", ["parallel", 3, Sequential])
    def test_executors_that_are_none(self, model: Sequential, wrong: Any) -> None:
        for call in (
            lambda: model.fit(X, Y, executor=wrong),
            lambda: model.evaluate(X, Y, executor=wrong),
            lambda: model.predict(X, executor=wrong),
            lambda: model.warmup(executor=wrong),
            lambda: model.compile("sgd", "mse", executor=wrong),
        ):
            with pytest.raises(ExecutorError, match="'serial'" if wrong == "parallel" else "the name of one"):
                call()

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"optimizer": "adamm"}, "an optimizer, one of Adam, RMSprop, SGD; found 'adamm'"),
            ({"optimizer": None}, "expected an optimizer; found None"),
            ({"optimizer": 3}, "expected an optimizer"),
            ({"loss": "msee"}, "a loss, one of .*MeanSquaredError.*; found 'msee'"),
            ({"loss": 3}, "expected a loss"),
            ({"loss": {"z": "mse"}}, "outputs y; found z"),
            ({"loss": ["mse", "mse"]}, "each of 1 outputs; found 2"),
            ({"metrics": ["acuracy"]}, "a metric, one of .*CategoricalAccuracy.*; found 'acuracy'"),
            ({"metrics": [3]}, "expected a metric"),
            ({"metrics": {"z": "mae"}}, "outputs y; found z"),
            ({"loss_weights": [1.0, 2.0]}, "each of 1 outputs; found 2"),
            ({"loss_weights": ["a"]}, "numbers as loss_weights"),
        ],
    )
    def test_of_compile(self, model: Sequential, change: dict[str, Any], words: str) -> None:
        with pytest.raises(ArgumentError, match=words):
            model.compile(**{"optimizer": "sgd", "loss": "mse", **change})
        assert type(model.optimizer).__name__ == "Adam"


class TestModels:
    @pytest.mark.parametrize("method", ["fit", "evaluate", "train_on_batch", "test_on_batch"])
    def test_that_are_not_compiled(self, method: str) -> None:
        model = Sequential([layers.Dense(2)])
        with pytest.raises(ModelError, match=r"to be compiled.*model\.compile"):
            getattr(model, method)(X, Y)
        with pytest.raises(ModelError, match="to be compiled"):
            model.optimizer  # noqa: B018

    def test_without_a_loss(self) -> None:
        model = Sequential([layers.Input((4,)), layers.Dense(2)])
        model.compile("sgd")
        for call in (model.fit, model.evaluate, model.train_on_batch):
            with pytest.raises(ModelError, match=r"expected a loss; found none"):
                call(X, Y)

    def test_that_were_not_built(self) -> None:
        model = Sequential([layers.Dense(2)])
        for wrong in (lambda: model.graph, lambda: model.inputs, lambda: model.outputs, lambda: model.output_names):
            with pytest.raises(ModelError, match="not built yet"):
                wrong()
        with pytest.raises(ModelError, match="not built yet"):
            model.warmup()

    @pytest.mark.parametrize(
        "make",
        [
            lambda: Sequential([layers.Dense(3, name="a"), layers.Dense(3, name="a")]),
            lambda: Sequential([3]),
            lambda: Sequential([layers.Input((4,)), layers.Conv2D(3, 3)]),
            lambda: Model(layers.Input((4,)), layers.Input((4,))),
            lambda: Model([X], [X]),
        ],
    )
    def test_that_cannot_be_made(self, make: Callable[[], Any]) -> None:
        with pytest.raises(MiaiGraphError):
            make()

    def test_with_inputs_named_like_what_training_adds(self) -> None:
        x = layers.Input((4,), name="y_target")
        weight = layers.Input((2,), name="y_sample_weight")
        model = Model([x, weight], layers.Dense(2, name="y")(x) * weight)
        model.compile("sgd", "mse")
        assert model.fit([X, Y], Y, sample_weight=np.ones(20), verbose=0).history["loss"]

    def test_losses_that_do_not_fit_the_output_are_told_with_it(self, model: Sequential) -> None:
        def wrong(y_true: Any, y_pred: Any) -> Any:
            return y_true[:, :1] @ y_pred

        other = Sequential([layers.Input((4,)), layers.Dense(2)])
        other.compile("sgd", wrong)
        with pytest.raises(errors.ShapeError, match="matmul"):
            other.fit(X, Y)
        other.compile("sgd", losses.MeanSquaredError())
        other.fit(X, Y, verbose=0)

    def test_rows_that_are_no_numbers_stay_nan(self) -> None:
        """Inputs may be nan: it is the model's affair what becomes of it."""
        x = layers.Input((4,))
        model = Model(x, mg.where(mg.isfinite(x), x, 0.0))
        assert np.isfinite(model.predict(np.full((3, 4), np.nan))).all()
