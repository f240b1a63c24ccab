"""Kernels made of NumPy calls that write into memory prepared beforehand.

A kernel is a callable without arguments: everything it reads and writes is fixed when it is prepared. An op without an
entry in `KERNELS`, once `load_kernels` was called for it, is computed by its definition and copied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from miai_graph.kernels.elementwise.kernels import copying, filling, in_turn
from miai_graph.kernels.epilogue import Epilogue
from miai_graph.kernels.kernel import Kernel, Scratch
from miai_graph.kernels.products.matrix_product import matrix_product
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.ops.elementwise import ElementwiseOp
from miai_graph.ops.softmax import check_labels


@dataclass(frozen=True)
class Request:
    """What a kernel is prepared for: a node with its arrays.

    attributes : with the batch size filled in
    scratch : gives memory of a shape and dtype, for use while the kernel runs; other kernels use the same
    threads : how many there are to use; None: as many as BLAS takes, for BLAS alone
    epilogue : what is to be computed of a product; the output is of that
    """

    node: Node
    inputs: Sequence[Array]
    output: Array
    attributes: Mapping[str, Any]
    scratch: Scratch
    threads: int | None = None
    epilogue: Epilogue | None = None


Preparer = Callable[[Request], Kernel]
KERNELS: dict[str, Preparer] = {}

ROWS_ADDED_AT_ONCE = 1024

# NumPy's stubs know these without the positional arguments that make a call of them fast.
_add_reduce: Any = np.add.reduce
_maximum_reduce: Any = np.maximum.reduce
_minimum_reduce: Any = np.minimum.reduce
_matrix_product: Any = np.matmul

# These read an input again after they have begun to write.
_NOT_IN_PLACE = {"rsqrt", "relu_gradient", "where", "clip", "sigmoid_cross_entropy"}

# These read an element for the last time before they write it. Where rows end within a vector, the part of it that was
# written keeps the processor from reading the next row, which lies in the same vector.
_ALONG_AXIS_IN_PLACE = {"softmax", "log_softmax"}
_LONGEST_VECTOR = 16


def works_in_place(node: Node) -> bool:
    """Whether the node's kernel may write its output where one of its inputs lies."""
    if node.op.name in _ALONG_AXIS_IN_PLACE:
        length = node.type.shape[node.attributes["axis"]]
        return isinstance(length, int) and length % _LONGEST_VECTOR == 0
    return isinstance(node.op, ElementwiseOp) and node.op.name not in _NOT_IN_PLACE


POOLING = "max_pool2d", "max_pool2d_gradient", "average_pool2d", "average_pool2d_gradient"
FILES: Mapping[str, Sequence[str]] = {
    "convolution.kernels": ("conv2d", "conv2d_input_gradient", "conv2d_kernel_gradient"),
    "rows.pooling": POOLING,
    "rows.numpy_pooling": POOLING,
    "rows.random": ("random_uniform", "random_normal", "random_bernoulli"),
    "rows.softmax": ("softmax", "log_softmax", "logsumexp", "softmax_cross_entropy", "sparse_softmax_cross_entropy"),
}
"""The files with kernels for ops that many graphs do without. They are loaded when the first of these is needed."""


@cache
def load_kernels(op_name: str) -> None:
    """See to it that the kernels for an op are known."""
    for file, op_names in FILES.items():
        if op_name in op_names:
            import_module(f"miai_graph.kernels.{file}")


def prepare(request: Request) -> Kernel:
    """The kernel for a node."""
    load_kernels(request.node.op.name)
    native = NATIVE_KERNELS.get(request.node.op.name)
    kernel = None if native is None else native(request)
    if kernel is not None:
        return kernel
    preparer = KERNELS.get(request.node.op.name)
    if preparer is not None:
        return preparer(request)
    function = getattr(type(request.node.op), "function", None)
    if isinstance(function, np.ufunc):
        if function in (np.maximum, np.minimum):
            # Of these NumPy wants the output named.
            return partial(function, *request.inputs, out=request.output)
        return partial(function, *request.inputs, request.output)
    return by_definition(request)


def by_definition(request: Request) -> Kernel:
    """The kernel that computes by the op's definition, and copies."""
    return partial(_by_definition, request.node.op.forward, request.inputs, dict(request.attributes), request.output)


