"""What a layer may be called on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from miai_graph.errors import ArgumentError, ShapeError
from miai_graph.node import Node


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """One node, and what its shape must be. Keras's names.

    Attributes
    ----------
    ndim, min_ndim, max_ndim : the number of axes, the batch counted in; None: any
    axes : lengths by axis, such as {-1: 64}
    """

    ndim: int | None = None
    min_ndim: int | None = None
    max_ndim: int | None = None
    axes: Mapping[int, int] = field(default_factory=dict)

    def check(self, inputs: Any) -> None:
        """Raise an error if the inputs are not one node of such a shape."""
        if not isinstance(inputs, Node):
            raise ArgumentError(f"expected one node as input; found {inputs!r}")
        if not self._fits(inputs):
            raise ShapeError(f"expected an input of {self}; found shape {inputs.shape}")

    def _fits(self, node: Node) -> bool:
        least = self.min_ndim if self.ndim is None else self.ndim
        most = self.max_ndim if self.ndim is None else self.ndim
        if (least is not None and node.ndim < least) or (most is not None and node.ndim > most):
            return False
        return all(-node.ndim <= axis < node.ndim and node.shape[axis] == length for axis, length in self.axes.items())

    def __str__(self) -> str:
        parts = [f"{self.ndim} axes"] if self.ndim is not None else []
        parts += [f"at least {self.min_ndim} axes"] if self.min_ndim is not None else []
        parts += [f"at most {self.max_ndim} axes"] if self.max_ndim is not None else []
        parts += [f"length {length} along axis {axis}" for axis, length in self.axes.items()]
        return ", ".join(parts) or "any shape"


def check_inputs(spec: InputSpec | Sequence[InputSpec] | None, inputs: Any) -> None:
    """Raise an error if inputs are not as the specification says, or one for each in a list; None: anything goes."""
    if isinstance(spec, InputSpec):
        spec.check(inputs)
    elif spec is not None:
        if not isinstance(inputs, list) or len(inputs) != len(spec):
            raise ArgumentError(f"expected a list of {len(spec)} nodes as input; found {inputs!r}")
        for part, node in zip(spec, inputs, strict=True):
            part.check(node)
