"""The reference interpreter over parts of a batch: what any data-parallel executor must compute.

The parts go through the graph in step, one node after another. Where the batch analysis says so, what the parts have of
a Partial value is reduced.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np

from miai_graph.errors import ArgumentError
from miai_graph.graph import Graph
from miai_graph.interpreter import evaluate_node
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.ops.leaves import RUN_NUMBERS, is_input, is_variable, variable_of
from miai_graph.passes.batch_analysis import BatchAnalysis, analyse_batch
from miai_graph.placement import REDUCTIONS, Partial, Split
from miai_graph.state import State
from miai_graph.state import state as process_state


def evaluate_split(
    graph: Graph, feeds: Mapping[Node, Array], sizes: Sequence[int], *, state: State = process_state, step: int = 0
) -> tuple[list[Array], dict[Node, Array]]:
    """The values of the graph's outputs and updates, computed on parts of the batch.

    Parameters
    ----------
    feeds : whole arrays
    sizes : the number of samples in each part, at least one

    Raises
    ------
    NotSplittableError
        if a node needs the whole batch in one place.
    """
    if not sizes or min(sizes) < 1:
        raise ArgumentError(f"expected parts of at least one sample each; found sizes {list(sizes)}")
    analysis = analyse_batch(graph)
    analysis.require_splittable()
    starts = [0, *itertools.accumulate(sizes)]
    values: dict[Node, list[Array]] = {}
    for node in graph.nodes:
        parts = [
            _evaluate_part(node, values, feeds, state, part, size, (starts[-1], size, starts[part], step), analysis)
            for part, size in enumerate(sizes)
        ]
        if node in analysis.reduced:
            placement = analysis.placements[node]
            assert isinstance(placement, Partial)
            parts = [reduce(REDUCTIONS[placement.reduction], parts)] * len(parts)
        values[node] = parts
    outputs = [_whole(values[node], node, analysis) for node in graph.outputs]
    return outputs, {target: _whole(values[node], node, analysis) for target, node in graph.updates.items()}


def _evaluate_part(
    node: Node,
    values: Mapping[Node, Sequence[Array]],
    feeds: Mapping[Node, Array],
    state: State,
    part: int,
    size: int,
    run_numbers: tuple[int, int, int, int],
    analysis: BatchAnalysis,
) -> Array:
    if is_input(node):
        placement = analysis.placements[node]
        if isinstance(placement, Split):
            first = run_numbers[2] * placement.rows
            return feeds[node][first : first + size * placement.rows]
        return feeds[node]
    if is_variable(node):
        return state.get(variable_of(node))
    if node.op.name in RUN_NUMBERS:
        return np.asarray(run_numbers[RUN_NUMBERS.index(node.op.name)], np.int64)
    return evaluate_node(node, [values[source][part] for source in node.inputs], size)


def _whole(parts: Sequence[Array], node: Node, analysis: BatchAnalysis) -> Array:
    placement = analysis.placements[node]
    return np.concatenate(parts, placement.axis) if isinstance(placement, Split) else parts[0]
