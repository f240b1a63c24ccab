"""Kernels for pooling without padding: a window's elements are seen as strided images, one for each place in it.

With padding, the definitions serve.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from miai_graph.kernels.kernel import Kernel
from miai_graph.kernels.numpy_kernels import Request, by_definition, kernel_for
from miai_graph.op import Array


def _places(x: Array, output_shape: tuple[int, ...], attributes: Any) -> list[Array]:
    """For each place in the window, row by row, the elements that all windows have there: views of x."""
    (height, width), (down, across) = attributes["pool_size"], attributes["strides"]
    rows, columns = output_shape[1:3]
    return [
        x[:, i : i + down * (rows - 1) + 1 : down, j : j + across * (columns - 1) + 1 : across]
        for i, j in itertools.product(range(height), range(width))
    ]


def _is_padded(request: Request) -> bool:
    return any(any(pair) for pair in request.attributes["padding"])


@kernel_for("max_pool2d")
def _max_pool2d(request: Request) -> Kernel:
    if _is_padded(request):
        return by_definition(request)
    output = request.output
    first, *others = _places(request.inputs[0], output.shape, request.attributes)

    def run() -> None:
        np.copyto(output, first)
        for place in others:
            np.maximum(output, place, out=output)

    return run


@kernel_for("max_pool2d_gradient")
def _max_pool2d_gradient(request: Request) -> Kernel:
    if _is_padded(request):
        return by_definition(request)
    g, x = request.inputs
    output = request.output
    sources = _places(x, g.shape, request.attributes)
    targets = _places(output, g.shape, request.attributes)
    greatest = request.scratch(g.shape, g.dtype)
    share = request.scratch(g.shape, g.dtype)
    wins = request.scratch(g.shape, bool)
    open_windows = request.scratch(g.shape, bool)
    definition = by_definition(request)

    def run() -> None:
        np.copyto(greatest, sources[0])
        for source in sources[1:]:
            np.maximum(greatest, source, out=greatest)
        if np.isnan(greatest).any():
            definition()  # nan equals nothing, so the search below would not find it
            return
        output.fill(0)
        open_windows.fill(True)
        for source, target in zip(sources, targets, strict=True):
            np.equal(source, greatest, wins)
            np.logical_and(wins, open_windows, wins)
            np.logical_xor(open_windows, wins, open_windows)
            np.multiply(g, wins, share)
            np.add(target, share, target)

    return run


@kernel_for("average_pool2d")
def _average_pool2d(request: Request) -> Kernel:
    if _is_padded(request):
        return by_definition(request)
    output = request.output
    first, *others = _places(request.inputs[0], output.shape, request.attributes)
    share = np.asarray(1.0 / (1 + len(others)), output.dtype)

    def run() -> None:
        np.copyto(output, first)
        for place in others:
            np.add(output, place, output)
        np.multiply(output, share, output)

    return run


@kernel_for("average_pool2d_gradient")
def _average_pool2d_gradient(request: Request) -> Kernel:
    if _is_padded(request):
        return by_definition(request)
    g, output = request.inputs[0], request.output
    targets = _places(output, g.shape, request.attributes)
    count = np.asarray(1.0 / len(targets), g.dtype)
    share = request.scratch(g.shape, g.dtype)

    def run() -> None:
        np.multiply(g, count, share)
        output.fill(0)
        for target in targets:
            np.add(target, share, target)

    return run
