"""Pictures of timings, in colours of what was timed, of errors, and in notebooks."""

from __future__ import annotations

import gc
import pickle
import weakref
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from colour_vision import VISIONS, contrast, least_distance
from drawn_timings import made_timing
from test_views import SIGNATURES, assert_texts_are_apart_and_inside, dense_graph, residual_model, texts

import miai_graph as mg
from miai_graph import layers
from miai_graph.callbacks import History
from miai_graph.context import BACKWARD, COMMUNICATION, FORWARD, WAIT
from miai_graph.errors import ArgumentError, DTypeError, ModelError, ShapeError
from miai_graph.model import Model, Sequential
from miai_graph.timing import TimedWorker, Timing, TimingRecord
from miai_graph.timing.records import DATA, IDLE, OVERHEAD
from miai_graph.views import plot_error, plot_graph, plot_history, plot_model, plot_scaling, plot_timing, style
from miai_graph.views.model_units import model_units
from miai_graph.views.palette import DARK, LIGHT, Palette, paper
from miai_graph.views.repeats import folded_runs, relinked

SIZES = pytest.mark.parametrize("size", [5, 50, 500])
PALETTES = pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])


def record(node: str, seconds: float = 1.0, **changes: Any) -> TimingRecord:
    fields: dict[str, Any] = {
        "op": node.rpartition("/")[2],
        "layer": node.rpartition("/")[0],
        "phase": FORWARD,
        "worker": 0,
        "host": "here",
        "calls": 1,
        "min_seconds": seconds,
        "max_seconds": seconds,
        "flops": 0,
        "bytes": 0,
    }
    return TimingRecord(node=node, seconds=seconds, **{**fields, **changes})


def assert_axes_are_inside(figure: Any) -> None:
    """Ticks, their labels and those of axes are on the paper, and under no other text."""
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    width, height = figure.canvas.get_width_height()
    for axes in figure.axes:
        if not axes.axison:
            continue
        for axis in (axes.xaxis, axes.yaxis):
            box = axis.get_tightbbox(renderer)
            if box is not None and box.width and box.height:
                assert 0 <= box.x0 <= box.x1 <= width
                assert 0 <= box.y0 <= box.y1 <= height


def assert_is_readable(figure: Any) -> None:
    assert_texts_are_apart_and_inside(figure)
    assert_axes_are_inside(figure)


# Bars


@SIZES
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("kind", ["layers", "timeline", "roofline"])
def test_texts_of_timings_are_apart_and_inside(size: int, workers: int, kind: str) -> None:
    assert_is_readable(plot_timing(made_timing(size, workers), kind=kind))


@pytest.mark.parametrize("suffix", SIGNATURES)
def test_timing_is_written(tmp_path: Path, suffix: str) -> None:
    made_timing().plot(tmp_path / f"timing{suffix}", "layers", dark=True)
    assert (tmp_path / f"timing{suffix}").read_bytes().startswith(SIGNATURES[suffix])


def bars_axes(figure: Any) -> Any:
    return next(axes for axes in figure.axes if axes.axison)


def test_bars_add_up_to_the_time_of_a_step() -> None:
    timing = made_timing(12, 3)
    axes = bars_axes(plot_timing(timing, limit=None))
    drawn = sum(bar.get_width() for bar in axes.patches) * 1e-3
    assert axes.get_xlabel() == "ms a step, mean of 3 workers"
    assert drawn == pytest.approx(sum(each.seconds for each in timing.records) / timing.steps / 3)


def test_bars_are_sorted_and_stacked_by_phase() -> None:
    records = [
        record("a/x", 1.0),
        record("a/dx", 3.0, phase=BACKWARD),
        record("b/x", 2.0),
        record("wait", 2.0, phase=WAIT),
    ]
    figure = plot_timing(Timing(records, 2))
    written = texts(figure)
    assert [text for text in written if text in ("a", "b", "(wait)")] == ["a", "b", "(wait)"]
    assert {"2.00 s  50 %", "1.00 s  25 %", "2 steps of 4.00 s, on 1 worker", FORWARD, BACKWARD, WAIT} <= set(written)
    bars = [bar for bar in bars_axes(figure).patches if bar.get_width()]
    assert [bar.get_width() for bar in bars] == [0.5, 1.0, 1.5, 1.0]
    assert bars[2].get_x() == 0.5
    assert bars[3].get_hatch()


