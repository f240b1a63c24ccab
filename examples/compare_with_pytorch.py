"""How long a training step of a small network takes here, and in PyTorch if it is installed.

The workload is digits_mlp: 64-128-10 with ReLU, batch 32, SGD with momentum, float32. Each side runs in a process of
its own, with the same number of threads, in turns; the medians of all rounds are compared. Losses after the same number
of steps from the same weights are printed too: they show that both do the same work.

    python examples/compare_with_pytorch.py --rounds 5
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

WARMUP_STEPS = 200
CHECKED_STEPS = 20


def make_data() -> dict[str, np.ndarray]:
    """The batch and the first weights, the same for both sides."""
    rng = np.random.default_rng(0)
    return {
        "x": rng.random((32, 64), np.float32),
        "y": rng.integers(0, 10, 32),
        "w1": (rng.standard_normal((64, 128)) * 0.1).astype(np.float32),
        "w2": (rng.standard_normal((128, 10)) * 0.1).astype(np.float32),
    }


def miai_graph_step(data: dict[str, np.ndarray]) -> Callable[[], float]:
    """A function that does one step and returns the loss before it."""
    import miai_graph as mg
    from miai_graph import losses

    x = mg.input("x", (None, 64))
    y = mg.input("y", (None,), "int64")
    w1, w2 = mg.parameter(data["w1"], "w1"), mg.parameter(data["w2"], "w2")
    b1, b2 = mg.parameter(np.zeros(128, np.float32), "b1"), mg.parameter(np.zeros(10, np.float32), "b2")
    logits = mg.relu(x @ w1 + b1) @ w2 + b2
    loss = mg.mean(losses.sparse_categorical_crossentropy(y, logits, from_logits=True))
    parameters = [w1, b1, w2, b2]
    updates = {}
    for parameter, gradient in zip(parameters, mg.grad(loss, parameters), strict=True):
        velocity = mg.variable(np.zeros(parameter.shape, np.float32), f"velocity_{parameter.name}")
        updates[velocity] = 0.9 * velocity - 0.01 * gradient
        updates[parameter] = parameter + updates[velocity]
    step = mg.function([x, y], [loss], updates)
    return lambda: float(step(data["x"], data["y"])[0])


def pytorch_step(data: dict[str, np.ndarray]) -> Callable[[], float]:
    """The same in PyTorch, eager."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    with torch.no_grad():
        for layer, name in ((model[0], "w1"), (model[2], "w2")):
            layer.weight.copy_(torch.from_numpy(data[name].T.copy()))
            layer.bias.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, foreach=True)
    x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


SIDES = {"miai_graph": miai_graph_step, "PyTorch": pytorch_step}


def measure(side: str, seconds: float) -> dict[str, float]:
    """Milliseconds a step, and the loss after some steps."""
    step = SIDES[side](make_data())
    for _ in range(CHECKED_STEPS):
        loss = step()
    for _ in range(WARMUP_STEPS):
        step()
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return {"median_ms": statistics.median(times) * 1e3, "best_ms": min(times) * 1e3, "loss": loss}


def compare(rounds: int, seconds: float, threads: int) -> None:
    """Run the sides in turns and print what was found."""
    sides = [side for side in SIDES if side != "PyTorch" or importlib.util.find_spec("torch")]
    environment = os.environ | {
        name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    }
    results: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            command = [sys.executable, __file__, "--side", side, "--seconds", str(seconds)]
            finished = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            results[side].append(json.loads(finished.stdout))
    for side, runs in results.items():
        median = statistics.median(run["median_ms"] for run in runs)
        best = min(run["best_ms"] for run in runs)
        print(f"{side:<12} {median:.3f} ms a step (best {best:.3f}), loss {runs[0]['loss']:.6f}, {threads} thread(s)")
    if len(sides) == 2:
        ratios = [
            b["median_ms"] / a["median_ms"] for a, b in zip(results["miai_graph"], results["PyTorch"], strict=True)
        ]
        print(f"miai_graph takes 1 / {statistics.median(ratios):.1f} of PyTorch's time (median of {rounds} rounds)")
    else:
        print("PyTorch is not installed: pip install torch, to compare")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of measuring, for each side and round")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(arguments.side, arguments.seconds)))
    else:
        compare(arguments.rounds, arguments.seconds, arguments.threads)


if __name__ == "__main__":
    main()
