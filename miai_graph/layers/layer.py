"""What a layer is: weights, and the nodes that it builds from its inputs.

Calling a layer on nodes builds nodes, at once. A `LayerCall` remembers which layer was called on what, and every node
built by the call points to it: so a model can build the same graph again for training, and pictures and files can speak
of layers.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from miai_graph import regularizers
from miai_graph.context import build_context, current_context, name_scope, unique_name, user_source_line
from miai_graph.errors import ArgumentError, GraphError, ModelError, ShapeError
from miai_graph.layers.input_spec import InputSpec, check_inputs
from miai_graph.layers.nesting import flat, mapped
from miai_graph.layers.weights import WeightOwner, use_weight_scope, weight_scope
from miai_graph.messages import describe, locate_error
from miai_graph.node import Node
from miai_graph.op import as_node
from miai_graph.ops.casting import cast
from miai_graph.ops.elementwise import identity
from miai_graph.ops.reductions import shape
from miai_graph.registry import Configurable, Registry

registry = Registry("a layer", Configurable)

Nodes = Any
"""A node, or nodes in lists, tuples and dictionaries."""


@dataclass(eq=False)
class LayerCall:
    """One call of a layer, outermost if layers call each other."""

    layer: Layer
    inputs: Nodes
    arguments: Mapping[str, Any]
    outputs: Nodes = None


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


def _no_call(self: Layer, *_: Any, **__: Any) -> Any:
    raise ModelError(f"expected layer class {type(self).__name__} to define call(self, inputs); found none")


class Layer(WeightOwner):
    """A part of a model, with weights of its own.

    A subclass defines `call`, which builds nodes from nodes, and, if it has weights, `build`, which makes them with
    `add_weight` when the shape of the input is known. It keeps the arguments of its constructor as attributes of the
    same names, so that it can be saved.

    >>> class Scale(mg.layers.Layer):
    ...     def build(self, input_shape):
    ...         self.factor = self.add_weight((input_shape[-1],), "ones", name="factor")
    ...     def call(self, x):
    ...         return x * self.factor

    Parameters
    ----------
    trainable : whether optimizers may change the weights; it may be set later
    name : unique in a model; by default the class's name with a number
    dtype : of the weights, and, with `autocast`, of inputs that are floats; float32 by default
    activity_regularizer : a penalty on the output, divided by the length of its first axis, added to the model's loss

    Attributes
    ----------
    built : whether the weights exist
    autocast : whether inputs that are floats are cast; a subclass may say no
    input_spec : what the inputs must be like: an `InputSpec`, a list of them, or None. A subclass may set it
    """

    autocast: bool = True

    def __init__(
        self,
        *,
        trainable: bool = True,
        name: str | None = None,
        dtype: Any = None,
        activity_regularizer: Any = None,
        **unknown: Any,
    ) -> None:
        if unknown:
            raise ArgumentError(
                f"expected arguments of {type(self).__name__}, {', '.join(inspect.signature(type(self)).parameters)} "
                f"(name, dtype, trainable and activity_regularizer); found {', '.join(unknown)}"
            )
        if name is not None and (not isinstance(name, str) or not name or "/" in name):
            raise ArgumentError(f"expected a name that is a non-empty string without '/'; found {name!r}")
        super().__init__(name or unique_name(snake_case(type(self).__name__)), dtype, trainable)
        self.activity_regularizer = regularizers.get(activity_regularizer)
        self.input_spec: InputSpec | Sequence[InputSpec] | None = None
        self.built = False
        self._is_building = False
        self._input_shape: Any = None
        self._first_call: LayerCall | None = None
        self._was_called = False
        self._left = Trace()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "build" in vars(cls):
            cls.build = _building(vars(cls)["build"])  # type: ignore[method-assign]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    # What subclasses define

    def build(self, input_shape: Any) -> None:
        """Make the weights. `input_shape` is a tuple with None for the batch, or a list of them for several inputs."""
        self.built = True

    call: Callable[..., Any] = _no_call
    """Called with the inputs, returns the nodes of the output. `training`, if it is a parameter, says what for."""

    # What subclasses use

    def as_floats(self, node: Node) -> Node:
        """The node in the layer's dtype, if it is one of integers or truth values."""
        return node if node.type.is_floating else cast(node, self.dtype)

    def add_update(self, weight: Node, value: Callable[[Node], Node]) -> None:
        """Within `call`: give a weight a new value after each step.

        Parameters
        ----------
        value : gets the value before (or the one that an earlier call in the same model gave it) and returns the new
            one
        """
        updates = self._trace_of_call("add_update").updates
        updates[weight] = value(updates.get(weight, weight))

    def add_loss(self, loss: Node) -> None:
        """Within `call`: add a scalar to the loss of the model in which the layer is called."""
        if loss.ndim:
            raise ShapeError(f"expected a scalar to add to the loss; found {describe(loss)}")
        self._trace_of_call("add_loss").losses.append(loss)

    def _trace_of_call(self, method: str) -> Trace:
        current = _trace.get()
        if current is None:
            raise ModelError(f"expected {method} within the call of layer {self.name!r}; found it outside of any call")
        return current

    # What a call outside of a model leaves behind

    @property
    def updates(self) -> Mapping[Node, Node]:
        """New values of variables, from the last call outside of a model: to be passed to `function`."""
        return self._left.updates

    @property
    def losses(self) -> list[Node]:
        """Scalars to add to a loss: from the last call outside of a model, and penalties on weights."""
        return [*self._left.losses, *self.regularization_losses()]

    @property
    def input(self) -> Any:
        """The node, or list of nodes, of the first call outside of a model, or in its making."""
        return self._call_by_user().inputs

    @property
    def output(self) -> Any:
        """What that call returned: a functional model may end there."""
        return self._call_by_user().outputs

    def _call_by_user(self) -> LayerCall:
        if self._first_call is None:
            raise ModelError(f"expected layer {self.name!r} to have been called on nodes; found that it was not yet")
        return self._first_call

    # Calling

    def __call__(self, inputs: Any, *, training: bool | None = None, **arguments: Any) -> Any:
        """Build the nodes of the output.

        Parameters
        ----------
        inputs : a node, or nodes in lists and dictionaries; arrays become constants
        training : whether the graph is for training (dropout drops, batch statistics are used); None: as the model
            decides

        Raises
        ------
        ShapeError, ArgumentError
            if the inputs are not as the layer needs them. The text names the layer, the inputs and the line.
        """
        nodes = mapped(self._admit, inputs)
        try:
            check_inputs(self.input_spec, nodes)
            self._ensure_built(nodes)
            outer = current_context().call
            if outer is not None:
                return self._outputs_on(nodes, outer, training, arguments)
            call = LayerCall(self, nodes, {**arguments, "training": training})
            with self._trace_outside_of_model(call):
                call.outputs = self._outputs_on(nodes, call, training, arguments)
            return call.outputs
        except (GraphError, ArgumentError) as error:
            self._locate(error, nodes)
            raise

    def _outputs_on(self, nodes: Any, call: LayerCall, training: bool | None, arguments: Mapping[str, Any]) -> Any:
        mode = _mode.get() if training is None else training
        given = {**arguments, "training": mode} if takes_training(self) else arguments
        with build_context(call=call), name_scope(self.name), training_mode(mode):
            with self._same_weights():
                results = self.call(nodes, **given)
            outputs = mapped(functools.partial(self._owned, call), results)
            if self.activity_regularizer is not None:
                for output in flat(outputs):
                    self.add_loss(self.activity_regularizer(output) / first_length(output))
        return outputs

    @contextmanager
    def _same_weights(self) -> Iterator[None]:
        """Only the first call may make weights: those of a later one would be others, and never be trained together."""
        before = [id(weight) for weight in self.weights]
        yield
        if self._was_called and before != [id(weight) for weight in self.weights]:
            raise ModelError(
                f"expected layer {self.name!r} to make its weights and layers in __init__ or build; "
                "found that a later call made others"
            )
        self._was_called = True

    @contextmanager
    def _trace_outside_of_model(self, call: LayerCall) -> Iterator[None]:
        """A trace for this call alone, unless a model has one."""
        if _trace.get() is not None:
            yield
            return
        with collect_updates_and_losses() as left:
            yield
        self._left = left
        self._first_call = self._first_call or call

    def _admit(self, value: Any) -> Node:
        """An input as a node."""
        node = as_node(value)
        return cast(node, self.dtype) if self.autocast and node.type.is_floating else node

    def _ensure_built(self, nodes: Any) -> None:
        if not self.built:
            self._input_shape = mapped(_shape_of, nodes)
            with use_weight_scope(None):
                self.build(self._input_shape)

    def _owned(self, call: LayerCall, output: Any) -> Node:
        """An output as a node of this call, even if it is an input or a weight that is handed through."""
        if not isinstance(output, Node):
            raise ModelError(f"expected nodes from call of layer {self.name!r}; found {output!r}")
        return output if output.call is call else identity(output)

    def _locate(self, error: GraphError | ArgumentError, nodes: Any) -> None:
        found = [part for part in flat(nodes) if isinstance(part, Node)]
        scope = "/".join(part for part in (current_context().scope, self.name) if part)
        locate_error(error, type(self).__name__, found, scope, user_source_line())

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments as plain data, without those of every layer that are the default."""
        config = super().get_config()
        if np.dtype(self.dtype) == np.float32:
            config.pop("dtype", None)
        return {key: value for key, value in config.items() if (key, value) not in _DEFAULTS}


_DEFAULTS = [("trainable", True), ("activity_regularizer", None)]


def _building(build: Callable[..., None]) -> Callable[..., None]:
    """A subclass's method `build`, so that it works alike called by a user, by another layer, or at the first call."""

    @functools.wraps(build)
    def build_in_scope(self: Layer, *shapes: Any, **named: Any) -> None:
        if self._is_building:
            build(self, *shapes, **named)
            return
        self._is_building = True
        try:
            outer = weight_scope()
            with build_context(call=None), use_weight_scope(f"{outer}/{self.name}" if outer else self.name):
                build(self, *shapes, **named)
        finally:
            self._is_building = False
        self.built = True

    return build_in_scope


def _shape_of(node: Node) -> tuple[int | None, ...]:
    return node.shape


def first_length(node: Node) -> Any:
    """The length of a value's first axis, as a number or a node of its dtype; 1 for a scalar."""
    length = shape(node)[0] if node.ndim else 1
    return cast(length, node.dtype) if isinstance(length, Node) else float(length)


def takes_training(layer: Layer) -> bool:
    """Whether the layer's call has a parameter of this name."""
    return "training" in inspect.signature(type(layer).call).parameters


def snake_case(name: str) -> str:
    """``max_pooling2d`` for MaxPooling2D, as Keras has it."""
    return re.sub(r"(?<=.)(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z])", "_", name.lstrip("_")).lower()
