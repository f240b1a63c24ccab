"""A program for one batch size: memory laid out, kernels prepared, and the loop that runs them.

There is one loop over nodes, `BoundPlan.run`, for all executors. It stamps the time after each kernel: timing is not a
mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from time import perf_counter_ns

import numpy as np

from miai_graph.errors import MiaiGraphError
from miai_graph.interpreter import bind_attributes, evaluate_node, execution_error
from miai_graph.kernels.by_rows import prepare_shared
from miai_graph.kernels.compiler.denormals import FlushedDenormals
from miai_graph.kernels.kernel import NOTHING, Kernel
from miai_graph.kernels.numpy_kernels import Request
from miai_graph.kernels.running.run import Run, is_native, joined
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.ops.again import _again
from miai_graph.ops.communication import EFFECTS, _all_reduce, _reduce_scatter
from miai_graph.ops.leaves import RUN_NUMBERS, variable_of
from miai_graph.plan.binding import Arrays, Binding
from miai_graph.plan.deferral import NO_DEFERRAL, Deferral
from miai_graph.plan.exchange import LINKED, Accumulation, Exchange, Links, reduction_kernel, split_outputs
from miai_graph.plan.fusion import FinishedProduct, fusion_kernel
from miai_graph.plan.layout import lay_out
from miai_graph.plan.memory import NO_BYTES, Scratch, Workspace
from miai_graph.plan.order import Position, positions, share_blocks
from miai_graph.plan.parts import Part, rows_along
from miai_graph.plan.program import Program, Storage, Update
from miai_graph.plan.work import kernel_work
from miai_graph.state import State, arrays_in, block_bytes
from miai_graph.timing.recorder import Recorder
from miai_graph.types import TensorType, bind_type

BINDINGS_LIMIT = 16
"""How many ways in which values may lie a plan remembers. A training step alternates between two."""


class BoundPlan:
    """What it takes to run a program on batches of one size.

    Parameters
    ----------
    program : of a whole graph, or of a worker's
    batch_size : of the whole batch
    parts : those that this worker computes; by default the batch is one part. Nodes that do not depend on rows are
        computed once, the others for each part.
    exchange, barrier : through which parts reduce, and what is called to wait for the other workers
    links : to workers with whom no memory is shared
    order : in which to compute; by default each run of nodes that depend on rows for one part after another
    deferral : what is computed for groups of parts
    threads : how many kernels may use, each; None: as many as BLAS takes, for matrix products alone

    Attributes
    ----------
    feeds : the array to fill for each input that is needed whole
    part_feeds : for each part the arrays to fill with its rows
    nodes : those that kernels compute, in order; some of them once for each part
    buffer_bytes : the memory for all values that are computed, where those that live at different times share it, and
        for what the parts owe
    unshared_bytes : what it would be if they did not share
    scratch_bytes : the memory that kernels use for themselves
    bindings : what is prepared, by `turns`
    recorder : adds up the stamps
    """

    def __init__(
        self,
        program: Program,
        batch_size: int,
        state: State,
        workspace: Workspace,
        parts: Sequence[Part] | None = None,
        exchange: Exchange | Accumulation | None = None,
        barrier: Kernel | None = None,
        links: Links | None = None,
        order: Sequence[Position] | None = None,
        deferral: Deferral = NO_DEFERRAL,
        threads: int | None = None,
    ) -> None:
        self.program = program
        self.batch_size = batch_size
        self.state_generation = state.generation
        self.parts = (Part(0, 0, batch_size),) if parts is None else tuple(parts)
        self._deferral = deferral
        self._places = (*self.parts, *deferral.groups)
        self._state = state
        self._workspace = workspace
        self._exchange = exchange
        self._barrier = barrier
        self._links = links
        self._positions = positions(program, len(self.parts)) if order is None else list(order)
        self._is_in_order = order is None and len(self.parts) == 1
        self.nodes = tuple(node for node, _ in self._positions)
        self._numbers = state.numbers(variable_of(node) for node in program.graph.variables)
        self._lowest_bits = sum(1 << 64 * place for place in range(len(self._numbers)))
        self._step = np.zeros((), np.int64)
        self.scratch_bytes = 0
        self.threads = threads
        self._types: dict[tuple[Node, int], TensorType] = {}
        self._flushed_denormals = FlushedDenormals()
        self._arrays = self._lay_out()
        self._kernels: dict[Position, Kernel] = {}
        self.bindings: dict[int, Binding] = {}
        inputs = program.graph.inputs
        self.feeds = {node: self._arrays[0][node] for node in inputs if node not in program.per_part}
        self.part_feeds = [
            {node: arrays[node] for node in inputs if node in program.per_part}
            for arrays in self._arrays[: len(self.parts)]
        ]
        self._stamps_place = np.zeros(1, np.int64)
        self.stamp_into(np.zeros(len(self.nodes) + 1, np.int64))
        blocks, kept = self._blocks_of_parts(), deferral.kept
        is_linked = links is not None
        work = kernel_work(program, self._positions, self._places, blocks, kept, self._type, is_linked=is_linked)
        self.recorder = Recorder(program.graph, work)
        self.bind(self.turns())

    def stamp_into(self, stamps: Array) -> None:
        """Write the times into this array from now on."""
        self.stamps = stamps
        self._stamps = memoryview(stamps.data)
        self._stamps_place[0] = stamps.ctypes.data

    def turns(self) -> int:
        """Which of its two arrays holds the value now, for each of the graph's variables: bit 0 of each 64."""
        return int.from_bytes(self._state.versions[self._numbers].tobytes(), "little") & self._lowest_bits

    def _type(self, node: Node, part: int) -> TensorType:
        key = node, self._places[part].size if node in self.program.per_part else self.batch_size
        if key not in self._types:
            self._types[key] = bind_type(node.type, key[1])
        return self._types[key]

    def _lay_out(self) -> list[Arrays]:
        """An array for each node, for each part, apart from those that move with the state."""
        self._block_bytes: dict[str, int] = {}
        self._free = [NO_BYTES] * len(self.program.steps)
        self.unshared_bytes = 0
        computed = self.program.computed_at
        own = self._place_own("values", 0, [node for node in computed if not self._is_per_part(node)])
        blocks = self._blocks_of_parts()
        per_part = [node for node in computed if self._is_per_part(node)]
        own_parts = [self._place_own(f"values {block}", part, per_part) for part, block in enumerate(blocks)]
        own_parts += [{} for _ in self._deferral.groups]
        for node, array in self._place_kept().items():
            for own_part, part in zip(own_parts, self._places, strict=True):
                own_part[node] = array[rows_along(node.type.shape[0], part, self.parts[0])]
        result: list[Arrays] = []
        for place, part in enumerate(self._places):
            rows = (np.asarray(number, np.int64) for number in (self.batch_size, part.size, part.first_row))
            numbers = dict(zip(RUN_NUMBERS, (*rows, self._step), strict=True))
            shared = self._exchange.arrays_of(part) if isinstance(self._exchange, Exchange) else {}
            every_own = own | own_parts[place] | shared
            arrays: Arrays = {}
            for node in self.program.graph.nodes:
                if self._moves(node) or self.program.storage[node] in (Storage.GATHERED, Storage.PASSING):
                    continue
                if place >= len(self.parts) and self._is_per_part(node) and not self._is_for_all_parts(node):
                    continue
                is_shared = not self._is_per_part(node) and node.op.name not in RUN_NUMBERS
                if place and (is_shared or node.op in EFFECTS):
                    arrays[node] = result[0][node]
                else:
                    arrays[node] = self._array(node, place, arrays, every_own, numbers)
            result.append(arrays)
        exported = [node for node, storage in self.program.storage.items() if storage is Storage.EXPORT]
        exports = [arrays[node] for arrays in result for node in exported if node in arrays]
        self._block_bytes["exports"] = sum({export.ctypes.data: export.nbytes for export in exports}.values())
        return result

    @property
    def buffer_bytes(self) -> int:
        return sum(self._block_bytes.values())

    def _blocks_of_parts(self) -> list[int]:
        """For each part the number of a block for its values. Parts that are not under way at the same time share one,
        unless values must stay until all outputs are put together."""
        if split_outputs(self.program):
            return list(range(len(self.parts)))
        spans = [(len(self._positions), -1)] * len(self.parts)
        for place, (node, part) in enumerate(self._positions):
            if self._is_per_part(node) and part < len(self.parts):
                spans[part] = min(spans[part][0], place), place
        return share_blocks(spans)

    def _is_per_part(self, node: Node) -> bool:
        return node in self.program.per_part

    def _is_for_all_parts(self, node: Node) -> bool:
        """Whether there is an array, or a kernel, for groups of parts."""
        own = self._deferral
        return node in self.program.exports or node in own.kept or node in own.views or node.op in EFFECTS

    def _place_kept(self) -> Arrays:
        """Arrays in which the rows of all parts lie one behind the other."""
        kept = sorted(self._deferral.kept, key=lambda node: node.index)
        types = [bind_type(node.type, sum(part.size for part in self.parts)) for node in kept]
        size_bytes = block_bytes(types)
        self._block_bytes["kept"] = size_bytes
        return dict(zip(kept, arrays_in(self._workspace.block("kept", size_bytes), types), strict=True))

    def _moves(self, node: Node) -> bool:
        """Whether the value lies in the state, at one place in even versions and at another in odd ones."""
        return self.program.storage[self.program.roots[node]] in (Storage.STATE, Storage.NEXT)

    def _array(self, node: Node, part: int, arrays: Arrays, own: Arrays, run_numbers: dict[str, Array]) -> Array:
        if node in own:
            return own[node]
        match self.program.storage[node]:
            case Storage.FED:
                type = self._type(node, part)
                block = self._workspace.block(f"input {node.name} {part}", type.size_bytes)
                return block[: type.size_bytes].view(type.dtype).reshape(type.shape)
            case Storage.CONSTANT:
                return node.attributes["value"]
            case Storage.RUN_NUMBER:
                return run_numbers[node.op.name]
            case Storage.EXPORT:
                assert self._exchange is not None
                return self._exchange.export(self.program.exports[node], self._places[part])
            case _:
                return self._evaluate(node, part, arrays)

    def _evaluate(self, node: Node, part: int, arrays: Arrays) -> Array:
        """A value that is there as soon as its inputs have a place."""
        size = self._places[part].size if self._is_per_part(node) else self.batch_size
        # What is computed again waits for a value that it does not read, and that may be in no memory.
        sources = node.inputs[:1] if node.op is _again else node.inputs
        return evaluate_node(node, [arrays[source] for source in sources], size)

    def _place_own(self, purpose: str, part: int, nodes: Sequence[Node]) -> Arrays:
        """Memory for the values of these nodes that have some of their own."""
        program, kept = self.program, self._deferral.kept
        own = (node for node in nodes if program.storage[node] is Storage.OWN and node not in kept)
        types = {node: self._type(node, part) for node in sorted(own, key=program.computed_at.__getitem__)}
        layout = lay_out(program, types)
        self._block_bytes[purpose] = max(layout.size_bytes, self._block_bytes.get(purpose, 0))
        self.unshared_bytes += sum(type.size_bytes for type in types.values())
        block = self._workspace.block(purpose, layout.size_bytes)
        if self._is_in_order:
            tails = (block[end : layout.size_bytes] for end in layout.used_until)
            self._free = [max(pair, key=len) for pair in zip(self._free, tails, strict=True)]
        return {
            node: block[offset : offset + types[node].size_bytes].view(types[node].dtype).reshape(types[node].shape)
            for node, offset in layout.offsets.items()
        }

    def bind(self, turns: int) -> Binding:
        """Prepare for values that lie where `turns` says; what is prepared is found in `bindings`."""
        if len(self.bindings) >= BINDINGS_LIMIT:
            self.bindings.clear()
        self.bindings[turns] = self._bind(turns)
        return self.bindings[turns]

    def _bind(self, turns: int) -> Binding:
        program, state = self.program, self._state
        held = {variable_of(node): turns >> 64 * place & 1 for place, node in enumerate(program.graph.variables)}

        def prepared(update: Update, node: Node) -> Array:
            variable = variable_of(update.target)
            spare = state.arrays(variable)[1 - held[variable]].reshape(-1)
            return spare[update.start : update.start + node.type.size].reshape(node.type.shape)

        arrays = [dict(known) for known in self._arrays]
        for part, known in enumerate(arrays):
            for node in filter(self._moves, program.graph.nodes):
                match program.storage[node]:
                    case Storage.STATE:
                        known[node] = state.arrays(variable_of(node))[held[variable_of(node)]]
                    case Storage.NEXT:
                        known[node] = prepared(program.prepared[node], node)
                    case _:
                        known[node] = self._evaluate(node, part, known)
        copies = [
            (prepared(update, update.value), arrays[0][update.value])
            for update in program.updates
            if program.prepared.get(update.value) is not update
        ]
        outputs, gathered = self._outputs(arrays)
        kernels = [self._kernel(position, arrays[position[1]]) for position in self._positions]
        runs = joined(kernels, self._stamps_place)
        if not runs or not runs[0].is_timed:
            runs.insert(0, Run(-1, NOTHING, is_timed=False))
        return Binding(arrays, kernels, runs, all(map(is_native, kernels)), outputs, [*copies, *gathered])

    def _outputs(self, arrays: Sequence[Arrays]) -> tuple[list[Array], list[tuple[Array, Array]]]:
        """The arrays of the outputs, and what has to be copied to them: the rows of each part."""
        outputs, copies = [], []
        whole = iter(self._exchange.outputs if self._exchange is not None else ())
        for node in self.program.graph.outputs:
            if node.op in EFFECTS and self._exchange is not None:
                continue
            if not self._is_per_part(node):
                outputs.append(arrays[0][node])
                continue
            outputs.append(next(whole))
            (axis,) = node.type.batch_axes
            copies += [
                (outputs[-1][(slice(None),) * axis + (rows_along(node.type.shape[axis], part),)], arrays[place][node])
                for place, part in enumerate(self.parts)
            ]
        return outputs, copies

    def _kernel(self, position: Position, arrays: Arrays) -> Kernel:
        """What computes a node for a part. Those that touch no state are the same wherever it lies."""
        node, _ = position
        if any(map(self._moves, (*self.program.results_of(node), *self.program.operands_of(node)))):
            return self._prepare(position, arrays)
        if position not in self._kernels:
            self._kernels[position] = self._prepare(position, arrays)
        return self._kernels[position]

    def _prepare(self, position: Position, arrays: Arrays) -> Kernel:
        node, part = position
        if node.op in LINKED and self._links is not None:
            inputs = [arrays[source] for source in node.inputs]
            return self._links.kernel(node, self._places[part], inputs, arrays[node])
        if node.op in EFFECTS:
            return self._barrier or NOTHING
        scratch = Scratch(self._workspace, self._free[self.program.computed_at[node]])
        fusion = self.program.fusions.get(node)
        if fusion is None:
            request = self._request(node, part, arrays, arrays[node], scratch)
            if node.op in (_all_reduce, _reduce_scatter):
                kernel = reduction_kernel(request, self._owed(arrays, node))
            else:
                kernel = prepare_shared(request, partial(self._flops, node, part))
        elif isinstance(fusion, FinishedProduct):
            product, shape = fusion.product, self._type(fusion.product, part).shape
            plain = self._request(product, part, arrays, arrays[node].view().reshape(shape), scratch)
            kernel = prepare_shared(fusion.request(plain, arrays), partial(self._flops, product, part))
        else:
            kernel = fusion_kernel(fusion, arrays, partial(self._owed, arrays), scratch.take, self.threads or 1)
        self.scratch_bytes = max(self.scratch_bytes, scratch.used_bytes)
        return self._exporting(kernel, self.program.results_of(node), part)

    def _request(self, node: Node, part: int, arrays: Arrays, output: Array, scratch: Scratch) -> Request:
        size = self._places[part].size if self._is_per_part(node) else self.batch_size
        inputs = [arrays[source] for source in node.inputs]
        return Request(node, inputs, output, bind_attributes(node, size), scratch.take, self.threads)

    def _exporting(self, kernel: Kernel, results: Sequence[Node], part: int) -> Kernel:
        """The kernel with what has to be done to export some of its results."""
        for node in results:
            if self._exchange is not None and node in self.program.exports:
                kernel = self._exchange.exporting(kernel, self.program.exports[node], self._places[part])
        return kernel

    def _flops(self, node: Node, part: int) -> int:
        types = (self._type(source, part) for source in node.inputs)
        return int(node.op.cost(self._type(node, part), *types, **node.attributes).flops)

    def _owed(self, arrays: Arrays, reduction: Node) -> Sequence[Array]:
        """What all parts owe to a reduction; a worker without an exchange is alone."""
        export = reduction.inputs[0]
        return [arrays[export]] if self._exchange is None else self._exchange.owed(self.program.exports[export])

    def run(self, step: int, binding: Binding) -> None:
        """Compute all nodes from what is in the feeds and in the state, and stamp the time after each.

        The state stays as it is: new values lie in its other arrays, for `State.commit`.

        Raises
        ------
        ExecutionError
            if a kernel fails, with its node.
        """
        if binding.is_native:
            self._run(step, binding)
        else:
            with np.errstate(all="ignore"):
                self._run(step, binding)

    def _run(self, step: int, binding: Binding) -> None:
        self._step[...] = step
        stamps, clock, last = self._stamps, perf_counter_ns, 0
        try:
            with self._flushed_denormals:
                for last, kernel, is_timed in binding.runs:
                    kernel()
                    if not is_timed:
                        stamps[last + 1] = clock()
        except MiaiGraphError:
            raise
        except Exception as error:
            node, part = self._positions[last]
            inputs = [binding.arrays[part][source] for source in self.program.operands_of(node)]
            raise execution_error(node, inputs, error) from error
        for target, source in binding.copies:
            np.copyto(target, source)
