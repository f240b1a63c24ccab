"""Measuring: starts the sides of one workload, lets them run in turns, and sees whether they did the same."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from miai_graph.bench.exchange import Array, start_command
from miai_graph.bench.limits import Work, measure_peaks
from miai_graph.bench.partner import THREAD_VARIABLES, Partner
from miai_graph.bench.results import CHECKED_STEPS, Row, SideResult
from miai_graph.bench.specs import SideSpec
from miai_graph.bench.workloads import workload
from miai_graph.cores import usable_cores
from miai_graph.errors import ExecutionError

EMPTY_STEPS = 2000
MEMORY_STEPS = 5
LEAST_STEPS, MOST_STEPS = 3, 20_000

Tell = Callable[[str], None]


def start_side(spec: SideSpec, workload_name: str, problem: Path, python: str) -> Partner:
    """Start a process that trains one workload.

    Parameters
    ----------
    problem : the file of the `Problem` that it starts from
    python : which runs it
    """
    arguments = ["--workload", workload_name, "--problem", str(problem)]
    environment: dict[str, str] = {}
    if spec.is_peer:
        distributed = spec.name == "torch-ddp"
        threads = spec.options.get("threads", 1 if distributed else usable_cores())
        environment = dict.fromkeys(THREAD_VARIABLES, str(threads))
        arguments += ["--threads", str(threads)]
        module = "miai_graph.bench.jax_peer" if spec.library == "jax" else "miai_graph.bench.torch_peer"
        if distributed:
            arguments += ["--processes", str(spec.options.get("processes", 2))]
        elif spec.name == "torch-compile":
            arguments += ["--compile"]
    else:
        module = "miai_graph.bench.own_side"
        arguments += ["--executor", spec.name, "--options", json.dumps(dict(spec.options))]
    return Partner(f"side {spec.text!r}", start_command(python, module, *arguments), environment)


def measure_row(
    name: str,
    batch: int,
    specs: Sequence[SideSpec],
    rounds: int,
    seconds: float,
    peer_python: str,
    tell: Tell,
    *,
    with_memory: bool = True,
    with_ops: bool = False,
) -> Row:
    """Measure a workload at a batch size on all sides.

    Parameters
    ----------
    rounds, seconds : how often each side has its turn, and for how long
    peer_python : which runs the peers
    tell : called with what is being done
    with_memory : whether to find out what memory each side takes
    with_ops : whether to ask ours where the time went
    """
    results = [SideResult(spec.text) for spec in specs]
    with tempfile.TemporaryDirectory(prefix="miai_bench_") as temporary, ExitStack() as stack:
        folder = Path(temporary)
        problem = workload(name).problem(batch)
        path = folder / "problem.npz"
        problem.save(path)
        # All at once: they only import until they have answered.
        sides = [
            stack.enter_context(start_side(spec, name, path, peer_python if spec.is_peer else sys.executable))
            for spec in specs
        ]
        places = (folder / str(place) for place in range(len(sides)))
        turns = [_Turn(*parts) for parts in zip(specs, sides, results, places, strict=True)]
        checks = (_Turn.begin_cold, _Turn.measure_memory) if with_memory else (_Turn.begin_cold,)
        for doing in (_Turn.begin, *checks, _Turn.train):
            for turn in turns:
                tell(f"{turn.result.side}: first steps")
                turn.attempt(doing)
        _compare(turns, problem.weights)
        row = Row(name, batch, results, _work(turns))
        for number in range(rounds):
            # To and fro, so that none always comes after the same other.
            for turn in turns if number % 2 == 0 else turns[::-1]:
                tell(f"{turn.result.side}: round {number + 1} of {rounds}")
                turn.attempt(lambda turn: turn.measure(seconds))
            tell("limits")
            _measure_peaks(row)
        for turn in turns:
            turn.attempt(_Turn.measure_empty)
            if with_ops:
                turn.attempt(_Turn.ask_for_ops)
        for side in sides:
            side.dismiss()
    return row


class _Turn:
    """A side, and what was found of it. A side with a problem has no more turns."""

    def __init__(self, spec: SideSpec, side: Partner, result: SideResult, folder: Path) -> None:
        folder.mkdir()
        self.spec = spec
        self.side = side
        self.result = result
        self.weights = (folder / "after_first.npz", folder / "after_all.npz")
        self._seconds_a_step = 0.0
        self.work: Work | None = None

    def attempt(self, doing: Callable[[_Turn], None]) -> None:
        if self.result.problem is not None:
            return
        try:
            doing(self)
        except ExecutionError as error:
            self.result.problem = str(error)
            self.result.medians, self.result.bests = [], []

    def begin(self) -> None:
        self.result.versions = self.side.answer()["versions"]

    def begin_cold(self) -> None:
        """The first step of a first model."""
        first = self.side.order("fresh")
        self.result.first_cold, self.result.threads = first["seconds"], first["threads"]
        self.result.build = first["build_seconds"]
        self.work = Work(**first["work"]) if "work" in first else None

    def measure_memory(self) -> None:
        """What some more steps take, while there is no other model yet."""
        self.side.order("steps", count=MEMORY_STEPS)
        found = self.side.order("memory")
        self.result.values_bytes, self.result.resident_bytes = found["values_bytes"], found["resident_bytes"]

    def train(self) -> None:
        """The first steps of another model, whose losses and weights are kept."""
        first = self.side.order("fresh")
        self.result.first_warm = first["seconds"]
        self.side.order("weights", path=str(self.weights[0]))
        rest = self.side.order("steps", count=CHECKED_STEPS - 1)
        self.result.losses = [*first["losses"], *rest["losses"]]
        self.side.order("weights", path=str(self.weights[1]))
        self._seconds_a_step = statistics.fmean(rest["seconds"])

    def measure(self, seconds: float) -> None:
        count = min(max(round(seconds / self._seconds_a_step), LEAST_STEPS), MOST_STEPS)
        found = self.side.order("steps", count=count)["seconds"]
        # The mean, for on a busy machine a few steps may take most of the time.
        self._seconds_a_step = statistics.fmean(found)
        self.result.medians.append(statistics.median(found))
        self.result.bests.append(min(found))

    def ask_for_ops(self) -> None:
        """Where the time of the steps went."""
        if not self.spec.is_peer:
            self.result.ops = self.side.order("ops")["table"]

    def measure_empty(self) -> None:
        if not self.spec.is_peer:
            self.result.empty = statistics.median(self.side.order("empty", count=EMPTY_STEPS)["seconds"])


def _work(turns: Sequence[_Turn]) -> Work | None:
    """What one of ours found, which is the same on all sides."""
    return next((turn.work for turn in turns if turn.work is not None), None)


def _measure_peaks(row: Row) -> None:
    """Measure what each number of threads can do, and keep the best seen."""
    for threads in {side.threads for side in row.sides if side.threads is not None and side.problem is None}:
        found = measure_peaks(threads)
        row.peaks[threads] = found.best(row.peaks.get(threads, found))


def _compare(turns: Sequence[_Turn], before: Mapping[str, Array]) -> None:
    """Hold losses and weights of all sides against those of the first one; `before` are the weights at the start."""
    if turns[0].result.problem is not None:
        return
    losses = np.array(turns[0].result.losses)
    after_first, after_all = (_trained(path, before) for path in turns[0].weights)
    change = np.linalg.norm(after_first - _flat(before))
    for turn in turns:
        if turn.result.problem is None:
            own_after_first, own_after_all = (_trained(path, before) for path in turn.weights)
            own_losses = np.array(turn.result.losses)
            turn.result.loss_difference = float((np.abs(own_losses - losses) / np.abs(losses)).max())
            turn.result.weight_difference = float(np.abs(own_after_all - after_all).max())
            turn.result.change_difference = float(np.linalg.norm(own_after_first - after_first) / change)


def _trained(path: Path, before: Mapping[str, Array]) -> Array:
    with np.load(path) as file:
        return _flat({name: file[name] for name in before})


def _flat(weights: Mapping[str, Array]) -> Array:
    """All numbers in one row, without moving averages: no step depends on them, and libraries differ in them."""
    return np.concatenate([value.ravel() for name, value in weights.items() if "moving_" not in name])
