"""Graphs as plain data, and back: how they travel to other processes and hosts.

What JSON can hold stands apart from the arrays, so that large constants can be sent as they are. No code travels: an op
is told by name, and one of a user's by the module that defines it, which the receiver imports.
"""

from __future__ import annotations

import importlib
import reprlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from types import MappingProxyType
from typing import Any

import numpy as np

from miai_graph.context import SourceLine
from miai_graph.errors import GraphError
from miai_graph.graph import Graph
from miai_graph.messages import describe
from miai_graph.node import Node, _indices
from miai_graph.op import Array, Op, ops
from miai_graph.ops.leaves import variable_of
from miai_graph.state import Variable
from miai_graph.types import DTYPE_CODES, BatchDim, TensorType

Special = Callable[[Any], Any]
MAIN_MODULES = ("__main__", "__mp_main__")

_PLAIN = {type(None), bool, int, float, str}
_SEQUENCES: dict[type, str] = {tuple: "tuple", list: "list"}
_NO_ATTRIBUTES: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class GraphData:
    """A graph as data.

    Attributes
    ----------
    content : lists and dictionaries, numbers and strings, as Python's json writes them. The parts tell each other by
        number:

        - ops : name of each; of a user's also the module that defines it, and the path of the op there
        - types : dtype and dimensions of each
        - sources : file and line of each
        - variables : name, type, trainable of each, in the order of ``graph.variables``
        - nodes : op, inputs, attributes, type, name, scope, phase, source of each, in order
        - outputs, updates : nodes, and pairs of them
    arrays : those among the attributes, such as the values of constants
    """

    content: dict[str, Any]
    arrays: tuple[Array, ...]

    @property
    def modules(self) -> list[str]:
        """What the receiver imports to have the users' ops."""
        return sorted({entry["module"] for entry in self.content["ops"] if entry["module"] is not None})


def graph_to_data(graph: Graph) -> GraphData:
    """The graph as data; its arrays are those of the graph, not copies.

    Raises
    ------
    GraphError
        if another process could not make the graph of it; see `unportable_ops`.
    """
    writer = _Writer(graph)
    content = writer.content(graph)
    if writer.problems:
        lines = "".join(f"\n  {describe(node)}: {reason}" for node, reason in writer.problems)
        raise GraphError(f"expected a graph that other processes can build; found one that has{lines}")
    return GraphData(content, tuple(writer.arrays))


def unportable_ops(graph: Graph) -> list[tuple[Node, str]]:
    """The nodes that another process cannot build, each with the reason as a clause.

    Either the op is a user's that cannot be imported by name, or an attribute is not plain data.
    """
    writer = _Writer(graph)
    for node in graph.nodes:
        writer.look_at(node)
    return writer.problems


def graph_from_data(data: GraphData) -> tuple[Graph, tuple[Variable, ...]]:
    """The graph of which `graph_to_data` made the data, and its variables.

    The variables are new ones without values, in the order of ``graph.variables``. Types are those of the data, not
    inferred again. The modules that define users' ops are imported.

    Raises
    ------
    GraphError
        if an op is not to be found here.
    """
    reader, nodes = _Reader(data), list[Node]()
    for row in data.content["nodes"]:
        nodes.append(reader.node(row, nodes))
    outputs = [nodes[number] for number in data.content["outputs"]]
    return Graph(outputs, {nodes[target]: nodes[value] for target, value in data.content["updates"]}), reader.variables


