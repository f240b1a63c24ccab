"""Pipelining without hosts: the graphs of several stages and replicas, evaluated in turn by plain NumPy.

What stages' graphs mean is defined here once more, as simply as can be: what is sent lies in a dict until it is taken,
who finds nothing there lets the others go on, and what is owed is reduced when all replicas have contributed. Each
message must be read, once; nobody may wait for ever; all who hold a variable must get the same new value.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce

import numpy as np
from reference_executor import Reference, ReferenceExecutable

import miai_graph as mg
from miai_graph.feeding import check_batch, check_inputs
from miai_graph.interpreter import evaluate_node
from miai_graph.ops.leaves import RUN_NUMBERS, is_input, is_variable, variable_of
from miai_graph.passes.batch_analysis import analyse_batch
from miai_graph.passes.pipeline import Pipeline, Segment, StageGraph
from miai_graph.passes.simplify import simplify
from miai_graph.passes.stages import lay_out
from miai_graph.placement import REDUCTIONS, Replicated
from miai_graph.plan.parts import Part, cut_batch, parts_of
from miai_graph.plan.schedule import Task, schedules
from miai_graph.state import state
from miai_graph.types import bind_shape, bind_type

EFFECTS = ("send", "contribute", "barrier", "await_commit")
Stages = Mapping[mg.Node, int | None]
"""The stage of each node; None: each that wants it."""


class Run:
    """What the stages and replicas of one step have in common.

    Attributes
    ----------
    letters : what was sent and not yet taken, by replica, number of the value and part
    contributed : by stage and export, for each replica what its parts owe
    """

    def __init__(self, feeds: Mapping[mg.Node, np.ndarray], batch_size: int, step: int, replicas: int) -> None:
        self.feeds, self.batch_size, self.step, self.replicas = feeds, batch_size, step, replicas
        self.letters: dict[tuple[int, int, int], np.ndarray] = {}
        self.contributed: dict[tuple[int, int], dict[int, list[np.ndarray]]] = defaultdict(dict)


class LogicalStage:
    """One stage of one replica, with the values computed so far, by node and part."""

    def __init__(
        self,
        run: Run,
        own: StageGraph,
        stage: int,
        replica: int,
        parts: Sequence[Part],
        tasks: Mapping[int, list[Task]],
    ) -> None:
        self.run, self.own, self.stage, self.replica, self.parts = run, own, stage, replica, parts
        self.order = _order(own, len(parts), tasks)
        self.values: dict[tuple[mg.Node, int], np.ndarray] = {}
        self.numbers = {node: number for number, node in enumerate(own.exports)}

    def value(self, node: mg.Node, part: int = 0) -> np.ndarray:
        return self.values[node, part if _is_of_part(node, self.own) else 0]

    def compute(self) -> Iterator[None]:
        """Stops where there is nothing to be done until somebody else has done something."""
        for node, part in self.order:
            inputs = [self.value(source, part) for source in node.inputs]
            key = self.replica, node.attributes.get("value"), self.parts[part].number
            result = np.empty(0, bool)
            match node.op.name:
                case "send":
                    assert key not in self.run.letters
                    self.run.letters[key] = inputs[0]
                case "receive":
                    while key not in self.run.letters:
                        yield
                    result = self.run.letters.pop(key)
                    bound = bind_type(node.type, self._size(node, part))
                    assert (result.shape, result.dtype) == (bound.shape, bound.dtype)
                case "contribute":
                    if part == len(self.parts) - 1:
                        self._contribute(node)
                case "await_commit":
                    pass
                case "barrier":
                    if self.run.replicas == 1:
                        self._contribute(node)
                    while not self._is_contributed(node):
                        yield
                case "all_reduce":
                    result = self._reduced(node)
                case _:
                    result = self._evaluated(node, part, inputs)
            self.values[node, part] = result

    def _contribute(self, node: mg.Node) -> None:
        for source in node.inputs:
            if source in self.numbers:
                places = range(len(self.parts)) if source in self.own.per_part else (0,)
                owed = self.run.contributed[self.stage, self.numbers[source]]
                assert self.replica not in owed
                owed[self.replica] = [self.values[source, place] for place in places]

    def _is_contributed(self, barrier: mg.Node) -> bool:
        return all(
            len(self.run.contributed[self.stage, self.numbers[source]]) == self.run.replicas
            for source in barrier.inputs
            if source in self.numbers
        )

    def _reduced(self, node: mg.Node) -> np.ndarray:
        owed = self.run.contributed[self.stage, self.numbers[node.inputs[0]]]
        assert len(owed) == self.run.replicas
        shares = [share for replica in sorted(owed) for share in owed[replica]]
        return reduce(REDUCTIONS[node.attributes["reduction"]], shares)

    def _size(self, node: mg.Node, part: int) -> int:
        return self.parts[part].size if node in self.own.per_part else self.run.batch_size

    def _evaluated(self, node: mg.Node, part: int, inputs: Sequence[np.ndarray]) -> np.ndarray:
        if is_input(node):
            return self._fed(node, part)
        if is_variable(node):
            return state.get(variable_of(node))
        if node.op.name in RUN_NUMBERS:
            own = self.parts[part]
            numbers = dict(zip(RUN_NUMBERS, (self.run.batch_size, own.size, own.first_row, self.run.step), strict=True))
            return np.asarray(numbers[node.op.name], np.int64)
        return evaluate_node(node, inputs, self._size(node, part))

    def _fed(self, node: mg.Node, part: int) -> np.ndarray:
        if node not in self.own.per_part:
            return self.run.feeds[node]
        (axis,) = node.type.batch_axes
        rows = node.type.shape[axis].multiple
        first = rows * self.parts[part].first_row
        return self.run.feeds[node][(slice(None),) * axis + (slice(first, first + rows * self.parts[part].size),)]


def _is_of_part(node: mg.Node, own: StageGraph) -> bool:
    return node in own.per_part or node.op.name in RUN_NUMBERS


def _order(own: StageGraph, parts: int, tasks: Mapping[int, list[Task]]) -> list[tuple[mg.Node, int]]:
    """Each node with the part that it is computed for: level by level what is done once, then the tasks."""
    segments: dict[Segment, list[mg.Node]] = defaultdict(list)
    order = []
    for node in own.graph.nodes:
        if node.inputs or node.op.name == "receive":
            segments[own.segments[node]].append(node)
        else:
            order += [(node, part) for part in (range(parts) if _is_of_part(node, own) else (0,))]
    for level in sorted({segment.level for segment in segments}):
        order += [(node, 0) for node in segments[Segment(level, None)]]
        for task in tasks.get(level, ()):
            order += [(node, task.part) for node in segments[Segment(level, task.sweep)]]
    assert set(own.graph.nodes) == {node for node, _ in order}
    return order


def pipelined(graph: mg.Graph, bounds: Sequence[int], *, is_reproducible: bool = False) -> Pipeline:
    """The graph with stages that end at these items of its row."""
    stages = lay_out(graph, analyse_batch(graph)).stages(bounds)
    return Pipeline(graph, stages, len(bounds) - 1, is_reproducible=is_reproducible)


def stages_of(pipeline: Pipeline, *, is_replicated: bool = False) -> list[StageGraph]:
    """All stages' graphs, which must be well formed and fit together."""
    found = [pipeline.stage(stage, is_replicated=is_replicated) for stage in range(pipeline.stages)]
    for own in found:
        mg.check_graph(own.graph)
        assert set(own.segments) == set(own.graph.nodes)
        assert own.per_part <= set(own.graph.nodes)
        assert {node for node in own.graph.nodes if own.segments[node].sweep is not None} == own.per_part
        assert all(node.op.name in EFFECTS for node in own.graph.outputs[len(own.outputs) :])
        _check_what_is_owed(own, is_replicated=is_replicated)
    _check_messages(found)
    _check_holders(pipeline.graph, found)
    return found


