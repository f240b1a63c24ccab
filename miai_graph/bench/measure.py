"""Measuring: starts the sides of one workload, lets them run in turns, and sees whether they did the same."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Timer
from types import TracebackType
from typing import Any, Self

import numpy as np

from miai_graph.bench.exchange import Answer, Array, start_command
from miai_graph.bench.results import Row, SideResult
from miai_graph.bench.specs import SideSpec
from miai_graph.bench.workloads import workload
from miai_graph.cores import usable_cores
from miai_graph.errors import ExecutionError

CHECKED_STEPS = 20
EMPTY_STEPS = 2000
LEAST_STEPS, MOST_STEPS = 3, 20_000
PATIENCE_SECONDS = 120.0
CLOSING_SECONDS = 3.0
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")

Tell = Callable[[str], None]


class Side:
    """A process that trains one workload, and does what it is ordered.

    Parameters
    ----------
    problem : the file of the `Problem` that it starts from
    python : which runs it
    """

    def __init__(self, spec: SideSpec, workload_name: str, problem: Path, python: str) -> None:
        self.spec = spec
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (`close` closes it)
        arguments = ["--workload", workload_name, "--problem", str(problem)]
        environment = dict(os.environ)
        if spec.is_peer:
            module, processes = "miai_graph.bench.torch_peer", spec.options.get("processes", 2)
            distributed = spec.name == "torch-ddp"
            threads = spec.options.get("threads", 1 if distributed else usable_cores())
            arguments += ["--threads", str(threads), "--processes", str(processes if distributed else 1)]
            environment |= dict.fromkeys(THREAD_VARIABLES, str(threads))
        else:
            module = "miai_graph.bench.own_side"
            arguments += ["--executor", spec.name, "--options", json.dumps(dict(spec.options))]
        self._process = subprocess.Popen(
            start_command(python, module, *arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            encoding="utf-8",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def order(self, name: str, **arguments: Any) -> Answer:
        """Have it do something, and wait for its answer; ExecutionError if there is none, or it tells a problem."""
        assert self._process.stdin is not None
        with suppress(OSError):  # It may have ended, of which `answer` tells the reason.
            self._process.stdin.write(json.dumps({name: arguments}) + "\n")
            self._process.stdin.flush()
        return self.answer()

    def answer(self) -> Answer:
        """The next answer; errors as for `order`."""
        assert self._process.stdout is not None
        watchdog = Timer(PATIENCE_SECONDS, self._process.kill)
        watchdog.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watchdog.cancel()
            watchdog.join()
        if not line:
            raise ExecutionError(
                f"expected an answer of side {self.spec.text!r}; found that it ended. {self._last_words()}"
            )
        answer: Answer = json.loads(line)
        if "problem" in answer:
            raise ExecutionError(answer["problem"])
        return answer

    def _last_words(self) -> str:
        self._process.wait()
        self._log.seek(0)
        lines = [line.strip() for line in self._log if line.strip()]
        return lines[-1] if lines else f"Its exit code is {self._process.returncode}"

    def dismiss(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        with suppress(OSError):  # It may have ended already.
            self._process.stdin.close()

    def close(self) -> None:
        """End it; without mercy if it does not end by itself."""
        assert self._process.stdout is not None
        self.dismiss()
        try:
            self._process.wait(CLOSING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()


def measure_row(
    name: str, batch: int, specs: Sequence[SideSpec], rounds: int, seconds: float, peer_python: str, tell: Tell
) -> Row:
    """Measure a workload at a batch size on all sides.

    Parameters
    ----------
    rounds, seconds : how often each side has its turn, and for how long
    peer_python : which runs the peers
    tell : called with what is being done
    """
    results = [SideResult(spec.text) for spec in specs]
    with tempfile.TemporaryDirectory(prefix="miai_bench_") as temporary, ExitStack() as stack:
        folder = Path(temporary)
        problem = workload(name).problem(batch)
        path = folder / "problem.npz"
        problem.save(path)
        # All at once: they only import until they have answered.
        sides = [
            stack.enter_context(Side(spec, name, path, peer_python if spec.is_peer else sys.executable))
            for spec in specs
        ]
        places = (folder / str(place) for place in range(len(sides)))
        turns = [_Turn(*parts) for parts in zip(sides, results, places, strict=True)]
        for doing in (_Turn.begin, _Turn.train):
            for turn in turns:
                tell(f"{turn.result.side}: first steps")
                turn.attempt(doing)
        _compare(turns, problem.weights)
        for number in range(rounds):
            # To and fro, so that none always comes after the same other.
            for turn in turns if number % 2 == 0 else turns[::-1]:
                tell(f"{turn.result.side}: round {number + 1} of {rounds}")
                turn.attempt(lambda turn: turn.measure(seconds))
        for turn in turns:
            turn.attempt(_Turn.measure_empty)
        for side in sides:
            side.dismiss()
    return Row(name, batch, results)


class _Turn:
    """A side, and what was found of it. A side with a problem has no more turns."""

    def __init__(self, side: Side, result: SideResult, folder: Path) -> None:
        folder.mkdir()
        self.side = side
        self.result = result
        self.weights = (folder / "after_first.npz", folder / "after_all.npz")
        self._seconds_a_step = 0.0

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

    def train(self) -> None:
        """The first steps of a first model, and then of another, whose losses and weights are kept."""
        self.result.first_cold = self.side.order("fresh")["seconds"]
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

    def measure_empty(self) -> None:
        if not self.side.spec.is_peer:
            self.result.empty = statistics.median(self.side.order("empty", count=EMPTY_STEPS)["seconds"])


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
