"""Training, testing and predicting: the figures are Keras's, and nothing else than what is said changes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import miai_graph as mg
from executors import Serial
from miai_graph import callbacks, layers, losses, optimizers
from miai_graph.errors import ArgumentError, ModelError
from miai_graph.model import Model, Sequential

RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 4)).astype("float32")
Y = (X @ RNG.normal(size=(4, 1)) + 0.3).astype("float32")
LABELS = (X[:, 0] > 0).astype("int64") + (X[:, 1] > 0.5)


def regression(optimizer: Any = "sgd", **options: Any) -> Sequential:
    model = Sequential([layers.Input((4,)), layers.Dense(1, **options)])
    model.compile(optimizer, "mse", metrics=["mae"])
    return model


def classifier(*extra: Any, **options: Any) -> Sequential:
    model = Sequential(
        [layers.Input((4,)), layers.Dense(16, activation="relu"), *extra, layers.Dense(3, activation="softmax")]
    )
    model.compile(
        **{"optimizer": "adam", "loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"], **options}
    )
    return model


def same(first: Any, second: Any) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


class TestSmallProblemsAreLearned:
    def test_classes(self) -> None:
        model = classifier(layers.BatchNormalization(momentum=0.9), optimizer=optimizers.Adam(0.02))
        history = model.fit(X, LABELS, batch_size=16, epochs=40, verbose=0).history
        assert history["loss"][-1] < history["loss"][0] / 3
        assert model.evaluate(X, LABELS, return_dict=True)["accuracy"] > 0.9

    def test_yes_or_no(self) -> None:
        model = Sequential([layers.Input((4,)), layers.Dense(1, activation="sigmoid")])
        model.compile(optimizers.Adam(0.05), "binary_crossentropy", metrics=["accuracy"])
        model.fit(X, X[:, 0] > 0, epochs=30, verbose=0)
        assert model.evaluate(X, X[:, 0] > 0)[1] > 0.9

    def test_numbers(self) -> None:
        model = regression(optimizers.SGD(0.05, momentum=0.9))
        model.fit(X, Y, epochs=60, verbose=0)
        assert model.evaluate(X, Y)[0] < 1e-3


class TestFigures:
    def test_are_means_weighted_by_batch_sizes(self) -> None:
        """Against a loop in NumPy: gradient descent on 50 samples in batches of 16, 16, 16 and 2."""
        model = regression(optimizers.SGD(0.05), kernel_regularizer="l2")
        w, b = (value.astype("float64") for value in model.get_weights())
        expected: dict[str, list[float]] = {"loss": [], "mae": []}
        for _ in range(3):
            loss_sum = error_sum = 0.0
            for start in range(0, 50, 16):
                x, y = X[start : start + 16], Y[start : start + 16]
                error = x @ w + b - y
                loss_sum += len(x) * float((error**2).mean() + 0.01 * (w**2).sum())
                error_sum += float(np.abs(error).sum())
                w = w - 0.05 * (2 * x.T @ error / len(x) + 0.02 * w)
                b = b - 0.05 * 2 * error.mean(axis=0)
            expected["loss"].append(loss_sum / 50)
            expected["mae"].append(error_sum / 50)
        history = model.fit(X, Y, batch_size=16, epochs=3, shuffle=False, verbose=0).history
        assert list(history) == ["loss", "mae"]
        for name, values in expected.items():
            np.testing.assert_allclose(history[name], values, rtol=1e-4)
        np.testing.assert_allclose(model.get_weights()[0], w, rtol=1e-4)

    @pytest.mark.parametrize("batch_size", [7, 32, 64])
    def test_of_testing_are_those_of_all_data_at_once(self, batch_size: int) -> None:
        model = classifier(weighted_metrics=["accuracy"])
        weights = RNG.uniform(0.5, 2, size=50)
        found = model.evaluate(X, LABELS, batch_size, sample_weight=weights, return_dict=True)
        predictions = model.predict(X)
        right = predictions.argmax(axis=1) == LABELS
        values = -np.log(predictions[np.arange(50), LABELS])
        assert found["loss"] == pytest.approx(float((values * weights).mean()), rel=1e-5)
        assert found["accuracy"] == pytest.approx(float(right.mean()))
        assert found["weighted_accuracy"] == pytest.approx(float((right * weights).sum() / weights.sum()))

    def test_are_returned_as_keras_does(self) -> None:
        model = classifier()
        loss, accuracy = model.evaluate(X, LABELS)
        assert model.evaluate(X, LABELS, return_dict=True) == {"loss": loss, "accuracy": accuracy}
        assert model.test_on_batch(X, LABELS) == pytest.approx([loss, accuracy])
        assert list(model.test_on_batch(X, LABELS, return_dict=True)) == ["loss", "accuracy"]
        model.compile("sgd", "sparse_categorical_crossentropy")
        assert isinstance(model.evaluate(X, LABELS), float)
        assert isinstance(model.train_on_batch(X, LABELS), float)

    def test_of_several_outputs_have_names(self) -> None:
        x = layers.Input((4,))
        number, kind = layers.Dense(1, name="number")(x), layers.Dense(3, activation="softmax", name="kind")(x)
        model = Model(x, [number, kind])
        cross = "sparse_categorical_crossentropy"
        model.compile("sgd", ["mse", cross], loss_weights=[2.0, 0.5], metrics=["mae", "accuracy"])
        figures = model.evaluate(X, [Y, LABELS], return_dict=True)
        assert list(figures) == ["loss", "number_loss", "kind_loss", "number_mae", "kind_accuracy"]
        assert figures["loss"] == pytest.approx(2 * figures["number_loss"] + 0.5 * figures["kind_loss"])
        named = {"kind": LABELS, "number": Y}
        model.compile("sgd", {"kind": cross, "number": "mse"}, {"number": 2.0, "kind": 0.5}, {"number": "mae"})
        again = model.evaluate(X, named, return_dict=True)
        assert again == {name: figures[name] for name in ("loss", "number_loss", "kind_loss", "number_mae")}
        model.compile("sgd", {"kind": cross})
        assert model.evaluate(X, {"kind": LABELS}) == pytest.approx([figures["kind_loss"]] * 2)
        with pytest.raises(ArgumentError, match="number, kind"):
            model.compile("sgd", {"kinds": cross})

    def test_a_model_may_have_its_loss_from_layers(self) -> None:
        class Small(layers.Layer):
            def call(self, inputs: Any) -> Any:
                self.add_loss(mg.mean(mg.square(inputs)))
                return inputs

        model = Sequential([layers.Input((4,)), layers.Dense(2), Small()])
        model.compile(optimizers.SGD(0.1))
        history = model.fit(X, epochs=5, verbose=0).history
        assert history["loss"][-1] < history["loss"][0] / 2


class TestWhatDecidesTheNumbers:
    @staticmethod
    def run(seed: int, **options: Any) -> tuple[dict[str, list[float]], list[Any]]:
        mg.set_seed(seed)
        model = classifier(layers.Dropout(0.3))
        history = model.fit(X, LABELS, **{"batch_size": 16, "epochs": 2, "verbose": 0, **options})
        return history.history, model.get_weights()

    def test_the_seed_does(self) -> None:
        (first, weights), (again, same_weights), (other, _) = (self.run(seed) for seed in (1, 1, 2))
        assert first == again
        assert same(weights, same_weights)
        assert first != other

    def test_shuffling_does(self) -> None:
        assert self.run(1)[0] != self.run(1, shuffle=False)[0]

    def test_verbosity_callbacks_and_validation_do_not(self) -> None:
        class Curious(callbacks.Callback):
            def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
                self.model.evaluate(X, LABELS, verbose=0)

            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                self.model.predict(X)

        plain, weights = self.run(1)
        watched, same_weights = self.run(1, verbose=2, callbacks=[Curious()], validation_data=(X, LABELS))
        assert plain == {name: watched[name] for name in plain}
        assert same(weights, same_weights)

    def test_models_in_between_and_executors_do_not(self) -> None:
        plain, _ = self.run(1)
        classifier(layers.Dropout(0.5)).fit(X, LABELS, verbose=0)
        with mg.executor("serial") as executor:
            assert self.run(1, executor=executor)[0] == plain

    def test_epochs_in_one_fit_or_in_two_are_the_same(self) -> None:
        mg.set_seed(1)
        once = classifier(layers.Dropout(0.3))
        whole = once.fit(X, LABELS, epochs=4, verbose=0).history
        mg.set_seed(1)
        twice = classifier(layers.Dropout(0.3))
        parts = twice.fit(X, LABELS, epochs=2, verbose=0).history
        second = twice.fit(X, LABELS, initial_epoch=2, epochs=4, verbose=0)
        assert second.epoch == [2, 3]
        assert whole == {name: parts[name] + second.history[name] for name in parts}
        assert same(once.get_weights(), twice.get_weights())

    def test_each_epoch_has_an_order_of_its_own(self) -> None:
        orders = []
        model = regression(optimizers.SGD(0.0))
        for _ in range(3):
            history = model.fit(X, Y, batch_size=49, verbose=0, callbacks=[last := LastBatch()])
            assert history.history["loss"]
            orders.append(last.loss)
        assert len(set(orders)) == 3


class LastBatch(callbacks.Callback):
    """Remembers the loss after the last batch but one, which depends on the order of the samples."""

    loss: float

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == 0:
            self.loss = logs["loss"]


class TestModes:
    def test_moving_averages_move_in_fit_only(self) -> None:
        model = classifier(norm := layers.BatchNormalization())
        before = norm.moving_mean.value
        model.evaluate(X, LABELS)
        model.predict(X)
        model.test_on_batch(X, LABELS)
        assert same([norm.moving_mean.value], [before])
        model.train_on_batch(X, LABELS)
        hidden = Model(model.inputs, model.layers[0].output)
        assert norm.moving_mean.value.shape == (16,)
        assert not same([norm.moving_mean.value], [before])
        assert hidden.predict(X).shape == (50, 16)

    def test_dropout_is_off_in_use(self) -> None:
        model = classifier(layers.Dropout(0.9))
        np.testing.assert_array_equal(model.predict(X), model.predict(X))
        weights = model.get_weights()
        hidden = np.maximum(X @ weights[0] + weights[1], 0) @ weights[2] + weights[3]
        expected = np.exp(hidden) / np.exp(hidden).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(model.predict(X), expected, rtol=1e-4)

    def test_a_training_step_has_three_phases(self) -> None:
        history = regression().fit(X, Y, verbose=0)
        assert {"forward", "backward", "update"} <= {record.phase for record in history.timing.records}
        assert history.timing.steps == 2


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows by one whenever a graph is compiled."""
    made: list[Any] = []
    compile_ = Serial.compile

    def counted(self: Any, *arguments: Any) -> Any:
        made.append(arguments)
        return compile_(self, *arguments)

    monkeypatch.setattr(Serial, "compile", counted)
    return made


