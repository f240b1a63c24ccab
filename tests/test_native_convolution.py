"""Convolutions in native code: as they are defined, for every geometry, layout and width of vectors."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from guarded_memory import is_guarded, placed
from native_samples import SENTINEL, among_others

import miai_graph as mg
from miai_graph.gradient import grad
from miai_graph.kernels.compiler import native
from miai_graph.kernels.convolution.kernels import convolution
from miai_graph.kernels.convolution.program import target_for
from miai_graph.kernels.convolution.tiles import Target
from miai_graph.kernels.numpy_kernels import Request
from miai_graph.node import Node
from miai_graph.op import Array

PROCESSORS = (
    native.Processor(16, 32),
    native.Processor(32, 16),
    native.Processor(64, 32),
)
"""Like those of NEON, AVX2 and AVX-512. LLVM takes vectors apart that this processor does not have."""

PADDINGS = (((0, 0), (0, 0)), ((1, 1), (1, 1)), ((2, 0), (1, 3)))

pytestmark = pytest.mark.skipif(native.processor() is None, reason="there is no native code here")


@pytest.fixture(params=PROCESSORS, ids=lambda processor: f"{processor.vector_bytes}B-{processor.registers}")
def processor(request: Any) -> native.Processor:
    return request.param


def nodes(
    image: Sequence[int], kernel: Sequence[int], dtype: str = "float32", **geometry: Any
) -> tuple[Node, Node, Node]:
    """A convolution of these shapes, and its gradients in images and kernel."""
    x, k = mg.input("x", tuple(image), dtype), mg.input("k", tuple(kernel), dtype)
    y = mg.conv2d(x, k, **geometry)
    return y, *grad(y, [x, k], mg.input("g", y.shape, dtype))


def scratch(shape: tuple[int, ...], dtype: Any) -> Array:
    """Memory in which others have left what they like."""
    return np.full(shape, np.nan, dtype)


def guarded(shape: tuple[int, ...], dtype: Any, shift: int = 0) -> tuple[Array, Array]:
    """An array, and the memory around it, of sentinels; so many numbers away from where a vector might begin."""
    return among_others(shape, dtype, 64 + shift, 64)


def computed(node: Node, inputs: Sequence[Array], processor: native.Processor, shift: int = 0) -> Array:
    """The node's value by its kernel; nothing around that may change."""
    output, memory = guarded(node.type.shape, node.type.dtype, shift)
    output[...] = np.nan
    kernel = convolution(Request(node, [placed(each) for each in inputs], output, node.attributes, scratch), processor)
    for _ in range(2):
        kernel()
    size = output.size
    assert (memory[: 64 + shift] == SENTINEL).all()
    assert (memory[64 + shift + size :] == SENTINEL).all()
    return output


def random_inputs(node: Node, rng: np.random.Generator) -> list[Array]:
    return [rng.standard_normal(each.type.shape).astype(each.type.dtype) for each in node.inputs]


def assert_as_defined(node: Node, inputs: Sequence[Array], processor: native.Processor, shift: int = 0) -> None:
    output = computed(node, inputs, processor, shift)
    exact = node.op.forward(*(each.astype("f8") for each in inputs), **node.attributes)
    magnitude = node.op.forward(*(np.abs(each).astype("f8") for each in inputs), **node.attributes)
    tolerance = 50 * np.finfo(output.dtype).eps
    assert (np.abs(output - exact) <= tolerance * magnitude).all(), node


