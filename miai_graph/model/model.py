"""Models: layers put together, that can be trained, tested, used, saved and looked at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from miai_graph.errors import ArgumentError, DuplicateNameError, ModelError, SavingError
from miai_graph.graph import Graph
from miai_graph.layers.core import Input
from miai_graph.layers.layer import Layer, registry, takes_training, training_mode
from miai_graph.model.config import functional_config, functional_parts
from miai_graph.model.rebuild import flat_nodes, layers_of, rebuild, units_between
from miai_graph.model.saving import load_weights, save_model, save_weights
from miai_graph.model.summary import print_summary
from miai_graph.model.training import Training
from miai_graph.node import Node
from miai_graph.op import as_node
from miai_graph.ops.leaves import is_input


@registry.register
class Model(Training, Layer):
    """What lies between input nodes and output nodes.

    >>> inputs = layers.Input((64,))
    >>> outputs = layers.Dense(10)(layers.Dense(128, activation="relu")(inputs))
    >>> model = mg.Model(inputs, outputs)

    A subclass may define `call` instead, with layers as attributes, and is then built when it meets its first data.

    Parameters
    ----------
    inputs : a node made by `Input`, or a list of them
    outputs : a node, or a list of them, computed from the inputs by layers and single ops
    name : by default the class's name with a number
    options : `Layer`'s

    Raises
    ------
    ModelError
        if an output depends on another input, or on the inside of a layer.
    DuplicateNameError
        if two layers, or two inputs, have one name.
    """

    def __init__(self, inputs: Any = None, outputs: Any = None, *, name: str | None = None, **options: Any) -> None:
        if (inputs is None) != (outputs is None):
            raise ArgumentError("expected both inputs and outputs, or neither; found one of them")
        super().__init__(name=name, **options)
        self.stop_training = False
        self._reset_training()
        self._inputs: list[Node] | None = None
        self._outputs: list[Node] = []
        self._single_output = True
        if inputs is not None:
            self._set_functional(inputs, outputs)

    def _set_functional(self, inputs: Any, outputs: Any) -> None:
        self._inputs = [as_node(node) for node in flat_nodes(inputs)]
        self._outputs = flat_nodes(outputs)
        self._single_output = not isinstance(outputs, list | tuple)
        for node in self._inputs:
            if not is_input(node):
                raise ArgumentError(f"expected inputs made by layers.Input or mg.input; found {node!r}")
        for output in self._outputs:
            if not isinstance(output, Node):
                raise ArgumentError(f"expected nodes as outputs of a model; found {output!r}")
        self._units = units_between(self._inputs, self._outputs)
        self._layers = layers_of(self._units)
        self._sublayers["layers"] = self._layers
        check_distinct_names(self._layers)
        self.built = True

    @property
    def layers(self) -> list[Layer]:
        """The layers that are called, in order."""
        return self._layers if self._is_functional else self.sublayers

    @property
    def _is_functional(self) -> bool:
        return "layers" in self._sublayers

    def get_layer(self, name: str | None = None, index: int | None = None) -> Layer:
        """The layer of a name, or at an index.

        Raises
        ------
        ArgumentError
            if there is none, with the names that there are.
        """
        if index is not None:
            return self.layers[index]
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise ArgumentError(f"expected one of the layers {', '.join(l.name for l in self.layers)}; found {name!r}")

    @property
    def inputs(self) -> list[Node]:
        """The input nodes.

        Raises
        ------
        ModelError
            if the model is not built yet.
        """
        self._require_built()
        assert self._inputs is not None
        return self._inputs

    @property
    def outputs(self) -> list[Node]:
        """The output nodes, as they are when the model is used, not trained."""
        self._require_built()
        return self._outputs

    @property
    def output_names(self) -> list[str]:
        """The names of the layers that give the outputs; if one gives several, with numbers."""
        names = [node.call.layer.name if node.call is not None else node.name for node in self.outputs]
        return [name if names.count(name) == 1 else f"{name}_{place}" for place, name in enumerate(names)]

    @property
    def graph(self) -> Graph:
        """The graph of the outputs."""
        return Graph(self.outputs)

    def _require_built(self) -> None:
        if self._inputs is None:
            raise ModelError(
                f"expected model {self.name!r} to know its inputs; found that it was not built yet. "
                "Begin it with layers.Input(shape), call model.build(shape), or fit it"
            )

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Build the outputs on other inputs; the weights are shared."""
        if not self._is_functional:
            raise ModelError(
                f"expected model class {type(self).__name__} to define call, or inputs and outputs; found neither"
            )
        nodes = flat_nodes(inputs)
        if len(nodes) != len(self.inputs):
            raise ArgumentError(f"expected {len(self.inputs)} inputs for model {self.name!r}; found {len(nodes)}")
        with training_mode(training):
            outputs = rebuild(self._units, dict(zip(self.inputs, nodes, strict=True)), self._outputs, {})
        return outputs[0] if self._single_output else outputs

    def build(self, input_shape: Any = None) -> None:
        """Make the weights, for inputs of a shape with None for the batch (or a list of shapes)."""
        if self._inputs is not None or input_shape is None:
            return
        shapes = input_shape if isinstance(input_shape, list) else [input_shape]
        self._build_from([Input(batch_shape=shape) for shape in shapes])

    def _build_from(self, inputs: Sequence[Node]) -> None:
        """Build a model that was not given as inputs and outputs, by calling it."""
        self.built = True
        self._inputs = list(inputs)
        self._input_shape = [node.shape for node in inputs]
        outputs = self._build_outputs(inputs, training=False)
        self._outputs = outputs
        check_distinct_names(self.layers)

    def _build_outputs(self, inputs: Sequence[Node], *, training: bool) -> list[Node]:
        """The outputs on input nodes, without the call being remembered as one of a layer."""
        given = list(inputs) if len(inputs) > 1 else inputs[0]
        with training_mode(training):
            outputs = self.call(given, training=training) if takes_training(self) else self.call(given)
        self._single_output = not isinstance(outputs, list | tuple)
        return flat_nodes(outputs)

    def summary(self, line_length: int | None = None, print_fn: Any = None) -> None:
        """Print the layers with their output shapes, parameters and flops for one sample.

        Parameters
        ----------
        line_length : the width of the table; that of the terminal by default
        print_fn : called with the text instead of printing it
        """
        print_summary(self, line_length, print_fn)

    def save(self, path: Any, *, overwrite: bool = True) -> None:
        """Write the model, its weights, what compile was told, and the optimizer's state to one file.

        Raises
        ------
        SavingError
            if it cannot be written, or a part of the model has no form as plain data; an existing file stays then.
        """
        save_model(self, path, overwrite=overwrite)

    def save_weights(self, path: Any) -> None:
        """Write the weights to a file in the safetensors format."""
        save_weights(self, path)

    def load_weights(self, path: Any) -> None:
        """Set the weights to those of a file that `save_weights` wrote.

        Raises
        ------
        SavingError
            if it cannot be read, or its arrays are not of this model's number and shapes. Nothing is changed then.
        """
        load_weights(self, path)

    def get_config(self) -> dict[str, Any]:
        if not self._is_functional:
            raise SavingError(
                f"expected a Sequential or functional model, or a get_config of its own, to be saved; found {self!r}"
            )
        config = functional_config(self.inputs, self._outputs, self._units, self._layers)
        return {"name": self.name, **config, "single_output": self._single_output}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Any:
        inputs, outputs = functional_parts(config)
        return cls(inputs, outputs[0] if config["single_output"] else outputs, name=config["name"])


