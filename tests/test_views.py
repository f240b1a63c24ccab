"""Pictures: properties of the layout, what the figures contain, the files written, and errors."""

from __future__ import annotations

import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import miai_graph as mg
from miai_graph import layers
from miai_graph.callbacks import History
from miai_graph.context import UPDATE, build_context
from miai_graph.errors import ArgumentError, ModelError, SavingError
from miai_graph.graph import Graph, views
from miai_graph.model import Model, Sequential
from miai_graph.timing import Timing, TimingRecord
from miai_graph.views import plot_decision_boundary, plot_graph, plot_history, plot_model, plot_predictions, style
from miai_graph.views.coordinates import nondecreasing
from miai_graph.views.folding import fold_by_layer
from miai_graph.views.layout import Box, Drawing, Edge, layered
from miai_graph.views.model_units import model_units
from miai_graph.views.ordering import count_crossings
from miai_graph.views.regions import outlined_regions
from miai_graph.views.repeats import folded_runs
from miai_graph.views.shares import Shares, format_share
from miai_graph.views.wrapping import wrapped

SIGNATURES = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
TINY = 1e-6


def texts(figure: Any) -> list[str]:
    """All that is written in a figure."""
    found = [text.get_text() for axes in figure.axes for text in axes.texts]
    found += [axes.get_title(loc="left") for axes in figure.axes]
    found += [text.get_text() for axes in figure.axes if axes.get_legend() for text in axes.get_legend().get_texts()]
    return [text for text in found if text]


def assert_texts_are_apart_and_inside(figure: Any) -> None:
    """No two texts of the sheet overlap, and none is cut off."""
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for axes in figure.axes for text in axes.texts if text.get_text()]
    width, height = figure.canvas.get_width_height()
    for number, first in enumerate(boxes):
        assert first.x0 > 0
        assert first.x1 < width
        assert first.y0 > 0
        assert first.y1 < height
        for second in boxes[:number]:
            across = min(first.x1, second.x1) - max(first.x0, second.x0)
            down = min(first.y1, second.y1) - max(first.y0, second.y0)
            # Lines of text on one card may touch.
            assert min(across, down) < 3.0, (first, second)


# Layout


@st.composite
def drawn_problems(draw: st.DrawFn, upward: bool = True) -> tuple[list[Box], list[Edge]]:
    """Boxes in columns and edges without cycles; those that start beside the first column run up."""
    count = draw(st.integers(1, 18))
    sizes = st.floats(1, 120)
    boxes = [
        Box(
            f"box {n}",
            draw(sizes),
            draw(sizes),
            draw(st.integers(0, 2)) if upward else 0,
            draw(st.sampled_from([None, "a", "b"])),
        )
        for n in range(count)
    ]
    edges = [
        Edge(f"box {source}", f"box {target}", boxes[source].column > 0)
        for target in range(1, count)
        for source in draw(st.sets(st.integers(0, target - 1), max_size=3))
    ]
    return boxes, edges


def rectangle(box: Box, drawing: Drawing) -> tuple[float, float, float, float]:
    x, y = drawing.centres[box.key]
    return x - box.width / 2, x + box.width / 2, y - box.height / 2, y + box.height / 2


def assert_is_sound(boxes: list[Box], edges: list[Edge], drawing: Drawing) -> None:
    """Boxes apart and inside; routes from border to border, over no other box."""
    rectangles = {box.key: rectangle(box, drawing) for box in boxes}
    for left, right, top, bottom in rectangles.values():
        assert left > -TINY
        assert right < drawing.width + TINY
        assert top > -TINY
        assert bottom < drawing.height + TINY
    places = list(rectangles.values())
    for number, first in enumerate(places):
        for second in places[:number]:
            assert not overlaps(first, second)
    for edge, route in zip(edges, drawing.routes, strict=True):
        assert_ends(route[0], rectangles[edge.source])
        assert_ends(route[-1], rectangles[edge.target])
        for (x0, y0), (x1, y1) in pairwise(route):
            box = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
            assert not any(overlaps(box, other) for other in places), (edge, box)


