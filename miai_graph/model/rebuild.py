"""Building the graph of a functional model again, on other inputs or for another mode.

A functional model is what lies between its inputs and outputs: calls of layers, and single ops between them. To build it
again, each layer is called again, once for each call, and each other node is applied again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from miai_graph.errors import ModelError
from miai_graph.layers.layer import Layer, LayerCall
from miai_graph.node import Node, describe, reapply
from miai_graph.ops.leaves import is_input

Unit = LayerCall | Node


def units_between(inputs: Sequence[Node], outputs: Sequence[Node]) -> list[Unit]:
    """The layer calls and single nodes that outputs are computed by, in the order in which they were built.

    Raises
    ------
    ModelError
        if an output depends on an input that is not among `inputs`, or on the inside of a layer.
    """
    known = set(inputs)
    units: dict[int, tuple[int, Unit]] = {}
    waiting = list(outputs)
    while waiting:
        node = waiting.pop()
        if node in known:
            continue
        known.add(node)
        if is_input(node):
            raise ModelError(f"expected a model that depends on its inputs only; found {describe(node)}. Add it to inputs")
        call = node.call
        if call is None:
            units[id(node)] = node.index, node
            waiting.extend(node.inputs)
        else:
            produced = flat_nodes(call.outputs)
            if not any(node is own for own in produced):
                raise ModelError(
                    f"expected outputs of layers; found {describe(node)}, which lies inside of layer {call.layer.name!r}"
                )
            units[id(call)] = min(own.index for own in produced), call
            waiting.extend(flat_nodes(call.inputs))
    return [unit for _, unit in sorted(units.values(), key=lambda pair: pair[0])]


def rebuild(
    units: Sequence[Unit], replacements: Mapping[Node, Node], outputs: Sequence[Node], layers: Mapping[Layer, Layer]
) -> list[Node]:
    """The outputs, computed from the replacements of the inputs.

    Parameters
    ----------
    units : what `units_between` gave
    layers : layers to be called in the place of others (empty: each layer itself, sharing its weights)
    """
    replaced = dict(replacements)
    for unit in units:
        if isinstance(unit, Node):
            replaced[unit] = reapply_as_user(unit, replaced)
        else:
            layer = layers.get(unit.layer, unit.layer)
            results = layer(replace_nodes(unit.inputs, replaced), **unit.arguments)
            replaced.update(zip(flat_nodes(unit.outputs), flat_nodes(results), strict=True))
    return [replaced[node] for node in outputs]


def reapply_as_user(node: Node, replaced: Mapping[Node, Node]) -> Node:
    """A single op of the user's between layers, on other inputs; variables and constants are themselves."""
    return reapply(node, [replaced[source] for source in node.inputs]) if node.inputs else node


def replace_nodes(nodes: Any, replaced: Mapping[Node, Node]) -> Any:
    if isinstance(nodes, list | tuple):
        return [replace_nodes(part, replaced) for part in nodes]
    return replaced[nodes]


def flat_nodes(nodes: Any) -> list[Node]:
    """The nodes of a nested list, in order."""
    if isinstance(nodes, list | tuple):
        return [node for part in nodes for node in flat_nodes(part)]
    return [] if nodes is None else [nodes]


def layers_of(units: Sequence[Unit]) -> list[Layer]:
    """The layers that are called, each once, in order."""
    return list(dict.fromkeys(unit.layer for unit in units if isinstance(unit, LayerCall)))
