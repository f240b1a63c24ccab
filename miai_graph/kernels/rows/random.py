"""Random numbers by native code, each from where it stands: threads share a value's rows, or the blocks of one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from miai_graph.kernels.compiler import native
from miai_graph.kernels.compiler.loops import call
from miai_graph.kernels.compiler.vectors import BOOL, FLOAT32, FLOAT64
from miai_graph.kernels.kernel import NOTHING, Kernel
from miai_graph.kernels.numpy_kernels import Request, native_for
from miai_graph.kernels.rows.random_code import Variant, module_text
from miai_graph.kernels.running.crew import spans, together
from miai_graph.op import Array
from miai_graph.ops.random import WORDS_PER_BLOCK, RandomOp, rows_and_length

NUMBERS_WORTH_SHARING = 1 << 15
"""A thread has at least about so many to make."""

NUMBERS_OF_A_LINE = 64
"""Parts of a row are multiples of so many: whole blocks, and whole lines of caches."""


@native_for("random_uniform", "random_normal", "random_bernoulli")
def _random(request: Request) -> Kernel | None:
    processor, output, op = native.processor(), request.output, request.node.op
    parameters = _parameters(request)
    if processor is None or parameters is None or not _suit(request):
        return None
    if not output.size:
        return NOTHING
    assert isinstance(op, RandomOp)
    seed, stream, rows_per_sample = (request.attributes[name] for name in ("seed", "stream", "rows_per_sample"))
    variant = Variant(op.name, output.dtype, op.words_per_element(output.dtype))
    text, source = module_text(variant, processor), f"{op.name} {request.node.name}"
    length = rows_and_length(output.shape, rows_per_sample)[1]
    calls = []
    for rows, numbers in _shares(request, rows_per_sample):
        start = output.reshape(-1, length)[rows, numbers]
        block = numbers.start * variant.words // WORDS_PER_BLOCK
        words = [*request.inputs, start, parameters, seed, stream, rows_per_sample, rows.start, block]
        words += [*start.shape, length * output.itemsize]
        calls.append(call(text, words, source))
    return together(calls)


def _suit(request: Request) -> bool:
    numbers_of_run = all(x.dtype == np.int64 and x.size == 1 and x.flags.aligned for x in request.inputs)
    return numbers_of_run and request.output.flags.aligned and request.output.flags.c_contiguous


def _shares(request: Request, rows_per_sample: int) -> Iterator[tuple[slice, slice]]:
    """For each thread its rows, and which numbers in each."""
    rows, length = rows_and_length(request.output.shape, rows_per_sample)
    threads = min(request.threads or 1, rows * length // NUMBERS_WORTH_SHARING + 1)
    if rows >= threads:
        return ((share, slice(0, length)) for share in spans(rows, threads))
    return ((slice(0, rows), share) for share in spans(length, threads, NUMBERS_OF_A_LINE))


def _parameters(request: Request) -> Array | None:
    """What the code is given of the distribution; None where there is none for it."""
    dtype, attributes = request.output.dtype, request.attributes
    match request.node.op.name:
        case "random_uniform":
            low, high = attributes["low"], attributes["high"]
            greatest = np.nextafter(dtype.type(high), dtype.type(low))
            return np.array([high - low, low, greatest], dtype)
        case "random_normal":
            return np.array([attributes["stddev"], attributes["mean"]], dtype)
        case _:
            words = round(attributes["probability"] * 2**32)
            return np.array([words - 1], np.uint32) if words and dtype in (FLOAT32, FLOAT64, BOOL) else None
