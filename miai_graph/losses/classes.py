"""The losses by name: classes that reduce the values of `functions`, with Keras's arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

from miai_graph.losses.functions import (
    binary_crossentropy,
    categorical_crossentropy,
    huber,
    is_counted,
    kind_of_labels,
    mean_absolute_error,
    mean_squared_error,
    sparse_categorical_crossentropy,
)
from miai_graph.losses.loss import Loss, same_rank
from miai_graph.node import Node
from miai_graph.registry import Registry, as_config

_registry = Registry("a loss", Loss)
_functions = Registry("a loss function", FunctionType)
serialize = _registry.serialize


def get(identifier: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """The `Loss` meant, or None for None; a function is wrapped in a `LossFunctionWrapper`. See `Registry.get`."""
    found = _registry.get(identifier, custom_objects)
    return found if found is None or isinstance(found, Loss) else LossFunctionWrapper(found)


@_registry.register
class LossFunctionWrapper(Loss):
    """A function of y_true and y_pred that gives a value for each sample, as a loss.

    Parameters
    ----------
    fn : the function, or the name of one of this module
    reduction, name, dtype : as for `Loss`
    options : further keyword arguments for the function
    """

    def __init__(
        self,
        fn: Callable[..., Any] | str,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
        **options: Any,
    ) -> None:
        self.fn = _functions.get(fn)
        own_name = getattr(self.fn, "__name__", "")
        super().__init__(name or (own_name if own_name.isidentifier() else None), reduction, dtype)
        self.options = options

    def call(self, y_true: Node, y_pred: Node) -> Node:
        result: Node = self.fn(*same_rank(y_true, y_pred), **self.options)
        return result

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **as_config(self.options)}


@_registry.register
class MeanSquaredError(LossFunctionWrapper):
    """See `mean_squared_error`, and `Loss` for the arguments."""

    def __init__(
        self, reduction: str | None = "sum_over_batch_size", name: str | None = "mean_squared_error", dtype: Any = None
    ) -> None:
        super().__init__(mean_squared_error, reduction, name, dtype)


@_registry.register
class MeanAbsoluteError(LossFunctionWrapper):
    """See `mean_absolute_error`, and `Loss` for the arguments."""

    def __init__(
        self, reduction: str | None = "sum_over_batch_size", name: str | None = "mean_absolute_error", dtype: Any = None
    ) -> None:
        super().__init__(mean_absolute_error, reduction, name, dtype)


@_registry.register
class Huber(LossFunctionWrapper):
    """See `huber`, and `Loss` for the other arguments."""

    def __init__(
        self,
        delta: float = 1.0,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "huber_loss",
        dtype: Any = None,
    ) -> None:
        super().__init__(huber, reduction, name, dtype, delta=delta)
        self.delta = delta


@_registry.register
class BinaryCrossentropy(LossFunctionWrapper):
    """See `binary_crossentropy`, and `Loss` for the other arguments."""

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "binary_crossentropy",
        dtype: Any = None,
    ) -> None:
        options = {"from_logits": from_logits, "label_smoothing": label_smoothing, "axis": axis}
        super().__init__(binary_crossentropy, reduction, name, dtype, **options)
        self.from_logits = from_logits
        self.label_smoothing = label_smoothing
        self.axis = axis


@_registry.register
class CategoricalCrossentropy(LossFunctionWrapper):
    """See `categorical_crossentropy`, and `Loss` for the other arguments."""

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "categorical_crossentropy",
        dtype: Any = None,
    ) -> None:
        options = {"from_logits": from_logits, "label_smoothing": label_smoothing, "axis": axis}
        super().__init__(categorical_crossentropy, reduction, name, dtype, **options)
        self.from_logits = from_logits
        self.label_smoothing = label_smoothing
        self.axis = axis


@_registry.register
class SparseCategoricalCrossentropy(LossFunctionWrapper):
    """See `sparse_categorical_crossentropy`, and `Loss` for the other arguments.

    Means are those of the samples that are not of the class to ignore.
    """

    def __init__(
        self,
        from_logits: bool = False,
        ignore_class: int | None = None,
        reduction: str | None = "sum_over_batch_size",
        axis: int = -1,
        name: str | None = "sparse_categorical_crossentropy",
        dtype: Any = None,
    ) -> None:
        options = {"from_logits": from_logits, "ignore_class": ignore_class, "axis": axis}
        super().__init__(sparse_categorical_crossentropy, reduction, name, dtype, **options)
        self.from_logits = from_logits
        self.ignore_class = ignore_class
        self.axis = axis

    def as_target(self, y_true: Node, y_pred: Node) -> Node:
        return y_true

    def mask(self, y_true: Node, y_pred: Node) -> Node | None:
        return None if self.ignore_class is None else is_counted(y_true, y_pred, self.ignore_class, self.axis)


def for_output(identifier: Any, y_true: Node, y_pred: Node) -> Any:
    """As `get`; "crossentropy" and "ce" mean the one for the shapes of an output and its true values."""
    if identifier not in ("crossentropy", "ce"):
        return get(identifier)
    return {
        "binary": BinaryCrossentropy,
        "sparse": SparseCategoricalCrossentropy,
        "categorical": CategoricalCrossentropy,
    }[kind_of_labels(y_true, y_pred)]()


for _function in (
    mean_squared_error,
    mean_absolute_error,
    huber,
    binary_crossentropy,
    categorical_crossentropy,
    sparse_categorical_crossentropy,
):
    _functions.register(_function)

_registry.alias(mse=MeanSquaredError, mae=MeanAbsoluteError, bce=BinaryCrossentropy)
