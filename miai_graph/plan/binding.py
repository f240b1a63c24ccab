"""What a plan prepares for one way in which values lie in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from miai_graph.kernels.kernel import Kernel
from miai_graph.kernels.running.run import Run
from miai_graph.node import Node
from miai_graph.op import Array

Arrays = dict[Node, Array]


@dataclass(frozen=True, eq=False)
class Binding:
    """What depends on which of a variable's two arrays holds its value.

    Attributes
    ----------
    arrays : of all nodes, for each part
    kernels : in order
    runs : the same, where those of native code that follow each other are one
    is_native : whether nothing is computed by NumPy, which might warn
    outputs : the arrays in which the results are found after a run
    copies : what is copied, after all kernels: to, from
    """

    arrays: Sequence[Arrays]
    kernels: Sequence[Kernel]
    runs: Sequence[Run]
    is_native: bool
    outputs: Sequence[Array]
    copies: Sequence[tuple[Array, Array]]
