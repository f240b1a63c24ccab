"""How many cores this process may use: what the machine has, less what affinity, containers and the user withhold."""

from __future__ import annotations

import ctypes
import math
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")


def usable_cores(root: Path = ROOT) -> int:
    """The logical cores that this process may use.

    Affinity, the quota of its control groups (rounded up) and, from Python 3.13, PYTHON_CPU_COUNT are heeded.

    Parameters
    ----------
    root : where the folders ``proc`` and ``sys`` of Linux are.
    """
    return max(1, min([_allowed_cores(), *_quotas(root)]))


def physical_cores(root: Path = ROOT) -> int:
    """The physical cores among those: hyper-threads of one core count once. Where that is not known, all of them.

    Parameters
    ----------
    root : where the folders ``proc`` and ``sys`` of Linux are.
    """
    usable = usable_cores(root)
    return min(_physical_cores(root) or usable, usable)


def threads_of_each(workers: int) -> int:
    """How many threads each of several workers on this machine should have; at least one."""
    return max(1, physical_cores() // workers)


def _allowed_cores() -> int:
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    return len(_affinity()) or os.cpu_count() or 1


def _affinity() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def _quotas(root: Path) -> Iterator[int]:
    """The cores, rounded up, that each control group around this process grants it."""
    for folder in _control_groups(root):
        # In version 2 one file holds quota and period, in version 1 each has its own.
        text = _read(folder / "cpu.max") or _read(folder / "cpu.cfs_quota_us") + _read(folder / "cpu.cfs_period_us")
        numbers = [int(word) for word in text.split() if word.isdecimal()]
        if len(numbers) == 2 and min(numbers) > 0:
            yield math.ceil(numbers[0] / numbers[1])


def _control_groups(root: Path) -> Iterator[Path]:
    """The folders of the groups that this process is in, and of those around them."""
    mount = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        controllers, _, group = line.partition(":")[2].partition(":")
        if not controllers:
            hierarchy = mount
        elif "cpu" in controllers.split(","):
            hierarchy = mount / "cpu"
        else:
            continue
        # A container may see the path that the group has on the host, of which only the top is mounted.
        path = PurePosixPath(group.lstrip("/"))
        yield from (hierarchy / part for part in (path, *path.parents) if ".." not in part.parts)


def _read(path: Path) -> str:
    """The text of a small file; empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _physical_cores(root: Path) -> int:
    """0: not known."""
    if sys.platform == "darwin":
        return _physical_cores_on_macos()
    if sys.platform == "win32":
        return _physical_cores_on_windows()
    siblings = (root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list" for cpu in _affinity())
    return len({_read(path) or str(path) for path in siblings})


def _physical_cores_on_macos() -> int:
    count, size, nothing = ctypes.c_int(0), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int)), ctypes.c_size_t(0)
    failed = ctypes.CDLL(None).sysctlbyname(b"hw.physicalcpu", ctypes.byref(count), ctypes.byref(size), None, nothing)
    return 0 if failed else count.value


def _physical_cores_on_windows() -> int:
    if sys.platform != "win32":
        return 0
    of_cores = 0
    ask = ctypes.WinDLL("kernel32").GetLogicalProcessorInformationEx
    size = ctypes.c_uint32(0)
    ask(of_cores, None, ctypes.byref(size))
    records = ctypes.create_string_buffer(size.value)
    return count_records(records.raw) if ask(of_cores, records, ctypes.byref(size)) else 0


def count_records(records: bytes) -> int:
    """How many records Windows has written one after the other: a kind and a size, of 32 bits each, begin each."""
    count = start = 0
    while start + 8 <= len(records):
        _, size = struct.unpack_from("=II", records, start)
        if size < 8:
            break
        count += 1
        start += size
    return count
