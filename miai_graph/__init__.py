"""A graph-based autodiff engine for ordinary CPUs, with interchangeable executors.

Define a graph in Python, differentiate it with `grad`, run it with `function` on the executor you name, and look at the
graph and its timings. Models in the style of Keras stand on the same graph.

>>> import miai_graph as mg
>>> x = mg.input("x", shape=(None, 64))

The modules, in the order in which data passes through them: `types` and `node` (what a value and a node are), `ops`
(what can be computed), `graph`, `gradient`, `passes` (rewrites), `plan` and `kernels` (how it is computed), `executor`
and `function` (who computes it), `timing`; above them `layers`, `losses`, `optimizers`, `metrics` and `model`; on top
`views` and `commands`.
"""

from miai_graph import errors, placement
from miai_graph.check_gradients import check_gradients
from miai_graph.context import name_scope, set_seed
from miai_graph.executor import executor, executor_names
from miai_graph.function import Function, function
from miai_graph.gradient import grad
from miai_graph.graph import Graph, check_graph, same_graph
from miai_graph.node import Node
from miai_graph.op import Cost, Op, op
from miai_graph.ops import random
from miai_graph.ops.convolution import conv2d
from miai_graph.ops.elementwise import (
    absolute,
    add,
    clip,
    divide,
    equal,
    exp,
    greater,
    greater_equal,
    isfinite,
    less,
    less_equal,
    log,
    logical_and,
    logical_not,
    logical_or,
    maximum,
    minimum,
    multiply,
    negative,
    not_equal,
    power,
    relu,
    rsqrt,
    sigmoid,
    sign,
    sqrt,
    square,
    stop_gradient,
    subtract,
    tanh,
    where,
)
from miai_graph.ops.indexing import one_hot, scatter_add, take
from miai_graph.ops.leaves import assign, input, parameter, variable
from miai_graph.ops.linalg import dot, matmul
from miai_graph.ops.pooling import average_pool2d, global_average_pool2d, global_max_pool2d, max_pool2d
from miai_graph.ops.reductions import argmax, logsumexp, max, mean, min, shape, var
from miai_graph.ops.softmax import (
    log_softmax,
    sigmoid_cross_entropy,
    softmax,
    softmax_cross_entropy,
    sparse_softmax_cross_entropy,
)
from miai_graph.ops.structure import (
    broadcast_to,
    cast,
    concatenate,
    expand_dims,
    flip,
    full_like,
    moveaxis,
    ones_like,
    pad,
    ravel,
    reshape,
    squeeze,
    stack,
    sum,
    swapaxes,
    transpose,
    zeros_like,
)
from miai_graph.timing import Timing, TimingRecord

abs = absolute
pow = power
amax = max
amin = min

__version__ = "0.1.0"

__all__ = [
    "abs",
    "absolute",
    "add",
    "amax",
    "amin",
    "argmax",
    "assign",
    "average_pool2d",
    "broadcast_to",
    "cast",
    "check_gradients",
    "check_graph",
    "clip",
    "concatenate",
    "conv2d",
    "Cost",
    "divide",
    "dot",
    "equal",
    "errors",
    "executor",
    "executor_names",
    "exp",
    "expand_dims",
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
    "input",
    "isfinite",
    "less",
    "less_equal",
    "log",
    "log_softmax",
    "logical_and",
    "logical_not",
    "logical_or",
    "logsumexp",
    "matmul",
    "max",
    "max_pool2d",
    "maximum",
    "mean",
    "min",
    "minimum",
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
    "pad",
    "parameter",
    "placement",
    "pow",
    "power",
    "random",
    "ravel",
    "relu",
    "reshape",
    "rsqrt",
    "same_graph",
    "scatter_add",
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
    "TimingRecord",
    "transpose",
    "var",
    "variable",
    "where",
    "zeros_like",
    "__version__",
]
