"""Pooling by native code: as the definitions say, for every width of vectors, with any padding and strides."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from native_samples import GUARD, PROCESSORS, SENTINEL, beside_others, check, native_result, request_for

from miai_graph.kernels.compiler import native
from miai_graph.kernels.compiler.native import Processor
from miai_graph.kernels.numpy_kernels import NATIVE_KERNELS
from miai_graph.kernels.rows.pooling_memory import shares_memory
from miai_graph.op import as_node, ops

WINDOWS = [
    ((2, 2), (2, 2), ((0, 0), (0, 0))),
    ((3, 2), (3, 2), ((0, 0), (0, 0))),
    ((2, 3), (2, 3), ((0, 0), (0, 0))),
    ((3, 3), (2, 1), ((0, 0), (0, 0))),
    ((2, 1), (3, 4), ((0, 0), (0, 0))),
    ((3, 2), (1, 2), ((2, 1), (0, 1))),
    ((2, 2), (2, 2), ((1, 1), (1, 0))),
    ((4, 5), (1, 3), ((0, 0), (0, 0))),
]
"""Sizes, strides, padding: side by side, with a rest, overlapping, with gaps, padded, too large to be written out."""

CHANNELS = (1, 3, 8, 17, 40)


@pytest.fixture(params=PROCESSORS, ids=str)
def processor(request, monkeypatch) -> Iterator[Processor]:
    """Vectors of each width: LLVM takes those apart that the processor does not have."""
    if native.processor() is None:
        pytest.skip("no native code on this machine")
    monkeypatch.setattr(native, "processor", lambda: request.param)
    return request.param


@pytest.fixture(params=[np.float32, np.float64])
def dtype(request) -> np.dtype[Any]:
    return np.dtype(request.param)


def window(pool_size: Any, strides: Any, padding: Any) -> dict[str, Any]:
    return {"pool_size": pool_size, "strides": strides, "padding": padding}


def images(dtype: np.dtype[Any], channels: int) -> np.ndarray:
    """Of few different numbers, so that there are ties, some of them not finite."""
    rng = np.random.default_rng(1)
    x = rng.integers(-3, 4, (2, 9, 8, channels)).astype(dtype)
    x[rng.random(x.shape) < 0.05] = math.nan
    x[rng.random(x.shape) < 0.05] = math.inf
    x[:, :4, :4] = np.where(rng.random((2, 4, 4, channels)) < 0.8, -math.inf, x[:, :4, :4])
    return x


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("of", WINDOWS, ids=str)
def test_greatest_and_its_gradient(processor, dtype, channels, of):
    x, attributes = images(dtype, channels), window(*of)
    y = ops["max_pool2d"].forward(x, **attributes)
    g = np.random.default_rng(2).standard_normal(y.shape).astype(dtype)
    check(lambda x: ops["max_pool2d"](x, **attributes), x, scale=0)
    check(lambda g, x: ops["max_pool2d_gradient"](g, x, **attributes), g, x)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("of", WINDOWS, ids=str)
def test_mean_and_its_gradient(processor, dtype, channels, of):
    attributes = window(*of)
    x = np.random.default_rng(3).standard_normal((2, 9, 8, channels)).astype(dtype)
    y = ops["average_pool2d"].forward(x, **attributes)
    check(lambda x: ops["average_pool2d"](x, **attributes), x)
    check(lambda g: ops["average_pool2d_gradient"](g, input_shape=x.shape, **attributes), y)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("of", [of for of in WINDOWS if of[0] == of[1] and not np.any(of[2])], ids=str)
def test_the_gradient_may_lie_over_the_image(processor, dtype, channels, of):
    (down, across), attributes = of[0], window(*of)
    x = images(dtype, channels)[:, : 9 // down * down, : 8 // across * across]
    g = np.random.default_rng(5).standard_normal((2, 9 // down, 8 // across, channels)).astype(dtype)
    node = ops["max_pool2d_gradient"](as_node(g), as_node(x), **attributes)
    assert shares_memory(node)
    expected = node.op.forward(g, x, **attributes)
    image, memory = beside_others(x)
    kernel = NATIVE_KERNELS[node.op.name](request_for(node, [g, image], image))
    assert kernel is not None
    kernel()
    np.testing.assert_array_equal(image, expected)
    np.testing.assert_array_equal([memory[0], *memory[1 + x.size :]], np.full(GUARD, SENTINEL, dtype))


def test_the_gradient_goes_to_the_first_of_equals(processor):
    x, g = np.zeros((1, 4, 4, 3), np.float32), np.ones((1, 2, 2, 3), np.float32)
    node = ops["max_pool2d_gradient"](as_node(g), as_node(x), **window(*WINDOWS[0]))
    expected = np.zeros_like(x)
    expected[:, ::2, ::2] = 1
    np.testing.assert_array_equal(native_result(node, g, x), expected)


def test_a_gradient_that_is_not_finite_stays_with_the_winner(processor):
    x = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    g = np.full((1, 2, 2, 1), math.inf, np.float32)
    node = ops["max_pool2d_gradient"](as_node(g), as_node(x), **window(*WINDOWS[0]))
    result = native_result(node, g, x)
    assert np.isposinf(result).sum() == 4
    assert not np.isnan(result).any()


def test_images_may_lie_apart_but_channels_may_not(processor):
    x = np.random.default_rng(4).standard_normal((4, 9, 16, 6)).astype(np.float32)
    apart, crooked = x[::2, :, ::2], x.transpose(0, 3, 1, 2)
    node = ops["max_pool2d"](as_node(apart), **window(*WINDOWS[2]))
    output = np.empty([int(dim) for dim in node.type.shape], np.float32)
    NATIVE_KERNELS["max_pool2d"](request_for(node, [apart], output))()
    np.testing.assert_array_equal(output, node.op.forward(apart, **node.attributes))
    node = ops["max_pool2d"](as_node(crooked), **window(*WINDOWS[2]))
    output = np.empty([int(dim) for dim in node.type.shape], np.float32)
    assert NATIVE_KERNELS["max_pool2d"](request_for(node, [crooked], output)) is None


def test_no_images(processor):
    x = np.empty((0, 9, 8, 5), np.float32)
    node = ops["max_pool2d"](as_node(x), **window(*WINDOWS[0]))
    kernel = NATIVE_KERNELS["max_pool2d"](request_for(node, [x], np.empty((0, 4, 4, 5), np.float32)))
    if kernel is not None:
        kernel()
