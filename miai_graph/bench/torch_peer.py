"""A side of the benchmark that trains with PyTorch: eager or compiled in one process, or DDP over gloo in several.

It runs in a Python of its own, which `exchange.start_command` starts. With several processes that are not told where to
meet, the first one starts the others, and passes on each order that it is given. As usual in DDP, each takes its own
statistics for batch normalization, so networks with it compute something else there than in one process.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from miai_graph.bench.exchange import Answer, Problem, serve, start_command
from miai_graph.bench.memory import begin_growth, growth_since
from miai_graph.bench.torch_models import forward_of, from_torch, make_module

torch: Any = None
"""PyTorch, once `main` has imported it: it need not be installed where this file is only looked at."""


class TorchPeer:
    """Trains one workload, in one process or as the one of `rank` among several."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.problem = Problem.load(arguments.problem)
        self.count, self.rank = arguments.processes, arguments.rank
        batch = self.problem.rows.shape[1]
        if batch % self.count:
            raise ValueError(f"expected a batch that {self.count} processes can share evenly; found {batch}")
        share = batch // self.count
        rows = self.problem.rows[:, self.rank * share : (self.rank + 1) * share]
        self.batches = [torch.from_numpy(np.ascontiguousarray(numbers)) for numbers in rows]
        self.x, self.y = torch.from_numpy(self.problem.x), torch.from_numpy(self.problem.y)
        self.followers: list[subprocess.Popen[str]] = []
        self.joined = False
        self.bytes_before: int | None = None

    def ready(self) -> Answer:
        return {"versions": {"torch": torch.__version__}}

    def fresh(self) -> Answer:
        """Begin anew, with a first step: its time includes starting other processes, if they do not run yet."""
        start = time.perf_counter()
        module = make_module(torch, forward_of(self.arguments.workload), self.problem.weights)
        build_seconds = time.perf_counter() - start
        if self.bytes_before is None:
            self.bytes_before = begin_growth()
        start = time.perf_counter()
        if self.count > 1 and self.arguments.meeting is None:
            self._start_followers()
        self._tell("fresh")
        if self.count > 1 and not self.joined:
            self._join()
        self.network = module
        self.module = self._distributed(module) if self.count > 1 else module
        if self.arguments.compile:
            self.module = torch.compile(module)
        self.optimizer = self._make_optimizer()
        self.order = itertools.cycle(self.batches)
        (loss,) = self._losses([self._step(*self._batch())])
        return {
            "seconds": time.perf_counter() - start,
            "losses": [loss],
            "build_seconds": build_seconds,
            "threads": self.arguments.threads * self.count,
        }

    def steps(self, count: int) -> Answer:
        """Train for some steps, each timed."""
        self._tell("steps", count=count)
        seconds, losses = [], []
        for _ in range(count):
            start = time.perf_counter()
            losses.append(self._step(*self._batch()))
            seconds.append(time.perf_counter() - start)
        return {"seconds": seconds, "losses": self._losses(losses)}

    def memory(self) -> Answer:
        """The most bytes that a step allocates at a time, for more than its batch, and by how many the processes have
        grown."""
        self._tell("memory")
        grown = growth_since(self.bytes_before)
        batch = self._batch()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            self._step(*batch)
        events = profile.profiler.kineto_results.events()
        balance = itertools.accumulate(event.nbytes() for event in events if event.name() == "[memory]")
        found = [max(balance, default=0), -1 if grown is None else grown]
        if self.count > 1:
            total = torch.tensor(found)
            torch.distributed.all_reduce(total)
            found = total.tolist()
        return {"values_bytes": found[0], "resident_bytes": None if grown is None else found[1]}

    def weights(self, path: str) -> Answer:
        """Write the weights to a file."""
        values: dict[str, Any] = {name: from_torch(name, value) for name, value in self.network.by_name.items()}
        np.savez(path, **values)
        return {}

    def _batch(self) -> tuple[Any, Any]:
        rows = next(self.order)
        return self.x[rows], self.y[rows]

    def _step(self, x: Any, labels: Any) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        outputs = self.module(x)
        loss = torch.nn.functional.cross_entropy(outputs.flatten(0, -2), labels.flatten())
        loss.backward()
        self.optimizer.step()
        return float(loss)

    def _losses(self, own: list[float]) -> list[float]:
        """The losses of whole batches, from those of this process's share."""
        if self.count == 1:
            return own
        total = torch.tensor(own)
        torch.distributed.all_reduce(total)
        return [float(loss) for loss in total / self.count]

    def _make_optimizer(self) -> Any:
        options = dict(self.problem.options)
        rate = options.pop("learning_rate")
        epsilon = options.pop("epsilon", None)
        parameters = self.network.parameters()
        if self.problem.optimizer == "SGD":
            return torch.optim.SGD(parameters, lr=rate, fused=True, **options)
        if self.problem.optimizer == "Adam":
            return torch.optim.Adam(parameters, lr=rate, eps=epsilon, fused=True)
        # Our epsilon is below the root. On CPUs a loop is faster than foreach, and nothing is fused.
        return torch.optim.RMSprop(parameters, lr=rate, alpha=0.9, eps=epsilon**0.5, foreach=False)

    def _distributed(self, module: Any) -> Any:
        return torch.nn.parallel.DistributedDataParallel(
            module, broadcast_buffers=False, gradient_as_bucket_view=True, static_graph=True
        )

    def _join(self) -> None:
        """Find the other processes."""
        self.joined = True
        # Otherwise gloo asks for the address of the machine's name, which not every machine knows.
        loopback = {"linux": "lo", "darwin": "lo0"}.get(sys.platform)
        if loopback:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
        torch.distributed.init_process_group(
            "gloo", init_method=Path(self.arguments.meeting).as_uri(), rank=self.rank, world_size=self.count
        )

    def _start_followers(self) -> None:
        given = self.arguments
        given.meeting = str(given.problem.with_name(f"meeting_{os.getpid()}"))
        for rank in range(1, self.count):
            command = start_command(
                sys.executable,
                "miai_graph.bench.torch_peer",
                *("--workload", given.workload, "--problem", str(given.problem), "--threads", str(given.threads)),
                *("--processes", str(self.count), "--rank", str(rank), "--meeting", given.meeting),
            )
            follower = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
            self.followers.append(follower)

    def _tell(self, order: str, **arguments: Any) -> None:
        for follower in self.followers:
            assert follower.stdin is not None
            follower.stdin.write(json.dumps({order: arguments}) + "\n")
            follower.stdin.flush()

    def close(self) -> None:
        """Let the other processes end, and wait for them."""
        for follower in self.followers:
            assert follower.stdin is not None
            follower.stdin.close()
        for follower in self.followers:
            follower.wait()
        if self.joined:
            torch.distributed.destroy_process_group()


@contextlib.contextmanager
def _peer(arguments: argparse.Namespace) -> Iterator[TorchPeer]:
    peer = TorchPeer(arguments)
    try:
        yield peer
    finally:
        peer.close()


def main() -> None:
    """Serve the orders of a benchmark."""
    global torch
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", required=True)
    parser.add_argument("--problem", required=True, type=Path)
    parser.add_argument("--threads", required=True, type=int)
    parser.add_argument("--processes", default=1, type=int)
    parser.add_argument("--rank", default=0, type=int)
    parser.add_argument("--compile", action="store_true", help="compile the forward and backward pass")
    parser.add_argument("--meeting", help="a file that does not exist yet, the same for all processes")
    arguments = parser.parse_args()
    torch = importlib.import_module("torch")
    torch.set_num_threads(arguments.threads)
    with _peer(arguments) as peer:
        serve(peer.ready, {order.__name__: order for order in (peer.fresh, peer.steps, peer.memory, peer.weights)})


if __name__ == "__main__":
    main()
