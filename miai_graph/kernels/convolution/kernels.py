"""Kernels for convolutions and their gradients, in native code of one thread.

Their definitions serve where there is no native code, and for arrays that it is not made for.
"""

from __future__ import annotations

import math

from miai_graph.kernels.compiler import native
from miai_graph.kernels.convolution.correlating import Correlating
from miai_graph.kernels.convolution.geometry import Geometry
from miai_graph.kernels.convolution.kernel_gradient import KernelGradient, SlidingGradient
from miai_graph.kernels.convolution.program import target_for
from miai_graph.kernels.convolution.scattering import Scattering
from miai_graph.kernels.convolution.tiles import Target
from miai_graph.kernels.epilogue import finished
from miai_graph.kernels.kernel import Kernel
from miai_graph.kernels.numpy_kernels import Request, by_definition, kernel_for
from miai_graph.kernels.products.matrix_product import matrix_product


@kernel_for("conv2d", "conv2d_input_gradient", "conv2d_kernel_gradient")
def _convolution(request: Request) -> Kernel:
    return convolution(request, native.processor())


def convolution(request: Request, processor: native.Processor | None) -> Kernel:
    """The kernel for one of the three ops, in code for this processor where that can serve."""
    geometry, target = Geometry.of(request), target_for(request, processor)
    if geometry.is_product and all(array.flags.c_contiguous for array in request.inputs):
        return _product(request)
    if target is None:
        return _finished(by_definition(request), request)
    if request.node.op.name == "conv2d_kernel_gradient":
        return _kernel_gradient(request, target, geometry)
    places = geometry.places()
    if request.node.op.name == "conv2d":
        down, across = geometry.lines()
        return Correlating(request, target, geometry, ([down], [across]), places).kernel()
    if not geometry.is_depthwise:
        places = places.swapaxes(3, 4)
    correlating = Correlating(request, target, geometry, geometry.gradient_lines(), places)
    if not geometry.is_depthwise:
        scattering = Scattering(request, target, geometry, places)
        if scattering.cycles < correlating.cycles:
            return _finished(scattering.kernel(), request)
    return correlating.kernel()


def _finished(kernel: Kernel, request: Request) -> Kernel:
    return finished(kernel, request.epilogue, request.output, request.scratch, request.threads or 1)


def _product(request: Request) -> Kernel:
    arrays = (*request.inputs, request.output)
    a, b, output = (array.reshape(math.prod(array.shape[:-1]), array.shape[-1]) for array in arrays)
    if request.node.op.name == "conv2d_input_gradient":
        b = b.T
    if request.node.op.name == "conv2d_kernel_gradient":
        a = a.T
    epilogue = request.epilogue and request.epilogue.reshaped(output.shape)
    return matrix_product(a, b, output, request.scratch, request.threads, epilogue)


def _kernel_gradient(request: Request, target: Target, geometry: Geometry) -> Kernel:
    if SlidingGradient.suits(target, geometry):
        return SlidingGradient(request, target, geometry).kernel()
    return KernelGradient(request, target, geometry).kernel()
