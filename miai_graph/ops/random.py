"""Random numbers as pure functions of (seed, stream, step, global row, offset in the row).

Each number is computed from where it stands, by a counter-based generator, so that any worker can compute any part of
a value and all get the same: Philox4x32-10 turns a counter of four 32-bit words, under a key of 64 bits, into four
random words.

    counter = (block in the row, global row, step, stream)      key = seed

A row's words are those of its blocks, one after another. Each word gives one number of 32 bits, or two words one of 64.
Of a value with the batch as first axis, each index of that axis is a row, counted over the whole batch; any other value
is one row. Step and row count modulo 2**32.

Source: Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from miai_graph.context import current_seed, next_stream
from miai_graph.errors import ArgumentError, DTypeError, ShapeError
from miai_graph.messages import locates_errors
from miai_graph.node import Node
from miai_graph.op import Array, Cost, Op, moved_bytes, no_derivative, register
from miai_graph.ops.leaves import first_row, step
from miai_graph.placement import Placement, placement_of_type
from miai_graph.types import BatchDim, Shape, TensorType, as_dtype, as_shape, batch_first_shape, format_shape, int_dims

ROUNDS = 10
WORDS_PER_BLOCK = 4
BLOCKS_PER_CHUNK = 16384  # few calls of NumPy, and what they work on stays in a core's own cache
LONGEST_TAIL = 9  # standard deviations, which no normal number is away from the mean
FLOPS_PER_BLOCK = ROUNDS * 8  # two products, four exclusive ors and two sums a round

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)

_MULTIPLIERS = np.array(MULTIPLIERS, np.uint64)[:, np.newaxis]
_KEY_INCREMENTS = np.array(KEY_INCREMENTS, np.uint64)[:, np.newaxis]
_LOW_WORD = np.uint64(2**32 - 1)
_RUN_NUMBER = TensorType(np.dtype(np.int64), ())


def philox4x32(counters: Array, key: Array) -> None:
    """Replace counters by random words, in place.

    Parameters
    ----------
    counters : uint64[4,n], each column a counter of four 32-bit words
    key : uint64[2,1], two 32-bit words
    """
    even, odd = counters[0::2], counters[1::2]
    products = np.empty_like(even)
    swapped = products[::-1]
    for _ in range(ROUNDS):
        np.multiply(even, _MULTIPLIERS, out=products)
        np.right_shift(swapped, 32, out=even)
        even ^= odd
        even ^= key
        np.bitwise_and(swapped, _LOW_WORD, out=odd)
        key = (key + _KEY_INCREMENTS) & _LOW_WORD


def random_words(seed: int, stream: int, step: int, rows: range, words: int) -> Array:
    """At least the first `words` random words of each of the `rows`: uint32, a row a row, in whole blocks."""
    blocks = -(-words // WORDS_PER_BLOCK)
    result = np.empty((len(rows) * blocks, WORDS_PER_BLOCK), np.uint32)
    key = np.array([[seed % 2**32], [seed >> 32]], np.uint64)
    for start in range(0, len(result), BLOCKS_PER_CHUNK):
        chunk = result[start : start + BLOCKS_PER_CHUNK]
        index = np.arange(start, start + len(chunk), dtype=np.uint64)
        row = index // blocks
        counters = np.empty((WORDS_PER_BLOCK, len(chunk)), np.uint64)
        counters[0] = index - row * blocks
        counters[1] = (row + rows.start) & _LOW_WORD
        counters[2] = step % 2**32
        counters[3] = stream
        philox4x32(counters, key)
        for place, words_of_place in enumerate(counters):
            chunk[:, place] = words_of_place
    return result.reshape(len(rows), blocks * WORDS_PER_BLOCK)


def unit_interval(words: Array, dtype: np.dtype[Any]) -> Array:
    """Evenly spaced floats in [0, 1): of 24 bits of each word for float32, of 53 bits of each two for float64."""
    if dtype == np.float32:
        return (words >> 8).astype(np.float32) * np.float32(2**-24)
    high = (words[:, 0::2] >> 5).astype(np.float64)
    low = (words[:, 1::2] >> 6).astype(np.float64)
    return (high * 2**26 + low) * 2**-53


class RandomOp(Op):
    """What random ops have in common.

    The inputs are the nodes step() and first_row(). Attributes of all:

    - shape, dtype : those of the output
    - seed, stream : the generator's key and the last word of its counters
    - rows_per_sample : k, if the first dimension is k·B; 0 without the batch. Forward, to which all dimensions are
      numbers, would not know otherwise

    A subclass defines ``distribution(words, dtype, **parameters)``: from rows of random words to rows of numbers.
    """

    flops_per_element: int
    distribution: Callable[..., Array]
    vjp = no_derivative

    def infer(
        self, *types: TensorType, shape: Shape, dtype: np.dtype[Any], rows_per_sample: int, **_: Any
    ) -> TensorType:
        if types != (_RUN_NUMBER, _RUN_NUMBER):
            raise ShapeError(f"expected step() and first_row(), int64 scalars; found {', '.join(map(str, types))}")
        dims = batch_first_shape(shape)
        if dims and isinstance(dims[0], BatchDim) and dims[0].multiple != rows_per_sample:
            raise ShapeError(f"expected the rows of {format_shape(dims)} a sample; found {rows_per_sample}")
        return TensorType(dtype, dims)

    def forward(
        self,
        step: Array,
        first_row: Array,
        *,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        seed: int,
        stream: int,
        rows_per_sample: int,
        **parameters: float,
    ) -> Array:
        count, length = rows_and_length(shape, rows_per_sample)
        start = int(first_row) * rows_per_sample
        words = random_words(
            seed, stream, int(step), range(start, start + count), length * self.words_per_element(dtype)
        )
        drawn = self.distribution(words, dtype, **parameters)
        return np.ascontiguousarray(drawn[:, :length]).reshape(shape)

    def cost(self, output: TensorType, *types: TensorType, rows_per_sample: int, **_: Any) -> Cost:
        count, length = rows_and_length(int_dims(output.shape), rows_per_sample)
        blocks = count * -(-length * self.words_per_element(output.dtype) // WORDS_PER_BLOCK)
        flops = FLOPS_PER_BLOCK * blocks + self.flops_per_element * output.size
        return Cost(flops, moved_bytes(output, *types))

    def batch(
        self, placements: Sequence[Placement], output: TensorType, *types: TensorType, **_: Any
    ) -> Placement | None:
        return placement_of_type(output)

    def words_per_element(self, dtype: np.dtype[Any]) -> int:
        return 2 if dtype == np.float64 else 1


def rows_and_length(shape: tuple[int, ...], rows_per_sample: int) -> tuple[int, int]:
    """The number of rows, and of elements in each."""
    return (shape[0], math.prod(shape[1:])) if rows_per_sample else (1, math.prod(shape))


class RandomUniform(RandomOp):
    """Independent numbers, equally likely anywhere between two bounds: low ≤ y < high.

    Shapes: step and first_row int64 scalars; y `shape`, float32 or float64, whose first dimension may be the batch.
    Gradient: none.
    Cost: 80 flops a block of four words; one word an element, two for float64, in whole blocks a row; three flops an
    element.
    Batch: split if it has a batch axis, else replicated: all workers draw the same.
    Care: multiples of 2**-24 (float32) or 2**-53 (float64) of high - low, which rounding never takes up to high.
    Source: that of the generator, at the top of this file.
    """

    name = "random_uniform"
    flops_per_element = 3

    def distribution(self, words: Array, dtype: np.dtype[Any], *, low: float, high: float) -> Array:
        result = unit_interval(words, dtype)
        result *= dtype.type(high - low)
        result += dtype.type(low)
        np.minimum(result, np.nextafter(dtype.type(high), dtype.type(low)), out=result)
        return result


class RandomNormal(RandomOp):
    """Independent normal numbers: y = mean + stddev · √(-2 log(1 - u)) · (cos or sin)(2π v), with u and v from [0, 1).

    Shapes: step and first_row int64 scalars; y `shape`, float32 or float64, whose first dimension may be the batch.
    Gradient: none.
    Cost: 80 flops a block of four words; one word an element, two for float64, in whole blocks a row; seven flops an
    element.
    Batch: split if it has a batch axis, else replicated: all workers draw the same.
    Care: always finite; float32 stays within 5.8 standard deviations, float64 within 8.6.
    Source: Box and Muller 1958, "A note on the generation of random normal deviates"; the generator's, at the top.
    """

    name = "random_normal"
    flops_per_element = 7

    def distribution(self, words: Array, dtype: np.dtype[Any], *, mean: float, stddev: float) -> Array:
        result = unit_interval(words, dtype)
        # Contiguous operands throughout: NumPy computes strided ones by other code, which may round differently.
        radius = np.sqrt(-2 * np.log(1 - result[:, 0::2]))
        angle = 2 * math.pi * result[:, 1::2]
        np.multiply(radius, np.cos(angle), out=result[:, 0::2])
        np.multiply(radius, np.sin(angle), out=result[:, 1::2])
        result *= dtype.type(stddev)
        result += dtype.type(mean)
        return result


class RandomBernoulli(RandomOp):
    """Independent yes or no: y is true with a probability, or 1 if it is of numbers.

    Shapes: step and first_row int64 scalars; y `shape`, of any dtype, whose first dimension may be the batch.
    Gradient: none.
    Cost: 80 flops a block of four words; one word an element, in whole blocks a row; one flop an element.
    Batch: split if it has a batch axis, else replicated: all workers draw the same.
    Care: the probability counts in steps of 2**-32; 0 is never and 1 always.
    Source: that of the generator, at the top of this file.
    """

    name = "random_bernoulli"
    flops_per_element = 1

    def distribution(self, words: Array, dtype: np.dtype[Any], *, probability: float) -> Array:
        return (words < round(probability * 2**32)).astype(dtype, copy=False)

    def words_per_element(self, dtype: np.dtype[Any]) -> int:
        return 1


_random_uniform = register(RandomUniform())
_random_normal = register(RandomNormal())
_random_bernoulli = register(RandomBernoulli())


@locates_errors
def uniform(shape: Any, low: float = 0.0, high: float = 1.0, dtype: Any = "float32", seed: int | None = None) -> Node:
    """Random numbers, equally likely anywhere from `low` up to but not including `high`; others at each step.

    Parameters
    ----------
    shape : lengths; None as the first stands for the batch. For the shape of a node, pass ``node.type.shape``.
    low, high : numbers
    dtype : float32 or float64
    seed : an integer from 0 to 2**63 - 1; None for that of `set_seed`. Two nodes built by two calls have different
        numbers, of one seed too.

    Raises
    ------
    ShapeError
        if an axis other than the first depends on the batch.
    DTypeError
        for other dtypes.
    ArgumentError
        if the bounds are not finite and in order, or the seed is not in its range.
    """
    floats = _floating(dtype)
    limit = np.finfo(floats).max.item()
    if not (-limit <= low and high <= limit and 0 < high - low <= limit):
        raise ArgumentError(f"expected bounds that are finite in {floats}, the lower one first; found {low} and {high}")
    return _random_node(_random_uniform, shape, floats, seed, low=float(low), high=float(high))


@locates_errors
def normal(shape: Any, mean: float = 0.0, stddev: float = 1.0, dtype: Any = "float32", seed: int | None = None) -> Node:
    """Random numbers of a normal distribution; others at each step.

    Parameters
    ----------
    mean : a number
    stddev : the standard deviation, at least 0
    shape, dtype, seed : and the errors, as for `uniform`
    """
    floats = _floating(dtype)
    if not (stddev >= 0 and abs(mean) + LONGEST_TAIL * stddev <= np.finfo(floats).max.item()):
        raise ArgumentError(
            f"expected a mean and a stddev of at least 0 that give finite {floats}; found {mean} and {stddev}"
        )
    return _random_node(_random_normal, shape, floats, seed, mean=float(mean), stddev=float(stddev))


@locates_errors
def bernoulli(shape: Any, probability: float = 0.5, dtype: Any = "bool", seed: int | None = None) -> Node:
    """True (or 1) with a probability, else false (or 0); others at each step.

    Parameters
    ----------
    probability : from 0 to 1
    dtype : bool, or one of numbers
    shape, seed : and the errors, as for `uniform`
    """
    if not 0 <= probability <= 1:
        raise ArgumentError(f"expected a probability from 0 to 1; found {probability}")
    return _random_node(_random_bernoulli, shape, as_dtype(dtype), seed, probability=float(probability))


def _floating(dtype: Any) -> np.dtype[Any]:
    found = as_dtype(dtype)
    if found.kind != "f":
        raise DTypeError(f"expected float32 or float64 for random numbers; found {found}")
    return found


def _random_node(op: RandomOp, shape: Any, dtype: np.dtype[Any], seed: int | None, **parameters: Any) -> Node:
    dims = as_shape(shape)
    first = dims[0] if dims else 1
    return op(
        step(),
        first_row(),
        shape=dims,
        dtype=dtype,
        seed=as_seed(seed),
        stream=next_stream(),
        rows_per_sample=first.multiple if isinstance(first, BatchDim) else 0,
        **parameters,
    )


def as_seed(seed: int | None) -> int:
    """The seed itself, or that of `set_seed` for None.

    Raises
    ------
    ArgumentError
        for anything but an integer from 0 to 2**63 - 1.
    """
    if seed is None:
        return current_seed()
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**63:
        raise ArgumentError(f"expected a seed that is an integer from 0 to 2**63 - 1, or None; found {seed!r}")
    return int(seed)


def generator(seed: int, stream: int) -> np.random.Generator:
    """NumPy's generator for what is drawn outside of graphs: first values of weights, the order of a shuffling.

    The same seed and stream give the same numbers, as long as NumPy keeps its distributions as they are.
    """
    return np.random.Generator(np.random.Philox(key=np.array([seed, stream], np.uint64)))
