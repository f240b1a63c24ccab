"""Denormal numbers, too small to have all their digits: while a plan runs, results that would be such are 0.

Processors compute with them many times slower. Moments of gradients that have become 0 decay to them and stay there:
the smallest one, times 0.9, is rounded to itself.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from ctypes import c_void_p
from types import TracebackType

import numpy as np

from miai_graph.kernels.compiler import native

X86 = """
declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)
define void @begin(ptr %before) nounwind {
  %place = alloca i32
  call void @llvm.x86.sse.stmxcsr(ptr %before)
  %old = load i32, ptr %before
  %new = or i32 %old, 32768  ; flush to zero
  store i32 %new, ptr %place
  call void @llvm.x86.sse.ldmxcsr(ptr %place)
  ret void
}
define void @end(ptr %before) nounwind {
  call void @llvm.x86.sse.ldmxcsr(ptr %before)
  ret void
}
"""
"""Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, section 10.2.3."""

ARM = """
declare i64 @llvm.aarch64.get.fpcr()
declare void @llvm.aarch64.set.fpcr(i64)
define void @begin(ptr %before) nounwind {
  %old = call i64 @llvm.aarch64.get.fpcr()
  store i64 %old, ptr %before
  %new = or i64 %old, 16777216  ; flushing denormalized numbers to zero
  call void @llvm.aarch64.set.fpcr(i64 %new)
  ret void
}
define void @end(ptr %before) nounwind {
  %old = load i64, ptr %before
  call void @llvm.aarch64.set.fpcr(i64 %old)
  ret void
}
"""
"""Arm Architecture Reference Manual, section C5.2.8. Here operands count as 0 too."""

CODES: Mapping[str, str] = {"x86_64": X86, "aarch64": ARM, "arm64": ARM}
"""By LLVM's name of the processor's architecture."""


class FlushedDenormals:
    """Within a ``with`` block denormal results become 0, in this thread, where there is native code.

    An object serves one block at a time.
    """

    def __init__(self) -> None:
        self._before = np.zeros(1, np.int64).ctypes.data_as(c_void_p)
        functions = _functions()
        self._begin, self._end = functions.get("begin"), functions.get("end")

    def __enter__(self) -> None:
        if self._begin is not None:
            self._begin(self._before)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._end is not None:
            self._end(self._before)


@functools.cache
def _functions() -> Mapping[str, native.Function]:
    code = CODES.get(native.architecture()) if native.processor() is not None else None
    if code is None:
        return {}
    signatures = {"begin": (c_void_p,), "end": (c_void_p,)}
    return native.library(code, signatures, "Denormal results become 0", is_brief=True).functions
