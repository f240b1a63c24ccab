"""Convolution and pooling: against naive loops, central differences, adjoint identities, and parts of the batch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from miai_graph.errors import ArgumentError, DTypeError, ShapeError
from miai_graph.gradient import grad
from miai_graph.graph import Graph, check_graph
from miai_graph.interpreter import bind_attributes, evaluate
from miai_graph.node import Node
from miai_graph.op import ops
from miai_graph.ops import structure
from miai_graph.ops.convolution import conv2d
from miai_graph.ops.leaves import input
from miai_graph.ops.nonlinear import tanh
from miai_graph.ops.pooling import average_pool2d, global_average_pool2d, global_max_pool2d, max_pool2d
from miai_graph.placement import REPLICATED, Partial, Split, Unsplittable
from miai_graph.types import TensorType, bind_type

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
SUM = Partial("sum")

# height, width, channels in, kernel height and width, channels out, strides, padding, dilation, groups
CONVOLUTIONS = {
    "plain": (5, 6, 2, (3, 3), 3, 1, "valid", 1, 1),
    "1x1": (4, 3, 3, (1, 1), 2, 1, "valid", 1, 1),
    "1x1 strided same": (5, 4, 2, (1, 1), 2, (2, 3), "same", 1, 1),
    "same": (5, 5, 2, (3, 3), 2, 1, "same", 1, 1),
    "same even kernel": (5, 6, 2, (2, 4), 2, 1, "same", 1, 1),
    "same strided": (7, 6, 2, (3, 3), 2, 2, "same", 1, 1),
    "same even strided": (6, 7, 1, (4, 2), 2, (3, 2), "same", 1, 1),
    "strided, rest left over": (8, 7, 2, (3, 2), 2, (2, 3), "valid", 1, 1),
    "stride beyond kernel": (7, 7, 1, (2, 1), 1, 3, "valid", 1, 1),
    "padding number": (4, 4, 1, (3, 3), 1, 1, 2, 1, 1),
    "padding pair": (4, 5, 1, (3, 2), 1, 2, (1, 2), 1, 1),
    "padding uneven": (4, 5, 2, (3, 3), 1, (1, 2), ((2, 0), (0, 1)), 1, 1),
    "dilated": (7, 8, 2, (3, 2), 2, 1, "valid", 2, 1),
    "dilated same": (6, 7, 1, (3, 3), 2, 1, "same", (2, 3), 1),
    "dilated strided": (9, 8, 1, (2, 3), 2, 2, ((1, 0), (0, 1)), (3, 2), 1),
    "two groups": (5, 4, 4, (3, 2), 6, 1, "same", 1, 2),
    "groups, strided, dilated": (8, 9, 6, (2, 3), 3, (2, 1), 1, (1, 2), 3),
    "depthwise": (5, 5, 3, (3, 3), 3, 1, "same", 1, 3),
    "depthwise, two each": (5, 5, 3, (2, 3), 6, 2, "valid", 1, 3),
    "kernel as large as the image": (4, 3, 2, (4, 3), 2, 1, "valid", 1, 1),
    "one pixel": (1, 1, 2, (3, 3), 2, 1, "same", 1, 1),
}

# height, width, channels, pool_size, strides, padding
POOLS = {
    "halves": (4, 6, 2, 2, None, "valid"),
    "rest left over": (5, 7, 2, 2, None, "valid"),
    "overlapping": (6, 5, 2, 3, 1, "valid"),
    "same": (5, 7, 2, 2, None, "same"),
    "same overlapping": (5, 6, 1, 3, 2, "same"),
    "same, step one": (4, 4, 1, (2, 3), 1, "same"),
    "gaps": (7, 8, 1, 2, 3, "valid"),
    "tall": (6, 3, 2, (3, 1), (2, 1), "valid"),
    "padding number": (4, 5, 1, 3, 2, 1),
    "padding uneven": (5, 4, 2, (3, 2), (2, 1), ((2, 0), (0, 1))),
    "one by one": (3, 3, 2, 1, None, "valid"),
    "whole image": (3, 4, 2, (3, 4), None, "valid"),
}

convolution_cases = pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
pool_cases = pytest.mark.parametrize("case", POOLS.values(), ids=POOLS)
pools = pytest.mark.parametrize("pool", [max_pool2d, average_pool2d])
batch_sizes = pytest.mark.parametrize("batch_size", [0, 1, 3])
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def run(outputs: list[Node], feeds: dict[Node, np.ndarray], batch_size: int = 2) -> list[np.ndarray]:
    """The outputs' values; `evaluate` compares each node's with what infer says."""
    graph = Graph(outputs)
    check_graph(graph)
    return evaluate(graph, feeds, batch_size=batch_size)[0]


def convolution_graph(case, dtype="float64", batch_size=None):
    """x, kernel and y of a case; the batch is open unless its size is given."""
    height, width, channels, size, channels_out, strides, padding, dilation, groups = case
    x = input("x", (batch_size, height, width, channels), dtype)
    kernel = input("kernel", (*size, channels // groups, channels_out), dtype)
    return x, kernel, conv2d(x, kernel, strides, padding, dilation, groups)


def pool_graph(pool, case, dtype="float64"):
    height, width, channels, pool_size, strides, padding = case
    x = input("x", (None, height, width, channels), dtype)
    return x, pool(x, pool_size, strides, padding)


def values_for(node: Node, rng, batch_size: int) -> np.ndarray:
    type = bind_type(node.type, batch_size)
    return rng.standard_normal(type.shape).astype(type.dtype)


def pairs_of(argument) -> tuple[int, int]:
    return (argument, argument) if isinstance(argument, int) else argument


def naive_padding(padding, length, size, stride, dilation, axis):
    """The padding before, and how many windows there are, along one axis."""
    span = dilation * (size - 1) + 1
    if padding == "same":
        count = int(np.ceil(length / stride))
        return max(0, span + stride * (count - 1) - length) // 2, count
    before, after = (0, 0) if padding == "valid" else pairs_of(pairs_of(padding)[axis])
    starts = [start for start in range(-before, length, stride) if start + span <= length + after]
    return before, len(starts)


def naive_windows(x, size, strides, padding, dilation=1):
    """Yield p, q and the list of (i, j, row, column) of the window's places inside the image."""
    strides, dilation = pairs_of(strides), pairs_of(dilation)
    (top, rows), (left, columns) = (
        naive_padding(padding, x.shape[1 + axis], size[axis], strides[axis], dilation[axis], axis) for axis in (0, 1)
    )
    for p, q in itertools.product(range(rows), range(columns)):
        inside = []
        for i, j in itertools.product(range(size[0]), range(size[1])):
            row = p * strides[0] + i * dilation[0] - top
            column = q * strides[1] + j * dilation[1] - left
            if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
                inside.append((i, j, row, column))
        yield p, q, inside


