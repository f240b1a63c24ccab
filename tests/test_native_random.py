"""Random numbers by native code: those of the definitions, for every width of vectors, wherever they begin."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from native_samples import GUARD, PROCESSORS, SENTINEL, TOLERANCES, beside_others

from miai_graph.context import set_seed
from miai_graph.interpreter import bind_attributes
from miai_graph.kernels.compiler import curves, native
from miai_graph.kernels.compiler.loops import Loops, call
from miai_graph.kernels.compiler.native import Processor
from miai_graph.kernels.numpy_kernels import NATIVE_KERNELS, Request
from miai_graph.kernels.rows import random as kernels
from miai_graph.kernels.running.run import is_native
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.ops import random
from miai_graph.types import BatchDim, bind_type

EXACT = {
    "uniform float32": (random.uniform, {"low": -2.0, "high": 5.0}),
    "uniform float64": (random.uniform, {"low": -2.0, "high": 5.0, "dtype": "float64"}),
    "bernoulli bool": (random.bernoulli, {"probability": 0.3}),
    "bernoulli float32": (random.bernoulli, {"probability": 0.3, "dtype": "float32"}),
    "bernoulli float64": (random.bernoulli, {"probability": 0.3, "dtype": "float64"}),
}
NORMAL = {
    "normal float32": (random.normal, {"mean": 3.0, "stddev": 0.5}),
    "normal float64": (random.normal, {"mean": 3.0, "stddev": 0.5, "dtype": "float64"}),
}
of_each = pytest.mark.parametrize(("function", "options"), (EXACT | NORMAL).values(), ids=EXACT | NORMAL)
of_each_exact = pytest.mark.parametrize(("function", "options"), EXACT.values(), ids=EXACT)

LENGTHS = (1, 3, 4, 7, 16, 31, 32, 33, 64, 100)


@pytest.fixture(autouse=True)
def _seed() -> None:
    set_seed(2**63 - 3)


@pytest.fixture(params=PROCESSORS, ids=str)
def processor(request, monkeypatch) -> Iterator[Processor]:
    """Vectors of each width: LLVM takes those apart that the processor does not have."""
    if native.processor() is None:
        pytest.skip("no native code on this machine")
    monkeypatch.setattr(native, "processor", lambda: request.param)
    return request.param


def request_for(node: Node, output: Array, batch_size: int, numbers: list[Array], threads: int = 1) -> Request:
    return Request(node, numbers, output, bind_attributes(node, batch_size), np.empty, threads)


def drawn(node: Node, batch_size: int = 1, step: int = 0, first_row: int = 0, threads: int = 1) -> Array:
    """What native code gives; it writes nowhere else."""
    output, memory = beside_others(np.full(bind_type(node.type, batch_size).shape, SENTINEL, node.dtype))
    numbers = [np.array(step), np.array(first_row)]
    kernel = NATIVE_KERNELS[node.op.name](request_for(node, output, batch_size, numbers, threads))
    assert is_native(kernel)
    kernel()
    others = [memory[0], *memory[1 + output.size :]]
    np.testing.assert_array_equal(others, np.full(GUARD, SENTINEL, output.dtype))
    return output


def defined(node: Node, batch_size: int = 1, step: int = 0, first_row: int = 0) -> Array:
    return node.op.forward(np.array(step), np.array(first_row), **bind_attributes(node, batch_size))


def assert_as_defined(node: Node, *numbers: int) -> None:
    expected = defined(node, *numbers)
    if node.op.name == "random_normal":
        tolerance = TOLERANCES[node.dtype]
        np.testing.assert_allclose(drawn(node, *numbers), expected, tolerance, tolerance)
    else:
        np.testing.assert_array_equal(drawn(node, *numbers), expected, strict=True)


@of_each
@pytest.mark.parametrize("length", LENGTHS)
def test_rows_of_every_length(processor, function, options, length):
    assert_as_defined(function((None, length), **options), 5, 9, 2)
    assert_as_defined(function((length,), **options), 5, 9, 2)


@of_each
def test_shapes_of_other_kinds(processor, function, options):
    for shape in [(), (None,), (BatchDim(3), 5), (BatchDim(2), 4, 3, 2), (3, 5, 7), (0,), (2, 0, 3), (None, 0)]:
        assert_as_defined(function(shape, **options), 4, 1, 3)
        assert_as_defined(function(shape, **options), 0)


@of_each_exact
@pytest.mark.parametrize("step", [2**32 - 1, 2**32, 2**40 + 5])
@pytest.mark.parametrize("first_row", [0, 2**31 - 1, 2**32 - 2, 2**34 + 1])
def test_steps_and_rows_wrap_at_32_bits(processor, function, options, step, first_row):
    assert_as_defined(function((None, 9), **options), 5, step, first_row)
    assert_as_defined(function((BatchDim(3), 9), **options), 5, step, first_row)


@of_each_exact
@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 2**63 - 1])
def test_every_bit_of_the_seed_counts(processor, function, options, seed):
    assert_as_defined(function((70,), seed=seed, **options))


def test_step_and_first_row_are_read_when_it_runs(processor):
    node = random.uniform((None, 6))
    output, step, first_row = np.empty((3, 6), np.float32), np.array(1), np.array(0)
    kernel = NATIVE_KERNELS[node.op.name](request_for(node, output, 3, [step, first_row]))
    for step[...], first_row[...] in [(1, 0), (2, 0), (2, 7)]:
        kernel()
        np.testing.assert_array_equal(output, node.op.forward(step, first_row, **bind_attributes(node, 3)))


@of_each
@pytest.mark.parametrize("shape", [(None, 300), (301, 7), (None, 1), (3000,)])
def test_threads_give_what_one_gives(processor, monkeypatch, function, options, shape):
    monkeypatch.setattr(kernels, "NUMBERS_WORTH_SHARING", 1)
    node = function(shape, **options)
    for batch_size in (0, 1, 2, 7):
        alone = drawn(node, batch_size, 4, 2)
        for threads in (2, 3):
            np.testing.assert_array_equal(drawn(node, batch_size, 4, 2, threads), alone)


@of_each
def test_numbers_do_not_depend_on_the_width_of_vectors(monkeypatch, function, options):
    if native.processor() is None:
        pytest.skip("no native code on this machine")
    node, found = function((None, 45), **options), set()
    for processor in PROCESSORS:
        monkeypatch.setattr(native, "processor", lambda processor=processor: processor)
        found.add(drawn(node, 3).tobytes())
    assert len(found) == 1


@pytest.mark.parametrize("probability", [2**-32, 2**-31, 0.5, 1 - 2**-32, 1.0])
def test_probabilities_down_to_single_words(processor, probability):
    assert_as_defined(random.bernoulli((5000,), probability))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1e6, 1e6 + 1), (-3e38, 3e37)])
def test_bounds_of_every_size(processor, dtype, low, high):
    assert_as_defined(random.uniform((500,), low, high, dtype))


def test_what_there_is_no_code_for(processor):
    step, first_row = np.array(0), np.array(0)
    for node in (random.bernoulli((4,), dtype="int64"), random.bernoulli((4,), 0.0)):
        output = np.empty(4, node.dtype)
        assert NATIVE_KERNELS[node.op.name](request_for(node, output, 1, [step, first_row])) is None
    node = random.uniform((4, 3))
    apart = np.empty((4, 6), np.float32)[:, ::2]
    assert NATIVE_KERNELS[node.op.name](request_for(node, apart, 1, [step, first_row])) is None


def cosines_and_sines(angles: Array, processor: Processor) -> tuple[Array, Array]:
    code = Loops(processor.width(angles.itemsize))
    source, *targets = code.pointers(3)
    (length,) = code.words(1)

    def put(start: str, mask: str | None, _: Any) -> tuple[()]:
        angle = code.load(code.element(source, start, angles.dtype), angles.dtype, mask)
        for vector, target in zip(curves.cosine_and_sine(angle), targets, strict=True):
            code.store(vector, code.element(target, start, angles.dtype), mask)
        return ()

    code.each_vector(code.span(length), (), put)
    results = np.empty_like(angles), np.empty_like(angles)
    call(code.module(), [angles, *results, angles.size], "cosines and sines")()
    return results


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cosines_and_sines_are_right_on_the_whole_circle(processor, dtype, rng):
    quarters = (np.arange(9) * (np.pi / 4)).astype(dtype)
    near = [np.nextafter(quarters, dtype(toward)) for toward in (0, 10)]
    angles = np.concatenate([quarters, *near, rng.uniform(0, 2 * np.pi, 20_000).astype(dtype)])
    precise = angles.astype("longdouble")
    for found, function in zip(cosines_and_sines(angles, processor), (np.cos, np.sin), strict=True):
        expected = function(precise)
        spacing = np.spacing(np.abs(expected).astype(dtype))
        assert (np.abs(found - expected) <= 2 * spacing).all()
