"""Graphs as data: what is built of it elsewhere is the same graph and computes the same bits; what cannot is told."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference_executor import Reference
from samples import SAMPLES
from sampling import Sample
from test_ops import loss_of

import miai_graph as mg
from miai_graph import layers
from miai_graph.errors import GraphError
from miai_graph.gradient import grad
from miai_graph.graph import Graph, check_graph, same_graph
from miai_graph.graph_data import GraphData, graph_from_data, graph_to_data, unportable_ops
from miai_graph.interpreter import evaluate
from miai_graph.op import Op, ops, register
from miai_graph.ops.leaves import variable_node, variable_of
from miai_graph.state import State, Variable
from miai_graph.state import state as process_state
from miai_graph.types import BatchDim, TensorType

TOLD = ("name", "scope", "phase", "source", "type", "op")
SOFTSIGN = """
    import numpy as np
    import miai_graph as mg

    @mg.op
    class softsign_of_a_test:
        def infer(x, **_):
            return x

        def forward(x, **_):
            return x / (1 + np.abs(x))
"""


@pytest.fixture(autouse=True)
def _own_ops_go() -> Iterator[None]:
    before = dict(ops)
    yield
    ops.clear()
    ops.update(before)


@pytest.fixture
def make_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Write a module of a name into a folder of the path, and import it."""
    made = []

    def make(name: str, text: str = SOFTSIGN) -> ModuleType:
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text), encoding="utf-8")
        importlib.invalidate_caches()
        made.append(name)
        return importlib.import_module(name)

    monkeypatch.syspath_prepend(tmp_path)
    yield make
    for name in made:
        sys.modules.pop(name, None)


def sent(graph: Graph) -> GraphData:
    """The data as a transport gives it back: text, and arrays apart."""
    data = graph_to_data(graph)
    arrays = tuple(pickle.loads(pickle.dumps(array)) for array in data.arrays)
    return GraphData(json.loads(json.dumps(data.content)), arrays)


def assert_same(graph: Graph, other: Graph) -> None:
    check_graph(other)
    assert same_graph(graph, other)
    assert str(graph) == str(other)
    for node, twin in zip(graph.nodes, other.nodes, strict=True):
        assert [getattr(node, field) for field in TOLD] == [getattr(twin, field) for field in TOLD]
        assert node.attributes.keys() == twin.attributes.keys()


