"""Data parallelism without processes: the graphs of several workers, evaluated in step by plain NumPy.

What partitioning means is defined here once more, as simply as can be: all workers compute up to a barrier, then what
they owe is reduced. Updates are put together from slices, of which each element must be written exactly once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce

import numpy as np
from reference_executor import Reference, ReferenceExecutable

import miai_graph as mg
from miai_graph.feeding import check_batch, check_inputs
from miai_graph.interpreter import evaluate_node
from miai_graph.ops.leaves import RUN_NUMBERS, is_input, is_variable, variable_of
from miai_graph.passes.batch_analysis import analyse_batch
from miai_graph.passes.column_products import column_products
from miai_graph.passes.outer_products import outer_products
from miai_graph.passes.partition import Partition, partition
from miai_graph.passes.simplify import simplify
from miai_graph.placement import REDUCTIONS
from miai_graph.plan.parts import Part, cut_batch
from miai_graph.state import state
from miai_graph.types import bind_shape

Shared = dict[int, np.ndarray]
"""By number of the export, or of the rows."""


class LogicalWorker:
    """One worker's graph with the values computed so far."""

    def __init__(self, own: Partition, part: Part, batch_size: int, feeds, step: int) -> None:
        self.own, self.part, self.batch_size = own, part, batch_size
        self.feeds, self.step = feeds, step
        self.values: dict[mg.Node, np.ndarray] = {}
        self.reduced: Shared = {}
        self.gathered: Shared = {}
        self.columns: Shared = {}
        self.sources = {source for node in own.graph.nodes for source in node.inputs} | set(own.graph.outputs)

    def run(self) -> Iterator[tuple[Shared, Shared, Shared]]:
        """Stops at each barrier: with what is owed there, and the rows and columns that all read from then on."""
        numbers, rows, columns = map(_numbers, (self.own.exports, self.own.rows, _own_columns(self.own)))
        for node in self.own.graph.nodes:
            inputs = [self.values.get(source) for source in node.inputs]
            match node.op.name:
                case "barrier":
                    self.values[node] = np.empty(0, bool)
                    yield tuple(
                        {known[source]: self.values[source] for source in node.inputs if source in known}
                        for known in (numbers, rows, columns)
                    )
                case "gather_rows":
                    self.values[node] = self.gathered[rows[node.inputs[0]]]
                case "rows_of_columns":
                    whole = self.columns[columns[node.inputs[0]]]
                    assert whole.shape[1] == node.attributes["columns"]
                    multiple = node.type.shape[0].multiple
                    first = multiple * self.part.first_row
                    self.values[node] = whole[first : first + multiple * self.part.size]
                case "all_reduce":
                    self.values[node] = self.reduced[numbers[node.inputs[0]]]
                case "reduce_scatter":
                    row = self.reduced[numbers[node.inputs[0]]].reshape(-1)
                    self.values[node] = row[node.attributes["start"] : node.attributes["stop"]]
                case "all_gather":
                    assert node not in self.sources
                case _:
                    self.values[node] = self._value(node, inputs)

    def _value(self, node: mg.Node, inputs) -> np.ndarray:
        is_own = node in self.own.per_part
        if is_input(node):
            (axis,) = node.type.batch_axes or (None,)
            if axis is None:
                return self.feeds[node]
            rows = node.type.shape[axis].multiple
            first = rows * self.part.first_row
            return self.feeds[node][(slice(None),) * axis + (slice(first, first + rows * self.part.size),)]
        if is_variable(node):
            return state.get(variable_of(node))
        if node.op.name in RUN_NUMBERS:
            own = self.part
            numbers = dict(zip(RUN_NUMBERS, (self.batch_size, own.size, own.first_row, self.step), strict=True))
            return np.asarray(numbers[node.op.name], np.int64)
        return evaluate_node(node, inputs, self.part.size if is_own else self.batch_size)


def partitions_of(
    graph: mg.Graph, workers: int, *, batch_size: int = 1 << 40, is_reproducible: bool = False
) -> list[Partition]:
    """All workers' graphs, which must be well formed and fit together."""
    analysis = analyse_batch(graph)
    options = {"is_reproducible": is_reproducible}
    if workers > 1 and not is_reproducible:
        options["products"] = outer_products(graph, analysis, batch_size)
        options["by_columns"] = column_products(graph, analysis, batch_size, workers, options["products"])
    found = [partition(graph, worker, workers, **options) for worker in range(workers)]
    for own in found:
        mg.check_graph(own.graph)
        assert [node.type for node in own.exports] == [node.type for node in found[0].exports]
        assert [node.type for node in own.rows] == [node.type for node in found[0].rows]
        assert [node.type for node in own.columns] == [node.type for node in found[0].columns]
        assert _waits(own) == _waits(found[0])
    return found


