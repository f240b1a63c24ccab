"""What a metric is: a total and a count that add up over batches and workers, and what is made of them in the end."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from miai_graph.feeding import check_batch
from miai_graph.graph import Graph
from miai_graph.interpreter import evaluate
from miai_graph.losses.loss import same_rank
from miai_graph.node import Node
from miai_graph.op import Array, as_node
from miai_graph.ops.casting import cast
from miai_graph.ops.leaves import input as input_node
from miai_graph.ops.reductions import mean, shape
from miai_graph.ops.structure import broadcast_to, sum
from miai_graph.registry import Configurable
from miai_graph.types import as_dtype


class Metric(Configurable):
    """What all have in common. A subclass defines `totals`, and `result` if that is not the mean.

    A training loop puts the nodes of `totals` into its graph and hands their values to `add_totals`. By hand,
    `update_state` does both with arrays.

    Parameters
    ----------
    dtype : of the batch's totals; None for that of the values, and float32 for counts
    name : under which it is reported; made from the class's name if None

    Attributes
    ----------
    total, count : Python floats; what was added up since `reset_state`
    """

    def __init__(self, dtype: Any = None, name: str | None = None) -> None:
        self.dtype = None if dtype is None else as_dtype(dtype).name
        self.name = name or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower()
        self._graphs: dict[Any, Graph] = {}
        self.reset_state()

    def totals(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> tuple[Node, Node]:
        """What a batch adds to the total and the count: two scalar nodes, sums over its samples."""
        raise NotImplementedError(f"{type(self).__name__} has no method totals(y_true, y_pred, sample_weight)")

    def result(self) -> float:
        """The metric of all that was added up: the mean, or 0 if there was nothing."""
        return self.total / self.count if self.count else 0.0

    def add_totals(self, total: float, count: float) -> None:
        """Add what `totals` gave for a batch."""
        self.total += float(total)
        self.count += float(count)

    def reset_state(self) -> None:
        """Forget all batches."""
        self.total = 0.0
        self.count = 0.0

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch of arrays.

        Raises
        ------
        FeedError
            if they differ in the number of samples.
        """
        self.add_arrays(y_true=y_true, y_pred=y_pred, sample_weight=sample_weight)

    def __call__(self, *arrays: Any, **named_arrays: Any) -> float:
        """Add a batch of arrays, and return the result of all so far."""
        self.update_state(*arrays, **named_arrays)
        return self.result()

    def add_arrays(self, **arrays: Any) -> None:
        """Compute `totals` for arrays given by the names of its arguments, and add them; None is left out."""
        given = {name: _as_array(value) for name, value in arrays.items() if value is not None}
        key = tuple((name, array.dtype, array.ndim, array.shape[1:]) for name, array in given.items())
        if key not in self._graphs:
            nodes = {name: input_node(name, _input_shape(array), array.dtype) for name, array in given.items()}
            self._graphs[key] = Graph([*self.totals(**nodes), *nodes.values()])
        graph = self._graphs[key]
        inputs = graph.outputs[2:]
        checked = check_batch(inputs, list(given.values()))
        feeds = dict(zip(inputs, checked.arrays, strict=True))
        total, count = evaluate(graph, feeds, batch_size=checked.size)[0][:2]
        self.add_totals(float(total), float(count))


def _as_array(value: Any) -> Array:
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _input_shape(array: Array) -> tuple[int | None, ...]:
    return (None, *array.shape[1:]) if array.ndim else ()


def weighted_totals(values: Any, sample_weight: Any, dtype: Any) -> tuple[Node, Node]:
    """The sum over samples of values times weights, and that of the weights: of a sample's values, the mean counts.

    Parameters
    ----------
    values : one a sample, or several
    sample_weight : a number, one a sample, or one for each value; None counts samples
    """
    node = as_node(values)
    node = cast(node, dtype or (node.dtype if node.type.is_floating else np.float32))
    if sample_weight is None:
        count = as_node(shape(node)[0] if node.ndim else 1)
        return sum(_sample_means(node)), cast(count, node.dtype)
    node, weights = same_rank(node, cast(as_node(sample_weight), node.dtype))
    inner = range(max(weights.ndim, 1), node.ndim)
    if inner:
        node = mean(node, tuple(inner))
    weights = broadcast_to(weights, node.type.shape)
    return sum(_sample_means(node * weights)), sum(_sample_means(weights))


def _sample_means(node: Node) -> Node:
    return mean(node, tuple(range(1, node.ndim))) if node.ndim > 1 else node
