"""Models in files: they come back as they were, training goes on where it stood, and what is no model is told."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

import miai_graph as mg
from miai_graph import layers, losses, metrics, optimizers
from miai_graph.errors import SavingError
from miai_graph.model import Model, Sequential, load_model

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 4)).astype("float32")
Y = RNG.normal(size=(40, 2)).astype("float32")


def same(first: Any, second: Any) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


class Scale(layers.Layer):
    """A layer of a user's own, with an argument, a weight and a sublayer."""

    def __init__(self, start: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.start = start
        self.inner = layers.Dense(4)

    def build(self, input_shape: Any) -> None:
        self.factor = self.add_weight((input_shape[-1],), "ones", name="factor")

    def call(self, inputs: Any, by: Any = None) -> Any:
        scaled = self.inner(inputs) * self.factor * self.start
        return scaled if by is None else scaled + by


def own_activation(x: Any) -> Any:
    return mg.tanh(x) * 0.5


def own_loss(y_true: Any, y_pred: Any) -> Any:
    return mg.mean(mg.absolute(y_true - y_pred), axis=-1)


class Net(Model):
    """A model with a call of its own."""

    def __init__(self, units: int = 3, **options: Any) -> None:
        super().__init__(**options)
        self.units = units
        self.hidden = [layers.Dense(units, activation="relu") for _ in range(2)]
        self.last = layers.Dense(2)

    def call(self, inputs: Any) -> Any:
        for layer in self.hidden:
            inputs = layer(inputs)
        return self.last(inputs)


OWN = {"Scale": Scale, "own_activation": own_activation, "own_loss": own_loss, "Net": Net}


def chain() -> Any:
    return Sequential(
        [layers.Input((4,), name="x"), layers.Dense(8, activation="relu"), layers.Dropout(0.3), layers.Dense(2)]
    )


def chain_without_input() -> Any:
    model = Sequential([layers.Dense(8, kernel_regularizer="l2"), layers.BatchNormalization(), layers.Dense(2)])
    model.predict(X)
    return model


def graph_with_skips_and_ops() -> Any:
    x = layers.Input((4,))
    hidden = layers.Dense(4, activation="relu")(x)
    both = mg.relu(hidden + x) * 2.0
    both = mg.concatenate([both, hidden[:, ::2], mg.maximum(x, np.float32(0.1))], axis=1)
    table = np.linspace(0, 1, 10, dtype="f4").reshape(10, 1)
    return Model(x, layers.Dense(2)(layers.Dropout(0.2)(both * mg.mean(table))))


def graph_with_shared_parts() -> Any:
    x = layers.Input((4,))
    shared, scale = layers.Dense(4), mg.parameter(np.full(4, 0.5, "f4"), name="scale")
    return Model(x, layers.Dense(2)(shared(shared(x) * scale)))


def models_in_models() -> Any:
    inner = Sequential(
        [layers.Input((4,)), layers.Dense(4, activation=own_activation), layers.Dropout(0.1)], name="inner"
    )
    late = Sequential([layers.Dense(3), layers.Dense(2)], name="late")
    x = layers.Input((4,))
    return Model(x, late(inner(x) + inner(x * 2.0)))


def own_layers() -> Any:
    x = layers.Input((4,))
    return Model(x, layers.Dense(2)(Scale(2.0)(x, by=layers.Dense(4)(x))))


def own_model() -> Any:
    model = Net(5)
    model.predict(X)
    return model


def partly_frozen() -> Any:
    model = chain()
    model.layers[0].trainable = False
    return model


def random_between() -> Any:
    x = layers.Input((4,))
    return Model(x, layers.Dense(2)(layers.Dropout(0.5, seed=3)(x) * mg.random.uniform(x.type.shape)))


KINDS = [
    chain,
    chain_without_input,
    graph_with_skips_and_ops,
    graph_with_shared_parts,
    models_in_models,
    own_layers,
    own_model,
    partly_frozen,
    random_between,
]
of_each_kind = pytest.mark.parametrize("make", KINDS, ids=[make.__name__ for make in KINDS])


def saved(model: Any, path: Path) -> Any:
    model.save(path)
    return load_model(path, OWN)


class TestRoundTrip:
    @of_each_kind
    def test_the_model_is_the_same(self, make: Callable[[], Any], tmp_path: Path) -> None:
        model = make()
        again = saved(model, tmp_path / "m.miai")
        assert type(again) is type(model)
        assert same(again.get_weights(), model.get_weights())
        if make is not random_between:
            np.testing.assert_array_equal(again.predict(X), model.predict(X))
        assert [weight.shape for weight in again.trainable_weights] == [w.shape for w in model.trainable_weights]
        assert not again.compiled
        twice = saved(again, tmp_path / "again.miai")
        assert same(twice.get_weights(), model.get_weights())

    @of_each_kind
    @pytest.mark.parametrize("optimizer", ["adam", "momentum"])
    def test_training_goes_on_to_the_bit(self, make: Callable[[], Any], optimizer: str, tmp_path: Path) -> None:
        model = make()
        chosen = optimizers.SGD(0.05, momentum=0.9, use_ema=True) if optimizer == "momentum" else "adam"
        model.compile(chosen, "mse", metrics=["mae"])
        model.fit(X, Y, batch_size=16, epochs=2, verbose=0)
        model.optimizer.learning_rate = 0.005
        again = saved(model, tmp_path / "m.miai")
        mg.set_seed(99)
        options: dict[str, Any] = {"batch_size": 16, "epochs": 3, "verbose": 0}
        assert again.optimizer.learning_rate == 0.005
        assert again.fit(X, Y, **options).history == model.fit(X, Y, **options).history
        assert same(again.get_weights(), model.get_weights())
        assert same(
            [node.value for node in again.optimizer.variables], [node.value for node in model.optimizer.variables]
        )

    def test_what_was_frozen_after_training_keeps_its_optimizer_state(self, tmp_path: Path) -> None:
        model = chain()
        model.compile("adam", "mse")
        model.fit(X, Y, verbose=0)
        model.layers[0].trainable = False
        model.fit(X, Y, verbose=0)
        again = saved(model, tmp_path / "m.miai")
        for each in (model, again):
            each.layers[0].trainable = True
        assert again.fit(X, Y, verbose=0).history == model.fit(X, Y, verbose=0).history

    def test_in_another_process(self, tmp_path: Path) -> None:
        model = chain()
        model.compile("adam", "mse")
        model.fit(X, Y, verbose=0)
        model.save(tmp_path / "m.miai")
        np.savez(tmp_path / "data.npz", x=X, y=Y)
        script = """
            import sys
            import numpy as np
            import miai_graph as mg
            from miai_graph import layers
            from miai_graph.model import Sequential, load_model

            Sequential([layers.Input((3,)), layers.Dropout(0.5), layers.Dense(3)])
            data = np.load(sys.argv[1] + "/data.npz")
            model = load_model(sys.argv[1] + "/m.miai")
            more = Sequential([model, layers.Dense(3)])
            assert more.predict(data["x"]).shape == (40, 3)
            print(model.fit(data["x"], data["y"], epochs=2, verbose=0).history["loss"])
            """
        command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        assert json.loads(done.stdout) == model.fit(X, Y, epochs=2, verbose=0).history["loss"]

    def test_inputs_and_outputs_in_dictionaries(self, tmp_path: Path) -> None:
        a, b = layers.Input((4,), name="a"), layers.Input((2,), name="b")
        total = layers.Dense(2)(layers.Concatenate()([a, b]))
        model = Model({"left": a, "right": b}, {"total": total, "parts": [a, b]})
        data = {"left": X, "right": Y}
        again = saved(model, tmp_path / "m.miai").predict(data)
        assert list(again) == ["total", "parts"]
        np.testing.assert_array_equal(again["total"], model.predict(data)["total"])
        np.testing.assert_array_equal(again["parts"][1], Y)

    @pytest.mark.parametrize(
        "options",
        [
            {"loss": own_loss, "metrics": [own_loss, "mae"]},
            {"loss": [losses.Huber(0.5)], "metrics": {"dense_1": [metrics.MeanSquaredError("error")]}},
            {"loss": {"dense_1": "mse"}, "loss_weights": [2.0], "weighted_metrics": ["mae"]},
            {"loss": losses.MeanSquaredError("sum"), "optimizer": optimizers.RMSprop(0.01, rho=0.8, clipnorm=1.0)},
        ],
    )
    def test_what_compile_was_told(self, options: dict[str, Any], tmp_path: Path) -> None:
        model = chain()
        model.compile(**options)
        again = saved(model, tmp_path / "m.miai")
        assert again.evaluate(X, Y, return_dict=True) == model.evaluate(X, Y, return_dict=True)
        assert again.optimizer.get_config() == model.optimizer.get_config()

    def test_without_compiling(self, tmp_path: Path) -> None:
        model = chain()
        model.compile("adam", own_loss)
        model.save(tmp_path / "m.miai")
        assert not load_model(tmp_path / "m.miai", compile=False).compiled

    def test_an_executor_that_is_not_here_is_not_needed(self, tmp_path: Path) -> None:
        model = chain()
        with mg.executor("serial") as executor:
            executor.name = "elsewhere"
            model.compile("adam", "mse", executor=executor)
            model.save(tmp_path / "m.miai")
        assert load_model(tmp_path / "m.miai").evaluate(X, Y) > 0

    def test_a_model_that_is_not_built_yet(self, tmp_path: Path) -> None:
        model = Sequential([layers.Dense(2)])
        model.compile("adam", "mse")
        again = saved(model, tmp_path / "m.miai")
        assert not again.built
        again.fit(X, Y, verbose=0)


class TestWeights:
    def test_are_plain_safetensors(self, tmp_path: Path) -> None:
        model = chain()
        model.compile("adam", "mse")
        model.save(tmp_path / "m.miai")
        model.save_weights(tmp_path / "w.safetensors")
        with zipfile.ZipFile(tmp_path / "m.miai") as archive:
            inside = safetensors.numpy.load(archive.read("weights.safetensors"))
        beside = safetensors.numpy.load_file(tmp_path / "w.safetensors")
        for arrays in (inside, beside):
            assert set(arrays) == {"dense/kernel", "dense/bias", "dense_1/kernel", "dense_1/bias"}
            np.testing.assert_array_equal(arrays["dense_1/kernel"], model.weights[2].value)

    def test_go_to_a_model_of_other_names(self, tmp_path: Path) -> None:
        model, other = chain(), chain()
        model.save_weights(tmp_path / "w")
        other.load_weights(tmp_path / "w")
        assert same(other.get_weights(), model.get_weights())

    def test_of_a_whole_model_are_taken_too(self, tmp_path: Path) -> None:
        model, other = chain(), chain()
        model.save(tmp_path / "m.miai")
        other.load_weights(tmp_path / "m.miai")
        assert same(other.get_weights(), model.get_weights())

    def test_of_other_programs_are_taken_by_name(self, tmp_path: Path) -> None:
        model = chain()
        arrays = {weight.name: np.full(weight.shape, place, "f4") for place, weight in enumerate(model.weights)}
        safetensors.numpy.save_file(dict(reversed(arrays.items())), tmp_path / "w")
        model.load_weights(tmp_path / "w")
        assert [float(value.flat[0]) for value in model.get_weights()] == [0, 1, 2, 3]

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda arrays: arrays.pop("dense/bias"), "expected 4 arrays.*found 3"),
            (lambda arrays: arrays.update(more=np.zeros(3)), "expected 4 arrays.*found 5"),
            (lambda arrays: arrays.update({"dense_1/bias": np.zeros(3)}), r"shape \(2,\) for dense_1/bias.*\(3,\)"),
            (lambda arrays: arrays.update({"dense_1/bias": np.zeros(2, "complex64")}), "complex64|damaged"),
        ],
    )
    def test_that_do_not_fit_change_nothing(self, change: Any, words: str, tmp_path: Path) -> None:
        model = chain()
        before = model.get_weights()
        arrays = {weight.name: np.ones(weight.shape, "f4") for weight in model.weights}
        change(arrays)
        safetensors.numpy.save_file(arrays, tmp_path / "w")
        with pytest.raises(SavingError, match=words):
            model.load_weights(tmp_path / "w")
        assert same(model.get_weights(), before)

    def test_for_a_model_without_any_are_told(self, tmp_path: Path) -> None:
        chain().save_weights(tmp_path / "w")
        with pytest.raises(SavingError, match="before it is built"):
            Sequential([layers.Dense(8)]).load_weights(tmp_path / "w")


