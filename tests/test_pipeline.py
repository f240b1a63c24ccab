"""Stages' graphs: together they compute what the whole graph does, and send each other what must be sent, not more."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from drawn_graphs import DrawnGraph, drawn_graphs
from hypothesis import given, settings
from hypothesis import strategies as st
from logical_stages import ByStages, check_per_part, evaluate_by_stages, nodes_of, pipelined, sent_bytes, stages_of
from reference_executor import Reference
from test_executor_conformance import Classifier, batches
from test_partition import (
    FLOAT64,
    MODELS,
    OPTIMIZERS,
    assert_same,
    assert_same_training,
    compiled,
    data_for,
    dense_model,
    rich_model,
    shared_weights,
    trained,
    updates_of_all_kinds,
)
from test_reproducible import cnn, transformer

import miai_graph as mg
from miai_graph import layers
from miai_graph.errors import NotSplittableError
from miai_graph.interpreter import evaluate
from miai_graph.ops.leaves import variable_of
from miai_graph.passes.batch_analysis import analyse_batch
from miai_graph.passes.pipeline import Pipeline, StageGraph
from miai_graph.passes.simplify import simplify
from miai_graph.passes.stages import SMALL_VARIABLE_BYTES, lay_out
from miai_graph.placement import Replicated
from miai_graph.types import bind_type

of_both_modes = pytest.mark.parametrize("is_reproducible", [False, True], ids=["fast", "reproducible"])
of_both_schedules = pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
CUTS: dict[str, tuple[float, ...]] = {"one stage": (), "two": (0.5,), "three": (0.3, 0.7), "uneven": (0.1, 0.15)}
of_cuts = pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)


def assert_stages_agree(pipeline: Pipeline, feeds, batch_size: int, parts: int, tolerance: float = 1e-9, **options):
    outputs, updates = evaluate(pipeline.graph, feeds, batch_size=batch_size)
    found, changed = evaluate_by_stages(pipeline, feeds, batch_size, parts, **options)
    assert_same(found, outputs, tolerance)
    assert_same(changed.values(), updates.values(), tolerance)


def items_of(graph: mg.Graph) -> int:
    return len(lay_out(graph, analyse_batch(graph)).items)


def at_fractions(graph: mg.Graph, cuts, **options) -> Pipeline:
    count = items_of(graph)
    return pipelined(graph, [0, *(round(cut * count) for cut in cuts), count], **options)


@of_both_modes
@of_both_schedules
@of_cuts
@pytest.mark.parametrize(("batch_size", "parts", "replicas"), [(7, 3, 1), (3, 5, 1), (7, 5, 2), (2, 1, 3)])
def test_a_classifier_with_statistics_noise_and_slots(
    cuts, schedule: str, is_reproducible: bool, batch_size: int, parts: int, replicas: int
) -> None:
    model = Classifier()
    graph = simplify(mg.Graph([model.loss, model.hits], model.updates))
    feeds = dict(zip([model.x, model.y], batches(batch_size)[0], strict=True))
    pipeline = at_fractions(graph, cuts, is_reproducible=is_reproducible)
    assert_stages_agree(pipeline, feeds, batch_size, parts, 2e-5, replicas=replicas, schedule=schedule)


OPTIONS = st.fixed_dictionaries(
    {"parts": st.integers(1, 5), "replicas": st.integers(1, 3), "schedule": st.sampled_from(["gpipe", "1f1b"])}
)


@settings(max_examples=100)
@given(drawn_graphs(), OPTIONS, st.booleans(), st.data())
def test_drawn_graphs(drawn: DrawnGraph, options: dict, is_reproducible: bool, data: st.DataObject) -> None:
    for graph in (drawn.graph, simplify(drawn.graph)):
        if analyse_batch(graph).obstacles:
            with pytest.raises(NotSplittableError):
                Pipeline(graph, dict.fromkeys(graph.nodes, 0), 1)
            continue
        count = items_of(graph)
        cuts = sorted(data.draw(st.lists(st.integers(0, count), max_size=3)))
        pipeline = pipelined(graph, [0, *cuts, count], is_reproducible=is_reproducible)
        check_per_part(pipeline)
        assert_stages_agree(pipeline, drawn.feeds(7), 7, **options)


@settings(max_examples=60)
@given(drawn_graphs(), OPTIONS, st.booleans(), st.randoms(use_true_random=False))
def test_nodes_may_be_on_any_stages(drawn: DrawnGraph, options: dict, is_reproducible: bool, random) -> None:
    """Data goes up and down as often as it must."""
    graph = simplify(drawn.graph)
    if analyse_batch(graph).obstacles:
        return
    positions = lay_out(graph, analyse_batch(graph)).positions
    stages = {node: None if place is None else random.randrange(4) for node, place in positions.items()}
    pipeline = Pipeline(graph, stages, 4, is_reproducible=is_reproducible)
    assert_stages_agree(pipeline, drawn.feeds(7), 7, **options)


@of_both_modes
@of_cuts
def test_updates_of_all_kinds(cuts, is_reproducible: bool) -> None:
    graph, inputs, arrays = updates_of_all_kinds()
    feeds = dict(zip(inputs, arrays, strict=True))
    for each in (graph, simplify(graph)):
        pipeline = at_fractions(each, cuts, is_reproducible=is_reproducible)
        for replicas in (1, 2):
            assert_stages_agree(pipeline, feeds, 7, 4, replicas=replicas)


def test_without_variables_and_without_anything_to_deal_out() -> None:
    x, row = mg.input("x", (None, 3)), mg.input("row", (3,))
    feeds = {x: np.arange(12, dtype="f4").reshape(4, 3), row: np.ones(3, "f4")}
    for outputs in ([mg.exp(x * row), mg.sum(x)], [x, row, mg.transpose(x)], [mg.sum(row)]):
        graph = mg.Graph(outputs)
        for bounds in ([0, 1, items_of(graph)], [0, 0, 0, items_of(graph)]):
            assert_stages_agree(pipelined(graph, bounds), feeds, 4, 3, 1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("make", [dense_model, rich_model], ids=["dense", "rich"])
def test_training_with_each_optimizer(make: Callable[[], mg.Model], optimizer: str) -> None:
    expected = trained(make, optimizer, Reference())
    assert_same_training(trained(make, optimizer, ByStages((0.5,))), expected)
    assert_same_training(trained(make, optimizer, ByStages((0.2, 0.8), 4, replicas=2)), expected)


@of_both_modes
@of_cuts
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_training_of_each_model(make: Callable[[], mg.Model], cuts, is_reproducible: bool) -> None:
    expected = trained(make, "accumulation", Reference())
    found = trained(make, "accumulation", ByStages(cuts, is_reproducible=is_reproducible))
    assert_same_training(found, expected)


def skips_and_losses_in_the_middle() -> mg.Model:
    """Two inputs, two outputs, a way around several layers, and a loss that is added half way."""
    first, second = (
        layers.Input((5,), dtype="float64", name="first"),
        layers.Input((3,), dtype="float64", name="second"),
    )
    h = around = layers.Dense(9, activation="tanh", **FLOAT64)(first)
    for _ in range(3):
        h = layers.Dense(9, activation="tanh", activity_regularizer="l2", **FLOAT64)(h)
    early = layers.Dense(2, name="early", **FLOAT64)(h)
    h = layers.Concatenate()([layers.Add()([h, around]), second])
    return mg.Model([first, second], [early, layers.Dense(1, name="late", **FLOAT64)(h)])


@of_both_schedules
@of_cuts
def test_skips_two_inputs_two_outputs_and_losses_in_the_middle(cuts, schedule: str) -> None:
    def figures(executor) -> list[np.ndarray]:
        mg.set_seed(0)
        model = skips_and_losses_in_the_middle()
        model.compile("adam", {"early": "mse", "late": "mae"}, {"early": 0.3, "late": 2.0}, ["mse"], executor=executor)
        rng = np.random.default_rng(2)
        rows = [rng.normal(size=(7, 5)), rng.normal(size=(7, 3))]
        targets = [rng.normal(size=(7, 2)), rng.normal(size=(7, 1))]
        history = model.fit(rows, targets, 5, 2, verbose=0)
        tested = model.evaluate(rows, targets, 5, verbose=0)
        values = [np.asarray(value) for value in (*history.history.values(), *tested)]
        return [*values, *model.predict(rows, 5, verbose=0), *(node.value for node in model.weights)]

    assert_same(figures(ByStages(cuts, schedule=schedule)), figures(Reference()), 1e-6)


def training_graph(make: Callable[[], mg.Model], optimizer: str = "adam") -> mg.Graph:
    executor = ByStages(())
    model = compiled(make, optimizer, executor)
    x, y, _ = data_for(model, 4)
    model.train_on_batch(np.resize(x % 40, (4, *model.inputs[0].shape[1:])), y)
    return executor.pipelines[-1].graph


def chain(*widths: int) -> mg.Model:
    dense = [layers.Dense(width, activation="relu", name=f"layer_{n}") for n, width in enumerate(widths)]
    return mg.Sequential([layers.Input((6,), name="x"), *dense])


def cut_before(graph: mg.Graph, *scopes: str) -> Pipeline:
    """Stages that begin with these layers."""
    items = lay_out(graph, analyse_batch(graph)).items
    found = [node.scope for node in items]
    return pipelined(graph, [0, *(found.index(scope) for scope in scopes), len(items)])


def scopes_of(own: StageGraph) -> set[str]:
    """The layers whose variables and slots a stage has, apart from small ones that all have."""
    names = [variable_of(node).name for node in own.graph.variables]
    return {part for name in names for part in name.split("/") if part.startswith("layer_")}


def test_stages_of_a_chain_have_just_their_own_variables_slots_and_inputs() -> None:
    pipeline = cut_before(training_graph(lambda: chain(30, 40, 20, 3)), "layer_1", "layer_3")
    owns = stages_of(pipeline)
    assert [scopes_of(own) for own in owns] == [{"layer_0"}, {"layer_1", "layer_2"}, {"layer_3"}]
    # Kernel, bias and two slots of each for every layer; the learning rate and the count of steps on each stage.
    assert [len(own.graph.variables) for own in owns] == [6 + 2, 12 + 2, 6 + 2]
    assert [[node.name for node in own.graph.inputs] for own in owns] == [["x"], [], ["layer_3_target"]]
    assert [len(nodes_of(own, "send")) for own in owns] == [1, 2, 1]


@pytest.mark.parametrize("cuts", [(0.2,), (0.2, 0.4)], ids=["two", "three"])
def test_labels_and_weights_go_to_the_last_stage_only(cuts) -> None:
    executor = ByStages(cuts, parts=2)
    model = compiled(lambda: chain(30, 40, 20, 3), "adam", executor)
    rng = np.random.default_rng(0)
    for call in (model.train_on_batch, model.test_on_batch):
        call(rng.normal(size=(4, 6)), rng.integers(0, 3, 4), sample_weight=np.ones(4))
        found = [[node.name for node in own.graph.inputs] for own in stages_of(executor.pipelines[-1])]
        assert found == [["x"], *[[]] * (len(cuts) - 1), ["layer_3_target", "layer_3_sample_weight"]]


def some_places(count: int) -> range:
    """A dozen places to cut, or all."""
    return range(1, count, max(1, count // 12))


PLAIN: dict[str, Callable[[], mg.Model]] = {
    "chain": lambda: chain(300, 300, 300, 3),
    "cnn": cnn,
    "transformer": transformer,
    "rich": rich_model,
    "shared": shared_weights,
    "embedding": MODELS["embedding"],
}


@pytest.mark.parametrize("optimizer", ["amsgrad, clipnorm", "global_clipnorm", "accumulation"])
@pytest.mark.parametrize("make", PLAIN.values(), ids=PLAIN)
def test_the_bytes_foretold_are_sent_across_each_cut(make: Callable[[], mg.Model], optimizer: str) -> None:
    graph = training_graph(make, optimizer)
    foretold = lay_out(graph, analyse_batch(graph)).crossing_bytes(graph, 32)
    count = items_of(graph)
    assert len(foretold) == count + 1
    assert foretold[0] == foretold[-1] == 0
    for place in some_places(count):
        assert sent_bytes(pipelined(graph, [0, place, count]), 32).sum() == foretold[place], place


@pytest.mark.parametrize("optimizer", ["nesterov, decay", "amsgrad, clipnorm", "global_clipnorm", "accumulation"])
@pytest.mark.parametrize("name", ["chain", "cnn", "transformer", "embedding"])
def test_neither_parameters_nor_their_gradients_are_sent(name: str, optimizer: str) -> None:
    """Wherever a model is cut. What is sent once a step are statistics of a batch and norms."""
    graph = training_graph(PLAIN[name], optimizer)
    for place in some_places(items_of(graph)):
        for own in stages_of(pipelined(graph, [0, place, items_of(graph)])):
            for node in nodes_of(own, "send"):
                assert node.inputs[0].type.batch_axes or node.inputs[0].type.size <= 16, (place, node)


def tied(width: int = 20) -> mg.Model:
    """An embedding whose transpose gives the logits."""
    x = layers.Input((5,), dtype="int64")
    embedding = layers.Embedding(40, width, **FLOAT64)
    h = layers.Dense(width, activation="tanh", **FLOAT64)(mg.mean(embedding(x), 1))
    h = layers.Dense(width, activation="tanh", **FLOAT64)(h)
    return mg.Model(x, h @ mg.transpose(embedding.embeddings))


@of_both_modes
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "global_clipnorm", "average"])
@pytest.mark.parametrize("cuts", [(0.5,), (0.3, 0.7)], ids=["two", "three"])
def test_tied_weights(cuts, optimizer: str, is_reproducible: bool) -> None:
    """That all holders get the same value is asserted wherever stages are evaluated."""

    def values(executor) -> list[np.ndarray]:
        model = compiled(tied, optimizer, executor)
        rng = np.random.default_rng(0)
        for size in (9, 9, 4):
            model.train_on_batch(rng.integers(0, 40, (size, 5)), rng.integers(0, 3, size))
        return [node.value for node in (*model.weights, *model.optimizer.variables)]

    executor = ByStages(cuts, is_reproducible=is_reproducible)
    assert_same(values(executor), values(Reference()))
    owns = stages_of(executor.pipelines[-1])
    holders = [own for own in owns if any("embeddings" in node.name for node in own.graph.variables)]
    slots = [own for own in owns if any("embeddings/" in node.name for node in own.graph.variables)]
    assert len(holders) == 2
    assert len(slots) <= 1


def test_a_tied_weight_is_sent_once_and_its_gradient_once() -> None:
    graph = training_graph(lambda: tied(200), "adam")
    count = items_of(graph)
    sent = sent_bytes(pipelined(graph, [0, count // 2, count]), 1)
    table = 40 * 200 * 8
    assert (sent[0, 1] // table, sent[1, 0] // table) == (1, 1)


def test_frozen_variables_on_two_stages_are_not_sent() -> None:
    def model() -> mg.Model:
        x = layers.Input((90,), dtype="float64")
        frozen = layers.Dense(90, activation="tanh", **FLOAT64)
        frozen.trainable = False
        h = frozen(layers.Dense(90, **FLOAT64)(frozen(x)))
        return mg.Model(x, layers.Dense(3, **FLOAT64)(h))

    graph = training_graph(model)
    pipeline = cut_before(graph, "dense_1")
    owns = stages_of(pipeline)
    frozen = {node for node in graph.variables if node not in graph.updates and node.type.rank == 2}
    assert len(frozen) == 1
    assert all(frozen <= set(own.graph.variables) for own in owns)
    assert sent_bytes(pipeline, 1).max() < 90 * 90 * 8


def test_the_norm_of_all_gradients_is_sent_as_numbers() -> None:
    graph = training_graph(lambda: chain(300, 300, 300, 3), "global_clipnorm")
    owns = stages_of(cut_before(graph, "layer_1", "layer_2"))
    once = [node for own in owns for node in nodes_of(own, "send") if node not in own.per_part]
    assert once
    assert all(node.inputs[0].type.shape == () for node in once)


def test_a_model_of_equal_layers_shares_nothing_but_what_all_have() -> None:
    """What is the same for parameters of one shape stands once in a graph, and is made on each stage."""
    graph = training_graph(lambda: chain(*[300] * 6), "global_clipnorm")
    owns = stages_of(cut_before(graph, "layer_2", "layer_4"))
    for own in owns:
        for node in nodes_of(own, "send"):
            assert bind_type(node.inputs[0].type, 1).size_bytes <= 300 * 4


@pytest.mark.parametrize("name", PLAIN)
def test_gradients_stand_on_the_stages_of_what_they_were_made_for(name: str) -> None:
    graph = training_graph(PLAIN[name])
    analysis = analyse_batch(graph)
    row = lay_out(graph, analysis)
    items = {node.origin: place for place, node in enumerate(row.items)}
    made = [node for node in graph.nodes if node.phase == "backward" and node.origin in items]
    assert len(made) > 10
    for node in made:
        # What was added up over the batch already is small, and may stand with what reads it.
        is_whole = isinstance(analysis.placements[node], Replicated)
        if row.positions[node] is not None and node.op.name != "broadcast_to" and not is_whole:
            assert row.positions[node] == items[node.origin]


@pytest.mark.parametrize("name", PLAIN)
def test_forward_nodes_stand_behind_what_they_read(name: str) -> None:
    graph = training_graph(PLAIN[name])
    row = lay_out(graph, analyse_batch(graph))
    for node in row.items:
        for source in node.inputs:
            place = row.positions[source]
            assert place is None or place <= row.positions[node]


def test_a_stage_has_what_is_small_for_itself() -> None:
    graph = training_graph(lambda: chain(30, 40, 20, 3))
    row = lay_out(graph, analyse_batch(graph))
    for node in graph.nodes:
        if row.positions[node] is None and node.op.name == "variable":
            continue
        if row.positions[node] is None and node.phase == "update" and node.op.name != "broadcast_to":
            assert node.type.size_bytes <= SMALL_VARIABLE_BYTES
    assert row.work(lambda node: 1.0).sum() == sum(place is not None for place in row.positions.values())


def test_bounds_may_leave_stages_empty() -> None:
    graph = training_graph(lambda: chain(30, 3))
    row = lay_out(graph, analyse_batch(graph))
    count = len(row.items)
    for bounds in ([0, 0, count], [0, count, count], [0, 3, 3, count]):
        stages = set(row.stages(bounds).values()) - {None}
        assert len(stages) == len({place for place in bounds if place < count})
        stages_of(pipelined(graph, bounds))


def test_batch_statistics_are_told_as_reductions_in_mid_step() -> None:
    graph = training_graph(rich_model)
    found = at_fractions(graph, (0.5,)).mid_step_reductions
    assert found
    assert {node.scope for node in found} <= {"batch_normalization", "batch_normalization_1"}
    assert at_fractions(training_graph(dense_model), (0.5,)).mid_step_reductions == []


@pytest.mark.parametrize("optimizer", ["sgd", "global_clipnorm"])
@pytest.mark.parametrize(
    "make", [lambda: chain(30, 40, 20, 3), transformer, tied], ids=["chain", "transformer", "tied"]
)
def test_two_sweeps_do_where_there_are_no_statistics(make: Callable[[], mg.Model], optimizer: str) -> None:
    pipeline = at_fractions(training_graph(make, optimizer), (0.3, 0.6))
    assert [dict(pipeline.sweeps(stage)) for stage in range(3)] == [{0: {0, 1}}, {0: {0, 1}}, {0: {0}}]


def test_replicas_get_what_is_owed_in_buckets() -> None:
    graph = training_graph(lambda: chain(900, 900, 900, 3), "sgd")
    pipeline = pipelined(graph, [0, items_of(graph)])
    (own,) = stages_of(pipeline, is_replicated=True)
    contributions = nodes_of(own, "contribute")
    assert 2 <= len(contributions) <= 5
    assert not nodes_of(stages_of(pipeline)[0], "contribute")
    sizes = [sum(node.type.size_bytes for node in bucket.inputs) for bucket in contributions]
    assert sum(sizes) == sum(node.type.size_bytes for node in own.exports)
    order = {node: place for place, node in enumerate(own.graph.nodes)}
    backward = [order[node] for node in own.graph.nodes if node.phase == "backward" and node in own.per_part]
    assert order[contributions[0]] < backward[-1]


def test_texts_are_readable() -> None:
    owns = stages_of(cut_before(training_graph(lambda: chain(30, 3)), "layer_1"), is_replicated=True)
    texts = [str(own.graph) for own in owns]
    assert "= send(" in texts[0]
    assert "stage=1" in texts[0]
    assert "= receive(" in texts[1]
    assert "= contribute(" in texts[1]
