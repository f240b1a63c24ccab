"""Nodes and graphs as values: what they refuse, how they look, which are the same, and how they grow."""

from __future__ import annotations

import gc
import inspect
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

import miai_graph as mg
from miai_graph.context import build_context
from miai_graph.errors import ArgumentError, DTypeError, DuplicateNameError, GraphError, ShapeError
from miai_graph.interpreter import evaluate
from miai_graph.node import Node
from miai_graph.ops.leaves import batch_size
from miai_graph.passes.simplify import simplify

THIS_FILE = Path(__file__).name
DTYPES = ["bool", "int8", "uint8", "int16", "int32", "uint32", "int64", "uint64", "float32", "float64"]


@pytest.fixture
def x() -> Node:
    return mg.input("x", (None, 3))


def test_nodes_never_change(x: Node) -> None:
    for change in (
        lambda: setattr(x, "name", "y"),
        lambda: setattr(x, "colour", "red"),
        lambda: delattr(x, "op"),
    ):
        with pytest.raises(GraphError, match="nodes never change"):
            change()
    with pytest.raises(TypeError):
        x.attributes["type"] = None
    assert isinstance(x.inputs, tuple)


def test_nodes_are_keys_by_identity_and_compare_element_wise(x: Node) -> None:
    y = mg.input("x", (None, 3))
    assert {x: 1, y: 2}[x] == 1
    assert hash(x) != hash(y)
    for node, name in (
        (x == y, "equal"),
        (x != y, "not_equal"),
        (x == 1, "equal"),
        (x < y, "less"),
        (2 >= x, "less_equal"),
    ):
        assert node.op.name == name
        assert node.dtype == bool


@pytest.mark.parametrize(
    ("use", "text"),
    [
        (bool, "a truth value"),
        (iter, "elements to iterate"),
        (np.asarray, "an array"),
        (len, r"mg.shape\(node\)\[0\]"),
        (float, "a number"),
        (int, "a number"),
        (lambda node: [1, 2][node], "a number"),
        (lambda node: 3 in node, "members"),
        (lambda node: node.value, "only parameters"),
        (lambda node: 0 < node < 1, "a truth value"),
        (lambda node: list(node), "elements"),
    ],
)
def test_a_node_has_no_value_and_says_so(x: Node, use, text: str) -> None:
    with pytest.raises(ArgumentError, match=text) as caught:
        use(x)
    assert THIS_FILE in str(caught.value)


def test_known_lengths_are_lengths() -> None:
    assert len(mg.input("x", (4, 3))) == 4
    assert mg.input("x", (None, 4, 3)).shape == (None, 4, 3)


@pytest.mark.parametrize(
    ("call", "op"),
    [
        (lambda x: np.exp(x), "exp"),
        (lambda x: np.sum(x), "sum"),
        (lambda x: np.sum(x, axis=1, keepdims=True), "reshape"),
        (lambda x: np.max(x, 0), "max"),
        (lambda x: np.amin(x, 0), "min"),
        (lambda x: np.concatenate([x, np.ones((2, 3), "f4").sum(0)[None] * x]), "concatenate"),
        (lambda x: np.where(x > 0, x, 0), "where"),
        (lambda x: np.reshape(x, (-1, 1, 3)), "reshape"),
        (lambda x: np.matmul(x, np.ones((3, 2), "f4")), "matmul"),
        (lambda x: np.dot(x, np.ones((3, 2), "f4")), "matmul"),
        (lambda x: np.clip(x, 0, 1), "clip"),
        (lambda x: np.transpose(x, (1, 0)), "transpose"),
        (lambda x: np.take(x, [0, 1], axis=1), "take"),
        (lambda x: np.stack([x, x], axis=1), "concatenate"),
        (lambda x: np.square(x), "square"),
        (lambda x: np.logical_not(x), "logical_not"),
        (lambda x: np.maximum(np.zeros(3, "f4"), x), "maximum"),
        (lambda x: np.pad(x, ((0, 0), (1, 1))), "pad"),
        (lambda x: np.zeros_like(x), "broadcast_to"),
        (lambda x: np.argmax(x, axis=-1), "argmax"),
        (lambda x: np.expand_dims(x, 1), "reshape"),
        (lambda x: np.float32(2) * x, "multiply"),
        (lambda x: np.ones(3, "f4") + x, "add"),
        (lambda x: x - np.ones(3, "f4"), "subtract"),
        (lambda x: np.ones((2, 1), "f4").T @ x.T[:2], "matmul"),
        (lambda x: np.ones(3, "f4") == x, "equal"),
        (lambda x: 2 / x, "divide"),
        (lambda x: 2**x, "power"),
        (lambda x: abs(x), "absolute"),
        (lambda x: +x, "input"),
        (lambda x: (1 > x) | ~(x > 2), "logical_or"),
        (lambda x: True & (x > 2), "logical_and"),
    ],
)
def test_operators_and_numpy_functions_build_one_node(x: Node, call, op: str) -> None:
    node = call(x)
    assert type(node) is Node
    assert node.op.name == op
    assert node.dtype in (np.float32, bool, np.int64)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: np.sort(x),
        lambda x: np.linalg.norm(x),
        lambda x: np.add.reduce(x),
        lambda x: np.arctan2(x, x),
        lambda x: np.exp(x, out=np.zeros(3)),
        lambda x: np.sum(x, dtype="f8"),
        lambda x: np.where(x),
        lambda x: np.transpose(),
        lambda x: np.add(np.ones(3), x, where=np.ones(3, bool)),
        lambda x: np.frexp(x),
    ],
)
def test_other_numpy_functions_are_refused(x: Node, call) -> None:
    with pytest.raises((ArgumentError, TypeError), match=r"expected|missing"):
        call(x)


