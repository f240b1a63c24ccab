"""The report: its data, and where its boxes stand."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from made_timings import pipeline_timing
from report_files import HOSTILE, data_of, json_within, simple_timing
from report_timings import made_graph, made_timing

import miai_graph as mg
from miai_graph import layers
from miai_graph.context import WAIT
from miai_graph.errors import ArgumentError, SavingError
from miai_graph.graph import Graph
from miai_graph.report import data as report_data
from miai_graph.timing import Timing


def test_the_data_holds_all_that_was_timed(tmp_path: Path) -> None:
    graph = made_graph(3)
    timing = made_timing(graph, workers=2)
    data = data_of(mg.report(graph, timing, tmp_path / "report.html", title="three"))
    assert data["title"] == "three"
    assert data["run"]["steps"] == timing.steps
    assert data["run"]["verdict"] == list(timing.verdict())
    names = [node["name"] for node in data["nodes"]]
    assert names[: len(graph)] == [graph.names[node] for node in graph.nodes]
    records = data["records"]
    found = {
        (names[node], worker): (seconds, flops)
        for node, worker, seconds, flops in zip(
            records["node"], records["worker"], records["seconds"], records["flops"], strict=True
        )
        if data["nodes"][node]["phase"] != WAIT
    }
    for record in timing.records:
        if record.phase != WAIT:
            assert found[record.node, record.worker] == (pytest.approx(record.seconds, abs=1e-9), record.flops)
    assert len(data["slices"]["node"]) == len(timing.slices)
    assert data["slices"]["start_seconds"] == sorted(data["slices"]["start_seconds"])
    assert [(data["nodes"][a]["name"], data["nodes"][b]["name"]) for a, b in data["edges"]] == [
        (graph.names[source], graph.names[node]) for node in graph.nodes for source in node.inputs
    ]


def test_the_parts_of_each_worker_sum_to_the_whole(tmp_path: Path) -> None:
    graph = made_graph(3)
    data = data_of(mg.report(graph, made_timing(graph, workers=3), tmp_path / "report.html"))
    for worker in data["workers"]:
        assert sum(worker["parts"].values()) == pytest.approx(data["run"]["wall_seconds"], rel=1e-6)


def test_the_description_names_all_that_is_in_the_data(tmp_path: Path) -> None:
    graph = made_graph(2)
    timing = made_timing(graph)
    data = data_of(mg.report(graph, timing, tmp_path / "report.html", compare=timing))
    described = set(re.findall(r"\w+", report_data.__doc__))
    assert data.keys() <= described
    for part in ("records", "slices", "run", "compared"):
        assert data[part].keys() <= described, part
    for part in ("nodes", "boxes", "links", "workers"):
        assert data[part][0].keys() <= described, part


def test_data_is_readable_and_cannot_end_its_element(tmp_path: Path) -> None:
    graph = made_graph(2, name=HOSTILE)
    path = mg.report(graph, simple_timing(graph, HOSTILE), tmp_path / "report.html", title=HOSTILE)
    text = json_within(path)
    assert "<" not in text
    assert max(map(len, text.splitlines())) < 5000
    assert HOSTILE in {node["name"] for node in json.loads(text)["nodes"]}


@pytest.mark.parametrize("blocks", [1, 4, 20])
def test_boxes_neither_overlap_nor_leave_their_drawing(blocks: int, tmp_path: Path) -> None:
    graph = made_graph(blocks)
    data = data_of(mg.report(graph, made_timing(graph), tmp_path / "report.html"))
    siblings = defaultdict(list)
    for box in data["boxes"]:
        siblings[box["parent"]].append(box)
    for parent, boxes in siblings.items():
        outer = data["drawing"]
        width, height = (outer["width"], outer["height"]) if parent is None else data["boxes"][parent]["inside"]
        for box in boxes:
            assert box["width"] / 2 - 0.2 <= box["x"] <= width - box["width"] / 2 + 0.2
            assert box["height"] / 2 - 0.2 <= box["y"] <= height - box["height"] / 2 + 0.2
        for first, second in combinations(boxes, 2):
            assert (
                abs(first["x"] - second["x"]) >= (first["width"] + second["width"]) / 2
                or abs(first["y"] - second["y"]) >= (first["height"] + second["height"]) / 2
            )


def test_nested_layers_are_boxes_within_boxes(tmp_path: Path) -> None:
    x = mg.input("x", (None, 4))
    with mg.name_scope("encoder"):
        value = mg.exp(x)
        for name in ("first", "second"):
            with mg.name_scope(name):
                value = mg.tanh(mg.exp(value))
    graph = Graph([value])
    data = data_of(mg.report(graph, simple_timing(graph, "encoder/first/tanh"), tmp_path / "report.html"))
    boxes = data["boxes"]
    paths = [box["scope"] for box in boxes if box["inside"]]
    assert sorted(paths) == ["encoder", "encoder/first", "encoder/second"]
    (outer,) = (place for place, box in enumerate(boxes) if box["scope"] == "encoder" and box["inside"])
    assert {box["parent"] for box in boxes if box["scope"] == "encoder/first" and box["inside"]} == {outer}


def test_a_layer_that_is_called_twice_makes_no_circle(tmp_path: Path) -> None:
    x = mg.input("x", (None, 4))
    with mg.name_scope("outer"):
        with mg.name_scope("shared"):
            first = mg.tanh(mg.exp(x))
        middle = mg.negative(first)
        with mg.name_scope("shared"):
            last = mg.tanh(mg.exp(middle))
    graph = Graph([last])
    data = data_of(mg.report(graph, simple_timing(graph, "outer/negative"), tmp_path / "report.html"))
    assert {box["scope"] for box in data["boxes"] if box["inside"]} == {"outer"}


def test_models_are_reported_as_they_were_trained(tmp_path: Path, rng: np.random.Generator) -> None:
    model = mg.Sequential([layers.Input((4,)), layers.Dense(3, activation="relu"), layers.Dense(1)])
    model.compile("sgd", "mse")
    history = model.fit(rng.normal(size=(32, 4)).astype("f4"), np.zeros((32, 1), "f4"), verbose=0)
    data = data_of(mg.report(model, history.timing, tmp_path / "report.html"))
    assert data["title"] == model.name
    assert {box["scope"] for box in data["boxes"] if box["parent"] is None} >= {"dense", "dense_1", "sgd"}
    assert {box["phase"] for box in data["boxes"]} == {"forward", "backward", "update"}
    without_box = {node["phase"] for node in data["nodes"] if node["box"] is None}
    assert not without_box & {"forward", "backward", "update"}


def test_wrong_arguments_are_told(tmp_path: Path) -> None:
    graph = made_graph(1)
    timing = made_timing(graph)
    with pytest.raises(ArgumentError, match=r"ends in \.html; found 'report\.png'"):
        mg.report(graph, timing, "report.png")
    with pytest.raises(ArgumentError, match="expected a Timing to report on"):
        mg.report(graph, graph, tmp_path / "report.html")
    with pytest.raises(ArgumentError, match="compare to be the Timing of another run"):
        mg.report(graph, timing, tmp_path / "report.html", compare=3)
    with pytest.raises(ArgumentError, match="expected a model, a Graph or nodes"):
        mg.report("graph", Timing(timing.records, 1), tmp_path / "report.html")
    with pytest.raises(SavingError, match="expected to write a report"):
        mg.report(graph, timing, tmp_path / "nowhere" / "report.html")
    with pytest.raises(SavingError, match="expected to write a report"):
        mg.report(graph, timing, "no\0path.html")
    with pytest.raises(ArgumentError, match="title to be a string, or None; found 3"):
        mg.report(graph, timing, tmp_path / "report.html", title=3)


def test_a_calling_process_that_only_waits_is_no_worker(tmp_path: Path) -> None:
    timing = pipeline_timing()
    data = data_of(mg.report(made_graph(1), timing, tmp_path / "report.html", compare=timing))
    assert [worker["index"] for worker in data["workers"]] == [0, 1]
    assert set(data["records"]["worker"]) == set(data["compared"]["records"]["worker"]) == {0, 1}
    assert data["run"]["notes"] == [
        "Not counted: the calling process, which only gives the workers their work (wait 100 %)"
    ]


def test_workers_stand_in_the_order_of_stages(tmp_path: Path) -> None:
    timing = pipeline_timing()
    workers = [replace(worker, stage=1 - worker.index) for worker in timing.workers if worker.stage is not None]
    other = Timing(timing.records, timing.steps, slices=timing.slices, workers=workers)
    data = data_of(mg.report(made_graph(1), other, tmp_path / "report.html"))
    assert [worker["stage"] for worker in data["workers"] if worker["stage"] is not None] == [0, 1]
