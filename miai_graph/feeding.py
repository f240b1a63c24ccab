"""Checking the arrays that are fed against the inputs of a graph, before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from miai_graph.errors import FeedError
from miai_graph.graph import Graph
from miai_graph.messages import describe
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.types import DTYPE_CODES, BatchDim

EVERY_ROW = slice(None)


class Table(list[Array]):
    """Arrays in memory that batches are rows of, for as long as the object lives: an executor may keep a copy of them
    where its workers see it."""

    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__


@dataclass(frozen=True)
class Rows:
    """A batch as row numbers of arrays that stay as they are: gathered straight to where it is needed."""

    arrays: Sequence[Array]
    indices: Array


Batch = Sequence[Any] | Rows


class CheckedBatch(NamedTuple):
    """A batch that fits: an array for each input, or the whole arrays and the rows meant of those with a batch axis.

    source : what the arrays were given in
    """

    arrays: Sequence[Array]
    size: int
    indices: Array | None = None
    source: object = None

    def copy_to(self, position: int, target: Array, rows: slice | None) -> None:
        """Copy the array of the input at a position, or these of its rows, to where it is needed."""
        source, has_dtype = self.arrays[position], self.arrays[position].dtype == target.dtype
        if rows is not None and self.indices is not None:
            numbers = self.indices if rows is EVERY_ROW else self.indices[rows]
            if has_dtype:
                # mode="clip" skips a buffer; the indices were checked. The method is three times as fast as np.take.
                source.take(numbers, 0, target, "clip")
                return
            source = source[numbers]
        elif rows is not None:
            source = source[rows]
        if has_dtype:
            np.copyto(target, source)
        else:
            with np.errstate(all="ignore"):
                np.copyto(target, source, casting="same_kind")


def check_inputs(graph: Graph, inputs: Sequence[Node]) -> None:
    """See to it that all inputs of a graph are fed, and that the batch size can be known, before any are.

    Raises
    ------
    FeedError
        if the graph needs an input that is not among them, or depends on the batch and none of them has it.
    """
    fed = set(inputs)
    missing = [node for node in graph.inputs if node not in fed]
    if missing:
        lines = "\n".join(f"  {describe(node)}" for node in missing)
        raise FeedError(f"expected all inputs of the graph to be fed; found none for\n{lines}\n  Add them to inputs")
    if not any(node.type.batch_axes for node in inputs):
        needing = [node for node in graph.nodes if node.type.batch_axes or node.op.name == "batch_size"]
        if needing:
            raise FeedError(
                f"expected an input with a batch axis, for {describe(needing[0])} depends on the batch; found none"
            )


def check_batch(inputs: Sequence[Node], batch: Batch) -> CheckedBatch:
    """The arrays and the batch size.

    Raises
    ------
    FeedError
        if there are more or fewer arrays than inputs, one has another rank, length or kind of dtype than its input, two
        differ in the number of samples, or there are none.
    """
    indices = batch.indices if isinstance(batch, Rows) else None
    given = batch.arrays if isinstance(batch, Rows) else batch
    if len(given) != len(inputs):
        raise FeedError(
            f"expected {len(inputs)} arrays, for {', '.join(node.name for node in inputs) or 'no inputs'}; "
            f"found {len(given)}"
        )
    arrays = [_as_array(node, value) for node, value in zip(inputs, given, strict=True)]
    size, witness = 1, None
    for node, array in zip(inputs, arrays, strict=True):
        found = _check_shape(node, array)
        if found is None:
            continue
        if witness is not None and found != size:
            raise FeedError(
                f"expected as many samples in each array; found {size} for input {describe(witness)} "
                f"and {found} for input {describe(node)}"
            )
        size, witness = found, node
    if indices is not None:
        check_indices(indices, size)
        size = len(indices)
    if size == 0:
        meant = "" if witness is None else f" for {describe(witness)}"
        raise FeedError(f"expected at least one sample; found none in the batch{meant}")
    return CheckedBatch(arrays, size, indices, given)


def _as_array(node: Node, value: Any) -> Array:
    if type(value) is np.ndarray and value.dtype == node.type.dtype:
        return value
    if isinstance(value, Node):
        raise FeedError(f"expected an array for input {describe(node)}; found node {value.name}")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise FeedError(
            f"expected an array for input {describe(node)}; found {type(value).__name__} ({error})"
        ) from None
    if (
        array.dtype not in DTYPE_CODES
        and array.dtype.newbyteorder("=") not in DTYPE_CODES
        and array.dtype != np.float16
    ):
        raise FeedError(f"expected numbers for input {describe(node)}; found an array of dtype {array.dtype}")
    if not np.can_cast(array.dtype, node.dtype, "same_kind"):
        raise FeedError(
            f"expected an array of dtype {node.dtype} for input {describe(node)}; found {array.dtype}. "
            f"Convert it: array.astype({node.dtype.name!r})"
        )
    return array


def _check_shape(node: Node, array: Array) -> int | None:
    """The number of samples in an array, or None if its input has no batch axis."""
    expected, found = node.type.shape, array.shape
    # Only the first dimension of an input can be the batch.
    has_batch = bool(expected) and isinstance(expected[0], BatchDim)
    if len(found) != len(expected) or found[has_batch:] != expected[has_batch:]:
        raise FeedError(f"expected an array of shape {node.shape} for input {describe(node)}; found {found}")
    return found[0] if has_batch else None


def check_indices(indices: Array, length: int) -> None:
    """Raise FeedError if a number is not that of one of so many rows."""
    if indices.size and (indices.min() < 0 or indices.max() >= length):
        raise FeedError(f"expected row numbers from 0 to {length - 1}; found {indices.min()} to {indices.max()}")
