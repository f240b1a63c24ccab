"""A graph: the nodes that outputs and updates are computed from, in order. An immutable value with a text form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from miai_graph.errors import ArgumentError, DTypeError, DuplicateNameError, GraphError, ShapeError
from miai_graph.messages import describe
from miai_graph.node import Node
from miai_graph.op import ops
from miai_graph.ops.leaves import is_input, is_variable, variable_of
from miai_graph.state import Variable
from miai_graph.types import BatchDim

if TYPE_CHECKING:
    import networkx

views: dict[str, Callable[..., Any]] = {}
"""How graphs are drawn: filled by whoever can draw (see `miai_graph.views`)."""

_MOST_NODES_SHOWN = 1000
_INDEX = attrgetter("index")


class Graph:
    """All that is needed to compute `outputs` and `updates`.

    Parameters
    ----------
    outputs : nodes
    updates : new values by variable node; they are all computed from the values before

    Attributes
    ----------
    nodes : in the order in which they were built, so each stands after its inputs
    inputs : the nodes to be fed, in that order
    variables : the parameter and variable nodes that are read or updated, one for each variable
    outputs, updates : as given

    Raises
    ------
    ArgumentError
        if an output is not a node or an update is not of a variable.
    DuplicateNameError
        if two inputs, or two variables, have one name.
    ShapeError, DTypeError
        if an update is not of its variable's type.
    """

    def __init__(self, outputs: Iterable[Node] | Node, updates: Mapping[Node, Node] | None = None) -> None:
        self.outputs = (outputs,) if isinstance(outputs, Node) else tuple(outputs)
        self.updates = MappingProxyType(dict(updates or {}))
        for node in self.outputs:
            if not isinstance(node, Node):
                raise ArgumentError(f"expected nodes as outputs of a graph; found {node!r}")
        for target, value in self.updates.items():
            _check_update(target, value)
        self.nodes = ancestors([*self.outputs, *self.updates.values(), *self.updates])
        self.inputs = tuple(node for node in self.nodes if is_input(node))
        by_variable = {variable_of(node): node for node in reversed(self.nodes) if is_variable(node)}
        self.variables = tuple(sorted(by_variable.values(), key=_INDEX))
        _check_names(self.inputs, "inputs")
        _check_names(self.variables, "parameters or variables")

        self._is_complete = True

    def __setattr__(self, name: str, value: Any) -> None:
        if "_is_complete" in self.__dict__:
            raise GraphError(f"expected no change of a graph, for graphs never change; found an assignment to {name!r}")
        super().__setattr__(name, value)

    def __len__(self) -> int:
        return len(self.nodes)

    def __str__(self) -> str:
        return format_graph(self)

    def __repr__(self) -> str:
        return f"<Graph of {len(self)} nodes, {len(self.inputs)} inputs, {len(self.outputs)} outputs>"

    @property
    def names(self) -> Mapping[Node, str]:
        """A name for each node that no other node of this graph has."""
        return unique_names(self.nodes)

    def to_networkx(self) -> networkx.MultiDiGraph:
        """A networkx graph of the nodes' names, with edges from inputs to users.

        Each node has the attributes op, type, shape, dtype, scope, phase and source; each edge the position of the
        input.
        """
        import networkx

        result = networkx.MultiDiGraph()
        names = self.names
        for node in self.nodes:
            result.add_node(
                names[node],
                op=node.op.name,
                type=str(node.type),
                shape=node.shape,
                dtype=node.dtype.name,
                scope=node.scope,
                phase=node.phase,
                source=str(node.source or ""),
            )
            for position, source in enumerate(node.inputs):
                result.add_edge(names[source], names[node], position=position)
        return result

    def plot(self, path: Any = None, **options: Any) -> Any:
        """Draw the graph; see `miai_graph.views.plot_graph`."""
        return views["plot_graph"](self, path, **options)

    def _repr_png_(self) -> Any:
        """What notebooks show; None: nothing, for drawing so large a graph takes long."""
        return views["png_bytes"](self.plot()) if len(self) <= _MOST_NODES_SHOWN else None


def ancestors(nodes: Iterable[Node]) -> tuple[Node, ...]:
    """The nodes and all that they are computed from, in the order in which they were built."""
    found: set[Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.inputs)
    return tuple(sorted(found, key=_INDEX))


def _check_update(target: Any, value: Any) -> None:
    if not is_variable(target):
        raise ArgumentError(f"expected a parameter or variable to update; found {target!r}")
    if not isinstance(value, Node):
        raise ArgumentError(f"expected a node as update of {target.name!r}; found {value!r}")
    if value.type.shape != target.type.shape:
        raise ShapeError(
            f"expected an update of the variable's shape\n  variable: {describe(target)}\n  update: {describe(value)}"
        )
    if value.dtype != target.dtype:
        raise DTypeError(
            f"expected an update of the variable's dtype\n  variable: {describe(target)}\n  update: {describe(value)}\n"
            f"  Cast it: mg.cast(update, {target.dtype.name!r})"
        )


def _check_names(nodes: Sequence[Node], kind: str) -> None:
    by_name: dict[str, Node] = {}
    for node in nodes:
        other = by_name.setdefault(node.name, node)
        if other is not node:
            raise DuplicateNameError(
                f"expected {kind} of different names; found {node.name!r} twice\n"
                f"  first: {describe(other)}\n  second: {describe(node)}\n  Give one of them another name"
            )


def unique_names(nodes: Sequence[Node]) -> dict[Node, str]:
    """Names by node; where several have the same, as after `set_seed`, the later ones get a mark and a number."""
    names: dict[Node, str] = {}
    times: dict[str, int] = {}
    taken = {node.name for node in nodes}
    for node in nodes:
        count = times.get(node.name, 0)
        name = node.name if count == 0 else f"{node.name}'{count}"
        while count and name in taken:
            count += 1
            name = f"{node.name}'{count}"
        times[node.name] = count + 1
        names[node] = name
        taken.add(name)
    return names


def format_graph(graph: Graph) -> str:
    """The text form: a node a line, ``%name = op(%inputs, attributes) : type   # line that built it``."""
    names = graph.names
    rows = [
        (f"  %{names[node]} = {format_call(node, names)} : {node.type}", node.source.short if node.source else "")
        for node in graph.nodes
    ]
    width = min(max((len(text) for text, _ in rows), default=0), 100)
    lines = [f"{text:<{width}}  # {place}" if place else text for text, place in rows]
    lines += [f"  update {names[target]} = %{names[value]}" for target, value in graph.updates.items()]
    lines += [f"  return {', '.join(f'%{names[node]}' for node in graph.outputs)}"]
    arguments = ", ".join(f"{node.name}: {node.type}" for node in graph.inputs)
    return "\n".join([f"graph({arguments}):", *lines])