def nodes_of(own: StageGraph, op: str) -> list[mg.Node]:
    return [node for node in own.graph.nodes if node.op.name == op]


def _check_what_is_owed(own: StageGraph, *, is_replicated: bool) -> None:
    """Each export is waited for at one barrier, reduced once, and contributed once if there is anybody to get it."""
    once = dict.fromkeys(own.exports, 1)
    assert len(once) == len(own.exports)
    for op, is_there in (("barrier", True), ("all_reduce", True), ("contribute", is_replicated)):
        read = Counter(source for node in nodes_of(own, op) for source in node.inputs if source in once)
        assert read == (once if is_there else {})


def _check_messages(found: Sequence[StageGraph]) -> None:
    """What a stage receives another one sends to it, of the same type, as often; what is received is read."""
    sent, received = {}, {}
    for stage, own in enumerate(found):
        read = {source for node in own.graph.nodes for source in node.inputs}
        read |= {*own.graph.outputs, *own.graph.updates.values()}
        for node in nodes_of(own, "send"):
            assert node.attributes["value"] not in sent
            (source,) = node.inputs
            sent[node.attributes["value"]] = (stage, node.attributes["stage"], source.type, node in own.per_part)
        for node in nodes_of(own, "receive"):
            assert node.attributes["value"] not in received
            assert node in read
            received[node.attributes["value"]] = (node.attributes["stage"], stage, node.type, node in own.per_part)
    assert sent == received
    assert all(source != target for source, target, *_ in sent.values())