def naive_convolution(x, kernel, strides, padding, dilation, groups):
    size = kernel.shape[:2]
    channels_out = kernel.shape[3]
    outputs = {}
    for p, q, inside in naive_windows(x, size, strides, padding, dilation):
        pixel = np.zeros((x.shape[0], channels_out))
        for i, j, row, column in inside:
            for o in range(channels_out):
                group = o // (channels_out // groups)
                for c in range(kernel.shape[2]):
                    pixel[:, o] += x[:, row, column, group * kernel.shape[2] + c] * kernel[i, j, c, o]
        outputs[p, q] = pixel
    return assembled(outputs, x.shape[0], channels_out)


def naive_pool(x, reduce, pool_size, strides, padding):
    size = pairs_of(pool_size)
    outputs = {}
    for p, q, inside in naive_windows(x, size, size if strides is None else strides, padding):
        outputs[p, q] = reduce(np.stack([x[:, row, column] for _, _, row, column in inside]), axis=0)
    return assembled(outputs, x.shape[0], x.shape[3])


def assembled(outputs, batch_size, channels):
    rows, columns = (1 + max(place[axis] for place in outputs) for axis in (0, 1))
    result = np.empty((batch_size, rows, columns, channels))
    for (p, q), pixel in outputs.items():
        result[:, p, q] = pixel
    return result


