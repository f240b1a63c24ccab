"""What a row of the samples' table is: arrays to feed, how to build the node, and what it should give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import miai_graph as mg
from miai_graph.placement import REPLICATED, Partial, Split

TOLERANCE = {"float32": 2e-5, "float64": 1e-11}
"""How far floats may be apart, relative to the greater of 1 and their size; all else must be equal."""

SPLIT = Split(0)
SUM, MAX, MIN = Partial("sum"), Partial("max"), Partial("min")
__all__ = ["MAX", "MIN", "REPLICATED", "SPLIT", "SUM", "Sample", "Split", "Value", "assert_close", "b", "f", "i"]


@dataclass(frozen=True)
class Value:
    """An array to make up: its shape, with None for the batch, and what is in it.

    dtype : "float" for that of the test, or NumPy's
    layout : "contiguous", "transposed", "strided" or "reversed" in memory
    """

    shape: tuple[int | None, ...]
    dtype: str = "float"
    low: float = -2.0
    high: float = 2.0
    layout: str = "contiguous"

    def array(self, rng: np.random.Generator, batch_size: int, floating: str) -> np.ndarray:
        """Floats are evenly spaced and shuffled: none are equal, and none is at a kink at 0."""
        shape = tuple(batch_size if length is None else length for length in self.shape)
        count = int(np.prod(shape))
        if self.dtype == "bool":
            values = rng.integers(0, 2, count).astype(bool)
        elif self.dtype.startswith(("int", "uint")):
            values = rng.integers(int(self.low), int(self.high), count).astype(self.dtype)
        else:
            gap = (self.high - self.low) / max(count, 1)
            values = self.low + (rng.permutation(count) + rng.uniform(0.2, 0.4)) * gap
        dtype = floating if self.dtype == "float" else self.dtype
        return _laid_out(values.astype(dtype).reshape(shape), self.layout)

    def node(self, name: str, floating: str) -> mg.Node:
        return mg.input(name, self.shape, floating if self.dtype == "float" else self.dtype)


def _laid_out(array: np.ndarray, layout: str) -> np.ndarray:
    match layout:
        case "transposed":
            return array.T.copy().T
        case "strided":
            return np.repeat(array, 2, axis=-1)[..., ::2]
        case "reversed":
            return np.ascontiguousarray(array[..., ::-1])[..., ::-1]
    return array


def f(*shape: int | None, **options: Any) -> Value:
    """Floats."""
    return Value(shape, **options)


def i(*shape: int | None, low: int = -4, high: int = 5, dtype: str = "int64") -> Value:
    """Integers from low up to but not including high."""
    return Value(shape, dtype, low, high)


def b(*shape: int | None) -> Value:
    """Truth values."""
    return Value(shape, "bool")


@dataclass(frozen=True)
class Sample:
    """A row of the table.

    op : the name of the op that it is a sample of
    build : from a module, `mg`, and nodes to a node; with `numpy` and arrays it is the reference too, unless there is
        another
    values : what is fed
    placement : that of the node, if the batch is split; a string: what the reason contains for which it cannot be
    reference : from the arrays to the result, where NumPy has no such function
    gradient : whether to check gradients with respect to the floats that are fed
    functions : the names of the public functions that it is a sample of, besides the op's own
    numpy_dtype : whether the result's dtype must be that of the reference
    """

    op: str
    build: Callable[..., Any]
    values: Sequence[Value]
    placement: Any = SPLIT
    reference: Callable[..., Any] | None = None
    gradient: bool = True
    functions: Sequence[str] = ()
    numpy_dtype: bool = True
    note: str = ""

    @property
    def title(self) -> str:
        shapes = " ".join(f"{value.dtype}{list(value.shape)}".replace("None", "B") for value in self.values)
        return f"{self.op} {self.note or shapes}".replace(", ", ",")

    def node(self, floating: str = "float64") -> tuple[mg.Node, list[mg.Node]]:
        """The node, and the inputs that it is built from; random numbers are the same each time."""
        mg.set_seed(0)
        inputs = [value.node(f"x{place}", floating) for place, value in enumerate(self.values)]
        return self.build(mg, *inputs), inputs

    def arrays(self, batch_size: int, floating: str = "float64", seed: int = 0) -> list[np.ndarray]:
        rng = np.random.default_rng([seed, len(self.title)])
        return [value.array(rng, batch_size, floating) for value in self.values]

    def expected(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.asarray(self.reference(*arrays) if self.reference else self.build(np, *arrays))


def assert_close(found: Any, expected: Any, times: float = 1.0) -> None:
    """Equal shapes, and elements equal to rounding; `times` is for long sums."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    if found.dtype.kind == "f":
        tolerance = TOLERANCE[found.dtype.name] * times
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
    else:
        np.testing.assert_array_equal(found, expected)
