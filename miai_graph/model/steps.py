"""The graphs of a model: one that trains on a batch, one that tests on it, one that predicts.

A training step is one graph: forward, backward and the optimizer's updates, those of layers' moving averages included.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from miai_graph.context import UPDATE, build_context, current_seed, warn_user
from miai_graph.errors import ModelError
from miai_graph.executor import Executable, Executor
from miai_graph.function import function
from miai_graph.gradient import derivatives
from miai_graph.graph import Graph, ancestors
from miai_graph.layers.layer import Trace, collect_updates_and_losses
from miai_graph.messages import describe
from miai_graph.model.compiled import Compiled, PlacedMetric, distinct, output_losses, place_metrics
from miai_graph.model.recomputation import chosen_segments
from miai_graph.node import Node, apply, reapply
from miai_graph.op import Array
from miai_graph.ops.casting import cast
from miai_graph.ops.leaves import input as input_node
from miai_graph.ops.leaves import is_variable, variable_of
from miai_graph.ops.random import RandomOp
from miai_graph.ops.structure import zeros_like
from miai_graph.recompute import SegmentOf
from miai_graph.state import Variable
from miai_graph.types import BATCH, BatchDim

Build = Callable[..., list[Node]]

STREAMS_A_STEP = 4096


@dataclass(frozen=True)
class FeedSpec:
    """What is known of a target or of weights before the graph is built: the shape without the batch, and the dtype."""

    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, array: Array) -> FeedSpec:
        dtype = {"f": "float", "b": "bool"}.get(array.dtype.kind, "int64")
        return cls(array.shape[1:], dtype)

    def input(self, name: str, output: Node) -> Node:
        """An input for it; floats are of the dtype of the output that it is for."""
        first = output.type.shape[0] if output.type.shape and not isinstance(output.type.shape[0], BatchDim) else BATCH
        return input_node(name, (first, *self.shape), output.dtype if self.dtype == "float" else self.dtype)


@dataclass(frozen=True)
class StepKey:
    """What a step's graph depends on: if it is the same, the step need not be built again.

    targets, weights : for each output with a target
    trained : the variables that count: those that are trained, or those with penalties
    modes : which layers are trainable, where that matters besides
    limited_batch : the size of the batch for which memory is limited, if it is
    """

    targets: tuple[FeedSpec, ...]
    weights: tuple[FeedSpec, ...]
    trained: tuple[Variable, ...]
    modes: tuple[bool, ...] = ()
    limited_batch: int | None = None


@dataclass(frozen=True)
class Step:
    """A graph that is ready to run, and the meaning of its outputs.

    Attributes
    ----------
    graph : what it computes
    executable : runs it
    losses : the names under which its first outputs are reported
    metrics : those whose totals and counts follow
    parameters : those that it trains
    """

    graph: Graph
    executable: Executable
    losses: Sequence[str] = ()
    metrics: Sequence[PlacedMetric] = ()
    parameters: Sequence[Node] = ()

    @property
    def figures(self) -> list[str]:
        """The names of all that it reports."""
        return [*self.losses, *(placed.name for placed in self.metrics)]


@dataclass
class _Figures:
    """What training and testing steps have in common."""

    inputs: list[Node]
    losses: dict[str, Node]
    metrics: list[PlacedMetric]
    totals: list[Node]
    trace: Trace

    @property
    def outputs(self) -> list[Node]:
        return [*self.losses.values(), *self.totals]


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
        self,
        inputs: Sequence[Node],
        output_names: Sequence[str],
        build: Build,
        regularization: Callable[[], list[Node]],
    ) -> None:
        self.inputs = list(inputs)
        self.output_names = list(output_names)
        self.build = build
        self.regularization = regularization

    def predict_step(self, executor: Executor) -> Step:
        """From inputs to outputs."""
        with collect_updates_and_losses():
            outputs = self.build(training=False)
        return _compiled(self.inputs, outputs, {}, executor)

    def test_step(self, compiled: Compiled, key: StepKey, executor: Executor) -> Step:
        """From inputs and targets to losses and metrics."""
        figures = self._figures(compiled, key, training=False)
        step = _compiled(figures.inputs, figures.outputs, {}, executor)
        return replace(step, losses=list(figures.losses), metrics=figures.metrics)

    def train_step(
        self,
        compiled: Compiled,
        key: StepKey,
        parameters: Sequence[Node],
        constraints: dict[Node, Callable[[Node], Node]],
        executor: Executor,
    ) -> Step:
        """The same in training mode, with updates of parameters, the optimizer's state and moving averages.

        Parameters
        ----------
        constraints : what is done to parameters after their update

        Raises
        ------
        ModelError
            if there is nothing to train, no loss, or not enough memory.
        ArgumentError
            if layers are to be computed again that there are not.
        """
        if not parameters:
            raise ModelError("expected a model with weights to train; found none. Set trainable = True on some layer")
        figures = self._figures(compiled, key, training=True)
        loss = compiled.optimizer.scale_loss(figures.losses["loss"])

        def build(segment_of: SegmentOf | None) -> Graph:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outputs, updates = _trained(compiled, figures, loss, parameters, constraints, segment_of)
            return Graph(*with_distinct_variables(outputs, updates))

        chosen = chosen_segments(compiled.recompute, ancestors([loss]), build, key.limited_batch or 1)
        outputs, updates = _trained(compiled, figures, loss, parameters, constraints, chosen)
        step = _compiled(figures.inputs, outputs, updates, executor)
        compiled.optimized += [node for node in parameters if node not in set(compiled.optimized)]
        return replace(step, losses=list(figures.losses), metrics=figures.metrics, parameters=tuple(parameters))

    def _figures(self, compiled: Compiled, key: StepKey, *, training: bool) -> _Figures:
        names = self.output_names
        with collect_updates_and_losses() as trace:
            outputs = self.build(training=training)
        targets, weights, fed = self._feeds(compiled, key, outputs)
        parts, total = output_losses(compiled, names, targets, outputs, weights)
        for penalty in [*self.regularization(), *trace.losses]:
            total = penalty if total is None else total + cast(penalty, total.dtype)
        if total is None:
            raise ModelError("expected a loss; found none. Give compile(loss=...), or a layer that adds one")
        # As in Keras, the outputs' own losses are reported where there are several outputs.
        losses = {"loss": total} | {f"{name}_loss": part for name, part in parts.items() if len(names) > 1}
        placed = place_metrics(compiled, names, targets, outputs, list(losses))
        totals: list[Node] = []
        for item in placed:
            chosen = weights[item.output] if item.weighted else None
            totals += item.metric.totals(targets[item.output], outputs[item.output], chosen)
        return _Figures([*self.inputs, *fed], losses, placed, totals, trace)

    def _feeds(
        self, compiled: Compiled, key: StepKey, outputs: Sequence[Node]
    ) -> tuple[list[Node | None], list[Node | None], list[Node]]:
        """For each output its target and weights, if it has any, and all of them in the order in which they are fed."""
        places = compiled.outputs_with_targets(self.output_names)
        targets: list[Node | None] = [None] * len(outputs)
        weights: list[Node | None] = [None] * len(outputs)
        fed: list[Node] = []
        for chosen, specs, suffix in ((targets, key.targets, "target"), (weights, key.weights, "sample_weight")):
            # Without targets, all losses come from layers.
            for place, spec in zip(places if specs else [], specs, strict=True):
                taken = [node.name for node in (*self.inputs, *fed)]
                node = spec.input(distinct(f"{self.output_names[place]}_{suffix}", taken), outputs[place])
                chosen[place] = node
                fed.append(node)
        return targets, weights, fed


def _trained(
    compiled: Compiled,
    figures: _Figures,
    loss: Node,
    parameters: Sequence[Node],
    constraints: Mapping[Node, Callable[[Node], Node]],
    recompute: SegmentOf | None,
) -> tuple[list[Node], dict[Node, Node]]:
    """The outputs and updates of a training step.

    Parameters
    ----------
    loss : what is differentiated
    recompute : which values are computed again for that
    """
    gradients = gradients_of(loss, parameters, recompute)
    updates = {**figures.trace.updates, **compiled.optimizer.updates(gradients, parameters)}
    with build_context(phase=UPDATE):
        for weight, rule in constraints.items():
            if weight in updates:
                updates[weight] = rule(updates[weight])
    nodes = with_own_streams([*figures.outputs, *updates.values()], compiled.seed, compiled.stream)
    count = len(figures.outputs)
    return nodes[:count], dict(zip(updates, nodes[count:], strict=True))


def _compiled(
    inputs: Sequence[Node], outputs: Sequence[Node], updates: Mapping[Node, Node], executor: Executor
) -> Step:
    made = function(inputs, *with_distinct_variables(outputs, updates), executor)
    return Step(made.graph, made.executable)


def with_distinct_variables(
    outputs: Sequence[Node], updates: Mapping[Node, Node]
) -> tuple[list[Node], dict[Node, Node]]:
    """Outputs and updates in which no two variables have one name; see `with_distinct_names`."""
    nodes = with_distinct_names([*outputs, *updates, *updates.values()])
    targets, values = nodes[len(outputs) :][: len(updates)], nodes[len(outputs) + len(updates) :]
    return nodes[: len(outputs)], dict(zip(targets, values, strict=True))


def with_distinct_names(nodes: Sequence[Node]) -> list[Node]:
    """The nodes, with variables read under another name where two have the same, as in models of alike models."""
    owners: dict[str, Variable] = {}
    replacements: dict[Node, Node] = {}
    aliases: dict[Variable, str] = {}
    for node in ancestors(nodes):
        if not is_variable(node):
            continue
        key = variable_of(node)
        if owners.setdefault(node.name, key) is not key:
            alias = aliases.setdefault(key, distinct(node.name, [*owners]))
            owners[alias] = key
            replacements[node] = apply(node.op, [], node.attributes, alias, exact_name=True)
    return _with_replaced(nodes, replacements)


def gradients_of(loss: Node, parameters: Sequence[Node], recompute: SegmentOf | None = None) -> list[Node]:
    """The gradients of a model's loss; a warning for parameters on which it does not depend.

    Raises
    ------
    ModelError
        if it depends on none of them.
    """
    found = derivatives(loss, parameters, recompute=recompute)
    idle = [node.name for node, gradient in zip(parameters, found, strict=True) if gradient is None]
    if len(idle) == len(parameters):
        raise ModelError(
            f"expected a loss that depends on the weights through ops with derivatives; found {describe(loss)}. "
            "Comparisons, argmax and casts to integers have none"
        )
    if idle:
        warn_user(f"expected a loss that depends on all trained weights; found that it does not on {', '.join(idle)}")
    return [zeros_like(p) if gradient is None else gradient for p, gradient in zip(parameters, found, strict=True)]


def with_own_streams(nodes: Sequence[Node], seed: int, stream: int) -> list[Node]:
    """The nodes, with the random ones among their ancestors drawing from a model's own streams, in order.

    So a model draws the same numbers whenever its step is built, and after it was loaded from a file. A seed that is
    not the one of `set_seed`, but a layer's own, stays.
    """
    attributes: dict[Node, Mapping[str, Any]] = {}
    numbers: dict[tuple[int, int], int] = {}
    for node in ancestors(nodes):
        if isinstance(node.op, RandomOp):
            own_seed = node.attributes["seed"]
            # What is drawn again must be what was drawn before.
            number = numbers.setdefault((own_seed, node.attributes["stream"]), len(numbers))
            attributes[node] = {
                **node.attributes,
                "seed": seed if own_seed == current_seed() else own_seed,
                "stream": (stream * STREAMS_A_STEP + number) % 2**32,
            }
    return _with_replaced(nodes, {}, attributes)


def _with_replaced(
    nodes: Sequence[Node],
    replacements: Mapping[Node, Node],
    attributes: Mapping[Node, Mapping[str, Any]] = MappingProxyType({}),
) -> list[Node]:
    """The nodes computed from others, by node, and with other attributes."""
    replaced = dict(replacements)
    for node in ancestors(nodes) if replacements or attributes else ():
        if node not in replaced and (node in attributes or any(source in replaced for source in node.inputs)):
            inputs = [replaced.get(source, source) for source in node.inputs]
            replaced[node] = reapply(node, inputs, attributes.get(node))
    return [replaced.get(node, node) for node in nodes]
