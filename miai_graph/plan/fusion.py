"""Which nodes are computed together, by one kernel.

Element-wise nodes of one shape that use each other's values form a chain: what is between them never gets to memory.
Sums of these values, over rows or along them, are taken on the way. Chains of an update that compute the same of
different parameters are done in one go. A short chain behind a product is computed by the product's kernel. All nodes
of a fusion are computed where the last of them stands, so nothing outside that reads one of them may stand before.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from miai_graph.context import UPDATE
from miai_graph.kernels.elementwise.code import DTYPES, OPERATIONS, WITH_OPTIONS
from miai_graph.kernels.elementwise.kernels import FormulaKernels
from miai_graph.kernels.epilogue import Epilogue
from miai_graph.kernels.kernel import Kernel, Scratch
from miai_graph.kernels.numpy_kernels import Request
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.ops.elementwise import ElementwiseOp
from miai_graph.plan.chains import MOST_CONTRIBUTORS, REDUCING, Chain, describe_chain, shares_of
from miai_graph.plan.epilogues import Run, runs_behind_products
from miai_graph.plan.repetition import Share, with_repetition
from miai_graph.plan.sums import summed_axes
from miai_graph.plan.uses import Use
from miai_graph.types import Shape, int_dims

MOST_NODES = 48
"""In a chain: the more there are, the fewer of their values fit into registers."""

LARGE_UPDATE_BYTES = 1 << 20
"""Updates of parameters as large as this are computed each by itself, as soon as the gradient is there: it is still in
a cache, and its memory is free again before there is another one."""


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
    def works_in_place(self) -> bool:
        """Whether results may be written where operands lie. What one chain writes another one may have yet to read."""
        return len(self.chains) == 1

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


@dataclass(frozen=True, eq=False, kw_only=True)
class FinishedProduct(Fusion):
    """A product, and a chain of which its kernel computes each element before it stores it.

    Attributes
    ----------
    chains : one, of the product and of the chain
    epilogue : the chain alone, whose first operand is the product
    """

    product: Node
    epilogue: Chain

    @property
    def works_in_place(self) -> bool:
        return False

    def request(self, plain: Request, arrays: Mapping[Node, Array]) -> Request:
        """One for the product, with the rest."""
        operands = tuple(arrays[operand] for operand in self.epilogue.operands[1:])
        epilogue = Epilogue(self.epilogue.steps, operands)
        return replace(plain, epilogue=epilogue.reshaped(plain.output.shape))


def can_be_fused(node: Node, contributors: int = 0) -> bool:
    """Is it an element-wise op that there is code for, of dtypes that there is code for? Reductions over a few
    contributors are such too."""
    if node.op in REDUCING:
        is_number = node.dtype.kind == "f" and node.dtype in DTYPES and not node.type.batch_axes
        return is_number and 1 < contributors <= MOST_CONTRIBUTORS
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


def iteration_of(node: Node, kind: Hashable, contributors: int = 0) -> Iteration | None:
    """How a node is computed element by element; None for nodes that are computed alone.

    Parameters
    ----------
    kind : nodes for which it differs are not computed together; nodes for which it is None are computed alone
    contributors : how many owe something to each reduction; 0: reductions are computed alone
    """
    if kind is None:
        return None
    if summed_axes(node) is not None:
        return Iteration(node.inputs[0].type.shape, kind)
    return Iteration(node.type.shape, kind) if can_be_fused(node, contributors) else None


def find_fusions(
    steps: Sequence[Node],
    uses: Mapping[Node, Sequence[Use]],
    roots: Mapping[Node, Node],
    is_stored: Callable[[Node], bool],
    iterations: Mapping[Node, Iteration | None],
    kind_of: Callable[[Node], Hashable],
    contributors: int = 0,
) -> dict[Node, Fusion]:
    """The fusions of a program, by leader.

    Parameters
    ----------
    steps : the nodes that are computed, in order
    uses : of each of them
    roots : the node whose memory a node's value lies in
    is_stored : whether a node's value must be in memory whoever reads it
    iterations : of each of the steps
    kind_of : nodes for which it differs are not computed together; nodes for which it is None are computed alone
    contributors : how many owe something to each reduction
    """

    def go_together(product: Node, node: Node) -> bool:
        kind = kind_of(product)
        return kind is not None and kind == kind_of(node) and product.phase == node.phase and not is_stored(product)

    found = _Finder(steps, uses, iterations).chains()
    runs, left = runs_behind_products(found, steps, uses, roots, go_together)
    shares = with_repetition(left, uses, roots, is_stored, iterations, MOST_NODES)
    chains = [_chain(share, contributors) for share in shares if any(node.op not in REDUCING for node in share.nodes)]
    fusions = [*_merged(chains, steps, uses, iterations), *map(_finished_product, runs)]
    return {fusion.leader: fusion for fusion in fusions}


def _finished_product(run: Run) -> FinishedProduct:
    epilogue = _chain_of(run.nodes, run.nodes[-1:], first=[run.source])
    whole = _chain_of((run.product, *run.views, *run.nodes), run.nodes[-1:])
    return FinishedProduct((whole,), run.nodes[-1], product=run.product, epilogue=epilogue)


def _phases(nodes: Iterable[Node]) -> set[str]:
    """Those of nodes that are computed together; reductions are computed in any."""
    return {node.phase for node in nodes if node.op not in REDUCING}


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
        if chain is None or chain is own or len(_phases((*chain, *own))) > 1:
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


def _chain(share: Share, contributors: int) -> Chain:
    return replace(_chain_of(share.nodes, share.results), repeated=share.repeated, contributors=contributors)


def _chain_of(nodes: Sequence[Node], results: Sequence[Node], first: Iterable[Node] = ()) -> Chain:
    """The chain of these nodes, with some operands before all others."""
    members = set(nodes)
    operands = dict.fromkeys([*first, *(source for node in nodes for source in node.inputs if source not in members)])
    return Chain(tuple(nodes), tuple(operands), tuple(results))


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
        if _phases(chain.nodes) == {UPDATE} and chain.nodes[0].dtype.kind == "f" and not chain.sums:
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
    return last.phase == UPDATE and not last.type.batch_axes and last.type.size_bytes >= LARGE_UPDATE_BYTES


def _written_bytes(chain: Chain) -> int:
    return sum(result.type.size_bytes for result in chain.results)


def _first_use(chain: Chain, uses: Mapping[Node, Sequence[Use]]) -> float:
    """Where the first stands who reads a result."""
    members = set(chain.nodes)
    return min((use.place for node in chain.nodes for use in uses[node] if use.reader not in members), default=np.inf)


def fusion_kernel(
    fusion: Fusion,
    arrays: Mapping[Node, Array],
    owed: Callable[[Node], Sequence[Array]],
    scratch: Scratch,
    threads: int,
) -> Kernel:
    """What computes a fusion.

    Parameters
    ----------
    arrays : of operands and results
    owed : gives what all contributors owe to a reduction
    threads : how many it may use at most
    """
    first = fusion.chains[0]

    def operand(node: Node, number: int | None) -> Array:
        return arrays[node] if number is None else shares_of(node, owed(node), int_dims(node.type.shape))[number]

    def operands_of(chain: Chain) -> list[Array]:
        return [operand(*key) for key in chain.keys]

    if first.sums:
        results, sums = ([arrays[node] for node in nodes] for nodes in (first.elements, first.sums))
        return first.summed().kernel(operands_of(first), results, sums, scratch, describe_chain(first), threads)
    source, beside_bytes = describe_chain(first), fusion.written_beside_bytes
    kernels = FormulaKernels(first.steps, first.result_numbers, scratch, source, beside_bytes)
    for chain in fusion.chains:
        kernels.add(operands_of(chain), [arrays[node] for node in chain.results])
    return kernels.kernel(threads)
