"""Callbacks: told of the right moments with the right figures; early stopping and history as in Keras; interruption."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from miai_graph import callbacks, layers
from miai_graph.errors import ArgumentError
from miai_graph.model import Sequential

RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 4)).astype("float32")
Y = (X @ RNG.normal(size=(4, 1)) + 0.3).astype("float32")


def regression() -> Sequential:
    model = Sequential([layers.Input((4,)), layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae"])
    return model


def same(first: Any, second: Any) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


MOMENTS = [name for name in dir(callbacks.Callback) if name.startswith("on_")]


class Recorder(callbacks.Callback):
    """Writes down each moment with its number and the names of its figures."""

    def __init__(self) -> None:
        self.moments: list[tuple[Any, ...]] = []


def recorded(moment: str) -> Any:
    def method(self: Recorder, *arguments: Any) -> None:
        *number, logs = arguments
        self.moments.append((moment.removeprefix("on_"), *number, *logs))

    return method


for _moment in MOMENTS:
    setattr(Recorder, _moment, recorded(_moment))


class TestMoments:
    def test_of_training(self) -> None:
        recorder = Recorder()
        history = regression().fit(
            X,
            Y,
            batch_size=25,
            epochs=2,
            validation_data=(X, Y),
            validation_batch_size=50,
            callbacks=[recorder],
            verbose=0,
        )
        validated = [
            ("test_begin",),
            ("test_batch_begin", 0),
            ("test_batch_end", 0, "loss", "mae"),
            ("test_end", "loss", "mae"),
        ]
        expected: list[tuple[Any, ...]] = [("train_begin",)]
        for epoch in range(2):
            expected.append(("epoch_begin", epoch))
            for batch in range(2):
                expected += [("train_batch_begin", batch), ("train_batch_end", batch, "loss", "mae")]
            expected += [*validated, ("epoch_end", epoch, "loss", "mae", "val_loss", "val_mae")]
        expected.append(("train_end", "loss", "mae", "val_loss", "val_mae"))
        assert recorder.moments == expected
        assert recorder.params == {
            "verbose": 0,
            "epochs": 2,
            "steps": 2,
            "metrics": ["loss", "mae", "val_loss", "val_mae"],
        }
        assert list(history.history) == ["loss", "mae", "val_loss", "val_mae"]

    def test_of_testing_and_predicting(self) -> None:
        recorder, model = Recorder(), regression()
        model.evaluate(X, Y, batch_size=50, callbacks=[recorder])
        assert [moment[0] for moment in recorder.moments] == [
            "test_begin",
            "test_batch_begin",
            "test_batch_end",
            "test_end",
        ]
        recorder.moments.clear()
        model.predict(X, batch_size=50, callbacks=[recorder])
        assert recorder.moments == [
            ("predict_begin",),
            ("predict_batch_begin", 0),
            ("predict_batch_end", 0, "outputs"),
            ("predict_end",),
        ]

    def test_figures_of_batches_are_means_so_far(self) -> None:
        found: list[float] = []

        class Look(callbacks.Callback):
            def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
                found.append(logs["loss"])

        model = regression()
        model.evaluate(X, Y, batch_size=20, callbacks=Look())
        assert found == pytest.approx([model.evaluate(X[:stop], Y[:stop])[0] for stop in (20, 40, 50)])

    def test_what_a_callback_adds_is_kept(self) -> None:
        class Adds(callbacks.Callback):
            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                logs["rate"] = self.model.optimizer.learning_rate

        model = regression()
        assert model.fit(X, Y, callbacks=[Adds()], verbose=0).history["rate"] == [0.01]

    def test_evaluation_and_prediction_may_be_stopped(self) -> None:
        class Stops(callbacks.Callback):
            def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
                self.model.stop_evaluating = True

            def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
                self.model.stop_predicting = True

        model = regression()
        assert model.evaluate(X, Y, batch_size=5, callbacks=[Stops()]) == pytest.approx(model.evaluate(X[:5], Y[:5]))
        assert model.predict(X, batch_size=5, callbacks=[Stops()]).shape == (5, 1)
        assert model.predict(X, batch_size=5).shape == (50, 1)

    @pytest.mark.parametrize("wrong", [[print], ["early_stopping"], [callbacks.EarlyStopping]])
    def test_only_callbacks_are_taken(self, wrong: Any) -> None:
        with pytest.raises(ArgumentError, match="callbacks derived from"):
            regression().fit(X, Y, callbacks=wrong)


class TestHistory:
    def test_has_epochs_figures_and_timing(self) -> None:
        model = regression()
        history = model.fit(X, Y, epochs=5, initial_epoch=2, verbose=0)
        assert history is model.history
        assert history.epoch == [2, 3, 4]
        assert [len(values) for values in history.history.values()] == [3, 3]
        assert all(type(value) is float for values in history.history.values() for value in values)
        assert history.timing.steps == 6
        assert history.params["epochs"] == 5
        assert repr(history).startswith("<History of 3 epochs: loss ")

    def test_of_no_epochs_is_empty(self) -> None:
        assert regression().fit(X, Y, epochs=0, verbose=0).history == {}


class Figures(callbacks.Callback):
    """Reports figures made up, as if training had given them."""

    def __init__(self, name: str, values: Sequence[float]) -> None:
        self.name = name
        self.values = values

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.layers[0].set_weights([np.full((4, 1), epoch), np.zeros(1)])
        logs[self.name] = self.values[epoch]


def stopped(values: Sequence[float], monitor: str = "val_loss", **options: Any) -> tuple[int, int]:
    """After how many epochs training stopped, and the epoch from which the weights are."""
    model = regression()
    stopping = callbacks.EarlyStopping(monitor, **options)
    history = model.fit(X, Y, epochs=len(values), verbose=0, callbacks=[Figures(monitor, values), stopping])
    return len(history.epoch), int(model.get_weights()[0][0, 0])


NAN = float("nan")


class TestEarlyStopping:
    """The expected numbers are those of Keras 3."""

    @pytest.mark.parametrize(
        ("values", "options", "expected"),
        [
            ([3, 2, 1, 2, 3], {}, (4, 3)),
            ([3, 2, 1, 2, 3], {"restore_best_weights": True}, (4, 2)),
            ([3, 2, 1, 2, 0, 3, 3], {"patience": 2}, (7, 6)),
            ([3, 2, 1, 2, 2, 0, 3], {"patience": 2, "restore_best_weights": True}, (5, 2)),
            ([3, 2.95, 2.9, 2.85], {"min_delta": 0.1}, (2, 1)),
            ([3, 2.95, 2.9, 2.85], {"min_delta": -0.1}, (2, 1)),
            ([1, 2, 3, 2], {"mode": "max"}, (4, 3)),
            ([1, 2, 3, 2], {"mode": "min"}, (2, 1)),
            ([5, 4, 3, 2, 1], {"baseline": 2.5}, (5, 4)),
            ([5, 4, 4, 2, 1], {"baseline": 2.5, "restore_best_weights": True}, (3, 1)),
            ([5, 4, 3, 2, 1], {"baseline": 2.5, "patience": 3}, (5, 4)),
            ([5, 6, 7, 3, 4], {"start_from_epoch": 3}, (5, 4)),
            ([5, 6, 7, 3, 4], {"start_from_epoch": 3, "restore_best_weights": True}, (5, 3)),
            ([NAN, NAN, 1], {}, (2, 1)),
            ([3, 2, 1], {"restore_best_weights": True}, (3, 2)),
        ],
    )
    def test_stops_and_goes_back(self, values: list[float], options: dict[str, Any], expected: tuple[int, int]) -> None:
        assert stopped(values, **options) == expected

    def test_nan_is_worse_than_all_else(self) -> None:
        assert stopped([NAN, NAN, 1, 2], restore_best_weights=True, patience=5) == (4, 2)

    @pytest.mark.parametrize(
        ("monitor", "rising"),
        [("val_accuracy", True), ("acc", True), ("auc", True), ("loss_of_mine", False), ("val_mae", False)],
    )
    def test_knows_by_the_name_what_is_better(self, monitor: str, rising: bool) -> None:
        assert stopped([1, 2, 3, 4], monitor)[0] == (4 if rising else 2)

    def test_says_so(self, capsys: pytest.CaptureFixture[str]) -> None:
        stopped([1, 2, 3], verbose=1, restore_best_weights=True)
        assert capsys.readouterr().out.splitlines() == [
            "epoch 2: early stopping",
            "weights set back to those of epoch 1, the best one",
        ]

    def test_begins_anew_in_each_fit(self) -> None:
        model, stopping = regression(), callbacks.EarlyStopping("loss", mode="max")
        for _ in range(2):
            assert len(model.fit(X, Y, epochs=9, verbose=0, callbacks=[stopping]).epoch) == 2

    def test_what_is_not_reported_is_told(self) -> None:
        with pytest.raises(ArgumentError, match=r"found 'val_loss'. There are: loss, mae"):
            regression().fit(X, Y, callbacks=[callbacks.EarlyStopping()])

    def test_waits_for_what_is_not_reported_in_each_epoch(self) -> None:
        history = regression().fit(
            X,
            Y,
            epochs=9,
            validation_data=(X, Y),
            validation_freq=2,
            verbose=0,
            callbacks=[callbacks.EarlyStopping(mode="max", patience=1)],
        )
        assert history.epoch == [0, 1, 2, 3]

    def test_refuses_other_modes(self) -> None:
        with pytest.raises(ArgumentError, match="'auto', 'min' or 'max'"):
            callbacks.EarlyStopping(mode="up")


class TestInterruption:
    def test_an_exception_leaves_the_last_step_that_was_finished(self) -> None:
        class Fails(callbacks.Callback):
            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                if batch == 1:
                    raise RuntimeError("of a callback")

        interrupted, stopped = (regression() for _ in range(2))
        stopped.set_weights(interrupted.get_weights())
        with pytest.raises(RuntimeError, match="of a callback"):
            interrupted.fit(X, Y, batch_size=10, shuffle=False, verbose=0, callbacks=[Fails()])
        stopped.fit(X[:20], Y[:20], batch_size=10, shuffle=False, verbose=0)
        assert same(interrupted.get_weights(), stopped.get_weights())
        assert int(interrupted.optimizer.iterations.value) == 2
        assert interrupted.fit(X, Y, verbose=0).history["loss"]

    @pytest.mark.parametrize("call", ["fit", "evaluate"])
    def test_callbacks_are_closed_however_it_ends(self, call: str) -> None:
        closed: list[str] = []

        class Opens(callbacks.Callback):
            def __init__(self, name: str) -> None:
                self.name = name

            def close(self) -> None:
                closed.append(self.name)

        class Fails(Opens):
            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                raise RuntimeError("of a callback")

            def close(self) -> None:
                super().close()
                raise OSError("while closing")

        model = regression()
        run = getattr(model, call)
        run(X, Y, verbose=0, callbacks=[Opens("first"), Opens("second")])
        assert closed == ["first", "second"]
        with pytest.raises(OSError, match="while closing"):
            run(X, Y, verbose=0, callbacks=[Opens("third"), Fails("fourth")])
        assert closed[2:] == ["third", "fourth"]

    def test_ctrl_c_does_too(self) -> None:
        script = textwrap.dedent(
            """
            import numpy as np
            import miai_graph as mg
            from miai_graph import callbacks, layers
            from miai_graph.model import Sequential

            STEPS_IN_AN_EPOCH = 128

            def made():
                mg.set_seed(0)
                model = Sequential([layers.Input((64,)), layers.Dense(256), layers.Dropout(0.1), layers.Dense(1)])
                model.compile("adam", "mse")
                return model

            class Ready(callbacks.Callback):
                def on_train_batch_end(self, batch, logs=None):
                    if batch == 3:
                        print("ready", flush=True)

            x = np.random.default_rng(0).normal(size=(32 * STEPS_IN_AN_EPOCH, 64)).astype("f4")
            model, again = made(), made()
            try:
                model.fit(x, x[:, 0], epochs=10000, verbose=0, callbacks=[Ready()])
            except KeyboardInterrupt:
                left = done = int(model.optimizer.iterations.value)
                while left:
                    again.fit(x, x[:, 0], steps_per_epoch=min(STEPS_IN_AN_EPOCH, left), verbose=0)
                    left = done - int(again.optimizer.iterations.value)
                for one, other in zip(model.get_weights(), again.get_weights(), strict=True):
                    assert np.array_equal(one, other)
                assert len(model.fit(x, x[:, 0], verbose=0).history["loss"]) == 1
                print("consistent", done > 0)
            """
        )
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
        assert rest.splitlines()[-1] == "consistent True"
        assert process.returncode == 0

    def test_training_can_be_stopped_after_a_batch(self) -> None:
        class Stops(callbacks.Callback):
            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                self.model.stop_training = batch == 2

        model = regression()
        history = model.fit(X, Y, batch_size=5, epochs=9, callbacks=[Stops()], validation_data=(X, Y), verbose=0)
        assert int(model.optimizer.iterations.value) == 3
        assert len(history.history["val_loss"]) == 1
