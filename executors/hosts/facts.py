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

_PRODUCT_SECONDS, _PRODUCT_SIZE = 30e-3, 384
_COPY_SECONDS, _COPY_BYTES = 8e-3, 2**23


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
    """Floating-point operations a second in products of two matrices of float32, with as many threads as BLAS has."""
    x = np.ones((_PRODUCT_SIZE, _PRODUCT_SIZE), np.float32)
    y = np.empty_like(x)
    return 2 * _PRODUCT_SIZE**3 / _least_seconds(lambda: np.matmul(x, x, out=y), _PRODUCT_SECONDS)


def measured_memory_speed() -> float:
    """Bytes that one thread reads and writes a second when it copies."""
    source = np.ones(_COPY_BYTES, np.uint8)
    target = np.ones_like(source)
    return 2 * _COPY_BYTES / _least_seconds(lambda: np.copyto(target, source), _COPY_SECONDS)


def _least_seconds(work: Callable[[], object], seconds: float) -> float:
    """What it takes when nothing comes between: the least, for other programs may interrupt most times."""
    least = float("inf")
    end = perf_counter() + seconds
    while (start := perf_counter()) < end:
        work()
        least = min(least, perf_counter() - start)
    return least
