"""From what users hand to a model to data that its steps can be fed: matched to inputs and outputs, and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from miai_graph import losses
from miai_graph.errors import FeedError
from miai_graph.feeding import check_batch
from miai_graph.layers.core import Input
from miai_graph.model.compiled import Compiled
from miai_graph.model.data import (
    Arrays,
    Dataset,
    as_arrays,
    as_samples,
    as_weights,
    check_lengths,
    check_no_nan,
    with_last_axis,
)
from miai_graph.model.labels import check_labels_of
from miai_graph.model.rebuild import flat_nodes
from miai_graph.model.steps import FeedSpec
from miai_graph.node import Node

DEFAULT_BATCH_SIZE = 32


class Intake:
    """The entrance of one model.

    Parameters
    ----------
    inputs : its input nodes
    input_names : what they are called in dictionaries
    outputs, output_names : likewise
    compiled : for its losses and metrics; None for prediction, where there are no targets
    """

    def __init__(
        self,
        inputs: Sequence[Node],
        input_names: Sequence[str],
        outputs: Sequence[Node],
        output_names: Sequence[str],
        compiled: Compiled | None,
    ) -> None:
        self.inputs = inputs
        self.input_names = input_names
        self.outputs = outputs
        self.output_names = output_names
        self.compiled = compiled

    def dataset(self, x: Any, y: Any = None, sample_weight: Any = None) -> Dataset:
        """Arrays as a dataset.

        Raises
        ------
        ArgumentError, FeedError
            if they do not fit the model, in a message that says how.
        """
        inputs = with_last_axis(as_arrays(x, self.input_names, "input"), self.inputs)
        places = [] if self.compiled is None else self.compiled.outputs_with_targets(self.output_names)
        # Inputs with a fixed number of rows take that many at a time.
        check_batch(self.inputs, [array[: self._fixed_size] for array in inputs])
        targets, weights = self._targets(y, places), self._weights(sample_weight, places)
        check_lengths(Dataset(inputs, targets, weights))
        return Dataset(inputs, self._checked_targets(targets, places), weights, self._fixed_size is None)

    @property
    def _fixed_size(self) -> int | None:
        return next((node.shape[0] for node in self.inputs if node.ndim and node.shape[0] is not None), None)

    def batch_size(self, batch_size: int | None, samples: int) -> int:
        """The batch size given, or the usual one; FeedError if the inputs are for another."""
        fixed = self._fixed_size
        if fixed is not None and (batch_size not in (None, fixed) or samples % fixed):
            raise FeedError(
                f"expected batches of {fixed} samples, which the model's inputs are for; found {samples} samples and "
                f"batch_size={batch_size}"
            )
        return batch_size or fixed or DEFAULT_BATCH_SIZE

    def _targets(self, y: Any, places: Sequence[int]) -> Arrays:
        if y is None or not places:
            if places:
                raise FeedError(f"expected targets for {', '.join(self._names(places))}; found None as y")
            return []
        targets = as_arrays(_chosen(y, places, self.output_names), self._names(places), "target")
        for place, target in zip(places, targets, strict=True):
            check_no_nan(target, f"target {self.output_names[place]!r}")
        return targets

    def _weights(self, sample_weight: Any, places: Sequence[int]) -> Arrays:
        if sample_weight is not None and not places:
            raise FeedError("expected no sample_weight for a model without targets; found some")
        return as_weights(_chosen(sample_weight, places, self.output_names), self._names(places))

    def _names(self, places: Sequence[int]) -> list[str]:
        return [self.output_names[place] for place in places]

    def _checked_targets(self, targets: Arrays, places: Sequence[int]) -> Arrays:
        if self.compiled is None or not targets:
            return targets
        loss_list = self.compiled.losses_for(self.output_names)
        checked = []
        for place, target in zip(places, targets, strict=True):
            output, name = self.outputs[place], self.output_names[place]
            loss = losses.for_output(loss_list[place], FeedSpec.of(target).input(name, output), output)
            checked.append(check_labels_of(loss, target, output, name))
        return checked


def _chosen(value: Any, places: Sequence[int], names: Sequence[str]) -> Any:
    """Of a list or dictionary for all outputs, the entries for some."""
    if len(places) == len(names):
        return value
    if isinstance(value, Mapping) and set(value) <= set(names):
        return {name: value[name] for place, name in enumerate(names) if place in places and name in value}
    if isinstance(value, list | tuple) and len(value) == len(names):
        return [value[place] for place in places]
    return value


def inputs_like(x: Any) -> Any:
    """Inputs for a model that was not told its own, made for data: a node, or a list or dictionary of them.

    Raises
    ------
    FeedError
        if the data are not arrays of numbers.
    """
    if isinstance(x, Mapping):
        return {name: _input_like(part, str(name)) for name, part in x.items()}
    if isinstance(x, list | tuple) and len(x) and all(hasattr(part, "__array__") for part in x):
        nodes = [_input_like(part) for part in x]
        return nodes if len(nodes) > 1 else nodes[0]
    return _input_like(x)


def _input_like(value: Any, name: str | None = None) -> Node:
    array = as_samples(value, "input" if name is None else f"input {name!r}")
    return Input(array.shape[1:], dtype="float32" if array.dtype.kind == "f" else array.dtype.name, name=name)


def input_names(inputs: Any) -> list[str]:
    """What inputs are called in dictionaries of data: by the keys of a dictionary, else by their own names."""
    return list(inputs) if isinstance(inputs, Mapping) else [node.name for node in flat_nodes(inputs)]