class _Writer:
    """The data of a graph in the making, and what stands in the way.

    Attributes
    ----------
    problems : the nodes that cannot be told, with the reasons
    arrays : those among attributes so far
    """

    def __init__(self, graph: Graph) -> None:
        self.problems: list[tuple[Node, str]] = []
        self.arrays: list[Array] = []
        self._ops: dict[Op, tuple[int, _Origin]] = {}
        self._types: dict[TensorType, int] = {}
        self._sources: dict[SourceLine, int] = {}
        self._variables = {variable_of(node): number for number, node in enumerate(graph.variables)}
        self._nodes: dict[Node, int] = {}

    def look_at(self, node: Node) -> None:
        """See what stands in the way of a node."""
        self._op(node)
        self._attributes(node)

    def content(self, graph: Graph) -> dict[str, Any]:
        """What can be told, but for `arrays`."""
        rows = []
        for node in graph.nodes:
            rows.append(self._row(node))
            self._nodes[node] = len(self._nodes)
        variables = [[key.name, self._type(key.type), key.trainable] for key in self._variables]
        return {
            "ops": [
                {"name": op.name, "module": origin.module, "path": origin.path} for op, (_, origin) in self._ops.items()
            ],
            "types": [[type.dtype.name, _encode_all(type.shape, _refuse)] for type in self._types],
            "sources": [[source.file, source.line] for source in self._sources],
            "variables": variables,
            "nodes": rows,
            "outputs": [self._nodes[node] for node in graph.outputs],
            "updates": [[self._nodes[target], self._nodes[value]] for target, value in graph.updates.items()],
        }

    def _row(self, node: Node) -> list[Any]:
        return [
            self._op(node),
            [self._nodes[source] for source in node.inputs],
            self._attributes(node) if node.attributes else {},
            self._type(node.type),
            node.name,
            node.scope,
            node.phase,
            None if node.source is None else self._sources.setdefault(node.source, len(self._sources)),
        ]

    def _type(self, type: TensorType) -> int:
        return self._types.setdefault(type, len(self._types))

    def _op(self, node: Node) -> int:
        if node.op not in self._ops:
            self._ops[node.op] = len(self._ops), _origin_of(node.op)
        number, origin = self._ops[node.op]
        if origin.obstacle is not None:
            self.problems.append((node, origin.obstacle))
        return number

    def _attributes(self, node: Node) -> dict[str, Any]:
        encoded = {}
        for name, value in node.attributes.items():
            try:
                encoded[name] = encode(value, self._array_or_variable)
            except GraphError as error:
                self.problems.append((node, f"attribute {name!r} of op {node.op.name} is not plain data: {error}"))
        return encoded

    def _array_or_variable(self, value: Any) -> Any:
        if isinstance(value, Variable) and value in self._variables:
            return {"variable": self._variables[value]}
        if type(value) is np.ndarray and value.dtype in DTYPE_CODES:
            self.arrays.append(value)
            return {"array": len(self.arrays) - 1}
        return _refuse(value)


class _Reader:
    """What the nodes of a graph's data refer to."""

    def __init__(self, data: GraphData) -> None:
        content = data.content
        self._ops = [_find_op(**entry) for entry in content["ops"]]
        self._types = [TensorType(np.dtype(dtype), _decode_all(dims, _refuse)) for dtype, dims in content["types"]]
        self._sources = [SourceLine(file, line) for file, line in content["sources"]]
        self._arrays = [_read_only(array) for array in data.arrays]
        self.variables = tuple(
            Variable(name, self._types[type], trainable) for name, type, trainable in content["variables"]
        )

    def node(self, row: Sequence[Any], nodes: Sequence[Node]) -> Node:
        op, inputs, attributes, type, name, scope, phase, source = row
        index = next(_indices)
        return Node(
            op=self._ops[op],
            inputs=tuple([nodes[number] for number in inputs]),
            attributes=self._attributes(attributes) if attributes else _NO_ATTRIBUTES,
            type=self._types[type],
            name=name,
            scope=scope,
            phase=phase,
            source=None if source is None else self._sources[source],
            call=None,
            index=index,
            origin=index,
        )

    def _attributes(self, encoded: Mapping[str, Any]) -> Mapping[str, Any]:
        return MappingProxyType({name: decode(value, self._array_or_variable) for name, value in encoded.items()})

    def _array_or_variable(self, value: Mapping[str, int]) -> Any:
        return self._arrays[value["array"]] if "array" in value else self.variables[value["variable"]]


def _read_only(array: Array) -> Array:
    view = array.view()
    view.setflags(write=False)
    return view


