"""Checking gradients against differences of the loss itself.

The derivative of the loss along a random direction v, as `grad` gives it, is compared with central differences,
(loss(x + ε v) - loss(x - ε v)) / 2ε, all in float64. One direction tests all elements at once: a wrong one shows with
probability one. (The idea is that of HIPS autograd's test utilities.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from miai_graph.context import building_on_behalf_of
from miai_graph.errors import ArgumentError, GradientError
from miai_graph.feeding import check_batch
from miai_graph.gradient import grad
from miai_graph.graph import Graph, ancestors
from miai_graph.interpreter import evaluate
from miai_graph.messages import describe
from miai_graph.node import Node, apply, reapply
from miai_graph.op import Array, as_node, constant
from miai_graph.ops.leaves import _input, is_input, is_variable
from miai_graph.ops.special import squared_deviation
from miai_graph.types import TensorType

STEP = 1e-5
Feeds = Mapping[Node, Any]


def check_gradients(
    loss: Node,
    wrt: Sequence[Node] | Node,
    feeds: Feeds | None = None,
    *,
    directions: int = 3,
    order: int = 1,
    tolerance: float = 1e-6,
    seed: int = 0,
) -> None:
    """Compare the gradients of a loss with central differences, along random directions, in float64.

    The graph is computed again in float64 by the reference interpreter, whatever its dtypes are.

    Parameters
    ----------
    loss : a scalar node of floats
    wrt : parameters or inputs to differentiate with respect to
    feeds : an array for each input of the graph
    directions : how many random directions to try
    order : 1, or 2 to check the gradients of the gradients as well
    tolerance : the largest difference allowed, relative to the greater of the derivative and 1
    seed : of the directions

    Raises
    ------
    GradientError
        if a derivative is off. The message names the op to blame: the first, from the inputs on, whose own vjp is off.

    Not checked: points where the loss has kinks give differences of their own (relu at 0, max of equal elements).
    """
    targets = [wrt] if isinstance(wrt, Node) else list(wrt)
    for target in targets:
        if not is_input(target) and not is_variable(target):
            raise ArgumentError(f"expected parameters or inputs to check gradients of; found {target!r}")
    if order not in (1, 2):
        raise ArgumentError(f"expected order 1 or 2; found {order!r}")
    precise = _InFloat64([loss], targets, feeds or {})
    (precise_loss,) = precise.outputs
    problem = _check_loss(precise_loss, precise, directions, tolerance, seed)
    if problem:
        raise GradientError(f"{problem}\n{_blame(precise, tolerance, seed)}")
    if order == 2:
        rng = np.random.default_rng(seed)
        products = [
            (gradient * precise.add_input(f"direction of {target.name}", target, rng)).sum()
            for target, gradient in zip(precise.targets, grad(precise_loss, precise.targets), strict=True)
        ]
        total = products[0]
        for product in products[1:]:
            total = total + product
        problem = _check_loss(total, precise, directions, tolerance, seed + 1)
        if problem:
            raise GradientError(f"second order: {problem}\n{_blame(precise, tolerance, seed, total)}")


class _InFloat64:
    """The graph of some nodes in float64, in which what is differentiated is an input, with values for the inputs."""

    def __init__(self, nodes: Sequence[Node], wrt: Sequence[Node], feeds: Feeds) -> None:
        fed = [node for node in ancestors([*nodes, *wrt]) if is_input(node)]
        missing = [node for node in fed if node not in feeds]
        if missing:
            raise ArgumentError(f"expected an array for each input; found none for {describe(missing[0])}")
        self.batch_size = check_batch(fed, [feeds[node] for node in fed]).size
        self.values: dict[Node, Array] = {}
        replaced: dict[Node, Node] = {}
        for node in ancestors([*nodes, *wrt]):
            replaced[node] = self._replace(node, replaced, feeds)
        self.outputs = [replaced[node] for node in nodes]
        self.targets = [replaced[node] for node in wrt]

    def _replace(self, node: Node, replaced: Mapping[Node, Node], feeds: Feeds) -> Node:
        with building_on_behalf_of(node, node.phase):
            if is_input(node) or is_variable(node):
                value = np.asarray(feeds[node] if is_input(node) else node.value)
                type = TensorType(_precise(node.dtype), node.type.shape)
                name = node.name if is_input(node) else f"variable {node.name}"
                new = apply(_input, [], {"type": type}, name, exact_name=True)
                self.values[new] = value.astype(type.dtype)
                return new
            if node.op is constant:
                value = node.attributes["value"]
                return as_node(value.astype(_precise(value.dtype)))
            attributes = {
                name: _precise(value) if isinstance(value, np.dtype) else value
                for name, value in node.attributes.items()
            }
            return reapply(node, [replaced[source] for source in node.inputs], attributes)

    def add_input(self, name: str, like: Node, rng: np.random.Generator) -> Node:
        """Another input, of a target's type, with random values."""
        new = apply(_input, [], {"type": like.type}, name, exact_name=True)
        self.values[new] = _random_vector(rng, self.values[like])
        return new

    def evaluate(self, nodes: Sequence[Node], values: Mapping[Node, Array]) -> list[Array]:
        return evaluate(Graph(nodes), values, batch_size=self.batch_size)[0]


