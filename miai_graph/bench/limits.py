"""The least that a training step can take: its arithmetic at the speed of products, and the optimizer's memory traffic.

Both speeds are measured where and when the steps are, with as many threads as a side has. What a step takes is
compared with it as a share. Parameters that stay in a processor's cache can be moved faster than memory moves them, so
the share of a very small model may exceed the whole.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from threadpoolctl import threadpool_limits

from miai_graph.timing.peaks import measured_speed

_COPY_BYTES = 2**25
"""Of each thread: more than caches hold."""

_COPIES = 6


@dataclass(frozen=True)
class Work:
    """What a step cannot do without.

    Attributes
    ----------
    flops : of the forward and backward pass, by the costs of the graph's ops
    optimizer_bytes : each parameter, gradient and slot read once, each parameter and slot written once
    """

    flops: int
    optimizer_bytes: int


@dataclass(frozen=True)
class Peaks:
    """The speeds of so many threads.

    Attributes
    ----------
    flops_per_second : in products of matrices of float32
    bytes_per_second : read and written when they copy
    """

    flops_per_second: float
    bytes_per_second: float

    def best(self, other: Peaks) -> Peaks:
        """The higher of each speed."""
        return Peaks(
            max(self.flops_per_second, other.flops_per_second), max(self.bytes_per_second, other.bytes_per_second)
        )

    def limit_seconds(self, work: Work) -> float:
        """What a step takes at these speeds."""
        return work.flops / self.flops_per_second + work.optimizer_bytes / self.bytes_per_second


def measure_peaks(threads: int) -> Peaks:
    """Measure both speeds, in this process: it takes some 0.1 s."""
    with threadpool_limits(threads, user_api="blas"):
        flops_per_second = measured_speed(threads)
    return Peaks(flops_per_second, _copy_speed(threads))


def _copy_speed(threads: int) -> float:
    """Bytes a second of several threads that copy at the same time, each some of its own."""
    pairs = [(np.ones(_COPY_BYTES, np.uint8), np.ones(_COPY_BYTES, np.uint8)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        least = min(_copy_seconds(pool, pairs) for _ in range(_COPIES))
    return 2 * _COPY_BYTES * threads / least


def _copy_seconds(pool: ThreadPoolExecutor, pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    start = perf_counter()
    for finished in [pool.submit(np.copyto, target, source) for source, target in pairs]:
        finished.result()
    return perf_counter() - start