def directional_check(loss: Node, wrt: list[Node], feeds: dict[Node, np.ndarray], rng, step: float = 1e-5) -> None:
    """<gradient, direction> against central differences of the loss, along one random direction."""
    directions = {node: rng.standard_normal(feeds[node].shape) for node in wrt}
    gradients = run(list(grad(loss, wrt)), feeds)
    expected = np.add.reduce([np.vdot(g, directions[node]) for node, g in zip(wrt, gradients, strict=True)])
    sides = [
        run([loss], {**feeds, **{node: feeds[node] + sign * step * directions[node] for node in wrt}})[0]
        for sign in (1, -1)
    ]
    np.testing.assert_allclose((sides[0] - sides[1]) / (2 * step), expected, rtol=1e-6, atol=1e-7)


def weighted_sum(node: Node, rng, batch_size: int = 2) -> tuple[Node, dict[Node, np.ndarray]]:
    """A scalar that depends on every element in its own way, and the weights to be fed."""
    weights = input(f"weights of {node.name}", node.type.shape, node.dtype)
    return structure.sum(node * weights), {weights: values_for(weights, rng, batch_size)}


# Convolution


@dtypes
@batch_sizes
@convolution_cases
def test_convolution_is_that_of_loops(case, batch_size, dtype, rng):
    x, kernel, y = convolution_graph(case, dtype)
    feeds = {node: values_for(node, rng, batch_size) for node in (x, kernel)}
    (found,) = run([y], feeds, batch_size)
    expected = naive_convolution(feeds[x], feeds[kernel], *case[5:])
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE[dtype], atol=10 * TOLERANCE[dtype])


@dtypes
@batch_sizes
@convolution_cases
def test_gradients_are_the_adjoints_of_convolution(case, batch_size, dtype, rng):
    x, kernel, y = convolution_graph(case, dtype)
    g = input("g", y.shape, dtype)
    feeds = {node: values_for(node, rng, batch_size) for node in (x, kernel, g)}
    value, dx, dkernel = run([y, *grad(y, [x, kernel], g)], feeds, batch_size)
    product = np.vdot(value, feeds[g])
    scale = 100 * TOLERANCE[dtype]
    np.testing.assert_allclose(np.vdot(dx, feeds[x]), product, rtol=scale, atol=scale)
    np.testing.assert_allclose(np.vdot(dkernel, feeds[kernel]), product, rtol=scale, atol=scale)
    assert dx.dtype == dkernel.dtype == dtype


@convolution_cases
def test_convolution_gradients_against_differences(case, rng):
    x, kernel, y = convolution_graph(case)
    loss, feeds = weighted_sum(tanh(y), rng)
    feeds |= {node: values_for(node, rng, 2) for node in (x, kernel)}
    for wrt in ([x], [kernel], [x, kernel]):
        directional_check(loss, wrt, feeds, rng)


@convolution_cases
def test_second_and_third_derivatives_of_convolution(case, rng):
    """Hessian-vector products are the derivatives of <gradient, vector>; once more for the third order."""
    x, kernel, y = convolution_graph(case)
    loss, feeds = weighted_sum(tanh(y), rng)
    feeds |= {node: values_for(node, rng, 2) for node in (x, kernel)}
    for _ in range(2):
        parts = [weighted_sum(gradient, rng) for gradient in grad(loss, [x, kernel])]
        loss = parts[0][0] + parts[1][0]
        feeds |= parts[0][1] | parts[1][1]
        directional_check(loss, [x, kernel], feeds, rng)


def test_second_derivative_uses_all_three_ops():
    x, kernel, y = convolution_graph(CONVOLUTIONS["same"])
    dx, dkernel = grad(structure.sum(y * y), [x, kernel])
    second = grad(structure.sum(dx * dx) + structure.sum(dkernel * dkernel), [x, kernel])
    names = {node.op.name for node in Graph(second).nodes}
    assert {"conv2d", "conv2d_input_gradient", "conv2d_kernel_gradient"} <= names


def test_convolution_takes_any_memory_layout(rng):
    case = CONVOLUTIONS["two groups"]
    x, kernel, y = convolution_graph(case)
    g = input("g", y.shape, "float64")
    feeds = {node: values_for(node, rng, 2) for node in (x, kernel, g)}
    others = {node: np.asfortranarray(value)[::-1][::-1] for node, value in feeds.items()}
    outputs = [y, *grad(y, [x, kernel], g)]
    for first, second in zip(run(outputs, feeds), run(outputs, others), strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-12, atol=1e-12)