def test_an_array_is_not_changed_by_a_node(x: Node) -> None:
    array = np.ones(3, "f4")
    with pytest.raises(ArgumentError, match="out"):
        array += x
    assert array.dtype == "f4"


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations_with_replacement(DTYPES, 2)))
def test_dtypes_promote_as_in_numpy(first: str, second: str) -> None:
    a, b = mg.input("a", 2, first), mg.input("b", 2, second)
    if first != "bool" or second != "bool":
        expected = np.result_type(np.dtype(first), np.dtype(second))
        assert (mg.maximum(a, b)).dtype == expected
        assert (a + np.ones(2, second)).dtype == expected
        assert np.divide(a, b).dtype == np.divide(np.ones(1, first), np.ones(1, second)).dtype


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("number", [2, 2.5, True])
def test_python_numbers_promote_as_in_numpy(dtype: str, number) -> None:
    a = mg.input("a", 2, dtype)
    expected = (np.ones(2, dtype) * number).dtype
    assert (a * number).dtype == expected
    assert (number * a).dtype == expected
    assert mg.where(a > 0, a, number).dtype == expected


def test_integers_become_floats_as_in_numpy() -> None:
    for dtype in ("int8", "int32", "int64"):
        a = mg.input("a", 2, dtype)
        assert mg.mean(a).dtype == mg.exp(mg.cast(a, "int64")).dtype == np.float64
        assert mg.sum(a).dtype == np.int64
    assert mg.sum(mg.input("u", 2, "uint8")).dtype == np.uint64


def test_names_are_the_same_after_set_seed() -> None:
    def names() -> list[str]:
        mg.set_seed(3)
        x = mg.input("x", (None, 3))
        with mg.name_scope("encoder"), mg.name_scope("dense") as scope:
            y = x @ mg.parameter(np.ones((3, 2)), dtype="float32")
            z = y + y
        assert z.scope == scope == "encoder/dense"
        return [node.name for node in mg.Graph([z + z, mg.exp(z), mg.exp(z)]).nodes]

    first = names()
    assert first == names()
    assert first == ["x", "encoder/dense/parameter", "encoder/dense/matmul", "encoder/dense/add", "add", "exp", "exp_1"]


def test_a_name_is_given_once(x: Node) -> None:
    mg.set_seed(0)
    asked = ["a", "a_1", "a", "a_1", "a", "a_2", "a_02", "a", *(f"b_{number}" for number in range(1, 2000)), "b", "b"]
    names = [mg.exp(x, name=name).name for name in asked]
    assert names[:8] == ["a", "a_1", "a_2", "a_1_1", "a_3", "a_2_1", "a_02", "a_4"]
    assert names[-2:] == ["b", "b_2000"]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, True, None, "0"])
def test_seeds_are_integers(seed) -> None:
    with pytest.raises(ArgumentError, match="seed"):
        mg.set_seed(seed)


def test_source_lines_are_the_users(x: Node) -> None:
    node = mg.softmax(x)
    line = inspect.currentframe().f_lineno - 1
    (gradient,) = mg.grad(mg.sum(node), [x])
    assert (node.source.file, node.source.line) == (__file__, line)
    assert {built.source.short.split(":")[0] for built in mg.Graph([gradient]).nodes} == {THIS_FILE}
    assert gradient.phase == "backward"
    with build_context(phase="update"):
        assert (x + x).phase == "update"