def _check_holders(graph: mg.Graph, found: Sequence[StageGraph]) -> None:
    """All who read a variable that is updated, update it; and somebody does."""
    for target in graph.updates:
        holders = [own for own in found if variable_of(target) in map(variable_of, own.graph.variables)]
        assert holders
        assert all(target in own.graph.updates for own in holders)
    assert sorted(place for own in found for place in own.outputs) == list(range(len(graph.outputs)))


def evaluate_by_stages(
    pipeline: Pipeline,
    feeds: Mapping[mg.Node, np.ndarray],
    batch_size: int,
    parts: int,
    step: int = 0,
    *,
    replicas: int = 1,
    schedule: str = "1f1b",
) -> tuple[list[np.ndarray], dict[mg.Node, np.ndarray]]:
    """The graph's outputs and updates, as `interpreter.evaluate` gives them."""
    dealt = cut_batch(batch_size, max(parts, replicas))
    replicas = min(replicas, len(dealt))
    owns = stages_of(pipeline, is_replicated=replicas > 1)
    run = Run(feeds, batch_size, step, replicas)
    crew = []
    for replica in range(replicas):
        own_parts = parts_of(replica, replicas, dealt)
        tasks = _tasks(pipeline, len(own_parts), schedule)
        crew.append([LogicalStage(run, own, stage, replica, own_parts, tasks[stage]) for stage, own in enumerate(owns)])
    _let_compute([stage for row in crew for stage in row], run)
    return _outputs(pipeline.graph, crew), _updates(pipeline.graph, crew)


def _tasks(pipeline: Pipeline, parts: int, kind: str) -> list[dict[int, list[Task]]]:
    """For each stage its tasks by level."""
    sweeps = [pipeline.sweeps(stage) for stage in range(pipeline.stages)]
    result: list[dict[int, list[Task]]] = [{} for _ in sweeps]
    for level in {level for own in sweeps for level in own}:
        for own, tasks in zip(result, schedules(kind, [s.get(level, ()) for s in sweeps], parts), strict=True):
            own[level] = tasks
    return result


def _let_compute(crew: Sequence[LogicalStage], run: Run) -> None:
    """Each in turn as far as it can."""
    going = {stage: stage.compute() for stage in crew}
    done_before = -1
    while going:
        going = {stage: it for stage, it in going.items() if next(it, "done") != "done"}
        done = sum(len(stage.values) for stage in crew)
        assert done > done_before, "stages wait for each other for ever"
        done_before = done
    assert not run.letters


