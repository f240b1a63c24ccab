"""Finds out what a user must know when something does not work: cores, libraries, executors, and what is wrong."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from mmap import mmap
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_info

from miai_graph import __version__
from miai_graph.cores import physical_cores, threads_of_each, usable_cores
from miai_graph.executor import executor_names

PACKAGES = ("numpy", "networkx", "matplotlib", "scikit-learn", "safetensors", "rich", "llvmlite")


@dataclass
class Report:
    """What was found: facts by name, and a sentence for each problem."""

    facts: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def examine() -> Report:
    """Look at the machine and the installation."""
    report = Report()
    for name, find in FACTS.items():
        try:
            report.facts[name] = find()
        except Exception as error:  # what is broken must not hide the rest
            report.facts[name] = "unknown"
            report.problems.append(f"Looking at {name} failed: {type(error).__name__}: {error}.")
    for find_problems in PROBLEMS:
        try:
            report.problems += find_problems()
        except Exception as error:
            report.problems.append(f"Looking for problems failed: {type(error).__name__}: {error}.")
    return report


def _versions() -> str:
    return f"{__version__} on Python {platform.python_version()}, {platform.platform()}"


def _cores() -> str:
    return f"{usable_cores()} usable of {os.cpu_count()}; {physical_cores()} physical"


def _blas() -> str:
    np.ones((2, 2)) @ np.ones((2, 2))
    pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    if pools:
        return ", ".join(
            f"{pool['internal_api']} {pool['version']}, {_count(pool['num_threads'], 'thread')}" for pool in pools
        )
    name = np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]
    return f"{name}, whose threads cannot be limited once Python runs: threadpoolctl does not know it"


def _processes() -> str:
    workers = physical_cores()
    return f"{_count(workers, 'worker')}, {_count(threads_of_each(workers), 'thread')} each; {_shared_memory()}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _shared_memory() -> str:
    """The kind of shared memory that can be had; raises what the system raises if there is none."""
    page = 4096
    if not hasattr(os, "memfd_create"):
        named = SharedMemory(create=True, size=page)
        named.close()
        named.unlink()
        return "shared memory by name"
    descriptor = os.memfd_create("miai")
    try:
        os.ftruncate(descriptor, page)
        with mmap(descriptor, page) as memory:
            memory[0] = 1
    finally:
        os.close(descriptor)
    return "anonymous shared memory"


def _packages() -> str:
    return ", ".join(f"{name} {_version(name) or 'missing'}" for name in PACKAGES)


def _executors() -> str:
    return ", ".join(executor_names()) or "none"


def _missing_packages() -> Iterator[str]:
    for name in PACKAGES:
        if _version(name) is None:
            yield f"Package {name} is not installed: run pip install {name}."


def _missing_executors() -> Iterator[str]:
    if not executor_names():
        yield "No executors are installed: run pip install -e . in the checkout."
    spec = importlib.util.find_spec("executors")
    own = Path(__file__).parent.parent / "executors" / "__init__.py"
    if spec is None or spec.origin is None:
        yield "There is no package named executors: run pip install -e . in the checkout."
    elif Path(spec.origin).resolve() != own.resolve():
        yield f"The package named executors at {spec.origin} is not the one of miai-graph: uninstall or rename it."


def _no_way_to_start_workers() -> Iterator[str]:
    if not sys.executable or not os.access(sys.executable, os.X_OK):
        yield (
            f"Worker processes cannot be started: expected Python's program in sys.executable; found "
            f"{sys.executable!r}. Set sys.executable to it."
        )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


FACTS: dict[str, Callable[[], str]] = {
    "miai-graph": _versions,
    "cores": _cores,
    "BLAS": _blas,
    "processes": _processes,
    "packages": _packages,
    "executors": _executors,
}
PROBLEMS: tuple[Callable[[], Iterator[str]], ...] = (_missing_packages, _missing_executors, _no_way_to_start_workers)
