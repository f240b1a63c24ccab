"""Building the graph of a functional model again, on other inputs or for another mode.

A functional model is what lies between its inputs and outputs: calls of layers, and single ops between them. To build
it again, each layer is called again, once for each call, and each other node is applied again.

Inputs, outputs and arguments of calls are single nodes, or lists and dictionaries of them, one in another if need be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from miai_graph.context import build_context
from miai_graph.errors import ModelError
from miai_graph.layers.layer import Layer, LayerCall
from miai_graph.layers.nesting import flat, mapped
from miai_graph.messages import describe
from miai_graph.node import Node, apply
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
            raise ModelError(
                f"expected a model that depends on its inputs only; found {describe(node)}. Add it to inputs"
            )
        call = node.call
        if call is None:
            units[id(node)] = node.index, node
            waiting.extend(node.inputs)
        else:
            produced = flat_nodes(call.outputs)
            if not any(node is own for own in produced):
                raise ModelError(
                    f"expected outputs of layers; found {describe(node)}, "
                    f"which lies inside of layer {call.layer.name!r}"
                )
            units[id(call)] = min(own.index for own in produced), call
            waiting.extend(nodes_of_call(call))
    return [unit for _, unit in sorted(units.values(), key=_position)]


def _position(entry: tuple[int, Unit]) -> int:
    return entry[0]


def rebuild(units: Sequence[Unit], replacements: Mapping[Node, Node], outputs: Sequence[Node]) -> list[Node]:
    """The outputs, computed from the replacements of the inputs; layers are called again and share their weights.

    Parameters
    ----------
    units : what `units_between` gave
    """
    replaced = dict(replacements)

    def other(value: Any) -> Any:
        return replaced[value] if isinstance(value, Node) else value

    for unit in units:
        if isinstance(unit, Node):
            replaced[unit] = _apply_again(unit, [replaced[source] for source in unit.inputs])
        else:
            arguments = {name: mapped(other, value) for name, value in unit.arguments.items()}
            results = unit.layer(mapped(other, unit.inputs), **arguments)
            replaced.update(zip(flat_nodes(unit.outputs), flat_nodes(results), strict=True))
    return [replaced[node] for node in outputs]


def _apply_again(node: Node, inputs: Sequence[Node]) -> Node:
    """A single op of the user's between layers, on other inputs; variables and constants are themselves."""
    if not inputs:
        return node
    with build_context(source=node.source):
        return apply(node.op, inputs, node.attributes, node.name.rpartition("/")[2])


def nodes_of_call(call: LayerCall) -> list[Node]:
    """The nodes that a layer was called on, those among its further arguments included."""
    given = [*flat_nodes(call.inputs), *flat_nodes(list(call.arguments.values()))]
    return [node for node in given if isinstance(node, Node)]


def flat_nodes(value: Any) -> list[Any]:
    """The leaves of nested lists and dictionaries, in order; None is no leaf."""
    return [leaf for leaf in flat(value) if leaf is not None]


def packed(structure: Any, leaves: Iterable[Any]) -> Any:
    """The leaves in the nested lists and dictionaries of a structure, whose own leaves they replace."""
    remaining = iter(leaves)

    def following(_: Any) -> Any:
        return next(remaining)

    return mapped(following, structure)


def layers_of(units: Sequence[Unit]) -> list[Layer]:
    """The layers that are called, each once, in order."""
    return list(dict.fromkeys(unit.layer for unit in units if isinstance(unit, LayerCall)))
