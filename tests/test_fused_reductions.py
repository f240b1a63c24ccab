"""Gradients of several workers are put together by the kernel that updates with them."""

from __future__ import annotations

import numpy as np
import pytest

import miai_graph as mg
from executors import Processes, Serial
from miai_graph import layers, losses, optimizers
from miai_graph.context import COMMUNICATION
from miai_graph.kernels.compiler.native import processor
from miai_graph.passes.simplify import simplify
from miai_graph.plan.chains import MOST_CONTRIBUTORS, REDUCING
from miai_graph.plan.fusion import Fusion
from miai_graph.plan.program import Program, Storage
from miai_graph.plan.worker_programs import WorkerPrograms

pytestmark = pytest.mark.skipif(processor() is None, reason="there is no native code for this processor")

BATCH = 160
"""So many samples that gradients are smaller than what they are computed from; see `outer_products`."""


def training_graph() -> mg.Graph:
    """Of a small network; the updates of its parameters are shared out among the workers."""
    model = mg.Sequential([layers.Input((300,)), layers.Dense(200, "relu"), layers.Dense(3)])
    x, y = mg.input("x", (None, 300)), mg.input("y", (None, 3))
    loss = mg.mean(mg.square(model(x) - y))
    parameters = model.trainable_variables
    updates = {node: node - 0.1 * g for node, g in zip(parameters, mg.grad(loss, parameters), strict=True)}
    return simplify(mg.Graph([loss], updates))


def fusions_with_reductions(program: Program) -> list[Fusion]:
    return [fusion for fusion in program.fusions.values() if any(node.op in REDUCING for node in fusion.nodes)]


@pytest.mark.parametrize("workers", [2, 3, MOST_CONTRIBUTORS])
def test_a_reduction_and_the_update_are_one_kernel(workers: int) -> None:
    program = WorkerPrograms(training_graph(), 0, is_reproducible=False).program(workers, BATCH)
    assert fusions_with_reductions(program)
    for node in program.graph.nodes:
        if node.op in REDUCING and node.type.shape:
            assert program.storage[node] is Storage.PASSING


@pytest.mark.parametrize(("workers", "is_reproducible"), [(2, True), (MOST_CONTRIBUTORS + 1, False)])
def test_others_are_reduced_by_themselves(workers: int, is_reproducible: bool) -> None:
    program = WorkerPrograms(training_graph(), 0, is_reproducible=is_reproducible).program(workers, BATCH)
    assert not fusions_with_reductions(program)
    assert any(node.op in REDUCING and program.storage[node] is Storage.OWN for node in program.graph.nodes)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: optimizers.SGD(0.1, momentum=0.9),
        lambda: optimizers.Adam(0.01),
        lambda: optimizers.RMSprop(0.01, global_clipnorm=0.5),
    ],
    ids=["momentum", "adam", "clipped"],
)
def test_training_is_that_of_one_process(optimizer, workers: int, dtype: str, rng: np.random.Generator) -> None:
    x, y = (rng.standard_normal((3 * BATCH, width)).astype(dtype) for width in (300, 3))

    def trained(who: mg.Executor) -> list[np.ndarray]:
        mg.set_seed(3)
        model = mg.Sequential(
            [layers.Input((300,), dtype=dtype), layers.Dense(200, "relu", dtype=dtype), layers.Dense(3, dtype=dtype)]
        )
        model.compile(optimizer(), losses.MeanSquaredError())
        with who:
            model.fit(x, y, BATCH, epochs=2, verbose=0, executor=who)
        return model.get_weights()

    tolerance = 1e-4 if dtype == "float32" else 1e-11
    for found, expected in zip(trained(Processes(workers, wait_for_workers=True)), trained(Serial()), strict=True):
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_reducing_is_booked_as_communication(rng: np.random.Generator) -> None:
    model = mg.Sequential([layers.Input((300,)), layers.Dense(200, "relu"), layers.Dense(3)])
    model.compile(optimizers.SGD(0.1), losses.MeanSquaredError())
    x, y = (rng.standard_normal((BATCH, width)).astype("f4") for width in (300, 3))
    with Processes(2, wait_for_workers=True) as two:
        history = model.fit(x, y, BATCH, epochs=3, verbose=0, executor=two)
    reduced = [
        record for record in history.timing.records if record.op in {op.name for op in REDUCING} and record.kernel
    ]
    assert reduced
    for record in reduced:
        assert record.phase == COMMUNICATION
        assert record.seconds > 0
        # What both workers owe is read, and nothing is written.
        assert record.bytes % (2 * record.calls) == 0
        assert record.memory_bytes == 0
