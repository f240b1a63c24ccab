"""Which nodes are computed together, by one kernel.

Element-wise nodes of one shape that use each other's values form a chain: what is between them never gets to memory.
Sums of these values, over rows or along them, are taken on the way. Chains of an update that compute the same of
different parameters are done in one go. A short chain behind a product is computed by the product's kernel. All nodes
of a fusion are computed where the last of them stands, so nothing outside that reads one of them may stand before.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from miai_graph.context import UPDATE
from miai_graph.kernels.elementwise.code import DTYPES, OPERATIONS, WITH_OPTIONS
from miai_graph.kernels.elementwise.formulas import Step, Total, add_tree
from miai_graph.kernels.elementwise.kernels import FormulaKernels
from miai_graph.kernels.elementwise.totals import SummedFormula
from miai_graph.kernels.epilogue import Epilogue
from miai_graph.kernels.kernel import Kernel, Scratch
from miai_graph.kernels.numpy_kernels import Request
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.ops.communication import _all_reduce, _reduce_scatter
from miai_graph.ops.elementwise import ElementwiseOp
from miai_graph.plan.epilogues import Run, runs_behind_products
from miai_graph.plan.recomputation import Share, with_repetition
from miai_graph.plan.sums import SummedAxes, summed_axes
from miai_graph.plan.uses import Use
from miai_graph.types import Shape

MOST_NODES = 48
"""In a chain: the more there are, the fewer of their values fit into registers."""

REDUCING = (_all_reduce, _reduce_scatter)

OPERATION_OF_REDUCTION = {"sum": "add", "max": "maximum", "min": "minimum"}
"""The ops of the reductions."""

MOST_CONTRIBUTORS = 8
"""So many arrays are reduced in one pass."""

Key = tuple[Node, int | None]
"""An operand of a formula: a node's value, or what a contributor owes to a reduction."""


@dataclass(frozen=True, eq=False)
class Chain:
    """Element-wise nodes of one shape, each of which uses another one's value, or is used by it; and sums of values.

    Attributes
    ----------
    nodes : in order
    operands : what they read of others
    results : those of them that others read
    repeated : those of them that an earlier chain computes too
    contributors : how many owe something to each reduction
    """

    nodes: tuple[Node, ...]
    operands: tuple[Node, ...]
    results: tuple[Node, ...]
    repeated: frozenset[Node] = frozenset()
    contributors: int = 0

    @property
    def sums(self) -> list[Node]:
        """Those of the results that are sums."""
        return [node for node in self.results if summed_axes(node) is not None]

    @property
    def elements(self) -> list[Node]:
        """Those of the results that are not."""
        return [node for node in self.results if summed_axes(node) is None]

    @cached_property
    def keys(self) -> tuple[Key, ...]:
        """The operands of the formula."""
        read = {source for node in self.nodes if node.op not in REDUCING for source in node.inputs}
        values: list[Key] = [(operand, None) for operand in self.operands if operand in read]
        reductions = (node for node in self.nodes if node.op in REDUCING)
        return (*values, *((node, number) for node in reductions for number in range(self.contributors)))

    @cached_property
    def _formula(self) -> tuple[tuple[Step, ...], dict[Node, int]]:
        """The steps, and the numbers of the nodes' values."""
        keys, steps = self.keys, list[Step]()
        numbers = {node: number for number, (node, contributor) in enumerate(keys) if contributor is None}
        for node in self.nodes:
            if summed_axes(node) is not None:
                continue
            if node.op in REDUCING:
                shares = [number for number, (owner, _) in enumerate(keys) if owner is node]
                operation = OPERATION_OF_REDUCTION[node.attributes["reduction"]]
                numbers[node] = add_tree(steps, operation, shares, node.dtype, len(keys))
            else:
                operands = tuple(numbers[source] for source in node.inputs)
                steps.append(Step(node.op.name, operands, node.dtype, _options(node)))
                numbers[node] = len(keys) + len(steps) - 1
        return tuple(steps), numbers

    @property
    def steps(self) -> tuple[Step, ...]:
        """What is computed, whatever it is computed of."""
        return self._formula[0]

    @property
    def result_numbers(self) -> tuple[int, ...]:
        """The numbers of the results in a formula, apart from sums."""
        _, numbers = self._formula
        return tuple(numbers[result] for result in self.elements)

    def summed(self) -> SummedFormula:
        """What is computed where there are sums."""
        (steps, numbers), axes = self._formula, [_axes(node) for node in self.sums]
        totals = [Total(numbers[node.inputs[0]], own.along_rows) for node, own in zip(self.sums, axes, strict=True)]
        return SummedFormula(steps, self.result_numbers, totals, axes[0].first_column_axis)

    def signature(self) -> Hashable:
        """Equal for chains that compute the same."""
        dtypes = tuple(operand.dtype for operand, _ in self.keys)
        return dtypes, self.steps, self.result_numbers


@dataclass(frozen=True, eq=False)
class Fusion:
    """Chains that one kernel computes, one after another; all have one signature.

    Attributes
    ----------
    leader : the last of the nodes, in whose place all are computed
    """

    chains: tuple[Chain, ...]
    leader: Node

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


@dataclass(frozen=True, eq=False)
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
        return 1 < contributors <= MOST_CONTRIBUTORS and node.dtype.kind == "f" and node.dtype in DTYPES
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
    return FinishedProduct((whole,), run.nodes[-1], run.product, epilogue)


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
    """Chains of updates that compute the same together, where nobody waits for one of them; the others alone."""
    places = {node: place for place, node in enumerate(steps)}
    alike: dict[Hashable, list[Chain]] = {}
    for chain in chains:
        if _phases(chain.nodes) == {UPDATE} and chain.nodes[0].dtype.kind == "f" and not chain.sums:
            iteration = iterations[chain.nodes[0]]
            assert iteration is not None
            alike.setdefault((chain.signature(), iteration.kind), []).append(chain)
        else:
            yield Fusion((chain,), chain.nodes[-1])
    for group in alike.values():
        while group:
            last = max((chain.nodes[-1] for chain in group), key=places.__getitem__)
            together = [chain for chain in group if _first_use(chain, uses) > places[last]]
            taken = together or [group[0]]
            yield Fusion(tuple(taken), max((chain.nodes[-1] for chain in taken), key=places.__getitem__))
            group = [chain for chain in group if chain not in taken]


def _first_use(chain: Chain, uses: Mapping[Node, Sequence[Use]]) -> float:
    """Where the first stands who reads a result."""
    members = set(chain.nodes)
    return min((use.place for node in chain.nodes for use in uses[node] if use.reader not in members), default=np.inf)


def fusion_kernel(
    fusion: Fusion,
    arrays: Mapping[Node, Array],
    shares_of: Callable[[Node], Sequence[Array]],
    scratch: Scratch,
    threads: int,
) -> Kernel:
    """What computes a fusion.

    Parameters
    ----------
    arrays : of operands and results
    shares_of : gives what all contributors owe to a reduction
    threads : how many it may use at most
    """
    first = fusion.chains[0]

    def operands_of(chain: Chain) -> list[Array]:
        return [arrays[node] if number is None else shares_of(node)[number] for node, number in chain.keys]

    if first.sums:
        results, sums = ([arrays[node] for node in nodes] for nodes in (first.elements, first.sums))
        return first.summed().kernel(operands_of(first), results, sums, scratch, describe_chain(first), threads)
    kernels = FormulaKernels(first.steps, first.result_numbers, scratch, describe_chain(first))
    for chain in fusion.chains:
        kernels.add(operands_of(chain), [arrays[node] for node in chain.results])
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
