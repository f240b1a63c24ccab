"""Kernels of native code that run one after another, and are timed, without Python in between.

Between two of them there is nothing but the clock: some tens of nanoseconds, where a call from Python and a stamp take
half a microsecond.
"""

from __future__ import annotations

import ctypes
import functools
import time
from collections.abc import Sequence
from ctypes import c_void_p, cast
from dataclasses import dataclass
from functools import partial

import numpy as np

from miai_graph.kernels import native
from miai_graph.kernels.kernel import NOTHING, Checked, Kernel, Several
from miai_graph.kernels.loops import Loops, call
from miai_graph.op import Array

MOST_PARAMETERS = 16
"""Functions with more are called from Python."""

NO_STAMP = -1

CLOCKS = {"clock_gettime(CLOCK_MONOTONIC)": "CLOCK_MONOTONIC", "mach_absolute_time()": "CLOCK_UPTIME_RAW"}
"""What `time.perf_counter_ns` reads, and the same clock for ``clock_gettime``."""

NANOSECONDS = 10**9


@dataclass(frozen=True)
class NativeCall:
    """A call of native code.

    Attributes
    ----------
    address : of the function
    words : what it is given: addresses, and integers of 64 bits
    """

    address: int
    words: tuple[int, ...]


@dataclass(frozen=True)
class _Link:
    """A kernel of a run, by its number among all, with what it calls."""

    number: int
    kernel: Kernel
    calls: Sequence[NativeCall]


def native_calls(kernel: Kernel) -> list[NativeCall] | None:
    """The calls that a kernel is made of; None if there is anything else in it."""
    if isinstance(kernel, Several):
        found: list[NativeCall] = []
        for each in kernel.kernels:
            calls = native_calls(each)
            if calls is None:
                return None
            found += calls
        return found
    if not isinstance(kernel, partial):
        return None
    address = native.address_of(kernel.func)
    if address is None or len(kernel.args) > MOST_PARAMETERS:
        return None
    return [NativeCall(address, tuple(word.value or 0 for word in kernel.args))]


def joined(kernels: Sequence[Kernel], stamps: Array | None) -> list[tuple[int, Kernel]]:
    """The kernels, those of native code that follow each other as one; each with the number of its last one.

    Parameters
    ----------
    stamps : holds the address of times, integers of 64 bits: when kernel i ends, a run writes time i + 1, but for its
        last kernel, whose end is the end of the call. In nanoseconds of `time.perf_counter_ns`. None: no times
    """
    result: list[tuple[int, Kernel]] = []
    run: list[_Link] = []

    def end_run() -> None:
        if run:
            result.append((run[-1].number, _kernel_of(run, stamps)))
            run.clear()

    for number, kernel in enumerate(kernels):
        calls = native_calls(kernel.kernel if isinstance(kernel, Checked) else kernel) if _has_clock() else None
        if calls is None:
            end_run()
            result.append((number, kernel))
            continue
        run.append(_Link(number, kernel, calls))
        if isinstance(kernel, Checked):
            # Nothing is computed with what makes no sense.
            end_run()
    end_run()
    return result


def _kernel_of(run: Sequence[_Link], stamps: Array | None) -> Kernel:
    last = run[-1].kernel
    if len(run) == 1:
        return last
    kernel = _run(run, stamps)
    return Several((kernel, last.check)) if isinstance(last, Checked) else kernel


def _run(links: Sequence[_Link], stamps: Array | None) -> Kernel:
    """One call for all, by a table: of each call the function, the words, how many, and which time it is the end of."""
    rows: list[list[int]] = []
    words: list[Array] = []
    for link in links:
        stamp = NO_STAMP if stamps is None or link is links[-1] else link.number + 1
        for each in link.calls:
            words.append(np.array(each.words, np.int64))
            rows.append([each.address, words[-1].ctypes.data, len(each.words), NO_STAMP])
        if not link.calls:
            rows.append([0, 0, 0, NO_STAMP])
        rows[-1][-1] = stamp
    table = np.array(rows, np.int64)
    place = np.zeros(1, np.int64) if stamps is None else stamps
    kept = words, [link.kernel for link in links]
    return call(_module_text(), [table, len(table), place, *_clock()], "Kernels one after another", kept)


@functools.cache
def _module_text() -> str:
    """Code that goes through the table."""
    lines = Loops(1)
    moment = lines.value("alloca [2 x i64]")
    (table,) = lines.pointers(1)
    (count,) = lines.words(1)
    (place,) = lines.pointers(1)
    (clock,) = lines.pointers(1)
    (clock_id,) = lines.words(1)
    stamps = lines.value(f"load ptr, ptr {place}")
    kind = lines.value(f"trunc i64 {clock_id} to i32")
    with lines.loop(0, count) as round:
        function, given, parameters, stamp = (
            lines.value(f"load i64, ptr {lines.at(lines.stepped(table, round.index, 32), 8 * word)}")
            for word in range(4)
        )
        function, given = (lines.value(f"inttoptr i64 {word} to ptr") for word in (function, given))
        for number in range(1, MOST_PARAMETERS + 1):
            with lines.when(lines.value(f"icmp eq i64 {parameters}, {number}")):
                words = (lines.value(f"load i64, ptr {lines.at(given, 8 * word)}") for word in range(number))
                lines.do(f"call void {function}({', '.join(f'i64 {word}' for word in words)})")
        with lines.when(lines.value(f"icmp sge i64 {stamp}, 0")):
            lines.do(f"call i32 {clock}(i32 {kind}, ptr {moment})")
            seconds = lines.value(f"load i64, ptr {moment}")
            rest = lines.value(f"load i64, ptr {lines.at(moment, 8)}")
            time = lines.add(lines.times(seconds, NANOSECONDS), rest)
            lines.do(f"store i64 {time}, ptr {lines.stepped(stamps, stamp, 8)}")
    return lines.module()


@functools.cache
def _clock() -> tuple[int, int]:
    """The address of ``clock_gettime``, and which clock is that of `time.perf_counter_ns`.

    Raises
    ------
    LookupError
        if it is not known.
    """
    name = CLOCKS.get(time.get_clock_info("perf_counter").implementation, "")
    address = cast(ctypes.CDLL(None).clock_gettime, c_void_p).value if hasattr(time, name) else None
    if address is None:
        raise LookupError("expected a clock of native code that is Python's; found none")
    return address, getattr(time, name)


@functools.cache
def _has_clock() -> bool:
    """Whether times that native code writes were seen to be those of Python's clock."""
    if native.processor() is None:
        return False
    stamps = np.zeros(2, np.int64)
    place = np.array([stamps.ctypes.data], np.int64)
    try:
        run = _run([_Link(0, NOTHING, ()), _Link(1, NOTHING, ())], place)
    except LookupError:
        return False
    before = time.perf_counter_ns()
    run()
    return before <= stamps[1] <= time.perf_counter_ns()