def test_many_bars_are_one() -> None:
    figure = plot_timing(made_timing(50), limit=5)
    assert "(47 more)" in texts(figure)
    assert bars_axes(figure).get_ylim() == (5.5, -0.5)


def test_names_stay_in_their_line() -> None:
    assert "two�lines" in texts(plot_timing(Timing([record("two\nlines/x", 1.0)], 1)))


def test_long_waits_leave_room_for_layers() -> None:
    figure = plot_timing(Timing([record("a/x", 1.0), record("wait", 90.0, phase=WAIT)], 1))
    axes = bars_axes(figure)
    assert axes.get_xlim() == (0, 4)
    assert len(axes.lines) == 2
    assert "90.0 s  99 %" in texts(figure)


def test_who_only_gives_others_their_work_is_no_worker() -> None:
    records = [record("a/x", 1.0, stage=0), record("b/x", 1.0, stage=1, worker=1)]
    records.append(record("data", 1.0, worker=2, phase=DATA))
    figure = plot_timing(Timing(records, 1))
    assert bars_axes(figure).get_xlabel() == "ms a step, mean of 2 workers"
    assert "1 step of 1.00 s, on 2 workers" in texts(figure)
    assert "2 workers" in texts(plot_scaling({"hosts": Timing(records, 1)}))


def test_bars_by_worker_and_by_op() -> None:
    timing = made_timing(8, 2)
    assert {"worker 0", "worker 1"} <= set(texts(plot_timing(timing, by="worker")))
    assert "backward" in texts(plot_timing(timing, by="op"))


# Timelines


def areas(figure: Any, look: dict[str, Any]) -> float:
    """How wide all areas are together that are filled so."""
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import to_rgba

    fill = np.array(to_rgba(look["facecolor"]))
    found = [item for axes in figure.axes for item in axes.collections if isinstance(item, PolyCollection)]
    return sum(
        np.ptp(path.vertices[:, 0])
        for item in found
        if np.array_equal(item.get_facecolor()[0], fill) and item.get_hatch() == look.get("hatch")
        for path in item.get_paths()
    )


@pytest.mark.parametrize("phase", [COMMUNICATION, WAIT, OVERHEAD])
def test_areas_are_as_long_as_the_slices(phase: str) -> None:
    from miai_graph.views.time_look import phase_look

    timing = made_timing(9, 3, steps=(0, 7))
    figure = plot_timing(timing, kind="timeline")
    seconds = sum(piece.seconds for piece in timing.slices if piece.phase == phase)
    assert areas(figure, phase_look(phase)) * 1e-3 == pytest.approx(seconds, rel=1e-3)


def test_a_timeline_names_workers_steps_layers_and_micro_batches() -> None:
    written = texts(plot_timing(made_timing(5, 4, parts=3), kind="timeline"))
    assert {"worker 0", "stage 2", "here", "there", "conv", "wait", "communication", "backward 2", "1"} <= set(written)
    assert any(text.startswith("step 0: ") for text in written)
    assert any(text.startswith("step 63: ") for text in written)
    assert "The clocks of the workers agree within 2.00 µs." in written


def test_lanes_stand_in_the_order_of_stages() -> None:
    timing = made_timing(5, 3)
    workers = [replace(worker, stage=2 - worker.index) for worker in timing.workers]
    figure = plot_timing(Timing(timing.records, 64, slices=timing.slices, workers=workers), kind="timeline")
    heights = {text.get_text(): text.get_window_extent().y0 for axes in figure.axes for text in axes.texts}
    assert heights["worker 2"] > heights["stage 0"] > heights["worker 1"] > heights["worker 0"] > heights["stage 2"]


