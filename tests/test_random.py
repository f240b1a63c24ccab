"""Random ops: known answers of the generator, distributions, and independence of how the batch is split."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from miai_graph.context import set_seed
from miai_graph.errors import ArgumentError, DTypeError, ShapeError
from miai_graph.gradient import grad
from miai_graph.graph import Graph, check_graph, same_graph
from miai_graph.interpreter import bind_attributes, evaluate
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.ops import random
from miai_graph.ops.leaves import first_row, parameter, step
from miai_graph.ops.reductions import mean
from miai_graph.placement import REPLICATED, Split
from miai_graph.types import BATCH, BatchDim, TensorType, bind_type

KNOWN_ANSWERS = {
    "zeros": ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    "ones": ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    "pi": ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
}
SIGNIFICANCE = 1e-3  # of tests with fixed seeds, which either always pass or never

FUNCTIONS = {
    "uniform float32": (random.uniform, {"low": -2.0, "high": 5.0}),
    "uniform float64": (random.uniform, {"low": -2.0, "high": 5.0, "dtype": "float64"}),
    "normal float32": (random.normal, {"mean": 3.0, "stddev": 0.5}),
    "normal float64": (random.normal, {"mean": 3.0, "stddev": 0.5, "dtype": "float64"}),
    "bernoulli bool": (random.bernoulli, {"probability": 0.3}),
    "bernoulli float64": (random.bernoulli, {"probability": 0.3, "dtype": "float64"}),
}
of_each_function = pytest.mark.parametrize(("function", "options"), FUNCTIONS.values(), ids=FUNCTIONS)


@pytest.fixture(autouse=True)
def _seed() -> None:
    set_seed(2024)


def draw(node: Node, batch_size: int = 1, **numbers: int) -> Array:
    graph = Graph([node])
    check_graph(graph)
    (value,), _ = evaluate(graph, {}, batch_size=batch_size, **numbers)
    return value


def hexadecimal(text: str) -> Array:
    return np.array([[int(word, 16)] for word in text.split()], np.uint64)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS.values(), ids=KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter: str, key: str, expected: str) -> None:
    counters = np.repeat(hexadecimal(counter), 3, axis=1)
    random.philox4x32(counters, hexadecimal(key))
    assert (counters == hexadecimal(expected)).all()


def test_words_follow_the_documented_layout_over_many_chunks() -> None:
    seed, stream, step_number, rows = 2**40 + 17, 5, 9, range(3, 7)
    words = random.random_words(seed, stream, step_number, rows, 4 * random.BLOCKS_PER_CHUNK - 6)
    assert words.shape == (4, 4 * random.BLOCKS_PER_CHUNK - 4)
    for row, block in [(3, 0), (3, 1), (4, 77), (6, random.BLOCKS_PER_CHUNK - 2)]:
        counter = np.array([[block], [row], [step_number], [stream]], np.uint64)
        random.philox4x32(counter, np.array([[17], [2**8]], np.uint64))
        assert (words[row - 3, 4 * block : 4 * block + 4] == counter[:, 0]).all()


def test_row_and_step_wrap_at_32_bits() -> None:
    first = random.random_words(1, 2, 2**32 + 3, range(2**32 - 1, 2**32 + 1), 4)
    assert (first[1] == random.random_words(1, 2, 3, range(1), 4)[0]).all()


@of_each_function
def test_parts_of_the_batch_get_the_numbers_of_the_whole(function: Any, options: dict[str, Any]) -> None:
    for shape in [(None,), (None, 3), (None, 5, 7), (BatchDim(3), 2), (BatchDim(2),), (None, 0)]:
        node = function(shape, **options)
        rows = node.type.shape[0].multiple
        whole = draw(node, 11, step=4)
        for cuts in [(0, 11), (0, 1, 11), (0, 4, 5, 11), tuple(range(12))]:
            parts = [
                draw(node, stop - start, step=4, first_row=start, whole_batch_size=11)
                for start, stop in itertools.pairwise(cuts)
            ]
            assert [len(part) for part in parts] == [rows * (stop - start) for start, stop in itertools.pairwise(cuts)]
            np.testing.assert_array_equal(np.concatenate(parts), whole)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(
    length=st.integers(0, 300),
    batch_size=st.integers(0, 40),
    data=st.data(),
    double=st.booleans(),
    normal=st.booleans(),
)
def test_splitting_never_changes_a_bit(length: int, batch_size: int, data: Any, double: bool, normal: bool) -> None:
    function = random.normal if normal else random.uniform
    node = function((None, length), dtype="float64" if double else "float32")
    cut = data.draw(st.integers(0, batch_size))
    whole = draw(node, batch_size)
    np.testing.assert_array_equal(draw(node, cut), whole[:cut])
    np.testing.assert_array_equal(draw(node, batch_size - cut, first_row=cut), whole[cut:])


@of_each_function
def test_without_the_batch_all_workers_draw_the_same(function: Any, options: dict[str, Any]) -> None:
    node = function((6, 5), **options)
    np.testing.assert_array_equal(draw(node, 2, first_row=8), draw(node, 7, first_row=0))
    assert node.op.batch([REPLICATED, REPLICATED], node.type) == REPLICATED
    batched = function((BatchDim(2), 5), **options)
    assert batched.op.batch([REPLICATED, REPLICATED], batched.type) == Split(0, 2)


@of_each_function
def test_streams_seeds_steps_and_rows_differ(function: Any, options: dict[str, Any]) -> None:
    node, other = function((None, 64), **options), function((None, 64), **options)
    reseeded = function((None, 64), seed=5, **options)
    values = [draw(node, 2), draw(other, 2), draw(reseeded, 2), draw(node, 2, step=1), draw(node, 2, first_row=2)]
    rows = [row.tobytes() for value in values for row in value]
    assert len(set(rows)) == len(rows)
    np.testing.assert_array_equal(draw(node, 2), draw(node, 2))
    assert not same_graph(Graph([node]), Graph([other]))


def test_the_same_code_after_set_seed_gives_the_same_numbers() -> None:
    set_seed(7)
    first = random.normal((4, 4))
    set_seed(7)
    again = random.normal((4, 4))
    set_seed(8)
    other = random.normal((4, 4))
    assert same_graph(Graph([first]), Graph([again]))
    np.testing.assert_array_equal(draw(first), draw(again))
    assert (draw(first) != draw(other)).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_uniform_numbers_are_uniform(dtype: str) -> None:
    value = draw(random.uniform((None, 100), -1.0, 3.0, dtype), 1000).ravel()
    assert value.dtype == dtype
    assert value.min() >= -1
    assert value.max() < 3
    assert stats.kstest(value.astype("f8"), stats.uniform(-1, 4).cdf).pvalue > SIGNIFICANCE
    assert abs(value.mean() - 1) < 4 * math.sqrt(16 / 12 / value.size)
    counts = np.bincount(((value + 1) * 64).astype(int), minlength=256)
    assert stats.chisquare(counts).pvalue > SIGNIFICANCE
    pairs = np.histogram2d(value[0::2], value[1::2], bins=16, range=[(-1, 3), (-1, 3)])[0]
    assert stats.chisquare(pairs.ravel()).pvalue > SIGNIFICANCE


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_normal_numbers_are_normal(dtype: str) -> None:
    value = draw(random.normal((None, 100), 2.0, 0.5, dtype), 1000).ravel()
    assert value.dtype == dtype
    assert stats.kstest(value.astype("f8"), stats.norm(2, 0.5).cdf).pvalue > SIGNIFICANCE
    assert abs(value.mean() - 2) < 4 * 0.5 / math.sqrt(value.size)
    assert abs(value.var() / 0.25 - 1) < 4 * math.sqrt(2 / value.size)
    assert abs(stats.pearsonr(value[0::2], value[1::2]).statistic) < 4 / math.sqrt(value.size / 2)
    assert abs(stats.pearsonr(value[0::2] ** 2, value[1::2] ** 2).statistic) < 4 / math.sqrt(value.size / 2)


def test_neighbouring_streams_steps_and_seeds_are_uncorrelated() -> None:
    nodes = [random.normal((4000,), seed=seed) for seed in (0, 0, 1)]
    values = [draw(nodes[0]), draw(nodes[1]), draw(nodes[2]), draw(nodes[0], step=1)]
    correlations = np.corrcoef(values)[np.triu_indices(4, 1)]
    assert abs(correlations).max() < 4 / math.sqrt(4000)


@pytest.mark.parametrize("probability", [0.001, 0.3, 0.5, 0.999])
def test_bernoulli_has_its_probability(probability: float) -> None:
    value = draw(random.bernoulli((None, 50), probability), 2000)
    assert value.dtype == bool
    assert stats.binomtest(int(value.sum()), value.size, probability).pvalue > SIGNIFICANCE


@pytest.mark.parametrize("dtype", ["bool", "float32", "float64", "int64"])
def test_bernoulli_at_its_ends_and_in_every_dtype(dtype: str) -> None:
    never, always = (draw(random.bernoulli((3, 50), p, dtype)) for p in (0.0, 1.0))
    assert never.dtype == always.dtype == dtype
    assert (never == 0).all()
    assert (always == 1).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1.0, 2.0), (-1.0, 0.0), (1e6, 1e6 + 1), (-3e38, 3e37)])
def test_the_least_and_the_greatest_words_stay_within_the_bounds(dtype: str, low: float, high: float) -> None:
    words = np.array([[0, 0, 2**32 - 1, 2**32 - 1]], np.uint32)
    uniform = random.RandomUniform().distribution(words, np.dtype(dtype), low=low, high=high)
    bounds = np.array([low, high], dtype)
    assert uniform.dtype == dtype
    assert uniform.min() == bounds[0]
    assert bounds[0] < uniform.max() < bounds[1]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_normal_numbers_are_finite_for_every_word(dtype: str) -> None:
    extremes = np.array(np.meshgrid(*[[0, 1, 255, 2**31, 2**32 - 256, 2**32 - 1]] * 4), np.uint32).reshape(4, -1).T
    value = random.RandomNormal().distribution(np.ascontiguousarray(extremes), np.dtype(dtype), mean=0.0, stddev=1.0)
    assert np.isfinite(value).all()
    assert abs(value).max() < (5.8 if dtype == "float32" else 8.6)


def test_floats_have_all_their_bits() -> None:
    words = np.array([[0x80000100, 0, 0xFFFFFFFF, 0xFFFFFFFF]], np.uint32)
    assert random.unit_interval(words, np.dtype("f4"))[0].tolist() == [0.5 + 2**-24, 0, 1 - 2**-24, 1 - 2**-24]
    assert random.unit_interval(words, np.dtype("f8"))[0].tolist() == [0.5 + 2**-24, 1 - 2**-53]


@of_each_function
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (2, 0, 3), (None,), (None, 1), (None, 2, 3)])
def test_shapes_and_costs(function: Any, options: dict[str, Any], shape: tuple[int | None, ...]) -> None:
    node = function(shape, **options)
    assert node.shape == shape
    for batch_size in (0, 1, 5):
        value = draw(node, batch_size)
        assert value.flags.c_contiguous
        output = bind_type(node.type, batch_size)
        inputs = [source.type for source in node.inputs]
        cost = node.op.cost(output, *inputs, **bind_attributes(node, batch_size))
        assert cost.bytes == value.nbytes + 16
        words = value.size * (2 if value.dtype == np.float64 and node.op.name != "random_bernoulli" else 1)
        assert cost.flops >= 20 * words
        assert (cost.flops == 0) == (value.size == 0)


def test_a_row_takes_whole_blocks() -> None:
    node = random.bernoulli((None, 5))
    cost = node.op.cost(bind_type(node.type, 3), *(source.type for source in node.inputs), **bind_attributes(node, 3))
    assert cost.flops == 3 * 2 * random.FLOPS_PER_BLOCK + 15


def test_the_shape_of_a_node_may_be_passed() -> None:
    like = random.uniform((BatchDim(2), 3))
    assert random.bernoulli(like.type.shape).type.shape == (BatchDim(2), 3)
    assert random.normal(like.shape).type.shape == (BATCH, 3)


def test_random_values_have_no_derivative() -> None:
    weights = parameter(np.ones(4, "f4"), "weights")
    noise = random.normal((4,))
    loss = mean(weights * noise)
    (derivative,) = grad(loss, [weights])
    values, _ = evaluate(Graph([derivative, noise]), {}, batch_size=1)
    np.testing.assert_allclose(values[0], values[1] / 4)
    assert noise.op.vjp(noise, noise, *noise.inputs) == [None, None]


@pytest.mark.parametrize(
    ("error", "function", "arguments"),
    [
        (ShapeError, random.uniform, ((3, None),)),
        (ShapeError, random.normal, ((None, BatchDim(2)),)),
        (ShapeError, random.bernoulli, ((-1,),)),
        (DTypeError, random.uniform, ((3,), 0.0, 1.0, "int64")),
        (DTypeError, random.normal, ((3,), 0.0, 1.0, "float16")),
        (DTypeError, random.bernoulli, ((3,), 0.5, "complex64")),
        (ArgumentError, random.uniform, ((3,), 1.0, 1.0)),
        (ArgumentError, random.uniform, ((3,), 2.0, 1.0)),
        (ArgumentError, random.uniform, ((3,), 0.0, math.inf)),
        (ArgumentError, random.uniform, ((3,), 0.0, math.nan)),
        (ArgumentError, random.uniform, ((3,), -3e38, 3e38)),
        (ArgumentError, random.uniform, ((3,), 1e300, 2e300)),
        (ArgumentError, random.normal, ((3,), 0.0, -1.0)),
        (ArgumentError, random.normal, ((3,), 0.0, 1e38)),
        (ArgumentError, random.normal, ((3,), math.nan, 1.0)),
        (ArgumentError, random.normal, ((3,), 0.0, math.inf)),
        (ArgumentError, random.bernoulli, ((3,), 1.5)),
        (ArgumentError, random.bernoulli, ((3,), math.nan)),
        (ArgumentError, random.uniform, ((3,), 0.0, 1.0, "float32", -1)),
        (ArgumentError, random.uniform, ((3,), 0.0, 1.0, "float32", 2**63)),
        (ArgumentError, random.uniform, ((3,), 0.0, 1.0, "float32", True)),
        (ArgumentError, random.uniform, ((3,), 0.0, 1.0, "float32", 1.5)),
    ],
)
def test_what_cannot_be_is_refused(error: type[Exception], function: Any, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(error, match="expected"):
        function(*arguments)


def test_infer_refuses_other_inputs_and_row_counts() -> None:
    node = random.uniform((None, 3))
    scalar = TensorType(np.dtype("i8"), ())
    with pytest.raises(ShapeError, match="step"):
        node.op.infer(scalar, **node.attributes)
    with pytest.raises(ShapeError, match="int64"):
        node.op.infer(scalar, TensorType(np.dtype("f4"), ()), **node.attributes)
    with pytest.raises(ShapeError, match="a sample"):
        node.op.infer(scalar, scalar, **{**node.attributes, "rows_per_sample": 2})
    assert [source.op.name for source in node.inputs] == [step().op.name, first_row().op.name]


def test_numpy_generators_of_a_seed_and_stream_are_the_same() -> None:
    first, again = random.generator(3, 4), random.generator(3, 4)
    value = first.random(5)
    np.testing.assert_array_equal(value, again.random(5))
    for seed, stream in [(4, 3), (3, 5), (2**63 - 1, 4)]:
        assert (random.generator(seed, stream).random(5) != value).all()
