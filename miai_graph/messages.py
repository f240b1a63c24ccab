"""How messages speak of nodes: which one, of what type, built on which line of the user's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from miai_graph.context import SourceLine, current_context, user_source_line
from miai_graph.errors import ArgumentError, FeedError, GraphError, MiaiGraphError, ModelError

OTHERS_ATTRIBUTES = {
    "item": "run it with mg.function(inputs, [node])",
    "numpy": "run it with mg.function(inputs, [node]), or read node.value of a parameter",
    "backward": "mg.grad(loss, parameters) gives the gradients, as nodes",
    "grad": "mg.grad(loss, [node]) gives the gradient, as a node",
    "detach": "use mg.stop_gradient(node)",
    "assign": "use mg.assign(node, value)",
}
"""What users of other libraries look for in a tensor, and where it is here."""

_AT = "\n  at: "

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def describe(node: Any) -> str:
    """``f32[B,64] x (train.py:12)``: how messages speak of a node."""
    place = f" ({node.source})" if node.source else ""
    return f"{node.type} {node.name}{place}"


def no_value_yet(node: Any, wanted: str, advice: str) -> ArgumentError:
    """The error for using a node where only a value would do."""
    return ArgumentError(
        f"a node has no value before the graph runs, so it cannot give {wanted}; found {describe(node)}; {advice}"
    )


def located_text(text: str, name: str, nodes: Sequence[Any], scope: str, source: SourceLine | None) -> str:
    """The text of an error with what was to be built, from what, in which layer, on which line; once is enough."""
    if _AT in text:
        return text
    lines = [f"{name}: {text.removeprefix(f'{name}: ')}"]
    lines += [f"  input {position}: {describe(node)}" for position, node in enumerate(nodes)]
    lines += [f"  in layer: {scope}"] if scope else []
    return "\n".join(lines) + (f"{_AT}{source}" if source else "")


@dataclass(frozen=True, eq=False)
class Failure:
    """What could not be built.

    name : of the op, function or layer
    inputs : the nodes that it was to be built from
    scope : the layer in which it was to be
    source : the line of the user's code
    """

    name: str
    inputs: tuple[Any, ...]
    scope: str
    source: SourceLine | None


def locate_error(error: MiaiGraphError, name: str, nodes: Sequence[Any], scope: str, source: SourceLine | None) -> None:
    """Tell in the error's text what was to be built, and keep that with it; once is enough."""
    error.args = (located_text(str(error), name, nodes, scope, source),)
    if error.failure is None:
        error.failure = Failure(name, tuple(nodes), scope, source)


def locates_errors(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorator of a function that users call: its errors tell its name and the user's line, if they do not yet."""

    @functools.wraps(function)
    def told(*args: Parameters.args, **keywords: Parameters.kwargs) -> Result:
        try:
            return function(*args, **keywords)
        except (GraphError, ArgumentError, FeedError, ModelError) as error:
            nodes = [value for value in args if hasattr(value, "type") and hasattr(value, "source")]
            locate_error(error, _name_of(function, args), nodes, current_context().scope, user_source_line())
            raise

    return told


def _name_of(function: Any, args: Sequence[Any]) -> str:
    match function.__name__:
        case "__call__":
            return str(args[0].name)
        case "__init__":
            return type(args[0]).__name__
        case name:
            return str(name)
