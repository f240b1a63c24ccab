"""Functions that worker processes of tests run."""

from __future__ import annotations

import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

from executors.processes.atomics import atomics, spins_for
from executors.processes.memory import Segment

_kept: list[Any] = []


def serve(connection: Connection) -> None:
    """Call the functions below by name, with the connection, and send what they return."""
    while True:
        name, *arguments = connection.recv()
        connection.send(globals()[name](connection, *arguments))


def echo(connection: Connection, value: Any) -> Any:
    return value


def surroundings(connection: Connection) -> dict[str, Any]:
    """What a worker finds when it starts."""
    return {
        "pid": os.getpid(),
        "path": sys.path,
        "arguments": sys.argv,
        "main": sorted(vars(sys.modules["__main__"])),
        "environment": dict(os.environ),
        "ignores interrupts": signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
        "input": sys.stdin.read(),
        "inheritable": [number for number in range(3, 64) if is_inheritable(number)],
    }


def is_inheritable(descriptor: int) -> bool:
    try:
        return os.get_inheritable(descriptor)
    except OSError:
        return False


def say(connection: Connection, text: str) -> None:
    os.write(1, text.encode())
    print(text, file=sys.stderr, flush=True)


def leave(connection: Connection, code: int) -> None:
    connection.close()
    sys.exit(code)


def add_one(connection: Connection) -> tuple[int, int]:
    """Add 1 to all bytes of a segment, and keep it until the next call; returns its number and size."""
    segment = Segment.receive(connection)
    _kept[:] = [segment.bytes[:]]
    segment.bytes[...] += 1
    return segment.number, segment.size_bytes


def open_descriptors(connection: Connection) -> int:
    _kept.clear()
    return len(os.listdir("/proc/self/fd"))


def return_ball(connection: Connection, rounds: int) -> None:
    """Set the second word of a segment to what the first has become, so many times."""
    segment = Segment.receive(connection)
    connection.send("ready")
    there = segment.bytes.ctypes.data
    for turn in range(1, rounds + 1):
        wait_politely(there, 1, 0, turn)
        atomics().store(there + 64, turn)


def wait_politely(address: int, count: int, stride_bytes: int, target: int) -> None:
    """Wait until the words are there, and let others run when it takes long."""
    spins = spins_for(50e-6)
    while not atomics().wait_until(address, count, stride_bytes, target, spins):
        getattr(os, "sched_yield", lambda: time.sleep(0))()
