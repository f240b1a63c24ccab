"""Layers: parts of models, with Keras 3's names, arguments and numerics; images have their channels last.

One file a kind; to add a layer, write a class in the file where it belongs and name it here.
"""

from miai_graph.layers.activation import Activation, ReLU, Softmax
from miai_graph.layers.convolution import Conv2D
from miai_graph.layers.core import Dense, Embedding, Input
from miai_graph.layers.input_spec import InputSpec
from miai_graph.layers.layer import Layer, LayerCall, Trace, collect_updates_and_losses, registry
from miai_graph.layers.merging import Add, Average, Concatenate, Maximum, Minimum, Multiply, Subtract
from miai_graph.layers.normalization import BatchNormalization, LayerNormalization
from miai_graph.layers.pooling import (
    AveragePooling2D,
    GlobalAveragePooling2D,
    GlobalMaxPooling2D,
    MaxPooling2D,
)
from miai_graph.layers.regularization import Dropout
from miai_graph.layers.reshaping import Flatten, Permute, Reshape

__all__ = [
    "Activation",
    "Add",
    "Average",
    "AveragePooling2D",
    "BatchNormalization",
    "Concatenate",
    "Conv2D",
    "Dense",
    "Dropout",
    "Embedding",
    "Flatten",
    "GlobalAveragePooling2D",
    "GlobalMaxPooling2D",
    "Input",
    "InputSpec",
    "Layer",
    "LayerCall",
    "LayerNormalization",
    "MaxPooling2D",
    "Maximum",
    "Minimum",
    "Multiply",
    "Permute",
    "ReLU",
    "Reshape",
    "Softmax",
    "Subtract",
    "Trace",
    "collect_updates_and_losses",
    "registry",
]
