"""A user's script on one of the emulated hosts: it trains while it is told to, and tells what happens.

It reads ``go`` and ``halt`` from its input. It writes lines of JSON: when it is ready, when it trains, when a host is
lost, when it has halted, and what was raised instead.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from threading import Event, Thread
from typing import Any

from faulty_ops import same
from hosts_faults import Layered, batch

from executors import Hosts, Serial
from miai_graph.errors import MiaiGraphError

BATCHES = 7


def tell(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def watch(executor: Hosts) -> None:
    """Tell of each loss as soon as the executor knows."""
    told: dict[str, str] = {}
    while True:
        now = dict(executor.crew._watch.lost)
        for address in now.keys() - told.keys():
            tell(lost=address, reason=now[address], at=time.monotonic())
        told = now
        time.sleep(0.005)


class User:
    """Trains one model on hosts, and the same one in this process, to compare them to the bit."""

    def __init__(self, address: str) -> None:
        self.executor = Hosts(address, reproducible=True)
        Thread(target=watch, args=(self.executor,), daemon=True).start()
        self.model, self.twin = Layered(), Layered()
        self.step, self.twin_step = self.model.function(self.executor), self.twin.function(Serial(reproducible=True))
        self.halt = Event()

    def numbers(self) -> Iterator[int]:
        """Of batches, until told to halt."""
        number = self.step.executable.step
        while not self.halt.is_set():
            yield number
            number += 1

    def train(self) -> None:
        try:
            for done, _ in enumerate(self.step.executable.run(batch(n % BATCHES) for n in self.numbers())):
                if done == 1:
                    tell(trains=True)
        except MiaiGraphError as error:
            tell(raised=type(error).__name__, text=str(error), at=time.monotonic())
        self.executor.session.fetch()
        steps = self.step.executable.step
        for number in range(self.twin_step.executable.step, steps):
            self.twin_step(*batch(number % BATCHES))
        is_same = same(self.model.values(), self.twin.values())
        tell(steps=steps, is_same=is_same, hosts=[host.address for host in self.executor.crew.hosts])


def main(address: str) -> None:
    user = User(address)
    tell(ready=[host.address for host in user.executor.crew.hosts])
    training = Thread()
    for line in sys.stdin:
        if line.strip() == "go":
            user.halt.clear()
            training = Thread(target=user.train)
            training.start()
        else:
            user.halt.set()
            training.join()
    user.executor.close()


if __name__ == "__main__":
    main(sys.argv[1])
