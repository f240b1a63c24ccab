"""Threads that run native code in step with the one that calls, and wait for each other without Python.

Between two runs they look out for the next one for a while, in native code, and then sleep until they are woken.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from ctypes import c_void_p
from itertools import chain
from pathlib import Path
from threading import Lock, Thread
from weakref import WeakSet

import numpy as np

from miai_graph.kernels.compiler import native
from miai_graph.kernels.compiler.c_library import address_in_c
from miai_graph.kernels.compiler.denormals import FlushedDenormals
from miai_graph.kernels.compiler.tables import table_of
from miai_graph.kernels.running.run_code import HELPER_WORDS, LINE_BYTES, module_text
from miai_graph.op import Array

PATIENCE_NANOSECONDS = 200_000
"""How long a thread looks out for the next run before it sleeps."""

CLOCKS = {"clock_gettime(CLOCK_MONOTONIC)": "CLOCK_MONOTONIC", "mach_absolute_time()": "CLOCK_UPTIME_RAW"}
"""What `time.perf_counter_ns` reads, and the same clock for ``clock_gettime``."""

CLOCK_SOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
"""Where Linux says by what it keeps its clock. It looked out for counters of cores that differ."""

WORDS_A_LINE = LINE_BYTES // 8

_teams: WeakSet[Team] = WeakSet()


class Team:
    """A number of threads, of which the calling one is the first.

    Parameters
    ----------
    size : with the calling thread

    Attributes
    ----------
    lock : held while a run is under way
    """

    def __init__(self, size: int) -> None:
        self.size = size
        lines = _lines(2 + 2 * size)
        self._go, self._base = lines[0, :1], lines[1, :1]
        self._arrived, self._helpers = lines[2 : 2 + size], lines[2 + size :]
        self._byte = np.zeros(1, np.int64)
        self._pipes: list[tuple[int, int]] = []
        """Of each helper that has begun: where it reads, and where is written to wake it."""
        self.begin_anew()
        _teams.add(self)

    def begin_anew(self) -> None:
        """In a fork of the process, whose other threads are gone."""
        self.lock = Lock()
        for file in chain.from_iterable(self._pipes):
            with suppress(OSError):
                os.close(file)
        self._pipes.clear()
        for words in (self._go, self._base, self._arrived, self._helpers):
            words.fill(0)

    def begin(self) -> None:
        """See to it that there are threads."""
        if len(self._pipes) < self.size - 1:
            native.undisturbed(self._begin_threads)

    def _begin_threads(self) -> None:
        """Begin those that are missing: two of the same number would do the same work."""
        for number in range(len(self._pipes) + 1, self.size):
            reading, writing = os.pipe()
            self._helpers[number, HELPER_WORDS.index("file")] = writing
            words = [self._go, self._helpers[number], PATIENCE_NANOSECONDS, *clock(), _found_in_c("read"), reading]
            try:
                Thread(target=_serve, args=(table_of(words),), name="kernels", daemon=True).start()
            except RuntimeError:
                os.close(reading)
                os.close(writing)
                raise
            self._pipes.append((reading, writing))

    def work_words(self, own: int) -> list[Array | int]:
        """What `work` is given for the thread of that number, behind the clock."""
        return [self._arrived, own, self.size, self._base, yielding()]

    def lead_words(self, tables: Sequence[Array], barriers: int) -> list[Array | int]:
        """What `lead` is given, for these tables of words for `work` of all threads, with so many barriers in each."""
        places = np.array([table.ctypes.data for table in tables], np.int64)
        return [
            *(self._go, self._base, self._helpers, self.size),
            *(places, tables[0], barriers, _found_in_c("write"), self._byte),
        ]


def _serve(words: Array) -> None:
    # Sleeping in native code too, it never waits for the GIL.
    with FlushedDenormals():
        functions()["serve"](words.ctypes.data_as(c_void_p))


def _lines(count: int) -> Array:
    """Words in lines of memory."""
    words = np.zeros((count + 1) * WORDS_A_LINE, np.int64)
    start = -(words.ctypes.data // 8) % WORDS_A_LINE
    return words[start : start + count * WORDS_A_LINE].reshape(count, WORDS_A_LINE)


@functools.cache
def functions() -> dict[str, Callable[..., None]]:
    """`work`, `lead` and `serve`, each of a table of words."""
    signatures = dict.fromkeys(("work", "lead", "serve"), (c_void_p,))
    return dict(native.library(module_text(counts=has_counter()), signatures, "Kernels one after another").functions)


@functools.cache
def clock() -> tuple[int, int]:
    """The address of ``clock_gettime``, and which clock is that of `time.perf_counter_ns`.

    Raises
    ------
    LookupError
        if it is not known.
    """
    name = CLOCKS.get(time.get_clock_info("perf_counter").implementation, "")
    address = address_in_c("clock_gettime")
    if address is None or not hasattr(time, name):
        raise LookupError("expected a clock of native code that is Python's; found none")
    return address, getattr(time, name)


@functools.cache
def has_counter() -> bool:
    """Whether the processor counts at one pace, alike on all cores: Linux keeps its own clock by that count then."""
    with suppress(OSError):
        return native.architecture() == "x86_64" and CLOCK_SOURCE.read_text().strip() == "tsc"
    return False


def yielding() -> int:
    """The address of ``sched_yield``; 0 if there is none."""
    return address_in_c("sched_yield") or 0


def _found_in_c(name: str) -> int:
    address = address_in_c(name)
    assert address is not None
    return address


def _begin_anew() -> None:
    for each in _teams:
        each.begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


@functools.cache
def team(size: int) -> Team:
    """The team of this size, of this process."""
    return Team(size)
