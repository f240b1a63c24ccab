"""What is computed of each element of a product before it is stored: a bias added, an activation.

A kernel that can do so applies it to the sums in its registers. Others store the product first, and it is computed in
place by a kernel of its own. The results are the same, to the last bit.

Operands are few numbers, which stay in the nearest cache. To read as many as the product has elements takes as long
where its sums are complete as in a kernel of its own.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from miai_graph.kernels.compiler.vectors import Vector
from miai_graph.kernels.elementwise.code import OPERATIONS
from miai_graph.kernels.elementwise.formulas import Step
from miai_graph.kernels.elementwise.kernels import FormulaKernels
from miai_graph.kernels.kernel import Kernel, Scratch, Several
from miai_graph.op import Array


class Kind(enum.Enum):
    """What an operand is."""

    NUMBER = "number"
    """One for all elements."""
    ROW = "row"
    """A number for each place along the last axis."""


@dataclass(frozen=True)
class Ending:
    """An epilogue as code knows it, wherever its operands lie.

    Attributes
    ----------
    kinds : of the operands
    steps : value 0 is an element of the product; the operands follow, and then the results of the steps
    """

    kinds: tuple[Kind, ...]
    steps: tuple[Step, ...]

    def applied(self, product: Vector, operands: Sequence[Vector]) -> Vector:
        """Write what it makes of a vector of the product."""
        values = [product, *operands]
        for step in self.steps:
            values.append(OPERATIONS[step.operation](*(values[number] for number in step.operands)))
        return values[-1]


@dataclass(frozen=True)
class Epilogue:
    """What is computed of a product.

    Attributes
    ----------
    steps : see `Ending`
    operands : of the product's shape, repeated along all axes or all but the last one, by strides of 0
    """

    steps: tuple[Step, ...]
    operands: tuple[Array, ...]

    def ending(self, out: Array) -> Ending | None:
        """What code does for a product stored in `out`; None if it does not suit how the operands lie."""
        kinds = [_kind(operand, out) for operand in self.operands]
        known = tuple(kind for kind in kinds if kind is not None)
        return Ending(known, self.steps) if len(known) == len(kinds) else None

    def at(self, index: Any) -> Epilogue:
        """That of some of the product's elements."""
        return Epilogue(self.steps, tuple(operand[index] for operand in self.operands))

    def reshaped(self, shape: tuple[int, ...]) -> Epilogue:
        """That of a product of another shape, with as long a last axis."""
        return Epilogue(self.steps, tuple(operand.reshape(shape) for operand in self.operands))

    def kernel(self, out: Array, scratch: Scratch, threads: int) -> Kernel:
        """What computes it of the product that lies in `out`, in place."""
        kernels = FormulaKernels(self.steps, [len(self.operands) + len(self.steps)], scratch, "the end of a product")
        kernels.add([out, *self.operands], [out])
        return kernels.kernel(threads)


def finished(kernel: Kernel, epilogue: Epilogue | None, out: Array, scratch: Scratch, threads: int = 1) -> Kernel:
    """A product's kernel and, behind it, that of its epilogue."""
    return kernel if epilogue is None else Several((kernel, epilogue.kernel(out, scratch, threads)))


def _kind(operand: Array, out: Array) -> Kind | None:
    """None if it is neither, or its numbers do not lie side by side."""
    if operand.dtype != out.dtype or operand.shape != out.shape or not operand.flags.aligned:
        return None
    strides = [stride if length > 1 else 0 for length, stride in zip(operand.shape, operand.strides, strict=True)]
    if any(strides[:-1]):
        return None
    return {0: Kind.NUMBER, operand.itemsize: Kind.ROW}.get(strides[-1])
