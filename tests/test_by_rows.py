"""Kernels that threads share by rows or images give what one thread gives."""

from __future__ import annotations

import numpy as np
import pytest

import miai_graph as mg
from executors import Serial
from miai_graph.kernels import by_rows
from miai_graph.kernels.by_rows import ADDED, SHARED
from miai_graph.kernels.compiler.native import processor
from miai_graph.ops.convolution import conv2d
from miai_graph.ops.pooling import average_pool2d, max_pool2d

pytestmark = pytest.mark.skipif(processor() is None, reason="threads share native kernels only")


@pytest.fixture
def _share_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_rows, "BYTES_WORTH_SHARING", 1)


def training(batch: np.ndarray, labels: np.ndarray, threads: int) -> tuple[list[np.ndarray], set[str]]:
    """Loss, gradients and probabilities of a network with all ops that threads share; and its ops."""
    mg.set_seed(0)
    rng = np.random.default_rng(1)
    x, y = mg.input("x", (None, 9, 8, 2), batch.dtype), mg.input("y", (None,), "int64")
    w = mg.parameter(rng.standard_normal((3, 3, 2, 5)).astype(batch.dtype), "w")
    v = mg.parameter(rng.standard_normal((20, 4)).astype(batch.dtype), "v")
    h = max_pool2d(mg.relu(conv2d(x, w, padding="same")), 2)
    h = average_pool2d(h, 2).reshape((-1, 20))
    logits = h @ v
    loss = mg.mean(mg.sparse_softmax_cross_entropy(logits, y))
    outputs = [loss, mg.softmax(logits), mg.softmax(logits, axis=0), *mg.grad(loss, [x, w, v])]
    with Serial(threads=threads) as executor:
        step = mg.function([x, y], outputs, executor=executor)
        return list(step(batch, labels)), {node.op.name for node in step.graph.nodes}


@pytest.mark.usefixtures("_share_everything")
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("size", [1, 2, 5, 16])
def test_threads_give_what_one_gives(size: int, dtype: str, rng: np.random.Generator) -> None:
    batch, labels = rng.standard_normal((size, 9, 8, 2)).astype(dtype), rng.integers(0, 4, size)
    expected, names = training(batch, labels, 1)
    assert names >= {*SHARED, *ADDED}
    tolerance = 1e-5 if dtype == "f4" else 1e-12
    for threads in (2, 3):
        found, _ = training(batch, labels, threads)
        for value, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(value, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("_share_everything")
def test_a_wrong_label_is_told_whichever_thread_meets_it(rng: np.random.Generator) -> None:
    batch = rng.standard_normal((6, 9, 8, 2)).astype("f4")
    for place in (0, 5):
        labels = np.zeros(6, np.int64)
        labels[place] = 4
        with pytest.raises(mg.errors.ExecutionError, match="label"):
            training(batch, labels, 2)