def barriers_of(own: Partition) -> list[mg.Node]:
    return [node for node in own.graph.nodes if node.op.name == "barrier"]


def _numbers(nodes: Sequence[mg.Node]) -> dict[mg.Node, int]:
    return {node: number for number, node in enumerate(nodes)}


def _own_columns(own: Partition) -> list[mg.Node]:
    """What a worker computes of products that are cut up by columns."""
    return [node.inputs[0] for node in own.columns]


def _waits(own: Partition) -> list[list[int]]:
    """For each barrier the numbers of the exports, and then of the rows and columns, that it waits for."""
    numbers = _numbers((*own.exports, *own.rows, *_own_columns(own)))
    return [[numbers[source] for source in node.inputs] for node in barriers_of(own)]


def evaluate_by_workers(
    graph: mg.Graph, feeds, batch_size: int, workers: int, step: int = 0, *, is_reproducible: bool = False
) -> tuple[list[np.ndarray], dict[mg.Node, np.ndarray]]:
    """The graph's outputs and updates, as `interpreter.evaluate` gives them; no more workers than there are rows."""
    parts = cut_batch(batch_size, workers)
    owns = partitions_of(graph, len(parts), batch_size=batch_size, is_reproducible=is_reproducible)
    crew = [LogicalWorker(own, part, batch_size, feeds, step) for own, part in zip(owns, parts, strict=True)]
    for stops in zip(*(worker.run() for worker in crew), strict=True):
        _reduce(crew, stops)
    return _outputs(graph, crew), _updates(graph, crew)


def _reduce(crew: list[LogicalWorker], stops) -> None:
    reductions = {
        _numbers(worker.own.exports)[node.inputs[0]]: node.attributes["reduction"]
        for worker in crew
        for node in worker.own.graph.nodes
        if node.op.name in ("all_reduce", "reduce_scatter")
    }
    owed, rows, columns = zip(*stops, strict=True)
    totals = {
        number: reduce(REDUCTIONS[reductions.get(number, "sum")], (values[number] for values in owed))
        for number in owed[0]
    }
    whole = {number: np.concatenate([values[number] for values in rows]) for number in rows[0]}
    joined = {number: np.concatenate([values[number] for values in columns], axis=1) for number in columns[0]}
    for worker in crew:
        worker.reduced |= totals
        worker.gathered |= whole
        worker.columns |= joined


def _outputs(graph: mg.Graph, crew: list[LogicalWorker]) -> list[np.ndarray]:
    found = [dict(zip(worker.own.outputs, worker.own.graph.outputs, strict=False)) for worker in crew]
    assert set(found[0]) == set(range(len(graph.outputs)))
    result = []
    for place, node in enumerate(graph.outputs):
        pieces = [worker.values[own[place]] for worker, own in zip(crew, found, strict=True) if place in own]
        assert len(pieces) == (len(crew) if node.type.batch_axes else 1)
        result.append(np.concatenate(pieces, node.type.batch_axes[0]) if node.type.batch_axes else pieces[0])
    return result


def _updates(graph: mg.Graph, crew: list[LogicalWorker]) -> dict[mg.Node, np.ndarray]:
    result = {node: np.empty(bind_shape(node.type.shape, 1), node.dtype) for node in graph.updates}
    written = {node: np.zeros(node.type.size, int) for node in graph.updates}
    for worker in crew:
        for target, value in worker.own.graph.updates.items():
            start, piece = 0, value
            if value.op.name == "all_gather":
                start, (piece,) = value.attributes["start"], value.inputs
            rows = slice(start, start + piece.type.size)
            result[target].reshape(-1)[rows] = worker.values[piece].reshape(-1)
            written[target][rows] += 1
    assert all((times == 1).all() for times in written.values())
    return result


class ByWorkers(Reference):
    """An executor of so many logical workers."""

    def __init__(self, count: int, *, is_reproducible: bool = False) -> None:
        self.count, self.is_reproducible = count, is_reproducible
        self.graphs: list[mg.Graph] = []

    def compile(self, graph, inputs, outputs, updates):
        self.require_open()
        check_inputs(graph, inputs)
        self.graphs.append(simplify(graph))
        return ByWorkersExecutable(self, self.graphs[-1], inputs)


class ByWorkersExecutable(ReferenceExecutable):
    def run(self, batches):
        for batch in batches:
            checked = check_batch(self.inputs, batch)
            feeds = {node: np.empty(bind_shape(node.type.shape, checked.size), node.dtype) for node in self.inputs}
            for position, node in enumerate(self.inputs):
                checked.copy_to(position, feeds[node], slice(None) if node.type.batch_axes else None)
            owner = self.executor
            outputs, updates = evaluate_by_workers(
                self.graph, feeds, checked.size, owner.count, self.step, is_reproducible=owner.is_reproducible
            )
            for target, value in updates.items():
                state.set(variable_of(target), value)
            self.step += 1
            yield outputs
