"""Chains of element-wise nodes that one kernel computes, and the formulas that they come to."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from miai_graph.kernels.elementwise.formulas import Step, Total, add_tree
from miai_graph.kernels.elementwise.totals import SummedFormula
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.ops.communication import _all_reduce, _reduce_scatter
from miai_graph.plan.sums import SummedAxes, summed_axes

REDUCING = (_all_reduce, _reduce_scatter)

OPERATION_OF_REDUCTION = {"sum": "add", "max": "maximum", "min": "minimum"}
"""The ops of the reductions."""

MOST_CONTRIBUTORS = 8
"""So many arrays are reduced in one pass."""

Key = tuple[Node, int | None]
"""An operand of a formula: a node's value, or what a contributor owes to a reduction."""


@dataclass(frozen=True, eq=False)
class Chain:
    """Element-wise nodes of one shape, each of which uses another one's value, or is used by it; and sums of values.

    Attributes
    ----------
    nodes : in order
    operands : what they read of others
    results : those of them that others read
    repeated : those of them that an earlier chain computes too
    contributors : how many owe something to each reduction
    """

    nodes: tuple[Node, ...]
    operands: tuple[Node, ...]
    results: tuple[Node, ...]
    repeated: frozenset[Node] = frozenset()
    contributors: int = 0

    @property
    def sums(self) -> list[Node]:
        """Those of the results that are sums."""
        return [node for node in self.results if summed_axes(node) is not None]

    @property
    def elements(self) -> list[Node]:
        """Those of the results that are not."""
        return [node for node in self.results if summed_axes(node) is None]

    @cached_property
    def keys(self) -> tuple[Key, ...]:
        """The operands of the formula."""
        read = {source for node in self.nodes if node.op not in REDUCING for source in node.inputs}
        values: list[Key] = [(operand, None) for operand in self.operands if operand in read]
        reductions = (node for node in self.nodes if node.op in REDUCING)
        return (*values, *((node, number) for node in reductions for number in range(self.contributors)))

    @cached_property
    def _formula(self) -> tuple[tuple[Step, ...], dict[Node, int]]:
        """The steps, and the numbers of the nodes' values."""
        keys, steps = self.keys, list[Step]()
        numbers = {node: number for number, (node, contributor) in enumerate(keys) if contributor is None}
        for node in self.nodes:
            if summed_axes(node) is not None:
                continue
            if node.op in REDUCING:
                shares = [number for number, (owner, _) in enumerate(keys) if owner is node]
                operation = OPERATION_OF_REDUCTION[node.attributes["reduction"]]
                numbers[node] = add_tree(steps, operation, shares, node.dtype, len(keys))
            else:
                operands = tuple(numbers[source] for source in node.inputs)
                steps.append(Step(node.op.name, operands, node.dtype, _options(node)))
                numbers[node] = len(keys) + len(steps) - 1
        return tuple(steps), numbers

    @property
    def steps(self) -> tuple[Step, ...]:
        """What is computed, whatever it is computed of."""
        return self._formula[0]

    @property
    def result_numbers(self) -> tuple[int, ...]:
        """The numbers of the results in a formula, apart from sums."""
        _, numbers = self._formula
        return tuple(numbers[result] for result in self.elements)

    def summed(self) -> SummedFormula:
        """What is computed where there are sums."""
        (steps, numbers), axes = self._formula, [_axes(node) for node in self.sums]
        totals = [Total(numbers[node.inputs[0]], own.along_rows) for node, own in zip(self.sums, axes, strict=True)]
        return SummedFormula(steps, self.result_numbers, totals, axes[0].first_column_axis)

    def signature(self) -> Hashable:
        """Equal for chains that compute the same."""
        dtypes = tuple(operand.dtype for operand, _ in self.keys)
        return dtypes, self.steps, self.result_numbers


def shares_of(reduction: Node, exports: Sequence[Array], shape: Sequence[int]) -> list[Array]:
    """What all parts owe to an `all_reduce` or `reduce_scatter`, in the shape of its result."""
    start, size = reduction.attributes.get("start", 0), math.prod(shape)
    return [export.reshape(-1)[start : start + size].reshape(shape) for export in exports]


def describe_chain(chain: Chain) -> str:
    """A line for each node: its name, and what it is computed of."""
    return "\n".join(
        f"{node.name} = {node.op.name}({', '.join(source.name for source in node.inputs)})" for node in chain.nodes
    )


def _axes(node: Node) -> SummedAxes:
    axes = summed_axes(node)
    assert axes is not None
    return axes


def _options(node: Node) -> tuple[float, ...]:
    if node.op.name == "clip":
        low, high = node.attributes["low"], node.attributes["high"]
        return -np.inf if low is None else low, np.inf if high is None else high
    return ()
