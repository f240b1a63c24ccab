"""What a convolution or one of its gradients is about."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from miai_graph.kernels.convolution.lines import Line, convolution_line, gradient_lines
from miai_graph.kernels.numpy_kernels import Request
from miai_graph.op import Array

IMAGE, KERNEL, RESULT = "image", "kernel", "result"

ROLES = {
    "conv2d": (IMAGE, KERNEL, RESULT),
    "conv2d_input_gradient": (RESULT, KERNEL, IMAGE),
    "conv2d_kernel_gradient": (IMAGE, RESULT, KERNEL),
}
"""What the two inputs and the output of each op are to the convolution."""


@dataclass(frozen=True)
class Geometry:
    """The geometry of a convolution, whichever of the three ops it is for.

    Attributes
    ----------
    image, kernel, result : the shapes of what the convolution takes and gives
    """

    image: tuple[int, ...]
    kernel: tuple[int, ...]
    result: tuple[int, ...]
    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    dilation: tuple[int, int]
    groups: int

    @classmethod
    def of(cls, request: Request) -> Geometry:
        """That of a request for one of the three ops."""
        arrays = (*request.inputs, request.output)
        shapes = {role: array.shape for role, array in zip(ROLES[request.node.op.name], arrays, strict=True)}
        names = ("strides", "padding", "dilation", "groups")
        return cls(**shapes, **{name: request.attributes[name] for name in names})

    @property
    def is_product(self) -> bool:
        """Is it one product of matrices?"""
        is_plain = self.strides == (1, 1) and not any(map(any, self.padding)) and self.groups == 1
        return is_plain and self.kernel[:2] == (1, 1)

    @property
    def is_depthwise(self) -> bool:
        """Does each channel have a kernel of its own, which gives one channel?"""
        return self.groups > 1 and self.kernel[2] == 1 and self.kernel[3] == self.groups

    def places(self) -> Array:
        """Where in the kernel each group's elements are: (groups, height, width, channels in, channels out).

        Depthwise, all are one group, of whose one channel each lane has its own.
        """
        height, width, per_group, channels = self.kernel
        places = np.arange(math.prod(self.kernel), dtype=np.int32).reshape(self.kernel)
        if self.is_depthwise:
            return places[None]
        grouped = places.reshape(height, width, per_group, self.groups, channels // self.groups)
        return grouped.transpose(3, 0, 1, 2, 4)

    def lines(self) -> tuple[Line, Line]:
        """Those of the convolution, down and across."""
        down, across = (convolution_line(self.result[axis], *window) for axis, window in self._axes())
        return down, across

    def gradient_lines(self) -> tuple[list[Line], list[Line]]:
        """Those of its gradient in the images, down and across."""
        down, across = (gradient_lines(self.image[axis], *window) for axis, window in self._axes())
        return down, across

    def _axes(self) -> Iterator[tuple[int, tuple[int, int, int, int]]]:
        """Of each axis the size of the window, its stride, the zeros in front, and the distance of its elements."""
        for place, (before, _) in enumerate(self.padding):
            yield place + 1, (self.kernel[place], self.strides[place], before, self.dilation[place])
