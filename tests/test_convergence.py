"""Training converges as the reference interpreter's does: native kernels round otherwise, and nothing else."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from reference_executor import Reference

import miai_graph as mg
from executors import Processes, Serial
from miai_graph import digits, layers, losses, optimizers
from miai_graph.executor import Executor

EXAMPLES = Path(__file__).parent.parent / "examples"
STEPS = 40


def example(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def digits_losses(executor: Executor) -> list[float]:
    """The losses of a small convolutional network with normalization and dropout, on handwritten digits."""
    mg.set_seed(0)
    data = digits.load_digits()
    model = mg.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Conv2D(8, 3, padding="same", activation="relu"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(),
            layers.Dropout(0.1),
            layers.Conv2D(16, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )
    loss = losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizers.Adam(3e-3), loss, executor=executor)
    rows = np.random.default_rng(0).integers(0, len(data.train_images), (STEPS, 32))
    return [
        float(model.train_on_batch(data.train_images[row], data.train_labels[row], return_dict=True)["loss"])
        for row in rows
    ]


def text_losses(executor: Executor) -> list[float]:
    """The losses of the example's transformer, small, on the text of a rhyme."""
    mg.set_seed(0)
    module = example("character_transformer")
    text = "the quick brown fox jumps over the lazy dog; " * 40
    alphabet = sorted(set(text))
    numbers = np.array([alphabet.index(character) for character in text])
    model = module.make_model(len(alphabet), width=32, blocks=1, heads=2)
    loss = losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizers.Adam(3e-3), loss, executor=executor)
    starts = np.random.default_rng(0).integers(0, len(numbers) - module.CONTEXT - 1, (STEPS, 8))
    windows = starts[..., None] + np.arange(module.CONTEXT)
    return [
        float(model.train_on_batch(numbers[places], numbers[places + 1], return_dict=True)["loss"])
        for places in windows
    ]


@pytest.mark.parametrize("make", [Serial, lambda: Processes(2, wait_for_workers=True)], ids=["serial", "processes"])
@pytest.mark.parametrize("losses_of", [digits_losses, text_losses])
def test_losses_fall_as_the_interpreter_s_do(
    losses_of: Callable[[Executor], list[float]], make: Callable[[], Executor]
) -> None:
    with Reference() as reference, make() as executor:
        expected, found = losses_of(reference), losses_of(executor)
    assert np.mean(expected[-5:]) < 0.7 * expected[0]
    np.testing.assert_allclose(found, expected, rtol=0.01)
