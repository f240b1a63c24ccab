"""What `compile` was told: optimizer, losses and metrics, matched to the model's outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from miai_graph import losses, metrics
from miai_graph.errors import ArgumentError
from miai_graph.executor import Executor
from miai_graph.losses import Loss
from miai_graph.metrics import Metric
from miai_graph.node import Node
from miai_graph.ops.structure import cast


@dataclass
class Compiled:
    """Arguments of `compile`, as the user gave them.

    loss, loss_weights, metrics, weighted_metrics : one for all outputs, a list, or a dictionary by output name
    """

    optimizer: Any
    loss: Any
    loss_weights: Any
    metrics: Any
    weighted_metrics: Any
    executor: str | Executor

    def losses_for(self, names: Sequence[str]) -> list[Loss | None]:
        """The loss of each output; None where there is none."""
        return [losses.get(identifier) for identifier in per_output(self.loss, names, "loss")]

    def loss_weights_for(self, names: Sequence[str]) -> list[float]:
        weights = per_output(self.loss_weights, names, "loss_weights")
        return [1.0 if weight is None else float(weight) for weight in weights]


def per_output(value: Any, names: Sequence[str], what: str) -> list[Any]:
    """One entry for each output, from a single one, a list or a dictionary by output name."""
    if isinstance(value, Mapping) and "class_name" not in value:
        unknown = [name for name in value if name not in names]
        if unknown:
            raise ArgumentError(f"expected {what} for the outputs {', '.join(names)}; found {', '.join(unknown)}")
        return [value.get(name) for name in names]
    if isinstance(value, list | tuple):
        if len(value) != len(names):
            raise ArgumentError(f"expected one {what} for each of {len(names)} outputs; found {len(value)}")
        return list(value)
    return [value] * len(names)


@dataclass(frozen=True)
class PlacedMetric:
    """A metric of one output, with the name under which it is reported."""

    metric: Metric
    output: int
    name: str
    weighted: bool


def place_metrics(
    compiled: Compiled, names: Sequence[str], targets: Sequence[Node], outputs: Sequence[Node], loss_list: Sequence[Any]
) -> list[PlacedMetric]:
    """The metrics of all outputs, with "accuracy" and the like made fit for the output's shape."""
    placed: list[PlacedMetric] = []
    for identifiers, weighted in ((compiled.metrics, False), (compiled.weighted_metrics, True)):
        for output, wanted in enumerate(_lists_per_output(identifiers, names)):
            for identifier in wanted:
                metric = metrics.for_outputs(identifier, targets[output], outputs[output], loss_list[output])
                name = metric.name if len(names) == 1 else f"{names[output]}_{metric.name}"
                placed.append(PlacedMetric(metric, output, _distinct(name, placed), weighted))
    return placed


def _lists_per_output(identifiers: Any, names: Sequence[str]) -> list[list[Any]]:
    if identifiers is None:
        return [[] for _ in names]
    if isinstance(identifiers, Mapping):
        chosen = per_output(identifiers, names, "metrics")
    elif len(names) == 1:
        chosen = [identifiers]
    elif isinstance(identifiers, list | tuple) and all(isinstance(part, list | tuple) for part in identifiers):
        chosen = per_output(identifiers, names, "metrics")
    else:
        chosen = [identifiers] * len(names)
    return [[] if part is None else list(part) if isinstance(part, list | tuple) else [part] for part in chosen]


def _distinct(name: str, placed: Sequence[PlacedMetric]) -> str:
    taken = {metric.name for metric in placed} | {"loss"}
    number = 1
    candidate = name
    while candidate in taken:
        candidate = f"{name}_{number}"
        number += 1
    return candidate


def total_loss(
    compiled: Compiled, names: Sequence[str], targets: Sequence[Node], outputs: Sequence[Node], weight: Node | None
) -> tuple[Node | None, list[Node]]:
    """The weighted sum of the outputs' losses, and each of them."""
    parts: list[Node] = []
    total: Node | None = None
    for loss, factor, target, output in zip(
        compiled.losses_for(names), compiled.loss_weights_for(names), targets, outputs, strict=True
    ):
        if loss is None:
            continue
        value = loss(target, output, sample_weight=weight)
        parts.append(value)
        scaled = value if factor == 1.0 else value * factor
        total = scaled if total is None else total + cast(scaled, total.dtype)
    return total, parts
