"""The page that follows a training: who is answered, what a browser sees, and that nothing is left of it."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from real_browser import Opened, launched_browser
from report_files import DATA, data_of

import miai_graph as mg
from miai_graph import callbacks, layers
from miai_graph.errors import ArgumentError, SavingError
from miai_graph.report.live import Curves
from miai_graph.report.server import ReportServer


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched_browser() as browser:
        yield browser


UNTIL_OVER = """
    const { store } = report;
    await new Promise((done) => {
        const look = () => store.data.live.is_over && done();
        store.on("data", look);
        look();
    });
    return true;
"""


class Gate(callbacks.Callback):
    """Holds a training after its first step until it may go on."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.reached.set()
        assert self.open.wait(60)


def small_model() -> mg.Sequential:
    model = mg.Sequential([layers.Input((4,)), layers.Dense(3, activation="relu"), layers.Dense(1)], name="trained")
    model.compile("sgd", "mse", metrics=["mae"])
    return model


@pytest.fixture
def in_training() -> Iterator[Callable[..., tuple[callbacks.LiveReport, Gate, threading.Thread]]]:
    """Starts a training in a thread, which waits after its first step."""
    started: list[tuple[threading.Thread, Gate]] = []
    model = small_model()

    def start(**options: Any) -> tuple[callbacks.LiveReport, Gate]:
        live, gate = callbacks.LiveReport(refresh_seconds=0, **options), Gate()
        x = np.random.default_rng(0).normal(size=(64, 4)).astype("f4")
        arguments = {"epochs": 3, "validation_split": 0.25, "verbose": 0, "callbacks": [live, gate]}
        thread = threading.Thread(target=model.fit, args=(x, x[:, :1]), kwargs=arguments)
        thread.start()
        started.append((thread, gate))
        assert gate.reached.wait(60)
        return live, gate, thread

    yield start
    for thread, gate in started:
        gate.open.set()
        thread.join(60)
        assert not thread.is_alive()


def answer(port: int, path: str, host: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers={"Host": host})
    response = connection.getresponse()
    found = response.status, response.read().decode()
    connection.close()
    return found


def port_of(live: callbacks.LiveReport) -> int:
    return port_at(live.address)


def port_at(address: str) -> int:
    return int(address.rstrip("/").rpartition(":")[2])


@pytest.mark.browser
def test_the_live_page_follows_the_training_to_its_end(
    browser: Any, in_training: Any, tmp_path: Path, capsys: Any
) -> None:
    live, gate, _ = in_training(path=tmp_path / "trained.html")
    assert f"live report: {live.address}" in capsys.readouterr().out
    context = browser.new_context()
    opened = Opened(context, live.address)
    assert opened.page.locator("h1").inner_text() == "trained"
    assert not opened.ask("return report.store.data.live.is_over")
    opened.page.locator("#by").select_option("node")
    gate.open.set()
    assert opened.ask(UNTIL_OVER)
    assert opened.page.locator("#state").inner_text() == "✓ training is over"
    assert opened.ask("return report.store.data.run.steps") == 6
    assert opened.page.locator("#curves .uplot").count() == 3
    assert opened.page.locator("#by").input_value() == "node"
    assert opened.complaints == []
    assert all(address.startswith(opened.page.url) for address in opened.requests)
    context.close()
    curves = data_of(tmp_path / "trained.html")["curves"]
    assert curves["x"][-1] == 3
    assert {"loss", "mae", "val_loss", "val_mae", "seconds a step"} <= curves.keys()


@pytest.mark.browser
def test_the_saved_live_page_needs_no_server(browser: Any, tmp_path: Path) -> None:
    x = np.ones((8, 4), "f4")
    live = callbacks.LiveReport(path=tmp_path / "trained.html")
    small_model().fit(x, x[:, :1], epochs=2, verbose=0, callbacks=[live])
    context = browser.new_context()
    opened = Opened(context, (tmp_path / "trained.html").as_uri())
    assert opened.page.locator("#curves .uplot").count() == 3
    assert opened.page.locator("#state").inner_text() == ""
    assert (opened.complaints, opened.requests) == ([], [])
    context.close()


def test_only_this_machine_by_its_own_name_is_answered(in_training: Any) -> None:
    live, _, _ = in_training()
    port = port_of(live)
    assert live.address == f"http://127.0.0.1:{port}/"
    for host in (f"127.0.0.1:{port}", f"localhost:{port}"):
        status, page = answer(port, "/", host)
        assert status == 200
        assert DATA.search(page)
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port}.evil.example", ""):
        assert answer(port, "/", host)[0] == 403
        assert answer(port, "/data", host)[0] == 403
    assert answer(port, "/../../etc/passwd", f"localhost:{port}")[0] == 404
    status, text = answer(port, "/data?after=0", f"localhost:{port}")
    assert status == 200
    assert json.loads(text)["live"]["version"] >= 1


