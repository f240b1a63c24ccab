"""Fast ways to compute nodes. The definition of an op is its `forward`; a kernel must agree with it.

To add a kernel, write a function that prepares it, with `kernel_for` naming the ops that it is for, and import its file
here; or name it in `numpy_kernels.FILES`, if many graphs do without it.
"""

from miai_graph.kernels import numpy_kernels
from miai_graph.kernels.rows import indexing, numbers, reductions

__all__ = ["indexing", "numbers", "numpy_kernels", "reductions"]
