"""A graph-based autodiff engine for ordinary CPUs, with interchangeable executors.

Define a graph in Python, differentiate it with `grad`, run it with `function` on the executor you name, and look at the
graph and its timings. Models in the style of Keras stand on the same graph.

>>> import miai_graph as mg
>>> x = mg.input("x", shape=(None, 64))

The modules, in the order in which data passes through them: `types` and `node` (what a value and a node are), `ops`
(what can be computed), `graph`, `gradient`, `passes` (rewrites), `plan` and `kernels` (how it is computed), `executor`
and `function` (who computes it), `timing`; above them `layers`, `losses`, `optimizers`, `metrics` and `model`; on top
`views`, `report` and `commands`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from miai_graph import errors, placement, views
from miai_graph.check_gradients import check_gradients
from miai_graph.context import name_scope, set_seed
from miai_graph.executor import executor, executor_names
from miai_graph.function import Function, function
from miai_graph.gradient import grad
from miai_graph.graph import Graph, check_graph, same_graph
from miai_graph.node import Node
from miai_graph.op import Cost, Op, op
from miai_graph.ops import random
from miai_graph.ops.arithmetic import (
    absolute,
    add,
    clip,
    divide,
    maximum,
    minimum,
    multiply,
    negative,
    sign,
    square,
    subtract,
)
from miai_graph.ops.casting import cast
from miai_graph.ops.comparisons import (
    equal,
    greater,
    greater_equal,
    isfinite,
    less,
    less_equal,
    logical_and,
    logical_not,
    logical_or,
    not_equal,
)
from miai_graph.ops.convolution import conv2d
from miai_graph.ops.elementwise import stop_gradient, where
from miai_graph.ops.indexing import one_hot, scatter_add, take
from miai_graph.ops.joining import concatenate, stack
from miai_graph.ops.leaves import assign, input, parameter, variable
from miai_graph.ops.linalg import dot, matmul
from miai_graph.ops.nonlinear import exp, log, power, relu, rsqrt, sigmoid, sqrt, tanh
from miai_graph.ops.pooling import average_pool2d, global_average_pool2d, global_max_pool2d, max_pool2d
from miai_graph.ops.reductions import argmax, logsumexp, max, mean, min, shape, var
from miai_graph.ops.slicing import flip, pad
from miai_graph.ops.softmax import (
    log_softmax,
    sigmoid_cross_entropy,
    softmax,
    softmax_cross_entropy,
    sparse_softmax_cross_entropy,
)
from miai_graph.ops.special import erf, expm1
from miai_graph.ops.structure import (
    broadcast_to,
    expand_dims,
    full_like,
    moveaxis,
    ones_like,
    ravel,
    reshape,
    squeeze,
    sum,
    swapaxes,
    transpose,
    zeros_like,
)
from miai_graph.report import report

if TYPE_CHECKING:
    from miai_graph import (
        activations,
        callbacks,
        constraints,
        initializers,
        layers,
        losses,
        metrics,
        optimizers,
        regularizers,
    )
    from miai_graph.model import Model, Sequential, load_model
    from miai_graph.timing import Timing, TimingDifference, TimingRecord
    from miai_graph.views import plot_error, plot_model, plot_scaling

abs = absolute
pow = power
amax = max
amin = min

__version__ = "0.1.0"

# Imported when first used, so that what works with graphs only starts fast.
_LAZY_MODULES = (
    "activations",
    "callbacks",
    "constraints",
    "initializers",
    "layers",
    "losses",
    "metrics",
    "optimizers",
    "regularizers",
)
_LAZY_NAMES = {
    "Model": "miai_graph.model",
    "Sequential": "miai_graph.model",
    "Timing": "miai_graph.timing",
    "TimingDifference": "miai_graph.timing",
    "TimingRecord": "miai_graph.timing",
    "load_model": "miai_graph.model",
    "plot_error": "miai_graph.views",
    "plot_model": "miai_graph.views",
    "plot_scaling": "miai_graph.views",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY_MODULES:
        return import_module(f"miai_graph.{name}")
    if name in _LAZY_NAMES:
        return getattr(import_module(_LAZY_NAMES[name]), name)
    raise AttributeError(f"module 'miai_graph' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY_MODULES, *_LAZY_NAMES])


__all__ = [
    "abs",
    "absolute",
    "activations",
    "add",
    "amax",
    "amin",
    "argmax",
    "assign",
    "average_pool2d",
    "broadcast_to",
    "callbacks",
    "cast",
    "check_gradients",
    "check_graph",
    "clip",
    "concatenate",
    "constraints",
    "conv2d",
    "Cost",
    "divide",
    "dot",
    "equal",
    "erf",
    "errors",
    "executor",
    "executor_names",
    "exp",
    "expand_dims",
    "expm1",
    "flip",
    "full_like",
    "Function",
    "function",
    "global_average_pool2d",
    "global_max_pool2d",
    "grad",
    "Graph",
    "greater",
    "greater_equal",
    "initializers",
    "input",
    "isfinite",
    "layers",
    "less",
    "less_equal",
    "load_model",
    "log",
    "log_softmax",
    "logical_and",
    "logical_not",
    "logical_or",
    "logsumexp",
    "losses",
    "matmul",
    "max",
    "max_pool2d",
    "maximum",
    "mean",
    "metrics",
    "min",
    "minimum",
    "Model",
    "moveaxis",
    "multiply",
    "name_scope",
    "negative",
    "Node",
    "not_equal",
    "one_hot",
    "ones_like",
    "Op",
    "op",
    "optimizers",
    "pad",
    "parameter",
    "placement",
    "plot_error",
    "plot_model",
    "plot_scaling",
    "pow",
    "power",
    "random",
    "ravel",
    "regularizers",
    "relu",
    "report",
    "reshape",
    "rsqrt",
    "same_graph",
    "scatter_add",
    "Sequential",
    "set_seed",
    "shape",
    "sigmoid",
    "sigmoid_cross_entropy",
    "sign",
    "softmax",
    "softmax_cross_entropy",
    "sparse_softmax_cross_entropy",
    "sqrt",
    "square",
    "squeeze",
    "stack",
    "stop_gradient",
    "subtract",
    "sum",
    "swapaxes",
    "take",
    "tanh",
    "Timing",
    "TimingDifference",
    "TimingRecord",
    "transpose",
    "var",
    "variable",
    "views",
    "where",
    "zeros_like",
    "__version__",
]
