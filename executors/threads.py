"""How many threads BLAS may use in this process: asked for by executors, given back when they are done."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import RLock
from typing import Any

from threadpoolctl import ThreadpoolController

CANNOT_LIMIT = (
    "BLAS's threads cannot be limited: threadpoolctl does not know the library that NumPy uses here (on macOS that is "
    "Accelerate, which reads VECLIB_MAXIMUM_THREADS when Python starts)."
)
"""What a summary says where `can_limit` is False."""


@dataclass(frozen=True, eq=False)
class BlasLibrary:
    """A BLAS library that is loaded into this process."""

    path: str
    get_threads: Callable[[], int]
    set_threads: Callable[[int], object]


def _find_libraries() -> list[BlasLibrary]:
    found = ThreadpoolController().select(user_api="blas").lib_controllers
    return [_library(controller) for controller in found if controller.num_threads is not None]


def _library(controller: Any) -> BlasLibrary:
    # With threads of its own OpenBLAS is called directly: that is cheaper, and threadpoolctl 3.8 does nothing where
    # another thread of this process was the last to set the number.
    if getattr(controller, "threading_layer", None) == "pthreads":
        for name in controller.check_symbols:
            get = getattr(controller.dynlib, name, None)
            set_ = getattr(controller.dynlib, name.replace("_get_", "_set_"), None)
            if get is not None and set_ is not None:
                return BlasLibrary(controller.filepath, get, set_)
    return BlasLibrary(controller.filepath, controller.get_num_threads, controller.set_num_threads)


class BlasLimits:
    """The limits of BLAS's threads that are asked for: the latest holds, and the numbers before when none is left.

    Asking and releasing cost microseconds. They may be called from any thread, but not while another thread of this
    process computes in BLAS: OpenBLAS changes its pool of threads in place.
    """

    def __init__(self) -> None:
        # Reentrant, since collecting garbage may close an executor while this thread asks for another.
        self._lock = RLock()
        self._tickets = itertools.count()
        self._asked: dict[int, int] = {}
        self._libraries: list[BlasLibrary] | None = None
        self._before: dict[str, int] = {}

    def ask(self, threads: int) -> int:
        """Limit the threads, until the ticket returned is released."""
        with self._lock:
            self._remember()
            ticket = next(self._tickets)
            self._asked[ticket] = threads
            self._apply()
            return ticket

    def release(self, ticket: int) -> None:
        """Take back what was asked for; once a ticket."""
        with self._lock:
            del self._asked[ticket]
            self._apply()

    def rescan(self) -> None:
        """Find the BLAS libraries that were loaded since the last time; limit them too."""
        with self._lock:
            self._libraries = _find_libraries()
            if self._asked:
                self._remember()
                self._apply()

    def begin_anew(self) -> None:
        """In a fork of the process, whose other threads are gone: what they asked for, and held, no longer counts."""
        self._lock = RLock()
        self._asked.clear()

    @property
    def libraries(self) -> list[BlasLibrary]:
        """The BLAS libraries found by the last scan."""
        if self._libraries is None:
            self.rescan()
        return self._libraries or []

    def _remember(self) -> None:
        if not self._asked:
            self._before.clear()
        for library in self.libraries:
            if library.path not in self._before:
                self._before[library.path] = library.get_threads()

    def _apply(self) -> None:
        done = None
        # Again where garbage collected in between has released another ticket.
        while done != (asked := list(self._asked.values())):
            for library in self.libraries:
                threads = asked[-1] if asked else self._before[library.path]
                if library.get_threads() != threads:
                    library.set_threads(threads)
            done = asked


blas_limits = BlasLimits()
"""Those of this process."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=blas_limits.begin_anew)


@contextmanager
def limited_blas(threads: int) -> Iterator[None]:
    """Limit BLAS's threads within a ``with`` block."""
    ticket = blas_limits.ask(threads)
    try:
        yield
    finally:
        blas_limits.release(ticket)


def blas_threads() -> int:
    """How many threads BLAS may use now; 1 where no library is known."""
    return max((library.get_threads() for library in blas_limits.libraries), default=1)


def kernel_threads() -> int | None:
    """How many threads kernels may share their work among, as many as BLAS may use now; None: BLAS has its own.

    Whose kernels have threads lets BLAS have one while they run: BLAS's wait for work by keeping cores busy. Where it
    cannot be limited it stays as it is.
    """
    return blas_threads() if can_limit() else None


def can_limit() -> bool:
    """Can BLAS's threads be limited here? Where not, `CANNOT_LIMIT` says why."""
    return bool(blas_limits.libraries)
