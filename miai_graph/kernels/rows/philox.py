"""Code for the generator of random words, Philox4x32-10: see `ops.random`, which defines it.

A vector has 64 bits for each of some blocks, and of these only the lower 32 bits count: what stands above them is left
over from products, and is left there.
"""

from __future__ import annotations

from collections.abc import Sequence

from miai_graph.kernels.compiler.vectors import Lines
from miai_graph.ops.random import KEY_INCREMENTS, MULTIPLIERS, ROUNDS

LOW_WORD = 2**32 - 1


class Philox:
    """Writes what computes the words of blocks, as many as are in a vector.

    Parameters
    ----------
    blocks : how many these are
    seed : of 64 bits, the generator's key

    Attributes
    ----------
    type : of the vectors
    """

    def __init__(self, lines: Lines, blocks: int, seed: str) -> None:
        self._lines, self._blocks = lines, blocks
        self.type = f"<{blocks} x i64>"
        self._keys = self._keys_of_rounds(seed)

    def splat(self, number: str) -> str:
        """A vector of one number."""
        first = self._lines.value(f"insertelement {self.type} poison, i64 {number}, i64 0")
        zeros = f"<{self._blocks} x i32> zeroinitializer"
        return self._lines.value(f"shufflevector {self.type} {first}, {self.type} poison, {zeros}")

    def numbered_from(self, number: str) -> str:
        """A vector of numbers that follow each other."""
        return self._do("add", self.splat(number), self._constant(range(self._blocks)))

    def words(self, counters: Sequence[str]) -> list[str]:
        """Vectors of the first, second, third and fourth words of blocks with these counters."""
        first, second, third, fourth = counters
        for keys in self._keys:
            products = [
                self._do("mul", self._do("and", even, self._every(LOW_WORD)), self._every(multiplier))
                for even, multiplier in zip((first, third), MULTIPLIERS, strict=True)
            ]
            high = [self._do("lshr", product, self._every(32)) for product in products]
            first, third = (
                self._do("xor", self._do("xor", upper, odd), key)
                for upper, odd, key in zip(reversed(high), (second, fourth), keys, strict=True)
            )
            fourth, second = products
        return [first, second, third, fourth]

    def _keys_of_rounds(self, seed: str) -> list[list[str]]:
        keys = [self.splat(word) for word in (seed, self._lines.value(f"lshr i64 {seed}, 32"))]
        result = [keys]
        for _ in range(ROUNDS - 1):
            keys = [self._do("add", key, self._every(step)) for key, step in zip(keys, KEY_INCREMENTS, strict=True)]
            result.append(keys)
        return result

    def _do(self, instruction: str, a: str, b: str) -> str:
        return self._lines.value(f"{instruction} {self.type} {a}, {b}")

    def _every(self, number: int) -> str:
        return self._constant([number] * self._blocks)

    def _constant(self, numbers: Sequence[int]) -> str:
        return f"<{', '.join(f'i64 {number}' for number in numbers)}>"
