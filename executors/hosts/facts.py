"""What a host says of itself: versions, cores, CPU features, and how fast it computes."""

from __future__ import annotations

import os
import platform
import socket
from time import perf_counter
from typing import Any

import numpy as np

from executors.threads import blas_threads
from miai_graph import __version__
from miai_graph.cores import usable_cores

MEASURED_SIZE = 384
MEASURED_TIMES = 5


def host_facts(measure: bool = False) -> dict[str, Any]:
    """Plain data on this process and its machine.

    Parameters
    ----------
    measure : whether to measure the speed of matrix products too, which takes some milliseconds
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
        },
    }
    if measure:
        facts["flops_per_second"] = measured_speed()
    return facts


def cpu_features() -> list[str]:
    """The vector instructions that NumPy found and uses here."""
    found = np.show_config(mode="dicts")["SIMD Extensions"]
    return sorted({*found.get("baseline", ()), *found.get("found", ())})


def measured_speed() -> float:
    """Floating-point operations a second in a product of two matrices of float32, the best of a few times."""
    x = np.ones((MEASURED_SIZE, MEASURED_SIZE), np.float32)
    y = np.empty_like(x)
    best = float("inf")
    for _ in range(MEASURED_TIMES):
        start = perf_counter()
        np.matmul(x, x, out=y)
        best = min(best, perf_counter() - start)
    return 2 * MEASURED_SIZE**3 / best
