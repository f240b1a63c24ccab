"""Whole training steps with guarded arrays: run by `test_guarded_memory` in processes of their own."""

from __future__ import annotations

import gc
from contextlib import ExitStack

import numpy as np
import pytest
from guarded_memory import PLACES, GuardedPlans, guarded_arrays

from executors import Serial
from miai_graph import losses, optimizers
from miai_graph.bench.workloads import WORKLOADS

STEPS = 2


def trained(name: str, batch: int, threads: int, place: str | None) -> list[np.ndarray]:
    """The loss of each step, and the weights after them."""
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        if place is not None:
            GuardedPlans(place).install(patch)
            stack.enter_context(guarded_arrays(place))
        workload = WORKLOADS[name]
        model, problem = workload.model(), workload.problem(batch)
        loss = losses.SparseCategoricalCrossentropy(from_logits=True)
        executor = stack.enter_context(Serial(threads=threads))
        model.compile(getattr(optimizers, workload.optimizer)(**workload.options), loss, executor=executor)
        found = [np.asarray(model.train_on_batch(problem.x[rows], problem.y[rows])) for rows in problem.rows[:STEPS]]
        gc.collect()  # of the arrays of other models: there are only so many mappings
        return [*found, *(node.value.copy() for node in model.weights)]


@pytest.mark.parametrize(("batch", "threads"), [(1, 1), (3, 2), (7, 1), (33, 2)])
@pytest.mark.parametrize("name", WORKLOADS)
def test_steps_are_the_same_between_guarded_pages(name: str, batch: int, threads: int) -> None:
    expected = trained(name, batch, threads, None)
    assert all(np.isfinite(array).all() for array in expected)
    for place in PLACES:
        for found, value in zip(trained(name, batch, threads, place), expected, strict=True):
            np.testing.assert_array_equal(found, value)
