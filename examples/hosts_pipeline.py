"""A pipeline over hosts: a deep network cut into stages, the same result as on one, and a picture of the last step.

python examples/hosts_pipeline.py                        hosts are processes of this machine
python examples/hosts_pipeline.py --address 192.168.0.4  those of a cluster (miai-graph cluster start)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import miai_graph as mg
from miai_graph import layers, losses
from miai_graph.executor import Executor
from miai_graph.timing import Timing

WIDTH, LAYERS, CLASSES = 512, 8, 10


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


def main(address: str | None, stages: int, steps: int, batch_size: int, picture: Path) -> None:
    with mg.executor("serial", threads=1) as serial:
        expected, _ = train(serial, steps, batch_size)
    with mg.executor("hosts", address=address, stages=stages, micro_batches=8) as hosts:
        found, timing = train(hosts, steps, batch_size)
    timing.table(by="phase")
    timing.plot(picture, "timeline", steps=[timing.steps - 1])
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
