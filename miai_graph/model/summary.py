"""The table of a model: its layers, what comes out of them, their weights and their work."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from miai_graph.graph import ancestors
from miai_graph.interpreter import bind_attributes
from miai_graph.layers.layer import Layer
from miai_graph.model.rebuild import flat_nodes
from miai_graph.node import Node
from miai_graph.terminal import print_text
from miai_graph.types import bind_type


def print_summary(model: Any, line_length: int | None, print_fn: Any, recomputed: Sequence[str] = ()) -> None:
    """See `Model.summary`.

    Parameters
    ----------
    recomputed : what is computed again in training, as text
    """
    from rich.console import Console
    from rich.table import Table

    outputs = flat_nodes(model._output_structure)
    flops = flops_by_layer(outputs)
    table = Table(title=f"{type(model).__name__} {model.name!r}", title_justify="left")
    for title, side in (
        ("layer (type)", "left"),
        ("output shape", "left"),
        ("parameters", "right"),
        ("flops", "right"),
    ):
        table.add_column(title, justify=side)  # type: ignore[arg-type]
    shapes = output_shapes(outputs)
    for layer in model.layers:
        table.add_row(
            f"{layer.name} ({type(layer).__name__})",
            shapes.get(layer, "?"),
            f"{layer.count_params():,}",
            f"{flops.get(layer.name, 0):,}" if outputs else "?",
        )
    total = sum(weight.type.size for weight in model.weights)
    trained = sum(weight.type.size for weight in model.trainable_weights)
    size = sum(weight.type.size_bytes for weight in model.weights)
    buffer = io.StringIO()
    console = Console(file=buffer, width=line_length or Console().width, markup=False)
    console.print(table)
    console.print(
        f"{total:,} parameters ({_readable(size)}), {trained:,} of them trained; "
        f"{sum(flops.values()):,} flops a sample",
        highlight=False,
    )
    for text in recomputed:
        console.print(text, highlight=False)
    (print_fn or print_text)(buffer.getvalue().rstrip())


def output_shapes(outputs: list[Node]) -> dict[Layer, str]:
    """The shapes of the outputs of the layers by which a model's outputs are computed, as text."""
    shapes: dict[Layer, str] = {}
    for node in ancestors(outputs):
        if node.call is not None and node.call.outputs is not None:
            shapes[node.call.layer] = ", ".join(str(own.shape) for own in flat_nodes(node.call.outputs))
    return shapes


def flops_by_layer(outputs: list[Node]) -> dict[str, int]:
    """The arithmetic of the forward pass on one sample, by outermost layer; that of single ops between under ""."""
    result: dict[str, int] = {}
    for node in ancestors(outputs):
        types = [bind_type(source.type, 1) for source in node.inputs]
        cost = node.op.cost(bind_type(node.type, 1), *types, **bind_attributes(node, 1))
        owner = "" if node.call is None else node.call.layer.name
        result[owner] = result.get(owner, 0) + cost.flops
    return result


def _readable(size_bytes: int) -> str:
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
