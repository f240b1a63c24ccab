"""From nodes to something that can be called with arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from miai_graph.errors import ArgumentError, DuplicateNameError
from miai_graph.executor import Executable, Executor, as_executor
from miai_graph.graph import Graph
from miai_graph.messages import describe
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.ops.leaves import is_input

if TYPE_CHECKING:
    from miai_graph.timing import Timing


class Function:
    """A graph that is called like a function, made by `function`.

    Attributes
    ----------
    graph : what it computes
    executable : the graph as the executor runs it
    """

    def __init__(self, graph: Graph, inputs: Sequence[Node], executable: Executable) -> None:
        self.graph = graph
        self.inputs = tuple(inputs)
        self.executable = executable

    def __call__(self, *arrays: Any) -> tuple[Array, ...]:
        """Compute the outputs from an array for each input, and apply the updates.

        Raises
        ------
        FeedError
            if the arrays do not fit the inputs.
        ExecutionError
            if a node fails. Nothing is updated then.
        """
        return tuple(self.executable(*arrays))

    @property
    def timing(self) -> Timing:
        """Where the time of all calls so far went."""
        return self.executable.timing

    @property
    def kernels(self) -> str:
        """Which nodes are computed together, as text: one kernel computes a chain of element-wise ops at once."""
        return self.executable.kernels

    def __repr__(self) -> str:
        names = ", ".join(node.name for node in self.inputs)
        return f"<Function ({names}) of {len(self.graph)} nodes>"


def function(
    inputs: Sequence[Node],
    outputs: Sequence[Node] | Node,
    updates: Mapping[Node, Node] | None = None,
    executor: str | Executor = "serial",
) -> Function:
    """Make a graph callable.

    Parameters
    ----------
    inputs : the nodes made by `input` that are fed at each call, in that order
    outputs : the nodes whose values are returned, as a tuple of arrays. They see the variables as they are before the
        updates.
    updates : new values by parameter or variable. All are computed from the values before, so ``{a: b, b: a}`` swaps,
        and all are applied, or, if the call fails, none.
    executor : a name, such as "serial", or an `Executor`

    Raises
    ------
    ArgumentError
        if something else than a node made by `input` is among the inputs.
    FeedError
        if the graph needs an input that is not among them.
    ExecutorError
        if there is no executor of that name.

    >>> step = mg.function([x, y], [loss], updates={w: w - 0.1 * dw})
    >>> (value,) = step(x_batch, y_batch)
    """
    fed = [inputs] if isinstance(inputs, Node) else list(inputs)
    for node in fed:
        if not is_input(node):
            raise ArgumentError(f"expected nodes made by mg.input as inputs; found {node!r}")
    _check_distinct(fed)
    graph = Graph(outputs, updates)
    return Function(graph, fed, as_executor(executor).compile(graph, fed, graph.outputs, graph.updates))


def _check_distinct(inputs: Sequence[Node]) -> None:
    by_name: dict[str, Node] = {}
    for node in inputs:
        other = by_name.setdefault(node.name, node)
        if other is not node:
            raise DuplicateNameError(
                f"expected inputs of different names; found\n  {describe(other)}\n  {describe(node)}\n"
                "  Rename one of them"
            )
    if len(set(inputs)) != len(inputs):
        raise ArgumentError(f"expected each input once; found {[node.name for node in inputs]}")
