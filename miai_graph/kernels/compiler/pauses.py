"""How a processor is told that it waits for another one, so that it does so gently."""

from __future__ import annotations

from typing import NamedTuple


class Pause(NamedTuple):
    """What a module declares, and the instruction; both empty where nothing is known."""

    declaration: str = ""
    instruction: str = ""


_X86 = Pause("declare void @llvm.x86.sse2.pause()", "call void @llvm.x86.sse2.pause()")
_ARM = Pause("declare void @llvm.aarch64.hint(i32)", "call void @llvm.aarch64.hint(i32 1)")
_PAUSES = {"x86_64": _X86, "amd64": _X86, "aarch64": _ARM, "arm64": _ARM}


def pause_for(architecture: str) -> Pause:
    """For an architecture by LLVM's name of it."""
    return _PAUSES.get(architecture.lower(), Pause())
