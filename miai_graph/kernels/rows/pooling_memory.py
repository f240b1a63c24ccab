"""Where the results of pooling may lie: known before its kernels are loaded."""

from __future__ import annotations

from miai_graph.kernels.compiler import native
from miai_graph.kernels.compiler.vectors import FLOAT32, FLOAT64
from miai_graph.node import Node


def shares_memory(node: Node) -> bool:
    """Whether the gradient of max-pooling may be written over the image: each window, once it was read, by itself."""
    g, x = node.inputs
    if native.processor() is None or x.dtype not in (FLOAT32, FLOAT64) or g.op.is_view:
        return False
    size, steps, padding = (node.attributes[name] for name in ("pool_size", "strides", "padding"))
    return steps == size and all(
        isinstance(count, int) and isinstance(pixels, int) and count * length >= pixels + before
        for count, length, pixels, (before, _) in zip(g.type.shape[1:3], size, x.type.shape[1:3], padding, strict=True)
    )