def test_integers_take_the_dtype_of_the_kernel():
    pixels = input("pixels", (None, 4, 4, 1), "uint8")
    y = conv2d(pixels, np.ones((2, 2, 1, 1), "f4"))
    assert y.dtype == "float32"
    (found,) = run([y], {pixels: np.full((1, 4, 4, 1), 200, "uint8")}, 1)
    np.testing.assert_array_equal(found, np.full((1, 3, 3, 1), 800, "f4"))
    mixed = conv2d(input("a", (None, 4, 4, 1), "float64"), np.ones((2, 2, 1, 1), "f4"))
    assert mixed.dtype == "float64"


@pytest.mark.parametrize("channels", [(0, 2), (2, 0)])
def test_no_channels(channels):
    x = input("x", (None, 3, 3, channels[0]))
    kernel = input("kernel", (2, 2, *channels))
    y = conv2d(x, kernel)
    feeds = {x: np.ones((2, 3, 3, channels[0]), "f4"), kernel: np.ones((2, 2, *channels), "f4")}
    found, dx, dkernel = run([y, *grad(structure.sum(y), [x, kernel])], feeds)
    assert not found.any()
    assert not dx.any()
    assert dkernel.shape == (2, 2, *channels)


def test_convolution_cost():
    x, kernel, y = convolution_graph(CONVOLUTIONS["two groups"])
    g = input("g", y.shape, "float64")
    for node in (y, *grad(y, [x, kernel], g)):
        types = [bind_type(source.type, 7) for source in node.inputs]
        cost = node.op.cost(bind_type(node.type, 7), *types, **bind_attributes(node, 7))
        assert cost.flops == 2 * 7 * 5 * 4 * 3 * 2 * (4 // 2) * 6
        assert cost.bytes == 8 * (7 * 5 * 4 * 4 + 3 * 2 * 2 * 6 + 7 * 5 * 4 * 6)


# Pooling


@dtypes
@batch_sizes
@pool_cases
@pytest.mark.parametrize(("pool", "reduce"), [(max_pool2d, np.max), (average_pool2d, np.mean)])
def test_pools_are_those_of_loops(pool, reduce, case, batch_size, dtype, rng):
    x, y = pool_graph(pool, case, dtype)
    images = values_for(x, rng, batch_size) - 5  # below 0, so that padding would win if it could
    (found,) = run([y], {x: images}, batch_size)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, naive_pool(images, reduce, *case[3:]), rtol=TOLERANCE[dtype])


@pools
@batch_sizes
@pool_cases
def test_pool_gradients_are_adjoints(pool, case, batch_size, rng):
    """<pool(x), g> = <x, gradient(g)>: both pools pick or average, so they are homogeneous of degree one."""
    x, y = pool_graph(pool, case)
    g = input("g", y.shape, "float64")
    feeds = {node: values_for(node, rng, batch_size) for node in (x, g)}
    value, dx = run([y, *grad(y, [x], g)], feeds, batch_size)
    np.testing.assert_allclose(np.vdot(dx, feeds[x]), np.vdot(value, feeds[g]), rtol=1e-12, atol=1e-12)


@pools
@pool_cases
def test_first_to_third_derivatives_of_pools(pool, case, rng):
    x, y = pool_graph(pool, case)
    loss, feeds = weighted_sum(tanh(y), rng)
    feeds[x] = values_for(x, rng, 2)
    directional_check(loss, [x], feeds, rng)
    for _ in range(2):
        (gradient,) = grad(loss, [x])
        loss, weights = weighted_sum(gradient, rng)
        feeds |= weights
        directional_check(loss, [x], feeds, rng)


def test_the_first_of_equal_elements_gets_the_gradient():
    x, y = pool_graph(max_pool2d, (3, 3, 1, 2, 1, "valid"))
    images = np.array([[1, 2, 2], [2, 0, 2], [2, 2, 2]], "f8").reshape(1, 3, 3, 1)
    (dx,) = run(grad(structure.sum(y), [x]), {x: images}, 1)
    np.testing.assert_array_equal(dx[0, :, :, 0], [[0, 2, 0], [1, 0, 1], [0, 0, 0]])


