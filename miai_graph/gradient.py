"""Reverse-mode differentiation: from a graph to a graph.

The cotangent of a node is the derivative of the loss with respect to it. `grad` walks from the loss back to the inputs,
asks each op's `vjp` for the cotangents of its inputs, and adds up those of nodes that are used more than once.
(Griewank and Walther 2008, "Evaluating derivatives", section 3.2.) The result is made of nodes like any others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from miai_graph.context import BACKWARD, building_on_behalf_of
from miai_graph.errors import ArgumentError, DTypeError, GradientError, ShapeError
from miai_graph.graph import ancestors
from miai_graph.messages import describe
from miai_graph.node import Node
from miai_graph.op import as_node
from miai_graph.ops.casting import cast
from miai_graph.ops.joining import SlicesToAdd
from miai_graph.ops.slicing import _scatter_slice
from miai_graph.ops.structure import full, zeros_like
from miai_graph.recompute import Recomputation, as_segments


def grad(
    loss: Node,
    wrt: Sequence[Node] | Node,
    cotangent: Any = None,
    *,
    unconnected: Literal["zeros", "error"] = "zeros",
    recompute: Any = None,
) -> tuple[Node, ...]:
    """The derivatives of a loss with respect to nodes, as nodes.

    Parameters
    ----------
    loss : a node of floats; a scalar, unless `cotangent` is given
    wrt : the nodes to differentiate with respect to, of floats: parameters, inputs or any others
    cotangent : for a loss that is not a scalar: its weights, of the loss's shape. The result is then the derivative of
        ``sum(cotangent * loss)``: a vector-Jacobian product.
    unconnected : what to do about a node on which the loss does not depend: give "zeros", or raise an "error"
    recompute : nodes whose values are not kept for the gradient, but computed again when it needs them, together; or
        names of scopes such as layers', or patterns of names, each of which is computed again by itself, and in lists
        those that are together; or a function from a node to what it is computed again with: None for those to be kept.
        What others read is kept in any case, and what does not grow with the batch.

    Returns
    -------
    A tuple of nodes, one for each of `wrt`, of its shape and dtype. They can be differentiated again.

    Raises
    ------
    GradientError
        if the loss is not a scalar and there is no cotangent, is not of floats, an op between has no derivative, or
        a node of `wrt` is not connected and that shall be an error.
    """
    targets = [wrt] if isinstance(wrt, Node) else list(wrt)
    if unconnected not in ("zeros", "error"):
        raise ArgumentError(f"expected unconnected='zeros' or 'error'; found {unconnected!r}")
    found = derivatives(loss, targets, cotangent, recompute)
    return tuple(_result(loss, target, g, unconnected) for target, g in zip(targets, found, strict=True))


def derivatives(loss: Node, targets: Sequence[Node], cotangent: Any = None, recompute: Any = None) -> list[Node | None]:
    """What `grad` gives, with None for nodes on which the loss does not depend."""
    _check_arguments(loss, targets)
    every = ancestors([loss])
    between = _nodes_between(every, targets)
    again = None if recompute is None else Recomputation(every, loss, as_segments(recompute, every))
    sums = {loss: _Sum(loss, _seed(loss, cotangent))}
    # Cotangents of a node are complete when all its users, which have greater indices, are done.
    for node in sorted(between, key=lambda node: node.index, reverse=True):
        if node not in sums or not any(source in between for source in node.inputs):
            continue
        g = sums[node].total()
        output, inputs = (node, node.inputs) if again is None else again.seen(node, g)
        with building_on_behalf_of(node, BACKWARD):
            for source, contribution in zip(node.inputs, _vjp(node, g, output, inputs), strict=True):
                if contribution is None or source not in between:
                    continue
                if source in sums:
                    sums[source].add(node, contribution)
                else:
                    sums[source] = _Sum(node, contribution)
    return [sums[target].total() if target in sums else None for target in targets]


class _Sum:
    """Contributions to a cotangent. Slices of it wait for others beside them, to be joined at once.

    Parameters
    ----------
    user : of the node, on whose behalf the contribution was built
    """

    def __init__(self, user: Node, contribution: Node) -> None:
        self._whole: Node | None = None
        self._slices: SlicesToAdd | None = None
        self.add(user, contribution)

    def add(self, user: Node, contribution: Node) -> None:
        """Add what another user contributes."""
        self._last_user = user
        if contribution.op is not _scatter_slice:
            self._add(contribution)
        elif self._slices is None:
            self._slices = SlicesToAdd(contribution)
        elif not self._slices.take(contribution):
            self._add(contribution)

    def _add(self, contribution: Node) -> None:
        self._whole = contribution if self._whole is None else self._whole + contribution

    def total(self) -> Node:
        """The sum of all."""
        if self._slices is not None:
            with building_on_behalf_of(self._last_user, BACKWARD):
                self._add(self._slices.total())
            self._slices = None
        assert self._whole is not None
        return self._whole


def _check_arguments(loss: Any, targets: Sequence[Any]) -> None:
    if not isinstance(loss, Node):
        raise ArgumentError(f"expected a node as loss; found {loss!r}")
    if not loss.type.is_floating:
        raise GradientError(f"expected a loss of floats; found {describe(loss)}")
    for target in targets:
        if not isinstance(target, Node):
            raise ArgumentError(f"expected nodes to differentiate with respect to; found {target!r}")
        if not target.type.is_floating:
            raise GradientError(f"expected nodes of floats to differentiate with respect to; found {describe(target)}")


def _nodes_between(nodes: Sequence[Node], targets: Sequence[Node]) -> set[Node]:
    """Those of the nodes that a loss is computed from that are on the way from the targets to it, both included."""
    wanted = set(targets)
    between: set[Node] = set()
    for node in nodes:
        if node in wanted or any(source in between for source in node.inputs):
            between.add(node)
    return between


def _seed(loss: Node, cotangent: Any) -> Node:
    with building_on_behalf_of(loss, BACKWARD):
        if cotangent is None:
            if loss.type.shape:
                raise GradientError(
                    f"expected a scalar as loss; found {describe(loss)}. Take its mg.mean or mg.sum, "
                    "or give a cotangent"
                )
            return full((), 1.0, loss.dtype)
        seed = as_node(cotangent, None if isinstance(cotangent, Node) else loss.dtype)
        if seed.type.shape != loss.type.shape:
            raise ShapeError(
                f"expected a cotangent of the loss's shape\n  loss: {describe(loss)}\n  cotangent: {describe(seed)}"
            )
        if not seed.type.is_floating:
            raise DTypeError(f"expected a cotangent of floats; found {describe(seed)}")
        return cast(seed, loss.dtype)


def _vjp(node: Node, g: Node, output: Node, inputs: Sequence[Node]) -> Sequence[Node | None]:
    """The op's vjp with the values of a node and of its inputs."""
    contributions = list(node.op.vjp(g, output, *inputs, **node.attributes))
    if len(contributions) != len(node.inputs):
        raise GradientError(
            f"expected a cotangent or None for each of {len(node.inputs)} inputs from the vjp of {node.op.name}; "
            f"found {len(contributions)}"
        )
    for source, contribution in zip(node.inputs, contributions, strict=True):
        if contribution is not None and contribution.type != source.type:
            raise GradientError(
                f"expected a cotangent of type {source.type} from the vjp of {node.op.name}; "
                f"found {contribution.type} for input {describe(source)}"
            )
    return contributions


def _result(loss: Node, target: Node, found: Node | None, unconnected: str) -> Node:
    if found is not None:
        return found
    if unconnected == "error":
        raise GradientError(
            f"expected a loss that depends, through ops with derivatives, on each node of wrt\n"
            f"  loss: {describe(loss)}\n  wrt: {describe(target)}"
        )
    with building_on_behalf_of(target, BACKWARD):
        return zeros_like(target)
