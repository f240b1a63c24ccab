"""Printing text with lines and Greek letters on terminals that may not know them."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from rich.console import Console

_WIDE = 220
"""The most characters in a line of a table that goes to a file."""

_PLAIN = {
    **dict.fromkeys(map(ord, "─━╸╺–"), "-"),
    **dict.fromkeys(map(ord, "│┃"), "|"),
    **dict.fromkeys(map(ord, "┏┓┗┛┡┩└┘├┤┬┴┼╇╈┳┻"), "+"),
    **dict(zip(map(ord, "█▓▒░"), "#=+:", strict=True)),
    ord("·"): ".",
    ord("…"): "~",
    ord("×"): "x",
    ord("÷"): "/",
    ord("±"): "+-",
    ord("µ"): "u",
}


def plain_text(text: str, encoding: str = "ascii") -> str:
    """The text in plainer characters, if the encoding lacks some; "?" for those of which there is no plainer one."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_PLAIN).encode(encoding, "replace").decode(encoding)
    return text


def print_text(text: str, file: TextIO | None = None) -> None:
    """Print, in plainer characters where the file's encoding lacks some, as on Windows when output goes to a file."""
    target = file or sys.stdout
    print(plain_text(text, _encoding(target)), file=target, flush=True)


class PlainFile:
    """A file, to which texts are written in plainer characters where its encoding lacks some."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        return self._file.write(plain_text(text, _encoding(self._file)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def terminal_console(file: TextIO | None = None) -> Console:
    """Rich's console for a terminal, by default that of standard output, which is given no characters it lacks."""
    from rich.console import Console

    return Console(file=cast("IO[str]", PlainFile(file or sys.stdout)))


def print_rich(print_to: Callable[[Console], None]) -> None:
    """Print what is told to a console of rich.

    On a terminal it is in colours and as wide as that; elsewhere without colours, and as wide as it is.
    """
    from rich.console import Console

    if sys.stdout.isatty():
        print_to(terminal_console())
        return
    text = io.StringIO()
    print_to(Console(file=text, width=_WIDE))
    print_text("\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines()))


def _encoding(file: TextIO) -> str:
    return getattr(file, "encoding", None) or "utf-8"


def terminal_width(file: TextIO | None = None) -> int | None:
    """How many characters fit in a line of the terminal that a file is; None if it is none."""
    target = file or sys.stdout
    return shutil.get_terminal_size().columns if target is not None and target.isatty() else None
