"""What `compile` was told: optimizer, losses and metrics, matched to the model's outputs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from miai_graph import losses, metrics, optimizers
from miai_graph.errors import ArgumentError, ModelError
from miai_graph.executor import Executor, as_executor, executor_names
from miai_graph.layers.nesting import mapped
from miai_graph.metrics import Metric
from miai_graph.model.rebuild import flat_nodes
from miai_graph.model.recomputation import as_recompute
from miai_graph.node import Node
from miai_graph.ops.casting import cast

_BY_SHAPE = ("crossentropy", "ce")
_METRICS_BY_SHAPE = ("accuracy", "acc", *_BY_SHAPE)
"""Names of which the meaning depends on the shapes of an output and its target."""


@dataclass
class Compiled:
    """Arguments of `compile`, checked, and what training has come to depend on since.

    loss, loss_weights, metrics, weighted_metrics : one for all outputs, a list, or a dictionary by output name
    seed, stream : where dropout and the shuffling take their numbers from
    recompute : what is computed again in the backward pass; see `recomputation.as_recompute`
    optimized : the parameters that the optimizer was built for, in that order
    """

    optimizer: Any
    loss: Any
    loss_weights: Any
    metrics: Any
    weighted_metrics: Any
    executor: str | Executor
    seed: int
    stream: int
    recompute: Any = None
    optimized: list[Node] = field(default_factory=list)

    def losses_for(self, names: Sequence[str]) -> list[Any]:
        """The loss of each output; None where there is none."""
        return per_output(self.loss, names, "loss")

    def loss_weights_for(self, names: Sequence[str]) -> list[float]:
        """How much the loss of each output counts."""
        weights = per_output(self.loss_weights, names, "loss_weights")
        return [1.0 if weight is None else float(weight) for weight in weights]

    def metrics_for(self, names: Sequence[str]) -> list[tuple[list[Any], list[Any]]]:
        """For each output its metrics, and those that take sample weights."""
        return list(zip(_metric_lists(self.metrics, names), _metric_lists(self.weighted_metrics, names), strict=True))

    def outputs_with_targets(self, names: Sequence[str]) -> list[int]:
        """The places of the outputs that have a loss or a metric, and so need a target."""
        needs = zip(self.losses_for(names), self.metrics_for(names), strict=True)
        return [place for place, (loss, found) in enumerate(needs) if loss is not None or any(found)]


def check_compiled(compiled: Compiled, names: Sequence[str] | None) -> Compiled:
    """The same with the names of optimizers and losses replaced by objects.

    Parameters
    ----------
    names : of the outputs, if they are known

    Raises
    ------
    ArgumentError, ExecutorError
        for unknown names, or entries for other outputs than these.
    """
    compiled.optimizer = optimizers.get(compiled.optimizer)
    if compiled.optimizer is None:
        raise ArgumentError("expected an optimizer; found None")
    compiled.loss = each_identifier(_checked_loss, compiled.loss)
    compiled.metrics = each_identifier(_checked_metric, compiled.metrics)
    compiled.weighted_metrics = each_identifier(_checked_metric, compiled.weighted_metrics)
    for weight in flat_nodes(compiled.loss_weights):
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise ArgumentError(f"expected numbers as loss_weights; found {weight!r}")
    compiled.recompute = as_recompute(compiled.recompute)
    if not isinstance(compiled.executor, str) or compiled.executor not in executor_names():
        as_executor(compiled.executor)
    if names is not None:
        compiled.loss_weights_for(names)
        compiled.outputs_with_targets(names)
    return compiled


def each_identifier(function: Any, value: Any) -> Any:
    """The function applied to each identifier in lists and dictionaries; one with a class name is an identifier."""
    if isinstance(value, Mapping) and "class_name" not in value:
        return {name: each_identifier(function, part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [each_identifier(function, part) for part in value]
    return function(value)


def _checked_loss(identifier: Any) -> Any:
    return identifier if identifier in _BY_SHAPE else losses.get(identifier)


def _checked_metric(identifier: Any) -> Any:
    if isinstance(identifier, str) and identifier.lower() in _METRICS_BY_SHAPE:
        return identifier
    metric = metrics.get(identifier)
    if isinstance(identifier, str) and isinstance(metric, Metric):
        metric.name = identifier  # as Keras reports it
    return metric


def serialized(value: Any, serialize: Any) -> Any:
    """Identifiers in lists and dictionaries as plain data; names stay names."""

    def plain(leaf: Any) -> Any:
        return leaf if isinstance(leaf, str) else serialize(leaf)

    return mapped(plain, value)


def per_output(value: Any, names: Sequence[str], what: str) -> list[Any]:
    """One entry for each output, from a single one, a list or a dictionary by output name."""
    if isinstance(value, Mapping):
        unknown = [name for name in value if name not in names]
        if unknown:
            raise ArgumentError(f"expected {what} for the outputs {', '.join(names)}; found {', '.join(unknown)}")
        return [value.get(name) for name in names]
    if isinstance(value, list | tuple):
        if len(value) != len(names):
            raise ArgumentError(f"expected one {what} for each of {len(names)} outputs; found {len(value)}")
        return list(value)
    return [value] * len(names)


def _metric_lists(identifiers: Any, names: Sequence[str]) -> list[list[Any]]:
    """The metrics of each output. A list of another length than there are outputs is for each of them."""
    if isinstance(identifiers, Mapping):
        chosen = per_output(identifiers, names, "metrics")
    elif isinstance(identifiers, list | tuple):
        nested = any(isinstance(part, list | tuple) or part is None for part in identifiers)
        for_each_output = nested or (len(names) > 1 and len(identifiers) == len(names))
        chosen = per_output(identifiers, names, "metrics") if for_each_output else [identifiers] * len(names)
    else:
        chosen = [identifiers] * len(names)
    return [flat_nodes(part) for part in chosen]


@dataclass(frozen=True)
class PlacedMetric:
    """A metric of one output, with the name under which it is reported."""

    metric: Metric
    output: int
    name: str
    weighted: bool


def place_metrics(
    compiled: Compiled,
    names: Sequence[str],
    targets: Sequence[Node | None],
    outputs: Sequence[Node],
    taken: Sequence[str],
) -> list[PlacedMetric]:
    """The metrics of all outputs, with "accuracy" and the like made fit for the output's shape.

    Parameters
    ----------
    taken : names under which something else is reported
    """
    placed: list[PlacedMetric] = []
    loss_list = compiled.losses_for(names)
    lists = compiled.metrics_for(names)
    for weighted, output in itertools.product((False, True), range(len(outputs))):
        target = targets[output]
        for identifier in lists[output][weighted]:
            assert target is not None
            loss = losses.for_output(loss_list[output], target, outputs[output])
            metric = metrics.for_outputs(identifier, target, outputs[output], loss)
            prefix = "" if len(names) == 1 else f"{names[output]}_"
            names_taken = [*taken, *(other.name for other in placed)]
            name = f"{prefix}{metric.name}"
            if weighted and name in names_taken:
                name = f"{prefix}weighted_{metric.name}"
            placed.append(PlacedMetric(metric, output, distinct(name, names_taken), weighted))
    return placed


def distinct(name: str, taken: Sequence[str]) -> str:
    """The name, with a number behind it if it is taken."""
    number = 1
    candidate = name
    while candidate in taken:
        candidate = f"{name}_{number}"
        number += 1
    return candidate


def output_losses(
    compiled: Compiled,
    names: Sequence[str],
    targets: Sequence[Node | None],
    outputs: Sequence[Node],
    weights: Sequence[Node | None],
) -> tuple[dict[str, Node], Node | None]:
    """The loss of each output that has one, by the output's name, and their weighted sum.

    Raises
    ------
    ModelError
        if a loss is not a scalar.
    """
    parts: dict[str, Node] = {}
    total: Node | None = None
    rows = zip(
        names, compiled.losses_for(names), compiled.loss_weights_for(names), targets, outputs, weights, strict=True
    )
    for name, identifier, factor, target, output, weight in rows:
        if identifier is None:
            continue
        value = losses.for_output(identifier, target, output)(target, output, sample_weight=weight)
        if value.ndim:
            raise ModelError(
                f"expected a loss that is a scalar, for output {name!r}; found one of shape {value.shape}. "
                "Give it another reduction, such as 'sum_over_batch_size'"
            )
        parts[name] = value
        scaled = value if factor == 1.0 else value * factor
        total = scaled if total is None else total + cast(scaled, total.dtype)
    return parts, total