def geometries(
    rng: np.random.Generator, count: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]]:
    """Any that fit together."""
    while count:
        size, strides, dilation = (tuple(map(int, rng.integers(1, most + 1, 2))) for most in (5, 3, 2))
        padding = PADDINGS[rng.integers(len(PADDINGS))]
        length = [int(rng.integers(1, 16)) for _ in range(2)]
        fits = all(sum(padding[axis]) + length[axis] > dilation[axis] * (size[axis] - 1) for axis in range(2))
        if fits:
            groups = int(rng.choice([1, 1, 1, 2, 3]))
            per_group, channels = (int(rng.choice([1, 2, 3, 5, 8, 16, 17, 40])) for _ in range(2))
            geometry = {"strides": strides, "padding": padding, "dilation": dilation, "groups": groups}
            yield (
                (int(rng.integers(1, 9)), *length, per_group * groups),
                (*size, per_group, channels * groups),
                geometry,
            )
            count -= 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_any_geometry(processor: native.Processor, rng: np.random.Generator, dtype: str) -> None:
    for image, kernel, geometry in geometries(rng, 20 if is_guarded() else 80):
        for node in nodes(image, kernel, dtype, **geometry):
            assert_as_defined(node, random_inputs(node, rng), processor, int(rng.integers(0, 16)))


@pytest.mark.parametrize("channels", [1, 3, 16, 20, 33])
def test_depthwise(processor: native.Processor, rng: np.random.Generator, channels: int) -> None:
    for strides, padding, dilation in itertools.product((1, 2), PADDINGS, (1, 2)):
        for node in nodes(
            (3, 9, 11, channels),
            (3, 2, 1, channels),
            strides=strides,
            padding=padding,
            dilation=dilation,
            groups=channels,
        ):
            assert_as_defined(node, random_inputs(node, rng), processor)


@pytest.mark.parametrize(
    ("image", "kernel", "geometry"),
    [
        ((70, 28, 28, 1), (5, 5, 1, 6), {"padding": "same"}),
        ((70, 14, 14, 6), (5, 5, 6, 16), {}),
        ((33, 9, 9, 64), (7, 7, 64, 32), {}),
        ((37, 32, 32, 16), (3, 3, 16, 16), {"padding": "same"}),
        ((37, 32, 32, 16), (1, 1, 16, 32), {"padding": "same", "strides": 2}),
        ((9, 16, 17, 32), (3, 3, 32, 64), {"padding": 1, "strides": 2}),
        ((9, 8, 8, 64), (3, 3, 64, 64), {"padding": 1}),
        ((5, 7, 12, 24), (3, 3, 24, 32), {"padding": 2, "dilation": 2}),
        ((4, 6, 5, 16), (5, 5, 16, 32), {"padding": 4}),
        ((4, 5, 3, 16), (7, 7, 16, 16), {"padding": 3}),
        ((2, 4, 4, 600), (3, 3, 600, 16), {"padding": 1}),
        ((5, 13, 13, 64), (5, 5, 64, 48), {"strides": 2, "padding": "same"}),
        ((2, 120, 100, 3), (11, 11, 3, 24), {"strides": 4}),
    ],
    ids=str,
)
def test_networks(
    processor: native.Processor,
    rng: np.random.Generator,
    image: tuple[int, ...],
    kernel: tuple[int, ...],
    geometry: dict[str, Any],
) -> None:
    for node in nodes(image, kernel, **geometry):
        assert_as_defined(node, random_inputs(node, rng), processor)


def laid_out(array: Array, how: str) -> Array:
    """The same numbers, elsewhere."""
    if how == "transposed":
        return np.ascontiguousarray(array.T).T
    if how == "backwards":
        return array[::-1, ::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1, ::-1]
    wide = np.full([2 * dim + 1 for dim in array.shape], np.nan, array.dtype)
    wide[1::2, 1::2, 1::2, 1::2] = array
    return wide[1::2, 1::2, 1::2, 1::2]


