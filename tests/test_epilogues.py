"""What is computed of a product before it is stored: the same as behind it, to the last bit, and where plans do so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from native_samples import GUARD, PROCESSORS, SENTINEL, beside_others

import miai_graph as mg
from executors import Processes, Serial
from miai_graph.executor import Executor
from miai_graph.gradient import grad
from miai_graph.interpreter import evaluate
from miai_graph.kernels.by_rows import prepare_shared
from miai_graph.kernels.compiler import native
from miai_graph.kernels.compiler.native import Processor
from miai_graph.kernels.convolution.kernels import convolution
from miai_graph.kernels.elementwise.formulas import Step
from miai_graph.kernels.epilogue import Epilogue
from miai_graph.kernels.kernel import Kernel
from miai_graph.kernels.numpy_kernels import Request
from miai_graph.kernels.products.blocked import product
from miai_graph.kernels.products.matrix_product import matrix_product
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.plan.fusion import FinishedProduct
from miai_graph.plan.program import Program, Storage, make_program

pytestmark = pytest.mark.skipif(native.processor() is None, reason="there is no native code for this processor")

KINDS = [(each, dtype) for each in PROCESSORS for dtype in ("f4", "f8")]

ENDINGS: dict[str, list[tuple[str, tuple[int, ...]]]] = {
    "bias": [("add", (0, 1))],
    "bias and relu": [("add", (0, 1)), ("relu", (3,))],
    "scale": [("multiply", (2, 0))],
    "bias, scale, bounds": [("subtract", (0, 1)), ("multiply", (3, 2)), ("maximum", (4, 1)), ("minimum", (2, 5))],
    "negative square": [("square", (0,)), ("negative", (3,)), ("add", (4, 1))],
}
"""Operations, of value 0, the product; value 1, a number for each column; value 2, a number; and of earlier results."""


@pytest.fixture(params=KINDS, ids=str)
def kind(request) -> tuple[Processor, str]:
    """For vectors of each width: LLVM takes those apart that the processor does not have."""
    return request.param


@pytest.fixture(params=ENDINGS)
def ending(request) -> list[tuple[str, tuple[int, ...]]]:
    return ENDINGS[request.param]


def epilogue_of(ending: Sequence[tuple[str, tuple[int, ...]]], out: Array, rng: np.random.Generator) -> Epilogue:
    """Its numbers lie one element beyond where memory begins; some products become 0, inf and nan."""
    row = rng.standard_normal(out.shape[-1]).astype(out.dtype)
    row[rng.random(row.size) < 0.1] = np.nan
    operands = (beside_others(row)[0], np.asarray(1.7, out.dtype))
    steps = tuple(Step(name, numbers, out.dtype) for name, numbers in ending)
    return Epilogue(steps, tuple(np.broadcast_to(operand, out.shape) for operand in operands))


def applied(epilogue: Epilogue, product: Array) -> Array:
    """The same by NumPy, one step after another."""
    functions: dict[str, Callable[..., Array]] = {"relu": lambda x: np.where(x <= 0, x.dtype.type(0), x)}
    values = [product, *epilogue.operands]
    with np.errstate(all="ignore"):
        for step in epilogue.steps:
            function = functions.get(step.operation) or getattr(np, step.operation)
            values.append(function(*(values[number] for number in step.operands)))
    return values[-1]


def assert_finished(prepare: Callable[[Array, Epilogue | None], Kernel], shape: Sequence[int], *more: Any) -> None:
    """With an epilogue a kernel gives what it is made of without; memory around stays as it is."""
    ending, dtype, rng = more
    plain = np.full(shape, np.nan, dtype)
    prepare(plain, None)()
    out, memory = beside_others(np.full(shape, np.nan, dtype))
    epilogue = epilogue_of(ending, out, rng)
    kernel = prepare(out, epilogue)
    for _ in range(2):
        kernel()
        np.testing.assert_array_equal(out, applied(epilogue, plain))
    np.testing.assert_array_equal([memory[0], *memory[1 + out.size :]], np.full(GUARD, SENTINEL, dtype))


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (2, 3, 1), (5, 7, 3), (37, 513, 70), (600, 40, 101), (9, 1500, 383)], ids=str
)
@pytest.mark.parametrize("is_transposed", [False, True])
def test_products(
    kind: tuple[Processor, str],
    ending: list[tuple[str, tuple[int, ...]]],
    shape: tuple[int, int, int],
    is_transposed: bool,
    rng: np.random.Generator,
) -> None:
    rows, depth, columns = shape
    a, b = rng.standard_normal((rows, depth)).astype(kind[1]), rng.standard_normal((depth, columns)).astype(kind[1])
    if is_transposed:
        a, b = np.asfortranarray(a), np.asfortranarray(b)
    assert_finished(
        lambda out, epilogue: product(a, b, out, kind[0], epilogue=epilogue), (rows, columns), ending, kind[1], rng
    )


def test_products_of_large_matrices_and_of_stacks(kind: tuple[Processor, str], rng: np.random.Generator) -> None:
    def check(*shapes: tuple[int, ...]) -> None:
        a, b = (rng.standard_normal(shape).astype(kind[1]) for shape in shapes)
        shape = (*a.shape[:-1], b.shape[-1])
        ending = ENDINGS["bias and relu"]
        assert_finished(
            lambda out, epilogue: product(a, b, out, kind[0], epilogue=epilogue), shape, ending, kind[1], rng
        )

    check((1000, 400), (400, 383))
    check((2, 3, 9, 40), (2, 3, 40, 21))


@pytest.mark.parametrize("threads", [None, 1, 2, 3])
@pytest.mark.parametrize(
    "shape",
    [(40, 1000, 300), (300, 50, 120), (120, 50, 300), (7, 4000, 16), (3, 0, 5), (0, 3, 5), (1, 90, 70)],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_all_ways_of_multiplying_and_threads(
    threads: int | None, shape: tuple[int, int, int], dtype: str, rng: np.random.Generator
) -> None:
    rows, depth, columns = shape
    a, b = rng.standard_normal((rows, depth)).astype(dtype), rng.standard_normal((depth, columns)).astype(dtype)

    def prepare(out: Array, epilogue: Epilogue | None) -> Kernel:
        return matrix_product(a, b, out, np.empty, threads, epilogue)

    assert_finished(prepare, (rows, columns), ENDINGS["bias and relu"], dtype, rng)


def test_threads_share_stacks(rng: np.random.Generator) -> None:
    a, b = rng.standard_normal((8, 70, 60)), rng.standard_normal((8, 60, 90))

    def prepare(out: Array, epilogue: Epilogue | None) -> Kernel:
        return matrix_product(a, b, out, np.empty, 3, epilogue)

    assert_finished(prepare, (8, 70, 90), ENDINGS["bias, scale, bounds"], "f8", rng)


def test_numbers_that_do_not_lie_side_by_side(rng: np.random.Generator) -> None:
    a, b = rng.standard_normal((30, 20)), rng.standard_normal((20, 40))
    out, plain, bias = np.empty((30, 40)), np.empty((30, 40)), rng.standard_normal(80)[::2]
    epilogue = Epilogue((Step("add", (0, 1), out.dtype),), (np.broadcast_to(bias, out.shape),))
    assert epilogue.ending(out) is None
    product(a, b, plain, PROCESSORS[1])()
    product(a, b, out, PROCESSORS[1], epilogue=epilogue)()
    np.testing.assert_array_equal(out, plain + bias)


CONVOLUTIONS: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((3, 9, 11, 3), (3, 3, 3, 5), {}),
    ((2, 12, 12, 2), (5, 5, 2, 6), {"padding": ((2, 2), (2, 2))}),
    ((4, 8, 8, 40), (3, 3, 40, 70), {"padding": ((1, 1), (1, 1)), "strides": (2, 1)}),
    ((2, 7, 7, 200), (5, 5, 200, 33), {"padding": ((2, 2), (2, 2))}),
    ((5, 6, 6, 8), (1, 1, 8, 24), {}),
    ((2, 6, 6, 6), (3, 3, 3, 10), {"groups": 2, "padding": ((1, 0), (0, 1))}),
    ((2, 9, 9, 7), (3, 3, 1, 7), {"groups": 7}),
    ((3, 3, 3, 4), (1, 2, 4, 9), {"padding": ((3, 3), (0, 0))}),
]


@pytest.mark.parametrize("sample", CONVOLUTIONS, ids=str)
def test_convolutions(kind: tuple[Processor, str], ending: Any, sample: Any, rng: np.random.Generator) -> None:
    image, kernel, geometry = sample
    x, k = mg.input("x", image, np.dtype(kind[1])), mg.input("k", kernel, np.dtype(kind[1]))
    y = mg.conv2d(x, k, **geometry)
    for node in (y, grad(y, [x], mg.input("g", y.shape, y.dtype))[0]):
        inputs = [rng.standard_normal(each.type.shape).astype(each.dtype) for each in node.inputs]

        def prepare(out: Array, epilogue: Epilogue | None, node: Node = node, inputs: list[Array] = inputs) -> Kernel:
            request = Request(node, inputs, out, node.attributes, np.empty, epilogue=epilogue)
            return convolution(request, kind[0])

        assert_finished(prepare, node.type.shape, ending, kind[1], rng)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_convolutions(threads: int, rng: np.random.Generator) -> None:
    x, k = mg.input("x", (7, 20, 20, 8)), mg.input("k", (3, 3, 8, 20))
    node = mg.conv2d(x, k)
    inputs = [rng.standard_normal(each.type.shape).astype("f4") for each in node.inputs]

    def prepare(out: Array, epilogue: Epilogue | None) -> Kernel:
        request = Request(node, inputs, out, node.attributes, np.empty, threads, epilogue)
        return prepare_shared(request, lambda: 1 << 30)

    assert_finished(prepare, node.type.shape, ENDINGS["bias and relu"], "f4", rng)


def finished_by_products(program: Program) -> list[list[str]]:
    """The ops of each kernel that computes a product and more."""
    fusions = (fusion for fusion in program.fusions.values() if isinstance(fusion, FinishedProduct))
    return [[node.op.name for node in fusion.nodes] for fusion in fusions]


def test_a_bias_and_an_activation_are_computed_by_the_product_s_kernel() -> None:
    x, w, b = (
        mg.input("x", (None, 30)),
        mg.parameter(np.ones((30, 20), "f4"), "w"),
        mg.parameter(np.ones(20, "f4"), "b"),
    )
    y = mg.relu(x @ w + b)
    program = make_program(mg.Graph([y]))
    assert finished_by_products(program) == [["matmul", "add", "relu"]]
    (fusion,) = program.fusions.values()
    assert list(program.steps) == [y]
    assert [program.storage[node] for node in fusion.nodes] == [Storage.PASSING, Storage.PASSING, Storage.OWN]
    assert list(program.operands_of(y))[:2] == list(fusion.nodes[0].inputs)


def test_products_of_more_axes_are_seen_through_views() -> None:
    x, w = mg.input("x", (None, 5, 30)), mg.parameter(np.ones((30, 20), "f4"), "w")
    product = mg.reshape(mg.reshape(x, (-1, 30)) @ w, (-1, 5, 20))
    assert finished_by_products(make_program(mg.Graph([product + np.ones(20, "f4")]))) == [["matmul", "reshape", "add"]]
    split = mg.reshape(mg.reshape(x, (-1, 30)) @ w, (-1, 5, 4, 5))
    assert not finished_by_products(make_program(mg.Graph([split + np.ones(5, "f4")])))
    turned = mg.transpose(mg.reshape(x, (-1, 30)) @ w)
    assert not finished_by_products(make_program(mg.Graph([turned * 2.0])))


@pytest.mark.parametrize(
    "build",
    [
        lambda product, other: [mg.relu(product + 1.0), product],
        lambda product, other: [mg.relu(product + 1.0), mg.sum(product)],
        lambda product, other: [mg.tanh(product + 1.0)],
        lambda product, other: [product + other],
        lambda product, other: [product * product],
        lambda product, other: [mg.sum(product * 2.0, 0)],
        lambda product, other: [product + other[:, :1]],
        lambda product, other: [mg.cast(product * 2.0, "float64")],
    ],
)
def test_what_stays_a_kernel_of_its_own(build: Callable[[Node, Node], list[Node]]) -> None:
    x, w = mg.input("x", (None, 30)), mg.parameter(np.ones((30, 20), "f4"), "w")
    graph = mg.Graph(build(x @ w, mg.input("other", (None, 20))))
    assert not finished_by_products(make_program(graph))


def test_what_the_backward_pass_reads_is_stored() -> None:
    x, w = mg.input("x", (None, 30)), mg.parameter(np.ones((30, 20), "f4"), "w")
    hidden = mg.maximum(x @ w, 0.5)
    (gradient,) = grad(mg.sum(hidden), [w])
    assert not finished_by_products(make_program(mg.Graph([hidden, gradient])))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Serial(1),
        lambda: Serial(2),
        lambda: Serial(reproducible=True),
        lambda: Processes(2, wait_for_workers=True),
    ],
)
def test_training_agrees_with_the_interpreter(make: Callable[[], Executor], rng: np.random.Generator) -> None:
    def parameter(name: str, *shape: int) -> Node:
        return mg.parameter((rng.standard_normal(shape) / 4).astype("f4"), name)

    x, weights = mg.input("x", (None, 12, 12, 3)), [(3, 3, 3, 8), (1, 1, 8, 8), (8, 20), (20, 5)]
    kernels = [parameter(f"kernel_{place}", *shape) for place, shape in enumerate(weights)]
    biases = [parameter(f"bias_{place}", shape[-1]) for place, shape in enumerate(weights)]
    y = mg.relu(mg.conv2d(x, kernels[0]) + biases[0])
    y = mg.relu(mg.conv2d(y, kernels[1]) + biases[1])
    y = mg.relu(mg.reshape(mg.reshape(y, (-1, 8)) @ kernels[2], (-1, 100, 20)) + biases[2])
    loss = mg.mean(mg.square(y @ kernels[3] + biases[3]))
    graph = mg.Graph([loss, *grad(loss, [*kernels, *biases])])
    value = rng.standard_normal((24, 12, 12, 3)).astype("f4")
    with make() as executor:
        step = mg.function([x], graph.outputs, executor=executor)
        found, text = step(value), step.kernels
    expected, _ = evaluate(graph, {x: value}, batch_size=24)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-6)
    assert len(finished_by_products(make_program(graph))) == 3
    for name in ("conv2d", "conv2d_1", "matmul"):
        assert f"  |   %{name} = " in text


def test_timing_tells_what_the_product_s_kernel_computes() -> None:
    x, w = mg.input("x", (None, 5, 30)), mg.parameter(np.ones((30, 20), "f4"), "w")
    y = mg.relu(mg.reshape(mg.reshape(x, (-1, 30)) @ w, (-1, 5, 20)) + 1.0)
    step = mg.function([x], [y])
    step(np.ones((4, 5, 30), "f4"))
    records = {record.op: record for record in step.timing.records if record.kernel}
    assert set(records) == {"matmul", "add", "relu"}
    assert {record.kernel for record in records.values()} == {records["matmul"].node}
    assert records["matmul"].flops == 2 * 20 * 30 * 20
    assert records["relu"].bytes == records["relu"].memory_bytes == 4 * 5 * 20 * 4
    assert sum(record.memory_bytes for record in records.values()) == 4 * 5 * 20 * 4
