"""A side of the benchmark on hosts that trains with PyTorch's DDP over gloo: one such process a host.

It is `torch_peer`, but for how the processes start: the benchmark starts each on its host, and gives all of them the
same orders at the same time.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from miai_graph.bench import torch_peer
from miai_graph.bench.exchange import serve

TWINS = {"stacked_mlp": "wide_mlp"}
"""Workloads that are another one's network in PyTorch: dense layers, however many there are."""


class TorchReplica(torch_peer.TorchPeer):
    """Trains on a share of each batch, as the one of `rank` among several, or all of it alone."""

    def _start_followers(self) -> None:
        """The benchmark does it."""


def main() -> None:
    """Serve the orders of a benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", required=True)
    parser.add_argument("--problem", required=True, type=Path)
    parser.add_argument("--meeting", required=True, help="a file that does not exist yet, the same for all processes")
    parser.add_argument("--rank", required=True, type=int)
    parser.add_argument("--processes", required=True, type=int)
    parser.add_argument("--threads", default=1, type=int)
    arguments = parser.parse_args()
    arguments.workload = TWINS.get(arguments.workload, arguments.workload)
    torch_peer.torch = importlib.import_module("torch")
    torch_peer.torch.set_num_threads(arguments.threads)
    replica = TorchReplica(arguments)
    try:
        serve(replica.ready, {"fresh": replica.fresh, "steps": replica.steps, "weights": replica.weights})
    finally:
        replica.close()


if __name__ == "__main__":
    main()
