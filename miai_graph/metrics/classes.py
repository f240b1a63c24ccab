"""The metrics by name, with Keras's arguments."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import FunctionType
from typing import Any

from miai_graph import losses
from miai_graph.context import name_scope
from miai_graph.losses.functions import is_counted, kind_of_labels
from miai_graph.losses.loss import as_floats, same_rank
from miai_graph.metrics import functions
from miai_graph.metrics.metric import Metric, weighted_totals
from miai_graph.node import Node
from miai_graph.op import as_node
from miai_graph.ops.arithmetic import square
from miai_graph.ops.casting import cast
from miai_graph.ops.structure import expand_dims
from miai_graph.registry import Registry, as_config

_registry = Registry("a metric", Metric)
_functions = Registry("a metric's function", FunctionType)
get = _registry.get
serialize = _registry.serialize


@_registry.register
class Mean(Metric):
    """The mean of values."""

    def __init__(self, name: str | None = "mean", dtype: Any = None) -> None:
        super().__init__(dtype, name)

    def totals(self, values: Any, sample_weight: Any = None) -> tuple[Node, Node]:  # type: ignore[override]
        with name_scope(self.name):
            return weighted_totals(values, sample_weight, self.dtype)

    def update_state(self, values: Any, sample_weight: Any = None) -> None:  # type: ignore[override]
        self.add_arrays(values=values, sample_weight=sample_weight)


@_registry.register
class MeanMetricWrapper(Metric):
    """The mean of what a function of y_true and y_pred gives for each sample.

    Parameters
    ----------
    fn : the function, or the name of one of `miai_graph.losses` or of this package
    name, dtype : as for `Metric`; the function's name if None
    options : further keyword arguments for the function

    One prediction a sample, [B], is taken as [B,1], so that the function's mean along the last axis is the sample's.
    """

    def __init__(
        self, fn: Callable[..., Any] | str, name: str | None = None, dtype: Any = None, **options: Any
    ) -> None:
        self.fn = _functions.get(fn)
        own_name = getattr(self.fn, "__name__", "")
        super().__init__(dtype, name or (own_name if own_name.isidentifier() else None))
        self.options = options

    def totals(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> tuple[Node, Node]:
        with name_scope(self.name):
            target, prediction = as_node(y_true), as_node(y_pred)
            if target.ndim == prediction.ndim == 1 and prediction.type.batch_axes:
                target, prediction = expand_dims(target, -1), expand_dims(prediction, -1)
            values = self.fn(target, prediction, **self.options)
            return weighted_totals(values, self.weights(target, prediction, sample_weight), self.dtype)

    def weights(self, y_true: Node, y_pred: Node, sample_weight: Any) -> Any:
        """The weights that count."""
        return sample_weight

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **as_config(self.options)}


@_registry.register
class Accuracy(MeanMetricWrapper):
    """How often predictions equal the true values."""

    def __init__(self, name: str | None = "accuracy", dtype: Any = None) -> None:
        super().__init__(functions.accuracy, name, dtype)


@_registry.register
class BinaryAccuracy(MeanMetricWrapper):
    """How often predictions lie on the right side of a threshold. See `binary_accuracy`."""

    def __init__(self, name: str | None = "binary_accuracy", dtype: Any = None, threshold: float = 0.5) -> None:
        super().__init__(functions.binary_accuracy, name, dtype, threshold=threshold)
        self.threshold = threshold


@_registry.register
class CategoricalAccuracy(MeanMetricWrapper):
    """How often the class predicted is that of the row of true probabilities."""

    def __init__(self, name: str | None = "categorical_accuracy", dtype: Any = None) -> None:
        super().__init__(functions.categorical_accuracy, name, dtype)


@_registry.register
class SparseCategoricalAccuracy(MeanMetricWrapper):
    """How often the class predicted has the true number."""

    def __init__(self, name: str | None = "sparse_categorical_accuracy", dtype: Any = None) -> None:
        super().__init__(functions.sparse_categorical_accuracy, name, dtype)


@_registry.register
class TopKCategoricalAccuracy(MeanMetricWrapper):
    """How often the class of the row of true probabilities is among the k that are predicted first."""

    def __init__(self, k: int = 5, name: str | None = "top_k_categorical_accuracy", dtype: Any = None) -> None:
        super().__init__(functions.top_k_categorical_accuracy, name, dtype, k=k)
        self.k = k


@_registry.register
class SparseTopKCategoricalAccuracy(MeanMetricWrapper):
    """How often the class of the true number is among the k that are predicted first."""

    def __init__(
        self,
        k: int = 5,
        name: str | None = "sparse_top_k_categorical_accuracy",
        dtype: Any = None,
        from_sorted_ids: bool = False,
    ) -> None:
        options = {"k": k, "from_sorted_ids": from_sorted_ids}
        super().__init__(functions.sparse_top_k_categorical_accuracy, name, dtype, **options)
        self.k = k
        self.from_sorted_ids = from_sorted_ids


@_registry.register
class BinaryCrossentropy(MeanMetricWrapper):
    """The mean of `miai_graph.losses.binary_crossentropy`."""

    def __init__(
        self,
        name: str | None = "binary_crossentropy",
        dtype: Any = None,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
    ) -> None:
        options = {"from_logits": from_logits, "label_smoothing": label_smoothing}
        super().__init__(losses.binary_crossentropy, name, dtype, **options)
        self.from_logits = from_logits
        self.label_smoothing = label_smoothing


@_registry.register
class CategoricalCrossentropy(MeanMetricWrapper):
    """The mean of `miai_graph.losses.categorical_crossentropy`."""

    def __init__(
        self,
        name: str | None = "categorical_crossentropy",
        dtype: Any = None,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
    ) -> None:
        options = {"from_logits": from_logits, "label_smoothing": label_smoothing, "axis": axis}
        super().__init__(losses.categorical_crossentropy, name, dtype, **options)
        self.from_logits = from_logits
        self.label_smoothing = label_smoothing
        self.axis = axis


@_registry.register
class SparseCategoricalCrossentropy(MeanMetricWrapper):
    """The mean of `miai_graph.losses.sparse_categorical_crossentropy`.

    As in Keras, samples of the class to ignore have a weight of 0 only where there are weights; without them, they
    count as samples of loss 0.
    """

    def __init__(
        self,
        name: str | None = "sparse_categorical_crossentropy",
        dtype: Any = None,
        from_logits: bool = False,
        ignore_class: int | None = None,
        axis: int = -1,
    ) -> None:
        options = {"from_logits": from_logits, "ignore_class": ignore_class, "axis": axis}
        super().__init__(losses.sparse_categorical_crossentropy, name, dtype, **options)
        self.from_logits = from_logits
        self.ignore_class = ignore_class
        self.axis = axis

    def weights(self, y_true: Node, y_pred: Node, sample_weight: Any) -> Any:
        if sample_weight is None or self.ignore_class is None:
            return sample_weight
        weights = as_floats(sample_weight)
        counted = cast(is_counted(y_true, y_pred, self.ignore_class, self.axis), weights.dtype)
        counted, weights = same_rank(counted, weights)
        return counted * weights


@_registry.register
class MeanSquaredError(MeanMetricWrapper):
    """The mean of `miai_graph.losses.mean_squared_error`."""

    def __init__(self, name: str | None = "mean_squared_error", dtype: Any = None) -> None:
        super().__init__(losses.mean_squared_error, name, dtype)


@_registry.register
class MeanAbsoluteError(MeanMetricWrapper):
    """The mean of `miai_graph.losses.mean_absolute_error`."""

    def __init__(self, name: str | None = "mean_absolute_error", dtype: Any = None) -> None:
        super().__init__(losses.mean_absolute_error, name, dtype)


@_registry.register
class RootMeanSquaredError(MeanMetricWrapper):
    """The root of the mean of (y_true - y_pred)² over all samples."""

    def __init__(self, name: str | None = "root_mean_squared_error", dtype: Any = None) -> None:
        super().__init__(_squared_errors, name, dtype)

    def result(self) -> float:
        return math.sqrt(super().result())


def _squared_errors(y_true: Any, y_pred: Any) -> Node:
    prediction = as_floats(y_pred)
    target, prediction = same_rank(cast(as_node(y_true), prediction.dtype), prediction)
    return square(prediction - target)


def for_outputs(identifier: Any, y_true: Node, y_pred: Node, loss: Any = None) -> Metric:
    """The metric meant for an output, by `get`; functions become metrics.

    "accuracy" or "acc" is a binary, categorical or sparse one, by the shapes of the output and of its true values;
    "crossentropy" or "ce" likewise, from logits if the loss is. A metric given by name is reported under that name.

    Parameters
    ----------
    y_true, y_pred : nodes
    loss : the output's, or None
    """
    kinds = {"accuracy": _ACCURACIES, "acc": _ACCURACIES, "crossentropy": _CROSSENTROPIES, "ce": _CROSSENTROPIES}
    kind = kinds.get(identifier.lower()) if isinstance(identifier, str) else None
    if kind is None:
        metric = get(identifier)
        metric = metric if isinstance(metric, Metric) else MeanMetricWrapper(metric)
    else:
        options = {"from_logits": getattr(loss, "from_logits", False)} if kind is _CROSSENTROPIES else {}
        metric = kind[kind_of_labels(y_true, y_pred)](**options)
    if isinstance(identifier, str):
        metric.name = identifier
    return metric


_ACCURACIES: dict[str, Any] = {
    "binary": BinaryAccuracy,
    "sparse": SparseCategoricalAccuracy,
    "categorical": CategoricalAccuracy,
}
_CROSSENTROPIES: dict[str, Any] = {
    "binary": BinaryCrossentropy,
    "sparse": SparseCategoricalCrossentropy,
    "categorical": CategoricalCrossentropy,
}

for _function in (
    functions.accuracy,
    functions.binary_accuracy,
    functions.categorical_accuracy,
    functions.sparse_categorical_accuracy,
    functions.top_k_categorical_accuracy,
    functions.sparse_top_k_categorical_accuracy,
    losses.binary_crossentropy,
    losses.categorical_crossentropy,
    losses.sparse_categorical_crossentropy,
    losses.mean_squared_error,
    losses.mean_absolute_error,
    losses.huber,
):
    _functions.register(_function)

_registry.alias(mse=MeanSquaredError, mae=MeanAbsoluteError, bce=BinaryCrossentropy)