def check_distinct_names(layers: Iterable[Layer]) -> None:
    """Raise DuplicateNameError if two layers have one name."""
    by_name: dict[str, Layer] = {}
    for layer in layers:
        other = by_name.setdefault(layer.name, layer)
        if other is not layer:
            raise DuplicateNameError(
                f"expected layers of different names in a model; found {other!r} and {layer!r}. Name one of them otherwise"
            )


@registry.register
class Sequential(Model):
    """Layers one after another.

    >>> model = mg.Sequential([layers.Input((64,)), layers.Dense(128, activation="relu"), layers.Dense(10)])

    Parameters
    ----------
    layers : layers, the first of which may be an `Input`. Without one the model is built when it meets its first data.
    name : "sequential" with a number by default
    options : `Layer`'s
    """

    def __init__(self, layers: Sequence[Any] | None = None, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._chain: list[Layer] = []
        for layer in layers or []:
            self.add(layer)

    @property
    def layers(self) -> list[Layer]:
        """The layers in order."""
        return list(self._chain)

    def add(self, layer: Any) -> None:
        """Put a layer at the end.

        Raises
        ------
        ArgumentError
            if it is no layer, or an input that does not stand first.
        """
        if isinstance(layer, Node):
            if not is_input(layer) or self._chain or self._inputs is not None:
                raise ArgumentError(f"expected an Input as first entry of a Sequential model only; found {layer!r}")
            self._inputs = [layer]
            self._outputs = [layer]
            return
        if not isinstance(layer, Layer):
            raise ArgumentError(f"expected layers in a Sequential model; found {layer!r}")
        check_distinct_names([*self._chain, layer])
        if isinstance(layer, Model) and not self._chain and self._inputs is None and layer._inputs is not None:
            self._inputs = [Input(batch_shape=node.shape, dtype=node.dtype) for node in layer.inputs]
            self._outputs = list(self._inputs)
        self._chain.append(layer)
        self._sublayers["chain"] = list(self._chain)
        self._reset_training(keep_compiled=True)
        if self._inputs is not None:
            self._outputs = [layer(self._outputs[0])]
            self.built = True

    def pop(self) -> Layer:
        """Take the last layer away and return it."""
        if not self._chain:
            raise ModelError(f"expected a layer to take away from model {self.name!r}; found none")
        last = self._chain.pop()
        self._sublayers["chain"] = list(self._chain)
        self._reset_training(keep_compiled=True)
        if self._inputs is not None:
            self._outputs = self._build_outputs(self._inputs, training=False)
        return last

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Call one layer after another."""
        with training_mode(training):
            for layer in self._chain:
                inputs = layer(inputs)
        return inputs

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = {"name": self.name, "layers": [registry.serialize(layer) for layer in self._chain]}
        if self._inputs is not None:
            (node,) = self._inputs
            config["input"] = {"batch_shape": list(node.shape), "dtype": node.dtype.name, "name": node.name}
        return config

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Sequential:
        first = [Input(**config["input"])] if "input" in config else []
        return cls([*first, *(registry.get(layer) for layer in config["layers"])], name=config["name"])
