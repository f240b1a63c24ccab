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


@dataclass(frozen=True, eq=False)
class Checked:
    """A kernel that notes where its input makes no sense, instead of failing.

    Attributes
    ----------
    kernel : what computes
    check : raises if there was anything wrong when it ran last
    """

    kernel: Kernel
    check: Kernel

    def __call__(self) -> None:
        self.kernel()
        self.check()


def checked(kernel: Kernel, flag: Array, explain: Kernel) -> Checked:
    """A kernel that sets a flag, one number, to other than 0 where its input makes no sense; `explain` raises then."""

    def check() -> None:
        if word[0]:
            word[0] = 0
            explain()

    word = memoryview(flag.data)
    return Checked(kernel, check)
