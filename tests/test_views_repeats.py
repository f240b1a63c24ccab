"""Pictures of large graphs: what repeats is drawn once, and what is tall stands in columns beside each other."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_views import assert_is_sound, assert_texts_are_apart_and_inside, record, texts

import miai_graph as mg
from miai_graph import layers
from miai_graph.context import UPDATE, build_context
from miai_graph.errors import ArgumentError
from miai_graph.graph import Graph
from miai_graph.model import Model
from miai_graph.timing import Timing
from miai_graph.views import plot_graph, plot_model
from miai_graph.views.folding import fold_by_layer
from miai_graph.views.graph_repeats import joined_links, links_between, repeats_of
from miai_graph.views.layout import Box, Edge, layered
from miai_graph.views.wrapping import wrapped

WIDTH = 8
KINDS = ("tanh", "relu", "sigmoid")


def trained(output: Any) -> Graph:
    """The graph of a training step, with all updates in one layer."""
    loss = mg.mean(mg.square(output))
    variables = Graph([loss]).variables
    gradients = mg.grad(loss, variables)
    with build_context(phase=UPDATE, scope="sgd"):
        updates = {variable: variable - 0.1 * gradient for variable, gradient in zip(variables, gradients, strict=True)}
    return Graph([loss], updates)


def chain(activations: list[str]) -> Graph:
    node: Any = mg.input("x", (None, WIDTH))
    for activation in activations:
        node = layers.Dense(WIDTH, activation=activation)(node)
    return trained(node)


def residual(blocks: int) -> Graph:
    node: Any = mg.input("x", (None, WIDTH))
    node = layers.Dense(WIDTH, name="stem")(node)
    for _ in range(blocks):
        inner = layers.Dropout(0.1)(layers.Dense(WIDTH, activation="relu")(node))
        node = layers.LayerNormalization()(node + inner)
    return trained(layers.Dense(1, name="head")(node))


def different(depth: int) -> Graph:
    node: Any = mg.input("x", (None, WIDTH))
    for number in range(depth):
        node = layers.Dense(WIDTH + number, activation=KINDS[number % 3])(node)
    return trained(node)


def scopes_of(graph: Graph) -> list[list[list[tuple[str, str]]]]:
    """The layers and phases of each copy, for each repeat."""
    pieces = fold_by_layer(graph)
    return [
        [[(pieces[number].scope, pieces[number].phase) for number in copy] for copy in repeat.copies]
        for repeat in repeats_of(graph, pieces)
    ]


def ratio(figure: Any) -> float:
    width, height = figure.get_size_inches()
    return float(height / width)


def test_layers_of_a_chain_repeat_forward_and_backward() -> None:
    # The first layer has no gradient to hand on, so its backward does less.
    forward, backward = scopes_of(chain(["tanh"] * 10))
    assert forward == [[(f"dense_{number}", "forward")] for number in range(1, 10)]
    assert backward == [[(f"dense_{number}", "backward")] for number in range(9, 0, -1)]


def test_blocks_with_branches_repeat() -> None:
    forward, backward = scopes_of(residual(8))
    assert len(forward) == len(backward)
    assert {len(copy) for copy in forward} == {4}
    for copy in forward:
        kinds = sorted(scope.rstrip("_0123456789") for scope, _ in copy)
        assert kinds == ["", "dense", "dropout", "layer_normalization"]
    assert {phase for copy in backward for _, phase in copy} == {"backward"}


@given(st.lists(st.sampled_from(KINDS), min_size=2, max_size=14))
@settings(max_examples=25)
def test_only_what_is_alike_is_folded_and_no_cycle_comes_of_it(activations: list[str]) -> None:
    import networkx

    mg.set_seed(0)
    graph = chain(activations)
    pieces = fold_by_layer(graph)
    repeats = repeats_of(graph, pieces)
    members = [number for repeat in repeats for number in repeat.members]
    assert len(members) == len(set(members))
    for repeat in repeats:
        for alike in zip(*repeat.copies, strict=True):
            assert len({pieces[number].phase for number in alike}) == 1
            names = [pieces[number].scope for number in alike]
            places = [int(name.partition("_")[2] or 0) for name in names]
            assert len({activations[place] for place in places}) == 1
    joined = joined_links(links_between(graph, pieces), [repeat.members for repeat in repeats])
    assert networkx.is_directed_acyclic_graph(networkx.DiGraph(joined))


def test_calls_of_one_layer_make_no_cycle() -> None:
    node = mg.input("x", (None, WIDTH))
    shared = layers.Dense(WIDTH, activation="tanh")
    for _ in range(6):
        node = layers.ReLU()(shared(node))
    figure = plot_graph(trained(node), by="layer", fold=True)
    assert {"dense", "re_lu", "sgd"} <= set(texts(figure))
    assert_texts_are_apart_and_inside(figure)


def test_updates_beside_each_other_repeat() -> None:
    graph = chain(["tanh"] * 6)
    (loss,) = graph.outputs
    with build_context(phase=UPDATE):
        updates = {v: v - 0.1 * g for v, g in zip(graph.variables, mg.grad(loss, graph.variables), strict=True)}
    written = texts(plot_graph(Graph([loss], updates), by="layer", fold=True))
    assert written.count("×5") == 4
    assert {"new dense/kernel", "new dense_1/kernel", "new dense_1/bias", "and 2 more"} <= set(written)
    assert "new dense_5/kernel" not in written


def test_folded_layers_are_drawn_once_with_what_they_take_together() -> None:
    graph = chain(["tanh"] * 12)
    timing = Timing([record(f"dense_{number}/matmul", f"dense_{number}", 2.0) for number in range(1, 12)], 1)
    figure = plot_graph(graph, timing=timing)
    written = texts(figure)
    assert written.count("×11") == written.count("dense_1 … dense_11") == 2
    assert written.count("100 %") == 1
    assert "dense_5" not in written
    assert_texts_are_apart_and_inside(figure)
    unfolded = texts(plot_graph(graph, fold=False))
    assert unfolded.count("dense_5") == 2
    assert not any(text.startswith("×") for text in unfolded)


@pytest.mark.parametrize("depth", [5, 50, 500])
def test_repeats_are_readable_at_any_size(depth: int) -> None:
    figure = plot_graph(chain(["tanh"] * depth), by="layer")
    width, height = figure.get_size_inches()
    assert max(width, height) < 14
    assert_texts_are_apart_and_inside(figure)


@pytest.mark.parametrize("depth", [5, 25, 60])
def test_layers_that_differ_stand_in_columns_beside_each_other(depth: int) -> None:
    figure = plot_graph(different(depth), by="layer")
    written = texts(figure)
    assert all(written.count(f"dense_{number}") == 2 for number in range(1, depth))
    assert 0.4 < ratio(figure) < 2.6
    assert_texts_are_apart_and_inside(figure)
    assert any("lines are left out" in text for text in written) == (depth > 5)


def test_two_columns_that_run_down_and_up_are_cut_together() -> None:
    down = [Box(("down", number), 80, 40) for number in range(40)]
    up = [Box(("up", number), 90, 40, column=1) for number in range(40)]
    edges = [Edge(("down", number), ("down", number + 1)) for number in range(39)]
    edges += [Edge(("up", number + 1), ("up", number), upward=True) for number in range(39)]
    edges += [Edge(("down", 39), ("up", 39))]
    drawing = wrapped(layered([*down, *up], edges), [*down, *up], edges)
    assert 0.5 < drawing.height / drawing.width < 2.2
    assert_is_sound([*down, *up], edges, drawing)
    for edge, route in zip(edges, drawing.routes, strict=True):
        assert (route[-1][1] < route[-2][1]) == edge.upward


def test_fold_is_told_apart_from_other_things() -> None:
    with pytest.raises(ArgumentError, match="expected fold to be True, False or None; found 'all'"):
        plot_graph(chain(["tanh"]), fold="all")


def test_single_ops_are_parts_of_blocks_that_repeat() -> None:
    node = inputs = layers.Input((WIDTH,), name="x")
    for _ in range(9):
        node = layers.LayerNormalization()(node + layers.Dense(WIDTH, activation="relu")(node))
    written = texts(plot_model(Model(inputs, layers.Dense(1)(node))))
    assert written.count("×9") == 3
    assert written.count("add (None, 8)") == 1


def test_single_ops_that_differ_are_not_folded() -> None:
    node = inputs = layers.Input((WIDTH, WIDTH), name="x")
    for axes in ((0, 2, 1), (0, 2, 1), (0, 2, 1), (0, 1, 2), (0, 2, 1)):
        node = mg.transpose(node, axes)
    written = texts(plot_model(Model(inputs, node), fold=True))
    assert [text for text in written if text.startswith("×")] == ["×3"]


def test_every_line_between_single_ops_is_drawn() -> None:
    graph = chain(["tanh"] * 3)
    figure = plot_graph(graph, by="op")
    assert not any("left out" in text for text in texts(figure))
    width, height = figure.get_size_inches()
    assert width < 1.5 * height
