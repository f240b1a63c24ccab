"""Memory that the parts of a batch have in common: what they owe to reductions, and rows that all need.

Whoever computes a part writes what it owes into its own region, and its rows where those of all parts are. After a
barrier all may read all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, Protocol

import numpy as np

from miai_graph.kernels.compiler.native import processor
from miai_graph.kernels.elementwise.formulas import Step, add_tree
from miai_graph.kernels.elementwise.kernels import FormulaKernels
from miai_graph.kernels.kernel import Kernel, Several
from miai_graph.kernels.numpy_kernels import Request
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.ops.communication import EFFECTS, _gather_rows, _receive
from miai_graph.placement import REDUCTIONS
from miai_graph.plan.chains import MOST_CONTRIBUTORS, OPERATION_OF_REDUCTION, REDUCING, shares_of
from miai_graph.plan.parts import Part, rows_along
from miai_graph.plan.program import Program
from miai_graph.state import aligned_bytes, arrays_in, block_bytes
from miai_graph.types import bind_type

REDUCED_AT_ONCE_BYTES = 1 << 17
"""Several arrays are reduced piece by piece, so that what is added up stays in a core's own cache."""


class Exchange:
    """Arrays for all that parts owe to reductions, and for rows and outputs, in memory that all workers see.

    Parameters
    ----------
    program : one worker's
    batch_size : of the whole batch
    parts : the number of parts, of all workers
    memory : gives that many bytes, which the other workers see too

    Attributes
    ----------
    outputs : an array for each output that is split by rows, with all of them
    """

    def __init__(self, program: Program, batch_size: int, parts: int, memory: Callable[[int], Array]) -> None:
        types = [node.type for node in program.exports]
        outputs = split_outputs(program)
        whole = [bind_type(node.type, batch_size) for node in (*outputs, *program.rows, *program.columns)]
        taken, region = block_bytes(whole), block_bytes(types)
        block = memory(taken + parts * region)
        arrays = arrays_in(block, whole)
        self.outputs = arrays[: len(outputs)]
        self._whole = dict(zip((*program.rows, *program.columns), arrays[len(outputs) :], strict=True))
        self._shared = {node: self._whole[node.inputs[0]] for node in program.graph.nodes if node.op is _gather_rows}
        for node in program.columns:
            (own, _), start = node.inputs, node.attributes["start"]
            self._shared[own] = self._whole[node][:, start : start + own.type.shape[1]]
        regions = [arrays_in(block[taken + part * region :], types) for part in range(parts)]
        self._exports = [[arrays[number] for arrays in regions] for number in range(len(types))]

    def export(self, number: int, part: Part) -> Array:
        """Where a part's share of what is owed is written."""
        return self._exports[number][part.number]

    def arrays_of(self, part: Part) -> dict[Node, Array]:
        """Where a part has its rows of what all workers write, and where it writes, or reads, those of others too."""
        own = {node: whole[rows_along(node.type.shape[0], part)] for node, whole in self._whole.items()}
        return own | self._shared

    def owed(self, number: int) -> Sequence[Array]:
        """What is reduced, in order."""
        return self._exports[number]

    def exporting(self, kernel: Kernel, number: int, part: Part) -> Kernel:
        """What a part does to export what this kernel computes."""
        return kernel


