"""Fast ways to compute nodes. The definition of an op is its `forward`; a kernel must agree with it.

To add a kernel, write a function that prepares it, with `kernel_for` naming the ops that it is for, and import its file
here.
"""

from miai_graph.kernels import numpy_kernels
from miai_graph.kernels.convolution import kernels as convolution_kernels
from miai_graph.kernels.rows import indexing, numbers, numpy_pooling, pooling, random, reductions, softmax

__all__ = [
    "convolution_kernels",
    "indexing",
    "numbers",
    "numpy_kernels",
    "numpy_pooling",
    "pooling",
    "random",
    "reductions",
    "softmax",
]