def values_of(graph: Graph, variables: dict[Variable, np.ndarray], arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The values of outputs and updates, with values for the variables that stand nowhere else."""
    own = State()
    for variable, value in variables.items():
        own.add(variable, value)
    feeds = {node: arrays[node.name] for node in graph.inputs}
    outputs, updates = evaluate(graph, feeds, batch_size=3, state=own, step=2, first_row=4, whole_batch_size=9)
    return [*outputs, *updates.values()]


def assert_survives(graph: Graph, arrays: dict[str, np.ndarray]) -> None:
    """What is built of the data is the same graph, and gives the same bits."""
    rebuilt, variables = graph_from_data(sent(graph))
    assert_same(graph, rebuilt)
    assert list(variables) == [variable_of(node) for node in rebuilt.variables]
    assert not any(variable in process_state for variable in variables)
    originals = [variable_of(node) for node in graph.variables]
    contents = [process_state.get(variable) for variable in originals]
    expected = values_of(graph, dict(zip(originals, contents, strict=True)), arrays)
    found = values_of(rebuilt, dict(zip(variables, contents, strict=True)), arrays)
    for one, other in zip(found, expected, strict=True):
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


@pytest.mark.parametrize("floating", ["float32", "float64"])
@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
def test_each_op_survives_with_its_gradient(sample: Sample, floating: str) -> None:
    node, inputs = sample.node(floating)
    floats = [x for x in inputs if x.type.is_floating]
    outputs = [node, *grad(loss_of(node), floats)] if sample.gradient else [node]
    arrays = {x.name: array for x, array in zip(inputs, sample.arrays(3, floating), strict=True)}
    assert_survives(Graph(outputs), arrays)


def convolutional() -> mg.Sequential:
    return mg.Sequential(
        [
            layers.Input((6, 6, 2), name="x"),
            layers.Conv2D(3, 3, padding="same", activation="relu"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.3),
            layers.Dense(4, activation="softmax", kernel_regularizer="l2"),
        ]
    )


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop", "adam"])
def test_a_training_step_survives(optimizer: str, rng: np.random.Generator) -> None:
    model = convolutional()
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], executor=Reference())
    x, y = rng.normal(size=(3, 6, 6, 2)).astype("float32"), rng.integers(0, 4, 3)
    model.train_on_batch(x, y)
    (step,) = model._step_cache._steps.values()
    arrays = {node.name: x if node.name == "x" else y for node in step.graph.inputs}
    assert len(step.graph.updates) > 8
    assert {node.phase for node in step.graph.nodes} == {"forward", "backward", "update"}
    assert_survives(step.graph, arrays)


def test_a_variable_of_several_nodes_stays_one() -> None:
    w = mg.parameter(np.ones(3), "w")
    again = variable_node(variable_of(w))
    counter = mg.variable(0, "counter")
    graph = Graph([w + again], {w: again * 2.0, counter: counter + 1})
    rebuilt, variables = graph_from_data(sent(graph))
    assert [(key.name, str(key.type), key.trainable) for key in variables] == [
        ("w", "f64[3]", True),
        ("counter", "i64[]", False),
    ]
    first, second = (node for node in rebuilt.nodes if node.name == "w")
    assert first is not second
    assert variable_of(first) is variable_of(second) is variables[0]
    assert variable_of(w) is not variables[0]


def test_arrays_stand_apart_and_are_not_copied() -> None:
    value = np.arange(100_000, dtype="float32")
    graph = Graph([mg.input("x", (100_000,)) + value])
    data = graph_to_data(graph)
    assert [array.nbytes for array in data.arrays] == [400_000]
    assert len(json.dumps(data.content)) < 1000
    (constant,) = (node for node in graph.nodes if node.op.name == "constant")
    assert data.arrays[0] is constant.attributes["value"]
    assert pickle.loads(pickle.dumps(data)).content == data.content
    rebuilt, _ = graph_from_data(data)
    (constant,) = (node for node in rebuilt.nodes if node.op.name == "constant")
    with pytest.raises(ValueError, match="read-only"):
        constant.attributes["value"][0] = 1


def test_new_nodes_come_after_those_rebuilt() -> None:
    x = mg.input("x", (None, 2))
    rebuilt, _ = graph_from_data(graph_to_data(Graph([mg.exp(x)])))
    (output,) = rebuilt.outputs
    assert Graph([mg.tanh(output)]).nodes[:2] == rebuilt.nodes


plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.sampled_from(
        [np.dtype("float32"), np.dtype(bool), np.float32(0.1), np.int8(3), np.bool(True), np.float64("nan")]
    ),
    st.integers(1, 9).map(BatchDim),
    st.just(TensorType(np.dtype("int8"), (BatchDim(2), 3))),
    st.just(slice(None, -1, 2)),
    st.just(np.arange(6, dtype="uint16").reshape(2, 3)),
)
attribute_values = st.recursive(
    plain,
    lambda parts: st.one_of(
        st.lists(parts, max_size=3),
        st.lists(parts, max_size=3).map(tuple),
        st.dictionaries(st.text(), parts, max_size=3),
    ),
    max_leaves=6,
)


class Labelled(Op):
    """The identity, with an attribute."""

    name = "labelled_for_a_test"

    def infer(self, x: TensorType, **_: Any) -> TensorType:
        return x


labelled = register(Labelled())
del ops[labelled.name]


@given(attribute_values)
def test_attributes_of_each_kind_survive(value: Any) -> None:
    graph = Graph([labelled(mg.input("x", (2,)), label=value)])
    rebuilt, _ = graph_from_data(sent(graph))
    (node,) = rebuilt.outputs
    assert node.op is labelled
    assert told(node.attributes["label"]) == told(value)


def told(value: Any) -> Any:
    """A value with its type, such that equal means alike."""
    match value:
        case tuple() | list():
            return type(value), [told(part) for part in value]
        case dict():
            return [(key, told(part)) for key, part in value.items()]
        case np.ndarray():
            return value.dtype, value.shape, value.tobytes()
    return type(value), repr(value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (print, "print.* of type builtin_function"),
        ((1, object()), "object.* of type object"),
        (np.array(["a"], object), "of type ndarray"),
        ({1: 2}, "of type dict"),
        (1j, "of type complex"),
    ],
)
def test_attributes_that_are_no_data_are_told(value: Any, words: str) -> None:
    x = mg.input("x", (2,))
    node = labelled(mg.exp(x), name="mine", label=value)
    graph = Graph([mg.tanh(node)])
    ((found, reason),) = unportable_ops(graph)
    assert found is node
    assert reason.startswith("attribute 'label' of op labelled_for_a_test is not plain data: it holds ")
    with pytest.raises(GraphError, match=rf"f32\[2\] mine \(.*test_graph_data.py:\d+\): attribute 'label'.*{words}"):
        graph_to_data(graph)


class TestOpsOfUsers:
    def test_their_modules_are_listed_and_imported(self, make_module, tmp_path: Path) -> None:
        module = make_module("ops_of_a_test")
        x = mg.input("x", (None, 2))
        graph = Graph([module.softsign_of_a_test(mg.exp(x), by=np.float32(2))])
        assert unportable_ops(graph) == []
        data = graph_to_data(graph)
        assert data.modules == ["ops_of_a_test"]
        assert module.softsign_of_a_test.source.short == "ops_of_a_test.py:5"
        assert_survives(graph, {"x": np.ones((3, 2), "f4")})
        receiver = """
            import pickle, sys
            from miai_graph.graph_data import graph_from_data
            from miai_graph.graph import check_graph
            graph, _ = graph_from_data(pickle.load(sys.stdin.buffer))
            check_graph(graph)
            print(graph)
        """
        found = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(receiver)],
            input=pickle.dumps(data),
            stdout=subprocess.PIPE,
            check=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "PYTHONIOENCODING": "utf-8"},
        )
        assert found.stdout.decode().strip() == str(graph)

    def test_those_of_one_name_are_kept_apart(self, make_module) -> None:
        first, second = make_module("first_of_a_test"), make_module("second_of_a_test")
        x = mg.input("x", (2,))
        graph = Graph([first.softsign_of_a_test(x), second.softsign_of_a_test(x)])
        rebuilt, _ = graph_from_data(sent(graph))
        assert [node.op for node in rebuilt.outputs] == [first.softsign_of_a_test, second.softsign_of_a_test]

    def test_those_under_another_name_are_found(self, make_module) -> None:
        text = textwrap.dedent(SOFTSIGN) + textwrap.dedent("""
            def make():
                @mg.op
                class inner_of_a_test:
                    infer = softsign_of_a_test.infer
                    forward = softsign_of_a_test.forward
                return inner_of_a_test

            class Namespace:
                member = make()

            made = make()
        """)
        module = make_module("renamed_of_a_test", text)
        graph = Graph([module.made(mg.input("x", (2,)))])
        rebuilt, _ = graph_from_data(sent(graph))
        assert rebuilt.outputs[0].op is module.made
        ((_, reason),) = unportable_ops(Graph([module.Namespace.member(mg.input("x", (2,)))]))
        assert "inside a function" in reason

    def test_those_of_the_script_are_told(self, tmp_path: Path) -> None:
        script = """
            from miai_graph.graph_data import unportable_ops
            x = mg.input("x", (2,))
            graph = mg.Graph([mg.exp(softsign_of_a_test(x))])
            for node, reason in unportable_ops(graph):
                print(node.name, reason)
        """
        path = tmp_path / "script.py"
        path.write_text(textwrap.dedent(SOFTSIGN) + textwrap.dedent(script), encoding="utf-8")
        found = subprocess.run([sys.executable, str(path)], stdout=subprocess.PIPE, text=True, check=True)
        assert found.stdout == (
            "softsign_of_a_test op softsign_of_a_test is defined in __main__ (script.py:5), "
            "which other processes cannot import; move it into a module of its own\n"
        )

    def test_those_of_a_function_are_told(self) -> None:
        @mg.op
        class local_of_a_test:
            def infer(x):
                return x

            def forward(x):
                return x

        graph = Graph([local_of_a_test(mg.input("x", (2,)))])
        ((node, reason),) = unportable_ops(graph)
        assert node is graph.outputs[0]
        assert reason.startswith("op local_of_a_test is defined inside a function, as TestOpsOfUsers.")
        with pytest.raises(GraphError, match=r"other processes can build; found one that has\n  f32\[2\] local_of_a"):
            graph_to_data(graph)

    def test_those_replaced_since_are_told(self, make_module) -> None:
        module = make_module("reloaded_of_a_test")
        graph = Graph([module.softsign_of_a_test(mg.input("x", (2,)))])
        importlib.reload(module)
        ((_, reason),) = unportable_ops(graph)
        assert "is not what softsign_of_a_test of reloaded_of_a_test" in reason

    def test_those_of_modules_that_are_nowhere_are_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module = ModuleType("nowhere_of_a_test")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(textwrap.dedent(SOFTSIGN), vars(module))
        ((_, reason),) = unportable_ops(Graph([module.softsign_of_a_test(mg.input("x", (2,)))]))
        assert "defined in nowhere_of_a_test" in reason
        assert "cannot be imported by that name" in reason

    def test_those_missing_at_the_receiver_are_told(self, make_module, tmp_path: Path) -> None:
        module = make_module("missing_of_a_test")
        data = graph_to_data(Graph([module.softsign_of_a_test(mg.input("x", (2,)))]))
        del module.softsign_of_a_test
        with pytest.raises(
            GraphError, match="softsign_of_a_test of missing_of_a_test, which the graph uses; found None"
        ):
            graph_from_data(data)
        del sys.modules[module.__name__]
        (tmp_path / "missing_of_a_test.py").unlink()
        importlib.invalidate_caches()
        with pytest.raises(GraphError, match=r"can be imported; found ModuleNotFoundError.*PYTHONPATH"):
            graph_from_data(data)

    def test_built_in_ones_of_another_version_are_told(self) -> None:
        data = graph_to_data(Graph([mg.exp(mg.input("x", (2,)))]))
        for entry in data.content["ops"]:
            entry["name"] = entry["name"].replace("exp", "unheard_of")
        with pytest.raises(GraphError, match=r"op 'unheard_of' of miai_graph.*found None.*one version"):
            graph_from_data(data)
