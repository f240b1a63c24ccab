"""What is measured on several hosts: a network of equal layers for pipelines, and some standard workloads."""

from __future__ import annotations

from miai_graph import layers
from miai_graph.bench.workloads import Workload, workload
from miai_graph.model import Model, Sequential

WIDTH, DEPTH = 1024, 8


def stacked_mlp() -> Model:
    """Equal layers, so that equally many of them take equally long."""
    names = [f"dense_{place}" for place in range(DEPTH)]
    inner = [layers.Dense(WIDTH, activation="relu", name=name) for name in names[:-1]]
    return Sequential([layers.Input((WIDTH,), name="features"), *inner, layers.Dense(WIDTH, name=names[-1])])


STACKED_MLP = Workload("stacked_mlp", stacked_mlp, (256, 512), "SGD", {"learning_rate": 0.01}, (WIDTH,), WIDTH)


def hosts_workload(name: str) -> Workload:
    """`STACKED_MLP`, or the standard workload of a name; ArgumentError if there is none."""
    return STACKED_MLP if name == STACKED_MLP.name else workload(name)
