"""Where the values of parameters and variables live, apart from any graph, function or executor.

A node of a graph only names a variable; the `State` holds its value. Every function and model that uses the variable,
on any executor, reads and sets the one value. Values that are used together lie together: `State.place` moves them into
one block a dtype, so that an optimizer, an all-reduce or a checkpoint can go over flat memory.

A variable that is updated has two arrays, one with the value as it is and one in which a step prepares the next. Which
of them is meant is told by its version number, even or odd. A step ends by raising the numbers of all variables that it
updates, in one assignment; dying at any moment before, it leaves everything as it was.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from threading import RLock
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np

from miai_graph.errors import DTypeError, ShapeError
from miai_graph.types import TensorType, int_dims

ALIGNMENT_BYTES = 64

ONE = np.ones((), np.int64)
"""NumPy adds arrays sooner than Python's numbers."""

Array = np.ndarray[Any, np.dtype[Any]]


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


class Memory(Protocol):
    """Where values can be kept."""

    def allocate(self, size_bytes: int) -> Array:
        """Zeroed bytes, as a uint8 array."""
        ...

    def suits(self, pairs: Sequence[tuple[Array, Array]]) -> bool:
        """Whether values with these arrays may stay where they are, if they are to be used together."""
        ...


class Keeper(Protocol):
    """Who has values that are elsewhere."""

    def fetch(self) -> None:
        """Bring home all of them, by `State.bring_home`, or raise."""
        ...

    def peek(self, variable: Variable) -> Array:
        """A copy of the value of one of them, which need not come home."""
        ...


class PrivateMemory:
    """The memory of this process, in which values that are used together shall lie in one block."""

    def allocate(self, size_bytes: int) -> Array:
        return aligned_bytes(size_bytes)

    def suits(self, pairs: Sequence[tuple[Array, Array]]) -> bool:
        return len({id(block_of(first)) for first, _ in pairs}) <= 1


PRIVATE = PrivateMemory()


class _Place:
    """A variable's number among all versions, and its arrays: one and the same before it is first updated.

    Attributes
    ----------
    is_zero : whether version 0 is all zeros, as new memory is
    """

    __slots__ = ("arrays", "is_zero", "number")

    def __init__(self, number: int, array: Array, *, is_zero: bool = False) -> None:
        self.number = number
        self.arrays = array, array
        self.is_zero = is_zero

    @property
    def has_spare(self) -> bool:
        return self.arrays[0] is not self.arrays[1]


class State:
    """Values by variable. A value goes when nothing refers to its variable any more.

    Attributes
    ----------
    versions : how often each number was raised, lowest byte first in memory. It is replaced by a longer array at times:
        do not keep it.
    generation : grows whenever values move; arrays got before are stale then
    lock : held while a step runs or a value is set
    """

    def __init__(self) -> None:
        self._places: WeakKeyDictionary[Variable, _Place] = WeakKeyDictionary()
        self._away: WeakKeyDictionary[Variable, Keeper] = WeakKeyDictionary()
        self._guards: WeakKeyDictionary[Variable, Callable[[], None]] = WeakKeyDictionary()
        self._numbers = itertools.count()
        self.versions = np.zeros(1024, "<i8")
        self.generation = 0
        self.lock = RLock()

    def __contains__(self, variable: Variable) -> bool:
        return variable in self._places

    def add(self, variable: Variable, value: Array | None = None) -> None:
        """Give a new variable its first value (copied); by default zeros, which the system provides when the memory is
        first written."""
        (array,) = arrays_in(aligned_bytes(variable.type.size_bytes), [variable.type])
        if value is not None:
            np.copyto(array, value)
        self._places[variable] = _Place(self.new_number(), array, is_zero=value is None)

    def adopt(self, variable: Variable, arrays: tuple[Array, Array]) -> None:
        """Let a variable's value be in these arrays, of even versions and of odd ones, which others may hold too."""
        if variable not in self._places:
            self._places[variable] = _Place(self.new_number(), arrays[0])
        self._places[variable].arrays = arrays
        self.generation += 1

    def new_number(self) -> int:
        """A place in `versions` that nobody else has. There are never so many that they would have to come back."""
        with self.lock:
            number = next(self._numbers)
            if number == len(self.versions):
                self.versions = np.concatenate([self.versions, np.zeros_like(self.versions)])
            return number

    def numbers(self, variables: Iterable[Variable]) -> Array:
        """Where the versions of the variables stand in `versions`."""
        return np.array([self._places[variable].number for variable in variables], np.intp)

    def array(self, variable: Variable) -> Array:
        """The array that holds the value now: not a copy, until the variable is updated."""
        self.require_home((variable,))
        place = self._places[variable]
        return place.arrays[self.versions[place.number] & 1]

    def arrays(self, variable: Variable) -> tuple[Array, Array]:
        """The array of even versions and that of odd ones, which are two if it is updated (see `place`)."""
        return self._places[variable].arrays

    def send_away(self, variables: Iterable[Variable], keeper: Keeper) -> None:
        """Note that the values of these variables are elsewhere, in the versions that their numbers tell."""
        for variable in variables:
            self._away[variable] = keeper

    def is_away(self, variable: Variable) -> bool:
        """Whether the value is elsewhere, and the arrays here hold an earlier one."""
        return variable in self._away

    def require_home(self, variables: Iterable[Variable]) -> None:
        """See to it that the values are here."""
        if self._away:
            with self.lock:
                for variable in variables:
                    if variable in self._away:
                        self._away[variable].fetch()

    def guard(self, variables: Iterable[Variable], before_change: Callable[[], None]) -> None:
        """Ask to be told before somebody else changes one of these variables. It is told once."""
        for variable in variables:
            self._guards[variable] = before_change

    def about_to_change(self, variables: Iterable[Variable], by: Callable[[], None] | None = None) -> None:
        """Tell those who asked for it, but not the one who is about to."""
        if self._guards:
            with self.lock:
                for variable in variables:
                    if self._guards.get(variable, by) != by:
                        self._guards.pop(variable)()

    def bring_home(self, values: Mapping[Variable, Array]) -> None:
        """Take over values that were elsewhere."""
        for variable, value in values.items():
            place = self._places[variable]
            np.copyto(place.arrays[self.versions[place.number] & 1], value)
            self._away.pop(variable, None)

    def roll_back(self, versions: Mapping[int, int], variables: Iterable[Variable]) -> None:
        """Return to earlier version numbers, those of the values that are here, and give up what is elsewhere."""
        # In one assignment, like `commit`.
        self.versions[list(versions)] = list(versions.values())
        for variable in variables:
            self._away.pop(variable, None)

    def get(self, variable: Variable) -> Array:
        """A copy of the value."""
        with self.lock:
            keeper = self._away.get(variable)
            return self.array(variable).copy() if keeper is None else keeper.peek(variable)

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
        with self.lock:
            self.about_to_change((variable,))
            np.copyto(self.array(variable), array, casting="same_kind")
            # Two, so that it stays where it is: who has a copy of the value sees that it is another one now.
            self.versions[self._places[variable].number] += 2

    def commit(self, numbers: Array) -> None:
        """Raise these versions by one: all of them or, if interrupted before, none.

        A signal, such as Ctrl-C, is handled between two instructions of Python. The last one here does it all.
        """
        self.versions[numbers] += ONE

    def place(self, variables: Iterable[Variable], updated: Iterable[Variable] = (), memory: Memory = PRIVATE) -> None:
        """See to it that variables lie together in memory of the kind wanted, in the order given.

        Those that do already stay where they are.

        Parameters
        ----------
        updated : those of them that need a second array
        memory : tells whether arrays may stay, and where they go if not
        """
        with self.lock:
            members = list(dict.fromkeys(variables))
            self.require_home(members)
            wanting = dict.fromkeys(updated)
            for group in _by_dtype(members):
                if not memory.suits([self._places[variable].arrays for variable in group]):
                    self._move(group, memory)
            for group in _by_dtype([v for v in members if v in wanting and not self._places[v].has_spare]):
                for variable, spare in zip(group, _cut(group, memory), strict=True):
                    place = self._places[variable]
                    place.arrays = place.arrays[0], spare

    def _move(self, variables: list[Variable], memory: Memory) -> None:
        # First, so that nobody relies on where values were, if this is interrupted.
        self.generation += 1
        for variable, array in zip(variables, _cut(variables, memory), strict=True):
            place = self._places[variable]
            if self.versions[place.number]:
                place.is_zero = False
            if not place.is_zero:
                np.copyto(array, self.array(variable))
            place.arrays = array, array
            self.versions[place.number] &= ~1


def _by_dtype(variables: list[Variable]) -> Iterable[list[Variable]]:
    groups: dict[np.dtype[Any], list[Variable]] = {}
    for variable in variables:
        groups.setdefault(variable.type.dtype, []).append(variable)
    return groups.values()


def _cut(variables: list[Variable], memory: Memory) -> list[Array]:
    """An array for each variable, from one block."""
    types = [variable.type for variable in variables]
    return arrays_in(memory.allocate(block_bytes(types)), types)


def block_bytes(types: Iterable[TensorType]) -> int:
    """The memory for arrays of these types, each aligned."""
    return sum(_padded(type.size_bytes) for type in types)


def arrays_in(block: Array, types: Sequence[TensorType]) -> list[Array]:
    """Arrays of these types, one behind the other in a block of bytes."""
    offsets = itertools.accumulate((_padded(type.size_bytes) for type in types), initial=0)
    return [
        block[offset : offset + type.size_bytes].view(type.dtype).reshape(int_dims(type.shape))
        for offset, type in zip(offsets, types, strict=False)
    ]


def _padded(size_bytes: int) -> int:
    """The size rounded up, so that what comes behind is aligned; never nothing."""
    return -(-max(size_bytes, 1) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def aligned_bytes(size_bytes: int) -> Array:
    """Zeroed bytes that start at a multiple of the widest vector register's and a cache line's length."""
    block = np.zeros(size_bytes + ALIGNMENT_BYTES, np.uint8)
    start = -block.ctypes.data % ALIGNMENT_BYTES
    return block[start : start + size_bytes]


def block_of(array: Array) -> Any:
    """The array that owns the memory of a view."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


state = State()
"""The one state of this process."""
