"""The reference interpreter: the meaning of a graph, in as few lines as will do.

Plain NumPy, one node after another, nothing reused, rewritten or measured. Every rewrite, kernel and executor is
tested against it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from miai_graph.errors import ExecutionError, MiaiGraphError
from miai_graph.graph import Graph
from miai_graph.messages import describe
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.ops.leaves import RUN_NUMBERS, is_input, is_variable, variable_of
from miai_graph.state import State
from miai_graph.state import state as process_state
from miai_graph.types import BatchDim, bind_type


def bind_attribute(value: Any, batch_size: int) -> Any:
    """An op's attribute with the batch symbol in it replaced by a number."""
    if isinstance(value, tuple):
        return tuple(bind_attribute(part, batch_size) for part in value)
    return value.multiple * batch_size if isinstance(value, BatchDim) else value


def bind_attributes(node: Node, batch_size: int) -> dict[str, Any]:
    return {name: bind_attribute(value, batch_size) for name, value in node.attributes.items()}


def evaluate_node(node: Node, arrays: Sequence[Array], batch_size: int) -> Array:
    """What the op's definition gives; whatever goes wrong is told with the node.

    Raises
    ------
    ExecutionError
        if forward raises, or returns another shape or dtype than the node's type says.
    """
    try:
        with np.errstate(all="ignore"):
            result = node.op.forward(*arrays, **bind_attributes(node, batch_size))
            if isinstance(result, np.generic):
                result = np.asarray(result)
    except MiaiGraphError:
        raise
    except Exception as error:
        raise execution_error(node, arrays, error) from error
    expected = bind_type(node.type, batch_size)
    if not isinstance(result, np.ndarray) or result.shape != expected.shape or result.dtype != expected.dtype:
        found = f"{result.dtype}{list(result.shape)}" if isinstance(result, np.ndarray) else repr(result)
        raise ExecutionError(f"expected {expected}, which infer says; found {found} from forward of {describe(node)}")
    return result


def execution_error(node: Node, arrays: Sequence[Array], error: BaseException) -> ExecutionError:
    """The error to raise for a failure inside a node: what, where, on which inputs, built on which line."""
    lines = [f"{node.op.name} failed: {type(error).__name__}: {error}", f"  node: {describe(node)}"]
    lines += [
        f"  input {position}: {array.dtype}{list(array.shape)} {source.name}"
        for position, (source, array) in enumerate(zip(node.inputs, arrays, strict=True))
    ]
    return ExecutionError("\n".join(lines))


def evaluate(
    graph: Graph,
    feeds: Mapping[Node, Array],
    *,
    batch_size: int,
    state: State = process_state,
    step: int = 0,
    first_row: int = 0,
    whole_batch_size: int | None = None,
) -> tuple[list[Array], dict[Node, Array]]:
    """The values of the graph's outputs and updates; nothing is changed.

    Parameters
    ----------
    feeds : an array of the right type for each of ``graph.inputs``
    batch_size : the number of rows fed
    step, first_row, whole_batch_size : the numbers that `leaves.RUN_NUMBERS` names, if this is a part of a greater
        batch
    """
    run = dict(zip(RUN_NUMBERS, (whole_batch_size or batch_size, batch_size, first_row, step), strict=True))
    values: dict[Node, Array] = {}
    for node in graph.nodes:
        if is_input(node):
            values[node] = np.asarray(feeds[node])
        elif is_variable(node):
            values[node] = state.get(variable_of(node))
        elif node.op.name in run:
            values[node] = np.asarray(run[node.op.name], np.int64)
        else:
            values[node] = evaluate_node(node, [values[source] for source in node.inputs], batch_size)
    return [values[node] for node in graph.outputs], {target: values[node] for target, node in graph.updates.items()}