def test_sending_is_joined_to_receiving() -> None:
    from matplotlib.collections import LineCollection

    timing = made_timing(4, 2, parts=2, steps=(3,))
    figure = plot_timing(timing, kind="timeline")
    (lines,) = [item for axes in figure.axes for item in axes.collections if isinstance(item, LineCollection)]
    links = {piece.link for piece in timing.slices if piece.phase == WAIT and piece.link}
    assert len(lines.get_segments()) == len(links)


def test_steps_of_a_timeline_can_be_chosen() -> None:
    timing = made_timing(3, steps=range(8))
    titles = [text for text in texts(plot_timing(timing, kind="timeline")) if text.startswith("step ")]
    assert [title.split(":")[0] for title in titles] == ["step 0", "step 1", "step 2", "step 7"]
    assert "4 more traced steps are not drawn." in texts(plot_timing(timing, kind="timeline"))
    chosen = plot_timing(timing, kind="timeline", steps=[5, 2])
    assert [text.split(":")[0] for text in texts(chosen) if text.startswith("step ")] == ["step 5", "step 2"]
    assert_is_readable(chosen)


def test_a_panel_of_another_scale_says_so() -> None:
    figure = plot_timing(made_timing(5, steps=(0, 1)), kind="timeline")
    first, second = (axes for axes in figure.axes if axes.axison)
    factor = (first.get_xlim()[1] / first.bbox.width) / (second.get_xlim()[1] / second.bbox.width)
    assert first.get_xlabel() == "ms"
    assert second.get_xlabel() == f"ms, stretched ×{factor:.2g}"


def test_layers_of_a_kind_look_alike_where_there_are_many() -> None:
    assert {"conv", "norm", "pool"} <= set(texts(plot_timing(made_timing(50), kind="timeline")))
    few = set(texts(plot_timing(made_timing(4), kind="timeline")))
    assert {"conv", "norm", "relu", "pool"} <= few
    assert "block_0" not in few


def test_many_lanes_are_low() -> None:
    few, many = (plot_timing(made_timing(40, workers), kind="timeline") for workers in (10, 20))
    assert many.get_figheight() < 2 * few.get_figheight()
    assert_is_readable(many)


# Rooflines


def test_points_lie_at_what_was_achieved_below_what_is_possible() -> None:
    records = [record("a/x", 2.0, flops=8 * 10**9, bytes=10**9), record("b/y", 1.0, flops=10**8, bytes=10**9)]
    workers = [TimedWorker(0, "here", flops_per_second=1e11, bytes_per_second=2e10)]
    figure = plot_timing(Timing(records, 1, workers=workers), kind="roofline")
    (axes,) = figure.axes
    assert [group.get_offsets().tolist() for group in axes.collections] == [[[0.1, 0.1]], [[8.0, 4.0]]]
    (roof,) = axes.lines
    assert list(roof.get_ydata()) == pytest.approx([20 * roof.get_xdata()[0], 100, 100])
    assert roof.get_xdata()[1] == pytest.approx(5.0)


def test_arithmetic_and_memory_are_told_apart() -> None:
    records = [record("a/x", 2.0, flops=8 * 10**9, bytes=10**9), record("b/y", 1.0, flops=10**8, bytes=10**9)]
    workers = [TimedWorker(0, "here", flops_per_second=1e11, bytes_per_second=2e10)]
    written = texts(plot_timing(Timing(records, 1, workers=workers), kind="roofline"))
    assert {"a 67 %", "b 33 %", "worker 0 on here: 100 GFLOP/s, 20.0 GB/s"} <= set(written)
    assert {"limited by memory", "limited by arithmetic"} <= set(written)