def encode(value: Any, special: Special) -> Any:
    """An attribute of a node as JSON, from which `decode` makes one of the same type.

    Parameters
    ----------
    special : called for what this function does not know, such as arrays; gives a dictionary whose first key is not one
        of those below, or raises
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind in _SEQUENCES:
        return {_SEQUENCES[kind]: _encode_all(value, special)}
    match value:
        case BatchDim():
            return {"batch": value.multiple}
        case TensorType():
            return {"type": [value.dtype.name, _encode_all(value.shape, special)]}
        case np.dtype() if value in DTYPE_CODES:
            return {"dtype": value.name}
        case np.generic() if value.dtype in DTYPE_CODES:
            return {"scalar": [value.dtype.name, value.item()]}
        case slice():
            return {"slice": _encode_all((value.start, value.stop, value.step), special)}
        case dict() if all(type(key) is str for key in value):
            return {"dict": {key: encode(part, special) for key, part in value.items()}}
        case _:
            return special(value)


def _encode_all(values: Sequence[Any], special: Special) -> list[Any]:
    return [value if type(value) in _PLAIN else encode(value, special) for value in values]


def decode(value: Any, special: Special) -> Any:
    """The attribute that `encode` made JSON of; `special` undoes what its `special` did."""
    if type(value) is not dict:
        return value
    kind = next(iter(value))
    content = value[kind]
    match kind:
        case "tuple":
            return _decode_all(content, special)
        case "list":
            return list(_decode_all(content, special))
        case "batch":
            return BatchDim(content)
        case "type":
            return TensorType(np.dtype(content[0]), _decode_all(content[1], special))
        case "dtype":
            return np.dtype(content)
        case "scalar":
            return np.dtype(content[0]).type(content[1])
        case "slice":
            return slice(*_decode_all(content, special))
        case "dict":
            return {key: decode(part, special) for key, part in content.items()}
        case _:
            return special(value)


def _decode_all(values: Sequence[Any], special: Special) -> tuple[Any, ...]:
    return tuple([decode(value, special) if type(value) is dict else value for value in values])


def _refuse(value: Any) -> Any:
    raise GraphError(
        f"it holds {reprlib.repr(value)} of type {type(value).__name__}; "
        "give numbers, strings, dtypes, arrays of numbers, or tuples, lists and dictionaries of them"
    )


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where another process finds an op.

    module, path : the module, and the names of attributes that lead from it to the op; None for this library's own
    obstacle : why it cannot be found, if so
    """

    module: str | None = None
    path: str | None = None
    obstacle: str | None = None


def _origin_of(op: Op) -> _Origin:
    if ops.get(op.name) is op and type(op).__module__.startswith(f"{__package__}."):
        return _Origin()
    module, qualified_name = type(op).__module__, type(op).__qualname__
    place = f" ({op.source.short})" if op.source else ""
    if module in MAIN_MODULES:
        return _no_origin(
            f"op {op.name} is defined in {module}{place}, which other processes cannot import; "
            "move it into a module of its own"
        )
    path = _path_to(op)
    if path is None and "<locals>" in qualified_name:
        return _no_origin(
            f"op {op.name} is defined inside a function, as {qualified_name} of {module}{place}, where other processes "
            "cannot get it; move it to the top level of the module"
        )
    if path is None:
        return _no_origin(
            f"op {op.name} is not what {qualified_name} of {module}{place} is now, so other processes would get "
            "another or none; build the graph with the present one, and let ops keep the names that define them"
        )
    if not _is_importable(module):
        return _no_origin(
            f"op {op.name} is defined in {module}{place}, which cannot be imported by that name; "
            "move it into a module in a folder of sys.path"
        )
    return _Origin(module, path)


def _no_origin(obstacle: str) -> _Origin:
    return _Origin(obstacle=obstacle)


def _path_to(op: Op) -> str | None:
    """The names by which the op is found in its module: those it was defined by, or another at the top level."""
    module = sys.modules.get(type(op).__module__)
    if module is None:
        return None
    if _attribute(module, type(op).__qualname__) is op:
        return type(op).__qualname__
    return next((name for name, value in list(vars(module).items()) if value is op), None)


def _attribute(module: Any, path: str) -> Any:
    try:
        return attrgetter(path)(module)
    except AttributeError:
        return None


def _is_importable(name: str) -> bool:
    """Whether Python's finders know a module of that name; that it is loaded here does not mean so."""
    parent = name.rpartition(".")[0]
    folders = getattr(sys.modules.get(parent), "__path__", ()) if parent else None
    finders = [finder for finder in sys.meta_path if hasattr(finder, "find_spec")]
    return any(finder.find_spec(name, folders) is not None for finder in finders)


def _find_op(name: str, module: str | None, path: str | None) -> Op:
    if module is None or path is None:
        found = ops.get(name)
        advice = "Use one version of miai_graph everywhere"
        wanted = f"op {name!r} of miai_graph"
    else:
        found = _attribute(_imported(module, name), path)
        advice = f"Use one version of {module} everywhere"
        wanted = f"op {name!r} as {path} of {module}"
    if not isinstance(found, Op):
        raise GraphError(f"expected {wanted}, which the graph uses; found {found!r}. {advice}")
    return found


def _imported(module: str, op_name: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise GraphError(
            f"expected that module {module}, which defines op {op_name!r} of the graph, can be imported; "
            f"found {type(error).__name__}: {error}. Install it here, or put its folder on the path (PYTHONPATH)"
        ) from error
