"""Words in shared memory by which processes wait for one another: native functions, loaded once a process.

A word is an aligned int64, given by its address. All loads and stores are sequentially consistent, so that everything
written before a store is seen by whoever loads the value stored, and of two processes that each store one word and then
load the other's, at least one sees what the other stored.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from ctypes import CFUNCTYPE, PYFUNCTYPE, c_bool, c_int64, c_void_p
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from miai_graph.kernels.compiler.native import LoadedCode

CALIBRATION_SPINS = 2_000
CALIBRATION_RUNS = 3

_CODE = """
{declaration}

define void @store(ptr %address, i64 %value) {{
  store atomic i64 %value, ptr %address seq_cst, align 8
  ret void
}}

define i64 @load(ptr %address) {{
  %value = load atomic i64, ptr %address seq_cst, align 8
  ret i64 %value
}}

define zeroext i8 @wait_until(ptr %first, i64 %count, i64 %stride_bytes, i64 %target, i64 %spins) {{
start:
  %is_empty = icmp sle i64 %count, 0
  br i1 %is_empty, label %reached, label %look

look:
  %word = phi ptr [ %first, %start ], [ %word, %spin ], [ %next_word, %next ]
  %words_left = phi i64 [ %count, %start ], [ %words_left, %spin ], [ %next_words_left, %next ]
  %spins_left = phi i64 [ %spins, %start ], [ %next_spins_left, %spin ], [ %spins_left, %next ]
  %value = load atomic i64, ptr %word seq_cst, align 8
  %is_there = icmp sge i64 %value, %target
  br i1 %is_there, label %next, label %missing

next:
  %next_word = getelementptr i8, ptr %word, i64 %stride_bytes
  %next_words_left = sub i64 %words_left, 1
  %is_last = icmp eq i64 %next_words_left, 0
  br i1 %is_last, label %reached, label %look

missing:
  %is_enough = icmp sle i64 %spins_left, 0
  br i1 %is_enough, label %given_up, label %spin

spin:
  {pause}
  %next_spins_left = sub i64 %spins_left, 1
  br label %look

reached:
  ret i8 1

given_up:
  ret i8 0
}}
"""


@dataclass(frozen=True)
class Atomics:
    """The native functions.

    store(address, value) : set a word
    load(address) : its value
    wait_until(address, count, stride_bytes, target, spins) : spin until each of `count` words, the first at `address`,
        the others `stride_bytes` apart, has been seen at `target` or above; False after `spins` rounds in vain. With no
        spins it looks once. The words must not decrease meanwhile. Other threads of this process go on.
    """

    store: Callable[[int, int], None]
    load: Callable[[int], int]
    wait_until: Callable[[int, int, int, int, int], bool]
    _code: LoadedCode = field(repr=False)


@functools.cache
def atomics() -> Atomics:
    """The native functions of this process, loaded when they are first asked for, and compiled if they never were."""
    # Here, for what it brings along takes its time, and workers can be started before.
    from miai_graph.kernels.compiler import native, pauses

    pause = pauses.pause_for(native.architecture())
    text = _CODE.format(declaration=pause.declaration, pause=pause.instruction)
    key, source = native.key_of(text), "Words by which processes wait for one another"
    code = native.undisturbed(native.load_code, key, text, source)
    # Every argument is 64 bits wide, and ctypes converts an integer fastest to a void pointer. Only what takes long
    # drops the GIL.
    return Atomics(
        store=PYFUNCTYPE(None, *[c_void_p] * 2)(code.address("store")),
        load=PYFUNCTYPE(c_int64, c_void_p)(code.address("load")),
        wait_until=CFUNCTYPE(c_bool, *[c_void_p] * 5)(code.address("wait_until")),
        _code=code,
    )


def spins_for(seconds: float) -> int:
    """How many rounds `wait_until` spins in this time, on this machine."""
    return max(1, round(seconds / _seconds_of_a_spin()))


@functools.cache
def _seconds_of_a_spin() -> float:
    word = np.zeros(1, np.int64)
    wait_until = atomics().wait_until
    durations = []
    for _ in range(CALIBRATION_RUNS):
        start = perf_counter()
        wait_until(word.ctypes.data, 1, 0, 1, CALIBRATION_SPINS)
        durations.append(perf_counter() - start)
    return min(durations) / CALIBRATION_SPINS
