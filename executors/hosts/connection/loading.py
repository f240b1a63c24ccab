"""Loads the modules that stand on packages of the extra `hosts`, when they are needed first."""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from miai_graph.errors import MissingDependencyError

_PACKAGES = {"cryptography", "dask", "distributed", "msgpack", "psutil", "tornado"}


def load(name: str) -> ModuleType:
    """Import a module of this package.

    Raises
    ------
    MissingDependencyError
        if a package that it needs is not installed.
    """
    dask_is_in_use = "distributed" in sys.modules
    try:
        module = import_module(f"executors.hosts.{name}")
    except ImportError as error:
        if (error.name or "").split(".")[0] not in _PACKAGES:
            raise
        raise MissingDependencyError(
            f"expected the packages that connect hosts; found no {error.name}. "
            "Install them: pip install 'miai-graph[hosts]'"
        ) from error
    if not dask_is_in_use:
        silence_dask()
    return module


def require_packages() -> None:
    """Raise MissingDependencyError if one of the packages is not installed, before anything is started."""
    missing = [name for name in sorted(_PACKAGES) if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"expected the packages that connect hosts; found no {', '.join(missing)}. "
            "Install them: pip install 'miai-graph[hosts]'"
        )


def silence_dask() -> None:
    """Keep Dask's log, which tells of each lost connection, from those who do not use Dask otherwise."""
    for name in ("distributed", "distributed.client", "tornado", "tornado.application"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