def _precise(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.float64) if dtype.kind == "f" else dtype


def _check_loss(loss: Node, precise: _InFloat64, directions: int, tolerance: float, seed: int) -> str | None:
    """What is wrong with the gradient of a scalar loss, if anything."""
    rng = np.random.default_rng(seed)
    gradients = precise.evaluate(grad(loss, precise.targets), precise.values)
    for _ in range(directions):
        direction = [_random_vector(rng, precise.values[target]) for target in precise.targets]
        found = sum(float((g * v).sum()) for g, v in zip(gradients, direction, strict=True))
        ahead, behind = (
            precise.evaluate([loss], _moved(precise, direction, sign * STEP))[0].item() for sign in (1.0, -1.0)
        )
        expected = (ahead - behind) / (2 * STEP)
        if not abs(found - expected) <= tolerance * max(1.0, abs(expected)):
            return (
                f"expected a derivative of {expected:.9g} along a random direction, by differences of {loss.name}; "
                f"found {found:.9g} from its gradient"
            )
    return None


def _random_vector(rng: np.random.Generator, like: Array) -> Array:
    return np.asarray(rng.standard_normal(like.shape))


def _moved(precise: _InFloat64, direction: Sequence[Array], step: float) -> dict[Node, Array]:
    moved = dict(precise.values)
    for target, vector in zip(precise.targets, direction, strict=True):
        moved[target] = moved[target] + step * vector
    return moved


def _blame(precise: _InFloat64, tolerance: float, seed: int, loss: Node | None = None) -> str:
    """The first node whose own vjp disagrees with differences of its own forward."""
    for node in ancestors([precise.outputs[0] if loss is None else loss]):
        if not node.inputs or not node.type.is_floating or node.op is squared_deviation:
            # The last leaves out of its gradient what is zero in a variance, but not by itself.
            continue
        arrays = dict(zip(node.inputs, precise.evaluate(node.inputs, precise.values), strict=True))
        if not _vjp_agrees(node, arrays, precise.batch_size, tolerance, seed):
            return f"  op to blame: {node.op.name}, node {describe(node)}"
    return "  no single op's vjp is off at this point; a kink of the loss may be near"


def _vjp_agrees(node: Node, arrays: Mapping[Node, Array], batch_size: int, tolerance: float, seed: int) -> bool:
    rng = np.random.default_rng(seed)
    leaves: dict[Node, Array] = {}
    inputs = []
    for position, source in enumerate(node.inputs):
        leaf = apply(_input, [], {"type": source.type}, f"input {position}", exact_name=True)
        leaves[leaf] = arrays[source]
        inputs.append(leaf)
    alone = reapply(node, inputs)
    weights = _random_vector(rng, evaluate(Graph([alone]), leaves, batch_size=batch_size)[0][0])
    floats = [leaf for leaf in inputs if leaf.type.is_floating]
    if not floats:
        return True
    seed_node = apply(_input, [], {"type": alone.type}, "cotangent", exact_name=True)
    gradients = grad(alone, floats, seed_node)
    found = evaluate(Graph(gradients), {**leaves, seed_node: weights}, batch_size=batch_size)[0]
    direction = [_random_vector(rng, leaves[leaf]) for leaf in floats]
    derivative = sum(float((g * v).sum()) for g, v in zip(found, direction, strict=True))
    sides = []
    for sign in (1.0, -1.0):
        moved = dict(leaves)
        moved.update((f, np.asarray(leaves[f] + sign * STEP * v)) for f, v in zip(floats, direction, strict=True))
        sides.append(float((evaluate(Graph([alone]), moved, batch_size=batch_size)[0][0] * weights).sum()))
    expected = (sides[0] - sides[1]) / (2 * STEP)
    return abs(derivative - expected) <= max(tolerance, 1e-6) * max(1.0, abs(expected))
