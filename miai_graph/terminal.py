"""Printing text with lines and Greek letters on terminals that may not know them."""

from __future__ import annotations

import shutil
import sys
from typing import TextIO

_PLAIN = {
    **dict.fromkeys(map(ord, "─━"), "-"),
    **dict.fromkeys(map(ord, "│┃"), "|"),
    **dict.fromkeys(map(ord, "┏┓┗┛┡┩└┘├┤┬┴┼╇╈┳┻"), "+"),
    **dict(zip(map(ord, "█▓▒░"), "#=+:", strict=True)),
    ord("·"): ".",
    ord("…"): "~",
    ord("×"): "x",
    ord("µ"): "u",
}


def print_text(text: str, file: TextIO | None = None) -> None:
    """Print, in plainer characters where the file's encoding lacks some, as on Windows when output goes to a file."""
    target = file or sys.stdout
    encoding = getattr(target, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(_PLAIN).encode(encoding, "replace").decode(encoding)
    print(text, file=target, flush=True)


def terminal_width(file: TextIO | None = None) -> int | None:
    """How many characters fit in a line of the terminal that a file is; None if it is none."""
    target = file or sys.stdout
    return shutil.get_terminal_size().columns if target is not None and target.isatty() else None
