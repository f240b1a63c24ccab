"""Functional models as plain data, and back: layers, the calls of them, and the single ops between."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from miai_graph.errors import SavingError
from miai_graph.graph_data import decode, encode
from miai_graph.layers.core import Input
from miai_graph.layers.layer import Layer, LayerCall, registry
from miai_graph.layers.nesting import mapped
from miai_graph.model.rebuild import Unit, flat_nodes
from miai_graph.node import Node, apply
from miai_graph.op import as_node, constant, ops
from miai_graph.ops.leaves import is_variable, parameter, variable, variable_of
from miai_graph.registry import as_config


def input_config(node: Node) -> dict[str, Any]:
    """An input as the arguments of `Input`."""
    return {"batch_shape": list(node.shape), "dtype": node.dtype.name, "name": node.name}


def functional_config(inputs: Any, outputs: Any, units: Sequence[Unit], layers: Sequence[Layer]) -> dict[str, Any]:
    """The parts of a functional model as plain data. Values are told by number, in the order in which they come about.

    Parameters
    ----------
    inputs, outputs : nodes, or nested lists and dictionaries of them
    """
    numbers: dict[Node, int] = {node: place for place, node in enumerate(flat_nodes(inputs))}
    calls = []
    for unit in units:
        produced = [unit] if isinstance(unit, Node) else flat_nodes(unit.outputs)
        calls.append(_op_config(unit, numbers) if isinstance(unit, Node) else _call_config(unit, numbers, layers))
        for node in produced:
            numbers[node] = len(numbers)
    return {
        "inputs": [input_config(node) for node in flat_nodes(inputs)],
        "input_structure": mapped(numbers.__getitem__, inputs),
        "layers": [registry.serialize(layer) for layer in layers],
        "calls": calls,
        "outputs": mapped(numbers.__getitem__, outputs),
    }


def _call_config(call: LayerCall, numbers: Mapping[Node, int], layers: Sequence[Layer]) -> dict[str, Any]:
    def argument(value: Any) -> Any:
        return {"value": numbers[value]} if isinstance(value, Node) else as_config(value)

    arguments = {name: mapped(argument, value) for name, value in call.arguments.items() if value is not None}
    place = next(place for place, layer in enumerate(layers) if layer is call.layer)
    return {"layer": place, "inputs": mapped(numbers.__getitem__, call.inputs), "arguments": arguments}


def _op_config(node: Node, numbers: Mapping[Node, int]) -> dict[str, Any]:
    if is_variable(node):
        key = variable_of(node)
        return {"variable": key.name, "shape": list(node.shape), "dtype": node.dtype.name, "trainable": key.trainable}
    attributes = {name: encode(value, _encode_array) for name, value in node.attributes.items()}
    return {"op": node.op.name, "inputs": [numbers[source] for source in node.inputs], "attributes": attributes}


def functional_parts(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """Build inputs and outputs from what `functional_config` gave, with new layers."""
    inputs = [Input(**entry) for entry in config["inputs"]]
    layers: list[Layer] = [registry.get(entry) for entry in config["layers"]]
    values: list[Node] = list(inputs)
    for call in config["calls"]:
        values += _made_again(call, layers, values)
    return mapped(values.__getitem__, config["input_structure"]), mapped(values.__getitem__, config["outputs"])


def _made_again(entry: Mapping[str, Any], layers: Sequence[Layer], values: Sequence[Node]) -> Iterator[Node]:
    if "variable" in entry:
        zeros = np.zeros(entry["shape"], entry["dtype"])
        yield (parameter if entry["trainable"] else variable)(zeros, entry["variable"])
    elif "op" in entry:
        yield _apply_op(entry, values)
    else:
        arguments = {name: _argument(value, values) for name, value in entry["arguments"].items()}
        inputs = mapped(values.__getitem__, entry["inputs"])
        yield from flat_nodes(layers[entry["layer"]](inputs, **arguments))


def _argument(value: Any, values: Sequence[Node]) -> Any:
    match value:
        case {"value": int(number)}:
            return values[number]
        case list():
            return [_argument(part, values) for part in value]
        case _:
            return value


def _apply_op(entry: Mapping[str, Any], values: Sequence[Node]) -> Node:
    attributes = {name: decode(value, _decode_array) for name, value in entry["attributes"].items()}
    op = ops.get(entry["op"])
    if op is None:
        raise SavingError(
            f"expected ops that are known here; found {entry['op']!r}. Define it with mg.op before loading"
        )
    if op is constant:
        return as_node(attributes["value"])
    return apply(op, [values[number] for number in entry["inputs"]], attributes)


def _encode_array(value: Any) -> Any:
    if type(value) is not np.ndarray:
        raise SavingError(f"expected attributes of plain data to be saved; found {value!r}")
    return {"array": value.tolist(), "dtype": value.dtype.name, "shape": list(value.shape)}


def _decode_array(value: Mapping[str, Any]) -> Any:
    return np.array(value["array"], value["dtype"]).reshape(value["shape"])
