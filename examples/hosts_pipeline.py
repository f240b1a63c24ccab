"""A pipeline over hosts: a deep network cut into stages, the same result as on one, and a picture of the last step.

python examples/hosts_pipeline.py                        hosts are processes of this machine
python examples/hosts_pipeline.py --address 192.168.0.4  those of a cluster (miai-graph cluster start)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np

import miai_graph as mg
from miai_graph import layers, losses
from miai_graph.executor import Executor
from miai_graph.timing import Timing

matplotlib.use("agg")
from matplotlib import pyplot as plt

WIDTH, LAYERS, CLASSES = 512, 8, 10
COLOURS = {
    "forward": "#1f6fb5",
    "backward": "#b85c00",
    "update": "#00795c",
    "communication": "#b3261e",
    "wait": "#eceff2",
}


def train(executor: Executor, steps: int, batch_size: int) -> tuple[list[np.ndarray], Timing]:
    """The weights after some steps, always from the same seed, and where the time went."""
    mg.set_seed(0)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((steps * batch_size, WIDTH)).astype("float32")
    y = rng.integers(0, CLASSES, len(x))
    hidden = [layers.Dense(WIDTH, activation="relu") for _ in range(LAYERS)]
    model = mg.Sequential([layers.Input((WIDTH,)), *hidden, layers.Dense(CLASSES)])
    model.compile("sgd", losses.SparseCategoricalCrossentropy(from_logits=True), executor=executor)
    history = model.fit(x, y, batch_size=batch_size, epochs=1, verbose=0)
    return model.get_weights(), history.timing


def draw(timing: Timing, file: Path) -> None:
    """The last step: a lane a host, and what it did when."""
    figure, axes = plt.subplots(figsize=(10, 1.2 + 0.7 * len({s.worker for s in timing.slices})), layout="constrained")
    for phase, colour in COLOURS.items():
        for worker in sorted({part.worker for part in timing.slices}):
            spans = [
                (1e3 * part.start_seconds, 1e3 * part.seconds)
                for part in timing.slices
                if part.worker == worker and part.phase == phase
            ]
            axes.broken_barh(spans, (worker - 0.4, 0.8), color=colour, label=phase if worker == 0 else None)
    workers = sorted({(part.worker, part.stage) for part in timing.slices})
    axes.set_yticks([worker for worker, _ in workers], [f"host {worker}, stage {stage}" for worker, stage in workers])
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds since the step began")
    axes.legend(ncols=len(COLOURS), loc="upper center", bbox_to_anchor=(0.5, -0.35), frameon=False)
    figure.savefig(file, dpi=120)


def main(address: str | None, stages: int, steps: int, batch_size: int, picture: Path) -> None:
    with mg.executor("serial", threads=1) as serial:
        expected, _ = train(serial, steps, batch_size)
    with mg.executor("hosts", address=address, stages=stages, micro_batches=8) as hosts:
        found, timing = train(hosts, steps, batch_size)
    timing.table(by="phase")
    draw(timing, picture)
    largest = max(float(np.abs(a - b).max()) for a, b in zip(expected, found, strict=True))
    print(f"The last step is drawn in {picture}.")
    print(f"The weights differ from those of one process by {largest:.1e} at most.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", help="of a cluster's scheduler; without it hosts are started here")
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--picture", type=Path, default=Path("hosts_pipeline.png"))
    arguments = parser.parse_args()
    main(arguments.address, arguments.stages, arguments.steps, arguments.batch_size, arguments.picture)
