"""Models that are chains of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from miai_graph.errors import ArgumentError, DuplicateNameError, ModelError
from miai_graph.layers.core import Input
from miai_graph.layers.layer import Layer, registry, training_mode
from miai_graph.layers.nesting import mapped
from miai_graph.messages import locates_errors
from miai_graph.model.config import input_config
from miai_graph.model.model import Model, check_distinct_names, options_in
from miai_graph.node import Node
from miai_graph.ops.leaves import is_input


@registry.register
class Sequential(Model):
    """Layers one after another.

    >>> model = mg.Sequential([layers.Input((64,)), layers.Dense(128, activation="relu"), layers.Dense(10)])

    Parameters
    ----------
    layers : layers, the first of which may be an `Input`. Without one the model is built when it meets its first data.
    name : "sequential" with a number by default
    options : `Layer`'s

    Raises
    ------
    DuplicateNameError
        if two layers have one name.
    """

    def __init__(self, layers: Sequence[Any] | None = None, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._chain: list[Layer] = []
        self._begins_with_input = False
        for layer in layers or []:
            self.add(layer)

    @property
    def layers(self) -> list[Layer]:
        """The layers in order."""
        return list(self._chain)

    @locates_errors
    def add(self, layer: Any) -> None:
        """Put a layer at the end.

        Raises
        ------
        ArgumentError
            if it is no layer, or an input that does not stand first.
        DuplicateNameError
            if another layer has its name, or it is in the model already.
        """
        if isinstance(layer, Node):
            if not is_input(layer) or self._chain or self._input_structure is not None:
                raise ArgumentError(f"expected an Input as first entry of a Sequential model only; found {layer!r}")
            self._input_structure = self._output_structure = layer
            self._begins_with_input = True
            return
        if not isinstance(layer, Layer):
            raise ArgumentError(f"expected layers in a Sequential model; found {layer!r}")
        if any(layer is other for other in self._chain):
            raise DuplicateNameError(f"expected different layers in a Sequential model; found {layer!r} twice")
        check_distinct_names("layers", [*self._chain, layer])
        if not self._chain and self._input_structure is None:
            self._begin_like(layer)
        if self._input_structure is not None:
            self._output_structure = layer(self._output_structure)
            self.built = True
        self._chain.append(layer)
        self._steps = None

    def _begin_like(self, layer: Layer) -> None:
        """Take the inputs of a first layer that is a model and knows them."""
        if isinstance(layer, Model) and layer._input_structure is not None:
            self._input_structure = mapped(_another_input, layer._input_structure)
            self._output_structure = self._input_structure

    def pop(self) -> Layer:
        """Take the last layer away and return it.

        Raises
        ------
        ModelError
            if there is none.
        """
        if not self._chain:
            raise ModelError(f"expected a layer to take away from model {self.name!r}; found none")
        last = self._chain.pop()
        self._steps = None
        if self._input_structure is not None:
            self._output_structure = self._build_outputs(self._input_structure, training=False)
        return last

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Call one layer after another."""
        with training_mode(training):
            for layer in self._chain:
                inputs = layer(inputs)
        return inputs

    def get_config(self) -> dict[str, Any]:
        """The layers, and the input if it was given; of a subclass, its constructor's arguments."""
        if type(self).__init__ is not Sequential.__init__:
            return self._arguments(Sequential)
        config: dict[str, Any] = {"layers": [registry.serialize(layer) for layer in self._chain]}
        if self._begins_with_input:
            config["input"] = input_config(self._input_structure)
        return {**self._options(), **config}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Any:
        """A model of what `get_config` gave, with new weights."""
        if "layers" not in config:
            return super().from_config(config)
        first = [Input(**config["input"])] if "input" in config else []
        return cls([*first, *(registry.get(layer) for layer in config["layers"])], **options_in(config))


def _another_input(node: Node) -> Node:
    return Input(batch_shape=node.shape, dtype=node.dtype)