class TestWhatIsCompiled:
    def test_one_graph_for_all_batch_sizes_and_learning_rates(self, compilations: list[Any]) -> None:
        model = regression()
        model.fit(X, Y, batch_size=16, epochs=2, verbose=0)
        assert len(compilations) == 1
        model.optimizer.learning_rate = 1e-4
        assert model.optimizer.learning_rate == 1e-4
        before = model.get_weights()
        model.fit(X, Y[:, 0], batch_size=7, epochs=2, verbose=0)
        model.fit(X, np.round(Y).astype(int), verbose=0)
        assert len(compilations) == 1
        assert np.abs(model.get_weights()[0] - before[0]).max() < 0.02

    def test_a_step_for_each_set_of_trainable_layers(self, compilations: list[Any]) -> None:
        model = classifier(layers.BatchNormalization())
        model.fit(X, LABELS, verbose=0)
        model.evaluate(X, LABELS)
        assert len(compilations) == 2
        for layer in model.layers[:2]:
            layer.trainable = False
        frozen = [weight for layer in model.layers[:2] for weight in layer.get_weights()]
        last = model.layers[-1].get_weights()
        model.fit(X, LABELS, epochs=3, verbose=0)
        model.evaluate(X, LABELS)
        assert len(compilations) == 3
        assert same(frozen, [weight for layer in model.layers[:2] for weight in layer.get_weights()])
        assert not same(last, model.layers[-1].get_weights())
        for layer in model.layers[:2]:
            layer.trainable = True
        model.fit(X, LABELS, verbose=0)
        assert len(compilations) == 3
        assert not same(frozen, [weight for layer in model.layers[:2] for weight in layer.get_weights()])

    def test_warming_up_compiles_what_is_needed(self, compilations: list[Any]) -> None:
        model = classifier()
        before = model.get_weights()
        model.warmup(batch_size=16)
        assert same(before, model.get_weights())
        assert int(model.optimizer.iterations.value) == 0
        count = len(compilations)
        assert count == 3
        model.fit(X, LABELS, batch_size=16, validation_split=0.2, verbose=0)
        model.predict(X)
        assert len(compilations) == count

    def test_nothing_to_train_is_told(self) -> None:
        model = regression()
        model.trainable = False
        with pytest.raises(ModelError, match="weights to train"):
            model.fit(X, Y)
        assert model.evaluate(X, Y)[0] > 0


