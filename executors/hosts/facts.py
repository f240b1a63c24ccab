"""What a host says of itself: versions, cores, CPU features, and how fast it computes."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from time import perf_counter
from typing import Any

import numpy as np

from executors.threads import blas_threads
from miai_graph import __version__
from miai_graph.cores import usable_cores

CONNECTING_PACKAGES = ("distributed", "cryptography", "msgpack")
"""What the hosts' connections are made of."""

NOT_INSTALLED = "not installed"

_PRODUCT_SECONDS, _PRODUCT_SIZE = 25e-3, 384
_SMALL_SECONDS, _SMALL_SIZE = 3e-3, 64  # one thread computes products that are so small
_COPY_SECONDS, _COPY_BYTES = 8e-3, 2**23
_LEAST_TIMES = 5


def host_facts(measure: bool = False) -> dict[str, Any]:
    """Plain data on this process and its machine.

    Parameters
    ----------
    measure : whether to measure how fast it computes and copies, too, which takes some 50 ms
    """
    facts: dict[str, Any] = {
        "name": socket.gethostname(),
        "pid": os.getpid(),
        "threads": blas_threads(),
        "cores": usable_cores(),
        "machine": platform.machine(),
        "cpu_features": cpu_features(),
        "versions": {
            "miai-graph": __version__,
            "Python": platform.python_version(),
            "NumPy": np.__version__,
            **{package: installed_version(package) for package in CONNECTING_PACKAGES},
        },
    }
    if measure:
        facts["flops_per_second"] = measured_speed()
        facts["bytes_per_second"] = measured_memory_speed()
    return facts


@cache
def installed_version(package: str) -> str:
    """The version of a package, or `NOT_INSTALLED`."""
    try:
        return version(package)
    except PackageNotFoundError:
        return NOT_INSTALLED


def cpu_features() -> list[str]:
    """The vector instructions that NumPy found and uses here."""
    found = np.show_config(mode="dicts")["SIMD Extensions"]
    return sorted({*found.get("baseline", ()), *found.get("found", ())})


def measured_speed() -> float:
    """Floating-point operations a second in products of two matrices of float32, with as many threads as BLAS has.

    Where other programs hardly let all threads run at once, it is what they compute one by one.
    """
    small = blas_threads() * _product_speed(_SMALL_SIZE, _SMALL_SECONDS, _LEAST_TIMES)
    return max(small, _product_speed(_PRODUCT_SIZE, _PRODUCT_SECONDS))


def _product_speed(size: int, seconds: float, times: int = 1) -> float:
    x = np.ones((size, size), np.float32)
    y = np.empty_like(x)
    return 2 * size**3 / _least_seconds(lambda: np.matmul(x, x, out=y), seconds, times)


def measured_memory_speed() -> float:
    """Bytes that one thread reads and writes a second when it copies."""
    source = np.ones(_COPY_BYTES, np.uint8)
    target = np.ones_like(source)
    return 2 * _COPY_BYTES / _least_seconds(lambda: np.copyto(target, source), _COPY_SECONDS, _LEAST_TIMES)


def _least_seconds(work: Callable[[], object], seconds: float, times: int) -> float:
    """What it takes when nothing comes between: the least of at least so many times."""
    measured: list[float] = []
    end = perf_counter() + seconds
    while (start := perf_counter()) < end or len(measured) < times:
        work()
        measured.append(perf_counter() - start)
    return min(measured)
