"""Starts worker processes and ends them.

A worker is a fresh interpreter that imports one function of ours, never the user's script: scripts need no guard, and
nothing of this process, which has threads, is forked. All that connects it with its parent is a pair of sockets. The
worker's one reaches it as its standard input, and no other process has it, so each end notices when the other is gone.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import spawn
from multiprocessing.connection import Connection
from typing import Any
from weakref import WeakSet

from miai_graph.errors import ExecutorError

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
"""From what libraries read how many threads to use, when they are loaded."""

EXIT_PATIENCE_SECONDS = 1.0
"""How long a worker whose connection is closed may take until it has ended."""

_ADVICE = "Choose an interpreter by multiprocessing.set_executable, or use executor='serial'"

# Ctrl-C in a terminal reaches all processes of it: the parent decides what it means for its workers.
_BOOTSTRAP = """
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
import os, sys
target, *sys.path = sys.argv[1:]
del sys.argv[1:]
if sys.platform == "win32":
    import socket
    handle = socket.fromshare(sys.stdin.buffer.read()).detach()
else:
    handle = os.dup(0)
    os.close(0)
    os.open(os.devnull, os.O_RDONLY)
from importlib import import_module
from multiprocessing.connection import Connection
module, _, function = target.partition(":")
connection = Connection(handle)
try:
    getattr(import_module(module), function)(connection)
except (EOFError, ConnectionError):
    pass
"""


class WorkerProcess:
    """A process that runs a function of ours, until that returns or the connection with it is closed.

    Attributes
    ----------
    connection : carries bytes and pickled data, both ways
    pid : its number
    """

    def __init__(self, process: subprocess.Popen[bytes], connection: Connection) -> None:
        self._process = process
        self.connection = connection
        _workers.add(self)

    @property
    def pid(self) -> int:
        return self._process.pid

    def __repr__(self) -> str:
        return f"WorkerProcess({self.pid}, {self._state()})"

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def stop(self, patience_seconds: float) -> None:
        """Close the connection, upon which the worker ends by itself; kill it if it takes longer than this."""
        self.connection.close()
        try:
            self._process.wait(patience_seconds)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it at once, whatever it does."""
        self.connection.close()
        self._process.kill()
        self._process.wait()

    def describe_exit(self) -> str:
        """How it ended, for messages: ``killed by signal 9 (SIGKILL)``."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(EXIT_PATIENCE_SECONDS)
        return self._state()

    def _state(self) -> str:
        code = self._process.poll()
        if code is None:
            return "still running"
        if code >= 0:
            return f"ended with exit code {code}"
        names = {known.value: f" ({known.name})" for known in signal.Signals}
        return f"killed by signal {-code}{names.get(-code, '')}"


_workers: WeakSet[WorkerProcess] = WeakSet()


def _leave_workers_to_the_parent() -> None:
    for worker in list(_workers):
        worker.connection.close()


if hasattr(os, "register_at_fork"):
    # A fork of this process would keep the connections open when this process is gone.
    os.register_at_fork(after_in_child=_leave_workers_to_the_parent)


def start(target: str, threads: int) -> WorkerProcess:
    """Start a worker; it is not waited for.

    Parameters
    ----------
    target : the function it runs, as ``package.module:function``; it is called with the worker's connection. The worker
        imports what this process can import.
    threads : how many BLAS and native kernels may use in it.

    Raises
    ------
    ExecutorError
        if the system does not start it.
    """
    if getattr(sys, "frozen", False):
        raise ExecutorError(f"expected a Python interpreter to start workers with; found a frozen program. {_ADVICE}")
    try:
        ours, theirs = _connected_sockets()
        with ours, theirs:
            process = _run(target, theirs, environment(threads))
            return WorkerProcess(process, Connection(ours.detach()))
    except OSError as error:
        raise ExecutorError(f"expected to start a worker; found {type(error).__name__}: {error}. {_ADVICE}") from error


def environment(threads: int) -> dict[str, str]:
    """This process's environment variables, with those that limit the threads of native libraries."""
    return {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}


def _connected_sockets() -> tuple[socket.socket, socket.socket]:
    pair = socket.socketpair()
    for end in pair:
        end.setblocking(True)
        if end.family != getattr(socket, "AF_UNIX", None):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return pair


def _run(target: str, theirs: socket.socket, variables: dict[str, str]) -> subprocess.Popen[bytes]:
    options: dict[str, Any] = {"stdin": theirs, "stdout": _inherited(1), "stderr": _inherited(2)}
    if sys.platform == "win32":
        options = {"stdin": subprocess.PIPE, "creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    executable, variables = _interpreter(variables)
    # -P: nothing is imported from the working directory, before sys.path is ours.
    flags = [*subprocess._args_from_interpreter_flags(), "-P"]  # type: ignore[attr-defined]
    with _interrupts_held_back():
        process = subprocess.Popen(
            [executable, *flags, "-c", _BOOTSTRAP, target, *_import_path()], env=variables, **options
        )
    if process.stdin is not None:
        with process.stdin:
            process.stdin.write(theirs.share(process.pid))  # type: ignore[attr-defined]
    return process


def _interpreter(variables: dict[str, str]) -> tuple[str | bytes, dict[str, str]]:
    """The interpreter, and the environment in which it is this one.

    In a virtual environment on Windows, ``python.exe`` starts the interpreter proper as a further process, which must
    be started directly to know its number.
    """
    executable: str | bytes = spawn.get_executable()
    base = getattr(sys, "_base_executable", sys.executable)
    if sys.platform == "win32" and executable == sys.executable != base:
        return base, {**variables, "__PYVENV_LAUNCHER__": sys.executable}
    return executable, variables


def _import_path() -> list[str]:
    """What this process imports from; where that is the working directory, by its name."""
    return [entry or os.getcwd() for entry in sys.path if isinstance(entry, str)]


def _inherited(descriptor: int) -> int | None:
    """What a worker gets as this standard stream: the same, or the null device where this process has none."""
    try:
        return None if os.get_inheritable(descriptor) else subprocess.DEVNULL
    except OSError:
        return subprocess.DEVNULL


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """A process started meanwhile does not see Ctrl-C before it can say that it ignores it."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
