"""Graphs of any size, and timings of them that were never measured, for tests of the report."""

from __future__ import annotations

import numpy as np

import miai_graph as mg
from miai_graph.context import COMMUNICATION, UPDATE, WAIT, build_context
from miai_graph.graph import Graph
from miai_graph.timing import Slice, TimedWorker, Timing, TimingRecord
from miai_graph.timing.records import IDLE, OVERHEAD

WIDTH = 8
GAP_SECONDS = 3.0
"""Between one traced step and the next."""

Row = tuple[str, str, str, str, float]
"""Node, op, layer, phase, and seconds on one worker in one step."""


def made_graph(blocks: int, *, name: str = "block", has_skips: bool = True) -> Graph:
    """The graph of a training step of a chain of small layers, with skips over some of them, or without."""
    mg.set_seed(0)
    x = mg.input("x", (None, WIDTH))
    value, before, parameters = x, x, []
    for number in range(blocks):
        with mg.name_scope(f"{name}_{number}"):
            weight = mg.parameter(np.zeros((WIDTH, WIDTH), "f4"), name=f"{name}_{number}/weight")
            bias = mg.parameter(np.zeros(WIDTH, "f4"), name=f"{name}_{number}/bias")
            hidden = mg.tanh(value @ weight + bias)
            value, before = (hidden + before if has_skips and number % 3 == 2 else hidden), value
        parameters += [weight, bias]
    with mg.name_scope("loss"):
        loss = mg.mean(mg.square(value))
    gradients = mg.grad(loss, parameters)
    with build_context(phase=UPDATE, scope="sgd"):
        updates = {p: p - 0.1 * g for p, g in zip(parameters, gradients, strict=True)}
    return Graph([loss], updates)


def made_timing(
    graph: Graph,
    *,
    workers: int = 2,
    steps: int = 50,
    traced: tuple[int, ...] = (0, 49),
    factor: float = 1.0,
    parts: int = 1,
) -> Timing:
    """A timing in which each worker's parts add up to the wall time.

    Parameters
    ----------
    traced : the numbers of the steps of which there are slices
    factor : by how much all nodes take longer
    parts : the number of slices for each node in a step
    """
    rng = np.random.default_rng(0)
    rows = _rows(graph, rng, factor)
    loads = [[(row, row[4] * (1.0 + 0.15 * worker)) for row in rows] for worker in range(workers)]
    busy = [sum(seconds for _, seconds in load) for load in loads]
    step_seconds = max(busy)
    records, slices = [], []
    for worker, load in enumerate(loads):
        rest = step_seconds - busy[worker]
        waits: Row = ("sgd/all_reduce", "all_reduce", "sgd", WAIT, rest)
        load = [*load, (waits, rest)] if rest else load
        records += [_record(row, worker, steps, seconds) for row, seconds in load]
        for number in traced:
            slices += _slices(load, worker, number, number * (step_seconds + GAP_SECONDS), parts)
    known = [
        TimedWorker(worker, f"host-{worker // 2}", 1000 + worker, None, None, 5e10, 2e10, 1e-6 * worker)
        for worker in range(workers)
    ]
    return Timing(
        records, steps, 0.35, 4_000_000, slices=slices, wall_seconds=step_seconds * steps, workers=known, graph=graph
    )


def _rows(graph: Graph, rng: np.random.Generator, factor: float) -> list[Row]:
    rows: list[Row] = [("feed", "feed", "", OVERHEAD, 2e-5)]
    for node in graph.nodes:
        if node.inputs:
            seconds = factor * float(rng.gamma(1.2, 4e-5))
            rows.append((graph.names[node], node.op.name, node.scope, node.phase, seconds))
    first_update = next(place for place, row in enumerate(rows) if row[3] == UPDATE)
    total = sum(row[4] for row in rows)
    rows.insert(first_update, ("sgd/all_reduce", "all_reduce", "sgd", COMMUNICATION, 0.08 * total))
    rows.append(("idle", "idle", "", IDLE, 0.03 * total))
    return rows


def _record(row: Row, worker: int, steps: int, seconds: float) -> TimingRecord:
    node, op, layer, phase, _ = row
    computes = phase not in (OVERHEAD, WAIT, IDLE, COMMUNICATION)
    return TimingRecord(
        node=node,
        op=op,
        layer=layer,
        phase=phase,
        worker=worker,
        host=f"host-{worker // 2}",
        calls=steps,
        seconds=seconds * steps,
        min_seconds=0.7 * seconds,
        max_seconds=1.9 * seconds,
        flops=round(seconds * 1e10) * steps if computes else 0,
        bytes=round(seconds * 4e9) * steps if computes or phase == COMMUNICATION else 0,
        memory_bytes=4096 if computes else 0,
    )


def _slices(load: list[tuple[Row, float]], worker: int, step: int, begin: float, parts: int) -> list[Slice]:
    slices = []
    for part in range(parts):
        for row, seconds in load:
            if row[3] != IDLE:
                micro_batch = part if parts > 1 else None
                length = seconds / parts
                slices.append(Slice(row[0], row[3], worker, None, micro_batch, begin, length, 1e-6, step))
            begin += seconds / parts
    return slices
