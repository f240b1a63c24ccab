"""What is known of a value before it exists: its dtype and its shape.

A dimension is an integer or a multiple of the batch, ``k·B``. B is the one batch symbol of a graph:
``None`` to the user, ``B`` or ``64·B`` in the text form, a number once arrays are fed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from miai_graph.errors import ArgumentError, DTypeError, ShapeError

DTYPE_CODES = {
    np.dtype(name): code
    for name, code in {
        "float32": "f32",
        "float64": "f64",
        "int8": "i8",
        "int16": "i16",
        "int32": "i32",
        "int64": "i64",
        "uint8": "u8",
        "uint16": "u16",
        "uint32": "u32",
        "uint64": "u64",
        "bool": "bool",
    }.items()
}


@dataclass(frozen=True, slots=True)
class BatchDim:
    """The dimension ``multiple · B``, where B is the batch size."""

    multiple: int = 1

    def __str__(self) -> str:
        return "B" if self.multiple == 1 else f"{self.multiple}·B"


Dim = int | BatchDim
Shape = tuple[Dim, ...]
BATCH = BatchDim(1)


@dataclass(frozen=True)
class TensorType:
    """Dtype and shape of a value, printed like ``f32[64·B,10]``."""

    dtype: np.dtype[Any]
    shape: Shape

    def __str__(self) -> str:
        return f"{DTYPE_CODES[self.dtype]}{format_shape(self.shape)}"

    @property
    def rank(self) -> int:
        return len(self.shape)

    @cached_property
    def batch_axes(self) -> tuple[int, ...]:
        """The axes whose length depends on the batch size."""
        return tuple(axis for axis, dim in enumerate(self.shape) if isinstance(dim, BatchDim))

    @property
    def is_floating(self) -> bool:
        return self.dtype.kind == "f"

    @property
    def is_integer(self) -> bool:
        return self.dtype.kind in "iu"

    @cached_property
    def size(self) -> int:
        """The number of elements of a shape without the batch symbol (see `bind_type`)."""
        return math.prod(int_dims(self.shape))

    @property
    def size_bytes(self) -> int:
        return self.size * self.dtype.itemsize

    def with_shape(self, shape: Shape) -> TensorType:
        return TensorType(self.dtype, shape)

    def with_dtype(self, dtype: Any) -> TensorType:
        return TensorType(np.dtype(dtype), self.shape)


def as_dtype(dtype: Any) -> np.dtype[Any]:
    """The NumPy dtype meant, if it is one that graphs know.

    Raises
    ------
    DTypeError
        for complex, half precision, object, string and other dtypes.
    """
    try:
        found = np.dtype(dtype).newbyteorder("=")
    except TypeError:
        found = None
    if found not in DTYPE_CODES:
        known = ", ".join(dtype.name for dtype in DTYPE_CODES)
        raise DTypeError(f"expected one of the dtypes {known}; found {dtype!r}")
    return found


def as_shape(shape: Iterable[int | BatchDim | None] | int) -> Shape:
    """A user's shape, in which ``None`` stands for the batch, as a tuple of dimensions."""
    dims = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
    for dim in dims:
        if dim is None or isinstance(dim, BatchDim):
            continue
        if isinstance(dim, bool) or not isinstance(dim, int | np.integer) or dim < 0:
            raise ShapeError(
                f"expected dimensions that are integers of at least 0, or None for the batch; "
                f"found {dim!r} in {tuple(dims)}"
            )
    return tuple(BATCH if dim is None else dim if isinstance(dim, BatchDim) else int(dim) for dim in dims)


def batch_first_shape(shape: Iterable[int | BatchDim | None] | int) -> Shape:
    """A user's shape, like `as_shape`, with the batch nowhere but first."""
    dims = as_shape(shape)
    if any(isinstance(dim, BatchDim) for dim in dims[1:]):
        raise ShapeError(
            f"expected None, the batch, as the first dimension only; found {user_shape(dims)}. "
            "Give the other dimensions their lengths"
        )
    return dims


def user_shape(shape: Shape) -> tuple[int | None, ...]:
    """The shape as users see it: ``None`` where the length depends on the batch."""
    return tuple(None if isinstance(dim, BatchDim) else dim for dim in shape)


def format_shape(shape: Shape) -> str:
    return f"[{','.join(str(dim) for dim in shape)}]"


def int_dims(shape: Shape) -> tuple[int, ...]:
    """The dimensions, all of which must be integers."""
    for dim in shape:
        if isinstance(dim, BatchDim):
            raise ShapeError(f"the batch size is not known yet in {format_shape(shape)}")
    return shape  # type: ignore[return-value]


def bind_dim(dim: Dim, batch_size: int) -> int:
    return dim.multiple * batch_size if isinstance(dim, BatchDim) else dim


def bind_shape(shape: Shape, batch_size: int) -> tuple[int, ...]:
    """The shape with the batch symbol replaced by a number."""
    return tuple(bind_dim(dim, batch_size) for dim in shape)


def bind_type(type: TensorType, batch_size: int) -> TensorType:
    """The type with the batch symbol replaced by a number."""
    return TensorType(type.dtype, bind_shape(type.shape, batch_size)) if type.batch_axes else type


@dataclass(frozen=True)
class ElementCount:
    """A number of elements, ``factor · B**power``: what reshaping must keep."""

    factor: int
    power: int

    @classmethod
    def of(cls, shape: Shape) -> ElementCount:
        factor, power = 1, 0
        for dim in shape:
            if isinstance(dim, BatchDim):
                factor, power = factor * dim.multiple, power + 1
            else:
                factor *= dim
        return cls(factor, power)

    def divided_by(self, other: ElementCount) -> Dim | None:
        """The dimension d for which ``other · d == self``; None where there is none."""
        if other.factor == 0 or self.factor % other.factor:
            return None
        factor = self.factor // other.factor
        match self.power - other.power:
            case 0:
                return factor
            case 1:
                return BatchDim(factor)
            case _:
                return None


def broadcast_shapes(*shapes: Shape) -> Shape:
    """The common shape by NumPy's rules; a batch dimension only fits itself and 1.

    Raises
    ------
    ShapeError
        where two dimensions differ and neither is 1.
    """
    rank = max((len(shape) for shape in shapes), default=0)
    result: list[Dim] = []
    for axis in range(-rank, 0):
        dims = [shape[axis] for shape in shapes if len(shape) >= -axis]
        wide = [dim for dim in dims if dim != 1]
        if any(dim != wide[0] for dim in wide[1:]):
            raise ShapeError(
                f"expected shapes that broadcast together; found "
                f"{' and '.join(format_shape(shape) for shape in shapes)}, "
                f"which differ along axis {axis}: {' and '.join(str(dim) for dim in dims)}"
            )
        result.append(wide[0] if wide else 1)
    return tuple(result)


def normalize_axis(axis: int, rank: int) -> int:
    """An axis counted from the front, from one that may be counted from the back."""
    if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
        raise ArgumentError(f"expected an axis that is an integer; found {axis!r}")
    if not -rank <= axis < rank:
        raise ShapeError(f"expected an axis from {-rank} to {rank - 1}; found {axis}")
    return int(axis) % rank


def normalize_axes(axes: int | Sequence[int] | None, rank: int) -> tuple[int, ...]:
    """Sorted axes counted from the front; None stands for all of them."""
    if axes is None:
        return tuple(range(rank))
    given = tuple(axes) if isinstance(axes, Sequence) else (axes,)
    result = tuple(sorted(normalize_axis(axis, rank) for axis in given))
    if len(set(result)) != len(result):
        raise ShapeError(f"expected each axis once; found {tuple(given)}")
    return result