class TestExecutors:
    def test_are_used_by_each_call(self) -> None:
        with mg.executor("serial") as executor:
            model = regression()
            model.fit(X, Y, verbose=0, executor=executor)
            figures = model.evaluate(X, Y, executor=executor)
            value = model.predict(X, executor=executor)
        assert model.evaluate(X, Y) == figures
        np.testing.assert_array_equal(model.predict(X), value)
        with pytest.raises(mg.errors.ExecutorError, match="closed"):
            model.fit(X, Y, executor=executor)

    def test_are_those_of_compile_otherwise(self) -> None:
        model = regression()
        with mg.executor("serial") as executor:
            model.compile("sgd", "mse", executor=executor)
            model.warmup(16)
            model.fit(X, Y, verbose=0)
        with pytest.raises(mg.errors.ExecutorError, match="closed"):
            model.predict(X)


class TestKindsOfLosses:
    def test_own_functions_and_objects(self) -> None:
        def cubed(y_true: Any, y_pred: Any) -> Any:
            return mg.mean(mg.absolute(y_true - y_pred) ** 3, axis=-1)

        model = regression()
        for loss in (cubed, losses.LossFunctionWrapper(cubed), [cubed]):
            model.compile("sgd", loss)
            assert model.evaluate(X, Y) == pytest.approx(float((np.abs(model.predict(X) - Y) ** 3).mean()), rel=1e-4)

    def test_crossentropy_by_shape(self) -> None:
        model = classifier(loss="crossentropy", metrics=["ce", "acc"])
        loss, entropy, _ = model.evaluate(X, LABELS)
        assert loss == pytest.approx(entropy)
        one_hot = np.eye(3)[LABELS]
        assert model.evaluate(X, one_hot)[0] == pytest.approx(loss)

    def test_one_that_is_no_scalar_is_told(self) -> None:
        model = regression()
        model.compile("sgd", losses.MeanSquaredError(reduction=None))
        with pytest.raises(ModelError, match="scalar"):
            model.fit(X, Y)

    def test_numbers_per_sample_of_any_rank(self) -> None:
        model = Sequential([layers.Input((3, 4)), layers.Dense(5, activation="softmax")])
        model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
        x, y = RNG.normal(size=(9, 3, 4)), RNG.integers(0, 5, size=(9, 3))
        loss, accuracy = model.evaluate(x, y, batch_size=4)
        predictions = model.predict(x)
        picked = np.take_along_axis(predictions, y[..., None], axis=-1)
        assert loss == pytest.approx(float(-np.log(picked).mean()), rel=1e-5)
        assert accuracy == pytest.approx(float((predictions.argmax(axis=-1) == y).mean()))

    def test_moving_averages_of_weights_take_their_place_after_training(self) -> None:
        model = regression(optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5))
        last: list[Any] = []

        class Look(callbacks.Callback):
            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                last.append(self.model.get_weights())

        model.fit(X, Y, epochs=2, verbose=0, callbacks=[Look()])
        assert not same(last[-1], model.get_weights())