def test_unknown_peaks_are_said() -> None:
    timing = Timing([record("a/x", 2.0, flops=10, bytes=10)], 1)
    figure = plot_timing(timing, kind="roofline")
    assert any("peaks were not measured" in text for text in texts(figure))
    assert not figure.axes[0].lines
    assert_is_readable(figure)


def test_roofs_of_the_fastest_and_the_slowest_are_drawn() -> None:
    speeds = [1e11, 3e11, 2e11]
    workers = [
        TimedWorker(n, f"host{n}", flops_per_second=speed, bytes_per_second=2e10) for n, speed in enumerate(speeds)
    ]
    timing = Timing([record("a/x", 2.0, flops=10**9, bytes=10**8)], 1, workers=workers)
    roofs = [line.get_label() for line in plot_timing(timing, kind="roofline").axes[0].lines]
    assert [roof.split(":")[0] for roof in roofs] == ["worker 1 on host1", "worker 0 on host0"]
    alike = [TimedWorker(n, "here", flops_per_second=1e11, bytes_per_second=2e10) for n in range(3)]
    assert len(plot_timing(Timing(timing.records, 1, workers=alike), kind="roofline").axes[0].lines) == 1


def test_bad_arguments_of_plot_timing() -> None:
    timing = made_timing()
    with pytest.raises(ArgumentError, match="expected a Timing"):
        plot_timing([])
    with pytest.raises(ArgumentError, match="layers, timeline, roofline; found 'bars'"):
        timing.plot(kind="bars")
    with pytest.raises(ArgumentError, match="expected by"):
        timing.plot(by="colour")
    with pytest.raises(ArgumentError, match="expected limit"):
        timing.plot(limit=0)
    with pytest.raises(ArgumentError, match="expected dark"):
        timing.plot(dark="yes")
    with pytest.raises(ArgumentError, match="traced ones, 0, 63; found 5"):
        timing.plot(kind="timeline", steps=[5])
    with pytest.raises(ArgumentError, match=r"steps to be the numbers of traced steps, such as \[0, 5\]; found 5"):
        plot_timing(timing, kind="timeline", steps=5)
    with pytest.raises(ArgumentError, match="with traced steps"):
        Timing([record("a")], 1).plot(kind="timeline")
    with pytest.raises(ArgumentError, match="none with operations"):
        Timing([record("a")], 1).plot(kind="roofline")
    with pytest.raises(ArgumentError, match="without any time"):
        Timing([], 0).plot()


# Scaling


def test_scaling_shows_speeds_and_ratios(tmp_path: Path) -> None:
    serial = Timing([record("a", 4.0)], 8)
    two = Timing([record("a", 2.0), record("a", 1.5, worker=1), record("wait", 0.5, worker=1, phase=WAIT)], 8)
    figure = plot_scaling({"serial": serial, "processes × 2": two}, tmp_path / "s.png", samples_per_step=32)
    written = texts(figure)
    assert {"serial", "processes × 2", "1 worker", "2 workers", "64.0  ×1.00", "128  ×2.00", "88 %", "12 %"} <= set(
        written
    )
    speeds = next(axes for axes in figure.axes if axes.get_xlabel() == "samples a second")
    assert [bar.get_width() for bar in speeds.patches] == [64, 128]
    assert [line.get_xdata()[0] for line in speeds.lines] == [64, 128]
    assert_is_readable(figure)


def test_bad_arguments_of_plot_scaling() -> None:
    with pytest.raises(ArgumentError, match="expected timings by name"):
        plot_scaling([made_timing()])
    with pytest.raises(ArgumentError, match="expected timings by name"):
        plot_scaling({})
    with pytest.raises(ArgumentError, match="expected a Timing as 'a'"):
        plot_scaling({"a": 1})
    with pytest.raises(ArgumentError, match="at least one step as 'a'"):
        plot_scaling({"a": Timing([], 0)})
    with pytest.raises(ArgumentError, match="samples_per_step"):
        plot_scaling({"a": made_timing()}, samples_per_step=0)


# Colours of what was timed


