"""How much memory processes have: for each side of the benchmark, in whatever Python it runs.

Linux tells what is resident and its peak, and lets the peak be forgotten. Elsewhere there is only the peak since the
process began, so growth is at least what is found; where not even that is known, it is None.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

# Windows has none.
resource: Any = importlib.import_module("resource") if importlib.util.find_spec("resource") else None

_FORGET_PEAK = "5"


def begin_growth() -> int | None:
    """Forget the peak so far, and give the bytes that this process has now."""
    try:
        Path("/proc/self/clear_refs").write_text(_FORGET_PEAK)
    except OSError:
        return peak_bytes()
    return resident_bytes()


def growth_since(before: int | None) -> int | None:
    """By how many bytes the peak is above what `begin_growth` gave."""
    peak = peak_bytes()
    return None if before is None or peak is None else max(0, peak - before)


def resident_bytes(process: int | str = "self") -> int | None:
    """What a process has in memory now."""
    return _status(process, "VmRSS")


def peak_bytes(process: int | str = "self") -> int | None:
    """The most that a process has had in memory."""
    found = _status(process, "VmHWM")
    return _own_peak() if found is None and process == "self" else found


def _status(process: int | str, name: str) -> int | None:
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(found[0]) * 1024 if found else None


def _own_peak() -> int | None:
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    peak: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak
