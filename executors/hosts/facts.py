"""What a host says of itself: versions, cores, CPU features, and how fast it computes."""

from __future__ import annotations

import os
import platform
import socket
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from executors.threads import blas_threads
from miai_graph import __version__
from miai_graph.cores import usable_cores
from miai_graph.timing.peaks import measured_memory_speed, measured_speed

CONNECTING_PACKAGES = ("distributed", "cryptography", "msgpack")
"""What the hosts' connections are made of."""

NOT_INSTALLED = "not installed"


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
        facts["flops_per_second"] = measured_speed(blas_threads())
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
