"""NumPy's memory against pages that nobody may touch: who reads or writes beyond an array ends the process.

``pytest -p guarded_memory --guard=end`` runs tests so: each array that NumPy makes then ends where its page does, and
with ``--guard=start`` begins where its page does. Memory that is asked for uninitialized is full of nan.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from miai_graph import state
from miai_graph.kernels.compiler import native
from miai_graph.op import Array
from miai_graph.plan import layout, memory
from miai_graph.plan.memory import Lifetime, Scratch, Workspace

PLACES = ("start", "end")
MOST_PAGES_KEPT = 1 << 12

ALLOCATOR = """
@kept = internal global [{most_kept} x ptr] zeroinitializer

declare ptr @mmap(ptr, i64, i32, i32, i32, i64)
declare i32 @mprotect(ptr, i64, i32)
declare i32 @munmap(ptr, i64)
declare i64 @llvm.umax.i64(i64, i64)
declare i64 @llvm.umin.i64(i64, i64)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)

define internal ptr @map(i64 %pages) nounwind {{
  %inner = mul i64 %pages, {page}
  %whole = add i64 %inner, {three_pages}
  %base = call ptr @mmap(ptr null, i64 %whole, i32 {readable_writable}, i32 {private}, i32 -1, i64 0)
  %address = ptrtoint ptr %base to i64
  %failed = icmp eq i64 %address, -1
  br i1 %failed, label %none, label %found
none:
  ret ptr null
found:
  store i64 %pages, ptr %base
  %before = getelementptr i8, ptr %base, i64 {page}
  %first = getelementptr i8, ptr %before, i64 {page}
  %behind = getelementptr i8, ptr %first, i64 %inner
  call i32 @mprotect(ptr %before, i64 {page}, i32 0)
  call i32 @mprotect(ptr %behind, i64 {page}, i32 0)
  ret ptr %first
}}

define internal ptr @filled(ptr %is_at_end, i64 %size, i8 %byte) nounwind {{
  %least = call i64 @llvm.umax.i64(i64 %size, i64 1)
  %more = add i64 %least, {page_less_one}
  %pages = udiv i64 %more, {page}
  %is_small = icmp ult i64 %pages, {most_kept}
  br i1 %is_small, label %look, label %new
look:
  %place = getelementptr ptr, ptr @kept, i64 %pages
  %old = load ptr, ptr %place
  %is_none = icmp eq ptr %old, null
  br i1 %is_none, label %new, label %take
take:
  %next = load ptr, ptr %old
  store ptr %next, ptr %place
  br label %fill
new:
  %mapped = call ptr @map(i64 %pages)
  %failed = icmp eq ptr %mapped, null
  br i1 %failed, label %none, label %fill
none:
  ret ptr null
fill:
  %first = phi ptr [ %old, %take ], [ %mapped, %new ]
  %inner = mul i64 %pages, {page}
  %slack = sub i64 %inner, %least
  %moves = icmp ne ptr %is_at_end, null
  %offset = select i1 %moves, i64 %slack, i64 0
  %result = getelementptr i8, ptr %first, i64 %offset
  call void @llvm.memset.p0.i64(ptr %result, i8 %byte, i64 %size, i1 false)
  ret ptr %result
}}

define ptr @make(ptr %is_at_end, i64 %size) nounwind {{
  %result = call ptr @filled(ptr %is_at_end, i64 %size, i8 -1)
  ret ptr %result
}}

define ptr @make_zeroed(ptr %is_at_end, i64 %count, i64 %item) nounwind {{
  %size = mul i64 %count, %item
  %result = call ptr @filled(ptr %is_at_end, i64 %size, i8 0)
  ret ptr %result
}}

define ptr @resize(ptr %is_at_end, ptr %bytes, i64 %size) nounwind {{
  %result = call ptr @make(ptr %is_at_end, i64 %size)
  %from = ptrtoint ptr %bytes to i64
  %page = and i64 %from, -{page}
  %first = inttoptr i64 %page to ptr
  %base = getelementptr i8, ptr %first, i64 -{two_pages}
  %pages = load i64, ptr %base
  %inner = mul i64 %pages, {page}
  %end = add i64 %page, %inner
  %held = sub i64 %end, %from
  %both = call i64 @llvm.umin.i64(i64 %held, i64 %size)
  call void @llvm.memcpy.p0.p0.i64(ptr %result, ptr %bytes, i64 %both, i1 false)
  call void @release(ptr %is_at_end, ptr %bytes, i64 0)
  ret ptr %result
}}

define void @release(ptr %is_at_end, ptr %bytes, i64 %size) nounwind {{
  %is_nothing = icmp eq ptr %bytes, null
  br i1 %is_nothing, label %end, label %find
find:
  %address = ptrtoint ptr %bytes to i64
  %page = and i64 %address, -{page}
  %first = inttoptr i64 %page to ptr
  %base = getelementptr i8, ptr %first, i64 -{two_pages}
  %pages = load i64, ptr %base
  %is_small = icmp ult i64 %pages, {most_kept}
  br i1 %is_small, label %keep, label %unmap
keep:
  %place = getelementptr ptr, ptr @kept, i64 %pages
  %next = load ptr, ptr %place
  store ptr %next, ptr %first
  store ptr %first, ptr %place
  br label %end
unmap:
  %inner = mul i64 %pages, {page}
  %whole = add i64 %inner, {three_pages}
  call i32 @munmap(ptr %base, i64 %whole)
  br label %end
end:
  ret void
}}
"""
"""What NumPy takes its memory from: a page with the number of pages of memory, one that nobody may touch, the memory,
and another one that nobody may touch. What is given back is kept for the next array of as many pages, in lists by this
number. It is native code since NumPy gives memory back while errors are raised."""

FUNCTIONS = ("make", "make_zeroed", "resize", "release")
NAME = b"guarded"
SET_HANDLER = 304
"""The place of `PyDataMem_SetHandler` in NumPy's table of functions for C."""