def _by_definition(
    forward: Callable[..., Array], inputs: Sequence[Array], attributes: dict[str, Any], output: Array
) -> None:
    result: Any = forward(*inputs, **attributes)
    if not isinstance(result, np.ndarray | np.generic) or result.shape != output.shape or result.dtype != output.dtype:
        found = f"{result.dtype}{list(result.shape)}" if hasattr(result, "dtype") else repr(result)
        raise ValueError(f"expected {output.dtype}{list(output.shape)}, which infer says; found {found} from forward")
    np.copyto(output, result)


NATIVE_KERNELS: dict[str, Callable[[Request], Kernel | None]] = {}
"""They come before the others, where they do not give None: for arrays that they do not suit."""


def native_for(
    *names: str,
) -> Callable[[Callable[[Request], Kernel | None]], Callable[[Request], Kernel | None]]:
    """Enter the function that prepares native code for the ops of these names, or None."""

    def enter(preparer: Callable[[Request], Kernel | None]) -> Callable[[Request], Kernel | None]:
        NATIVE_KERNELS.update(dict.fromkeys(names, preparer))
        return preparer

    return enter


def kernel_for(*names: str) -> Callable[[Preparer], Preparer]:
    """Enter the function that prepares a kernel for the ops of these names."""

    def enter(preparer: Preparer) -> Preparer:
        for name in names:
            KERNELS[name] = preparer
        return preparer

    return enter


@kernel_for("reshape", "transpose", "broadcast_to", "slice", "stop_gradient", "cast")
def _copy(request: Request) -> Kernel:
    source = (
        request.node.op.forward(request.inputs[0], **request.attributes)
        if request.node.op.is_view
        else request.inputs[0]
    )
    if request.node.op.name == "reshape":
        return copying(request.output.reshape(request.inputs[0].shape), request.inputs[0], request.threads or 1)
    if source.dtype == request.output.dtype:
        return copying(request.output, source, request.threads or 1)
    return partial(np.copyto, request.output, source, casting="unsafe")


@kernel_for("sum", "sum_of_part")
def _sum(request: Request) -> Kernel:
    x, axes = request.inputs[0], request.attributes["axes"]
    is_leading = 0 < len(axes) < x.ndim and axes == tuple(range(len(axes)))
    if is_leading and x.dtype.kind == "f" and x.flags.c_contiguous and x.size:
        return _sum_of_rows(x.reshape(-1, request.output.size), request)
    return partial(_add_reduce, request.inputs[0], request.attributes["axes"], None, request.output)


def _sum_of_rows(rows: Array, request: Request) -> Kernel:
    """Over the rows of a matrix BLAS adds several times as fast as NumPy, but one after another.

    Many rows are added in blocks first, for errors that grow with the length of a block and the number of blocks only.
    """
    total = request.output.reshape(-1)
    if len(rows) <= ROWS_ADDED_AT_ONCE:
        return partial(_matrix_product, np.ones(len(rows), rows.dtype), rows, total)
    count, rest = divmod(len(rows), ROWS_ADDED_AT_ONCE)
    blocks = rows[: len(rows) - rest].reshape(count, ROWS_ADDED_AT_ONCE, -1)
    remainder = rows[len(rows) - rest :]
    ones = np.ones(max(ROWS_ADDED_AT_ONCE, count + 1), rows.dtype)
    sums = request.scratch((count + 1, total.size), rows.dtype)

    def run() -> None:
        _matrix_product(ones[:ROWS_ADDED_AT_ONCE], blocks, sums[:count])
        _matrix_product(ones[:rest], remainder, sums[count])
        _matrix_product(ones[: count + 1], sums, total)

    return run


@kernel_for("max")
def _max(request: Request) -> Kernel:
    return partial(_maximum_reduce, request.inputs[0], request.attributes["axes"], None, request.output)


@kernel_for("min")
def _min(request: Request) -> Kernel:
    return partial(_minimum_reduce, request.inputs[0], request.attributes["axes"], None, request.output)


@kernel_for("argmax")
def _argmax(request: Request) -> Kernel:
    return partial(np.argmax, request.inputs[0], request.attributes["axis"], request.output)


@kernel_for("relu")
def _relu(request: Request) -> Kernel:
    return partial(np.maximum, request.inputs[0], np.zeros((), request.output.dtype), out=request.output)


