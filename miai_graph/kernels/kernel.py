"""What a kernel is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from miai_graph.op import Array

Kernel = Callable[[], Any]
"""Computes when it is called: all that it reads and writes was fixed when it was prepared."""

Scratch = Callable[[tuple[int, ...], Any], Array]
"""Gives memory of a shape and dtype, for use while a kernel runs; other kernels use the same."""
