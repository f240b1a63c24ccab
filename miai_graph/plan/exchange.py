"""Memory that the parts of a batch have in common: what they owe to reductions, and the rows of outputs.

Whoever computes a part writes what it owes into its own region. After a barrier all may read all regions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from miai_graph.kernels.numpy_kernels import Kernel, Request
from miai_graph.op import Array
from miai_graph.placement import REDUCTIONS
from miai_graph.plan.program import Program
from miai_graph.state import arrays_in, block_bytes
from miai_graph.types import bind_type

REDUCED_AT_ONCE_BYTES = 1 << 17
"""Several arrays are reduced piece by piece, so that what is added up stays in a core's own cache."""


class Exchange:
    """Arrays for all that parts owe to reductions, and for outputs.

    Parameters
    ----------
    program : one worker's
    batch_size : of the whole batch
    parts : the number of parts, of all workers
    memory : gives that many bytes, which the other workers see too

    Attributes
    ----------
    outputs : an array for each output that is split by rows, with all of them
    exports : for each export an array a part
    """

    def __init__(self, program: Program, batch_size: int, parts: int, memory: Callable[[int], Array]) -> None:
        types = [node.type for node in program.exports]
        outputs = [bind_type(node.type, batch_size) for node in program.graph.outputs if node in program.per_part]
        taken, region = block_bytes(outputs), block_bytes(types)
        block = memory(taken + parts * region)
        self.outputs = arrays_in(block, outputs)
        regions = [arrays_in(block[taken + part * region :], types) for part in range(parts)]
        self.exports = [[arrays[number] for arrays in regions] for number in range(len(types))]


def reduction_kernel(request: Request, exports: Sequence[Array]) -> Kernel:
    """The kernel of an `all_reduce` or `reduce_scatter`, from what all parts owe.

    The order is that of a binary tree over the parts: the same for all workers and any number of them.
    """
    start = request.attributes.get("start", 0)
    output = request.output.reshape(-1)
    rows = [export.reshape(-1)[start : start + output.size] for export in exports]
    combine = REDUCTIONS[request.attributes["reduction"]]
    if len(rows) == 1:
        return partial(np.copyto, output, rows[0])
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
    return partial(_run_all, calls)


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


def _run_all(calls: Sequence[Kernel]) -> None:
    for call in calls:
        call()
