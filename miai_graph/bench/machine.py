"""What a benchmark ran on."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

from miai_graph.doctor import examine
from miai_graph.errors import MissingDependencyError

_HAS = "import importlib.util, sys; sys.exit(importlib.util.find_spec(sys.argv[1]) is None)"
NAMES = {"torch": "PyTorch", "jax": "JAX"}


def describe_machine() -> dict[str, str]:
    """Facts by name: the processor, and what `miai-graph doctor` tells."""
    return {"processor": processor_name(), **examine().facts}


def processor_name() -> str:
    """What the processor is called, or at least its architecture."""
    try:
        if sys.platform == "linux":
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
            return names[0] if names else platform.machine()
        if sys.platform == "darwin":
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return platform.machine()
    return platform.processor() or platform.machine()


def has_peer(python: str, library: str) -> bool:
    """Whether a Python has this library, by the name of its package; OSError if it cannot be run."""
    return subprocess.run([python, "-c", _HAS, library], check=False, capture_output=True).returncode == 0


def check_peer(python: str, library: str) -> None:
    """Raise MissingDependencyError unless a Python has this library, by the name of its package."""
    try:
        found = has_peer(python, library)
    except OSError as error:
        raise MissingDependencyError(
            f"expected a Python to compare with at {python}; found that it cannot be run ({error}). Give --peer-python"
        ) from error
    if not found:
        raise MissingDependencyError(
            f"expected {NAMES[library]} in {python}, to compare with; found none. Install it there "
            f"(pip install {library}), name another Python that has it with --peer-python, or compare with nothing by "
            "leaving out --vs"
        )
