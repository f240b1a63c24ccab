"""What a model is made of, as a picture needs it: inputs, calls of layers, and single ops."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from miai_graph.errors import MiaiGraphError
from miai_graph.layers.layer import Layer, LayerCall
from miai_graph.model.rebuild import flat_nodes, nodes_of_call, units_between
from miai_graph.node import Node
from miai_graph.registry import as_config
from miai_graph.types import user_shape


@dataclass(frozen=True)
class Unit:
    """An input, a call of a layer, or a single op.

    key : what links call it
    kind : what two units have in common if they look the same: class or op, configuration but for the name, and shapes;
        None for inputs
    name : of the layer or the node
    title : its class or op
    shape : of the output, as text
    layer : the layer, or None
    is_input, is_output : whether it is fed, and whether the model gives it
    """

    key: Hashable
    kind: Hashable
    name: str
    title: str
    shape: str
    layer: Layer | None = None
    is_input: bool = False
    is_output: bool = False


Link = tuple[Hashable, Hashable]


def model_units(model: Any) -> tuple[list[Unit], list[Link]]:
    """The units of a built model in order, without those that do not depend on inputs, and links by their keys."""
    wanted = set(model.outputs)
    made_by: dict[Node, Hashable] = {node: node.name for node in model.inputs}
    units = [
        Unit(node.name, None, node.name, "input", _shape([node]), is_input=True, is_output=node in wanted)
        for node in model.inputs
    ]
    parts = units_between(model.inputs, model.outputs)
    calls = Counter(part.layer for part in parts if isinstance(part, LayerCall))
    links: dict[Link, None] = {}
    for number, part in enumerate(parts):
        sources = nodes_of_call(part) if isinstance(part, LayerCall) else part.inputs
        outputs = flat_nodes(part.outputs) if isinstance(part, LayerCall) else [part]
        if any(source in made_by for source in sources):
            links.update({(made_by[source], number): None for source in sources if source in made_by})
            made_by.update(dict.fromkeys(outputs, number))
            units.append(_unit(number, part, outputs, calls, any(node in wanted for node in outputs)))
    return units, list(links)


def _unit(
    key: int, part: LayerCall | Node, outputs: Sequence[Node], calls: Mapping[Layer, int], is_output: bool
) -> Unit:
    shape = _shape(outputs)
    if isinstance(part, Node):
        attributes = tuple(sorted((name, repr(value)) for name, value in part.attributes.items()))
        look = part.op.name, str(part.type), attributes
        return Unit(key, look, part.name, part.op.name, shape, is_output=is_output)
    layer = part.layer
    shared = layer.name if calls[layer] > 1 else None
    kind = (type(layer).__name__, _configuration(layer), shape, layer.count_params(), str(part.arguments), shared)
    return Unit(key, kind, layer.name, type(layer).__name__, shape, layer, is_output=is_output)


def _configuration(layer: Layer) -> str:
    """The layer's configuration but for its name; the name if it has none, so that it is like no other."""
    try:
        config = as_config(layer.get_config())
        config.pop("name", None)
        return json.dumps(config, sort_keys=True, default=repr)
    except (MiaiGraphError, TypeError, AttributeError):
        return layer.name


def _shape(nodes: Sequence[Node]) -> str:
    shapes = [_readable(user_shape(node.type.shape)) for node in nodes]
    return shapes[0] if len(shapes) == 1 else " and ".join(shapes)


def _readable(shape: tuple[int | None, ...]) -> str:
    return f"({', '.join(str(dim) for dim in shape)}{',' if len(shape) == 1 else ''})"
