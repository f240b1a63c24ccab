"""What tests of lost hosts have in common: a model that obeys orders on each stage, hosts that tell what they keep, and
a cluster whose hosts are lost at a given call."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from faulty_ops import Orders, obey, wait_until

import miai_graph as mg
from executors import Hosts, Serial
from executors.hosts import service, session
from executors.hosts.cluster import Channel, Cluster, Message
from executors.hosts.connection.embedded import EmbeddedCluster
from executors.hosts.in_process import InProcessCluster

INSPECTED = "hosts_faults:make_service"
"""Makes hosts that tell what they keep."""

IMPATIENT = "hosts_faults:make_impatient_service"
"""Makes such hosts, which forget clients soon."""

IMPATIENT_SECONDS = 1.5


class InspectedService(service.HostService):
    """A host that tells what it keeps."""

    def handle(self, name: str, message: Message) -> Message:
        if name != "kept":
            return super().handle(name, message)
        sessions = list(self._sessions.values())
        return Message(
            {
                "sessions": len(sessions),
                "values": sum(len(session._values._arrays) for session in sessions),
                "letters": sum(len(session.mailbox) for session in sessions),
                "programs": sum(len(session._programs) for session in sessions),
                "plans": sum(len(session._plans) for session in sessions),
            }
        )


def make_service(channel: Channel) -> service.HostService:
    return InspectedService(channel)


def greet_often() -> None:
    """What a client of such hosts must do."""
    session.GREETING_SECONDS = IMPATIENT_SECONDS / 5


def make_impatient_service(channel: Channel) -> service.HostService:
    service.FORGET_SECONDS = IMPATIENT_SECONDS
    return InspectedService(channel)


def kept(cluster: Cluster) -> dict[str, int]:
    """What all hosts keep together."""
    found: Counter[str] = Counter()
    for address in cluster.addresses:
        found.update(cluster.call(address, "kept").result(10).content)
    return dict(found)


class Unreliable(InProcessCluster):
    """Hosts of which some are lost when they are called.

    Parameters
    ----------
    losses : the names of calls; at each a host is lost, one after another. With a number: at so many calls of that name
    """

    def __init__(self, hosts: int, *losses: tuple[str, int]) -> None:
        self._due = list(losses)
        self._calls: Counter[str] = Counter()
        super().__init__(hosts, InspectedService)

    @property
    def all_happened(self) -> bool:
        return not self._due

    def call(self, address: str, name: str, message: Message | None = None) -> Future[Message]:
        self._calls[name] += 1
        if self._due and self._due[0][0] == name and self._calls[name] >= self._due[0][1]:
            del self._due[0]
            self._calls.clear()
            if address in self._services:
                self.kill(address)
        return super().call(address, name, message)


class Layered:
    """A model with an order to obey in each layer, forward and backward, and in an update.

    Parameters
    ----------
    folder : for the orders; None: it obeys nobody

    Attributes
    ----------
    orders : to the processes
    """

    def __init__(self, folder: Path | None = None, layers: int = 5) -> None:
        mg.set_seed(5)
        rng = np.random.default_rng(1)
        self.orders = Orders(folder or ".")
        self._folder = folder
        self.x, self.y = mg.input("x", (None, 6)), mg.input("y", (None,), "int64")
        widths = [6, *(8 for _ in range(layers - 1)), 3]
        self.parameters = [
            mg.parameter(0.5 * rng.standard_normal(shape), f"w{n}", dtype="float32")
            for n, shape in enumerate(itertools.pairwise(widths))
        ]
        self.slots = [mg.variable(np.zeros(p.shape, "f4"), f"{p.name}/slot") for p in self.parameters]
        self.rate = mg.variable(np.float64(0.1), "rate")
        h = self.x
        for w in self.parameters[:-1]:
            h = self._place(mg.relu(h @ w), "forward")
        h = h @ self.parameters[-1]
        self.loss = mg.mean(mg.sparse_softmax_cross_entropy(h, self.y))
        gradients = mg.grad(self.loss, self.parameters)
        self.updates = {}
        for p, slot, g in zip(self.parameters, self.slots, gradients, strict=True):
            velocity = 0.9 * slot + self._place(g, "update")
            self.updates |= {slot: velocity, p: p - mg.cast(self.rate, "float32") * velocity}

    def _place(self, node: mg.Node, place: str) -> mg.Node:
        return node if self._folder is None else obey(node, folder=str(self._folder), place=place)

    def function(self, executor: Any) -> mg.Function:
        return mg.function([self.x, self.y], [self.loss], self.updates, executor)

    def evaluation(self, executor: Any) -> mg.Function:
        return mg.function([self.x, self.y], [self.loss], executor=executor)

    def values(self) -> list[np.ndarray]:
        return [node.value for node in (*self.parameters, *self.slots, self.rate)]


def undisturbed(numbers: Sequence[int], executor: Any = None, layers: int = 5) -> list[np.ndarray]:
    """The values after steps on these batches, in this process."""
    model = Layered(layers=layers)
    step = model.function(executor or Serial())
    for number in numbers:
        step(*batch(number))
    return model.values()


def batch(number: int, size: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """What is fed to a step."""
    rng = np.random.default_rng(number)
    return rng.standard_normal((size, 6)).astype("f4"), rng.integers(0, 3, size)


def assert_close(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
    for value, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=2e-4, atol=2e-5)


def places(step: mg.Function) -> dict[tuple[int, int], str]:
    """The host's address by replica and stage."""
    layout = step.executable._plans.layout
    return {(place.replica, place.stage): place.address for place in layout.hosts}


def seconds_until(condition: Callable[[], Any], since: float) -> float:
    wait_until(condition)
    return time.monotonic() - since


def is_named(executor: Hosts, address: str) -> Callable[[], bool]:
    """Whether the executor knows that a host is lost."""
    return lambda: executor.crew.why_lost(address) is not None


def train(step: mg.Function, numbers: range) -> None:
    """A step on each of these batches."""
    for number in numbers:
        step(*batch(number))


def kill(cluster: EmbeddedCluster, address: str) -> None:
    """As the kernel does when memory is short."""
    os.kill(cluster.pids[address], signal.SIGKILL)