def format_call(node: Node, names: Mapping[Node, str]) -> str:
    """What a node is computed by and of, as the text form shows it."""
    if is_variable(node):
        return "parameter" if variable_of(node).trainable else "variable"
    attributes = () if is_input(node) else node.attributes.items()
    arguments = [f"%{names[source]}" for source in node.inputs]
    arguments += [f"{key}={format_attribute(value)}" for key, value in attributes]
    return f"{node.op.name}({', '.join(arguments)})" if arguments else node.op.name


def format_attribute(value: Any) -> str:
    """An op's attribute as the text form shows it."""
    if isinstance(value, np.ndarray):
        return f"<{value.size} numbers>" if value.size > 4 else np.array2string(value, separator=",")
    if isinstance(value, np.dtype):
        return str(value.name)
    if isinstance(value, tuple):
        return f"({','.join(format_attribute(part) for part in value)})"
    return str(value) if isinstance(value, BatchDim) else repr(value)


def check_graph(graph: Graph) -> None:
    """Verify that the graph is well formed; tests do so after every rewrite.

    Raises
    ------
    GraphError
        if a node stands before one of its inputs, has an op that is not the registered one, or a type other than its op
        infers.
    """
    seen: set[Node] = set()
    for node in graph.nodes:
        if not _is_registered(node):
            raise GraphError(f"expected an op of the registry; found {node.op!r} at {describe(node)}")
        late = [source for source in node.inputs if source not in seen]
        if late:
            raise GraphError(f"expected inputs before their users; found {describe(node)} before {describe(late[0])}")
        inferred = node.op.infer(*(source.type for source in node.inputs), **node.attributes)
        if inferred != node.type:
            raise GraphError(f"expected type {inferred}, which {node.op.name} infers; found {describe(node)}")
        seen.add(node)
    for target, value in graph.updates.items():
        _check_update(target, value)


def _is_registered(node: Node) -> bool:
    return ops.get(node.op.name) is node.op


def same_graph(first: Graph, second: Graph) -> bool:
    """Whether two graphs compute the same in the same way: ops, attributes, types and wiring.

    Inputs correspond by name, variables by name and kind; the names of other nodes, lines and scopes do not matter, nor
    does the order in which independent nodes were built.
    """
    if len(first.outputs) != len(second.outputs) or len(first.updates) != len(second.updates):
        return False
    numbers: dict[Any, int] = {}
    numbered = [_number_structures(graph, numbers) for graph in (first, second)]
    outputs = [[of[node] for node in graph.outputs] for graph, of in zip((first, second), numbered, strict=True)]
    updates = [
        sorted((of[target], of[value]) for target, value in graph.updates.items())
        for graph, of in zip((first, second), numbered, strict=True)
    ]
    return outputs[0] == outputs[1] and updates[0] == updates[1] and len(first) == len(second)


def structure_key(node: Node, inputs: Sequence[Any]) -> Any:
    """What two nodes have in common if they compute the same from `inputs` (which stand for the node's own)."""
    # The op itself, for a user may define another op of the same name.
    return (
        node.op,
        node.type,
        tuple(inputs),
        tuple((name, _attribute_key(value)) for name, value in sorted(node.attributes.items())),
    )


def _attribute_key(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, Variable):
        return value.name, value.type, value.trainable
    if isinstance(value, tuple | list):
        return type(value).__name__, tuple(_attribute_key(part) for part in value)
    # 0.0 and -0.0 are equal but not the same; 1 and True and 1.0 neither.
    return type(value).__name__, repr(value)


def _number_structures(graph: Graph, numbers: dict[Any, int]) -> dict[Node, int]:
    result: dict[Node, int] = {}
    for node in graph.nodes:
        key = structure_key(node, [result[source] for source in node.inputs])
        if is_input(node):
            key = (node.name, key)
        result[node] = numbers.setdefault(key, len(numbers))
    return result