def timed_graph() -> tuple[mg.Graph, Timing]:
    mg.set_seed(0)
    graph = dense_graph(2, update=False)
    records = [
        record("dense/matmul", 1.0, stage=0, bytes=300, memory_bytes=64),
        record("dense/matmul/barrier", 2.0, phase=WAIT, stage=0),
        record("dense_1/matmul", 1.0, stage=1, worker=1, bytes=100, memory_bytes=192),
        record("dense_1/matmul/barrier", 6.0, phase=WAIT, stage=1, worker=1),
    ]
    return graph, Timing(records, 2)


@pytest.mark.parametrize("by", ["op", "layer"])
@pytest.mark.parametrize(
    ("colour_by", "expected"),
    [
        ("time", {"10 %", "80 % of the time went into what is not drawn here", "share of the time"}),
        ("wait", {"25 %", "75 %", "share of the waiting"}),
        ("bytes", {"75 %", "25 %", "share of the memory traffic"}),
        ("memory", {"25 %", "75 %", "share of the memory of values"}),
        ("stage", {"stage 0", "stage 1"}),
        ("worker", {"worker 0", "worker 1"}),
    ],
)
def test_graphs_are_coloured_by(by: str, colour_by: str, expected: set[str]) -> None:
    graph, timing = timed_graph()
    figure = plot_graph(graph, by=by, timing=timing, colour_by=colour_by)
    assert expected <= set(texts(figure))
    assert_texts_are_apart_and_inside(figure)


def test_models_are_coloured_by_workers() -> None:
    model = residual_model()
    records = [record("stem/conv2d", worker=number) for number in range(5)] + [record("inner/conv2d", worker=2)]
    written = texts(plot_model(model, timing=Timing(records, 1), colour_by="worker"))
    assert written.count("workers 0–4") == written.count("worker 2") == 2  # on the box and in the legend
    timing = Timing([record("stem/conv2d", worker=number) for number in (0, 2, 5, 7)], 1)
    assert "workers 0, 2 + 2 more" in texts(plot_model(model, timing=timing, colour_by="worker"))
    assert "the timing knows no stage of what is drawn" in texts(plot_model(model, timing=timing, colour_by="stage"))
    assert any("nothing of the waiting" in text for text in texts(plot_model(model, timing=timing, colour_by="wait")))


def test_a_difference_of_timings_is_coloured_both_ways() -> None:
    first = Timing([record("stem/conv2d", 3.0), record("inner/conv2d", 1.0), record("left/matmul", 1.0)], 1)
    second = Timing([record("stem/conv2d", 2.0), record("inner/conv2d", 4.0), record("left/matmul", 2.0)], 2)
    figure = plot_model(residual_model(), timing=first - second)
    written = texts(figure)
    assert {"+2.00 s", "−1.00 s", "time a step: first timing − second one"} <= set(written)
    graph, timing = timed_graph()
    assert texts(plot_graph(graph, timing=Timing([], 1) - timing)).count("−500 ms") == 2


def test_bad_colourings() -> None:
    graph, timing = timed_graph()
    with pytest.raises(ArgumentError, match="expected colour_by to be one of time, wait"):
        plot_graph(graph, timing=timing, colour_by="heat")
    with pytest.raises(ArgumentError, match="expected a timing to colour by time"):
        plot_model(residual_model(), colour_by="time")
    with pytest.raises(ArgumentError, match="for a difference of two timings; found 'stage'"):
        plot_graph(graph, timing=timing - timing, colour_by="stage")


# Models and graphs


def residual_chain(blocks: int) -> Model:
    node = inputs = layers.Input((4,), name="x")
    for _ in range(blocks):
        node = layers.Add()([node, layers.Dense(4, activation="relu")(node)])
    return Model(inputs, layers.Dense(2)(node))


