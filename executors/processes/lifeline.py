"""A worker's end when its parent is gone, whatever the worker computes then."""

from __future__ import annotations

import os
import select
import sys
import time
from multiprocessing.connection import Connection
from threading import Thread

GRACE_SECONDS = 1.0
"""How long a worker may take to notice by itself."""


def end_with_parent(connection: Connection) -> None:
    """End this process some time after the other end of its connection is closed.

    A worker reads its connection only when it waits; one that is in the middle of a long computation does not notice
    that nobody is there any more.
    """
    Thread(target=_watch, args=(connection.fileno(),), name="lifeline", daemon=True).start()


def _watch(descriptor: int) -> None:
    if sys.platform == "win32":
        _wait_for_process(os.getppid())
    else:
        poll = select.poll()
        # No events: a hang-up is told in any case, and what can be read does not matter here.
        poll.register(descriptor, 0)
        poll.poll()
    time.sleep(GRACE_SECONDS)
    os._exit(0)


if sys.platform == "win32":
    import _winapi

    def _wait_for_process(pid: int) -> None:
        process = _winapi.OpenProcess(_winapi.SYNCHRONIZE, False, pid)
        _winapi.WaitForSingleObject(process, _winapi.INFINITE)
