"""What is trained and tested on: arrays of all kinds, iterables of batches, weights, validation data, and labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from miai_graph import layers, losses, optimizers
from miai_graph.errors import ArgumentError, FeedError
from miai_graph.model import Model, Sequential

RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 4)).astype("float32")
Y = (X @ RNG.normal(size=(4, 1)) + 0.3).astype("float32")
LABELS = (X[:, 0] > 0).astype("int64") + (X[:, 1] > 0.5)


def regression(optimizer: Any = "sgd") -> Sequential:
    model = Sequential([layers.Input((4,)), layers.Dense(1)])
    model.compile(optimizer, "mse", metrics=["mae"])
    return model


def classifier(optimizer: Any = "adam", classes: int = 3, **options: Any) -> Sequential:
    model = Sequential([layers.Input((4,)), layers.Dense(classes, activation="softmax")])
    model.compile(optimizer, options.pop("loss", "sparse_categorical_crossentropy"), metrics=["accuracy"], **options)
    return model


def same(first: Any, second: Any) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


class TestArrays:
    @pytest.mark.parametrize(
        "given",
        [
            X.astype("float64"),
            X.astype(">f4"),
            X.astype(">f8"),
            np.asfortranarray(X),
            np.repeat(X, 2, axis=0)[::2],
            np.concatenate([X, X], axis=1)[:, :4],
            X[::-1][::-1],
            X.tolist(),
            tuple(map(tuple, X.tolist())),
        ],
        ids=["f8", ">f4", ">f8", "fortran", "rows", "columns", "reversed", "lists", "tuples"],
    )
    def test_all_kinds_and_layouts_give_the_same(self, given: Any) -> None:
        expected, model = regression(), regression()
        model.set_weights(expected.get_weights())
        plain = expected.fit(X, Y, batch_size=16, shuffle=False, verbose=0).history
        assert model.fit(given, Y, batch_size=16, shuffle=False, verbose=0).history == plain
        np.testing.assert_array_equal(model.predict(given), expected.predict(X))

    @pytest.mark.parametrize("shuffle", [True, False])
    @pytest.mark.parametrize("dtype", ["float16", "int8", "uint8", "int64", "uint64", "bool", ">i4"])
    def test_other_numbers_are_cast(self, dtype: str, shuffle: bool) -> None:
        given = (np.abs(X) * 3).astype(dtype)
        model = regression()
        model.fit(given, Y, shuffle=shuffle, verbose=0)
        np.testing.assert_array_equal(model.predict(given), model.predict(given.astype("float32")))

    def test_read_only_ones_stay_as_they_are(self) -> None:
        x, y, weights = X.copy(), Y.copy(), np.ones(50)
        for array in (x, y, weights):
            array.setflags(write=False)
        regression().fit(x, y, sample_weight=weights, verbose=0)
        assert same([x, y], [X, Y])

    def test_an_axis_of_one_may_be_left_out(self) -> None:
        model = Sequential([layers.Input((1,)), layers.Dense(1)])
        model.compile("sgd", "mse")
        assert model.predict(X[:, 0]).shape == (50, 1)
        assert model.evaluate(X[:, 0], Y[:, 0]) == model.evaluate(X[:, :1], Y)

    def test_inputs_with_a_batch_size_take_that_many(self) -> None:
        model = Sequential([layers.Input((4,), batch_size=10), layers.Dense(1)])
        model.compile("sgd", "mse")
        model.fit(X, Y, verbose=0)
        assert int(model.optimizer.iterations.value) == 5
        assert model.predict(X).shape == (50, 1)
        for wrong in ({"batch_size": 5}, {"x": X[:25], "y": Y[:25]}):
            with pytest.raises(FeedError, match="batches of 10"):
                model.fit(**{"x": X, "y": Y, **wrong})

    def test_integers_stay_integers_for_inputs_of_integers(self) -> None:
        model = Sequential([layers.Input((2,), dtype="int32"), layers.Embedding(50, 3), layers.Flatten()])
        assert model.predict(np.arange(20).reshape(10, 2)).shape == (10, 6)
        with pytest.raises(FeedError, match="int32"):
            model.predict(np.ones((10, 2)))

    def test_a_model_is_built_for_the_integers_it_meets_first(self) -> None:
        model = Sequential([layers.Embedding(50, 3)])
        assert model.predict(np.arange(20).reshape(10, 2)).shape == (10, 2, 3)
        assert model.input.dtype == np.int64

    def test_outputs_without_a_batch_axis_are_one_a_batch(self) -> None:
        x = layers.Input((4,))
        model = Model(x, x.mean())
        np.testing.assert_allclose(model.predict(X, 25), [X[:25].mean(), X[25:].mean()], atol=1e-6)


class TestWeights:
    def test_weights_by_class_are_weights_of_samples(self) -> None:
        by_class, by_sample = (classifier("sgd") for _ in range(2))
        by_sample.set_weights(by_class.get_weights())
        weights = np.choose(LABELS, [0.5, 1.0, 3.0])
        first = by_class.train_on_batch(X, LABELS, class_weight={0: 0.5, 2: 3.0})
        assert first == by_sample.train_on_batch(X, LABELS, weights)
        assert same(by_class.get_weights(), by_sample.get_weights())
        # They do not count in validation.
        plain = by_class.evaluate(X[45:], LABELS[45:])
        by_class.optimizer.learning_rate = 0.0
        history = by_class.fit(X, LABELS, validation_split=0.1, class_weight={0: 0.5, 2: 3.0}, verbose=0).history
        assert [history["val_loss"][0], history["val_accuracy"][0]] == pytest.approx(plain)

    def test_sample_weights_for_each_output(self) -> None:
        x = layers.Input((4,))
        model = Model(x, [layers.Dense(1, name="a")(x), layers.Dense(1, name="b")(x)])
        model.compile("sgd", "mse")
        ones, weights = np.ones(50), RNG.uniform(size=50)
        both = model.evaluate(X, [Y, Y], sample_weight=weights, return_dict=True)
        one = model.evaluate(X, [Y, Y], sample_weight={"a": weights, "b": ones}, return_dict=True)
        none = model.evaluate(X, [Y, Y], return_dict=True)
        assert one["a_loss"] == both["a_loss"] != none["a_loss"]
        assert one["b_loss"] == none["b_loss"] != both["b_loss"]

    def test_of_any_shape_that_fits_the_values(self) -> None:
        model = Sequential([layers.Input((3, 4)), layers.Dense(5, activation="softmax")])
        model.compile("sgd", "sparse_categorical_crossentropy", weighted_metrics=["accuracy"])
        x, y = RNG.normal(size=(9, 3, 4)), RNG.integers(0, 5, size=(9, 3))
        weights = RNG.integers(0, 2, size=(9, 3))
        loss, accuracy = model.evaluate(x, y, batch_size=4, sample_weight=weights)
        predictions = model.predict(x)
        values = -np.log(np.take_along_axis(predictions, y[..., None], axis=-1)[..., 0])
        right = predictions.argmax(axis=-1) == y
        assert loss == pytest.approx(float((values * weights).mean()), rel=1e-5)
        assert accuracy == pytest.approx(float((right * weights).sum() / weights.sum()))


class TestValidation:
    def test_takes_the_last_part_before_shuffling(self) -> None:
        split, given = (regression(optimizers.SGD(0.0)) for _ in range(2))
        given.set_weights(split.get_weights())
        first = split.fit(X, Y, validation_split=0.3, verbose=0).history
        last = given.fit(X[:35], Y[:35], validation_data=(X[35:], Y[35:]), verbose=0).history
        assert first["val_loss"] == last["val_loss"]
        np.testing.assert_allclose(first["loss"], last["loss"], rtol=1e-6)

    def test_is_done_when_it_is_due(self) -> None:
        options: dict[str, Any] = {"validation_data": (X, Y), "epochs": 4, "verbose": 0}
        assert len(regression().fit(X, Y, validation_freq=2, **options).history["val_loss"]) == 2
        assert len(regression().fit(X, Y, validation_freq=[1, 3, 4], **options).history["val_loss"]) == 3

    def test_may_stop_early_and_have_other_batches(self) -> None:
        model = regression(optimizers.SGD(0.0))
        history = model.fit(X, Y, validation_data=(X, Y), validation_batch_size=5, validation_steps=2, verbose=0)
        assert history.history["val_loss"][0] == pytest.approx(model.evaluate(X[:10], Y[:10])[0])

    def test_data_take_precedence_of_a_split(self) -> None:
        model = regression(optimizers.SGD(0.0))
        history = model.fit(X, Y, validation_split=0.5, validation_data=(X[:5], Y[:5]), verbose=0).history
        assert history["loss"][0] == pytest.approx(model.evaluate(X, Y)[0])


def batches(size: int = 16) -> Iterator[tuple[Any, Any]]:
    for start in range(0, 50, size):
        yield X[start : start + size], Y[start : start + size]


class Repeatable:
    """Batches by number, and how many there are."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> Any:
        return list(batches())[number]


