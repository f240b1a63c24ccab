"""A real terminal for tests of what is written to one."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
import time
from collections.abc import Mapping

DEADLINE_SECONDS = 60.0


def on_terminal(
    *arguments: str, columns: int = 80, interrupt_after: str | None = None, variables: Mapping[str, str] | None = None
) -> str:
    """What Python with these arguments writes to a terminal; Ctrl-C is pressed once it wrote some text."""
    pid, terminal = pty.fork()
    if pid == 0:
        environment = os.environ | {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"} | dict(variables or {})
        # Readline may have set it, behind the back of Python.
        environment.pop("COLUMNS", None)
        os.execve(sys.executable, [sys.executable, *arguments], environment)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    written, deadline = b"", time.monotonic() + DEADLINE_SECONDS
    try:
        while time.monotonic() < deadline:
            if not select.select([terminal], [], [], 1.0)[0]:
                continue
            try:
                part = os.read(terminal, 65536)
            except OSError:  # Linux says so when the other side is closed
                break
            if not part:
                break
            written += part
            if interrupt_after is not None and interrupt_after in plain(written.decode(errors="ignore")):
                os.write(terminal, b"\x03")
                interrupt_after = None
    finally:
        os.close(terminal)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, written.decode()
    return written.decode()


def plain(text: str) -> str:
    """The text without what colours it and moves the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
