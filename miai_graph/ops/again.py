"""The op that parts what is computed again in the backward pass from what was computed in the forward pass."""

from __future__ import annotations

from collections.abc import Sequence

from miai_graph.node import Node
from miai_graph.op import Array, Cost, Op, register
from miai_graph.placement import LOCAL, Partial, Placement, Split
from miai_graph.types import TensorType


class Again(Op):
    """A value for those who compute something of it once more: y = x, to be read once `after` is there.

    Without it, simplifying a graph would find that the same is computed twice, and keep it from the first time on.

    Shapes: x and after any; y as x.
    Gradient: dx = g; none for after.
    Cost: nothing; after is not read, it only says when.
    Batch: x's. What all parts of the batch share has its time in each part, if after has rows.
    """

    name = "again"
    is_view = True

    def infer(self, x: TensorType, after: TensorType) -> TensorType:
        return x

    def forward(self, x: Array, after: Array | None = None) -> Array:
        return x

    def vjp(self, g: Node, output: Node, x: Node, after: Node) -> Sequence[Node | None]:
        return [g, None]

    def cost(self, output: TensorType, *inputs: TensorType) -> Cost:
        return Cost(0, 0)

    def batch(
        self, placements: Sequence[Placement], output: TensorType, x: TensorType, after: TensorType
    ) -> Placement | None:
        own, time = placements
        if isinstance(own, Partial) or isinstance(time, Partial):
            return None
        return LOCAL if isinstance(time, Split) and not x.batch_axes else own


_again = register(Again())
