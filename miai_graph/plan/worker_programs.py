"""The programs of one of several workers, by what they depend on."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from miai_graph.graph import Graph
from miai_graph.node import Node
from miai_graph.passes.batch_analysis import BatchAnalysis, analyse_batch
from miai_graph.passes.column_products import column_products
from miai_graph.passes.outer_products import outer_products
from miai_graph.passes.partition import partition
from miai_graph.plan.program import Program, make_program


class WorkerPrograms:
    """What a worker runs of a graph, each program made when it is first needed.

    Parameters
    ----------
    worker : its number
    is_reproducible : see `passes.partition`
    analysis : of the graph, where it is known already
    """

    def __init__(
        self, graph: Graph, worker: int, *, is_reproducible: bool, analysis: BatchAnalysis | None = None
    ) -> None:
        self._graph = graph
        self._worker = worker
        self._is_reproducible = is_reproducible
        self._analysis = analyse_batch(graph) if analysis is None else analysis
        self._programs: dict[object, Program] = {}

    def program(self, workers: int, batch_size: int) -> Program:
        """That for batches of a size, if so many workers take part."""
        products: Mapping[Node, int] = {}
        by_columns: Collection[Node] = frozenset()
        if workers > 1 and not self._is_reproducible:
            products = outer_products(self._graph, self._analysis, batch_size)
            by_columns = column_products(self._graph, self._analysis, batch_size, workers, products)
        key = workers, frozenset(products.items()), by_columns
        if key not in self._programs:
            own = partition(
                self._graph,
                self._worker,
                workers,
                is_reproducible=self._is_reproducible,
                analysis=self._analysis,
                products=products,
                by_columns=by_columns,
            )
            # Reproducible ones have parts of which the number depends on the batch.
            contributors = 0 if self._is_reproducible else workers
            self._programs[key] = make_program(
                own.graph, own.exports, own.per_part, rows=own.rows, columns=own.columns, contributors=contributors
            )
        return self._programs[key]