def test_the_text_form() -> None:
    mg.set_seed(0)
    x = mg.input("x", (None, 2))
    w = mg.parameter(np.ones((2, 2)), "w", dtype="float32")
    y = mg.sum((x @ w).reshape(-1) * 3, 0)
    n = mg.variable(np.zeros(()), "n")
    text = str(mg.Graph([y], {n: n + 1}))
    lines = [line.split("  # ")[0].rstrip() for line in text.splitlines()]
    assert lines == [
        "graph(x: f32[B,2]):",
        "  %x = input : f32[B,2]",
        "  %w = parameter : f32[2,2]",
        "  %matmul = matmul(%x, %w) : f32[B,2]",
        "  %reshape = reshape(%matmul, shape=(2·B)) : f32[2·B]",
        "  %constant = constant(value=3.) : f32[]",
        "  %broadcast_to = broadcast_to(%constant, shape=(2·B)) : f32[2·B]",
        "  %multiply = multiply(%reshape, %broadcast_to) : f32[2·B]",
        "  %sum = sum(%multiply, axes=(0)) : f32[]",
        "  %n = variable : f64[]",
        "  %constant_1 = constant(value=1.) : f64[]",
        "  %add = add(%n, %constant_1) : f64[]",
        "  update n = %add",
        "  return %sum",
    ]
    assert text.count(f"# {THIS_FILE}:") == 11


def test_graphs_hold_what_is_needed(x: Node) -> None:
    w = mg.parameter(np.ones(3), "w")
    y = x * 2.0
    unused = mg.exp(y)
    graph = mg.Graph(y, {w: w + 1.0})
    assert unused not in set(graph.nodes)
    assert graph.inputs == (x,)
    assert graph.variables == (w,)
    assert len(graph) == len(graph.nodes) == 8
    assert repr(graph) == "<Graph of 8 nodes, 1 inputs, 1 outputs>"
    with pytest.raises(TypeError):
        graph.updates["w"] = x