def test_select_takes_from_where_the_greatest_is(rng):
    x, y = pool_graph(max_pool2d, POOLS["same overlapping"])
    v, images = (values_for(x, rng, 2) for _ in range(2))
    node = ops["max_pool2d_select"](x, input("of", x.shape, "float64"), **y.attributes)
    (found,) = run([node], {node.inputs[0]: v, node.inputs[1]: images})
    picked = dict(zip(images.ravel(), v.ravel(), strict=True))
    greatest = naive_pool(images, np.max, *POOLS["same overlapping"][3:])
    np.testing.assert_array_equal(found, np.vectorize(picked.__getitem__)(greatest))


def test_padding_does_not_win_where_all_is_minus_infinity():
    x, y = pool_graph(max_pool2d, (2, 2, 1, 2, None, 1))
    images = np.full((1, 2, 2, 1), -np.inf)
    value, dx = run([y, *grad(structure.sum(y), [x])], {x: images}, 1)
    np.testing.assert_array_equal(value, images)
    np.testing.assert_array_equal(dx, np.ones((1, 2, 2, 1)))


@pools
def test_a_window_with_nan_gives_nan(pool):
    x, y = pool_graph(pool, (4, 4, 1, 2, None, "valid"))
    images = np.zeros((1, 4, 4, 1))
    images[0, 2, 1, 0] = np.nan
    value, dx = run([y, *grad(structure.sum(y), [x])], {x: images}, 1)
    np.testing.assert_array_equal(np.isnan(value[0, :, :, 0]), [[False, False], [True, False]])
    if pool is max_pool2d:
        assert dx[0, 2, 1, 0] == 1


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize(("pool", "reduce"), [(global_max_pool2d, np.max), (global_average_pool2d, np.mean)])
def test_global_pools(pool, reduce, keepdims, rng):
    x = input("x", (None, 3, 4, 2), "float64")
    y = pool(x, keepdims=keepdims)
    assert y.shape == ((None, 1, 1, 2) if keepdims else (None, 2))
    images = values_for(x, rng, 3)
    (found,) = run([y], {x: images}, 3)
    np.testing.assert_allclose(found, reduce(images, axis=(1, 2), keepdims=keepdims), rtol=1e-12)


def test_pool_cost():
    x, y = pool_graph(max_pool2d, POOLS["overlapping"], "float32")
    (dx,) = grad(structure.sum(y), [x])
    windows, pixels = 5 * 4 * 3 * 2, 5 * 6 * 5 * 2
    for node, flops, moved in ((y, 9, windows + pixels), (dx, 18, windows + 2 * pixels)):
        cost = node.op.cost(
            bind_type(node.type, 5), *(bind_type(i.type, 5) for i in node.inputs), **bind_attributes(node, 5)
        )
        assert (cost.flops, cost.bytes) == (flops * windows, 4 * moved)


# Parts of the batch


def batch_rule(node: Node, *placements):
    return node.op.batch(placements, node.type, *(source.type for source in node.inputs), **node.attributes)


def all_nodes() -> dict[str, Node]:
    """A node of each op on an open batch, by the op's name."""
    x, kernel, y = convolution_graph(CONVOLUTIONS["groups, strided, dilated"])
    g = input("g", y.shape, "float64")
    nodes = [y, *grad(y, [x, kernel], g)]
    for pool in (max_pool2d, average_pool2d):
        images, pooled = pool_graph(pool, POOLS["same overlapping"])
        h = input("h", pooled.shape, "float64")
        (gradient,) = grad(pooled, [images], h)
        v = input("v", images.shape, "float64")
        (second,) = grad(gradient, [h], v)
        nodes += [pooled, gradient, second]
    return {node.op.name: node for node in nodes}


OP_NAMES = (
    "conv2d",
    "conv2d_input_gradient",
    "conv2d_kernel_gradient",
    "max_pool2d",
    "max_pool2d_gradient",
    "max_pool2d_select",
    "average_pool2d",
    "average_pool2d_gradient",
)