def _outputs(graph: mg.Graph, crew: Sequence[Sequence[LogicalStage]]) -> list[np.ndarray]:
    result: dict[int, np.ndarray] = {}
    for replicas in zip(*crew, strict=True):
        own = replicas[0].own
        for place, node in zip(own.outputs, own.graph.outputs, strict=False):
            if node in own.per_part:
                pieces = [stage.value(node, part) for stage in replicas for part in range(len(stage.parts))]
                result[place] = np.concatenate(pieces, node.type.batch_axes[0])
            else:
                result[place] = _same([stage.value(node) for stage in replicas])
    return [result[place] for place in range(len(graph.outputs))]


def _updates(graph: mg.Graph, crew: Sequence[Sequence[LogicalStage]]) -> dict[mg.Node, np.ndarray]:
    return {
        target: _same(
            [
                stage.value(stage.own.graph.updates[target])
                for row in crew
                for stage in row
                if target in stage.own.graph.updates
            ]
        )
        for target in graph.updates
    }


def _same(values: Sequence[np.ndarray]) -> np.ndarray:
    assert len({value.tobytes() for value in values}) == 1
    return values[0]


def sent_bytes(pipeline: Pipeline, batch_size: int) -> np.ndarray:
    """By sending and receiving stage."""
    result = np.zeros((pipeline.stages, pipeline.stages), int)
    for stage in range(pipeline.stages):
        for node in nodes_of(pipeline.stage(stage), "send"):
            (source,) = node.inputs
            result[stage, node.attributes["stage"]] += bind_type(source.type, batch_size).size_bytes
    return result


def check_per_part(pipeline: Pipeline) -> None:
    """What is computed for each part is what depends on the batch, until it is reduced."""
    names = {node.name: node for node in pipeline.graph.nodes}
    for own in stages_of(pipeline):
        for node in own.graph.nodes:
            if node.name in names and node.op is names[node.name].op:
                placement = pipeline.analysis.placements[names[node.name]]
                assert (node in own.per_part) == (not isinstance(placement, Replicated))


class ByStages(Reference):
    """An executor whose graphs are cut at fractions of their rows.

    Parameters
    ----------
    cuts : where a stage ends and the next begins, from 0 to 1
    parts : for each batch
    """

    def __init__(self, cuts: Sequence[float], parts: int = 3, **options) -> None:
        self.cuts, self.parts, self.options = cuts, parts, options
        self.is_reproducible = options.pop("is_reproducible", False)
        self.pipelines: list[Pipeline] = []

    def compile(self, graph, inputs, outputs, updates):
        self.require_open()
        check_inputs(graph, inputs)
        simple = simplify(graph)
        count = len(lay_out(simple, analyse_batch(simple)).items)
        bounds = [0, *(round(cut * count) for cut in self.cuts), count]
        self.pipelines.append(pipelined(simple, bounds, is_reproducible=self.is_reproducible))
        return ByStagesExecutable(self, simple, inputs, self.pipelines[-1])


class ByStagesExecutable(ReferenceExecutable):
    def __init__(self, executor, graph, inputs, pipeline) -> None:
        super().__init__(executor, graph, inputs)
        self.pipeline = pipeline

    def run(self, batches):
        owner = self.executor
        for batch in batches:
            checked = check_batch(self.inputs, batch)
            feeds = {node: np.empty(bind_shape(node.type.shape, checked.size), node.dtype) for node in self.inputs}
            for position, node in enumerate(self.inputs):
                checked.copy_to(position, feeds[node], slice(None) if node.type.batch_axes else None)
            outputs, updates = evaluate_by_stages(
                self.pipeline, feeds, checked.size, owner.parts, self.step, **owner.options
            )
            for target, value in updates.items():
                state.set(variable_of(target), value)
            self.step += 1
            yield outputs
