"""Nodes that one kernel computes, in timings: traces, tables, graphs and pictures tell of all of them."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_timings import STEPS, piece, record

import miai_graph as mg
from miai_graph import layers
from miai_graph.context import BACKWARD, FORWARD, UPDATE
from miai_graph.timing import TimedWorker, Timing
from miai_graph.timing.grouping import NOT_COMPUTING
from miai_graph.views import plot_timing
from miai_graph.views.lanes import Lanes
from miai_graph.views.traced_steps import traced_steps

WORKER = TimedWorker(0, "near", flops_per_second=40e9, bytes_per_second=10e9)


def kernel_timing() -> Timing:
    """Three of four forward nodes, of two layers, are computed at once: in 0.4 s of arithmetic 1 : 2 : 1."""
    kernel = {"kernel": "norm/add"}
    records = [
        record("dense/matmul", 0.4, layer="dense", flops=8_000_000_000, bytes=1_000_000_000),
        record("dense/relu", 0.1, layer="dense", op="relu", flops=1_000_000_000, bytes=2_000_000_000, **kernel),
        record("norm/square", 0.2, layer="norm", op="square", flops=2_000_000_000, **kernel),
        record("norm/add", 0.1, layer="norm", op="add", flops=1_000_000_000, bytes=2_000_000_000, **kernel),
        record("dense/gradient", 0.2, layer="dense", phase=BACKWARD, op="relu_gradient", flops=1_000_000_000),
    ]
    slices = [
        piece("dense/matmul", FORWARD, 0.0, 0.04),
        piece("norm/add", FORWARD, 0.04, 0.04, nodes=("dense/relu", "norm/square", "norm/add")),
        piece("dense/gradient", BACKWARD, 0.08, 0.02),
    ]
    return Timing(records, STEPS, slices=slices, workers=[WORKER])


def events(timing: Timing, folder: Path) -> list[dict[str, object]]:
    timing.to_chrome_trace(folder / "trace.json")
    return json.loads((folder / "trace.json").read_text())["traceEvents"]


def test_a_slice_tells_all_nodes_that_were_computed_in_it(tmp_path: Path) -> None:
    slices = {event["name"]: event["args"] for event in events(kernel_timing(), tmp_path) if event["ph"] == "X"}
    together = slices["norm/add"]
    assert together["computes"] == ["dense/relu", "norm/square", "norm/add"]
    assert together["layer"] == "dense, norm"
    assert together["op"] == "relu, square, add"
    assert together["mean_us"] == pytest.approx(0.4 / STEPS * 1e6)
    assert "computes" not in slices["dense/matmul"]
    assert slices["dense/matmul"]["layer"] == "dense"


def test_arrows_lead_from_a_kernel_to_the_gradient_of_each_of_its_nodes(tmp_path: Path) -> None:
    arrows = [event for event in events(kernel_timing(), tmp_path) if event["ph"] in "sf"]
    # Without a graph, a gradient is that of a layer: of dense, whose last forward node is in the kernel.
    assert [(event["ph"], round(event["ts"])) for event in arrows] == [("s", 40_000), ("f", 100_000)]


def test_every_node_of_a_trained_model_is_in_a_slice(tmp_path: Path) -> None:
    mg.set_seed(0)
    model = mg.Sequential([layers.Input((8,)), layers.Dense(16, "relu"), layers.BatchNormalization(), layers.Dense(2)])
    model.compile("adam", "mse")
    x = np.random.default_rng(0).normal(size=(64, 8)).astype("f4")
    timing = model.fit(x, x[:, :2], batch_size=16, epochs=2, verbose=0).timing
    computed = defaultdict(list)
    for event in events(timing, tmp_path):
        if event["ph"] == "X" and event["cat"] in (FORWARD, BACKWARD, UPDATE):
            computed[event["args"]["step"]] += event["args"].get("computes", [event["name"]])
    nodes = sorted(record.node for record in timing.records if record.phase not in NOT_COMPUTING)
    assert list(computed) == [0, 7]
    assert all(sorted(names) == nodes for names in computed.values())
    assert {name for name, data in timing.to_networkx().nodes(data=True) if data["kernel"]} == {
        record.node for record in timing.records if record.kernel
    }


def test_what_a_kernel_computes_has_its_speed() -> None:
    lines = {line.split()[0]: line.split() for line in kernel_timing().format_table("node").splitlines()}
    assert [lines[name][6:9] for name in ("dense/relu", "norm/square", "norm/add")] == [["10.00", "10.00", "100%"]] * 3
    assert lines["dense/matmul"][6:9] == ["20.00", "2.50", "50%"]
    frame = kernel_timing().to_pandas().set_index("node")
    assert frame["gbytes"]["norm/square"] == pytest.approx(10)
    assert frame["bytes"]["norm/square"] == 0


def test_a_kernel_is_one_point_below_the_roof() -> None:
    figure = plot_timing(kernel_timing(), kind="roofline", by="node")
    points = sorted(tuple(place) for marks in figure.axes[0].collections for place in marks.get_offsets().tolist())
    assert points == [pytest.approx((1.0, 10.0)), pytest.approx((8.0, 20.0))]
    assert any(text.get_text().startswith("norm/add (+2) ") for text in figure.axes[0].texts)
    by_layer = plot_timing(kernel_timing(), kind="roofline")
    layers_at = {tuple(place) for marks in by_layer.axes[0].collections for place in marks.get_offsets().tolist()}
    # Of dense 10 GFLOP in 0.7 s, and a quarter of what the kernel moves; of norm the rest of the kernel.
    assert {(round(x, 3), round(y, 3)) for x, y in layers_at} == {(5.0, 14.286), (1.0, 10.0)}


def test_a_slice_of_several_layers_has_the_colour_of_the_largest_part() -> None:
    timing = kernel_timing()
    steps = traced_steps(timing.slices, None, 4)
    lanes = Lanes(timing, steps)
    assert [lanes.kind(item) for item in timing.slices] == ["dense", "norm", "dense"]
    assert len(lanes.notes(steps)) == 1
    bare = [replace(item, layer="") for item in timing.records]
    lanes = Lanes(Timing(bare, STEPS, slices=timing.slices), steps)
    assert [lanes.kind(item) for item in timing.slices] == ["matmul", "several ops at once", "relu_gradient"]
    assert lanes.notes(steps) == []
    alone = Timing(timing.records[:1], STEPS, slices=timing.slices[:1])
    steps = traced_steps(alone.slices, None, 4)
    assert Lanes(alone, steps).notes(steps) == []


@pytest.mark.parametrize(("by", "is_said"), [("node", True), ("op", True), ("layer", False)])
def test_pictures_of_single_nodes_say_how_time_is_shared(by: str, is_said: bool) -> None:
    figure = plot_timing(kernel_timing(), by=by)
    written = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert any("share its time" in text for text in written) is is_said
