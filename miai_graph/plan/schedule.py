"""Pipeline schedules: in which order each stage computes the parts of a batch. Plain data, and a virtual clock for it.

A part goes through the stages in sweeps: upwards with the forward pass, downwards with the backward pass, and upwards
again where a graph's data goes to and fro more often. What a stage computes of one part in one sweep is a task. A
stage without a task in some sweep is passed by: where the last stage has its forward and backward pass in one task,
the stage below it gets its gradients from that one.

- ``gpipe``: all forward passes, then all backward passes, in the order of the parts. Each part's values are kept until
  its backward pass, so each stage keeps those of all parts.
- ``1f1b``: a few forward passes, then one backward for each forward pass, so that a stage keeps the values of no more
  parts than there are stages from it to the last.

Both are equally fast when sending takes no time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from miai_graph.errors import ArgumentError

FORWARD_SWEEP, BACKWARD_SWEEP = 0, 1

KINDS = ("gpipe", "1f1b")


@dataclass(frozen=True, order=True)
class Task:
    """What a stage computes without interruption.

    Attributes
    ----------
    sweep : even ones go up through the stages, odd ones down
    part : of the batch
    """

    sweep: int
    part: int


def schedules(kind: str, sweeps: Sequence[Collection[int]], parts: int, *, ahead: int = 0) -> list[list[Task]]:
    """The order of each stage's tasks.

    Parameters
    ----------
    kind : "gpipe" or "1f1b". More than two sweeps, on any stage, are computed one after another whatever it says
    sweeps : for each stage those in which it has something to do
    parts : the number of parts of the batch
    ahead : see `schedule`
    """
    _require_kind(kind)
    is_plain = all(_has_two_sweeps_at_most(own) for own in sweeps)
    return [
        schedule(kind if is_plain else "gpipe", stage, len(sweeps), parts, own, ahead=ahead)
        for stage, own in enumerate(sweeps)
    ]


def schedule(kind: str, stage: int, stages: int, parts: int, sweeps: Collection[int], *, ahead: int = 0) -> list[Task]:
    """The order of one stage's tasks.

    Stages that follow different kinds may wait for each other for ever. So where any stage of a graph has more than
    two sweeps all must follow "gpipe", as `schedules` sees to.

    Parameters
    ----------
    kind : "gpipe" or "1f1b"
    stage, stages : which stage, of how many
    parts : the number of parts of the batch
    sweeps : those in which this stage has something to do
    ahead : how many forward passes more "1f1b" computes on the first stage before the first backward pass, so that
        there is something to compute while values are sent. Later stages wait for fewer messages and do in proportion
        fewer, the last one none

    Raises
    ------
    ArgumentError
        for an unknown kind, or numbers out of range.
    """
    _require_kind(kind)
    if not 0 <= stage < stages or parts < 1 or ahead < 0:
        raise ArgumentError(
            "expected a stage below the number of stages, at least 1 part and at least 0 forward passes ahead; "
            f"found stage {stage} of {stages}, {parts} parts, {ahead} ahead"
        )
    if kind == "gpipe" or not _has_two_sweeps_at_most(sweeps) or len(sweeps) < 2:
        return [Task(sweep, part) for sweep in sorted(sweeps) for part in range(parts)]
    return _one_forward_one_backward(min(_warm_up(stage, stages, ahead), parts), parts)


def _require_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ArgumentError(f"expected one of the schedules {', '.join(KINDS)}; found {kind!r}")


def _has_two_sweeps_at_most(sweeps: Collection[int]) -> bool:
    return max(sweeps, default=FORWARD_SWEEP) <= BACKWARD_SWEEP


def _warm_up(stage: int, stages: int, ahead: int) -> int:
    """The number of forward passes before the one that the first backward pass follows."""
    above = stages - 1 - stage
    return above + math.ceil(ahead * above / max(1, stages - 1))


def _one_forward_one_backward(warm_up: int, parts: int) -> list[Task]:
    forward = [Task(FORWARD_SWEEP, part) for part in range(parts)]
    backward = [Task(BACKWARD_SWEEP, part) for part in range(parts)]
    alternating = [task for pair in zip(forward[warm_up:], backward, strict=False) for task in pair]
    return [*forward[:warm_up], *alternating, *backward[parts - warm_up :]]


def in_flight(tasks: Sequence[Task]) -> int:
    """The largest number of parts whose values a stage keeps at once: from a part's first task to its last."""
    last = {task.part: place for place, task in enumerate(tasks)}
    seen: set[int] = set()
    changes = []
    for place, task in enumerate(tasks):
        changes.append(0 if task.part in seen else 1)
        seen.add(task.part)
        if last[task.part] == place:
            changes.append(-1)
    return max(accumulate(changes), default=0)


def bubble(stages: int, parts: int) -> float:
    """The share of a step in which a stage has nothing to do, where all stages are equal and sending takes no time."""
    return (stages - 1) / (parts + stages - 1)


@dataclass(frozen=True)
class Simulation:
    """A step on a virtual clock.

    Attributes
    ----------
    starts, ends : for each stage, when each of its tasks starts and ends
    seconds : the step's duration
    bubbles : for each stage the share of the step in which it has nothing to do
    """

    starts: Sequence[Mapping[Task, float]]
    ends: Sequence[Mapping[Task, float]]
    seconds: float
    bubbles: Sequence[float]


def simulate(
    schedules: Sequence[Sequence[Task]], seconds: Callable[[int, Task], float], send_seconds: float = 0.0
) -> Simulation:
    """What a step with these schedules takes.

    Parameters
    ----------
    schedules : for each stage its tasks in the order in which it computes them
    seconds : what a stage takes for a task
    send_seconds : what a message takes from one stage to the next. Stages compute meanwhile; between two stages one
        message travels at a time in each direction

    Raises
    ------
    ArgumentError
        if a stage would wait for ever, or computes something twice.
    """
    return _VirtualClock(schedules, seconds, send_seconds).result()


