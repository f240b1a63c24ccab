"""Ops that take a known time: a millisecond a row in one process, and no time in others; and the same each time."""

from __future__ import annotations

import os
import time

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


slept: list[float] = []
"""How long each call of `sleeping` took in this process, in seconds."""


@mg.op
class sleeping:
    def infer(x, *, seconds):
        return x

    def forward(x, *, seconds):
        start = time.perf_counter()
        time.sleep(seconds)
        slept.append(time.perf_counter() - start)
        return x

    def vjp(g, output, x, *, seconds):
        return [g]

    def batch(placements, output, x, *, seconds):
        return placements[0]
