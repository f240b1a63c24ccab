"""Printing text with lines and Greek letters on terminals that may not know them."""

from __future__ import annotations

import sys
from typing import TextIO

_PLAIN = {
    **dict.fromkeys(map(ord, "─━"), "-"),
    **dict.fromkeys(map(ord, "│┃"), "|"),
    **dict.fromkeys(map(ord, "┏┓┗┛┡┩└┘├┤┬┴┼╇╈┳┻"), "+"),
    ord("·"): ".",
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