def test_nothing_is_served_after_training(in_training: Any) -> None:
    live, gate, thread = in_training()
    port = port_of(live)
    silent = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    silent.connect()
    gate.open.set()
    thread.join(60)
    assert live.address is None
    with pytest.raises(ConnectionRefusedError):
        answer(port, "/", f"localhost:{port}")
    silent.close()


def servers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "miai-graph live report"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_training_that_fails_leaves_nothing_open(error: type[BaseException]) -> None:
    ports: list[int] = []

    class Fails(callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            ports.append(port_of(live))
            raise error("stop")

    live = callbacks.LiveReport()
    x = np.ones((8, 4), "f4")
    with pytest.raises(error, match="stop"):
        small_model().fit(x, x[:, :1], verbose=0, callbacks=[live, Fails()])
    assert live.address is None
    assert not servers()
    with pytest.raises(ConnectionRefusedError):
        answer(ports[0], "/", f"localhost:{ports[0]}")
    live.close()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_page_of_a_training_that_fails_is_written(error: type[BaseException], tmp_path: Path) -> None:
    class Fails(callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch == 2:
                raise error("stop")

    x = np.ones((32, 4), "f4")
    path = tmp_path / "failed.html"
    with pytest.raises(error, match="stop"):
        small_model().fit(x, x[:, :1], 8, verbose=0, callbacks=[callbacks.LiveReport(path=path), Fails()])
    data = data_of(path)
    assert data["live"] is None
    assert data["run"]["steps"] == 3
    assert len(data["curves"]["x"]) == 3


def test_the_page_of_a_training_that_fails_at_once_is_written(tmp_path: Path) -> None:
    def batches() -> Iterator[Any]:
        yield np.ones((8, 4), "f4"), np.ones((8, 1), "f4")
        raise OSError("the disk is gone")

    path = tmp_path / "failed.html"
    with pytest.raises(OSError, match="the disk is gone"):
        small_model().fit(batches(), verbose=0, callbacks=[callbacks.LiveReport(path=path)])
    assert data_of(path)["run"]["steps"] <= 1
    assert not servers()


def test_a_training_that_cannot_begin_leaves_nothing_open() -> None:
    x = np.ones((8, 4), "f4")
    taken = ReportServer(str)
    try:
        lives = [callbacks.LiveReport(), callbacks.LiveReport(port_at(taken.address))]
        with pytest.raises(ArgumentError, match="that is free"):
            small_model().fit(x, x[:, :1], verbose=0, callbacks=lives)
        assert len(servers()) == 1
    finally:
        taken.close()


def test_paths_that_cannot_be_written_are_told_before_training(tmp_path: Path) -> None:
    x = np.ones((8, 4), "f4")
    model = small_model()
    (tmp_path / "folder.html").mkdir()
    for path in (tmp_path / "nowhere" / "page.html", tmp_path / "folder.html"):
        with pytest.raises(SavingError, match="expected to write a report to"):
            model.fit(x, x[:, :1], verbose=0, callbacks=[callbacks.LiveReport(path=path)])
    assert int(model.optimizer.iterations.value) == 0
    assert not servers()


def test_one_report_given_twice_ends_with_the_training() -> None:
    x = np.ones((8, 4), "f4")
    live = callbacks.LiveReport()
    small_model().fit(x, x[:, :1], verbose=0, callbacks=[live, live])
    assert not servers()


def test_long_trainings_keep_few_points() -> None:
    curves = Curves()
    for batch in range(10_000):
        curves.add_batch((batch + 1) / 10_000, {"loss": float("nan") if batch == 9_999 else 1.0})
    curves.add_epoch(1, {"loss": 1.0, "val_loss": float("inf")})
    columns = curves.columns()
    assert 900 < len(columns["x"]) <= 2001
    assert columns["x"] == sorted(columns["x"])
    assert columns["val_loss"][-1] is None
    assert len(columns["loss"]) == len(columns["x"])


def test_ports_that_cannot_be_had_are_told() -> None:
    with pytest.raises(ArgumentError, match="expected a port from 0 to 65535; found 70000"):
        ReportServer(str, 70000)
    server = ReportServer(str)
    port = port_at(server.address)
    try:
        with pytest.raises(ArgumentError, match="that is free"):
            ReportServer(str, port)
    finally:
        server.close()
    with pytest.raises(ArgumentError, match="expected a port from 0 to 65535; found '80'"):
        callbacks.LiveReport(port="80")
    with pytest.raises(ArgumentError, match="refresh_seconds"):
        callbacks.LiveReport(refresh_seconds=-1)
