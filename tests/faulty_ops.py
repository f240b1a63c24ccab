"""An op that does what a test tells one process to do, when it computes, and a small training with it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

import miai_graph as mg

PATIENCE_SECONDS = 20.0


def wait_until(condition: Callable[[], Any]) -> None:
    """Return when it is true; raise TimeoutError if that takes too long."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("what was waited for has not happened")
        time.sleep(0.002)


class Orders:
    """Files in a folder by which a test tells a process what to do at a place of the graph, and is told of it.

    Places are "forward", "backward", "update", and "prepare", which is when a process lays out its plan.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def give(self, pid: int, place: str, order: str) -> None:
        """Let the process obey when it next comes to the place: the name of a function of this module, below."""
        unfinished = self.folder / "order"
        unfinished.write_text(order)
        unfinished.rename(self._order(pid, place))

    def wait_for(self, pid: int, place: str) -> None:
        """Wait until the process is there."""
        wait_until(self._arrival(pid, place).exists)

    def let_go(self) -> None:
        """Let those who block go on."""
        (self.folder / "go").touch()

    def obey(self, place: str) -> None:
        pid = os.getpid()
        order = self._order(pid, place)
        if order.exists():
            name = order.read_text()
            order.unlink()
            self._arrival(pid, place).touch()
            ORDERS[name](self.folder)

    def _order(self, pid: int, place: str) -> Path:
        return self.folder / f"{place} {pid} order"

    def _arrival(self, pid: int, place: str) -> Path:
        return self.folder / f"{place} {pid} arrived"


def block(folder: Path) -> None:
    wait_until((folder / "go").exists)


def go_on(folder: Path) -> None:
    pass


def fail(folder: Path) -> None:
    raise ValueError("told to fail")


def run_out_of_memory(folder: Path) -> None:
    raise MemoryError("told to run out of memory")


def exit_politely(folder: Path) -> None:
    sys.exit(3)


def exit_at_once(folder: Path) -> None:
    os._exit(7)


def run_a_graph(folder: Path) -> None:
    nested[0]()


ORDERS = {
    order.__name__: order for order in (block, go_on, fail, run_out_of_memory, exit_politely, exit_at_once, run_a_graph)
}
nested: list[Callable[[], Any]] = []
"""What `run_a_graph` calls."""


@mg.op
class obey:
    """The identity, except for what it is told to do."""

    def infer(x, *, folder, place):
        return x

    def forward(x, *, folder, place):
        Orders(folder).obey(place)
        return x.copy()

    def vjp(g, output, x, *, folder, place):
        return [obey(g, folder=folder, place="backward")]

    def cost(output, x, *, folder, place):
        if place == "forward":
            Orders(folder).obey("prepare")
        return mg.Cost(0, 0)

    batch = mg.placement.elementwise


@mg.op
class running_sum:
    """Says nothing of the batch."""

    def infer(x):
        return x

    def forward(x):
        return np.cumsum(x, 0, dtype=x.dtype)


class Training:
    """A model whose graph obeys orders in all phases of a step.

    Attributes
    ----------
    orders : to its processes
    """

    def __init__(self, folder: str | Path) -> None:
        self.orders = Orders(folder)
        rng = np.random.default_rng(1)
        self.x, self.y = mg.input("x", (None, 6)), mg.input("y", (None,), "int64")
        weights = [0.5 * rng.standard_normal(shape) for shape in ((6, 8), (8, 3))]
        self.parameters = [mg.parameter(value, f"w{n}", dtype="float32") for n, value in enumerate(weights)]
        self.slots = [mg.variable(np.zeros(p.shape, "f4"), f"{p.name}/slot") for p in self.parameters]
        self.first = [node.value for node in self._variables]
        w, v = self.parameters
        hidden = obey(mg.relu(self.x @ w), folder=str(folder), place="forward")
        self.loss = mg.mean(mg.sparse_softmax_cross_entropy(hidden @ v, self.y))
        self.updates = {}
        gradients = mg.grad(self.loss, self.parameters)
        for p, slot, g in zip(self.parameters, self.slots, gradients, strict=True):
            velocity = 0.9 * slot + (obey(g, folder=str(folder), place="update") if p is v else g)
            self.updates |= {slot: velocity, p: p - 0.1 * velocity}

    @property
    def _variables(self) -> list[mg.Node]:
        return [*self.parameters, *self.slots]

    def function(self, executor: Any) -> mg.Function:
        return mg.function([self.x, self.y], [self.loss], self.updates, executor)

    def values(self) -> list[np.ndarray]:
        return [node.value for node in self._variables]

    def restart(self, step: mg.Function) -> None:
        """As if no step had been made."""
        for node, value in zip(self._variables, self.first, strict=True):
            mg.assign(node, value)
        step.executable.step = 0

    def history(self, executor: Any, steps: int) -> list[list[np.ndarray]]:
        """The values before the first step and after each, undisturbed; then they are the first ones again."""
        step = self.function(executor)
        found = [self.values()]
        for number in range(steps):
            step(*batch(number))
            found.append(self.values())
        self.restart(step)
        return found


def batch(number: int, size: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """What is fed to a step."""
    rng = np.random.default_rng(number)
    return rng.standard_normal((size, 6)).astype("f4"), rng.integers(0, 3, size)


def same(found: list[np.ndarray], expected: list[np.ndarray]) -> bool:
    """To the bit."""
    return all(one.tobytes() == other.tobytes() for one, other in zip(found, expected, strict=True))


def has_ended(pid: int) -> bool:
    """Whether there is no such process, or only what its parent has not collected."""
    return process_state(pid) in ("", "Z")


def process_state(pid: int) -> str:
    """As Linux tells it: "R" runs, "S" sleeps, "Z" has ended; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


@contextmanager
def meanwhile(act: Callable[[], None]) -> Iterator[None]:
    """Do something in another thread; what it raises is raised at the end."""
    problems: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:
            problems.append(error)

    thread = Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if problems:
        raise problems[0]
