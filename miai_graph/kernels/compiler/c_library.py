"""Functions of C's library, for native code to call."""

from __future__ import annotations

import ctypes
import functools
import os
from ctypes import c_void_p, cast


@functools.cache
def address_in_c(name: str) -> int | None:
    """Where a function of C's library lies, on systems of Unix's kind."""
    function = getattr(ctypes.CDLL(None), name, None) if os.name == "posix" and name else None
    return None if function is None else cast(function, c_void_p).value
