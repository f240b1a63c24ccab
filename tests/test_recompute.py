"""Values that are computed again in the backward pass: the same results, in less memory, and its cost told."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_convergence import example
from test_executor_conformance import hosts_here

import miai_graph as mg
from executors import Processes, Serial
from executors.planned import PlannedExecutable
from miai_graph import layers, losses, optimizers
from miai_graph.context import BACKWARD, FORWARD, RECOMPUTE
from miai_graph.errors import ArgumentError, ModelError
from miai_graph.executor import Executor
from miai_graph.graph import Graph, ancestors
from miai_graph.interpreter import evaluate
from miai_graph.model.recomputation import Recomputed, as_recompute
from miai_graph.model.steps import Step
from miai_graph.passes.batch_analysis import analyse_batch
from miai_graph.passes.pipeline import Pipeline
from miai_graph.passes.simplify import simplify
from miai_graph.passes.stage_recomputation import recompute_within_stages
from miai_graph.passes.stages import lay_out
from miai_graph.plan.layout import footprint_bytes
from miai_graph.plan.program import make_program
from miai_graph.timing import Timing
from miai_graph.types import bind_type

# Batch normalization in micro-batches gives the right numbers, and is slow.
pytestmark = pytest.mark.filterwarnings("ignore:expected micro-batches that go through the stages")

DEPTH, WIDTH, BATCH = 36, 64, 512

EXECUTORS: dict[str, Callable[[], Executor]] = {
    "serial": lambda: Serial(threads=1),
    "reproducible": lambda: Serial(reproducible=True, shards=2),
    "processes": lambda: Processes(2, wait_for_workers=True),
    "stages": lambda: hosts_here(2, 1, micro_batches=2),
    "stages and replicas": lambda: hosts_here(2, 2, micro_batches=2, schedule="gpipe"),
}


@pytest.fixture(scope="module", params=EXECUTORS.values(), ids=EXECUTORS)
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    with request.param() as made:
        yield made


def convolutional() -> tuple[mg.Model, Any, Any]:
    """A network with normalization and dropout, and data."""
    rng = np.random.default_rng(0)
    model = mg.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Conv2D(8, 3, padding="same", activation="relu", name="first"),
            layers.BatchNormalization(),
            layers.Dropout(0.2),
            layers.Conv2D(8, 3, activation="tanh", name="second"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.3),
            layers.Dense(10, name="last"),
        ]
    )
    return model, rng.standard_normal((24, 8, 8, 1)).astype("float32"), rng.integers(0, 10, 24)


def transformer() -> tuple[mg.Model, Any, Any]:
    """The example's, small, and characters."""
    module = example("character_transformer")
    rng = np.random.default_rng(0)
    characters = rng.integers(0, 9, (24, module.CONTEXT + 1))
    return module.make_model(9, width=16, blocks=2, heads=2), characters[:, :-1], characters[:, 1:]


def deep(recompute: Any = None, executor: Executor | str = "serial") -> mg.Model:
    """Many layers, for which much is kept."""
    mg.set_seed(0)
    hidden = [layers.Dense(WIDTH, activation="tanh", name=f"hidden_{number}") for number in range(DEPTH)]
    model = mg.Sequential([layers.Input((WIDTH,)), *hidden, layers.Dense(10, name="last")])
    loss = losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, recompute=recompute, executor=executor)
    return model


def deep_data(rows: int = BATCH) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((rows, WIDTH)).astype("float32"), rng.integers(0, 10, rows)


def step_of(model: mg.Model) -> Step:
    """The training step that was built last."""
    return model._step_cache.trained()[-1]


def train_once(model: mg.Model, rows: int = BATCH) -> Timing:
    model.train_on_batch(*deep_data(rows))
    return step_of(model).executable.timing


def values_bytes(model: mg.Model, rows: int = BATCH) -> int:
    """The memory for the values of a step, without what kernels use for themselves."""
    train_once(model, rows)
    executable = step_of(model).executable
    assert isinstance(executable, PlannedExecutable)
    return max(plan.buffer_bytes for plan in executable._plans.values())


# The same results


