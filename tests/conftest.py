"""What all tests have in common: the same seed, nothing left running, and reproducible hypothesis."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import miai_graph as mg

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


@pytest.fixture(autouse=True)
def _nothing_left_running() -> Iterator[None]:
    """Fail a test that leaves threads or child processes behind."""
    threads, children = set(threading.enumerate()), set(multiprocessing.active_children())
    yield
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        left = [item for item in threading.enumerate() if item not in threads and item.is_alive()]
        left += [item for item in multiprocessing.active_children() if item not in children]
        if not left:
            return
        if time.monotonic() > deadline:
            pytest.fail(f"expected nothing left running; found {left}")
        time.sleep(0.01)
