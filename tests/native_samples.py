"""What tests of native kernels share: arrays in the midst of others, and results beside their definitions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from guarded_memory import is_guarded

from miai_graph.kernels.compiler.native import Processor
from miai_graph.kernels.numpy_kernels import FILES, NATIVE_KERNELS, Request, load_kernels
from miai_graph.node import Node
from miai_graph.op import as_node

for op_names in FILES.values():
    for op_name in op_names:
        load_kernels(op_name)

PROCESSORS = (Processor(16, 32), Processor(32, 16), Processor(64, 32))
SENTINEL = 7
GUARD = 40
TOLERANCES = {np.dtype(np.float32): 3e-6, np.dtype(np.float64): 1e-14}


def among_others(shape: Sequence[int], dtype: Any, before: int = 1, behind: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """An array, and the memory in which it has so many others before and behind it; all are `SENTINEL`.

    Where arrays are guarded, nobody else lies beside it.
    """
    size = math.prod(shape)
    memory = np.full(before + size + behind, SENTINEL, dtype)
    array = np.full(size, SENTINEL, dtype) if is_guarded() else memory[before : before + size]
    return array.reshape(shape), memory


def beside_others(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A copy one element beyond where memory begins, and that memory."""
    result, memory = among_others(array.shape, array.dtype, 1, GUARD - 1)
    result[...] = array
    return result, memory


def request_for(node: Node, inputs: list[np.ndarray], output: np.ndarray) -> Request:
    """What a kernel for the node is prepared for."""
    return Request(node, inputs, output, node.attributes, np.empty)


def native_result(node: Node, *inputs: np.ndarray) -> np.ndarray:
    """What native code makes of the inputs; it writes nowhere else, and does the same again."""
    output, memory = beside_others(np.full([int(dim) for dim in node.type.shape], SENTINEL, node.dtype))
    kernel = NATIVE_KERNELS[node.op.name](request_for(node, [beside_others(array)[0] for array in inputs], output))
    assert kernel is not None
    kernel()
    first = output.copy()
    kernel()
    np.testing.assert_array_equal(output, first)
    np.testing.assert_array_equal([memory[0], *memory[1 + output.size :]], np.full(GUARD, SENTINEL, output.dtype))
    return first


def check(build: Callable[..., Node], *inputs: np.ndarray, scale: float = 1.0) -> None:
    """Native code agrees with the definition, to some units in the last place: `scale` 0 for all bits."""
    node: Any = build(*(as_node(array) for array in inputs))
    with np.errstate(all="ignore"):
        expected = np.asarray(node.op.forward(*inputs, **node.attributes))
    tolerance = TOLERANCES[node.dtype] * scale if scale else 0.0
    np.testing.assert_allclose(native_result(node, *inputs), expected, tolerance, tolerance)
