"""Models of all kinds: chains, graphs of layers and single ops, subclasses, models in models; and summaries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import miai_graph as mg
from miai_graph import layers
from miai_graph.errors import ArgumentError, DuplicateNameError, FeedError, ModelError, ShapeError
from miai_graph.graph import check_graph
from miai_graph.model import Model, Sequential, load_model

X = np.random.default_rng(0).normal(size=(7, 4)).astype("float32")


def dense(x: np.ndarray, layer: Any) -> np.ndarray:
    kernel, *bias = layer.get_weights()
    return x @ kernel + (bias[0] if bias else 0)


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


class TestSequential:
    def test_is_one_layer_after_another(self) -> None:
        model = Sequential([layers.Input((4,)), layers.Dense(5, activation="relu"), layers.Dense(2)])
        first, second = model.layers
        close(model.predict(X), dense(relu(dense(X, first)), second))
        assert model.built
        assert [weight.shape for weight in model.weights] == [(4, 5), (5,), (5, 2), (2,)]
        assert model.input_shape == (None, 4)
        assert model.output_shape == (None, 2)
        check_graph(model.graph)

    def test_without_input_is_built_by_its_first_data(self) -> None:
        model = Sequential([layers.Dense(5), layers.Dense(2)])
        assert not model.built
        assert model.weights == []
        assert model.predict(X).shape == (7, 2)
        assert model.built
        assert len(model.weights) == 4

    @pytest.mark.parametrize("given", [X, X.astype("float64"), X.tolist(), [X]])
    def test_is_built_as_float32_by_floats(self, given: Any) -> None:
        model = Sequential([layers.Dense(2)])
        assert model.predict(given).dtype == np.float32
        assert model.input.dtype == np.float32

    def test_is_built_by_a_shape(self) -> None:
        model = Sequential([layers.Dense(5), layers.Dense(2)])
        model.build((None, 4))
        assert model.count_params() == 37
        model.build((None, 4))
        assert model.count_params() == 37

    def test_grows_and_shrinks(self) -> None:
        model = Sequential()
        model.add(layers.Input((4,)))
        model.add(layers.Dense(3, name="first"))
        model.add(layers.Dense(2, name="second"))
        assert model.predict(X).shape == (7, 2)
        assert model.pop().name == "second"
        assert model.predict(X).shape == (7, 3)
        assert model.output.shape == (None, 3)
        model.add(layers.ReLU())
        close(model.predict(X), relu(dense(X, model.layers[0])))

    def test_what_cannot_be_added_changes_nothing(self) -> None:
        model = Sequential([layers.Input((4,)), layers.Dense(3, name="first")])
        for wrong, error in (
            (layers.Dense(2, name="first"), DuplicateNameError),
            (model.layers[0], DuplicateNameError),
            (layers.Conv2D(2, 3), ShapeError),
            (layers.Input((3,)), ArgumentError),
            ("dense", ArgumentError),
        ):
            with pytest.raises(error):
                model.add(wrong)
        assert len(model.layers) == 1
        assert model.predict(X).shape == (7, 3)

    def test_there_is_nothing_to_take_from_an_empty_one(self) -> None:
        with pytest.raises(ModelError, match="a layer to take away"):
            Sequential().pop()

    def test_takes_the_inputs_of_a_model_that_stands_first(self) -> None:
        inner = Sequential([layers.Input((4,)), layers.Dense(3)])
        model = Sequential([inner, layers.Dense(2)])
        assert model.built
        close(model.predict(X), dense(inner.predict(X), model.layers[1]))


class TestFunctional:
    def test_has_branches_single_ops_and_shared_layers(self) -> None:
        x = layers.Input((4,))
        shared = layers.Dense(4, activation="relu")
        once = shared(x)
        twice = shared(once)
        joined = mg.concatenate([once + twice, mg.relu(x) * 2.0, x[:, :1]], axis=1)
        model = Model(x, layers.Dense(2)(joined))
        first = relu(dense(X, shared))
        second = relu(dense(first, shared))
        value = np.concatenate([first + second, relu(X) * 2, X[:, :1]], axis=1)
        close(model.predict(X), dense(value, model.layers[1]))
        assert len(model.weights) == 4

    def test_trains_raw_parameters_between_layers(self) -> None:
        x = layers.Input((4,))
        scale = mg.parameter(np.ones(4, "f4"), name="scale")
        model = Model(x, layers.Dense(1)(x * scale))
        model.compile("sgd", "mse")
        assert model.weights[0].name == "scale"
        model.fit(X, X.sum(axis=1), verbose=0)
        assert (scale.value != 1).all()

    def test_several_inputs_and_outputs_in_lists(self) -> None:
        a, b = layers.Input((4,), name="a"), layers.Input((2,), name="b")
        total = layers.Dense(3, name="total")(layers.Concatenate()([a, b]))
        model = Model([a, b], [total, layers.ReLU(name="positive")(total)])
        outputs = model.predict([X, X[:, :2]])
        assert isinstance(outputs, list)
        close(outputs[1], relu(outputs[0]))
        named = model.predict({"b": X[:, :2], "a": X})
        np.testing.assert_array_equal(named[0], outputs[0])
        assert model.output_names == ["total", "positive"]

    def test_several_inputs_and_outputs_in_dictionaries(self) -> None:
        a, b = layers.Input((4,)), layers.Input((2,))
        total = layers.Dense(3)(layers.Concatenate()([a, b]))
        model = Model({"wide": a, "narrow": b}, {"total": total, "positive": mg.relu(total)})
        outputs = model.predict({"narrow": X[:, :2], "wide": X})
        assert list(outputs) == ["total", "positive"] == model.output_names
        close(outputs["positive"], relu(outputs["total"]))
        on_batch = model.predict_on_batch({"narrow": X[:, :2], "wide": X})
        np.testing.assert_array_equal(on_batch["total"], outputs["total"])

    def test_outputs_of_one_layer_get_numbers(self) -> None:
        x = layers.Input((4,))
        shared = layers.Dense(4, name="shared")
        model = Model(x, [shared(x), shared(shared(x))])
        assert model.output_names == ["shared_0", "shared_1"]

    def test_an_output_may_be_an_input(self) -> None:
        x = layers.Input((4,))
        np.testing.assert_array_equal(Model(x, [x, x + 1]).predict(X)[0], X)

    def test_arguments_of_calls_may_be_nodes(self) -> None:
        class Shifted(layers.Layer):
            def call(self, inputs: Any, by: Any = None) -> Any:
                return inputs + by

        x = layers.Input((4,))
        model = Model(x, Shifted()(x, by=layers.Dense(4)(x)))
        assert len(model.weights) == 2
        close(model.predict(X), X + dense(X, model.layers[0]))
        wrapped = Sequential([layers.Input((4,)), model])
        np.testing.assert_array_equal(wrapped.predict(X), model.predict(X))

    def test_a_model_is_a_layer_of_another(self) -> None:
        inner_input = layers.Input((4,))
        inner = Model(inner_input, mg.relu(layers.Dense(3)(inner_input)) + 1.0, name="inner")
        x, y = layers.Input((4,), name="x"), layers.Input((4,), name="y")
        outer = Model([x, y], layers.Subtract()([inner(x), inner(y)]))
        assert [layer.name for layer in outer.layers] == ["inner", "subtract"]
        assert len(outer.weights) == 2
        close(outer.predict([X, 2 * X]), inner.predict(X) - inner.predict(2 * X))
        outer.compile("sgd", "mse")
        before = inner.get_weights()[0]
        outer.fit([X, 2 * X], np.ones((7, 3)), verbose=0)
        assert (inner.get_weights()[0] != before).any()
        close(outer.predict([X, 2 * X]), inner.predict(X) - inner.predict(2 * X))

    def test_models_alike_may_stand_in_one(self, tmp_path: Path) -> None:
        """Their weights have the same names, but are not the same."""

        def tower() -> Model:
            x = layers.Input((4,))
            return Model(x, layers.Dense(2, name="inside")(x))

        first, second = tower(), tower()
        x = layers.Input((4,))
        model = Model(x, first(x) - second(x))
        model.compile("adam", "mse")
        close(model.predict(X), first.predict(X) - second.predict(X))
        check_graph(model.graph)
        model.fit(X, X[:, :2], verbose=0)
        close(model.predict(X), first.predict(X) - second.predict(X))
        model.save(tmp_path / "m")
        again = load_model(tmp_path / "m")
        options: dict[str, Any] = {"epochs": 2, "verbose": 0}
        assert again.fit(X, X[:, :2], **options).history == model.fit(X, X[:, :2], **options).history

    def test_a_model_of_dictionaries_is_a_layer_of_another(self) -> None:
        a, b = layers.Input((4,)), layers.Input((4,))
        inner = Model({"a": a, "b": b}, {"difference": a - b})
        x = layers.Input((4,))
        outer = Model(x, inner({"b": x, "a": 3.0 * x})["difference"])
        close(outer.predict(X), 2 * X)

    def test_another_shape_than_the_inputs_is_refused(self) -> None:
        x = layers.Input((4,))
        model = Model(x, mg.relu(x))
        with pytest.raises(ShapeError, match=r"\(None, 4\).*\(None, 3\)"):
            model(layers.Input((3,)))
        with pytest.raises(ArgumentError, match="1 inputs"):
            model([x, x])

    @pytest.mark.parametrize(
        ("make", "error", "words"),
        [
            (lambda x, y: Model(x, x + y), ModelError, "inputs only"),
            (lambda x, y: Model(x), ArgumentError, "both inputs and outputs"),
            (lambda x, y: Model(x + 1, x), ArgumentError, "made by layers.Input"),
            (lambda x, y: Model(x, 3.0), ArgumentError, "nodes as outputs"),
            (lambda x, y: Model(x, []), ArgumentError, "at least one"),
            (lambda x, y: Model([x, layers.Input((4,), name="x")], x), DuplicateNameError, "inputs of different names"),
            (lambda x, y: Model(x, inside_of(layers.Dense(3)(x))), ModelError, "lies inside of layer"),
            (
                lambda x, y: Model(x, layers.ReLU(name="same")(layers.Dense(3, name="same")(x))),
                DuplicateNameError,
                "layers of different names",
            ),
        ],
    )
    def test_what_is_no_model_is_refused(self, make: Callable[..., Any], error: type[Exception], words: str) -> None:
        with pytest.raises(error, match=words):
            make(layers.Input((4,), name="x"), layers.Input((4,), name="y"))


def inside_of(node: Any) -> Any:
    return node.inputs[0]


class Classifier(Model):
    """A model with a call, layers in a list, and layers in attributes with an underscore."""

    def __init__(self, units: int = 3) -> None:
        super().__init__()
        self.units = units
        self.blocks: list[Any] = []
        for _ in range(2):
            self.blocks.append(layers.Dense(units, activation="relu"))
        self._drop = layers.Dropout(0.5)
        self._last = layers.Dense(2)

    def call(self, inputs: Any, training: bool = False) -> Any:
        for block in self.blocks:
            inputs = block(inputs)
        return self._last(self._drop(inputs, training=training))


class TestSubclass:
    def test_is_built_by_its_first_data(self) -> None:
        model = Classifier()
        with pytest.raises(ModelError, match="not built yet"):
            model.graph  # noqa: B018
        first, second = model.blocks
        value = model.predict(X)
        close(value, dense(relu(dense(relu(dense(X, first)), second)), model._last))
        assert len(model.weights) == 6
        assert {layer.name for layer in model.layers} == {"dense", "dense_1", "dense_2", "dropout"}

    def test_is_trained_in_another_mode_than_it_is_used(self) -> None:
        model = Classifier(64)
        model.compile(mg.optimizers.SGD(0.0), "mse")
        losses = {model.train_on_batch(X, np.zeros((7, 2))), model.test_on_batch(X, np.zeros((7, 2)))}
        assert len(losses) == 2
        assert model.train_on_batch(X, np.zeros((7, 2))) not in losses

    def test_takes_several_inputs_and_gives_dictionaries(self) -> None:
        class Pair(Model):
            def call(self, inputs: Any) -> Any:
                return {"sum": inputs["a"] + inputs["b"], "product": inputs["a"] * inputs["b"]}

        outputs = Pair().predict({"a": X, "b": X + 1})
        close(outputs["sum"], 2 * X + 1)
        close(outputs["product"], X * (X + 1))

    def test_is_a_layer_of_another_model(self) -> None:
        x = layers.Input((4,))
        inner = Classifier()
        model = Model(x, inner(x) * 2.0)
        close(model.predict(X), 2 * inner.predict(X))

    def test_may_add_losses_and_have_a_build(self) -> None:
        class Penalized(Model):
            def build(self, input_shape: Any) -> None:
                self.factor = self.add_weight((input_shape[-1],), "ones", name="factor")

            def call(self, inputs: Any) -> Any:
                self.add_loss(3.0 * mg.sum(mg.square(self.factor)))
                return inputs * self.factor

        model = Penalized()
        model.compile("sgd", "mse")
        assert model.evaluate(X, X, verbose=0) == pytest.approx(12.0)
        assert len(model.weights) == 1

    def test_needs_a_call(self) -> None:
        with pytest.raises(ModelError, match="define call"):
            Model().predict(X)

    def test_is_as_it_was_if_data_do_not_fit(self) -> None:
        model = Sequential([layers.Dense(3), layers.Conv2D(2, 3)])
        with pytest.raises(ShapeError):
            model.predict(X)
        assert not model.built
        assert model.weights == []
        assert not model.layers[0].built
        assert model.predict(np.zeros((2, 5, 5, 1))).shape == (2, 3, 3, 2)

    def test_is_as_it_was_if_data_are_no_arrays(self) -> None:
        model = Sequential([layers.Dense(3)])
        with pytest.raises(FeedError, match="dtype"):
            model.predict(np.array(["a", "b"]))
        assert not model.built


class TestLayersOfAModel:
    def test_are_found_by_name_and_place(self) -> None:
        model = Sequential([layers.Input((4,)), layers.Dense(3, name="first"), layers.Dense(2, name="second")])
        assert model.get_layer("second") is model.get_layer(index=1) is model.get_layer(index=-1)
        for wrong in ({"name": "third"}, {"index": 2}, {"index": -3}, {}):
            with pytest.raises(ArgumentError, match="first, second"):
                model.get_layer(**wrong)

    def test_weights_are_got_and_set(self) -> None:
        model = Sequential([layers.Input((4,)), layers.Dense(3)])
        model.set_weights([np.ones((4, 3)), np.full(3, 2)])
        close(model.predict(X), X.sum(axis=1, keepdims=True) + 2 + np.zeros(3))
        with pytest.raises(ShapeError, match="dense/bias"):
            model.set_weights([np.zeros((4, 3)), np.zeros(2)])
        assert (model.get_weights()[0] == 1).all()

    def test_frozen_ones_are_not_trainable(self) -> None:
        model = Sequential([layers.Input((4,)), layers.Dense(3), layers.BatchNormalization(), layers.Dense(2)])
        model.layers[0].trainable = False
        assert [weight.name.partition("/")[0] for weight in model.trainable_weights] == [
            "batch_normalization",
            "batch_normalization",
            "dense_1",
            "dense_1",
        ]
        assert len(model.non_trainable_weights) == 4
        model.trainable = False
        assert model.trainable_weights == []


class TestSummary:
    def test_has_layers_shapes_parameters_and_flops(self, capsys: pytest.CaptureFixture[str]) -> None:
        x = layers.Input((4,))
        model = Model(x, layers.Dense(2, name="last")(mg.relu(layers.Dense(3, name="[first]")(x))))
        model.layers[0].trainable = False
        model.summary()
        text = capsys.readouterr().out
        assert "[first] (Dense)" in text
        assert "(None, 3)" in text
        assert "23 parameters (92 B), 8 of them trained" in text
        assert f"{2 * 4 * 3 + 3 + 3 + 2 * 3 * 2 + 2:,} flops a sample" in text

    def test_is_there_before_a_model_is_built(self) -> None:
        found: list[str] = []
        Sequential([layers.Dense(3)]).summary(60, found.append)
        assert "?" in found[0]
        assert max(map(len, found[0].splitlines())) <= 60