@pytest.mark.parametrize("how", ["transposed", "backwards", "with gaps"])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("groups", [1, 2, 16])
def test_inputs_may_lie_anyhow(
    processor: native.Processor, rng: np.random.Generator, how: str, padding: Any, groups: int
) -> None:
    for strides in (1, 2):
        for node in nodes((3, 8, 9, 16), (3, 3, 16 // groups, 16), padding=padding, groups=groups, strides=strides):
            assert_as_defined(node, [laid_out(each, how) for each in random_inputs(node, rng)], processor)


def test_repeated_inputs(processor: native.Processor, rng: np.random.Generator) -> None:
    for groups in (1, 16):
        for node in nodes((3, 8, 9, 16), (3, 3, 16 // groups, 16), padding=1, groups=groups):
            repeated = [np.broadcast_to(each[..., :1], each.shape) for each in random_inputs(node, rng)]
            assert_as_defined(node, repeated, processor)


@pytest.mark.parametrize("image", [(0, 5, 5, 16), (2, 5, 5, 0)], ids=str)
def test_nothing_to_add(processor: native.Processor, rng: np.random.Generator, image: tuple[int, ...]) -> None:
    for node in (*nodes(image, (3, 3, image[3], 16)), *nodes(image, (1, 1, image[3], 16))):
        assert_as_defined(node, random_inputs(node, rng), processor)


def test_results_do_not_depend_on_where_arrays_lie(processor: native.Processor, rng: np.random.Generator) -> None:
    for image, kernel, geometry in [*geometries(rng, 20), ((4, 8, 8, 32), (3, 3, 32, 32), {"padding": 1})]:
        for node in nodes(image, kernel, **geometry):
            inputs, results = random_inputs(node, rng), []
            for shift in (0, 1, 3, 16):
                moved = [guarded(each.shape, each.dtype, shift)[0] for each in inputs]
                for target, each in zip(moved, inputs, strict=True):
                    np.copyto(target, each)
                results.append(computed(node, moved, processor, shift))
            assert all(np.array_equal(results[0], other) for other in results[1:])


def test_images_do_not_meet(processor: native.Processor, rng: np.random.Generator) -> None:
    y, dx, _ = nodes((6, 9, 7, 3), (3, 3, 3, 5), padding=1)
    for node in (y, dx):
        inputs = random_inputs(node, rng)
        inputs[0][2] = np.nan
        found = computed(node, inputs, processor)
        assert np.isnan(found[2]).any()
        assert np.isfinite(np.delete(found, 2, axis=0)).all()


def test_a_kernel_keeps_its_arrays(processor: native.Processor, rng: np.random.Generator) -> None:
    for node in nodes((2, 6, 5, 16), (3, 3, 16, 16), padding=1):
        arrays = [*random_inputs(node, rng), np.empty(node.type.shape, np.float32)]
        references = [weakref.ref(array) for array in arrays]
        kernel = convolution(Request(node, arrays[:-1], arrays[-1], node.attributes, scratch), processor)
        arrays.clear()
        kernel()
        assert all(reference() is not None for reference in references)


def test_what_it_is_not_for() -> None:
    def target(dtype: str, kernel: Array, processor: native.Processor | None = PROCESSORS[0]) -> Target | None:
        node = nodes((2, 5, 5, 3), kernel.shape, dtype)[0]
        output = np.empty(node.type.shape, dtype)
        return target_for(Request(node, [np.ones((2, 5, 5, 3), dtype), kernel], output, {}, scratch), processor)

    kernel = np.ones((3, 3, 3, 4), "f4")
    assert target("float32", kernel) == Target(4, 32, "float")
    assert target("float64", kernel.astype("f8")) == Target(2, 32, "double")
    assert target("float32", kernel, None) is None
    assert target("float32", kernel.astype(">f4")) is None
    crooked = np.ones(kernel.nbytes + 4, np.uint8)[1:-3].view(np.float32).reshape(kernel.shape)
    assert target("float32", crooked) is None
    distant = np.lib.stride_tricks.as_strided(kernel, kernel.shape, (1 << 29, 1 << 29, 4, 4))
    assert target("float32", distant) is None


def test_without_native_code(rng: np.random.Generator) -> None:
    for size in (1, 3):
        for node in nodes((2, 5, 6, 3), (size, size, 3, 4)):
            inputs, output = random_inputs(node, rng), np.empty(node.type.shape, np.float32)
            convolution(Request(node, inputs, output, node.attributes, scratch), None)()
            np.testing.assert_allclose(output, node.op.forward(*inputs, **node.attributes), rtol=1e-5, atol=1e-5)