@pytest.mark.parametrize("make", [convolutional, transformer])
@pytest.mark.parametrize("recompute", ["all", 1], ids=["all", "each layer"])
def test_training_gives_the_same(
    make: Callable[[], tuple[mg.Model, Any, Any]], recompute: Any, executor: Executor
) -> None:
    results = []
    for chosen in (None, recompute):
        mg.set_seed(1)
        model, x, y = make()
        names = [layer.name for layer in model.layers]
        loss = losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizers.Adam(1e-3), loss, executor=executor, recompute=names if chosen == 1 else chosen)
        history = model.fit(x, y, batch_size=8, epochs=2, verbose=0, shuffle=False)
        results.append([*history.history["loss"], *model.get_weights()])
    assert any(node.phase == RECOMPUTE for node in step_of(model).graph.nodes)
    for expected, found in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_training_of_dense_layers_gives_the_same_bits() -> None:
    plain, again = deep(), deep("all")
    for model in (plain, again):
        train_once(model)
        train_once(model)
    for expected, found in zip(plain.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_statistics_are_updated_once() -> None:
    found = []
    for recompute in (None, "all"):
        mg.set_seed(0)
        model, x, y = convolutional()
        model.compile("sgd", losses.SparseCategoricalCrossentropy(from_logits=True), recompute=recompute)
        model.train_on_batch(x, y)
        found.append([weight.value for weight in model.weights if "moving" in weight.name])
    assert len(found[0]) == 4
    for expected, again in zip(*found, strict=True):
        np.testing.assert_array_equal(again, expected)


def chain(length: int = 6, shape: tuple[int | None, ...] = (None, 4)) -> tuple[mg.Node, mg.Node, list[mg.Node]]:
    """Input, loss and what is between."""
    x = mg.input("x", shape, "float64")
    nodes = [x]
    for number in range(length):
        with mg.name_scope(f"part_{number}"):
            nodes.append(mg.tanh(nodes[-1] * 1.1))
    return x, mg.mean(mg.square(nodes[-1])), nodes[1:]


@pytest.mark.parametrize("shape", [(None, 4), (3, 4)])
def test_gradients_with_nodes_that_are_computed_again(shape: tuple[int | None, ...]) -> None:
    x, loss, nodes = chain(shape=shape)
    inside = [node for node in ancestors(nodes[:-1]) if node is not x]
    plain, again = mg.grad(loss, x), mg.grad(loss, x, recompute=inside)
    value = np.linspace(-1, 1, 12).reshape(3, 4)
    results = []
    for gradient in (plain, again):
        graph = Graph(gradient)
        mg.check_graph(graph)
        mg.check_graph(simplify(graph))
        results.append(evaluate(simplify(graph), {x: value}, batch_size=3)[0][0])
    np.testing.assert_array_equal(*results)
    phases = [node.phase for node in simplify(Graph(again)).nodes if node.op.name == "tanh"]
    assert phases.count(RECOMPUTE) == 4


def test_second_derivatives_of_what_is_computed_again() -> None:
    x, loss, _ = chain()
    value = np.linspace(-1, 1, 12).reshape(3, 4)
    results = []
    for recompute in (None, "part_*"):
        (first,) = mg.grad(loss, x, recompute=recompute)
        (second,) = mg.grad(mg.sum(mg.square(first)), x, recompute=recompute)
        results.append(evaluate(simplify(Graph(second)), {x: value}, batch_size=3)[0][0])
    np.testing.assert_allclose(*results, rtol=1e-12)
    assert np.abs(results[0]).max() > 1e-3


def test_a_function_deals_nodes_out_to_segments() -> None:
    x, loss, _ = chain()

    def half(node: mg.Node) -> str | None:
        return "first" if node.scope in ("part_0", "part_1", "part_2") else None

    (gradient,) = mg.grad(loss, x, recompute=half)
    again = [node for node in simplify(Graph(gradient)).nodes if node.phase == RECOMPUTE]
    assert {node.scope for node in again if node.op.name == "tanh"} == {"part_0", "part_1"}


@pytest.mark.parametrize("shape", [(None, 4), (3, 4)])
def test_what_is_computed_again_follows_the_gradient_that_needs_it(shape: tuple[int | None, ...]) -> None:
    x, loss, _ = chain(shape=shape)
    (gradient,) = mg.grad(loss, x, recompute=[["part_0", "part_1"], ["part_3", "part_4"]])
    scopes = [(node.phase, node.scope) for node in simplify(Graph(gradient)).nodes]
    assert scopes.index((RECOMPUTE, "part_0")) > scopes.index((BACKWARD, "part_3"))


def test_what_others_read_is_kept() -> None:
    x = mg.input("x", (None, 4))
    with mg.name_scope("inside"):
        y = mg.tanh(x)
        z = mg.exp(y)
    (gradient,) = mg.grad(mg.sum(y * z), x, recompute=["inside"])
    assert not any(node.phase == RECOMPUTE for node in Graph(gradient).nodes if node.op.name in ("tanh", "exp"))


# Stages


def cut(graph: Graph, stages: int) -> dict[mg.Node, int | None]:
    """The stages of nodes, if the forward pass is cut into as many items for each."""
    row = lay_out(graph, analyse_batch(graph))
    return row.stages([len(row.items) * stage // stages for stage in range(stages + 1)])


@pytest.mark.parametrize("stages", [2, 3, 5])
@pytest.mark.parametrize("make", [convolutional, transformer])
def test_stages_compute_again_for_themselves(make: Callable[[], tuple[mg.Model, Any, Any]], stages: int) -> None:
    sent, sweeps, values = [], [], []
    for recompute in (None, "all"):
        mg.set_seed(0)
        model, x, y = make()
        model.compile("sgd", losses.SparseCategoricalCrossentropy(from_logits=True), recompute=recompute)
        model.train_on_batch(x, y)
        model.set_weights([np.full_like(weight, 0.1) for weight in model.get_weights()])
        plain = simplify(step_of(model).graph)
        graph, stage_of = recompute_within_stages(plain, cut(plain, stages))
        mg.check_graph(graph)
        pipeline = Pipeline(graph, stage_of, stages)
        sent.append(sum(bind_type(node.type, len(x)).size_bytes for node, _ in pipeline.values))
        sweeps.append([{level: max(found) for level, found in pipeline.sweeps(s).items()} for s in range(stages)])
        outputs, updates = evaluate(graph, dict(zip(graph.inputs, (x, y), strict=True)), batch_size=len(x))
        values.append([*outputs, *updates.values()])
    assert sent[1] <= sent[0]
    assert sweeps[0] == sweeps[1]
    for expected, found in zip(*values, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_graph_that_is_cut_between_segments_stays_as_it_is() -> None:
    model = deep([["hidden_1", "hidden_2"], ["hidden_30", "hidden_31"]])
    train_once(model)
    graph = simplify(step_of(model).graph)
    assert recompute_within_stages(graph, cut(graph, 2))[0] is graph


# Memory


def test_memory_falls() -> None:
    plain, again = (train_once(deep(recompute)).peak_bytes for recompute in (None, "all"))
    assert again < plain / 2


def test_a_footprint_is_what_a_plan_takes() -> None:
    for recompute in (None, "all"):
        model = deep(recompute)
        taken = values_bytes(model)
        assert footprint_bytes(make_program(simplify(step_of(model).graph)), BATCH) == taken


def test_a_limit_of_memory_is_kept_to() -> None:
    flops = []
    plain = values_bytes(deep())
    for share in (2.0, 0.9, 0.7, 0.5):
        model = deep(int(plain * share))
        assert values_bytes(model) <= plain * share
        flops.append(Recomputed.of(step_of(model).graph).flops)
    assert flops[0] == 0
    assert flops == sorted(flops)
    assert len(set(flops)) == 4


def test_a_limit_is_for_the_largest_batch_so_far() -> None:
    limit = values_bytes(deep())
    model = deep(limit)
    assert values_bytes(model) == limit
    values_bytes(model, BATCH // 2)
    assert len(model._step_cache.trained()) == 1
    assert values_bytes(model, 2 * BATCH) <= limit
    assert len(model._step_cache.trained()) == 2


def test_a_limit_that_cannot_be_kept_to_is_told_with_the_least_that_can() -> None:
    model = deep("10 kB")
    with pytest.raises(ModelError, match=r"within recompute=10,000 bytes .* at the least") as told:
        train_once(model)
    least = int(str(told.value).split("computed again ")[1].split(" at")[0].replace(",", ""))
    assert values_bytes(deep(least)) == least


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (False, None),
        (True, "all"),
        ("all", "all"),
        (1000, 1000),
        ("64 MB", 64_000_000),
        ("1.5GiB", 3 << 29),
        ("10 kb", 10_000),
        ("dense", [["dense"]]),
        (["a", ["b", "c"]], [["a"], ["b", "c"]]),
    ],
)
def test_what_compile_takes(value: Any, expected: Any) -> None:
    assert as_recompute(value) == expected


@pytest.mark.parametrize("value", [0, -5, 1.5, [], [[]], [1], [["a", 2]], {"a": 1}])
def test_what_compile_refuses(value: Any) -> None:
    with pytest.raises(ArgumentError, match="expected recompute=None, 'all', names of layers, or a limit of memory"):
        mg.Sequential([layers.Dense(1)]).compile("sgd", "mse", recompute=value)


def test_unknown_layers_are_told_with_those_there_are() -> None:
    with pytest.raises(ArgumentError, match=r"hidden_0, hidden_1.*last; found 'hiden_\*'"):
        train_once(deep("hiden_*"))


def test_grad_refuses_what_it_does_not_know() -> None:
    x, loss, _ = chain()
    with pytest.raises(ArgumentError, match=r"among part_0, .* found 'nowhere'"):
        mg.grad(loss, x, recompute=["nowhere"])
    with pytest.raises(ArgumentError, match="names of layers, nodes, or a function"):
        mg.grad(loss, x, recompute=3)


def test_scopes_within_layers() -> None:
    mg.set_seed(0)
    inner = [layers.Dense(4, activation="tanh", name=f"inner_{number}") for number in range(3)]
    block = mg.Sequential([layers.Input((4,)), *inner], name="block")
    model = mg.Sequential([layers.Input((4,)), block, layers.Dense(1, name="last")])
    model.compile("sgd", "mse", recompute=[["block/inner_0", "block/inner_1"]])
    model.train_on_batch(np.ones((2, 4), "float32"), np.ones((2, 1), "float32"))
    again = [node for node in step_of(model).graph.nodes if node.phase == RECOMPUTE and node.op.name == "tanh"]
    assert [node.scope for node in again] == ["block/inner_0"]


# Its cost is told


def test_timing_tells_it_apart() -> None:
    model = deep("all")
    model.fit(*deep_data(), batch_size=32, epochs=2, verbose=0)
    timing = model.history.timing
    seconds = dict.fromkeys((FORWARD, RECOMPUTE, BACKWARD), 0.0)
    flops = dict.fromkeys(seconds, 0)
    for record in timing.records:
        if record.phase in seconds:
            seconds[record.phase] += record.seconds
            flops[record.phase] += record.flops
    assert all(value > 0 for value in seconds.values())
    assert 0.5 * flops[FORWARD] < flops[RECOMPUTE] < flops[FORWARD]
    told = Recomputed.of(step_of(model).graph)
    assert abs(flops[RECOMPUTE] / timing.steps / 32 / told.flops - 1) < 0.01
    assert "recompute" in str(timing.verdict())


def test_the_summary_tells_layers_and_cost() -> None:
    def summary() -> str:
        printed: list[str] = []
        model.summary(line_length=4000, print_fn=printed.append)
        return printed[0].splitlines()[-1]

    model = deep([["hidden_3", "hidden_4", "hidden_5"]])
    assert "once training has begun" in summary()
    train_once(model)
    told = Recomputed.of(step_of(model).graph)
    assert list(told.layers) == ["hidden_3", "hidden_4"]
    assert told.saved_bytes == 2 * WIDTH * 4
    assert summary().rstrip() == (
        "computed again in the backward pass: hidden_3 and hidden_4; "
        f"for each sample {told.flops:,} flops more and 512 B less to keep"
    )


def test_the_summary_shortens_many_layers() -> None:
    model = deep("all")
    train_once(model)
    told = str(Recomputed.of(step_of(model).graph))
    assert re.search(r": \d\d layers, hidden_0, hidden_1, hidden_2, hidden_3, hidden_4 … hidden_\d\d; ", told)


def test_pictures_and_exports_show_it(tmp_path: Path) -> None:
    model, x, y = convolutional()
    model.compile("sgd", losses.SparseCategoricalCrossentropy(from_logits=True), recompute="all")
    timing = model.fit(x, y, batch_size=8, verbose=0).timing
    graph = step_of(model).graph
    for dark in (False, True):
        graph.plot(tmp_path / "graph.png", dark=dark)
        for kind in ("layers", "timeline"):
            timing.plot(tmp_path / f"{kind}.png", kind=kind, dark=dark)
    mg.report(model, timing, tmp_path / "report.html")
    timing.to_chrome_trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert any(event.get("cat") == RECOMPUTE for event in events)


def test_saving_keeps_it(tmp_path: Path) -> None:
    for recompute in ("all", [["hidden_1", "hidden_2"], ["last"]], 5_000_000):
        model = deep(recompute)
        train_once(model)
        model.save(tmp_path / "model.miai")
        loaded = mg.load_model(tmp_path / "model.miai")
        assert loaded.compiled_arguments.recompute == recompute
        np.testing.assert_array_equal(
            loaded.train_on_batch(*deep_data()),
            model.train_on_batch(*deep_data()),
        )