@pytest.mark.parametrize("first", [0, 1, 3])
@pytest.mark.parametrize("name", OP_NAMES)
def test_parts_of_the_batch_give_the_whole(name, first, rng):
    node = all_nodes()[name]
    feeds = {source: values_for(source, rng, 4) for source in node.inputs}
    is_split = {source: bool(source.type.batch_axes) for source in feeds}
    rule = batch_rule(node, *(Split(0) if is_split[source] else REPLICATED for source in node.inputs))
    parts = [
        run([node], {s: a[rows] if is_split[s] else a for s, a in feeds.items()}, len(range(4)[rows]))[0]
        for rows in (slice(0, first), slice(first, 4))
    ]
    assert rule == (SUM if name == "conv2d_kernel_gradient" else Split(0))
    found = parts[0] + parts[1] if rule == SUM else np.concatenate(parts)
    np.testing.assert_allclose(found, run([node], feeds, 4)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "placements"),
    [
        ("conv2d", (Split(0), SUM)),
        ("conv2d", (Split(0), Partial("max"))),
        ("conv2d_input_gradient", (Split(0), SUM)),
        ("conv2d_kernel_gradient", (Split(0), SUM)),
        ("max_pool2d_gradient", (SUM, Split(0))),
    ],
)
def test_what_is_still_owed_beside_split_images_is_reduced_first(name, placements):
    assert batch_rule(all_nodes()[name], *placements) is None


@pytest.mark.parametrize(
    ("name", "placements"),
    [
        ("conv2d", (Split(0), Split(3))),
        ("conv2d", (Split(1), REPLICATED)),
        ("conv2d_input_gradient", (REPLICATED, Split(0))),
        ("conv2d_kernel_gradient", (Split(0), REPLICATED)),
        ("conv2d_kernel_gradient", (REPLICATED, Split(0))),
        ("conv2d_kernel_gradient", (Split(0, 2), Split(0))),
        ("conv2d_kernel_gradient", (Split(1), Split(1))),
    ],
)
def test_unsplittable(name, placements):
    assert isinstance(batch_rule(all_nodes()[name], *placements), Unsplittable)


def test_without_a_batch_axis_sums_pass_and_the_rest_is_replicated():
    x, kernel, y = convolution_graph(CONVOLUTIONS["plain"], batch_size=2)
    for node in (y, *grad(y, [x, kernel], np.ones(y.shape))):
        assert batch_rule(node, REPLICATED, REPLICATED) == REPLICATED
        assert batch_rule(node, SUM, REPLICATED) == SUM
        assert batch_rule(node, REPLICATED, SUM) == SUM
        assert batch_rule(node, SUM, SUM) is None
        assert batch_rule(node, Partial("max"), REPLICATED) is None
    images = input("images", (2, 4, 4, 1))
    assert batch_rule(average_pool2d(images), SUM) == SUM
    assert batch_rule(average_pool2d(images), Partial("max")) is None
    assert batch_rule(max_pool2d(images), SUM) is None
    assert batch_rule(max_pool2d(images), REPLICATED) == REPLICATED


# Errors


@pytest.mark.parametrize(
    ("shape", "kernel", "keywords", "message"),
    [
        ((None, 5, 5), (3, 3, 1, 1), {}, r"4 axes, \(batch, height, width, channels\); found shape \[B,5,5\]"),
        ((None, 5), (3, 3, 1, 1), {"padding": "same"}, "4 axes"),
        ((None, 5, 5, 1), (3, 3, 1), {"padding": "same"}, r"a kernel \(height, .* found shape \[3,3,1\]"),
        ((None, 5, 5, 1), (3,), {"padding": "same"}, "a kernel"),
        ((None, 5, 5, 1), (None, 3, 1, 1), {"padding": "same"}, "without the batch"),
        ((None, 5, 5, 1), (0, 3, 1, 1), {}, "at least 1 × 1"),
        ((None, 5, 5, 3), (3, 3, 2, 4), {}, "expected images of 2 channels, 1 groups .* found 3 channels"),
        ((None, 5, 5, 4), (3, 3, 4, 4), {"groups": 2}, "expected images of 8 channels"),
        ((None, 5, 5, 4), (3, 3, 2, 3), {"groups": 2}, "divide by groups=2; found 3"),
        ((None, 4, 5, 1), (5, 3, 1, 1), {}, "padded image of 4 × 5; found one that spans 5 × 3"),
        ((None, 4, 5, 1), (3, 3, 1, 1), {"dilation": 2}, "spans 5 × 5"),
        ((None, 0, 5, 1), (3, 3, 1, 1), {"padding": "same"}, "nothing would be left"),
    ],
)
def test_convolution_refuses_shapes(shape, kernel, keywords, message):
    x, weights = input("x", shape), input("kernel", kernel)
    with pytest.raises(ShapeError, match=message) as caught:
        conv2d(x, weights, **keywords)
    assert "test_convolution_and_pooling.py" in str(caught.value)


