"""Finds out what a user must know when something does not work: cores, libraries, executors, and what is wrong."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_info

from miai_graph import __version__
from miai_graph.executor import executor_names

PACKAGES = ("numpy", "networkx", "matplotlib", "scikit-learn", "safetensors", "rich")


@dataclass
class Report:
    """What was found: facts by name, and a sentence for each problem."""

    facts: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def examine() -> Report:
    """Look at the machine and the installation."""
    report = Report()
    report.facts["miai-graph"] = f"{__version__} on Python {platform.python_version()}, {platform.platform()}"
    report.facts["cores"] = f"{usable_cores()} usable of {os.cpu_count()}"
    report.facts["BLAS"] = _blas() or "none"
    report.facts["packages"] = ", ".join(f"{name} {_version(name) or 'missing'}" for name in PACKAGES)
    report.facts["executors"] = ", ".join(executor_names()) or "none"
    _find_problems(report)
    return report


def _find_problems(report: Report) -> None:
    for name in PACKAGES:
        if _version(name) is None:
            report.problems.append(f"Package {name} is not installed: run pip install {name}.")
    if not executor_names():
        report.problems.append("No executors are installed: run pip install -e . in the checkout.")
    spec = importlib.util.find_spec("executors")
    own = Path(__file__).parent.parent / "executors" / "__init__.py"
    if spec is None or spec.origin is None:
        report.problems.append("There is no package named executors: run pip install -e . in the checkout.")
    elif Path(spec.origin).resolve() != own.resolve():
        report.problems.append(
            f"The package named executors at {spec.origin} is not the one of miai-graph: uninstall or rename it."
        )
    if not _blas():
        report.problems.append("NumPy's BLAS library is not known to threadpoolctl, so its threads cannot be limited.")


def usable_cores() -> int:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _blas() -> str:
    np.ones((2, 2)) @ np.ones((2, 2))
    pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    return ", ".join(f"{pool['internal_api']} {pool['version']}, {pool['num_threads']} threads" for pool in pools)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