@kernel_for("relu_gradient")
def _relu_gradient(request: Request) -> Kernel:
    g, y = request.inputs
    mask = request.scratch(y.shape, bool)
    zero = np.zeros((), y.dtype)

    def run() -> None:
        np.greater(y, zero, mask)
        np.multiply(g, mask, request.output)

    return run


@kernel_for("sigmoid")
def _sigmoid(request: Request) -> Kernel:
    x, output = request.inputs[0], request.output
    half = np.asarray(0.5, output.dtype)

    def run() -> None:
        np.multiply(x, half, output)
        np.tanh(output, output)
        np.multiply(output, half, output)
        np.add(output, half, output)

    return run


@kernel_for("clip")
def _clip(request: Request) -> Kernel:
    return partial(np.clip, request.inputs[0], request.attributes["low"], request.attributes["high"], request.output)


@kernel_for("where")
def _where(request: Request) -> Kernel:
    condition, a, b = request.inputs
    output = request.output

    def run() -> None:
        np.copyto(output, b)
        np.copyto(output, a, where=condition)

    return run


@kernel_for("concatenate")
def _concatenate(request: Request) -> Kernel:
    output, axis, threads = request.output, request.attributes["axis"], request.threads or 1
    ends = [0, *accumulate(array.shape[axis] for array in request.inputs)]
    along = (slice(None),) * axis
    places = (output[(*along, slice(start, stop))] for start, stop in pairwise(ends))
    return in_turn([copying(place, array, threads) for place, array in zip(places, request.inputs, strict=True)])


@kernel_for("scatter_slice")
def _scatter_slice(request: Request) -> Kernel:
    return _placed(request, tuple(slice(*part) for part in request.attributes["key"]), 0)


@kernel_for("pad")
def _pad(request: Request) -> Kernel:
    ends = zip(request.attributes["pad_width"], request.output.shape, strict=True)
    return _placed(
        request, tuple(slice(before, length - after) for (before, after), length in ends), request.attributes["value"]
    )


def _placed(request: Request, key: tuple[slice, ...], around: float) -> Kernel:
    """The input there, and one number around it."""
    source, output, place = request.inputs[0], request.output, request.output[key]

    threads = request.threads or 1
    return in_turn([filling(output, around, threads), copying(place, source, threads)])


@kernel_for("matmul")
def _matmul(request: Request) -> Kernel:
    a, b = request.inputs
    return matrix_product(a, b, request.output, request.scratch, request.threads, request.epilogue)


@kernel_for("softmax")
def _softmax(request: Request) -> Kernel:
    x, output, axis = request.inputs[0], request.output, request.attributes["axis"]
    extreme = request.scratch((*x.shape[:axis], 1, *x.shape[axis + 1 :]), x.dtype)

    def run() -> None:
        _maximum_reduce(x, axis, None, extreme, True, -np.inf)
        np.subtract(x, extreme, output)
        np.exp(output, output)
        _add_reduce(output, axis, None, extreme, True)
        np.divide(output, extreme, output)

    return run


@kernel_for("sparse_softmax_cross_entropy")
def _sparse_softmax_cross_entropy(request: Request) -> Kernel:
    logits, labels = request.inputs
    classes = logits.shape[-1]
    rows = labels.size
    shifted = request.scratch(logits.shape, logits.dtype)
    extreme = request.scratch((*labels.shape, 1), logits.dtype)
    chosen = request.scratch(labels.shape, logits.dtype)
    places = request.scratch(labels.shape, np.int64)
    starts = np.arange(0, rows * classes, classes).reshape(labels.shape)
    flat = shifted.reshape(-1)

    def run() -> None:
        if labels.size and (labels.min() < 0 or labels.max() >= classes):
            check_labels(labels, classes)
        _maximum_reduce(logits, -1, None, extreme, True, -np.inf)
        np.subtract(logits, extreme, shifted)
        np.add(labels, starts, places, casting="unsafe")
        flat.take(places, out=chosen, mode="clip")
        np.exp(shifted, shifted)
        _add_reduce(shifted, -1, None, request.output)
        np.log(request.output, request.output)
        np.subtract(request.output, chosen, request.output)

    return run


@kernel_for("one_hot")
def _one_hot(request: Request) -> Kernel:
    classes = np.arange(request.attributes["depth"])
    return partial(np.equal, request.inputs[0][..., None], classes, request.output)
