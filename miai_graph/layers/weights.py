"""What a layer owns: weights of its own, and the layers below it with theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from miai_graph import constraints, initializers, regularizers
from miai_graph.context import build_context, current_context, name_scope
from miai_graph.errors import ArgumentError, DTypeError, ShapeError
from miai_graph.layers.nesting import flat
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.ops.leaves import assign, is_variable, parameter, variable, variable_of
from miai_graph.registry import Configurable
from miai_graph.types import as_dtype, as_shape, user_shape

Rule = Callable[[Node], Node]

_NO_PARTS = frozenset((str, bool, int, float, type(None)))
"""Of values of these types nothing is owned."""

_weight_scope: ContextVar[str | None] = ContextVar("miai_graph_weight_scope", default=None)


def weight_scope() -> str:
    """What comes before the names of weights that are made now: the layers being built or called, outermost first."""
    building = _weight_scope.get()
    return current_context().scope if building is None else building


@contextmanager
def use_weight_scope(scope: str | None) -> Iterator[None]:
    """Within the block, names of weights start with the scope; None: with that of nodes."""
    token = _weight_scope.set(scope)
    try:
        yield
    finally:
        _weight_scope.reset(token)


class WeightOwner(Configurable):
    """The part of a layer that has to do with weights.

    Weights are made by `add_weight`, or are parameters and variables that are kept as attributes. Layers that are kept
    as attributes, or in lists, tuples and dictionaries that are, belong to the layer, whenever they were put there.
    """

    def __init__(self, name: str, dtype: Any, trainable: bool) -> None:
        self.name = name
        self.dtype = as_dtype(dtype or "float32")
        self._trainable = bool(trainable)
        self._own_weights: list[Node] = []
        self._sublayers: dict[str, list[Any]] = {}
        self._weight_regularizers: list[tuple[Node, Rule]] = []
        self._weight_constraints: list[tuple[Node, Rule]] = []

    def add_weight(
        self,
        shape: int | Sequence[int] = (),
        initializer: Any = None,
        dtype: Any = None,
        trainable: bool = True,
        regularizer: Any = None,
        constraint: Any = None,
        name: str | None = None,
    ) -> Node:
        """Make a weight: a parameter, or, if it is not trainable, a variable.

        Parameters
        ----------
        shape : integers
        initializer : a name, an object, or a function of shape and dtype; by default "glorot_uniform", or zeros if the
            dtype is not floating
        dtype : the layer's by default
        regularizer, constraint : names, objects, or functions of a node
        name : what it does in the layer: "kernel", "bias" …

        Raises
        ------
        ShapeError
            if the shape is not known, or the initializer gives another.
        """
        name = self._distinct(name or "variable")
        dims = user_shape(as_shape(shape))
        if None in dims:
            raise ShapeError(f"expected a weight {name!r} of known shape in layer {self.name!r}; found {dims}")
        kind = as_dtype(dtype or self.dtype)
        default = "glorot_uniform" if kind.kind == "f" else "zeros"
        value = np.asarray(initializers.get(initializer or default)(dims, kind), kind)
        if value.shape != dims:
            raise ShapeError(f"expected values of shape {dims} from the initializer of {name!r}; found {value.shape}")
        with build_context(call=None, scope=weight_scope()):
            weight = (parameter if trainable else variable)(value, name=name)
        self._own_weights.append(weight)
        if regularizer is not None:
            self._weight_regularizers.append((weight, regularizers.get(regularizer)))
        if constraint is not None:
            self._weight_constraints.append((weight, constraints.get(constraint)))
        return weight

    def _distinct(self, name: str) -> str:
        taken = {weight.name.rpartition("/")[2] for weight in self._own_weights}
        candidates = [name, *(f"{name}_{number}" for number in range(1, len(taken) + 1))]
        return next(candidate for candidate in candidates if candidate not in taken)

    def _owned_parts(self) -> Iterator[Any]:
        for value in vars(self).values():
            if type(value) not in _NO_PARTS:
                yield from (part for part in flat(value) if type(part) not in _NO_PARTS)

    @property
    def sublayers(self) -> list[Any]:
        """The layers right below this one, in the order of the attributes that hold them."""
        return list(dict.fromkeys(part for part in self._owned_parts() if isinstance(part, WeightOwner)))

    def walk(self, *, frozen: bool = True) -> Iterator[Any]:
        """This layer and all below it, each once, outer ones first; without `frozen`, only what may be trained."""
        seen: set[int] = set()
        waiting: list[Any] = [self]
        while waiting:
            layer = waiting.pop(0)
            if id(layer) not in seen and (frozen or layer.trainable):
                seen.add(id(layer))
                yield layer
                waiting = [*layer.sublayers, *waiting]

    def _weights_of_its_own(self) -> list[Node]:
        """Without those of sublayers; parameters first."""
        found = dict.fromkeys(part for part in self._owned_parts() if is_variable(part))
        return sorted(found, key=_is_not_trainable)

    @property
    def weights(self) -> list[Node]:
        """All weights as nodes: those of this layer, parameters first, then those of the layers below."""
        return list(dict.fromkeys(weight for layer in self.walk() for weight in layer._weights_of_its_own()))

    @property
    def trainable_weights(self) -> list[Node]:
        """The parameters that optimizers may change now."""
        weights = (weight for layer in self.walk(frozen=False) for weight in layer._weights_of_its_own())
        return [weight for weight in dict.fromkeys(weights) if variable_of(weight).trainable]

    @property
    def non_trainable_weights(self) -> list[Node]:
        """Variables, and frozen parameters."""
        trainable = set(self.trainable_weights)
        return [weight for weight in self.weights if weight not in trainable]

    variables = weights
    trainable_variables = trainable_weights
    non_trainable_variables = non_trainable_weights

    @property
    def trainable(self) -> bool:
        """Whether the parameters may be trained. Set it to freeze or unfreeze this layer and all below it."""
        return self._trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
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
        ShapeError, DTypeError
            if a value is of another shape, or another kind of dtype, than its weight.
        """
        own = self.weights
        if len(weights) != len(own):
            advice = "" if own else ". A layer has weights once it was built: call it on a node, or layer.build(shape)"
            raise ArgumentError(f"expected {len(own)} arrays for layer {self.name!r}; found {len(weights)}{advice}")
        arrays = [np.asarray(value) for value in weights]
        for weight, array in zip(own, arrays, strict=True):
            if array.shape != weight.shape:
                raise ShapeError(f"expected an array of shape {weight.shape} for {weight.name}; found {array.shape}")
            if not np.can_cast(array.dtype, weight.dtype, "same_kind"):
                raise DTypeError(f"expected an array of dtype {weight.dtype} for {weight.name}; found {array.dtype}")
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

    def weight_constraints(self) -> dict[Node, Rule]:
        """What is done to weights after each update."""
        return {weight: rule for layer in self.walk() for weight, rule in layer._weight_constraints}


def _is_not_trainable(weight: Node) -> bool:
    return not variable_of(weight).trainable
