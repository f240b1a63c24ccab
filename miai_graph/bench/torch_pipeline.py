"""A side of the benchmark on hosts that trains a network of dense layers as a pipeline, with PyTorch over gloo.

There is one such process a stage, each in a Python of its own that `exchange.start_command` starts. All are given the
same orders at the same time.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from miai_graph.bench.exchange import Answer, Problem, serve
from miai_graph.bench.torch_models import dense, make_module

torch: Any = None
pipelining: Any = None
"""PyTorch and a part of it, once `main` has imported them: they need not be installed where this is only looked at."""

SCHEDULES = {"1f1b": "Schedule1F1B", "gpipe": "ScheduleGPipe"}
COMPUTING = ("forward_one_chunk", "backward_one_chunk", "scale_grads")
"""The methods of a stage of PyTorch that compute; others send and receive."""


class TorchStage:
    """The stage of `rank`, with an equal share of the layers."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.problem = Problem.load(arguments.problem)
        if self.problem.optimizer != "SGD":
            raise ValueError(f"expected plain SGD; found {self.problem.optimizer}")
        self.is_first, self.is_last = arguments.rank == 0, arguments.rank == arguments.stages - 1
        self.x, self.y = torch.from_numpy(self.problem.x), torch.from_numpy(self.problem.y)
        self.order = itertools.cycle(torch.from_numpy(self.problem.rows))
        self.joined = False
        self.computed = 0.0

    def ready(self) -> Answer:
        return {"versions": {"torch": torch.__version__}}

    def fresh(self) -> Answer:
        """Begin with the problem's weights, with a first step: its time includes meeting the other stages."""
        start = time.perf_counter()
        self._join()
        module, optimizer = self._make()
        given = self.arguments
        stage = pipelining.PipelineStage(module, given.rank, given.stages, torch.device("cpu"))
        for name in COMPUTING:
            setattr(stage, name, self._timed(getattr(stage, name)))
        schedule = getattr(pipelining, SCHEDULES[given.schedule])
        self.schedule = schedule(stage, given.micro_batches, self._timed(torch.nn.functional.cross_entropy))
        self.optimizer = optimizer
        self.update = self._timed(self._update)
        losses = self._step()
        return {"seconds": time.perf_counter() - start, "losses": losses}

    def steps(self, count: int) -> Answer:
        """Train for some steps, each timed; the last stage also tells the losses."""
        seconds, losses = [], []
        for _ in range(count):
            start = time.perf_counter()
            losses += self._step()
            seconds.append(time.perf_counter() - start)
        return {"seconds": seconds, "losses": losses}

    def compute(self, count: int) -> Answer:
        """Train for some steps; the seconds that this stage computes in each of them."""
        seconds = []
        for _ in range(count):
            before = self.computed
            self._step()
            seconds.append(self.computed - before)
        return {"stages": [seconds]}

    def close(self) -> None:
        if self.joined:
            torch.distributed.destroy_process_group()

    def _make(self) -> tuple[Any, Any]:
        """This stage's layers, and their optimizer."""
        share = count_layers(self.problem.weights) // self.arguments.stages
        places = range(self.arguments.rank * share, (self.arguments.rank + 1) * share)
        weights = {name: value for name, value in self.problem.weights.items() if place_of(name) in places}

        def forward(torch: Any, w: Any, x: Any) -> Any:
            for place in places:
                x = dense(torch, w, f"dense_{place}", x)
                if not (self.is_last and place == places[-1]):
                    x = torch.relu(x)
            return x

        module = make_module(torch, forward, weights)
        return module, torch.optim.SGD(module.parameters(), self.problem.options["learning_rate"], fused=True)

    def _step(self) -> list[float]:
        rows = next(self.order)
        inputs = [self.x[rows]] if self.is_first else []
        targets = {"target": self.y[rows]} if self.is_last else {}
        losses: list[Any] = []
        self.schedule.step(*inputs, **targets, losses=losses, return_outputs=False)
        self.update()
        return [float(sum(losses) / len(losses))] if losses else []

    def _update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose time counts as computing."""

        @functools.wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments, **options)
            self.computed += time.perf_counter() - start
            return result

        return timed

    def _join(self) -> None:
        """Find the other stages."""
        if not self.joined:
            given = self.arguments
            where = Path(given.meeting).as_uri()
            torch.distributed.init_process_group("gloo", where, rank=given.rank, world_size=given.stages)
            self.joined = True


def place_of(name: str) -> int:
    """The layer of a weight such as ``dense_3/kernel``."""
    return int(name.partition("/")[0].removeprefix("dense_"))


def count_layers(weights: Any) -> int:
    return len({place_of(name) for name in weights})


def main() -> None:
    """Serve the orders of a benchmark."""
    global torch, pipelining
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problem", required=True, type=Path)
    parser.add_argument("--meeting", required=True, help="a file that does not exist yet, the same for all stages")
    parser.add_argument("--rank", required=True, type=int)
    parser.add_argument("--stages", required=True, type=int)
    parser.add_argument("--micro-batches", required=True, type=int)
    parser.add_argument("--schedule", required=True, choices=SCHEDULES)
    parser.add_argument("--threads", default=1, type=int)
    arguments = parser.parse_args()
    torch = importlib.import_module("torch")
    pipelining = importlib.import_module("torch.distributed.pipelining")
    torch.set_num_threads(arguments.threads)
    stage = TorchStage(arguments)
    try:
        serve(stage.ready, {"fresh": stage.fresh, "steps": stage.steps, "compute": stage.compute})
    finally:
        stage.close()


if __name__ == "__main__":
    main()
