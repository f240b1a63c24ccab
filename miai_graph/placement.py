"""How a value depends on the batch, and the rules by which ops pass that on.

If the rows of the batch are dealt out to workers, each worker computes with its rows only. A value is then

- *Split*: each worker has the part that belongs to its rows, along one axis;
- *Replicated*: all have the same;
- *Partial*: each has a part of a reduction over the rows which is still owed;
- *Local*: each has its own, and nothing is owed; see `ops.parts`.

Each op has a rule, ``Op.batch``, from the placements of its inputs to that of its output. A rule answers None where it
cannot go on with a Partial input: the analysis then reduces it first, and asks again with Replicated in its
place. Rules need not know of Local values: they are asked as if these were Replicated, and where they say that the
output is so too, it is Local.

What cannot be computed from parts of the batch at all is *Unsplittable*, with the reason.

The idea is that of the sharding types of GSPMD (Xu et al. 2021, arXiv:2105.04663, section 3.2), cut down to the one
batch symbol.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from miai_graph.types import BatchDim, Shape, TensorType

REDUCTIONS: dict[str, Any] = {"sum": np.add, "max": np.maximum, "min": np.minimum}
"""How parts of a reduction are put together, by its name."""


@dataclass(frozen=True, slots=True)
class Split:
    """Each worker has its samples' rows: `rows` of them a sample, along `axis`."""

    axis: int
    rows: int = 1

    def __str__(self) -> str:
        return f"split(axis {self.axis}, {self.rows} a sample)"


@dataclass(frozen=True, slots=True)
class Replicated:
    """Each worker has the whole value."""

    def __str__(self) -> str:
        return "replicated"


@dataclass(frozen=True, slots=True)
class Partial:
    """The value is the `reduction` ("sum", "max" or "min") of what the workers have."""

    reduction: str

    def __str__(self) -> str:
        return f"partial({self.reduction})"


@dataclass(frozen=True, slots=True)
class Local:
    """Each part of the batch has a value of its own, which belongs to none of its rows."""

    def __str__(self) -> str:
        return "local"


@dataclass(frozen=True, slots=True)
class Unsplittable:
    """The value needs the whole batch in one place."""

    reason: str

    def __str__(self) -> str:
        return f"unsplittable: {self.reason}"


Placement = Split | Replicated | Partial | Local | Unsplittable
BatchRule = Callable[..., Placement | None]

REPLICATED = Replicated()
LOCAL = Local()


def placement_of_type(type: TensorType) -> Placement:
    """The placement of a value that is made from its shape alone, such as an input."""
    if not type.batch_axes:
        return REPLICATED
    if len(type.batch_axes) > 1:
        return Unsplittable(f"{type} has the batch on more than one axis")
    axis = type.batch_axes[0]
    dim = type.shape[axis]
    assert isinstance(dim, BatchDim)
    return Split(axis, dim.multiple)


def elementwise(placements: Sequence[Placement], output: TensorType, *_: Any, **__: Any) -> Placement | None:
    """Inputs of one shape; the output has it too. Nothing is known of the function."""
    if any(isinstance(placement, Partial) for placement in placements):
        return None
    return placement_of_type(output)


def linear(placements: Sequence[Placement], output: TensorType, *_: Any, **__: Any) -> Placement | None:
    """Element-wise, and linear in all inputs together: sums still owed may pass (a + b, -a)."""
    if all(placement == Partial("sum") for placement in placements):
        return Partial("sum")
    return elementwise(placements, output)


def bilinear(placements: Sequence[Placement], output: TensorType, *_: Any, **__: Any) -> Placement | None:
    """Element-wise, and linear in each input: one sum still owed may pass (a · b)."""
    if set(placements) == {Partial("sum"), REPLICATED}:
        return Partial("sum")
    return elementwise(placements, output)


def rearrangement(placements: Sequence[Placement], output: TensorType, *_: Any, **__: Any) -> Placement | None:
    """Elements move and repeat but do not change: any one kind of Partial may pass.

    Only for ops that keep a sample's rows together and in order; see `keeps_rows` for reshaping. What is repeated along
    the batch must be reduced before, for the workers' parts of it differ in length.
    """
    kinds = {placement for placement in placements if isinstance(placement, Partial)}
    if output.batch_axes and kinds:
        return None
    if len(kinds) == 1 and all(isinstance(placement, Partial) for placement in placements):
        return kinds.pop()
    return None if kinds else placement_of_type(output)


def keeps_rows(source: Shape, target: Shape) -> bool:
    """Whether reshaping leaves each sample's elements contiguous along the new batch axis.

    True if as many elements stand before the batch axis on both sides, so that a sample is the same stride.
    """
    return _elements_before_batch(source) == _elements_before_batch(target)


def _elements_before_batch(shape: Shape) -> int | None:
    before = 1
    for dim in shape:
        if isinstance(dim, BatchDim):
            return before
        before *= dim
    return None


def whole_batch(reason: str) -> BatchRule:
    """The rule of an op that is fine on values without the batch, and else needs all of it for `reason`."""

    def rule(placements: Sequence[Placement], *_: Any, **__: Any) -> Placement | None:
        if any(isinstance(placement, Partial) for placement in placements):
            return None
        if any(isinstance(placement, Split) for placement in placements):
            return Unsplittable(reason)
        return REPLICATED

    return rule
