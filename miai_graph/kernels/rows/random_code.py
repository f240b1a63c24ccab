"""Code for random numbers: of each row's blocks as many as fit into a vector at a time.

Two vectors of numbers are made of the words of these blocks. Lane by lane they hold numbers that follow each other: the
first and third of a block in one, the second and fourth in the other, or one number each, if they are of 64 bits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from miai_graph.kernels.compiler import curves
from miai_graph.kernels.compiler.loops import Loops
from miai_graph.kernels.compiler.native import Processor
from miai_graph.kernels.compiler.vectors import BOOL, FLOAT32, Vector
from miai_graph.kernels.rows.philox import Philox
from miai_graph.ops.random import WORDS_PER_BLOCK


@dataclass(frozen=True)
class Variant:
    """What the code is made for.

    Attributes
    ----------
    operation : the name of an op
    dtype : of the numbers
    words : how many make a number
    """

    operation: str
    dtype: np.dtype[Any]
    words: int


@functools.cache
def module_text(variant: Variant, processor: Processor) -> str:
    """The module with the function `run`. In the table:

    - the addresses of the step and of the first row, integers of 64 bits; of the result; and of the parameters. These
      are high - low, low and the greatest number for random_uniform; stddev and mean for random_normal: floats, of the
      result's dtype; for random_bernoulli the greatest word that gives 1, an integer of 32 bits
    - seed, stream, and rows a sample
    - the number of the first row, beside that of the samples before, and of the first block in each row
    - how many rows there are, how many numbers in each, and bytes from row to row
    """
    return _Writer(variant, processor).module()


class _Writer:
    def __init__(self, variant: Variant, processor: Processor) -> None:
        self._variant, self._dtype = variant, variant.dtype
        self._code = Loops(processor.width(4 * variant.words))
        self._blocks = processor.width(8)

    def module(self) -> str:
        """A loop over rows, and in each over two vectors of numbers at a time."""
        code, both = self._code, 2 * self._code.lanes
        step, first_row, target, parameters = code.pointers(4)
        seed, stream, rows_per_sample, row_before, self._block_before = code.words(5)
        rows, length, row_bytes = code.words(3)
        self._philox = Philox(code, self._blocks, seed)
        self._run = [self._philox.splat(number) for number in (self._integer(step), stream)]
        self._parameters = self._read(parameters)
        row_before = code.add(code.times(self._integer(first_row), rows_per_sample), row_before)
        whole = code.value(f"and i64 {length}, {-both}")
        rest = code.subtract(length, whole)
        masks = code.mask_of(rest), code.mask_of(code.greatest(code.subtract(rest, code.lanes), 0))
        has_rest = code.value(f"icmp ne i64 {rest}, 0")
        with code.loop(0, rows) as row:
            own_target = code.stepped(target, row.index, row_bytes)
            own_row = self._philox.splat(code.add(row_before, row.index))
            with code.loop(0, whole, both) as part:
                self._put(own_row, part.index, own_target, (None, None))
            with code.when(has_rest):
                self._put(own_row, whole, own_target, masks)
        return code.module()

    def _integer(self, pointer: str) -> str:
        return self._code.value(f"load i64, ptr {pointer}, align 8")

    def _read(self, pointer: str) -> list[Vector]:
        """The parameters; an integer as the bits of floats."""
        code, operation = self._code, self._variant.operation
        if operation == "random_bernoulli":
            return [code.load_number(pointer, FLOAT32)]
        count = 3 if operation == "random_uniform" else 2
        return [code.load_number(code.element(pointer, place, self._dtype), self._dtype) for place in range(count)]

    def _put(self, row: str, start: str, target: str, masks: Sequence[str | None]) -> None:
        """Two vectors of numbers, from the one of that number in the row on."""
        code = self._code
        block = code.value(f"udiv i64 {start}, {WORDS_PER_BLOCK // self._variant.words}")
        blocks = self._philox.numbered_from(code.add(self._block_before, block))
        words = self._philox.words([blocks, row, *self._run])
        for place, (vector, mask) in enumerate(zip(self._numbers(words), masks, strict=True)):
            index = code.add(start, place * code.lanes)
            code.store(vector, code.stepped(target, index, self._dtype.itemsize), mask)

    def _numbers(self, words: Sequence[str]) -> Sequence[Vector]:
        """In the order of the result."""
        operation = self._variant.operation
        if operation == "random_bernoulli":
            return [self._bernoulli(vector) for vector in self._in_turn(*self._pairs(words))]
        if self._variant.words == 1:
            first, second = (self._upper_bits(pair.bits(), 24) * 2.0**-24 for pair in self._pairs(words))
        else:
            first, second = (self._of_two_words(*words[place : place + 2]) for place in (0, 2))
        if operation == "random_uniform":
            return self._in_turn(self._uniform(first), self._uniform(second))
        return self._in_turn(*self._normal(first, second))

    def _pairs(self, words: Sequence[str]) -> list[Vector]:
        """The first and third words of each block, and the second and fourth, as bits of floats."""
        code = self._code
        places = [place for lane in range(0, code.lanes, 2) for place in (lane, lane + code.lanes)]
        first, second, third, fourth = (
            Vector(code, code.value(f"bitcast {self._philox.type} {word} to {code.type('float')}"), FLOAT32)
            for word in words
        )
        return [code.shuffle(first, third, places), code.shuffle(second, fourth, places)]

    def _in_turn(self, first: Vector, second: Vector) -> list[Vector]:
        """A lane of the one, then a lane of the other: two vectors."""
        lanes = self._code.lanes
        places = [place for lane in range(lanes) for place in (lane, lane + lanes)]
        return [self._code.shuffle(first, second, half) for half in (places[:lanes], places[lanes:])]

    def _of_two_words(self, first: str, second: str) -> Vector:
        """From [0, 1), with 53 bits."""
        code = self._code
        high, low = (
            self._upper_bits(code.value(f"trunc {self._philox.type} {word} to {code.type('i32')}"), count)
            for word, count in ((first, 27), (second, 26))
        )
        return (high * 2.0**26 + low) * 2.0**-53

    def _upper_bits(self, words: str, count: int) -> Vector:
        """So many bits of each word, as a number."""
        code, type, zero = self._code, self._code.type("i32"), self._code.constant(0.0, self._dtype)
        shift = ", ".join([f"i32 {32 - count}"] * code.lanes)
        bits = code.value(f"lshr {type} {words}, <{shift}>")
        return Vector(code, code.value(f"sitofp {type} {bits} to {zero.type}"), self._dtype)

    def _uniform(self, unit: Vector) -> Vector:
        width, low, greatest = self._parameters
        number = unit * width + low
        return number.compare("olt", greatest).choose(number, greatest)

    def _normal(self, first: Vector, second: Vector) -> list[Vector]:
        stddev, mean = self._parameters
        radius = (curves.log(1.0 - first) * -2.0).call("sqrt")
        directions = curves.cosine_and_sine(second * (2 * math.pi))
        return [radius * direction * stddev + mean for direction in directions]

    def _bernoulli(self, words: Vector) -> Vector:
        (greatest,) = self._parameters
        is_less = Vector(self._code, words.integer("icmp ule", words.bits(), greatest.bits()), BOOL)
        return is_less.to(self._dtype)
