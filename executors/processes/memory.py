"""Memory that several processes map: the only module that touches shared memory.

On Linux it is anonymous and travels as a descriptor, so that it needs no name, leaves nothing behind, and does not
depend on the size of ``/dev/shm``. Elsewhere it has a name, until all have it. It stays as long as an array in any
process lies in it.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from mmap import mmap
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from secrets import token_hex
from typing import Literal
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from miai_graph.errors import ExecutorError

Kind = Literal["anonymous", "named"]
Bytes = NDArray[np.uint8]

DEFAULT_KIND: Kind = "anonymous" if hasattr(os, "memfd_create") else "named"
NAME_PREFIX = "miai"
NAMED_FOLDER = Path("/dev/shm")
"""Where Linux keeps memory that has a name."""

_numbers = itertools.count()


class Segment:
    """A block of shared memory, made by `create` or got from another process by `receive`.

    Attributes
    ----------
    number : which one of those that this process made, or received
    size_bytes : its size
    bytes : all of it, page-aligned. It is unmapped when this array, and all made from it, are gone
    source : by what others map it, a descriptor or a name; None when it is settled, and always for one received
    """

    def __init__(self, number: int, array: Bytes, source: int | str | None, settle: Callable[[], None] | None) -> None:
        self.number = number
        self.size_bytes = array.size
        self.bytes = array
        self.source = source
        self._settle = finalize(self, settle) if settle else None

    def __repr__(self) -> str:
        return f"Segment({self.number}, {self.size_bytes} bytes)"

    @classmethod
    def create(cls, size_bytes: int, kind: Kind = DEFAULT_KIND) -> Segment:
        """New memory, all zeros.

        Raises
        ------
        ExecutorError
            if the system does not give that much.
        """
        with _lack_is_an_error(size_bytes):
            return (_create_anonymous if kind == "anonymous" else _create_named)(next(_numbers), size_bytes)

    def send(self, connection: Connection, pid: int) -> None:
        """Give it to the process at the other end, whose number is `pid`, and which must `receive` it."""
        if self.source is None:
            raise ExecutorError(f"expected memory that is not settled yet; found {self}. Send it before settle()")
        if isinstance(self.source, str):
            connection.send((self.number, self.size_bytes, self.source))
            return
        connection.send((self.number, self.size_bytes, None))
        send_handle(connection, self.source, pid)
        # The socket that send_handle makes of the connection applies `socket.setdefaulttimeout` to both.
        os.set_blocking(connection.fileno(), True)

    @classmethod
    def receive(cls, connection: Connection) -> Segment:
        """What the other end sends.

        Raises
        ------
        ExecutorError
            if it cannot be mapped.
        EOFError
            if the other end is closed.
        """
        number, size_bytes, name = connection.recv()
        descriptor = recv_handle(connection) if name is None else None
        with _lack_is_an_error(size_bytes):
            if descriptor is None:
                return cls(number, _array_of(_attach(name), size_bytes), None, None)
            try:
                return cls(number, _map(descriptor, size_bytes), None, None)
            finally:
                os.close(descriptor)

    def settle(self) -> None:
        """Forget the descriptor or name: all have it. Nothing then stays behind, however the processes end."""
        self.source = None
        if self._settle is not None:
            self._settle()


@contextmanager
def _lack_is_an_error(size_bytes: int) -> Iterator[None]:
    try:
        yield
    except (OSError, MemoryError, OverflowError, ValueError) as error:
        raise ExecutorError(
            f"expected {size_bytes:,} bytes of shared memory; found that the system does not give them ({error}). "
            "Use a smaller batch, a smaller model, or executor='serial'"
        ) from error


def _create_anonymous(number: int, size_bytes: int) -> Segment:
    descriptor = os.memfd_create(NAME_PREFIX)
    try:
        os.ftruncate(descriptor, size_bytes)
        array = _map(descriptor, size_bytes)
    except BaseException:
        os.close(descriptor)
        raise
    return Segment(number, array, descriptor, lambda: os.close(descriptor))


def _map(descriptor: int, size_bytes: int) -> Bytes:
    """The array owns the mapping, which has a descriptor of its own."""
    return np.frombuffer(mmap(descriptor, size_bytes), np.uint8)


def _create_named(number: int, size_bytes: int) -> Segment:
    if size_bytes > sys.maxsize:
        # SharedMemory would notice when the name is already there, and leave it.
        raise OverflowError("too large to be mapped")
    memory = SharedMemory(NAME_PREFIX + token_hex(8), create=True, size=size_bytes)
    try:
        _reserve(memory)
        array = _array_of(memory, size_bytes)
    except BaseException:
        memory.unlink()
        raise
    return Segment(number, array, memory.name, memory.unlink)


def _reserve(memory: SharedMemory) -> None:
    """Take all pages now: a page that is missing later kills the process that touches it."""
    file = NAMED_FOLDER / memory.name
    if sys.platform == "linux" and file.exists():
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, memory.size)


def _attach(name: str) -> SharedMemory:
    """Map memory that another process made, and will unlink."""
    if sys.version_info >= (3, 13):
        return SharedMemory(name, track=False)
    memory = SharedMemory(name)
    if sys.platform != "win32":
        resource_tracker.unregister(f"/{name}", "shared_memory")
    return memory


def _array_of(memory: SharedMemory, size_bytes: int) -> Bytes:
    return np.asarray(_Lender(memory, size_bytes))


class _Lender:
    """What an array has as its base: keeps the mapping, which nothing else refers to, as long as the array lives.

    An array of `memory.buf` itself would be in the way when the mapping is closed.
    """

    def __init__(self, memory: SharedMemory, size_bytes: int) -> None:
        assert memory.buf is not None
        self._memory = memory
        self.__array_interface__ = np.frombuffer(memory.buf, np.uint8, size_bytes).__array_interface__