class TestWriting:
    def test_is_all_or_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model, path = chain(), tmp_path / "m.miai"
        model.save(path)
        before = path.read_bytes()

        def fails(*_: Any) -> None:
            raise OSError("no space left on device")

        model.layers[0].trainable = False
        for function in ("fsync", "replace"):
            with monkeypatch.context() as patch:
                patch.setattr(os, function, fails)
                with pytest.raises(SavingError, match="no space left"):
                    model.save(path)
        assert path.read_bytes() == before
        assert [file.name for file in tmp_path.iterdir()] == ["m.miai"]

    def test_the_same_model_is_the_same_file(self, tmp_path: Path) -> None:
        model = chain()
        for name in ("a", "b"):
            model.save(tmp_path / name)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    def test_does_not_overwrite_if_told_so(self, tmp_path: Path) -> None:
        (tmp_path / "m").write_text("mine")
        for save in (chain().save, chain().save_weights):
            with pytest.raises(SavingError, match="overwrite=False"):
                save(tmp_path / "m", overwrite=False)
        assert (tmp_path / "m").read_text() == "mine"

    @pytest.mark.parametrize("place", ["", "missing/m", "file/m"])
    def test_where_nothing_can_be_is_told(self, place: str, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(SavingError, match="can be written"):
            chain().save(tmp_path / place)

    @pytest.mark.parametrize(
        "part",
        [
            lambda: layers.Activation(lambda x: x),
            lambda: Forgetful(3),
            lambda: Scale(start=np.ones(4)),  # type: ignore[arg-type]
        ],
    )
    def test_parts_that_cannot_be_told_are(self, part: Any, tmp_path: Path) -> None:
        model = Sequential([layers.Input((4,)), layers.Dense(4), part()])
        with pytest.raises(SavingError, match="plain data"):
            model.save(tmp_path / "m")
        assert not list(tmp_path.iterdir())


class Forgetful(layers.Layer):
    """A layer that does not keep its argument."""

    def __init__(self, units: int, **options: Any) -> None:
        super().__init__(**options)

    def call(self, inputs: Any) -> Any:
        return inputs


def rewritten(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the JSON in a model's file."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    content = json.loads(parts["model.json"])
    change(content)
    parts["model.json"] = json.dumps(content).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


class TestReadingWhatIsNoModel:
    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        for read in (load_model, chain().load_weights):
            with pytest.raises(SavingError, match="can be read"):
                read(tmp_path / "m")

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"text", bytes(100), b"\x80\x04]."])
    def test_other_files(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "m").write_bytes(content)
        for read in (load_model, chain().load_weights):
            with pytest.raises(SavingError):
                read(tmp_path / "m")

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda content: content.update(format=2), "format 1 or earlier; found 2. Update"),
            (lambda content: content.pop("format"), "KeyError"),
            (lambda content: content["model"].update(class_name="Unheard"), "one of .*found 'Unheard'.*custom_objects"),
            (lambda content: content["model"]["config"]["calls"].pop(0), "can be built"),
            (lambda content: content["model"]["config"]["calls"][1].update(op="unheard"), "found 'unheard'"),
            (lambda content: content["compiled"]["arguments"].update(loss="unheard"), "found 'unheard'"),
            (lambda content: content["compiled"].update(optimized=[77]), "can be built"),
            (lambda content: content["compiled"].update(optimized=[]), "arrays in"),
        ],
    )
    def test_a_file_with_something_else_in_it(self, change: Any, words: str, tmp_path: Path) -> None:
        x = layers.Input((4,))
        model = Model(x, layers.Dense(2)(x) * 2.0)
        model.compile("adam", "mse")
        model.fit(X, Y, verbose=0)
        model.save(tmp_path / "m")
        rewritten(tmp_path / "m", change)
        with pytest.raises(SavingError, match=words):
            load_model(tmp_path / "m")

    def test_own_classes_that_were_not_given(self, tmp_path: Path) -> None:
        own_layers().save(tmp_path / "m")
        with pytest.raises(SavingError, match=r"found 'Scale'.*custom_objects"):
            load_model(tmp_path / "m")

    @given(place=st.floats(0, 1, exclude_max=True), kind=st.sampled_from(["cut", "flip", "zero"]))
    def test_damaged_files(self, place: float, kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
        path = tmp_path_factory.getbasetemp() / "damaged.miai"
        mg.set_seed(0)
        model = chain()
        model.compile("adam", "mse")
        model.save(path)
        data = bytearray(path.read_bytes())
        start = int(place * len(data))
        if kind == "cut":
            del data[start:]
        elif kind == "flip":
            data[start] ^= 0xFF
        else:
            data[start : start + 64] = bytes(len(data[start : start + 64]))
        path.write_bytes(data)
        with contextlib.suppress(SavingError):
            # What is changed may not matter, such as a date.
            assert same(load_model(path).get_weights(), model.get_weights())
