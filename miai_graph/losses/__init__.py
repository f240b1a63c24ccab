"""What training makes small: Keras's losses, as functions from nodes to nodes.

The functions give a value for each sample; the classes reduce these to one number.

>>> losses.sparse_categorical_crossentropy(y, logits, from_logits=True)  # […] for logits […, classes]
>>> losses.SparseCategoricalCrossentropy(from_logits=True)(y, logits)  # a scalar
"""

from miai_graph.losses.classes import (
    BinaryCrossentropy,
    CategoricalCrossentropy,
    Huber,
    LossFunctionWrapper,
    MeanAbsoluteError,
    MeanSquaredError,
    SparseCategoricalCrossentropy,
    for_output,
    get,
    serialize,
)
from miai_graph.losses.functions import (
    binary_crossentropy,
    categorical_crossentropy,
    huber,
    logits_of,
    mean_absolute_error,
    mean_squared_error,
    sparse_categorical_crossentropy,
)
from miai_graph.losses.loss import Loss, reduce_weighted

mse = MSE = mean_squared_error
mae = MAE = mean_absolute_error
bce = BCE = binary_crossentropy

__all__ = [
    "BCE",
    "MAE",
    "MSE",
    "BinaryCrossentropy",
    "CategoricalCrossentropy",
    "Huber",
    "Loss",
    "LossFunctionWrapper",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "SparseCategoricalCrossentropy",
    "bce",
    "binary_crossentropy",
    "categorical_crossentropy",
    "for_output",
    "get",
    "huber",
    "logits_of",
    "mae",
    "mean_absolute_error",
    "mean_squared_error",
    "mse",
    "reduce_weighted",
    "serialize",
    "sparse_categorical_crossentropy",
]
