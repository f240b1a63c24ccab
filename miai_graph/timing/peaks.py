"""How fast this process can compute and copy at most: what achieved speeds are compared with."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from time import perf_counter

import numpy as np

from miai_graph.kernels.kernel import Kernel
from miai_graph.kernels.products.matrix_product import matrix_product

_PRODUCT_SECONDS, _SHORT_SECONDS, _PRODUCT_SIZE = 25e-3, 8e-3, 384
_SMALL_SECONDS, _SMALL_SIZE = 3e-3, 64  # one thread computes products that are so small
_COPY_SECONDS, _COPY_BYTES = 8e-3, 2**23
_LEAST_TIMES = 5


def measured_speed(threads: int, seconds: float = _PRODUCT_SECONDS) -> float:
    """Floating-point operations a second in products of two matrices of float32, BLAS's or ours, the faster ones.

    Where other programs hardly let all threads run at once, it is what they compute one by one.

    Parameters
    ----------
    threads : how many there are, also for BLAS
    seconds : how long to measure
    """
    small = threads * _product_speed(_SMALL_SIZE, _SMALL_SECONDS, _LEAST_TIMES)
    return max(small, _product_speed(_PRODUCT_SIZE, seconds, threads=threads))


def _product_speed(size: int, seconds: float, times: int = 1, threads: int = 1) -> float:
    x = np.ones((size, size), np.float32)
    y = np.empty_like(x)
    ways: tuple[Kernel, ...] = (lambda: np.matmul(x, x, out=y), matrix_product(x, x, y, np.empty, threads))
    return 2 * size**3 / min(_least_seconds(compute, seconds / len(ways), times) for compute in ways)


def measured_memory_speed() -> float:
    """Bytes that one thread reads and writes a second when it copies."""
    source = np.ones(_COPY_BYTES, np.uint8)
    target = np.ones_like(source)
    return 2 * _COPY_BYTES / _least_seconds(lambda: np.copyto(target, source), _COPY_SECONDS, _LEAST_TIMES)


@cache
def known_peaks(threads: int) -> tuple[float, float]:
    """Floating-point operations and bytes a second at most, measured the first time: that takes some 30 ms."""
    return measured_speed(threads, _SHORT_SECONDS), measured_memory_speed()


def _least_seconds(work: Callable[[], object], seconds: float, times: int) -> float:
    """What it takes when nothing comes between: the least of at least so many times."""
    measured: list[float] = []
    end = perf_counter() + seconds
    while (start := perf_counter()) < end or len(measured) < times:
        work()
        measured.append(perf_counter() - start)
    return min(measured)