class TestIterables:
    def test_are_the_same_as_arrays(self) -> None:
        expected = regression()
        start = expected.get_weights()
        history = expected.fit(X, Y, batch_size=16, shuffle=False, verbose=0).history
        for given in (batches(), iter(list(batches())), Repeatable(), (list(pair) for pair in batches())):
            model = regression()
            model.set_weights(start)
            assert model.fit(given, verbose=0).history == history
            assert same(model.get_weights(), expected.get_weights())
        assert expected.evaluate(Repeatable()) == expected.evaluate(X, Y, 16)
        np.testing.assert_array_equal(expected.predict(Repeatable()), expected.predict(X, 16))

    def test_can_hold_weights_and_be_weighted_by_class(self) -> None:
        weights = np.choose(LABELS, [0.5, 1.0, 3.0])
        first, second = (classifier(optimizer="sgd") for _ in range(2))
        second.set_weights(first.get_weights())
        one = first.fit(((X, LABELS, weights) for _ in range(1)), verbose=0).history
        two = second.fit(((X, LABELS) for _ in range(1)), class_weight={0: 0.5, 2: 3.0}, verbose=0).history
        assert one == two

    def test_build_a_model(self) -> None:
        model = Sequential([layers.Dense(1)])
        model.compile("sgd", "mse")
        assert len(model.fit(batches(), verbose=0, validation_data=batches()).history["val_loss"]) == 1

    def test_are_gone_through_again_if_they_can_be(self) -> None:
        assert regression().fit(Repeatable(), epochs=3, verbose=0).history["loss"]
        with pytest.raises(ArgumentError, match="steps_per_epoch"):
            regression().fit(batches(), epochs=2)
        with pytest.raises(ArgumentError, match="validation_steps"):
            regression().fit(X, Y, epochs=2, validation_data=batches())

    @pytest.mark.parametrize(("epochs", "done"), [(2, 2), (3, 2)])
    def test_are_cut_into_epochs(self, epochs: int, done: int) -> None:
        seen: list[float] = []

        def given() -> Iterator[Any]:
            for x, y in batches():
                seen.append(float(x[0, 0]))
                yield x, y

        model = regression()
        if epochs > done:
            with pytest.warns(UserWarning, match="ran out"):
                history = model.fit(given(), epochs=epochs, steps_per_epoch=2, verbose=0)
        else:
            history = model.fit(given(), epochs=epochs, steps_per_epoch=2, verbose=0)
        assert history.epoch == list(range(done))
        assert seen == [float(X[start, 0]) for start in range(0, 50, 16)]
        assert int(model.optimizer.iterations.value) == 4

    def test_arrays_are_cut_into_epochs_too(self) -> None:
        model = regression()
        model.fit(X, Y, batch_size=10, epochs=3, steps_per_epoch=3, verbose=0)
        assert int(model.optimizer.iterations.value) == 9
        model.fit(X, Y, batch_size=10, steps_per_epoch=99, verbose=0)
        assert int(model.optimizer.iterations.value) == 14