@pytest.mark.parametrize(
    ("build", "error", "text"),
    [
        (lambda x, w: mg.Graph([1]), ArgumentError, "nodes as outputs"),
        (lambda x, w: mg.Graph([], {x: x}), ArgumentError, "parameter or variable to update"),
        (lambda x, w: mg.Graph([], {w: np.ones(3)}), ArgumentError, "a node as update of 'w'"),
        (lambda x, w: mg.Graph([], {w: w[:2]}), ShapeError, rf"f64\[3\] w \(.*{THIS_FILE}.*\n.*f64\[2\]"),
        (lambda x, w: mg.Graph([], {w: x}), ShapeError, "variable's shape"),
        (lambda x, w: mg.Graph([], {w: mg.cast(w, "f4")}), DTypeError, "mg.cast"),
        (lambda x, w: mg.Graph([x + mg.input("x", (None, 3))]), DuplicateNameError, "'x' twice"),
        (lambda x, w: mg.Graph([w + mg.variable(1.0, "w")]), DuplicateNameError, "different names"),
        (lambda x, w: mg.input("", (3,)), ArgumentError, "non-empty"),
        (lambda x, w: mg.input("y", (3, None)), ShapeError, "first dimension only"),
        (lambda x, w: mg.input("y", (-1,)), ShapeError, "at least 0"),
        (lambda x, w: mg.input("y", (3,), "float16"), DTypeError, "float16"),
        (lambda x, w: mg.parameter([1, 2]), DTypeError, "expected floats"),
        (lambda x, w: mg.variable(x), ArgumentError, "found node"),
        (lambda x, w: mg.variable("text"), DTypeError, "expected"),
        (lambda x, w: mg.assign(x, 1), ArgumentError, "expected a parameter or variable"),
    ],
)
def test_malformed_graphs_are_refused(x: Node, build, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        build(x, mg.parameter(np.ones(3), "w"))


def altered(node: Node, **changes) -> Node:
    fields = {name: getattr(node, name) for name in Node.__slots__ if name != "__weakref__"}
    return Node(**{**fields, **changes})


def test_check_graph_finds_what_is_wrong(x: Node) -> None:
    y = mg.exp(x)
    mg.check_graph(mg.Graph([y]))
    wrong_type = altered(y, type=y.type.with_dtype("float64"))
    too_early = altered(y, index=-1)
    unknown_op = altered(y, op=type(y.op)())
    for node, text in (
        (wrong_type, "which exp infers"),
        (too_early, "before their users"),
        (unknown_op, "of the registry"),
    ):
        with pytest.raises(GraphError, match=text):
            mg.check_graph(mg.Graph([node]))


def test_same_graph() -> None:
    def graph(*, scale: float = 2.0, name: str = "x", shape=(None, 3), swap: bool = False, axis: int = 0) -> mg.Graph:
        x = mg.input(name, shape)
        first, second = (mg.exp(x), mg.tanh(x)) if not swap else reversed((mg.tanh(x), mg.exp(x)))
        return mg.Graph([mg.sum(first * scale + second, axis)])

    assert mg.same_graph(graph(), graph())
    assert mg.same_graph(graph(), graph(swap=True))
    assert mg.same_graph(graph(), graph(scale=2))
    for other in (graph(scale=3.0), graph(name="y"), graph(shape=(None, 4)), graph(axis=1)):
        assert not mg.same_graph(graph(), other)
    assert not mg.same_graph(graph(), graph(scale=-2.0))
    assert not mg.same_graph(graph(scale=0.0), graph(scale=-0.0))
    assert not mg.same_graph(graph(), mg.Graph(graph().outputs * 2))


def test_same_graph_tells_variables_and_sharing_apart() -> None:
    def graph(trainable: bool = True, twice: bool = False) -> mg.Graph:
        w = (mg.parameter if trainable else mg.variable)(1.0, "w")
        y = mg.exp(w)
        return mg.Graph([y + (mg.exp(w) if twice else y)], {w: y})

    assert mg.same_graph(graph(), graph())
    assert not mg.same_graph(graph(), graph(trainable=False))
    assert not mg.same_graph(graph(), graph(twice=True))
    assert not mg.same_graph(graph(), mg.Graph(graph().outputs))


def test_to_networkx(x: Node) -> None:
    y = x - x
    drawn = mg.Graph([y]).to_networkx()
    assert list(drawn.nodes) == ["x", "subtract"]
    assert drawn.nodes["subtract"]["op"] == "subtract"
    assert drawn.nodes["x"]["type"] == "f32[B,3]"
    assert drawn.nodes["x"]["shape"] == (None, 3)
    assert [data["position"] for _, _, data in drawn.edges(data=True)] == [0, 1]


def test_names_in_a_graph_are_unique_after_set_seed(x: Node) -> None:
    first = mg.exp(x)
    mg.set_seed(0)
    second = mg.exp(x)
    graph = mg.Graph([first + second])
    assert first.name == second.name == "exp"
    assert sorted(graph.names.values()) == ["add", "exp", "exp'1", "x"]


def test_shape_gives_the_batch_size_as_a_node(x: Node) -> None:
    length, width = mg.shape(x)
    assert width == 3
    assert length.op is batch_size().op
    assert mg.shape(mg.reshape(x, -1))[0].dtype == np.int64


def chain(length: int) -> tuple[Node, Node, Node]:
    x = mg.input("x", (None, 2))
    w = mg.parameter(np.array([1.0, 2.0]), dtype="float32")
    y = x * w
    for _ in range(length):
        y = -y
    return x, w, mg.sum(y)


def calls_for_a_chain(length: int) -> int:
    """How many Python functions are called to build, differentiate, simplify, check, print and compile a chain."""
    calls = 0

    def count(_: object, event: str, __: object) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        x, w, loss = chain(length)
        outputs = [loss, *mg.grad(loss, [w])]
        graph = mg.Graph(outputs)
        mg.check_graph(graph)
        str(graph)
        mg.function([x], outputs)
    finally:
        sys.setprofile(before)
    return calls


def test_work_grows_linearly_with_the_graph() -> None:
    assert calls_for_a_chain(2_000) < 2.1 * calls_for_a_chain(1_000)


def test_long_chains_need_no_recursion() -> None:
    counts = {}
    for length in (5_000, 10_000):
        x, w, loss = chain(length)
        (gradient,) = mg.grad(loss, [w])
        graph = mg.Graph([loss, gradient])
        simpler = simplify(graph)
        counts[length] = np.array([len(graph), len(simpler), len(str(graph).splitlines())])
    assert len(graph) > 20_000
    assert (np.abs(counts[10_000] / counts[5_000] - 2) < 0.01).all()
    mg.check_graph(graph)
    array = np.array([[3.0, 4.0]], "f4")
    for found in (mg.function([x], [loss, gradient])(array), evaluate(graph, {x: array}, batch_size=1)[0]):
        assert found[0] == 11
        np.testing.assert_array_equal(found[1], [3, 4])
    del graph, simpler, loss, gradient, x, w
    gc.collect()
