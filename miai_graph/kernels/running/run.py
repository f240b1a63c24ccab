"""Kernels of native code that run one after another, and are timed, without Python in between.

Between two of them there is nothing but the clock, and a barrier where several threads share one: some tens or hundreds
of nanoseconds, where a call from Python and a stamp take half a microsecond, and waking a thread several.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from ctypes import c_void_p
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from miai_graph.kernels.compiler import native
from miai_graph.kernels.compiler.tables import table_of
from miai_graph.kernels.kernel import NOTHING, Checked, Kernel, Several
from miai_graph.kernels.running.crew import Together
from miai_graph.kernels.running.faster import Faster
from miai_graph.kernels.running.run_code import BARRIER, MOST_PARAMETERS, NO_STAMP
from miai_graph.kernels.running.team import Team, clock, functions, team
from miai_graph.op import Array


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


class Run(NamedTuple):
    """Kernels that are called at once.

    Attributes
    ----------
    last : the number of the last one
    kernel : all of them
    is_timed : whether they write their times
    """

    last: int
    kernel: Kernel
    is_timed: bool


Phase = Sequence[Sequence[NativeCall]]
"""What threads do at the same time: the calls of each. One alone is done by the first thread."""


@dataclass(frozen=True)
class _Link:
    """A kernel of a run, by its number among all, with what it does."""

    number: int
    kernel: Kernel
    phases: Sequence[Phase]


def native_phases(kernel: Kernel) -> list[Phase] | None:
    """The calls of native code that a kernel is made of, one phase after another; None if there is more in it."""
    if isinstance(kernel, Several):
        parts = [native_phases(each) for each in kernel.kernels]
        known = [part for part in parts if part is not None]
        return [phase for part in known for phase in part] if len(known) == len(parts) else None
    if isinstance(kernel, Together):
        calls = [_calls_of_one_thread(each) for each in kernel.kernels]
        shares = [share for share in calls if share is not None]
        return [shares] if len(shares) == len(calls) else None
    if not isinstance(kernel, partial):
        return None
    address = native.address_of(kernel.func)
    if address is None or len(kernel.args) > MOST_PARAMETERS:
        return None
    return [[[NativeCall(address, tuple(word.value or 0 for word in kernel.args))]]]


def is_native(kernel: Kernel) -> bool:
    """Whether a kernel is made of calls of native code, and at most a check after them."""
    return native_phases(kernel.kernel if isinstance(kernel, Checked) else kernel) is not None


def _calls_of_one_thread(kernel: Kernel) -> list[NativeCall] | None:
    phases = native_phases(kernel)
    return None if phases is None else [call for phase in phases for share in phase for call in share]


def joined(kernels: Sequence[Kernel], stamps: Array | None) -> list[Run]:
    """The kernels, those of native code that follow each other as one.

    Parameters
    ----------
    stamps : holds the address of times, integers of 64 bits. A run that is timed writes time i when kernel i begins,
        for its first kernel, and time i + 1 when kernel i ends, for each. In nanoseconds of `time.perf_counter_ns`.
        None: no times
    """
    result: list[Run] = []
    links: list[_Link] = []

    def end_run() -> None:
        if links:
            result.append(_run_of(links, stamps))
            links.clear()

    for number, kernel in enumerate(kernels):
        phases = native_phases(kernel.kernel if isinstance(kernel, Checked) else kernel) if _has_clock() else None
        if phases is None:
            end_run()
            result.append(Run(number, kernel, is_timed=False))
            continue
        links.append(_Link(number, kernel, phases))
        if isinstance(kernel, Checked):
            # Nothing is computed with what makes no sense.
            end_run()
    end_run()
    return result


def _run_of(links: Sequence[_Link], stamps: Array | None) -> Run:
    last = links[-1]
    threads = max((len(phase) for link in links for phase in link.phases), default=1)
    if len(links) == 1 and threads == 1:
        return Run(last.number, last.kernel, is_timed=False)
    kept = [link.kernel for link in links]
    alone = _Rows(1, links[0].number)
    for link in links:
        alone.add([[[call for share in phase for call in share]] for phase in link.phases], link.number + 1)
    kernel: Kernel = partial(functions()["work"], alone.table(0, stamps, kept).ctypes.data_as(c_void_p))
    if threads > 1:
        shared = _Rows(threads, links[0].number)
        for link in links:
            shared.add(link.phases, link.number + 1)
        kernel = Faster(_Shared(shared, team(threads), kernel, stamps, kept), kernel)
    if isinstance(last.kernel, Checked):
        kernel = Several((kernel, last.kernel.check))
    return Run(last.number, kernel, is_timed=stamps is not None)


class _Rows:
    """The rows of a run, for each thread, of which the first one takes the times.

    Parameters
    ----------
    first_stamp : the time when it begins
    """

    def __init__(self, threads: int, first_stamp: int) -> None:
        self.rows: list[list[list[int]]] = [[] for _ in range(threads)]
        self.rows[0].append([0, 0, 0, first_stamp])
        self._words: list[Array] = []
        self._others_wait = True
        """Whether the other threads know that all before is done."""
        self.barriers = 0

    def add(self, phases: Sequence[Phase], stamp: int) -> None:
        """What a kernel does, after which a time is taken."""
        for phase in phases:
            if len(phase) > 1 and not self._others_wait:
                self._barrier()
            for rows, share in zip(self.rows, phase, strict=False):
                rows += map(self._row, share)
            self._others_wait = False
            if len(phase) > 1:
                self._barrier()
        self.rows[0].append([0, 0, 0, stamp])

    def _row(self, call: NativeCall) -> list[int]:
        self._words.append(np.array(call.words, np.int64))
        return [call.address, self._words[-1].ctypes.data, len(call.words), NO_STAMP]

    def _barrier(self) -> None:
        for rows in self.rows:
            rows.append([0, 0, BARRIER, NO_STAMP])
        self._others_wait = True
        self.barriers += 1

    def table(self, thread: int, stamps: Array | None, kept: object, own_team: Team | None = None) -> Array:
        """The words for `work`."""
        rows = np.array(self.rows[thread], np.int64).reshape(-1, 4)
        times: Array | int = 0 if stamps is None or thread else stamps
        if stamps is None:
            rows[:, 3] = NO_STAMP
        in_team = (0, 0, 1, 0, 0) if own_team is None else own_team.work_words(thread)
        return table_of([rows, len(rows), times, *clock(), *in_team], (self._words, kept))


class _Shared:
    """A run that several threads share.

    Parameters
    ----------
    alone : the same by one thread, to the last bit
    """

    def __init__(self, rows: _Rows, own: Team, alone: Kernel, stamps: Array | None, kept: object) -> None:
        tables = [rows.table(thread, stamps, kept, own) for thread in range(own.size)]
        self._team = own
        self._alone = alone
        words = table_of(own.lead_words(tables, rows.barriers), tables)
        self._lead = partial(functions()["lead"], words.ctypes.data_as(c_void_p))

    def __call__(self) -> None:
        own = self._team
        if own.lock.locked():
            # Another thread of this process has the team: two steps at once, on hosts that share a process.
            self._alone()
            return
        with own.lock:
            own.begin()
            self._lead()


@functools.cache
def _has_clock() -> bool:
    """Whether times that native code writes were seen to be those of Python's clock."""
    if native.processor() is None:
        return False
    stamps = np.zeros(3, np.int64)
    place = np.array([stamps.ctypes.data], np.int64)
    try:
        clock()
    except LookupError:
        return False
    run = _run_of([_Link(0, NOTHING, ()), _Link(1, NOTHING, ())], place)
    before = time.perf_counter_ns()
    run.kernel()
    return bool(before <= stamps[0] <= stamps[1] <= stamps[2] <= time.perf_counter_ns())
