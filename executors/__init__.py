"""The executors that come with miai_graph. Each keeps the contract of `miai_graph.executor`.

>>> from executors import Hosts, Processes, Serial
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miai_graph.context import hide_from_source_lines

if TYPE_CHECKING:
    from executors.hosts.executor import Hosts
    from executors.processes.executor import Processes
    from executors.serial import Serial

hide_from_source_lines(str(Path(__file__).parent))

_MODULES = {
    "Hosts": "executors.hosts.executor",
    "Processes": "executors.processes.executor",
    "Serial": "executors.serial",
}

__all__ = ["Hosts", "Processes", "Serial"]


def __getattr__(name: str) -> Any:
    """Who uses one executor need not load what the others need."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