BAD_ARGUMENTS = [
    ({"strides": 0}, "as strides, of at least 1; found 0"),
    ({"strides": (1, -1)}, "strides .* at least 1; found -1"),
    ({"strides": (1, 2, 3)}, r"a pair of them as strides; found \(1, 2, 3\)"),
    ({"strides": 1.5}, "found 1.5"),
    ({"strides": True}, "found True"),
    ({"padding": "full"}, "'same', 'valid'.*found 'full'"),
    ({"padding": -1}, "padding, of at least 0; found -1"),
    ({"padding": None}, "found None"),
    ({"padding": (1, 2, 3)}, r"found \(1, 2, 3\)"),
    ({"padding": ((1, 2), (3, -4))}, "found -4"),
]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        *BAD_ARGUMENTS,
        ({"dilation": 0}, "dilation, of at least 1; found 0"),
        ({"groups": 0}, "groups, of at least 1; found 0"),
        ({"groups": (1, 1)}, "an integer as groups"),
    ],
)
def test_convolution_refuses_arguments(keywords, message):
    x, kernel = input("x", (None, 5, 5, 1)), input("kernel", (3, 3, 1, 1))
    with pytest.raises(ArgumentError, match=message):
        conv2d(x, kernel, **keywords)


@pools
@pytest.mark.parametrize(("keywords", "message"), [*BAD_ARGUMENTS, ({"pool_size": 0}, "pool_size, of at least 1")])
def test_pools_refuse_arguments(pool, keywords, message):
    with pytest.raises(ArgumentError, match=message):
        pool(input("x", (None, 5, 5, 1)), **keywords)


@pools
@pytest.mark.parametrize(
    ("shape", "keywords", "message"),
    [
        ((None, 5, 5), {}, "4 axes"),
        ((None, 5), {"padding": "same"}, "4 axes"),
        ((None, 5, 2, 1), {"pool_size": 3}, "padded image of 5 × 2; found one that spans 3 × 3"),
        ((None, 5, 5, 1), {"padding": 2}, "padding narrower than the window"),
        ((None, 0, 5, 1), {"padding": 1}, "expected an image"),
    ],
)
def test_pools_refuse_shapes(pool, shape, keywords, message):
    with pytest.raises(ShapeError, match=message):
        pool(input("x", shape), **keywords)


@pytest.mark.parametrize("pool", [global_max_pool2d, global_average_pool2d])
def test_global_pools_refuse_other_ranks(pool):
    with pytest.raises(ShapeError, match="4 axes"):
        pool(input("x", (None, 5, 5)))


def test_integers_alone_are_refused():
    x = input("x", (None, 4, 4, 1), "int64")
    with pytest.raises(DTypeError, match="expected floats"):
        conv2d(x, np.ones((2, 2, 1, 1), "int64"))
    with pytest.raises(DTypeError, match="expected floats"):
        max_pool2d(x)


def test_cotangents_of_another_shape_are_refused():
    float32 = np.dtype("float32")
    geometry = {"strides": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "groups": 1}
    window = {"pool_size": (2, 2), "strides": (2, 2), "padding": ((0, 0), (0, 0))}
    images, kernel, g = (TensorType(float32, shape) for shape in ((2, 4, 4, 1), (2, 2, 1, 1), (2, 4, 3, 1)))
    with pytest.raises(ShapeError, match=r"shape \[2,3,3,1\]; found f32\[2,4,3,1\]"):
        ops["conv2d_input_gradient"].infer(g, kernel, input_shape=images.shape, **geometry)
    with pytest.raises(ShapeError, match=r"shape \[2,3,3,1\]"):
        ops["conv2d_kernel_gradient"].infer(images, g, kernel_shape=kernel.shape, **geometry)
    with pytest.raises(ShapeError, match=r"shape \[2,2,2,1\]"):
        ops["max_pool2d_gradient"].infer(g, images, **window)
    with pytest.raises(ShapeError, match="one shape"):
        ops["max_pool2d_select"].infer(g, images, **window)
    with pytest.raises(ShapeError, match=r"shape \[2,2,2,1\]"):
        ops["average_pool2d_gradient"].infer(g, input_shape=images.shape, **window)