class _VirtualClock:
    def __init__(
        self, schedules: Sequence[Sequence[Task]], seconds: Callable[[int, Task], float], send_seconds: float
    ) -> None:
        self._schedules = schedules
        self._seconds = seconds
        self._send_seconds = send_seconds
        self._next: dict[tuple[int, Task], tuple[int, Task]] = {}
        """The stage and task that waits for each stage's task."""
        self._arrivals: dict[tuple[int, Task], float] = {}
        """When what a stage's task waits for has arrived."""
        self._link_free: dict[tuple[int, int], float] = {}
        """When the last message from one stage to another has arrived."""
        self._starts: list[dict[Task, float]] = [{} for _ in schedules]
        self._ends: list[dict[Task, float]] = [{} for _ in schedules]
        for way in _ways(schedules):
            self._arrivals[way[0]] = 0
            self._next |= dict(pairwise(way))

    def result(self) -> Simulation:
        going = True
        while going:
            going = any(self._advance(stage) for stage in range(len(self._schedules)))
        self._require_all_done()
        end = max((last for ends in self._ends for last in ends.values()), default=0)
        return Simulation(self._starts, self._ends, end, [self._idle(stage, end) for stage in range(len(self._ends))])

    def _advance(self, stage: int) -> bool:
        """Compute all that can be computed on a stage now; whether there was anything."""
        tasks, ends = self._schedules[stage], self._ends[stage]
        before = len(ends)
        while len(ends) < len(tasks) and (stage, tasks[len(ends)]) in self._arrivals:
            self._compute(stage, tasks[len(ends)])
        return len(ends) > before

    def _compute(self, stage: int, task: Task) -> None:
        ends = self._ends[stage]
        if task in ends:
            raise ArgumentError(
                f"expected each task once; found part {task.part} of sweep {task.sweep} twice on stage {stage}"
            )
        is_free = next(reversed(ends.values()), 0)
        start = max(is_free, self._arrivals[stage, task])
        self._starts[stage][task] = start
        ends[task] = start + self._seconds(stage, task)
        if (stage, task) in self._next:
            target = self._next[stage, task]
            self._arrivals[target] = ends[task] if target[0] == stage else self._sent(stage, target[0], ends[task])

    def _sent(self, source: int, target: int, ready: float) -> float:
        """When a message that is ready at some time arrives."""
        start = max(ready, self._link_free.get((source, target), 0))
        self._link_free[source, target] = start + self._send_seconds
        return self._link_free[source, target]

    def _require_all_done(self) -> None:
        for stage, (tasks, ends) in enumerate(zip(self._schedules, self._ends, strict=True)):
            if len(ends) < len(tasks):
                task = tasks[len(ends)]
                raise ArgumentError(
                    "expected an order in which no stage waits for ever; found that stage "
                    f"{stage} does, for what it needs for part {task.part} of sweep {task.sweep}"
                )

    def _idle(self, stage: int, end: float) -> float:
        busy = sum(self._ends[stage][task] - start for task, start in self._starts[stage].items())
        return (end - busy) / end if end else 0.0


def _ways(schedules: Sequence[Sequence[Task]]) -> Iterator[list[tuple[int, Task]]]:
    """For each part its way through the stages: those that have a task for it, sweep by sweep, up and down."""
    places = [(stage, task) for stage, tasks in enumerate(schedules) for task in set(tasks)]
    by_part: dict[int, list[tuple[int, Task]]] = {}
    for stage, task in places:
        by_part.setdefault(task.part, []).append((stage, task))
    for way in by_part.values():
        yield sorted(way, key=_place_on_the_way)


def _place_on_the_way(place: tuple[int, Task]) -> tuple[int, int]:
    stage, task = place
    return task.sweep, stage if task.sweep % 2 == 0 else -stage


def choose_parts(stages: int, batch_size: int, stage_seconds: float, overhead_seconds: float) -> int:
    """The number of parts with which a step is fastest.

    With m parts and p stages a step takes (m + p - 1) times as long as a stage for a part. Many parts have a small
    bubble, few have little overhead; least is m = √((p - 1) · stage_seconds / overhead_seconds).

    Parameters
    ----------
    batch_size : the greatest number of parts
    stage_seconds : what the slowest stage takes for the whole batch, in all sweeps
    overhead_seconds : what each part costs besides, however small it is
    """
    if overhead_seconds <= 0:
        return batch_size if stages > 1 and stage_seconds > 0 else 1
    best = min(math.sqrt((stages - 1) * stage_seconds / overhead_seconds), batch_size)
    neighbours = [max(1, math.floor(best)), max(1, min(math.ceil(best), batch_size))]
    return min(neighbours, key=lambda parts: (parts + stages - 1) * (stage_seconds / parts + overhead_seconds))


def choose_ahead(stages: int, parts: int, stage_seconds: float, send_seconds: float) -> int:
    """How many forward passes ahead hide sending, in "1f1b".

    Between a part's forward pass on a stage and the arrival of its gradients there, compared with the stage above, lie
    one part's computing and two messages. Neither stage waits if the lower one starts as many parts more as fit into
    that time.

    Parameters
    ----------
    stage_seconds : what a stage takes for a part, in all sweeps
    send_seconds : what a part's message takes from a stage to the next
    """
    pace = max(stage_seconds, send_seconds)
    if send_seconds <= 0:
        return 0
    more_a_stage = math.ceil(round((stage_seconds + 2 * send_seconds) / pace, 6)) - 1
    return (stages - 1) * min(more_a_stage, parts - 1)
