"""Functional models as plain data, and back: layers, the calls of them, and the single ops between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from miai_graph.errors import SavingError
from miai_graph.layers.core import Input
from miai_graph.layers.layer import Layer, LayerCall, registry
from miai_graph.model.rebuild import Unit, flat_nodes
from miai_graph.node import Node, apply, describe
from miai_graph.op import as_node, constant, ops
from miai_graph.ops.leaves import is_variable
from miai_graph.types import BatchDim


def functional_config(inputs: list[Node], outputs: list[Node], units: list[Unit], layers: list[Layer]) -> dict[str, Any]:
    """The parts of a functional model as plain data. Values are told by number, in the order in which they come about."""
    numbers: dict[Node, int] = {node: place for place, node in enumerate(inputs)}
    calls = []
    for unit in units:
        produced = [unit] if isinstance(unit, Node) else flat_nodes(unit.outputs)
        calls.append(_op_config(unit, numbers) if isinstance(unit, Node) else _call_config(unit, numbers, layers))
        for node in produced:
            numbers[node] = len(numbers)
    return {
        "inputs": [
            {"batch_shape": list(node.shape), "dtype": node.dtype.name, "name": node.name} for node in inputs
        ],
        "layers": [registry.serialize(layer) for layer in layers],
        "calls": calls,
        "outputs": [numbers[node] for node in outputs],
    }


def _call_config(call: LayerCall, numbers: Mapping[Node, int], layers: list[Layer]) -> dict[str, Any]:
    arguments = {name: value for name, value in call.arguments.items() if value is not None}
    place = next(place for place, layer in enumerate(layers) if layer is call.layer)
    return {"layer": place, "inputs": _numbered(call.inputs, numbers), "arguments": arguments}


def _numbered(nodes: Any, numbers: Mapping[Node, int]) -> Any:
    return [_numbered(part, numbers) for part in nodes] if isinstance(nodes, list | tuple) else numbers[nodes]


def _op_config(node: Node, numbers: Mapping[Node, int]) -> dict[str, Any]:
    if is_variable(node):
        raise SavingError(
            f"expected weights that belong to layers; found {describe(node)}, which stands between layers. "
            "Put it into a layer of your own (see layers.Layer.add_weight)"
        )
    attributes = {name: encode(value) for name, value in node.attributes.items()}
    return {"op": node.op.name, "inputs": [numbers[source] for source in node.inputs], "attributes": attributes}


def functional_parts(config: Mapping[str, Any]) -> tuple[list[Node], list[Node]]:
    """Build inputs and outputs from what `functional_config` gave, with new layers."""
    inputs = [Input(**entry) for entry in config["inputs"]]
    layers: list[Layer] = [registry.get(entry) for entry in config["layers"]]
    values: list[Node] = list(inputs)
    for call in config["calls"]:
        if "op" in call:
            values.append(_apply_op(call, values))
        else:
            arguments = call["arguments"]
            values += flat_nodes(layers[call["layer"]](_chosen(call["inputs"], values), **arguments))
    return inputs, [values[number] for number in config["outputs"]]


def _chosen(numbers: Any, values: list[Node]) -> Any:
    return [_chosen(part, values) for part in numbers] if isinstance(numbers, list) else values[numbers]


def _apply_op(entry: Mapping[str, Any], values: list[Node]) -> Node:
    attributes = {name: decode(value) for name, value in entry["attributes"].items()}
    op = ops.get(entry["op"])
    if op is None:
        raise SavingError(f"expected ops that are known here; found {entry['op']!r}. Define it with mg.op before loading")
    if op is constant:
        return as_node(attributes["value"])
    return apply(op, [values[number] for number in entry["inputs"]], attributes)


def encode(value: Any) -> Any:
    """An attribute of a node as JSON."""
    match value:
        case tuple() | list():
            return {"tuple": [encode(part) for part in value]}
        case np.ndarray():
            return {"array": value.tolist(), "dtype": value.dtype.name, "shape": list(value.shape)}
        case np.dtype():
            return {"dtype": value.name}
        case BatchDim():
            return {"batch": value.multiple}
        case None | bool() | int() | float() | str():
            return value
        case _:
            raise SavingError(f"expected attributes of plain data to be saved; found {value!r}")


def decode(value: Any) -> Any:
    """The attribute that `encode` made JSON of."""
    match value:
        case {"tuple": parts}:
            return tuple(decode(part) for part in parts)
        case {"array": items, "dtype": dtype, "shape": shape}:
            return np.array(items, dtype).reshape(shape)
        case {"dtype": name}:
            return np.dtype(name)
        case {"batch": multiple}:
            return BatchDim(multiple)
        case _:
            return value
