"""What newcomers run into: each mistake is told in words that help, and none goes through in silence."""

from __future__ import annotations

import copy
import io
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import miai_graph as mg
from miai_graph import callbacks, layers
from miai_graph.errors import ArgumentError, DTypeError, FeedError, GraphError, ModelError, ShapeError
from miai_graph.terminal import print_text

X = np.random.default_rng(0).normal(size=(20, 4)).astype("f4")
Y = X.sum(axis=1, keepdims=True)


def dense_model(**options: object) -> mg.Sequential:
    model = mg.Sequential([layers.Input((4,)), layers.Dense(1)])
    model.compile(**{"optimizer": "sgd", "loss": "mse", **options})
    return model


@pytest.mark.parametrize("name", ["item", "numpy", "backward", "grad", "detach", "assign"])
def test_what_other_libraries_call_it(name: str) -> None:
    x = mg.input("x", (None, 3))
    with pytest.raises(AttributeError, match="before the graph runs: "):
        getattr(x, name)
    assert not hasattr(x, "nonsense")


@pytest.mark.parametrize(
    ("build", "error", "words"),
    [
        (lambda x: x + "a", DTypeError, "add: expected a node, an array of numbers, or a number; found 'a'"),
        (lambda x: x * None, DTypeError, "multiply: .* found None"),
        (lambda x: mg.sum(x, axis=3), ShapeError, "sum: expected an axis from -2 to 1; found 3"),
        (lambda x: mg.softmax(x, axis=5), ShapeError, "softmax: expected an axis"),
        (lambda x: mg.one_hot(x, 3), DTypeError, "one_hot: expected integers"),
        (lambda x: f"{x:.3f}", ArgumentError, "formatted number"),
    ],
)
def test_mistakes_are_told_with_the_line(build: object, error: type[Exception], words: str) -> None:
    x = mg.input("x", (None, 3))
    with pytest.raises(error, match=words) as caught:
        build(x)  # type: ignore[operator]
    assert Path(__file__).name in str(caught.value)


def test_nodes_are_not_copied() -> None:
    w = mg.parameter(np.zeros(3, "f4"), "w")
    assert copy.copy(w) is w
    for duplicate in (copy.deepcopy, pickle.dumps):
        with pytest.raises(GraphError, match=r"model\.save"):
            duplicate(w)


def test_values_are_set_by_assign() -> None:
    w = mg.parameter(np.zeros(3, "f4"), "w")
    with pytest.raises(GraphError, match=r"mg\.assign"):
        w.value = np.ones(3)


def test_graphs_do_not_change() -> None:
    graph = mg.Graph(mg.input("x", (None, 3)))
    with pytest.raises(GraphError, match="graphs never change"):
        graph.outputs = ()  # type: ignore[misc]


def test_names_with_a_slip_are_suggested() -> None:
    with pytest.raises(ArgumentError, match="Did you mean Adam"):
        mg.optimizers.get("admm")


def test_layers_that_make_layers_in_each_call_are_refused() -> None:
    class Careless(layers.Layer):
        def call(self, x: mg.Node) -> mg.Node:
            self.inner = layers.Dense(4)
            return self.inner(x)

    model = mg.Sequential([layers.Input((4,)), Careless(), layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(ModelError, match="in __init__ or build"):
        model.fit(X, Y)


def test_a_loss_without_derivative_is_refused() -> None:
    def accuracy_as_loss(y_true: mg.Node, y_pred: mg.Node) -> mg.Node:
        return mg.cast(mg.argmax(y_pred, axis=-1), "float32")

    with pytest.raises(ModelError, match="depends on the weights"):
        dense_model(loss=accuracy_as_loss).fit(X, Y)


def test_weights_that_the_loss_does_not_see_are_warned_of() -> None:
    inputs = layers.Input((4,))
    model = mg.Model(inputs, [layers.Dense(1, name="used")(inputs), layers.Dense(1, name="idle")(inputs)])
    model.compile("sgd", loss={"used": "mse"})
    before = model.get_layer("idle").get_weights()
    with pytest.warns(UserWarning, match="idle/kernel, idle/bias"):
        model.fit(X, {"used": Y})
    for old, new in zip(before, model.get_layer("idle").get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_advice_fits_the_loss() -> None:
    with pytest.raises(FeedError, match="reshape the target"):
        dense_model().fit(X, np.zeros((20, 3)))
    with pytest.raises(FeedError, match="use binary_crossentropy"):
        dense_model(loss="sparse_categorical_crossentropy").fit(X, np.ones(20, int))


@pytest.mark.parametrize(
    "mistake",
    [
        lambda model: model.fit(X, np.full((20, 1), np.nan)),
        lambda model: model.fit(X, Y[:3]),
        lambda model: model.evaluate(X[:0], Y[:0]),
        lambda model: model.predict(np.zeros((3, 5))),
        lambda model: model.train_on_batch(X, np.zeros((20, 3))),
        lambda model: model.add(layers.Dense(1, name=model.layers[0].name)),
    ],
)
def test_mistakes_with_models_are_told_with_the_line(mistake: object) -> None:
    model = dense_model()
    before = model.get_weights()
    with pytest.raises((FeedError, GraphError)) as caught:
        mistake(model)  # type: ignore[operator]
    assert f"at: {__file__}:" in str(caught.value)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_own_functions_are_found_when_a_model_is_loaded(tmp_path: Path) -> None:
    def distance(y_true: mg.Node, y_pred: mg.Node) -> mg.Node:
        return mg.mean(mg.absolute(y_true - y_pred), axis=-1)

    model = dense_model(loss=distance, metrics=[distance])
    model.fit(X, Y)
    model.save(tmp_path / "m.miai")
    again = mg.load_model(tmp_path / "m.miai", custom_objects={"distance": distance})
    assert again.evaluate(X, Y) == model.evaluate(X, Y)


def test_terminate_on_nan() -> None:
    model = dense_model(optimizer=mg.optimizers.SGD(1e30))
    history = model.fit(X, Y, epochs=50, callbacks=[callbacks.TerminateOnNaN()])
    assert len(history.epoch) < 50


@pytest.mark.parametrize("encoding", ["ascii", "cp437", "cp1252", "utf-8"])
def test_text_is_printed_in_any_encoding(encoding: str) -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding)
    print_text("┏━┓ mean µs 64·B ─ é", file)
    file.seek(0)
    assert "mean" in file.read()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no interval timers")
def test_an_interrupt_at_any_time_leaves_a_function_usable() -> None:
    code = """
import signal, numpy as np, miai_graph as mg
x = mg.input("x", (None, 3))
w = mg.parameter(np.zeros(3), "w")
signal.signal(signal.SIGALRM, signal.default_int_handler)
broken = interrupted = 0
for number in range(400):
    step = mg.function([x], [mg.sum(x * w)], {w: w + 1})
    try:
        signal.setitimer(signal.ITIMER_REAL, 2e-5 + number * 1e-6)
        step(np.ones((2, 3), "f4"))
    except KeyboardInterrupt:
        interrupted += 1
    try:
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        pass
    step(np.ones((2, 3), "f4"))
assert (w.value == w.value[0]).all()
print("interrupted", interrupted)
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout.split()[1]) > 50