def test_repeated_blocks_with_branches_are_folded() -> None:
    mg.set_seed(0)
    model = residual_chain(9)
    units, links = model_units(model)
    runs = folded_runs(units, links)
    assert [run.times for run in runs] == [1, 9, 9, 1]
    assert relinked(runs, links) == [(0, 1), (0, 2), (1, 2), (2, 3)]
    figure = plot_model(model, fold=True)
    assert {"×9", "dense … dense_8", "add … add_8", "9 × 20 parameters"} <= set(texts(figure))
    assert_texts_are_apart_and_inside(figure)


def test_layers_of_other_sizes_are_not_folded() -> None:
    model = Sequential([layers.Input((7,)), *(layers.Dense(4) for _ in range(4))])
    assert [run.times for run in folded_runs(*model_units(model))] == [1, 1, 3]


def test_backward_stands_beside_forward_and_updates_above() -> None:
    mg.set_seed(0)
    figure = plot_graph(dense_graph(6), by="layer", fold=False)
    places: dict[str, list[tuple[float, float]]] = {}
    for text in figure.axes[0].texts:
        places.setdefault(text.get_text(), []).append(text.get_position())
    forward, backward = zip(*(sorted(places[f"dense_{number}"]) for number in range(1, 6)), strict=True)
    assert all(first[1] < second[1] for first, second in pairwise(forward))
    assert all(first[1] < second[1] for first, second in pairwise(backward))
    height = backward[-1][1] - backward[0][1]
    assert abs(forward[2][1] - backward[2][1]) < height / 2
    assert places["new dense/kernel"][0][1] < forward[0][1]


@pytest.mark.parametrize("draw", [plot_model, plot_history, plot_error], ids=lambda draw: draw.__name__)
def test_dark_pictures_are_dark(draw: Any) -> None:
    subject = {"plot_model": residual_model, "plot_history": lambda: {"loss": [1.0, 0.5]}, "plot_error": bad_sum}
    figure = draw(subject[draw.__name__](), dark=True)
    assert figure.get_facecolor()[:3] == pytest.approx([int(DARK.paper[n : n + 2], 16) / 255 for n in (1, 3, 5)])
    assert not any(text.get_color() == LIGHT.text for axes in figure.axes for text in axes.texts)
    assert draw(subject[draw.__name__]()).get_facecolor()[:3] == (1, 1, 1)


# Errors


def bad_sum(depth: int = 1) -> ShapeError:
    node = layers.Input((16,), name="x")
    for _ in range(depth):
        node = layers.Dense(16)(node)
    with pytest.raises(ShapeError) as caught:
        mg.add(node, layers.Dense(12)(layers.Input((8,), name="other")))
    return caught.value


def test_a_shape_error_is_drawn_with_its_bad_edges(tmp_path: Path) -> None:
    mg.set_seed(0)
    figure = mg.plot_error(bad_sum(), tmp_path / "error.png")
    written = texts(figure)
    assert (tmp_path / "error.png").read_bytes().startswith(SIGNATURES[".png"])
    assert {"ShapeError: add does not fit its inputs", "✗ add", "dense/add", "dense_1/add", "what failed"} <= set(
        written
    )
    assert any("[B,16] and [B,12]" in text for text in written)
    assert any(text.startswith("at ") and "test_timing_views.py" in text for text in written)
    assert_texts_are_apart_and_inside(figure)
    from matplotlib.colors import to_rgba

    bad = [patch for patch in figure.axes[0].patches if patch.get_edgecolor() == to_rgba(LIGHT.wrong)]
    assert len([patch for patch in bad if not patch.get_fill()]) == 2


def test_only_what_is_near_a_failure_is_drawn() -> None:
    mg.set_seed(0)
    figure = plot_error(bad_sum(150), by="layer")
    written = texts(figure)
    assert "dense_149" in written
    assert "dense_30" not in written
    assert any(text.endswith("boxes further up are not drawn") for text in written)
    assert_texts_are_apart_and_inside(figure)


