"""Kernels that several threads share: each computes some rows, or images, of the output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from miai_graph.kernels.compiler.native import processor
from miai_graph.kernels.elementwise.kernels import adding
from miai_graph.kernels.epilogue import Epilogue
from miai_graph.kernels.kernel import Checked, Kernel, Several
from miai_graph.kernels.numpy_kernels import Request, prepare
from miai_graph.kernels.running.crew import spans, together
from miai_graph.op import Array

SHARED: Mapping[str, tuple[int, ...]] = {
    "conv2d": (0,),
    "conv2d_input_gradient": (0,),
    "max_pool2d": (0,),
    "max_pool2d_gradient": (0, 1),
    "average_pool2d": (0,),
    "average_pool2d_gradient": (0,),
    "softmax": (0,),
    "sparse_softmax_cross_entropy": (0, 1),
}
"""Ops whose output depends row by row on their inputs, and which of these have the same rows."""

ADDED = ("conv2d_kernel_gradient",)
"""Ops whose output is a sum over the rows of both inputs."""

BYTES_WORTH_SHARING, FLOPS_WORTH_SHARING = 1 << 16, 1 << 20
"""A thread has at least about so much to read and write, or so many floating-point operations to do."""


def prepare_shared(request: Request, flops: Callable[[], int]) -> Kernel:
    """The kernel for a node, which as many threads share as it has work for.

    Parameters
    ----------
    flops : gives the floating-point operations of the node
    """
    name, threads = request.node.op.name, request.threads or 1
    if threads == 1 or name not in (*SHARED, *ADDED) or processor() is None or not _goes_by_rows(request):
        return prepare(request)
    moved = sum(array.nbytes for array in (*request.inputs, request.output))
    enough = max(moved // BYTES_WORTH_SHARING, flops() // FLOPS_WORTH_SHARING) + 1
    parts = spans(len(request.inputs[0]), min(threads, enough, max(1, len(request.inputs[0]))))
    if len(parts) < 2:
        return prepare(request)
    return _added(request, parts) if name in ADDED else _beside_each_other(request, parts)


def _goes_by_rows(request: Request) -> bool:
    """Not where the softmax goes down the first axis."""
    return request.inputs[0].ndim > 1 and request.attributes.get("axis", -1) != 0


def _beside_each_other(request: Request, parts: Sequence[slice]) -> Kernel:
    shared = SHARED[request.node.op.name]
    kernels = [
        _part(
            request,
            [x[part] if place in shared else x for place, x in enumerate(request.inputs)],
            request.output[part],
            request.epilogue and request.epilogue.at(part),
        )
        for part in parts
    ]
    checks = [kernel.check for kernel in kernels if isinstance(kernel, Checked)]
    computing = together([kernel.kernel if isinstance(kernel, Checked) else kernel for kernel in kernels])
    return Checked(computing, Several(tuple(checks))) if checks else computing


def _added(request: Request, parts: Sequence[slice]) -> Kernel:
    """Each thread's sum in memory of its own, and these added up in the end."""
    output = request.output
    others = [request.scratch(output.shape, output.dtype) for _ in parts[1:]]
    calls = [
        _part(request, [x[part] for x in request.inputs], result)
        for part, result in zip(parts, [output, *others], strict=True)
    ]
    return Several((together(calls), adding(output, others, len(parts))))


def _part(request: Request, inputs: Sequence[Array], output: Array, epilogue: Epilogue | None = None) -> Kernel:
    attributes: dict[str, Any] = dict(request.attributes)
    if "input_shape" in attributes:
        attributes["input_shape"] = output.shape
    own = replace(request, inputs=inputs, output=output, attributes=attributes, threads=1, epilogue=epilogue)
    return prepare(own)