class TestLabels:
    @pytest.mark.parametrize("form", [LABELS, LABELS[:, None], LABELS.astype("float64"), LABELS.astype("uint8")])
    def test_class_numbers_in_all_forms_are_the_same(self, form: Any) -> None:
        model = classifier()
        assert model.evaluate(X, form) == model.evaluate(X, LABELS)

    def test_classes_to_ignore_may_be_no_classes(self) -> None:
        model = classifier(loss=losses.SparseCategoricalCrossentropy(ignore_class=-1))
        assert model.evaluate(X, np.where(LABELS == 2, -1, LABELS))[0] > 0
        with pytest.raises(FeedError, match="found -2 at position"):
            model.evaluate(X, LABELS - 2)

    @pytest.mark.parametrize(
        ("target", "words"),
        [
            (LABELS + 1, "from 0 to 2.*found 3 at position"),
            (LABELS - 1, "from 0 to 2.*found -1"),
            (LABELS + 0.5, "whole class numbers.*found"),
            (np.where(LABELS == 1, np.inf, LABELS), "from 0 to 2.*found inf"),
            (np.where(np.arange(50) == 7, np.nan, LABELS), r"nan at position \(7,\) \(1 in all\)"),
            (np.eye(3)[LABELS], "categorical_crossentropy"),
            (np.stack([LABELS] * 2, axis=1), "a class number for each row"),
        ],
    )
    def test_broken_class_numbers_are_told(self, target: Any, words: str) -> None:
        with pytest.raises(FeedError, match=words):
            classifier().fit(X, target)

    def test_labels_of_yes_or_no_are_from_0_to_1(self) -> None:
        model = classifier(classes=1, loss="binary_crossentropy")
        assert model.evaluate(X, LABELS / 2)[0] >= 0
        with pytest.raises(FeedError, match=r"from 0 to 1.*binary_crossentropy; found 2 at"):
            model.fit(X, LABELS)

    @pytest.mark.parametrize("target", [Y[:, 0], Y[..., None], Y.astype("float64")])
    def test_numbers_may_have_an_axis_more_or_less(self, target: Any) -> None:
        model = regression()
        assert model.evaluate(X, target) == model.evaluate(X, Y)

    def test_numbers_of_another_shape_are_told(self) -> None:
        with pytest.raises(FeedError, match=r"shape \(None, 1\).*found \(None, 4\)"):
            regression().fit(X, X)

    def test_own_losses_take_targets_of_any_shape(self) -> None:
        def first_column(y_true: Any, y_pred: Any) -> Any:
            return (y_true[:, :1] - y_pred) ** 2

        model = regression()
        model.compile("sgd", first_column)
        assert model.evaluate(X, X) == pytest.approx(float(((model.predict(X) - X[:, :1]) ** 2).mean()), rel=1e-4)

    def test_targets_are_needed_where_there_is_a_loss(self) -> None:
        with pytest.raises(FeedError, match="targets for dense"):
            regression().fit(X)
        with pytest.raises(ArgumentError, match="as arguments as well"):
            regression().fit(batches(), Y)
