"""Hosts for tests of preflight and doctor: as they describe themselves, and one whose versions and clock differ."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from executors.hosts.cluster import Cluster
from executors.hosts.connection.embedded import EmbeddedCluster
from executors.hosts.connection.host_process import HostProcess
from executors.hosts.connection.security import credentials

PATIENCE_SECONDS = 30.0

OTHER_VERSIONS = {"miai-graph": "0.0.9", "Python": "3.99.1", "NumPy": "2.1.7"}
CLOCK_SECONDS = 200

# What Python runs at its start if it finds it: this host's programs are of other versions, and its clock is wrong.
SITE = f"""
import time
import miai_graph, numpy, platform
miai_graph.__version__ = {OTHER_VERSIONS["miai-graph"]!r}
numpy.__version__ = {OTHER_VERSIONS["NumPy"]!r}
platform.python_version = lambda: {OTHER_VERSIONS["Python"]!r}
time_ns = time.time_ns
time.time_ns = lambda: time_ns() + {CLOCK_SECONDS} * 10**9
"""


@dataclass(frozen=True)
class Inspected:
    """A host as preflight gets to know it."""

    address: str
    hostname: str
    versions: dict[str, str]


def inspected(cluster: Cluster) -> list[Inspected]:
    """All hosts of a cluster."""
    facts = {
        address: cluster.call(address, "describe").result(PATIENCE_SECONDS).content for address in cluster.addresses
    }
    return [Inspected(address, fact["name"], fact["versions"]) for address, fact in facts.items()]


@contextmanager
def other_host(cluster: EmbeddedCluster, token: str, folder: Path, patch: pytest.MonkeyPatch) -> Iterator[str]:
    """One more host, with other versions and another time of day."""
    (folder / "sitecustomize.py").write_text(SITE)
    with patch.context() as within:
        within.setenv("PYTHONPATH", str(folder))
        process = HostProcess(1)
    with process:
        options: dict[str, Any] = {"host": "127.0.0.1", "port": 0}
        process.join(cluster.scheduler_address, credentials(token), **options)
        yield process.joined(PATIENCE_SECONDS)
