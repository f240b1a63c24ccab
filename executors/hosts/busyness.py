"""How many cores of this machine are busy with whatever runs on it."""

from __future__ import annotations

import os

import psutil

from miai_graph.cores import usable_cores


def busy_cores(seconds: float) -> float | None:
    """How many of the cores that this process may use were busy, on average, while this waited so long.

    None where that cannot be known: a container that may use a share of the machine's time sees all cores.
    """
    shares = psutil.cpu_percent(seconds, percpu=True)
    own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(len(shares)))
    if usable_cores() < len(own) or max(own) >= len(shares):
        return None
    return sum(shares[core] for core in own) / 100