class Accumulation:
    """Arrays of one worker's own, in which what its parts owe is added up one after another.

    Other workers' totals, and further parts' shares if they must not be added before their turn, have arrays beside it.

    Parameters
    ----------
    parts : those of this worker
    contributors : the workers who owe the same things
    own : the number of this worker among them
    keeps_parts : by contributor, how many shares each of them keeps apart; None: they add them up
    """

    def __init__(
        self,
        program: Program,
        batch_size: int,
        parts: Sequence[Part],
        contributors: int = 1,
        own: int = 0,
        keeps_parts: Sequence[int] | None = None,
    ) -> None:
        types = [node.type for node in program.exports]
        outputs = [bind_type(node.type, batch_size) for node in split_outputs(program)]
        self.outputs = arrays_in(aligned_bytes(block_bytes(outputs)), outputs)
        self._reductions = reductions_of(program)
        self._first = parts[0].number
        self._first_row = parts[0].first_row
        self._adds_up = keeps_parts is None
        counts = [1] * contributors if keeps_parts is None else keeps_parts
        region = block_bytes(types)
        block = aligned_bytes((sum(counts) + self._adds_up) * region)
        regions = [arrays_in(block[place * region :], types) for place in range(sum(counts) + self._adds_up)]
        starts = list(accumulate(counts, initial=0))
        self.shares = [regions[start:stop] for start, stop in pairwise(starts)]
        """For each contributor its arrays: for each share an array an export."""
        self._own = self.shares[own]
        self._spare = regions[-1]

    def export(self, number: int, part: Part) -> Array:
        """Where the share of a part, or of a group of parts, is written."""
        if not self._adds_up:
            return self._own[part.number - self._first][number]
        return self._own[0][number] if part.first_row == self._first_row else self._spare[number]

    def owed(self, number: int) -> Sequence[Array]:
        """What is reduced, in order."""
        return [share[number] for shares in self.shares for share in shares]

    def exporting(self, kernel: Kernel, number: int, part: Part) -> Kernel:
        """What a part does to export what this kernel computes."""
        if not self._adds_up or part.first_row == self._first_row:
            return kernel
        total, share = self._own[0][number], self._spare[number]
        return Several((kernel, partial(REDUCTIONS[self._reductions[number]], total, share, out=total)))


class Links(Protocol):
    """How a plan sends and receives where no memory is shared."""

    def kernel(self, node: Node, part: Part, inputs: Sequence[Array], output: Array) -> Kernel:
        """What a `send`, `receive`, `contribute`, `await_commit` or `barrier` does for a part."""
        ...


LINKED = (*EFFECTS, _receive)
"""The ops whose kernels are a matter of links."""


def split_outputs(program: Program) -> list[Node]:
    """The outputs of which each part has its rows."""
    return [node for node in program.graph.outputs if node in program.per_part and node.op not in EFFECTS]


def reductions_of(program: Program) -> dict[int, str]:
    """The name of the reduction that each export is owed to."""
    return {
        program.exports[node.inputs[0]]: node.attributes["reduction"]
        for node in program.graph.nodes
        if node.op in REDUCING
    }


def reduction_kernel(request: Request, exports: Sequence[Array]) -> Kernel:
    """The kernel of an `all_reduce` or `reduce_scatter`, from what all parts owe.

    The order is that of a binary tree over the parts: the same for all workers and any number of them.
    """
    output = request.output.reshape(-1)
    rows = shares_of(request.node, exports, output.shape)
    combine = REDUCTIONS[request.attributes["reduction"]]
    if len(rows) == 1:
        return partial(np.copyto, output, rows[0])
    if len(rows) <= MOST_CONTRIBUTORS and processor() is not None and output.dtype.kind == "f":
        return _native_reduction(request, rows, output)
    if len(rows) == 2:
        return partial(combine, *rows, out=output)
    length = max(1, REDUCED_AT_ONCE_BYTES // output.itemsize)
    depth = (len(rows) - 1).bit_length()
    spare = [request.scratch((min(length, output.size),), output.dtype) for _ in range(depth)]
    calls: list[Kernel] = []
    for place in range(0, output.size, length):
        pieces = [row[place : place + length] for row in rows]
        result = output[place : place + length]
        _combine(calls, combine, pieces, result, [array[: result.size] for array in spare])
    return Several(tuple(calls))


def _native_reduction(request: Request, rows: Sequence[Array], output: Array) -> Kernel:
    """All rows in one pass, put together in the same order."""
    steps: list[Step] = []
    operation = OPERATION_OF_REDUCTION[request.attributes["reduction"]]
    result = add_tree(steps, operation, range(len(rows)), output.dtype, len(rows))
    kernels = FormulaKernels(steps, [result], request.scratch, f"{request.node.op.name} {request.node.name}")
    kernels.add(rows, [output])
    return kernels.kernel()


def _combine(
    calls: list[Kernel], combine: Callable[..., Any], pieces: Sequence[Array], result: Array, spare: Sequence[Array]
) -> None:
    """Add the calls that combine the pieces, the first half of them and the second half each by itself."""
    middle = (len(pieces) + 1) // 2
    halves = []
    for half, target in ((pieces[:middle], result), (pieces[middle:], spare[0] if spare else result)):
        if len(half) == 1:
            halves.append(half[0])
        else:
            _combine(calls, combine, half, target, spare[1:])
            halves.append(target)
    calls.append(partial(combine, *halves, out=result))
