"""Where the values of parameters and variables live, apart from any graph, function or executor.

A node of a graph only names a variable; the `State` holds its value. Every function and model that uses
the variable, on any executor, reads and sets the one value. Values that are used together lie together: `State.place`
moves them into one block a dtype, so that an optimizer, an all-reduce or a checkpoint can go over flat memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from miai_graph.errors import DTypeError, ShapeError
from miai_graph.types import TensorType, int_dims

ALIGNMENT_BYTES = 64

Array = np.ndarray[Any, np.dtype[Any]]
Allocate = Callable[[int], Array]


class Variable:
    """The key of a value in the `State`. Two variables are the same only if they are one object.

    Attributes
    ----------
    name : full name, such as ``dense/kernel``; says which one is meant in messages and files
    type : dtype and shape; without the batch
    trainable : whether optimizers may change it (a parameter), or only updates that the user or a layer states
    """

    __slots__ = ("__weakref__", "name", "trainable", "type")

    def __init__(self, name: str, type: TensorType, trainable: bool) -> None:
        self.name = name
        self.type = type
        self.trainable = trainable

    def __repr__(self) -> str:
        return f"Variable({self.name}: {self.type})"


class State:
    """Values by variable. A value goes when nothing refers to its variable any more."""

    def __init__(self) -> None:
        self._values: WeakKeyDictionary[Variable, Array] = WeakKeyDictionary()
        self._lock = RLock()
        self._generation = 0

    @property
    def generation(self) -> int:
        """Grows whenever values move: arrays got from `array` before are stale then."""
        return self._generation

    @property
    def lock(self) -> RLock:
        """Held while a step is committed or a value is set."""
        return self._lock

    def __contains__(self, variable: Variable) -> bool:
        return variable in self._values

    def add(self, variable: Variable, value: Array) -> None:
        """Give a new variable its first value (copied)."""
        self._values[variable] = _aligned_copy(value)

    def array(self, variable: Variable) -> Array:
        """The array that holds the value now: not a copy; changes with the next step."""
        return self._values[variable]

    def get(self, variable: Variable) -> Array:
        """A copy of the value."""
        with self._lock:
            return self._values[variable].copy()

    def set(self, variable: Variable, value: Any) -> None:
        """Replace the value, in place.

        Raises
        ------
        ShapeError, DTypeError
            if the value is not of the variable's shape, or cannot be cast to its dtype within its kind.
        """
        array = np.asarray(value)
        type = variable.type
        if array.shape != type.shape:
            raise ShapeError(
                f"expected a value of shape {type.shape} for variable {variable.name!r}; found {array.shape}"
            )
        if not np.can_cast(array.dtype, type.dtype, "same_kind"):
            raise DTypeError(
                f"expected a value of dtype {type.dtype} for variable {variable.name!r}; found {array.dtype}. "
                f"Convert it: array.astype({type.dtype.name!r})"
            )
        with self._lock:
            np.copyto(self._values[variable], array, casting="same_kind")

    def place(self, variables: Iterable[Variable], allocate: Allocate | None = None) -> None:
        """See to it that the variables lie in one block of memory a dtype, in the order given.

        Those that already share a block stay, unless `allocate` says where the new block shall be:
        it is called with a number of bytes and returns that many, as a uint8 array.
        """
        with self._lock:
            by_dtype = itertools.groupby(
                sorted(dict.fromkeys(variables), key=lambda variable: variable.type.dtype.str),
                key=lambda variable: variable.type.dtype,
            )
            for _, group in by_dtype:
                members = list(group)
                blocks = {id(_block(self._values[variable])) for variable in members}
                if len(blocks) > 1 or allocate is not None:
                    self._move(members, allocate or _allocate)

    def _move(self, variables: list[Variable], allocate: Allocate) -> None:
        sizes = [_padded(variable.type.size_bytes) for variable in variables]
        block = allocate(sum(sizes))
        offsets = itertools.accumulate(sizes, initial=0)
        for variable, offset in zip(variables, offsets, strict=False):
            type = variable.type
            view = block[offset : offset + type.size_bytes].view(type.dtype).reshape(int_dims(type.shape))
            np.copyto(view, self._values[variable])
            self._values[variable] = view
        self._generation += 1


def _padded(size_bytes: int) -> int:
    return -(-max(size_bytes, 1) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _allocate(size_bytes: int) -> Array:
    return aligned_bytes(size_bytes)


def aligned_bytes(size_bytes: int) -> Array:
    """Zeroed bytes that start at a multiple of the widest vector register's and a cache line's length."""
    block = np.zeros(size_bytes + ALIGNMENT_BYTES, np.uint8)
    start = -block.ctypes.data % ALIGNMENT_BYTES
    return block[start : start + size_bytes]


def _aligned_copy(value: Array) -> Array:
    copy = aligned_bytes(value.nbytes).view(value.dtype).reshape(value.shape)
    np.copyto(copy, value)
    return copy


def _block(array: Array) -> Any:
    """The object that owns the memory of a view."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


state = State()
"""The one state of this process."""
