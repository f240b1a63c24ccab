"""The progress bar: on a terminal only, with all that tells, and gone when it should be."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import numpy as np
import pytest
from real_terminal import on_terminal as run_on_terminal
from real_terminal import plain

from miai_graph import layers
from miai_graph.errors import ArgumentError
from miai_graph.model import Sequential
from miai_graph.progress import ProgressBar, format_figures, resolve_verbose

X = np.random.default_rng(0).normal(size=(50, 4)).astype("float32")
SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"

SCRIPT = textwrap.dedent(
    """
    import sys, time
    import numpy as np
    from executors import Hosts
    from executors.hosts.in_process import InProcessCluster
    from miai_graph import callbacks, layers, metrics
    from miai_graph.model import Sequential

    class Slow(callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            time.sleep(0.005)

        def on_epoch_end(self, epoch, logs=None):
            print("a callback speaks")

    x = np.random.default_rng(0).normal(size=(2000, 4)).astype("f4")
    model = Sequential([layers.Input((4,)), layers.Dense(2, activation="softmax")])
    accuracy = metrics.SparseCategoricalAccuracy(name=sys.argv[3] if len(sys.argv) > 3 else "accuracy")
    executor = Hosts(InProcessCluster(2), 2, micro_batches=2) if "hosts" in sys.argv else "serial"
    model.compile("adam", "sparse_categorical_crossentropy", metrics=[accuracy], executor=executor)
    epochs, verbose = int(sys.argv[1]), sys.argv[2] if sys.argv[2] == "auto" else int(sys.argv[2])
    try:
        model.fit(x, x[:, 0] > 0, epochs=epochs, validation_split=0.1, verbose=verbose, callbacks=[Slow()])
        model.evaluate(x, x[:, 0] > 0, verbose=verbose)
        model.predict(x, verbose=verbose)
    except KeyboardInterrupt:
        print("interrupted")
    """
)


def on_terminal(*arguments: str, encoding: str = "utf-8", **options: Any) -> str:
    """What the script writes to a terminal of that encoding."""
    return run_on_terminal("-c", SCRIPT, *arguments, variables={"PYTHONIOENCODING": encoding}, **options)


class TestOnATerminal:
    @pytest.mark.parametrize("columns", [80, 120])
    def test_the_bar_shows_figures_rate_and_time_left(self, columns: int) -> None:
        written = on_terminal("2", "auto", columns=columns)
        text = plain(written)
        shown = r"epoch 2/2 \S+ +\d+/57 00:0\d [\d,]+ samples/s loss \d\.\d{4}  accuracy \d\.\d{4}"
        assert re.search(shown, text)
        line = (
            r"epoch 2/2  \d\.\d s  [\d,]+ samples/s  loss \d\.\d{4}  accuracy \d\.\d{4}\s+"
            r"val_loss \d\.\d{4}\s+val_accuracy \d\.\d{4}"
        )
        assert re.search(line, text)
        assert re.search(r"evaluate  \d\.\d s  [\d,]+ samples/s  loss \d\.\d{4}  accuracy", text)
        assert text.count("a callback speaks") == 2
        assert written.rindex(SHOW_CURSOR) > written.rindex(HIDE_CURSOR)

    def test_the_share_of_computing_is_shown(self) -> None:
        text = plain(on_terminal("4", "auto", columns=160))
        shown = r"samples/s loss \d\.\d{4}  accuracy \d\.\d{4}  compute (\d+|0\.\d) %"
        assert re.search(r"epoch 4/4 \S+ +\d+/57 00:0\d [\d,]+ " + shown, text)
        assert re.search(r"epoch 4/4  \d\.\d s .* val_accuracy \d\.\d{4}  compute (\d+|0\.\d) %", text)
        assert "compute" not in text.partition("evaluate")[2]

    def test_the_share_of_waiting_is_shown(self) -> None:
        text = plain(on_terminal("4", "auto", "accuracy", "hosts", columns=160))
        shown = r"compute (\d+|0\.\d) %  wait (\d+|0\.\d) %"
        assert re.search(r"epoch 4/4 \S+ +\d+/57 .* " + shown, text)
        assert re.search(r"epoch 4/4  \d\.\d s .* " + shown, text)

    def test_a_terminal_that_knows_ascii_only(self) -> None:
        text = plain(on_terminal("4", "auto", "précision", columns=160, encoding="ascii"))
        assert text.isascii()
        assert re.search(r"epoch 4/4 [ -]+ +\d+/57 00:0\d [\d,]+ samples/s loss \d\.\d{4}  pr\?cision ", text)
        assert re.search(r"epoch 4/4  \d\.\d s .*  pr\?cision \d\.\d{4}", text)

    def test_ctrl_c_gives_the_cursor_back(self) -> None:
        written = on_terminal("1000", "1", interrupt_after="samples/s")
        assert "interrupted" in written
        assert "Traceback" not in written
        assert written.rindex(SHOW_CURSOR) > written.rindex(HIDE_CURSOR)
        assert "epoch 1000" not in written

    @pytest.mark.parametrize(("verbose", "lines"), [("0", 1), ("2", 4)])
    def test_other_verbosities_have_no_bar(self, verbose: str, lines: int) -> None:
        written = on_terminal("1", verbose, columns=160)
        assert "\x1b" not in written
        assert len(written.splitlines()) == lines


class TestElsewhere:
    @staticmethod
    def run(verbose: Any) -> None:
        model = Sequential([layers.Input((4,)), layers.Dense(1)])
        model.compile("sgd", "mse")
        model.fit(X, X[:, 0], epochs=2, verbose=verbose)
        model.evaluate(X, X[:, 0], verbose=verbose)

    @pytest.mark.parametrize("verbose", ["auto", 0])
    def test_nothing_is_written(self, verbose: Any, capfd: pytest.CaptureFixture[str]) -> None:
        self.run(verbose)
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize("verbose", [1, 2])
    def test_lines_are_written_if_they_are_asked_for(self, verbose: int, capfd: pytest.CaptureFixture[str]) -> None:
        self.run(verbose)
        out, err = capfd.readouterr()
        assert err == ""
        assert re.fullmatch(r"(epoch \d/2  .* samples/s  loss .*\n){2}evaluate  .*loss .*\n", out)

    @pytest.mark.parametrize("wrong", ["yes", 3, -1, None, 1.5])
    def test_other_verbosities_are_refused(self, wrong: Any) -> None:
        with pytest.raises(ArgumentError, match="verbose 'auto', 0, 1 or 2"):
            resolve_verbose(wrong)

    def test_closing_twice_does_nothing(self) -> None:
        bar = ProgressBar(1, 32, None)
        bar.close()
        bar.close()


def test_figures_have_as_many_digits_as_tell() -> None:
    logs = {"loss": 0.12345, "tiny": 1.2e-5, "huge": 123456.0, "zero": 0.0, "nan": float("nan"), "note": "text"}
    assert format_figures(logs) == "loss 0.1235  tiny 1.200e-05  huge 1.235e+05  zero 0.0000  nan nan  note text"
    assert format_figures(None) == ""
