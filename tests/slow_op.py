"""Ops that take a known time: a millisecond a row in one process, and no time in others; and the same each time."""

from __future__ import annotations

import os
import time
from functools import cache
from pathlib import Path

import numpy as np

import miai_graph as mg

SECONDS_PER_ROW = 1e-3


@mg.op
class slowed:
    def infer(x, *, pid):
        return x

    def forward(x, *, pid):
        if os.getpid() == pid:
            time.sleep(SECONDS_PER_ROW * len(x))
        return x

    def vjp(g, output, x, *, pid):
        return [g]

    def batch(placements, output, x, *, pid):
        return placements[0]


@mg.op
class sleeping:
    def infer(x, *, seconds):
        return x

    def forward(x, *, seconds):
        time.sleep(seconds)
        return x

    def vjp(g, output, x, *, seconds):
        return [g]

    def batch(placements, output, x, *, seconds):
        return placements[0]


@mg.op
class lasting:
    """Sleeps, or spins, and notes in a folder how long that was; see `noted`."""

    def infer(x, *, seconds, spins, folder):
        return x

    def forward(x, *, seconds, spins, folder):
        notes = _notes(folder, os.getpid())
        start = time.perf_counter()
        if spins:
            while time.perf_counter() - start < seconds:
                pass
        else:
            time.sleep(seconds)
        notes[np.count_nonzero(notes)] = time.perf_counter() - start
        return x

    def vjp(g, output, x, *, seconds, spins, folder):
        return [g]

    def batch(placements, output, x, *, seconds, spins, folder):
        return placements[0]


@cache
def _notes(folder: str, pid: int) -> np.ndarray:
    """A file in memory: to write to another one would take time, too."""
    return np.memmap(Path(folder, str(pid)), np.float64, "w+", shape=(1000,))


def noted(folder: Path) -> dict[int, np.ndarray]:
    """How many seconds each call of `lasting` took, by process."""
    found = {int(path.name): np.fromfile(path) for path in folder.iterdir()}
    return {pid: seconds[seconds > 0] for pid, seconds in found.items()}
