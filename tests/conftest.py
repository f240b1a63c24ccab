"""What all tests have in common: the same seed, nothing left running, and reproducible hypothesis."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from multiprocessing import active_children, resource_tracker
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import miai_graph as mg
from executors import Processes

settings.register_profile(
    "reproducible", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
settings.load_profile("reproducible")

PATIENCE_SECONDS = 2.0


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Names, streams and initial weights are the same however many tests ran before."""
    mg.set_seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def pools() -> Iterator[Mapping[int, Processes]]:
    """Two workers and three, for all tests of a module."""
    with Processes(2, wait_for_workers=True) as two, Processes(3, wait_for_workers=True) as three:
        yield {2: two, 3: three}


@pytest.fixture(autouse=True)
def _nothing_left_running() -> Iterator[None]:
    """Fail a test that leaves threads or child processes behind."""
    before = running()
    yield
    deadline = time.monotonic() + PATIENCE_SECONDS
    while left := running() - before:
        if time.monotonic() > deadline:
            pytest.fail(f"expected nothing left running; found {left}")
        time.sleep(0.01)


def running() -> set[object]:
    """The threads of this process, and the numbers of its children (on Linux, of all; else of multiprocessing's)."""
    found = {child.pid for child in active_children()}
    for listing in Path("/proc/self/task").glob("*/children"):
        try:
            found |= {int(pid) for pid in listing.read_text().split()}
        except FileNotFoundError:  # a thread that has just ended
            continue
    found.discard(getattr(resource_tracker._resource_tracker, "_pid", None))
    # Threads of kernels wait for what comes next, and end with the process.
    return {*(thread for thread in threading.enumerate() if thread.name != "kernels"), *found}
