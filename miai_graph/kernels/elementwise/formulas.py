"""What is computed of each element by one kernel, whatever it is computed of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes
    ----------
    operation : the name of an op
    operands : numbers of values: operands of the formula first, then the results of the steps
    options : attributes that the operation depends on
    """

    operation: str
    operands: tuple[int, ...]
    dtype: np.dtype[Any]
    options: tuple[float, ...] = ()


def add_tree(steps: list[Step], operation: str, values: Sequence[int], dtype: np.dtype[Any], operands: int) -> int:
    """Add the steps that put values together as a binary tree does; the number of the result.

    Parameters
    ----------
    operation : of two values
    values : their numbers
    operands : how many the formula has
    """
    if len(values) == 1:
        return values[0]
    middle = (len(values) + 1) // 2
    halves = (add_tree(steps, operation, half, dtype, operands) for half in (values[:middle], values[middle:]))
    steps.append(Step(operation, tuple(halves), dtype))
    return operands + len(steps) - 1


@dataclass(frozen=True)
class Operand:
    """What is read.

    Attributes
    ----------
    is_number : one number for a whole row, instead of a number for each column
    """

    dtype: np.dtype[Any]
    is_number: bool


@dataclass(frozen=True)
class Total:
    """What is added up.

    Attributes
    ----------
    value : the number of an operand or of a step's result
    along_rows : each row by itself, instead of over the rows
    """

    value: int
    along_rows: bool


@dataclass(frozen=True)
class Formula:
    """What is computed of each element.

    Attributes
    ----------
    results : the numbers of the values that are written
    totals : what is added up
    """

    operands: tuple[Operand, ...]
    steps: tuple[Step, ...]
    results: tuple[int, ...]
    totals: tuple[Total, ...] = ()

    @property
    def dtypes(self) -> list[np.dtype[Any]]:
        """Of all values."""
        return [operand.dtype for operand in self.operands] + [step.dtype for step in self.steps]

    @property
    def row_totals(self) -> list[Total]:
        """Those along rows."""
        return [total for total in self.totals if total.along_rows]

    @property
    def column_totals(self) -> list[Total]:
        """Those over the rows."""
        return [total for total in self.totals if not total.along_rows]

    @property
    def placed_dtypes(self) -> list[np.dtype[Any]]:
        """Of what lies where the lines of the table say: operands, results, and totals along rows."""
        dtypes = self.dtypes
        written = [*self.results, *(total.value for total in self.row_totals)]
        return [operand.dtype for operand in self.operands] + [dtypes[value] for value in written]
