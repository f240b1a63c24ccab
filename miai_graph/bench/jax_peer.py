"""A side of the benchmark that trains with JAX: one compiled step, whose weights and slots are donated to the next one.

It runs in a Python of its own, which `exchange.start_command` starts.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from miai_graph.bench.exchange import Answer, Problem, serve
from miai_graph.bench.jax_models import forward_of
from miai_graph.bench.memory import begin_growth, growth_since

jax: Any = None
"""JAX, once `main` has imported it: it need not be installed where this file is only looked at."""

Rule = Callable[[Any, Any, tuple[Any, ...], Any], tuple[Any, tuple[Any, ...]]]
"""From a weight, its gradient, its slots and the step's number to the next weight and slots."""

MOVING = ("moving_mean", "moving_variance")


class JaxPeer:
    """Trains one workload in one process."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.problem = Problem.load(arguments.problem)
        self.forward = forward_of(arguments.workload)
        self.x, self.y = jax.device_put(self.problem.x), jax.device_put(self.problem.y.astype(np.int32))
        self.bytes_before: int | None = None
        self.batches = [jax.device_put(rows.astype(np.int32)) for rows in self.problem.rows]

    def ready(self) -> Answer:
        return {"versions": {"jax": jax.__version__}}

    def fresh(self) -> Answer:
        """Begin anew, with a first step, which is compiled."""
        if self.bytes_before is None:
            self.bytes_before = begin_growth()
        start = time.perf_counter()
        rule, slots = optimizer_rule(self.problem.optimizer, dict(self.problem.options))
        trained = {name: value for name, value in self.problem.weights.items() if not name.endswith(MOVING)}
        self.kept = {name: value for name, value in self.problem.weights.items() if name not in trained}
        self.weights_by_name = {name: jax.device_put(value.copy()) for name, value in trained.items()}
        self.slots = {
            name: tuple(jax.numpy.zeros_like(value) for _ in range(slots))
            for name, value in self.weights_by_name.items()
        }
        self.number = jax.numpy.zeros((), jax.numpy.int32)
        build_seconds = time.perf_counter() - start
        start = time.perf_counter()
        self.step = self._compiled(rule)
        self.order = itertools.cycle(self.batches)
        loss = self._step()
        return {
            "seconds": time.perf_counter() - start,
            "losses": [loss],
            "build_seconds": build_seconds,
            "threads": self.arguments.threads,
        }

    def steps(self, count: int) -> Answer:
        """Train for some steps, each timed."""
        seconds, losses = [], []
        for _ in range(count):
            start = time.perf_counter()
            losses.append(self._step())
            seconds.append(time.perf_counter() - start)
        return {"seconds": seconds, "losses": losses}

    def memory(self) -> Answer:
        """The bytes that the compiled step needs for what it computes, and by how many the process has grown."""
        grown = growth_since(self.bytes_before)
        arguments = (self._state(), self.x, self.y, self.batches[0])
        analysis = self.step.lower(*arguments).compile().memory_analysis()
        values = None if analysis is None else analysis.temp_size_in_bytes
        return {"values_bytes": values, "resident_bytes": grown}

    def weights(self, path: str) -> Answer:
        """Write the weights to a file."""
        values: dict[str, Any] = {name: np.asarray(value) for name, value in self.weights_by_name.items()}
        np.savez(path, **(values | self.kept))
        return {}

    def _step(self) -> float:
        after = self.step(self._state(), self.x, self.y, next(self.order))
        (self.weights_by_name, self.slots, self.number), loss = after
        return float(loss)

    def _state(self) -> tuple[Any, Any, Any]:
        return self.weights_by_name, self.slots, self.number

    def _compiled(self, rule: Rule) -> Any:
        def loss_of(weights: Any, x: Any, y: Any) -> Any:
            outputs = self.forward(jax, weights, x)
            scores = jax.nn.log_softmax(outputs.reshape(-1, outputs.shape[-1]))
            return -jax.numpy.take_along_axis(scores, y.reshape(-1, 1), 1).mean()

        def step(state: Any, x: Any, y: Any, rows: Any) -> Any:
            weights, slots, number = state
            number = number + 1
            loss, gradients = jax.value_and_grad(loss_of)(weights, x[rows], y[rows])
            moved = {name: rule(weights[name], gradients[name], slots[name], number) for name in weights}
            weights = {name: weight for name, (weight, _) in moved.items()}
            return (weights, {name: slot for name, (_, slot) in moved.items()}, number), loss

        return jax.jit(step, donate_argnums=0)


def optimizer_rule(name: str, options: dict[str, Any]) -> tuple[Rule, int]:
    """An optimizer as Keras defines it, and how many slots each weight has."""
    rate = options["learning_rate"]
    if name == "SGD":
        return sgd(rate, options.get("momentum", 0.0)), 1
    if name == "Adam":
        return adam(rate, options["epsilon"]), 2
    return rmsprop(rate, options["epsilon"]), 1


def sgd(rate: float, momentum: float) -> Rule:
    """Gradient descent with momentum, whose velocity is the slot."""

    def rule(weight: Any, gradient: Any, slots: tuple[Any, ...], _: Any) -> tuple[Any, tuple[Any, ...]]:
        velocity = momentum * slots[0] - rate * gradient
        return weight + velocity, (velocity,)

    return rule


def adam(rate: float, epsilon: float, beta_1: float = 0.9, beta_2: float = 0.999) -> Rule:
    """Adam (Kingma and Ba 2014, arXiv:1412.6980, algorithm 1); the slots are both moments."""

    def rule(weight: Any, gradient: Any, slots: tuple[Any, ...], number: Any) -> tuple[Any, tuple[Any, ...]]:
        first = slots[0] + (1 - beta_1) * (gradient - slots[0])
        second = slots[1] + (1 - beta_2) * (gradient * gradient - slots[1])
        root = jax.numpy.sqrt(second / (1 - beta_2**number))
        return weight - rate / (1 - beta_1**number) * first / (root + epsilon), (first, second)

    return rule


def rmsprop(rate: float, epsilon: float, rho: float = 0.9) -> Rule:
    """RMSprop, without momentum; the slot is the mean square."""

    def rule(weight: Any, gradient: Any, slots: tuple[Any, ...], _: Any) -> tuple[Any, tuple[Any, ...]]:
        square = rho * slots[0] + (1 - rho) * gradient * gradient
        return weight - rate * gradient * jax.lax.rsqrt(square + epsilon), (square,)

    return rule


def limit_threads(count: int) -> None:
    """Let XLA, which is not imported yet, use so many cores: as many threads as it finds of them."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
    elif count == 1:
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


def main() -> None:
    """Serve the orders of a benchmark."""
    global jax
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", required=True)
    parser.add_argument("--problem", required=True, type=Path)
    parser.add_argument("--threads", required=True, type=int)
    arguments = parser.parse_args()
    limit_threads(arguments.threads)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    jax = importlib.import_module("jax")
    peer = JaxPeer(arguments)
    serve(peer.ready, {order.__name__: order for order in (peer.fresh, peer.steps, peer.memory, peer.weights)})


if __name__ == "__main__":
    main()