def test_errors_of_layers_and_dtypes_are_drawn() -> None:
    node = layers.Dense(3)(layers.Input((4,), name="x"))
    with pytest.raises(ShapeError) as caught:
        layers.Conv2D(3, 3, name="conv")(node)
    assert {"✗ Conv2D", "in layer conv", "ShapeError: Conv2D does not fit its input"} <= set(
        texts(plot_error(caught.value))
    )
    with pytest.raises(DTypeError) as wrong:
        mg.take(node, mg.input("places", (None,), "float32"))
    assert "places" in texts(plot_error(wrong.value))


def test_errors_keep_no_nodes_alive_and_can_be_pickled() -> None:
    error = bad_sum()
    node = weakref.ref(error.failure.inputs[0])
    copied = pickle.loads(pickle.dumps(error))
    assert (type(copied), str(copied), copied.failure) == (ShapeError, str(error), None)
    del error
    gc.collect()
    assert node() is None


def test_other_errors_are_not_drawn() -> None:
    with pytest.raises(ArgumentError, match="when it was called on nodes"):
        plot_error(ShapeError("by hand"))
    with pytest.raises(ArgumentError, match="when it was called on nodes"):
        plot_error("not an error")


# Notebooks


def test_objects_show_themselves_in_notebooks() -> None:
    model = residual_model()
    history = History()
    assert history._repr_png_() is None
    history.on_epoch_end(0, {"loss": 1.0})
    for shown in (model, model.graph, history, plot_history({"loss": [1.0]})):
        assert shown._repr_png_().startswith(SIGNATURES[".png"])
    assert Sequential([layers.Dense(2)])._repr_png_() is None


# Colours


@PALETTES
def test_texts_are_readable_on_all_fills(colours: Palette) -> None:
    fills = [colours.paper, colours.region, colours.wrong_fill, *colours.phase_fills.values()]
    fills += [colours.purple, colours.yellow, colours.grey, *colours.share_steps, *colours.change_steps]
    with paper(dark=colours is DARK):
        fills += [style.class_fill(place) for place in range(8)]
        named = [*colours.layer_fills, colours.other_layers, colours.time_fills[OVERHEAD], *colours.time_fills.values()]
        assert all(contrast(style.text_on(fill), fill) >= 4.5 for fill in named)
    assert all(contrast(colours.text, fill) >= 4.5 for fill in fills)
    assert contrast(colours.faint_text, colours.paper) >= 4.5
    assert contrast(colours.wrong, colours.wrong_fill) >= 4.5


@PALETTES
@pytest.mark.parametrize("vision", VISIONS)
def test_colours_of_time_differ_with_any_colour_vision(colours: Palette, vision: str) -> None:
    phases = [fill for phase, fill in colours.time_fills.items() if phase not in (WAIT, IDLE)]
    blocks = [
        *colours.layer_fills,
        colours.other_layers,
        colours.time_fills[COMMUNICATION],
        colours.time_fills[OVERHEAD],
    ]
    assert least_distance(phases, vision)[0] > 10
    assert least_distance(blocks, vision)[0] > 18


def test_training_is_drawn_as_it_was(tmp_path: Path, rng: np.random.Generator) -> None:
    model = Sequential([layers.Input((6,)), layers.Dense(8, activation="relu"), layers.Dense(1)])
    model.compile(optimizer="adam", loss="mean_squared_error")
    timing = model.fit(rng.random((64, 6), "f4"), rng.random((64, 1), "f4"), batch_size=8, verbose=0).timing
    for kind in ("layers", "timeline", "roofline"):
        figure = timing.plot(tmp_path / f"{kind}.png", kind)
        assert_is_readable(figure)
        assert any("dense" in text for text in texts(figure))
    assert timing.graph is not None
    assert "share of the time" in texts(timing.graph.plot(timing=timing))


def test_a_model_that_is_not_built_cannot_be_drawn_by_time() -> None:
    with pytest.raises(ModelError, match="not built yet"):
        plot_model(Sequential([layers.Dense(2)]), timing=made_timing(), colour_by="bytes")