def overlaps(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    return (
        first[0] < second[1] - TINY
        and second[0] < first[1] - TINY
        and first[2] < second[3] - TINY
        and second[2] < first[3] - TINY
    )


def assert_ends(point: tuple[float, float], place: tuple[float, float, float, float]) -> None:
    left, right, top, bottom = place
    assert left - TINY <= point[0] <= right + TINY
    assert min(abs(point[1] - top), abs(point[1] - bottom)) < TINY


@given(drawn_problems())
@settings(max_examples=60)
def test_boxes_do_not_overlap_and_edges_run_one_way(problem: tuple[list[Box], list[Edge]]) -> None:
    boxes, edges = problem
    drawing = layered(boxes, edges)
    assert_is_sound(boxes, edges, drawing)
    for edge, route in zip(edges, drawing.routes, strict=True):
        heights = [y for _, y in (route[::-1] if edge.upward else route)]
        assert heights == sorted(heights)
        assert (drawing.rows[edge.source] > drawing.rows[edge.target]) == edge.upward


@given(drawn_problems())
@settings(max_examples=20)
def test_layout_is_deterministic(problem: tuple[list[Box], list[Edge]]) -> None:
    assert layered(*problem) == layered(*problem)


@given(drawn_problems())
@settings(max_examples=40)
def test_boxes_stand_in_the_order_of_their_columns(problem: tuple[list[Box], list[Edge]]) -> None:
    boxes, edges = problem
    drawing = layered(boxes, edges)
    for first in boxes:
        for second in boxes:
            if drawing.rows[first.key] == drawing.rows[second.key] and first.column < second.column:
                assert drawing.centres[first.key][0] < drawing.centres[second.key][0]


@given(drawn_problems())
@example(([Box("a0", 1, 1, group="a"), Box("none", 1, 1), Box("a1", 1, 1, group="a")], []))
@settings(max_examples=40)
def test_regions_hold_the_boxes_of_their_group_only(problem: tuple[list[Box], list[Edge]]) -> None:
    from matplotlib.path import Path as Outline

    boxes, edges = problem
    drawing = layered(boxes, edges)
    for box in boxes:
        alone = [other for other in boxes if (other.group, other.column) == ("a", box.column)]
        for region in outlined_regions(alone, drawing):
            assert Outline(region).contains_point(drawing.centres[box.key]) <= (box.group == "a")


@given(st.lists(st.tuples(st.floats(-50, 50), st.floats(0.1, 9)), min_size=1, max_size=12))
def test_nondecreasing_values_are_the_nearest(pairs: list[tuple[float, float]]) -> None:
    wanted, weights = zip(*pairs, strict=True)
    found = nondecreasing(wanted, weights)
    assert all(first <= second + TINY for first, second in pairwise(found))
    assert len(found) == len(wanted)
    assert sorted(wanted) != list(wanted) or found == pytest.approx(wanted)
    # The weighted sum of what was moved is zero, as for any least-squares fit that may be shifted as a whole.
    assert sum(w * (a - b) for w, a, b in zip(weights, found, wanted, strict=True)) == pytest.approx(0, abs=1e-6)


def test_crossings_are_counted_and_removed() -> None:
    assert count_crossings([[0, 1], [2, 3]], [[3], [2], [], []]) == 1
    assert count_crossings([[0, 1], [2, 3]], [[2, 3], [2, 3], [], []]) == 1
    boxes = [Box(name, 20, 10) for name in "abcdefgh"]
    edges = [Edge(*pair) for pair in ("ah", "bg", "cf", "de")]
    drawing = layered(boxes, edges)
    for upper, lower in ("ah", "bg", "cf", "de"):
        assert drawing.centres[upper][0] == pytest.approx(drawing.centres[lower][0])


def test_a_long_edge_is_straight() -> None:
    boxes = [Box(number, 60, 20) for number in range(8)]
    edges = [*(Edge(number, number + 1) for number in range(7)), Edge(0, 7)]
    drawing = layered(boxes, edges)
    assert len({round(x, 6) for x, _ in drawing.routes[-1]}) <= 3


def test_what_joins_a_long_chain_stays_near_it() -> None:
    boxes = [Box((kind, number), 60, 20) for number in range(60) for kind in ("step", "weight", "cast")]
    edges = [Edge(("step", number), ("step", number + 1)) for number in range(59)]
    edges += [Edge(("weight", number), ("cast", number)) for number in range(60)]
    edges += [Edge(("cast", number), ("step", number)) for number in range(60)]
    drawing = layered(boxes, edges)
    assert_is_sound(boxes, edges, drawing)
    assert drawing.width < 400
    assert len({round(drawing.centres["step", number][0]) for number in range(60)}) == 1


def test_large_drawings_are_fast(rng: np.random.Generator) -> None:
    boxes = [Box(number, 60, 20) for number in range(500)]
    edges = [
        Edge(int(max(0, target - 1 - rng.integers(0, reach))), target)
        for target in range(1, 500)
        for reach in (3, 25)
    ]  # fmt: skip
    start = time.perf_counter()
    drawing = layered(boxes, edges)
    assert time.perf_counter() - start < 3.0  # a third of that on an idle machine
    assert len(drawing.centres) == 500


def test_layout_of_nothing() -> None:
    assert layered([], []).width == 0


def test_layout_refuses_what_it_cannot_draw() -> None:
    boxes = [Box("a", 1, 1), Box("b", 1, 1)]
    with pytest.raises(ArgumentError, match="without a cycle"):
        layered(boxes, [Edge("a", "b"), Edge("b", "a")])
    with pytest.raises(ArgumentError, match="'c', which is no box"):
        layered(boxes, [Edge("a", "c")])
    with pytest.raises(ArgumentError, match="different keys"):
        layered([*boxes, Box("a", 1, 1)], [])


@given(drawn_problems(upward=False), st.integers(20, 60))
@settings(max_examples=25)
def test_wrapped_drawings_are_sound(problem: tuple[list[Box], list[Edge]], length: int) -> None:
    boxes, edges = problem
    chain = [Box(number, 30, 20) for number in range(length)]
    links = [Edge(number, number + 1) for number in range(length - 1)]
    boxes, edges = [*boxes, *chain], [*edges, *links, Edge(boxes[-1].key, 0), Edge(0, 3), Edge(0, length - 1)]
    drawing = layered(boxes, edges)
    result = wrapped(drawing, boxes, edges)
    assert_is_sound(boxes, edges, result)
    assert result is drawing or result.height < drawing.height


def test_a_long_chain_is_wrapped() -> None:
    boxes = [Box(number, 80, 40) for number in range(60)]
    edges = [Edge(number, number + 1) for number in range(59)]
    drawing = wrapped(layered(boxes, edges), boxes, edges)
    assert 0.5 < drawing.height / drawing.width < 2.2
    assert_is_sound(boxes, edges, drawing)


# Graphs


def dense_graph(depth: int = 2, *, update: bool = True) -> Graph:
    node = x = mg.input("x", (None, 8))
    for _ in range(depth):
        node = layers.Dense(8, activation="tanh")(node)
    loss = mg.mean(mg.square(node))
    variables = Graph([loss]).variables
    gradients = mg.grad(loss, [*variables, x])
    with build_context(phase=UPDATE):
        updates = {v: v - 0.1 * g for v, g in zip(variables, gradients, strict=False)} if update else {}
    return Graph([loss, gradients[-1]], updates)


@pytest.mark.parametrize("suffix", SIGNATURES)
def test_graph_is_written(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"graph{suffix}"
    dense_graph(1).plot(path)
    assert path.read_bytes().startswith(SIGNATURES[suffix])


def test_graph_shows_ops_names_and_types() -> None:
    graph = dense_graph(1)
    written = texts(plot_graph(graph))
    for node in graph.nodes:
        line = str(node.type)
        assert any(line in text for text in written)
    for expected in ("x", "dense/kernel", "dense/matmul", "matmul", "tanh", "new dense/kernel", "input", "variable"):
        assert expected in written
    for phase in ("forward", "backward", "update", "output (thick frame)"):
        assert phase in written
    assert f"Graph of {len(graph)} nodes: 1 input, 2 outputs, 2 updates" in written


@pytest.mark.parametrize("by", ["op", "layer"])
def test_texts_of_graphs_do_not_overlap(by: str) -> None:
    assert_texts_are_apart_and_inside(plot_graph(dense_graph(2), by=by))


def test_large_graphs_are_drawn_by_layer() -> None:
    graph = dense_graph(6)
    written = texts(plot_graph(graph))
    assert f"Graph of {len(graph)} nodes, by layer: 1 input, 2 outputs, 12 updates" in written
    assert {"dense … dense_5", "×6", "x"} <= set(written)
    assert "dense/matmul" not in written
    assert "dense/matmul" in texts(plot_graph(graph, by="op"))


def test_backward_runs_up_beside_forward() -> None:
    node = x = mg.input("x", (None, 4))
    for _ in range(3):
        node = mg.tanh(node)
    loss = mg.sum(node)
    (gradient,) = mg.grad(loss, [x])
    figure = plot_graph(Graph([loss, gradient]))
    place = {text.get_text(): text.get_position() for axes in figure.axes for text in axes.texts}
    last = max(n.name for n in Graph([gradient]).nodes if n.op.name == "multiply")
    assert place["tanh_1"][1] < place["tanh_2"][1]
    assert place[last][1] < place["sum"][1]
    assert place[last][0] > place["tanh_1"][0]


def test_gradients_of_gradients_and_odd_names_are_drawn() -> None:
    x = mg.input("$x_1$ — input", (None, 3))
    loss = mg.sum(x * x * x)
    (dx,) = mg.grad(loss, [x])
    (ddx,) = mg.grad(mg.sum(dx * dx), [x])
    assert "$x_1$ — input" in texts(plot_graph(Graph([ddx])))


def test_folded_pieces_make_no_cycle() -> None:
    x = mg.input("x", (None, 4))
    shared = layers.Dense(4)
    inner = layers.Dense(4)
    loss = mg.mean(shared(mg.exp(inner(shared(x)))))
    graph = Graph([loss, *mg.grad(loss, shared.weights)])
    pieces = fold_by_layer(graph)
    assert sorted(node.index for piece in pieces for node in piece.nodes) == [node.index for node in graph.nodes]
    assert len([piece for piece in pieces if (piece.scope, piece.phase) == ("dense", "forward")]) == 2
    plot_graph(graph, by="layer")


def record(node: str, layer: str, seconds: float, phase: str = "forward", worker: int = 0) -> TimingRecord:
    return TimingRecord(node, "op", layer, phase, worker, "host", 1, seconds, seconds, seconds, 0, 0)


def test_shares_count_what_is_inside_of_layers_for_the_outer_one() -> None:
    records = [record("a", "outer/inner", 1.0), record("b", "inner", 2.0, worker=1), record("c", "user/outer", 1.0)]
    shares = Shares(Timing(records, 1))
    assert shares.of_layers(["outer", "inner"]) == {"outer": 0.5, "inner": 0.5}
    assert shares.of_layers(["outer"], "backward") == {"outer": 0.0}
    assert shares.of_nodes(["a", "c", "other"]) == 0.5
    assert [format_share(value) for value in (0, 0.0001, 0.0123, 0.5)] == ["0 %", "<0.1 %", "1.2 %", "50 %"]


def test_graph_with_timing_shows_shares() -> None:
    graph = dense_graph(1)
    records = [record("dense/matmul", "dense", 3.0), record("feed", "", 1.0, "overhead")]
    for by in ("op", "layer"):
        written = texts(plot_graph(graph, by=by, timing=Timing(records, 1)))
        assert "75 %" in written
        assert "share of the time" in written
        assert "25 % of the time went into what is not drawn here" in written


def test_bad_arguments_of_plot_graph(tmp_path: Path) -> None:
    graph = dense_graph(1)
    with pytest.raises(ArgumentError, match="expected a Graph"):
        plot_graph([1])
    with pytest.raises(ArgumentError, match="'op' or 'layer'; found 'node'"):
        plot_graph(graph, by="node")
    with pytest.raises(ArgumentError, match="expected a Timing"):
        plot_graph(graph, timing={})
    with pytest.raises(ArgumentError, match=r"\.png, \.svg, \.pdf; found 'g\.gif'"):
        plot_graph(graph, "g.gif")
    with pytest.raises(ArgumentError, match="a string or a Path"):
        plot_graph(graph, 7)
    with pytest.raises(ArgumentError, match="expected dpi"):
        plot_graph(graph, tmp_path / "g.png", dpi=0)
    with pytest.raises(SavingError, match="expected to write"):
        plot_graph(graph, tmp_path / "nowhere" / "g.png")
    with pytest.raises(SavingError, match="expected to write"):
        plot_graph(graph, "no\0path.png")


# Models


def residual_model() -> Model:
    image = layers.Input((8, 8, 3), name="image")
    node = layers.Conv2D(4, 3, padding="same", name="stem")(image)
    inner = layers.Conv2D(4, 3, padding="same", activation="relu", name="inner")(node)
    node = layers.Add(name="join")([node, inner]) * 0.5
    node = layers.Flatten(name="flat")(node)
    return Model(image, [layers.Dense(2, name="left")(node), layers.Dense(1, name="right")(node)], name="residual")


def test_model_shows_layers_shapes_and_parameters(tmp_path: Path) -> None:
    model = residual_model()
    figure = plot_model(model, tmp_path / "model.png")
    written = texts(figure)
    assert (tmp_path / "model.png").read_bytes().startswith(SIGNATURES[".png"])
    assert {"image", "stem", "inner", "join", "flat", "left", "right"} <= set(written)
    assert {"Conv2D (None, 8, 8, 4)", "112 parameters", "multiply (None, 8, 8, 4)", "Dense (None, 1)"} <= set(written)
    assert f"Model residual: {model.count_params():,} parameters" in written
    assert_texts_are_apart_and_inside(figure)


def test_shapes_and_parameters_can_be_left_out() -> None:
    written = texts(plot_model(residual_model(), show_shapes=False, show_parameters=False))
    assert {"Conv2D", "multiply"} <= set(written)
    assert not any("(None" in text or text.startswith("112") for text in written)


def test_units_and_links_of_a_model() -> None:
    units, links = model_units(residual_model())
    names = {unit.key: unit.title if unit.layer is None else unit.name for unit in units}
    assert {(names[source], names[target]) for source, target in links} == {
        ("input", "stem"),
        ("stem", "inner"),
        ("stem", "join"),
        ("inner", "join"),
        ("join", "multiply"),
        ("multiply", "flat"),
        ("flat", "left"),
        ("flat", "right"),
    }
    assert [unit.name for unit in units if unit.is_output] == ["left", "right"]


def test_repeated_layers_are_folded() -> None:
    many = [layer for _ in range(10) for layer in (layers.Dense(4), layers.ReLU())]
    model = Sequential([layers.Input((4,)), layers.Dense(4, use_bias=False, name="first"), *many, layers.Dense(2)])
    units, links = model_units(model)
    runs = folded_runs(units, links)
    assert [(len(run.pattern), run.times) for run in runs] == [(1, 1), (1, 1), (2, 10), (1, 1)]
    written = texts(plot_model(model, fold=True))
    assert {"×10", "dense … dense_9", "re_lu … re_lu_9", "10 × 20 parameters"} <= set(written)
    assert "dense_5" not in written
    assert "dense_5" in texts(plot_model(model))
    assert_texts_are_apart_and_inside(plot_model(model, fold=True))


def test_many_layers_are_folded_by_default() -> None:
    model = Sequential([layers.Input((4,)), *(layers.Dense(4) for _ in range(40))])
    assert "×40" in texts(plot_model(model))
    assert_texts_are_apart_and_inside(plot_model(model, fold=False))


def test_layers_that_differ_are_not_folded() -> None:
    stack = [layers.Dense(4, activation=name) for name in ("relu", "relu", "relu", "tanh", "relu")]
    model = Sequential([layers.Input((4,)), *stack])
    assert [run.times for run in folded_runs(*model_units(model))] == [1, 3, 1, 1]
    node = inputs = layers.Input((4,))
    outputs = [node := layers.Dense(4)(node) for _ in range(4)]
    assert all(run.times == 1 for run in folded_runs(*model_units(Model(inputs, outputs))))


def test_a_shared_layer_is_drawn_at_each_call() -> None:
    first, second = layers.Input((4,), name="first"), layers.Input((4,), name="second")
    shared = layers.Dense(3, name="shared")
    model = Model([first, second], layers.Concatenate(name="both")([shared(first), shared(second)]))
    timing = Timing([record("shared/matmul", "shared", 1.0), record("both/x", "both", 3.0)], 1)
    written = texts(plot_model(model, timing=timing))
    assert written.count("shared") == 2
    assert written.count("25 % in all calls") == 2
    assert "75 %" in written
    assert "15 parameters, shared by 2 calls" in written
    assert not any("not drawn" in text for text in written)


def test_timing_of_training_colours_the_layers(rng: np.random.Generator) -> None:
    model = Sequential([layers.Input((4,)), layers.Dense(3), layers.Dense(1)], name="small")
    model.compile(optimizer="sgd", loss="mean_squared_error")
    history = model.fit(rng.random((16, 4), "f4"), rng.random((16, 1), "f4"), batch_size=8, epochs=2, verbose=0)
    written = texts(plot_model(model, timing=history.timing))
    assert "share of the time" in written
    assert sum(text.endswith(" %") for text in written) >= 2
    assert {"loss", "training"} >= set(texts(history.plot()))


def test_frozen_layers_are_named_so() -> None:
    model = Sequential([layers.Input((4,)), layers.Dense(3)])
    model.layers[0].trainable = False
    assert "15 parameters, frozen" in texts(plot_model(model))


def test_bad_arguments_of_plot_model() -> None:
    with pytest.raises(ArgumentError, match="expected a Model"):
        plot_model(dense_graph(1))
    with pytest.raises(ModelError, match="not built yet"):
        plot_model(Sequential([layers.Dense(2)]))
    with pytest.raises(ArgumentError, match="expected a Timing"):
        plot_model(residual_model(), timing=[])


# Training


def history_of(**curves: list[float]) -> History:
    history = History()
    history.history = curves
    history.epoch = list(range(max(map(len, curves.values()), default=0)))
    return history


def test_history_has_axes_for_each_figure(tmp_path: Path) -> None:
    history = history_of(
        loss=[3.0, 2.0, 1.0], accuracy=[0.1, 0.5, 0.6], val_loss=[3, 2, 2], val_accuracy=[0.1, 0.4, 0.5]
    )
    figure = plot_history(history, tmp_path / "curves.pdf")
    assert (tmp_path / "curves.pdf").read_bytes().startswith(SIGNATURES[".pdf"])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["loss", "accuracy"]
    assert {"training", "validation"} <= set(texts(figure))
    training, validation = figure.axes[0].lines
    assert list(training.get_xdata()) == [1, 2, 3]
    assert list(validation.get_ydata()) == [3, 2, 2]
    assert {training.get_marker(), validation.get_marker()} == {"o", "s"}
    figure.draw_without_rendering()
    assert all(float(tick).is_integer() for tick in figure.axes[0].get_xticks())


def test_history_of_one_epoch_and_of_many() -> None:
    assert plot_history({"loss": [1.0]}).axes[0].get_xlim() == (0.5, 1.5)
    assert plot_history({"loss": np.arange(100.0)}).axes[0].lines[0].get_marker() == "None"
    assert "no finite number" in texts(plot_history({"loss": [float("nan")]}))


def test_rare_validation_is_placed_at_its_epochs() -> None:
    (axes,) = plot_history({"loss": [3, 2, 1, 0, 0], "val_loss": [2, 1]}).axes
    assert list(axes.lines[1].get_xdata()) == [2, 4]


def test_bad_arguments_of_plot_history() -> None:
    with pytest.raises(ArgumentError, match="expected the History"):
        plot_history([1.0])
    with pytest.raises(ArgumentError, match="at least one epoch"):
        plot_history(history_of())
    with pytest.raises(ArgumentError, match="list of numbers for 'loss'"):
        plot_history({"loss": 3.0})


# Samples


def test_predictions_mark_what_is_wrong(tmp_path: Path, rng: np.random.Generator) -> None:
    probabilities = np.array([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.5, 0.3, 0.2]])
    names = ["cat", "dog", "a very long name of a class"]
    figure = plot_predictions(rng.random((3, 5, 5, 1)), [0, 2, 0], probabilities, tmp_path / "p.svg", class_names=names)
    written = texts(figure)
    assert (tmp_path / "p.svg").read_bytes().startswith(SIGNATURES[".svg"])
    assert {"cat (90 %)", "cat (50 %)", "true cat", "2 of 3 predicted right"} <= set(written)
    assert "✗ dog (70 %)" in written
    assert any(text.startswith("true …") and text.endswith("class") for text in written)
    frames = [axes.spines["left"].get_linewidth() for axes in figure.axes[1:]]
    assert frames[1] > frames[0] == frames[2]
    assert_texts_are_apart_and_inside(figure)


def test_predictions_of_all_kinds() -> None:
    images = np.zeros((4, 3, 3, 3), np.uint8)
    assert "1 (75 %)" in texts(plot_predictions(images, [1, 0, 1, 0], [[0.75], [0.1], [0.9], [0.2]]))
    assert "✗ 0 (90 %)" in texts(plot_predictions(images, np.eye(4)[:, :2], [0.75, 0.1, 0.9, 0.2]))
    assert "✗ 3" in texts(plot_predictions(images, [1, 0, 1, 0], np.array([3, 0, 1, 0])))
    logits = np.array([[5.0, -1.0]] * 4)
    assert {"0", "true 0"} <= set(texts(plot_predictions(images, [0, 0, 0, 0], logits, count=2)))


def test_bad_arguments_of_plot_predictions() -> None:
    images, labels, predictions = np.zeros((2, 4, 4)), [0, 1], np.eye(2)
    with pytest.raises(ArgumentError, match="expected images"):
        plot_predictions(np.zeros((2, 4)), labels, predictions)
    with pytest.raises(ArgumentError, match="as many images as labels"):
        plot_predictions(images[:1], labels, predictions)
    with pytest.raises(ArgumentError, match="predictions of as many samples"):
        plot_predictions(images, labels, predictions[:1])
    with pytest.raises(ArgumentError, match="expected count"):
        plot_predictions(images, labels, predictions, count=0)
    with pytest.raises(ArgumentError, match="a name for each class"):
        plot_predictions(images, labels, predictions, class_names=["one"])
    with pytest.raises(ArgumentError, match="numbers; found dtype"):
        plot_predictions(images, ["a", "b"], predictions)
    with pytest.raises(ArgumentError, match="found the node"):
        plot_predictions(images, labels, mg.input("x", (None, 2)))


def probability_of_right(points: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return 1 / (1 + np.exp(-points[:, :1]))


def three_classes(points: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.stack([points[:, 0], -points[:, 0], points[:, 1]], axis=1)


def test_decision_boundaries(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.normal(size=(30, 2))
    y = (x[:, 0] > 0).astype(int)
    figure = plot_decision_boundary(probability_of_right, x, y, tmp_path / "b.png", resolution=20)
    assert (tmp_path / "b.png").read_bytes().startswith(SIGNATURES[".png"])
    assert {"class 0", "class 1"} <= set(texts(figure))
    assert len(figure.axes) == 2
    figure = plot_decision_boundary(three_classes, x, y[:, None], resolution=20)
    assert {"class 0", "class 1", "class 2"} <= set(texts(figure))
    assert len(figure.axes) == 1


def test_bad_arguments_of_plot_decision_boundary(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(5, 2)), np.zeros(5, int)
    with pytest.raises(ArgumentError, match="with two features"):
        plot_decision_boundary(probability_of_right, x[:, :1], y)
    with pytest.raises(ArgumentError, match="expected resolution"):
        plot_decision_boundary(probability_of_right, x, y, resolution=1)
    with pytest.raises(ArgumentError, match="a function of points"):
        plot_decision_boundary("predict", x, y)
    with pytest.raises(ArgumentError, match="probabilities from 0 to 1"):
        plot_decision_boundary(lambda points: points[:, 0] * 9, x, y, resolution=4)
    with pytest.raises(ArgumentError, match=r"expected predictions \[16\]"):
        plot_decision_boundary(lambda points: points[:3], x, y, resolution=4)


# How it is done


def test_matplotlib_is_imported_when_something_is_drawn() -> None:
    code = (
        "import sys, miai_graph as mg\n"
        "import miai_graph.views.graph_view, miai_graph.views.model_view, miai_graph.views.samples_view\n"
        "assert not {'matplotlib', 'networkx'} & set(sys.modules), 'too early'\n"
        "mg.Graph([mg.exp(mg.input('x', (None, 2)))]).plot()\n"
        "assert 'matplotlib' in sys.modules\n"
        "assert 'matplotlib.pyplot' not in sys.modules, 'pyplot keeps figures'\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_registered_views_draw() -> None:
    assert {"plot_graph", "plot_history", "plot_model"} <= set(views)
    assert "loss" in texts(views["plot_history"]({"loss": [1.0, 2.0]}))
    assert mg.views.plot_graph is plot_graph


def test_pictures_are_the_same_each_time(tmp_path: Path) -> None:
    for name in ("first.png", "second.png"):
        plot_graph(dense_graph(1), tmp_path / name)
        mg.set_seed(0)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


def test_no_picture_has_more_pixels_than_can_be_drawn() -> None:
    figure = style.save(style.new_figure(100, 72 * 500), None)
    assert max(figure.canvas.get_width_height()) <= 30_000