class Handler(ctypes.Structure):
    """`PyDataMem_Handler` of NumPy."""

    _fields_ = (
        ("name", ctypes.c_char * 127),
        ("version", ctypes.c_uint8),
        ("context", ctypes.c_void_p),
        *((name, ctypes.c_void_p) for name in FUNCTIONS),
    )


_handlers: list[Handler] = []
"""They stay: arrays refer to them."""


def why_not() -> str | None:
    """The reason why there can be no guarded arrays here."""
    if not sys.platform.startswith(("linux", "darwin")):
        return "this system has no mprotect"
    return None if native.processor() is not None else "there is no native code for this processor"


def handler_at(place: str) -> Any:
    """What `set_handler` takes for arrays that lie there between guarded pages."""
    text = ALLOCATOR.format(
        page=mmap.PAGESIZE,
        page_less_one=mmap.PAGESIZE - 1,
        two_pages=2 * mmap.PAGESIZE,
        three_pages=3 * mmap.PAGESIZE,
        readable_writable=mmap.PROT_READ | mmap.PROT_WRITE,
        private=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
        most_kept=MOST_PAGES_KEPT,
    )
    functions = native.library(text, dict.fromkeys(FUNCTIONS, ()), "memory between guarded pages").functions
    addresses = [native.address_of(functions[name]) for name in FUNCTIONS]
    _handlers.append(Handler(NAME, 1, place == "end", *addresses))
    new = ctypes.pythonapi.PyCapsule_New
    new.argtypes, new.restype = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p), ctypes.py_object
    return new(ctypes.addressof(_handlers[-1]), b"mem_handler", None)


def set_handler(handler: Any) -> Any:
    """Let all arrays that this thread makes from now on have their memory from there; gives the one before."""
    pointer_in = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_in.argtypes, pointer_in.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_void_p
    functions = ctypes.cast(pointer_in(np._core._multiarray_umath._ARRAY_API, None), ctypes.POINTER(ctypes.c_void_p))
    return ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(functions[SET_HANDLER])(handler)


@contextmanager
def guarded_arrays(place: str) -> Iterator[None]:
    """Arrays that this thread makes within lie at that place between guarded pages."""
    before = set_handler(handler_at(place))
    try:
        yield
    finally:
        set_handler(before)


def is_guarded() -> bool:
    """Whether arrays that are made here now lie between guarded pages."""
    return np._core.multiarray.get_handler_name() == NAME.decode()


def placed(array: Array) -> Array:
    """The array; where arrays are guarded, in a copy of the memory from its first to its last element, and no more."""
    if not is_guarded():
        return array
    low, high = np.lib.array_utils.byte_bounds(array) if array.size else (array.ctypes.data,) * 2
    memory = np.empty(high - low, np.uint8)
    ctypes.memmove(memory.ctypes.data, low, high - low)
    return np.ndarray(array.shape, array.dtype, memory, array.ctypes.data - low, array.strides)


def protect(block: Array, start: int, stop: int) -> None:
    """Let nobody touch these bytes of a block: whole pages."""
    function = ctypes.CDLL(None).mprotect
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    assert function(block.ctypes.data + start, stop - start, 0) == 0


class GuardedPlans:
    """Gives plans memory in which each value, and each piece of scratch, lies between guarded pages.

    Parameters
    ----------
    place : where it lies there
    """

    def __init__(self, place: str) -> None:
        self._is_at_end = place == "end"
        self._gaps: list[tuple[int, int]] = []

    def install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(state, "aligned_bytes", self.zeroed_bytes)
        patch.setattr(memory, "aligned_bytes", self.zeroed_bytes)
        patch.setattr(layout, "assign_offsets", self.assign_offsets)
        patch.setattr(Workspace, "block", lambda _, purpose, size_bytes: self.block(purpose, size_bytes))
        patch.setattr(Scratch, "take", self.take)

    @staticmethod
    def zeroed_bytes(size_bytes: int) -> Array:
        return np.zeros(size_bytes, np.uint8)

    def assign_offsets(self, lifetimes: Sequence[Lifetime]) -> tuple[list[int], int]:
        """As `memory.assign_offsets`, but for values that share no page, and with a page between each two."""
        offsets, end = [], 0
        self._gaps = []
        for lifetime in lifetimes:
            size = -(-lifetime.size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
            offsets.append(end + (size - lifetime.size_bytes if self._is_at_end else 0))
            self._gaps.append((end + size, end + size + mmap.PAGESIZE))
            end += size + mmap.PAGESIZE
        return offsets, end

    def block(self, purpose: str, size_bytes: int) -> Array:
        """Memory that nobody has used before."""
        if not purpose.startswith("values") or not size_bytes:
            return np.empty(size_bytes, np.uint8)
        block = np.frombuffer(mmap.mmap(-1, size_bytes), np.uint8)
        block.fill(255)
        for gap in self._gaps:
            protect(block, *gap)
        return block

    @staticmethod
    def take(scratch: Scratch, shape: tuple[int, ...], dtype: Any) -> Array:
        """As `Scratch.take`, but in memory of its own."""
        array = np.empty(shape, dtype)
        scratch.used_bytes += array.nbytes
        return array


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--guard", choices=PLACES, help="where arrays lie between pages that nobody may touch")


@pytest.fixture(autouse=True)
def _guarded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    place = request.config.getoption("--guard")
    if place is None:
        yield
        return
    GuardedPlans(place).install(monkeypatch)
    with guarded_arrays(place):
        yield
