"""What a layer is: weights, and the nodes that it builds from its inputs.

Calling a layer on nodes builds nodes, at once. A `LayerCall` remembers which layer was called on what, and every node built by the
call points to it: so a model can build the same graph again for training, and pictures and files can speak of layers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from miai_graph import constraints, initializers, regularizers
from miai_graph.context import build_context, current_context, name_scope, unique_name
from miai_graph.errors import ArgumentError, ModelError, ShapeError
from miai_graph.node import Node, describe
from miai_graph.op import Array, as_node
from miai_graph.ops.elementwise import identity
from miai_graph.ops.leaves import assign, batch_size, parameter, variable, variable_of
from miai_graph.ops.structure import cast
from miai_graph.registry import Configurable, Registry
from miai_graph.types import as_dtype

registry = Registry("a layer", Configurable)

Nodes = Node | Sequence[Node]


@dataclass(eq=False)
class LayerCall:
    """One call of a layer, outermost if layers call each other."""

    layer: Layer
    inputs: Nodes
    arguments: Mapping[str, Any]
    outputs: Nodes | None = None


@dataclass
class Trace:
    """What layers leave behind besides their outputs, while a model's graph is built.

    updates : new values of variables that are not trained, such as moving averages
    losses : scalars to be added to the loss
    """

    updates: dict[Node, Node] = field(default_factory=dict)
    losses: list[Node] = field(default_factory=list)


_trace: ContextVar[Trace | None] = ContextVar("miai_graph_trace", default=None)


@contextmanager
def collect_updates_and_losses() -> Iterator[Trace]:
    """Within the block, layers that are called leave their updates and losses in the `Trace`."""
    current = Trace()
    token = _trace.set(current)
    try:
        yield current
    finally:
        _trace.reset(token)


_mode: ContextVar[bool] = ContextVar("miai_graph_training", default=False)


@contextmanager
def training_mode(training: bool | None) -> Iterator[None]:
    """Within the block, layers that are not told otherwise are called for training, or for use; None: as before."""
    token = _mode.set(_mode.get() if training is None else training)
    try:
        yield
    finally:
        _mode.reset(token)


class Layer(Configurable):
    """A part of a model, with weights of its own.

    A subclass defines `call`, which builds nodes from nodes, and, if it has weights, `build`, which makes them with `add_weight`
    when the shape of the input is known. It keeps the arguments of its constructor as attributes of the same names, so that it
    can be saved.

    >>> class Scale(mg.layers.Layer):
    ...     def build(self, input_shape):
    ...         self.factor = self.add_weight((input_shape[-1],), "ones", name="factor")
    ...     def call(self, x):
    ...         return x * self.factor

    Parameters
    ----------
    trainable : whether optimizers may change the weights; it may be set later
    name : unique in a model; by default the class's name with a number
    dtype : of the weights and of the floats that are computed; float32 by default
    activity_regularizer : a penalty on the output, added to the loss of a model in training, divided by the batch size

    Attributes
    ----------
    built : whether the weights exist
    updates : new values of variables by node, from the last call in training outside of a model
    """

    def __init__(
        self,
        *,
        trainable: bool = True,
        name: str | None = None,
        dtype: Any = None,
        activity_regularizer: Any = None,
    ) -> None:
        if name is not None and (not isinstance(name, str) or not name or "/" in name):
            raise ArgumentError(f"expected a name that is a non-empty string without '/'; found {name!r}")
        self.name = name or unique_name(_snake_case(type(self).__name__))
        self.dtype = as_dtype(dtype or "float32")
        self.activity_regularizer = regularizers.get(activity_regularizer)
        self.built = False
        self.updates: dict[Node, Node] = {}
        self._trainable = bool(trainable)
        self._own_weights: list[Node] = []
        self._sublayers: dict[str, list[Layer]] = {}
        self._weight_regularizers: list[tuple[Node, Callable[[Node], Node]]] = []
        self._weight_constraints: list[tuple[Node, Callable[[Node], Node]]] = []
        self._input_shape: Any = None

    def __setattr__(self, attribute: str, value: Any) -> None:
        super().__setattr__(attribute, value)
        if attribute.startswith("_") or "_sublayers" not in self.__dict__:
            return
        found = [part for part in _parts(value) if isinstance(part, Layer)]
        self._sublayers.pop(attribute, None)
        if found:
            self._sublayers[attribute] = found

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    # What subclasses define

    def build(self, input_shape: Any) -> None:
        """Make the weights. `input_shape` is a tuple with None for the batch, or a list of them for several inputs."""

    def call(self, inputs: Any, **arguments: Any) -> Any:
        """The nodes of the output. A parameter `training` gets whether the graph is for training."""
        raise ModelError(f"expected layer class {type(self).__name__} to define call; found none")

    # Weights

    def add_weight(
        self,
        shape: Sequence[int] = (),
        initializer: Any = "glorot_uniform",
        dtype: Any = None,
        trainable: bool = True,
        regularizer: Any = None,
        constraint: Any = None,
        name: str = "weight",
    ) -> Node:
        """Make a weight: a parameter, or, if it is not trainable, a variable.

        Parameters
        ----------
        shape : integers
        initializer, regularizer, constraint : names or objects
        name : what it does in the layer: "kernel", "bias" …
        """
        dims = tuple(shape)
        if any(dim is None for dim in dims):
            raise ShapeError(f"expected a weight {name!r} of known shape in layer {self.name!r}; found {dims}")
        dtype = as_dtype(dtype or self.dtype)
        value = initializers.get(initializer)(dims, dtype)
        with build_context(call=None):
            weight = (parameter if trainable else variable)(np.asarray(value, dtype), name=name)
        self._own_weights.append(weight)
        if regularizer is not None:
            self._weight_regularizers.append((weight, regularizers.get(regularizer)))
        if constraint is not None:
            self._weight_constraints.append((weight, constraints.get(constraint)))
        return weight

    def add_update(self, weight: Node, value: Callable[[Node], Node]) -> None:
        """Give a weight a new value after each training step.

        Parameters
        ----------
        value : gets the value before (or the one that an earlier call in the same model gave it) and returns the new one
        """
        updates = self.updates if (current := _trace.get()) is None else current.updates
        updates[weight] = value(updates.get(weight, weight))

    def add_loss(self, loss: Node) -> None:
        """Add a scalar to the loss of the model in which the layer is called."""
        if loss.ndim:
            raise ShapeError(f"expected a scalar to add to the loss; found {describe(loss)}")
        if (current := _trace.get()) is not None:
            current.losses.append(loss)

    @property
    def sublayers(self) -> list[Layer]:
        """The layers that are attributes of this one, or in lists that are."""
        return list(dict.fromkeys(layer for layers in self._sublayers.values() for layer in layers))

    def walk(self) -> Iterator[Layer]:
        """This layer and all below it, each once, outer ones first."""
        seen: set[int] = set()
        waiting: list[Layer] = [self]
        while waiting:
            layer = waiting.pop(0)
            if id(layer) not in seen:
                seen.add(id(layer))
                yield layer
                waiting = [*layer.sublayers, *waiting]

    @property
    def weights(self) -> list[Node]:
        """All weights, those of this layer first, as nodes."""
        return [weight for layer in self.walk() for weight in layer._own_weights]

    @property
    def trainable_weights(self) -> list[Node]:
        """The parameters that optimizers may change now."""
        return list(self._trainable_weights())

    def _trainable_weights(self) -> Iterator[Node]:
        if self._trainable:
            yield from (weight for weight in self._own_weights if variable_of(weight).trainable)
            for layer in self.sublayers:
                yield from layer._trainable_weights()

    @property
    def non_trainable_weights(self) -> list[Node]:
        trainable = set(self.trainable_weights)
        return [weight for weight in self.weights if weight not in trainable]

    variables = weights
    trainable_variables = trainable_weights

    @property
    def trainable(self) -> bool:
        return self._trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        """Freeze or unfreeze this layer and all below it; a compiled model takes note at its next fit."""
        for layer in self.walk():
            layer._trainable = bool(value)

    def get_weights(self) -> list[Array]:
        """Copies of the weights' values."""
        return [weight.value for weight in self.weights]

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set the weights' values, in the order of `get_weights`: all of them, or none if one does not fit.

        Raises
        ------
        ArgumentError
            if there are more or fewer values than weights.
        ShapeError
            if a value is of another shape than its weight.
        """
        own = self.weights
        if len(weights) != len(own):
            raise ArgumentError(f"expected {len(own)} arrays for the weights of {self.name!r}; found {len(weights)}")
        arrays = [np.asarray(value) for value in weights]
        for weight, array in zip(own, arrays, strict=True):
            if array.shape != weight.shape:
                raise ShapeError(f"expected an array of shape {weight.shape} for {weight.name}; found {array.shape}")
        for weight, array in zip(own, arrays, strict=True):
            assign(weight, array)

    def count_params(self) -> int:
        """The number of elements in all weights."""
        return sum(weight.type.size for weight in self.weights)

    def regularization_losses(self) -> list[Node]:
        """The penalties on weights that are trained now, as scalars. Built anew at each call."""
        trained = set(self.trainable_weights)
        losses = []
        for layer in self.walk():
            with name_scope(layer.name):
                losses += [rule(weight) for weight, rule in layer._weight_regularizers if weight in trained]
        return losses

    def weight_constraints(self) -> dict[Node, Callable[[Node], Node]]:
        """What is done to weights after each update."""
        return {weight: rule for layer in self.walk() for weight, rule in layer._weight_constraints}

    # Calling

    def __call__(self, inputs: Any, *, training: bool | None = None, **arguments: Any) -> Any:
        """Build the nodes of the output.

        Parameters
        ----------
        inputs : a node, or a list of nodes; arrays become constants
        training : whether the graph is for training (dropout drops, batch statistics are used); None: as the model decides
        """
        nodes = self._admit(inputs)
        outer = current_context().call
        call = outer if outer is not None else LayerCall(self, nodes, {**arguments, "training": training})
        mode = _mode.get() if training is None else training
        with build_context(call=call), self._scope(), training_mode(mode):
            self._ensure_built(nodes)
            if takes_training(self):
                arguments["training"] = mode
            outputs = self._owned(self.call(nodes, **arguments), call)
            if self.activity_regularizer is not None and mode:
                for output in _parts(outputs):
                    self.add_loss(self.activity_regularizer(output) / as_batch_size(output))
        if outer is None:
            call.outputs = outputs
        return outputs

    def _scope(self) -> AbstractContextManager[Any]:
        return name_scope(self.name)

    def _admit(self, inputs: Any) -> Any:
        """The inputs as nodes; floats in the layer's dtype, as in Keras."""
        if isinstance(inputs, list | tuple):
            return [self._admit(part) for part in inputs]
        node = as_node(inputs)
        return cast(node, self.dtype) if node.type.is_floating else node

    def _ensure_built(self, nodes: Any) -> None:
        shape = [node.shape for node in nodes] if isinstance(nodes, list) else nodes.shape
        if not self.built:
            with build_context(call=None):
                self.build(shape)
            self.built = True
            self._input_shape = shape

    def _owned(self, outputs: Any, call: LayerCall) -> Any:
        """The outputs as nodes of this call, even where they are inputs or weights handed through."""
        if isinstance(outputs, list | tuple):
            return [self._owned(part, call) for part in outputs]
        if not isinstance(outputs, Node):
            raise ModelError(f"expected nodes from call of layer {self.name!r}; found {outputs!r}")
        return outputs if outputs.call is call else identity(outputs)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        if np.dtype(self.dtype) == np.float32:
            config.pop("dtype", None)
        return {key: value for key, value in config.items() if (key, value) not in _DEFAULTS}


_DEFAULTS = [("trainable", True), ("activity_regularizer", None)]


def as_batch_size(node: Node) -> Any:
    """The number of samples in a value, as a float of its dtype: a number, or a node."""
    return cast(batch_size(), node.dtype) if node.type.batch_axes else 1.0


def takes_training(layer: Layer) -> bool:
    """Whether the layer's call has a parameter of this name."""
    code = type(layer).call.__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return "training" in names


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for part in value:
            yield from _parts(part)
    elif isinstance(value, dict):
        yield from _parts(list(value.values()))
    else:
        yield value


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
