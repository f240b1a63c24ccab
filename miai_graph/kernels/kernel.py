"""What a kernel is, and how several make one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from miai_graph.op import Array

Kernel = Callable[[], Any]
"""Computes when it is called: all that it reads and writes was fixed when it was prepared."""

Scratch = Callable[[tuple[int, ...], Any], Array]
"""Gives memory of a shape and dtype, for use while a kernel runs; other kernels use the same."""


@dataclass(frozen=True, eq=False)
class Several:
    """Kernels that run one after another.

    Attributes
    ----------
    kept : arrays that live as long as they
    """

    kernels: tuple[Kernel, ...]
    kept: list[Array] = field(default_factory=list, repr=False)

    def __call__(self) -> None:
        for kernel in self.kernels:
            kernel()


NOTHING = Several(())
"""Computes nothing."""


class Checked:
    """A kernel that notes where its input makes no sense, instead of failing.

    Parameters
    ----------
    kernel : what computes, and sets the flag
    flag : one number, 0 unless there is something wrong
    explain : called then; raises
    """

    def __init__(self, kernel: Kernel, flag: Array, explain: Kernel) -> None:
        self.kernel = kernel
        self._flag = memoryview(flag.data)
        self._explain = explain

    def __call__(self) -> None:
        self.kernel()
        self.check()

    def check(self) -> None:
        """Raise if the kernel has noted anything, when it ran last."""
        if self._flag[0]:
            self._flag[0] = 0
            self._explain()
