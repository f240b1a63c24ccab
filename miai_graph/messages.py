"""How messages speak of nodes: which one, of what type, built on which line of the user's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
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
Located = TypeVar("Located", bound=MiaiGraphError)


def describe(node: Any) -> str:
    """``f32[B,64] x (train.py:12)``: how messages speak of a node."""
    place = f" ({node.source})" if node.source else ""
    return f"{node.type} {node.name}{place}"


def no_value_yet(node: Any, wanted: str, advice: str) -> ArgumentError:
    """The error for using a node where only a value would do."""
    return ArgumentError(
        f"a node has no value before the graph runs, so it cannot give {wanted}; found {describe(node)}; {advice}"
    )


def located(error: Located, op: str, inputs: Sequence[Any], scope: str, source: SourceLine | None) -> Located:
    """The error with the op that was to be built, its inputs, the layer, and the user's line."""
    lines = [f"{op}: {error}"]
    lines += [f"  input {position}: {describe(node)}" for position, node in enumerate(inputs)]
    lines += [f"  in layer: {scope}"] if scope else []
    return type(error)("\n".join(lines) + (f"{_AT}{source}" if source else ""))


def locates_errors(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorator of a function that users call: its errors tell its name and the user's line, if they do not yet."""

    @functools.wraps(function)
    def told(*args: Parameters.args, **keywords: Parameters.kwargs) -> Result:
        try:
            return function(*args, **keywords)
        except (GraphError, ArgumentError, FeedError, ModelError) as error:
            if _AT not in str(error):
                nodes = [value for value in args if hasattr(value, "type") and hasattr(value, "source")]
                error.args = (_located_text(error, _name_of(function, args), nodes),)
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


def _located_text(error: Exception, name: str, nodes: Sequence[Any]) -> str:
    bare = MiaiGraphError(str(error).removeprefix(f"{name}: "))
    return str(located(bare, name, nodes, current_context().scope, user_source_line()))
