"""Fast ways to compute nodes. The definition of an op is its `forward`; a kernel must agree with it.

To add a kernel, write a function that prepares it, with `kernel_for` naming the ops that it is for, and import its file
here.
"""

from miai_graph.kernels import (
    native_convolution,
    native_indexing,
    native_numbers,
    native_pooling,
    native_reductions,
    native_softmax,
    numpy_kernels,
    pooling_kernels,
)

__all__ = [
    "native_convolution",
    "native_numbers",
    "native_indexing",
    "native_pooling",
    "native_reductions",
    "native_softmax",
    "numpy_kernels",
    "pooling_kernels",
]
