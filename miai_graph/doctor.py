"""Finds out what a user must know when something does not work: cores, libraries, executors, and what is wrong.

Other packages add what they know through the entry points ``miai_graph.doctors``: functions of the address of a
cluster, and of files by name, with its token or with certificates, which return a `Report`. Without an address it is on
this machine.
"""

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
from miai_graph.errors import MiaiGraphError
from miai_graph.executor import executor_names
from miai_graph.kernels.compiler import native

ENTRY_POINT_GROUP = "miai_graph.doctors"
PACKAGES = ("numpy", "networkx", "matplotlib", "scikit-learn", "safetensors", "rich", "llvmlite")


@dataclass
class Report:
    """What was found: facts by name, tables as text, and sentences.

    Attributes
    ----------
    remarks : what one should know, though it works
    problems : what does not work
    """

    facts: dict[str, str] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, other: Report) -> None:
        """Take in what somebody else has found."""
        self.facts |= other.facts
        self.tables += other.tables
        self.remarks += other.remarks
        self.problems += other.problems


Doctor = Callable[..., Report]


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
    for name, doctor in _doctors().items():
        try:
            report.add(doctor()(None))
        except Exception as error:
            report.problems.append(f"Looking at {name} failed: {type(error).__name__}: {error}.")
    return report


def examine_cluster(address: str, token_file: Path | None = None, **files: Path | None) -> Report:
    """Look at the cluster at an address.

    Parameters
    ----------
    token_file : with its token
    files : certificates instead of a token: ``tls_ca_file``, ``tls_cert`` and ``tls_key``
    """
    report = Report()
    doctors = _doctors()
    if not doctors:
        report.problems.append("No executor for clusters is installed: run pip install -e . in the checkout.")
    for doctor in doctors.values():
        try:
            report.add(doctor()(address, token_file, **files))
        except MiaiGraphError as error:
            report.problems.append(sentence(str(error)))
    return report


def sentence(text: str) -> str:
    """The text with a capital and a full stop, if it has no other."""
    return f"{text[0].upper()}{text[1:]}{'' if text.endswith(('.', '?', '!')) else '.'}"


def _doctors() -> dict[str, Callable[[], Doctor]]:
    """By name, what loads those that are installed."""
    return {point.name: point.load for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)}


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


def _kernels() -> str:
    processor = native.processor()
    if processor is None:
        return "NumPy's alone; there is no native code for this processor, or it is switched off"
    vectors = f"vectors of {processor.vector_bytes} bytes, {processor.registers} registers"
    return f"native, {vectors}; {_count(len(native.kept()), 'module')} kept in {native.cache_folder()}"


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
    "kernels": _kernels,
    "processes": _processes,
    "packages": _packages,
    "executors": _executors,
}
PROBLEMS: tuple[Callable[[], Iterator[str]], ...] = (_missing_packages, _missing_executors, _no_way_to_start_workers)
