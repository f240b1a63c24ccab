"""The steps of one model, each built when it is first needed and kept as long as its graph stays the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from miai_graph import losses
from miai_graph.executor import Executor
from miai_graph.garbage import no_search_for_garbage
from miai_graph.layers.layer import Layer
from miai_graph.model.compiled import Compiled
from miai_graph.model.labels import usual_target
from miai_graph.model.recomputation import is_limit
from miai_graph.model.steps import FeedSpec, Step, StepBuilder, StepKey
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.ops.leaves import variable_of
from miai_graph.state import Variable


class StepCache:
    """Steps by what they depend on, and by executor.

    Changing which layers are trainable builds another step, and changing back finds the first one; the learning rate
    and batch sizes do not matter, unless memory is limited: then a larger batch than before builds another one.

    Parameters
    ----------
    model : whose weights count
    builder : of its steps
    outputs : its output nodes
    """

    def __init__(self, model: Layer, builder: StepBuilder, outputs: Sequence[Node]) -> None:
        self._model = model
        self._builder = builder
        self._outputs = outputs
        self._steps: dict[tuple[Any, Executor], Step] = {}
        self._largest_batch = 0
        self._layers: list[Layer] | None = None
        self._weights: dict[tuple[bool, ...], _Weights] = {}

    def predict(self, executor: Executor) -> Step:
        return self._step("predict", executor, self._builder.predict_step)

    def test(self, compiled: Compiled, targets: Sequence[Array], weights: Sequence[Array], executor: Executor) -> Step:
        return self._test(compiled, _specs(targets), _specs(weights), executor)

    def train(
        self,
        compiled: Compiled,
        targets: Sequence[Array],
        weights: Sequence[Array],
        executor: Executor,
        batch_size: int = 1,
    ) -> Step:
        """The training step; its random numbers go on where the optimizer stands.

        Parameters
        ----------
        batch_size : the largest, for which memory may be limited
        """
        step = self._train(compiled, _specs(targets), _specs(weights), executor, batch_size)
        step.executable.step = int(compiled.optimizer.iterations.value)
        return step

    def usual(self, compiled: Compiled, executor: Executor, batch_size: int) -> list[Step]:
        """The steps for targets as they mostly are, without weights."""
        names = self._builder.output_names
        loss_list = compiled.losses_for(names)
        specs = []
        for place in compiled.outputs_with_targets(names):
            output = self._outputs[place]
            # "crossentropy" is taken as if there were one class number a sample.
            target = FeedSpec((), "int64").input(names[place], output)
            specs.append(usual_target(losses.for_output(loss_list[place], target, output), output))
        return [
            self._train(compiled, tuple(specs), (), executor, batch_size),
            self._test(compiled, tuple(specs), (), executor),
        ]

    def trained(self) -> list[Step]:
        """The training steps that are there, for any executor."""
        return [step for step in self._steps.values() if step.parameters]

    def of(self, executor: Executor) -> list[Step]:
        """All steps that are there for an executor."""
        return [step for (_, owner), step in self._steps.items() if owner is executor]

    def _test(
        self, compiled: Compiled, targets: tuple[FeedSpec, ...], weights: tuple[FeedSpec, ...], executor: Executor
    ) -> Step:
        key = StepKey(targets, weights, self._weights_now().penalized)
        return self._step(("test", key), executor, lambda who: self._builder.test_step(compiled, key, who))

    def _train(
        self,
        compiled: Compiled,
        targets: tuple[FeedSpec, ...],
        weights: tuple[FeedSpec, ...],
        executor: Executor,
        batch_size: int,
    ) -> Step:
        now = self._weights_now()
        self._largest_batch = max(self._largest_batch, batch_size)
        limited_batch = self._largest_batch if is_limit(compiled.recompute) else None
        key = StepKey(targets, weights, now.trained, now.modes, limited_batch)
        return self._step(
            ("train", key),
            executor,
            lambda who: self._builder.train_step(compiled, key, now.parameters, self._model.weight_constraints(), who),
        )

    def _weights_now(self) -> _Weights:
        """Looked at again if another layer is trainable, or steps were built, which may make weights."""
        if self._layers is None:
            self._layers = list(self._model.walk())
        flags = tuple(layer.trainable for layer in self._layers)
        if flags not in self._weights:
            self._weights[flags] = _weights_of(self._model)
        return self._weights[flags]

    def _step(self, kind: Any, executor: Executor, make: Callable[[Executor], Step]) -> Step:
        executor.require_open()
        key = kind, executor
        if key not in self._steps:
            self._steps = {key: step for key, step in self._steps.items() if not key[1].closed}
            with no_search_for_garbage():
                self._steps[key] = make(executor)
            self._layers, self._weights = None, {}
        return self._steps[key]


@dataclass(frozen=True)
class _Weights:
    """What steps depend on of a model's weights.

    parameters, trained : those that are trained now, as nodes and as variables
    penalized : of these, those with a penalty
    modes : whether layers are trainable that keep moving averages, for these stand still if they are not
    """

    parameters: Sequence[Node]
    trained: tuple[Variable, ...]
    penalized: tuple[Variable, ...]
    modes: tuple[bool, ...]


def _weights_of(model: Layer) -> _Weights:
    parameters = model.trainable_weights
    trained = tuple(variable_of(node) for node in parameters)
    layers = list(model.walk())
    penalized = (variable_of(node) for layer in layers for node, _ in layer._weight_regularizers)
    keeps = [layer for layer in layers if any(not variable_of(node).trainable for node in layer.weights)]
    return _Weights(
        parameters,
        trained,
        tuple(variable for variable in penalized if variable in set(trained)),
        tuple(layer.trainable for layer in keeps),
    )


def _specs(arrays: Sequence[Array]) -> tuple[FeedSpec, ...]:
    return tuple(FeedSpec.of(array) for array in arrays)
