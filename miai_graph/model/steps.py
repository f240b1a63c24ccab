"""The graphs of a model: one that trains on a batch, one that tests on it, one that predicts.

A training step is one graph: forward, backward and the optimizer's updates, those of layers' moving averages included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
import numpy as np

from miai_graph.context import UPDATE, build_context
from miai_graph.errors import ModelError
from miai_graph.executor import Executable, Executor, as_executor
from miai_graph.function import function
from miai_graph.gradient import grad
from miai_graph.graph import Graph
from miai_graph.layers.layer import Trace, collect_updates_and_losses
from miai_graph.model.compiled import Compiled, PlacedMetric, place_metrics, total_loss
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.ops.leaves import input as input_node
from miai_graph.ops.leaves import variable_of
from miai_graph.ops.structure import cast
from miai_graph.state import Variable

Build = Callable[..., list[Node]]


@dataclass(frozen=True)
class TargetSpec:
    """What is known of a target array before the graph is built: its shape without the batch, and its dtype."""

    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, array: Array) -> TargetSpec:
        dtype = {"f": "float", "b": "bool"}.get(array.dtype.kind, "int64")
        return cls(array.shape[1:], dtype)


@dataclass(frozen=True)
class StepKey:
    """What a step's graph depends on: if it is the same, the step need not be built again."""

    targets: tuple[TargetSpec, ...]
    weighted: bool
    trainable: tuple[Variable, ...]


@dataclass(frozen=True)
class Step:
    """A graph that is ready to run, and the meaning of its outputs.

    Attributes
    ----------
    graph : what it computes
    executable : runs it
    metrics : those whose totals and counts follow the loss among the outputs
    parameters : those that it trains
    """

    graph: Graph
    executable: Executable
    metrics: Sequence[PlacedMetric] = ()
    parameters: Sequence[Node] = ()


class StepBuilder:
    """Builds the steps of one model.

    Parameters
    ----------
    inputs : its input nodes
    output_names : one for each output
    build : called with inputs and the training mode; returns the outputs
    regularization : called without arguments; returns the penalties on the weights
    """

    def __init__(
        self, inputs: Sequence[Node], output_names: Sequence[str], build: Build, regularization: Callable[[], list[Node]]
    ) -> None:
        self.inputs = list(inputs)
        self.output_names = list(output_names)
        self.build = build
        self.regularization = regularization

    def predict_step(self, executor: str | Executor) -> Step:
        with collect_updates_and_losses():
            outputs = self.build(self.inputs, training=False)
        return self._compile(self.inputs, outputs, {}, executor)

    def test_step(self, compiled: Compiled, key: StepKey, executor: str | Executor) -> Step:
        inputs, loss, placed, totals, _ = self._loss_and_metrics(compiled, key, training=False)
        return self._compile(inputs, [loss, *totals], {}, executor, placed)

    def train_step(
        self,
        compiled: Compiled,
        key: StepKey,
        parameters: Sequence[Node],
        constraints: dict[Node, Callable[[Node], Node]],
        executor: str | Executor,
    ) -> Step:
        if not parameters:
            raise ModelError("expected a model with weights to train; found none. Set trainable = True on some layer")
        inputs, loss, placed, totals, traced = self._loss_and_metrics(compiled, key, training=True)
        optimizer = compiled.optimizer
        gradients = grad(optimizer.scale_loss(loss), parameters)
        updates = optimizer.updates(gradients, parameters)
        with build_context(phase=UPDATE):
            for weight, rule in constraints.items():
                if weight in updates:
                    updates[weight] = rule(updates[weight])
        step = self._compile(inputs, [loss, *totals], {**traced.updates, **updates}, executor, placed)
        return replace(step, parameters=tuple(parameters))

    def _loss_and_metrics(
        self, compiled: Compiled, key: StepKey, *, training: bool
    ) -> tuple[list[Node], Node, list[PlacedMetric], list[Node], Trace]:
        with collect_updates_and_losses() as traced:
            outputs = self.build(self.inputs, training=training)
        targets = [
            input_node(f"{name}_target", (None, *spec.shape), output.dtype if spec.dtype == "float" else spec.dtype)
            for name, spec, output in zip(self.output_names, key.targets, outputs, strict=True)
        ]
        weight = input_node("sample_weight", (None,), outputs[0].dtype) if key.weighted else None
        total, _ = total_loss(compiled, self.output_names, targets, outputs, weight)
        penalties = [*self.regularization(), *traced.losses]
        for penalty in penalties:
            total = penalty if total is None else total + cast(penalty, total.dtype)
        if total is None:
            raise ModelError("expected a loss; found none. Give compile(loss=...), or a layer that adds one")
        placed = place_metrics(compiled, self.output_names, targets, outputs, compiled.losses_for(self.output_names))
        totals: list[Node] = []
        for item in placed:
            chosen = weight if item.weighted else None
            totals += item.metric.totals(targets[item.output], outputs[item.output], chosen)
        inputs = [*self.inputs, *targets, *([] if weight is None else [weight])]
        return inputs, total, placed, totals, traced

    def _compile(
        self,
        inputs: Sequence[Node],
        outputs: Sequence[Node],
        updates: dict[Node, Node],
        executor: str | Executor,
        placed: Sequence[PlacedMetric] = (),
    ) -> Step:
        made = function(inputs, outputs, updates, as_executor(executor))
        return Step(made.graph, made.executable, placed)


class RunningTotals:
    """The means of an epoch so far: of the loss, weighted by batch sizes, and of the metrics, by their counts."""

    def __init__(self, metrics: Sequence[PlacedMetric]) -> None:
        self._metrics = metrics
        self._loss = 0.0
        self._samples = 0
        for placed in metrics:
            placed.metric.reset_state()

    def add(self, outputs: Sequence[Array], samples: int) -> None:
        """Count one batch, from the outputs of a step."""
        self._loss += float(outputs[0]) * samples
        self._samples += samples
        for place, placed in enumerate(self._metrics):
            placed.metric.add_totals(float(outputs[1 + 2 * place]), float(outputs[2 + 2 * place]))

    def logs(self) -> dict[str, float]:
        """The figures by name."""
        loss = self._loss / self._samples if self._samples else float(np.nan)
        return {"loss": loss, **{placed.name: float(placed.metric.result()) for placed in self._metrics}}


def step_key(targets: Sequence[Array], weighted: bool, parameters: Sequence[Node]) -> StepKey:
    """The key of the step for target arrays like these."""
    variables = tuple(variable_of(node) for node in parameters)
    return StepKey(tuple(TargetSpec.of(array) for array in targets), weighted, variables)
