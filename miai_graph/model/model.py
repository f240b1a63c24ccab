"""Models: layers put together, that can be trained, tested, used, saved and looked at."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from miai_graph.errors import ArgumentError, DuplicateNameError, ModelError, ShapeError
from miai_graph.graph import Graph, views
from miai_graph.layers.core import Input
from miai_graph.layers.layer import Layer, collect_updates_and_losses, registry, takes_training, training_mode
from miai_graph.layers.nesting import mapped
from miai_graph.messages import locates_errors
from miai_graph.model.config import functional_config, functional_parts
from miai_graph.model.rebuild import Unit, flat_nodes, layers_of, packed, rebuild, units_between
from miai_graph.model.saving import load_weights, save_model, save_weights
from miai_graph.model.steps import with_distinct_names
from miai_graph.model.summary import print_summary
from miai_graph.model.training import Training
from miai_graph.node import Node
from miai_graph.ops.casting import cast
from miai_graph.ops.leaves import is_input
from miai_graph.registry import as_config

NAMED_KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@registry.register
class Model(Training):
    """What lies between input nodes and output nodes.

    >>> inputs = layers.Input((64,))
    >>> outputs = layers.Dense(10)(layers.Dense(128, activation="relu")(inputs))
    >>> model = mg.Model(inputs, outputs)

    A subclass may define `call` instead, with layers as attributes, and is then built when it meets its first data.

    Parameters
    ----------
    inputs : a node made by `Input`, or a list or dictionary of them
    outputs : a node, or a list or dictionary of them, computed from the inputs by layers and single ops
    name : by default the class's name with a number
    options : `Layer`'s

    Raises
    ------
    ModelError
        if an output depends on another input, or on the inside of a layer.
    DuplicateNameError
        if two layers, or two inputs, have one name.
    """

    autocast = False  # its layers do that, each for itself

    @locates_errors
    def __init__(self, inputs: Any = None, outputs: Any = None, *, name: str | None = None, **options: Any) -> None:
        if (inputs is None) != (outputs is None):
            raise ArgumentError("expected both inputs and outputs, or neither; found one of them")
        super().__init__(name=name, **options)
        self._units: list[Unit] | None = None
        self._layers: list[Layer] = []
        if inputs is not None:
            self._set_functional(inputs, outputs)

    def _set_functional(self, inputs: Any, outputs: Any) -> None:
        fed, given = flat_nodes(inputs), flat_nodes(outputs)
        for node in fed:
            if not is_input(node):
                raise ArgumentError(f"expected inputs made by layers.Input or mg.input; found {node!r}")
        for node in given:
            if not isinstance(node, Node):
                raise ArgumentError(f"expected nodes as outputs of a model; found {node!r}")
        if not fed or not given:
            raise ArgumentError(f"expected at least one input and one output; found {len(fed)} and {len(given)}")
        check_distinct_names("inputs", fed)
        self._units = units_between(fed, given)
        self._layers = layers_of(self._units)
        check_distinct_names("layers", self._layers)
        self._input_structure = mapped(_itself, inputs)
        self._output_structure = mapped(_itself, outputs)
        self.built = True

    @property
    def layers(self) -> list[Layer]:
        """The layers that are called, in order; those that are attributes, if a subclass defines `call`."""
        return self.sublayers if self._units is None else list(self._layers)

    def get_layer(self, name: str | None = None, index: int | None = None) -> Layer:
        """The layer of a name, or at an index.

        Raises
        ------
        ArgumentError
            if there is none, with the names that there are.
        """
        layers = self.layers
        if index is not None and -len(layers) <= index < len(layers):
            return layers[index]
        for layer in layers:
            if index is None and layer.name == name:
                return layer
        known = ", ".join(layer.name for layer in layers)
        raise ArgumentError(f"expected one of the layers {known}; found {name if index is None else index!r}")

    @property
    def input(self) -> Any:
        """The input node, or a list or dictionary of them; ModelError if the model is not built yet."""
        if self._input_structure is None:
            raise ModelError(
                f"expected model {self.name!r} to know its inputs; found that it was not built yet. "
                "Begin it with layers.Input(shape), call model.build(shape), or fit it"
            )
        return self._input_structure

    @property
    def output(self) -> Any:
        """The output node, or a list or dictionary of them, as they are when the model is used, not trained."""
        return self._output_structure if self.input is not None else None

    @property
    def input_shape(self) -> Any:
        """The shape of the input, or a list or dictionary of them."""
        return mapped(_shape_of, self.input)

    @property
    def output_shape(self) -> Any:
        """The shape of the output, or a list or dictionary of them."""
        return mapped(_shape_of, self.output)

    @property
    def inputs(self) -> list[Node]:
        """The input nodes, in order."""
        return flat_nodes(self.input)

    @property
    def outputs(self) -> list[Node]:
        """The output nodes, in order."""
        return flat_nodes(self.output)

    @property
    def output_names(self) -> list[str]:
        """The keys of a dictionary of outputs, else the names of the layers that give them, with numbers if need be."""
        if isinstance(self.output, Mapping) and len(self.output) == len(self.outputs):
            return [str(name) for name in self.output]
        names = [node.name if node.call is None else node.call.layer.name for node in self.outputs]
        return [name if names.count(name) == 1 else f"{name}_{place}" for place, name in enumerate(names)]

    @property
    def graph(self) -> Graph:
        """The graph of the outputs."""
        return Graph(with_distinct_names(self.outputs))

    # Building

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Build the outputs on other inputs; the weights are shared."""
        if self._units is None:
            raise ModelError(
                f"expected model class {type(self).__name__} to define call, or inputs and outputs; found neither"
            )
        given = self._in_order(inputs)
        if len(given) != len(self.inputs):
            raise ArgumentError(f"expected {len(self.inputs)} inputs for model {self.name!r}; found {len(given)}")
        replacements: dict[Node, Node] = {}
        for own, node in zip(self.inputs, given, strict=True):
            if own.ndim != node.ndim or own.shape[1:] != node.shape[1:]:
                raise ShapeError(
                    f"expected shape {own.shape} for input {own.name!r} of {self.name!r}; found {node.shape}"
                )
            replacements[own] = cast(node, own.dtype) if own.type.is_floating else node
        with training_mode(training):
            outputs = rebuild(self._units, replacements, self.outputs)
        return packed(self._output_structure, outputs)

    def _in_order(self, inputs: Any) -> list[Node]:
        """Inputs in the order of the model's own, which those in a dictionary may not have."""
        own = self._input_structure
        if isinstance(inputs, Mapping) and isinstance(own, Mapping) and set(inputs) == set(own):
            return flat_nodes([inputs[name] for name in own])
        return flat_nodes(inputs)

    def build(self, input_shape: Any = None) -> None:
        """Make the weights, for inputs of a shape with None for the batch, or a list or dictionary of shapes."""
        if self._input_structure is not None or input_shape is None:
            return
        if isinstance(input_shape, Mapping):
            self._build_from({name: Input(batch_shape=shape, name=name) for name, shape in input_shape.items()})
        elif isinstance(input_shape, list):
            self._build_from([Input(batch_shape=shape) for shape in input_shape])
        else:
            self._build_from(Input(batch_shape=input_shape))

    def _build_from(self, inputs: Any) -> None:
        """Build a model that was not given as inputs and outputs, by calling it; all of it, or nothing."""
        with _undone_if_it_fails(self):
            if type(self).build is not Model.build and not self.built and not self._is_building:
                self.build(mapped(_shape_of, inputs))
            self._input_structure = inputs
            with collect_updates_and_losses():
                self._output_structure = self._build_outputs(inputs, training=False)
            check_distinct_names("layers", self.layers)
            self.built = True

    def _build_outputs(self, inputs: Any, *, training: bool) -> Any:
        with training_mode(training), self._same_weights():
            return self.call(inputs, training=training) if takes_training(self) else self.call(inputs)

    # Looking at it, and files

    def summary(self, line_length: int | None = None, print_fn: Any = None) -> None:
        """Print the layers with their output shapes, parameters and flops for one sample; and what `compile` had
        computed again in the backward pass, for one sample, once training has begun.

        Parameters
        ----------
        line_length : the width of the table; that of the terminal by default
        print_fn : called with the text instead of printing it
        """
        print_summary(self, line_length, print_fn, self._recomputed())

    def _repr_png_(self) -> Any:
        """What notebooks show; None: nothing, before the model is built."""
        return None if self._input_structure is None else views["png_bytes"](views["plot_model"](self))

    def save(self, path: Any, *, overwrite: bool = True) -> None:
        """Write the model, its weights, what compile was told, and the optimizer's state to one file.

        Raises
        ------
        SavingError
            if it cannot be written, or a part of the model has no form as plain data; an existing file stays then.
        """
        save_model(self, path, overwrite=overwrite)

    def save_weights(self, path: Any, *, overwrite: bool = True) -> None:
        """Write the weights to a file in the safetensors format; errors as for `save`."""
        save_weights(self, path, overwrite=overwrite)

    def load_weights(self, path: Any) -> None:
        """Set the weights to those of a file that `save_weights` or `save` wrote.

        Raises
        ------
        SavingError
            if it cannot be read, or its arrays are not of this model's number and shapes. Nothing is changed then.
        """
        load_weights(self, path)

    def get_config(self) -> dict[str, Any]:
        """The inputs, layers, calls and outputs of a functional model; of a subclass, its constructor's arguments."""
        if self._units is None or type(self).__init__ is not Model.__init__:
            return self._arguments(Model)
        config = functional_config(self._input_structure, self._output_structure, self._units, self._layers)
        return {**self._options(), **config}

    def _arguments(self, base: type) -> dict[str, Any]:
        """The constructor's arguments, which a subclass of `base` keeps as attributes, and those of every model."""
        config: dict[str, Any] = {}
        for ancestor in itertools.takewhile(lambda kind: kind is not base, type(self).__mro__):
            constructor = vars(ancestor).get("__init__")
            if constructor is not None:
                own = list(inspect.signature(constructor).parameters.values())[1:]
                named = [parameter.name for parameter in own if parameter.kind in NAMED_KINDS]
                config |= {name: as_config(self._argument(name)) for name in named if name not in config}
                if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in own):
                    return config
        return {**self._options(), **config}

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"name": self.name}
        if not self._trainable:
            options["trainable"] = False
        return options

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Any:
        """A model of what `get_config` gave, with new weights."""
        if "calls" not in config:
            return super().from_config(config)
        return cls(*functional_parts(config), **options_in(config))


def options_in(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of every model in its configuration."""
    return {name: config[name] for name in ("name", "trainable") if name in config}


def _itself(value: Any) -> Any:
    return value


def _shape_of(node: Node) -> tuple[int | None, ...]:
    return node.shape


def check_distinct_names(kind: str, named: Iterable[Any]) -> None:
    """Raise DuplicateNameError if two layers or inputs have one name."""
    by_name: dict[str, Any] = {}
    for part in named:
        other = by_name.setdefault(part.name, part)
        if other is not part:
            raise DuplicateNameError(
                f"expected {kind} of different names in a model; found {other!r} and {part!r}. "
                "Name one of them otherwise"
            )


@contextmanager
def _undone_if_it_fails(model: Layer) -> Iterator[None]:
    """If the block raises, layers that were not built are as they were: without weights for inputs that did not fit."""
    before = [(layer, _copied_attributes(layer)) for layer in model.walk() if not layer.built or layer is model]
    try:
        yield
    except BaseException:
        for layer, attributes in before:
            vars(layer).clear()
            vars(layer).update(attributes)
        raise


def _copied_attributes(layer: Layer) -> dict[str, Any]:
    return {name: value.copy() if type(value) in (list, dict) else value for name, value in vars(layer).items()}
