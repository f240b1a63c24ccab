"""Which nodes are computed together, by one kernel.

Element-wise nodes of one shape that use each other's values form a chain: what is between them never gets to memory.
Sums of these values, over rows or along them, are taken on the way. Chains of an update that compute the same of
different parameters are done in one go. All nodes of a fusion are computed where the last of them stands, so nothing
outside that reads one of them may stand before.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from miai_graph.context import UPDATE
from miai_graph.kernels.elementwise.code import DTYPES, OPERATIONS, WITH_OPTIONS
from miai_graph.kernels.elementwise.formulas import Step, Total
from miai_graph.kernels.elementwise.kernels import FormulaKernels
from miai_graph.kernels.elementwise.totals import SummedFormula
from miai_graph.kernels.kernel import Kernel, Scratch
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.ops.elementwise import ElementwiseOp
from miai_graph.plan.recomputation import Share, with_repetition
from miai_graph.plan.sums import SummedAxes, summed_axes
from miai_graph.plan.uses import Use
from miai_graph.types import Shape

MOST_NODES = 48
"""In a chain: the more there are, the fewer of their values fit into registers."""

LARGE_UPDATE_BYTES = 1 << 20
"""Updates of parameters as large as this are computed each by itself, as soon as the gradient is there: it is still in
a cache, and its memory is free again before there is another one."""


@dataclass(frozen=True, eq=False)
class Chain:
    """Element-wise nodes of one shape, each of which uses another one's value, or is used by it; and sums of values.

    Attributes
    ----------
    nodes : in order
    operands : what they read of others
    results : those of them that others read
    repeated : those of them that an earlier chain computes too
    """

    nodes: tuple[Node, ...]
    operands: tuple[Node, ...]
    results: tuple[Node, ...]
    repeated: frozenset[Node]

    @property
    def sums(self) -> list[Node]:
        """Those of the results that are sums."""
        return [node for node in self.results if summed_axes(node) is not None]

    @property
    def elements(self) -> list[Node]:
        """Those of the results that are not."""
        return [node for node in self.results if summed_axes(node) is None]

    def _numbers(self) -> dict[Node, int]:
        """Of the values in a formula."""
        elements = (node for node in self.nodes if summed_axes(node) is None)
        return {node: number for number, node in enumerate((*self.operands, *elements))}

    def steps(self) -> tuple[Step, ...]:
        """What is computed, whatever it is computed of."""
        numbers = self._numbers()
        return tuple(
            Step(node.op.name, tuple(numbers[source] for source in node.inputs), node.dtype, _options(node))
            for node in self.nodes
            if node in numbers
        )

    def result_numbers(self) -> tuple[int, ...]:
        """The numbers of the results in a formula, apart from sums."""
        numbers = self._numbers()
        return tuple(numbers[result] for result in self.elements)

    def summed(self) -> SummedFormula:
        """What is computed where there are sums."""
        numbers, axes = self._numbers(), [_axes(node) for node in self.sums]
        totals = [Total(numbers[node.inputs[0]], own.along_rows) for node, own in zip(self.sums, axes, strict=True)]
        return SummedFormula(self.steps(), self.result_numbers(), totals, axes[0].first_column_axis)

    def signature(self) -> Hashable:
        """Equal for chains that compute the same."""
        dtypes = tuple(operand.dtype for operand in self.operands)
        return dtypes, self.steps(), self.result_numbers()


@dataclass(frozen=True, eq=False)
class Fusion:
    """Chains that one kernel computes, one after another; all have one signature.

    Attributes
    ----------
    leader : the last of the nodes, in whose place all are computed
    written_beside_bytes : by other fusions of the same update, which compute the same
    """

    chains: tuple[Chain, ...]
    leader: Node
    written_beside_bytes: int = 0

    @property
    def nodes(self) -> list[Node]:
        """Of all chains."""
        return [node for chain in self.chains for node in chain.nodes]

    @property
    def operands(self) -> list[Node]:
        """What is read, each once."""
        return list(dict.fromkeys(operand for chain in self.chains for operand in chain.operands))

    @property
    def results(self) -> list[Node]:
        """What is written."""
        return [result for chain in self.chains for result in chain.results]


def can_be_fused(node: Node) -> bool:
    """Is it an element-wise op that there is code for, of dtypes that there is code for?"""
    if not isinstance(node.op, ElementwiseOp) and node.op.name != "cast":
        return False
    if node.op.name not in OPERATIONS and node.op.name not in WITH_OPTIONS:
        return False
    dtypes = [node.dtype, *(source.dtype for source in node.inputs)]
    return all(dtype in DTYPES for dtype in dtypes) and any(dtype.kind == "f" for dtype in dtypes)


class Iteration(NamedTuple):
    """What elements a node goes over. Nodes for which it differs are not computed together.

    Attributes
    ----------
    kind : see `iteration_of`
    """

    shape: Shape
    kind: Hashable


def iteration_of(node: Node, kind: Hashable) -> Iteration | None:
    """How a node is computed element by element; None for nodes that are computed alone.

    Parameters
    ----------
    kind : nodes for which it differs are not computed together; nodes for which it is None are computed alone
    """
    if kind is None:
        return None
    if summed_axes(node) is not None:
        return Iteration(node.inputs[0].type.shape, kind)
    return Iteration(node.type.shape, kind) if can_be_fused(node) else None


def find_fusions(
    steps: Sequence[Node],
    uses: Mapping[Node, Sequence[Use]],
    roots: Mapping[Node, Node],
    is_stored: Callable[[Node], bool],
    iterations: Mapping[Node, Iteration | None],
) -> dict[Node, Fusion]:
    """The fusions of a program, by leader.

    Parameters
    ----------
    steps : the nodes that are computed, in order
    uses : of each of them
    roots : the node whose memory a node's value lies in
    is_stored : whether a node's value must be in memory whoever reads it
    iterations : of each of the steps
    """
    found = _Finder(steps, uses, iterations).chains()
    chains = [_chain(share) for share in with_repetition(found, uses, roots, is_stored, iterations, MOST_NODES)]
    return {fusion.leader: fusion for fusion in _merged(chains, steps, uses, iterations)}


def _is_update(node: Node) -> bool:
    return node.phase == UPDATE


class _Finder:
    def __init__(
        self,
        steps: Sequence[Node],
        uses: Mapping[Node, Sequence[Use]],
        iterations: Mapping[Node, Iteration | None],
    ) -> None:
        self._steps = steps
        self._places = {node: place for place, node in enumerate(steps)}
        self._uses = uses
        self._iterations = iterations
        self._readers: dict[Node, list[Node]] = {}
        self._chains: dict[Node, list[Node]] = {}
        """The chain of each node so far, in order."""

    def chains(self) -> list[list[Node]]:
        """Nodes join the chains of their inputs, and of sums of what they read, where that is possible."""
        for place, node in enumerate(self._steps):
            if self._iterations[node] is None:
                continue
            self._chains[node] = [node]
            for source in dict.fromkeys(node.inputs):
                for neighbour in (source, *self._readers.get(source, ())):
                    self._join(node, neighbour, place)
                if summed_axes(node) is not None:
                    self._readers.setdefault(source, []).append(node)
        return list({id(chain): chain for chain in self._chains.values()}.values())

    def _join(self, node: Node, neighbour: Node, place: int) -> None:
        chain, own = self._chains.get(neighbour), self._chains[node]
        if chain is None or chain is own or neighbour.phase != node.phase:
            return
        if self._iterations[neighbour] != self._iterations[node]:
            return
        joined = sorted([*chain, *own], key=self._places.__getitem__)
        if len(joined) <= MOST_NODES and self._can_wait(joined, place) and _can_be_summed(joined):
            for member in joined:
                self._chains[member] = joined

    def _can_wait(self, nodes: Sequence[Node], place: int) -> bool:
        """Whether all who read these nodes, and are not among them, stand behind a place."""
        members = set(nodes)
        return all(use.reader in members or use.place > place for member in nodes for use in self._uses[member])


def _can_be_summed(nodes: Sequence[Node]) -> bool:
    """Whether all sums have the same rows and columns, and vectors as long as they would have alone: the order in which
    numbers are added depends on it."""
    axes = {own.first_column_axis for own in map(summed_axes, nodes) if own is not None}
    values = (value for node in nodes for value in (node, *node.inputs))
    return not axes or (len(axes) == 1 and len({value.dtype for value in values if value.dtype.kind == "f"}) == 1)


def _chain(share: Share) -> Chain:
    members = set(share.nodes)
    operands = dict.fromkeys(source for node in share.nodes for source in node.inputs if source not in members)
    return Chain(tuple(share.nodes), tuple(operands), tuple(share.results), share.repeated)


def _merged(
    chains: Sequence[Chain],
    steps: Sequence[Node],
    uses: Mapping[Node, Sequence[Use]],
    iterations: Mapping[Node, Iteration | None],
) -> Iterator[Fusion]:
    """Chains of updates that compute the same together, where nobody waits for one of them; large ones and the others
    alone."""
    places = {node: place for place, node in enumerate(steps)}
    alike: dict[Hashable, list[Chain]] = {}
    for chain in chains:
        if _is_update(chain.nodes[0]) and chain.nodes[0].dtype.kind == "f" and not chain.sums:
            iteration = iterations[chain.nodes[0]]
            assert iteration is not None
            alike.setdefault((chain.signature(), iteration.kind), []).append(chain)
        else:
            yield Fusion((chain,), chain.nodes[-1])
    for every in alike.values():
        large = [chain for chain in every if is_large_update(chain)]
        large_bytes = sum(map(_written_bytes, large))
        yield from (Fusion((chain,), chain.nodes[-1], large_bytes - _written_bytes(chain)) for chain in large)
        group = [chain for chain in every if not is_large_update(chain)]
        while group:
            last = max((chain.nodes[-1] for chain in group), key=places.__getitem__)
            together = [chain for chain in group if _first_use(chain, uses) > places[last]]
            taken = together or [group[0]]
            yield Fusion(tuple(taken), max((chain.nodes[-1] for chain in taken), key=places.__getitem__))
            group = [chain for chain in group if chain not in taken]


def is_large_update(chain: Chain) -> bool:
    """Whether it is worth a kernel of its own."""
    last = chain.nodes[-1]
    return _is_update(last) and not last.type.batch_axes and last.type.size_bytes >= LARGE_UPDATE_BYTES


def _written_bytes(chain: Chain) -> int:
    return sum(result.type.size_bytes for result in chain.results)


def _first_use(chain: Chain, uses: Mapping[Node, Sequence[Use]]) -> float:
    """Where the first stands who reads a result."""
    members = set(chain.nodes)
    return min((use.place for node in chain.nodes for use in uses[node] if use.reader not in members), default=np.inf)


def fusion_kernel(fusion: Fusion, arrays: Mapping[Node, Array], scratch: Scratch, threads: int) -> Kernel:
    """What computes a fusion, with its operands and results in these arrays, in up to so many threads."""
    first = fusion.chains[0]
    if first.sums:
        operands, results, sums = (
            [arrays[node] for node in nodes] for nodes in (first.operands, first.elements, first.sums)
        )
        return first.summed().kernel(operands, results, sums, scratch, describe_chain(first), threads)
    source, beside_bytes = describe_chain(first), fusion.written_beside_bytes
    kernels = FormulaKernels(first.steps(), first.result_numbers(), scratch, source, beside_bytes)
    for chain in fusion.chains:
        kernels.add([arrays[node] for node in chain.operands], [arrays[node] for node in chain.results])
    return kernels.kernel(threads)


def describe_chain(chain: Chain) -> str:
    """A line for each node: its name, and what it is computed of."""
    return "\n".join(
        f"{node.name} = {node.op.name}({', '.join(source.name for source in node.inputs)})" for node in chain.nodes
    )


def _axes(node: Node) -> SummedAxes:
    axes = summed_axes(node)
    assert axes is not None
    return axes


def _options(node: Node) -> tuple[float, ...]:
    if node.op.name == "clip":
        low, high = node.attributes["low"], node.attributes["high"]
        return -np.inf if low is None else low, np.inf if high is None else high
    return ()
