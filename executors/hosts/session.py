"""What a client has on the hosts of a cluster: the values of its variables, and what it takes to get them back."""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from time import perf_counter
from typing import Any
from weakref import WeakKeyDictionary

from executors.hosts.cluster import Cluster, HostUnreachableError, Message
from executors.hosts.service import EXECUTION, OTHER
from executors.hosts.watch import Watch
from miai_graph.errors import ExecutionError
from miai_graph.op import Array
from miai_graph.state import Variable, state

SNAPSHOT_SHARE = 0.05
"""Of the time, for bringing values home now and then, so that little is lost with a host."""

FIRST_SNAPSHOT_STEPS = 16
FEWEST_STEPS, MOST_STEPS = 8, 1000
JOURNAL_BYTES = 1 << 28
"""So much of the batches since the last snapshot is kept."""


class HostsLost(Exception):  # noqa: N818  never seen by users
    """Hosts were lost while something was asked of them."""


@dataclass(frozen=True)
class Entry:
    """A step that was committed since the last snapshot: what repeats it, and the size of what it keeps."""

    repeat: Callable[[], object]
    size_bytes: int


class Session:
    """Values of variables on hosts.

    Parameters
    ----------
    cluster : of the hosts
    watch : says which of them are lost

    Attributes
    ----------
    name : by which hosts know this client
    numbers : for variables, programs, plans and steps
    recover : called when values are lost; it must compute them anew, or raise
    """

    def __init__(self, cluster: Cluster, watch: Watch) -> None:
        self.name = f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self.cluster = cluster
        self.watch = watch
        self.numbers = itertools.count()
        self._keys: WeakKeyDictionary[Variable, int] = WeakKeyDictionary()
        self._held: dict[str, dict[int, int]] = {}
        self._journal: list[Entry] = []
        self._before: dict[int, int] = {}
        self._away: WeakKeyDictionary[Variable, None] = WeakKeyDictionary()
        self._snapshot_steps = FIRST_SNAPSHOT_STEPS
        self._steps_seconds = 0.0
        self.recover: Callable[[], None]

    def key(self, variable: Variable) -> int:
        """The number by which hosts know a variable."""
        if variable not in self._keys:
            self._keys[variable] = next(self.numbers)
        return self._keys[variable]

    def call(
        self, address: str, name: str, content: Mapping[str, Any], arrays: Sequence[Array] = ()
    ) -> Future[Message]:
        """Call this session's end on a host."""
        return self.cluster.call(address, name, Message({"session": self.name, **content}, arrays))

    def gather(self, futures: Mapping[Future[Any], str]) -> list[Any]:
        """The answers of calls, given with the address of each.

        Raises
        ------
        HostsLost
            when one of the hosts is lost first.
        RemoteError
            if a host has something to say against it.
        """
        for _ in self._as_they_end(futures):
            pass
        return [future.result() for future in futures]

    def gather_step(self, calls: Mapping[Future[Message], str], ticket: int) -> list[Message]:
        """The answers of hosts that run a step. When one fails, the others are told to give up.

        Raises
        ------
        HostsLost
            when one of the hosts is lost first.
        ExecutionError
            if a node failed on one of them.
        """
        for future in self._as_they_end(calls):
            if "failed" in future.result().content:
                break
        else:
            return [future.result() for future in calls]
        self.abort(calls, ticket, "another host failed")
        answers = [future.result().content for future in self._as_they_end(calls)]
        for kind in (EXECUTION, OTHER):
            for answer in answers:
                if answer.get("failed") == kind:
                    raise ExecutionError(answer["text"])
        for answer in answers:
            for address, reason in answer.get("lost", {}).items():
                self.watch.report(address, reason)
        raise HostsLost

    def _as_they_end(self, calls: Mapping[Future[Any], str]) -> Iterator[Future[Any]]:
        """Futures in the order in which they end.

        Raises
        ------
        HostsLost
            when a host of one of them is lost.
        """
        waiting = set(calls)
        while waiting:
            news = self.watch.news
            if any(calls[future] in self.watch.lost for future in waiting):
                raise HostsLost
            done, _ = wait([*waiting, news], return_when=FIRST_COMPLETED)
            for future in done & waiting:
                if isinstance(error := future.exception(), HostUnreachableError):
                    self.watch.report(error.address, error.reason)
                    raise HostsLost
                yield future
            waiting -= done

    def abort(self, calls: Mapping[Future[Message], str], ticket: int, reason: str) -> None:
        """Tell hosts that a step is given up, and wait until they have done so."""
        left = {future: address for future, address in calls.items() if address not in self.watch.lost}
        for address in left.values():
            self.call(address, "abort", {"ticket": ticket, "reason": reason})
        while left:
            try:
                self.gather(left)
                return
            except HostsLost:
                left = {future: address for future, address in left.items() if address not in self.watch.lost}

    def push(self, wanted: Mapping[str, Sequence[Variable]]) -> None:
        """See to it that hosts have the values of variables, by address."""
        missing = {
            address: [
                variable
                for variable in variables
                if self._held.get(address, {}).get(self.key(variable)) != self.version(variable)
            ]
            for address, variables in wanted.items()
        }
        state.require_home(itertools.chain.from_iterable(missing.values()))
        futures = {}
        for address, variables in missing.items():
            if variables:
                keys = [self.key(variable) for variable in variables]
                versions = [self.version(variable) for variable in variables]
                arrays = [state.array(variable) for variable in variables]
                futures[self.call(address, "set_values", {"keys": keys, "versions": versions}, arrays)] = address
        self.gather(futures)
        for address, variables in missing.items():
            held = self._held.setdefault(address, {})
            held |= {self.key(variable): self.version(variable) for variable in variables}

    def version(self, variable: Variable) -> int:
        """Of the value as it is after all steps that were committed."""
        return self.versions((variable,))[0]

    def versions(self, variables: Iterable[Variable]) -> list[int]:
        return [int(version) for version in state.versions[state.numbers(variables)]]

    def commit(
        self,
        readers: Mapping[str, Sequence[Variable]],
        holders: Mapping[str, Sequence[Variable]],
        committed: Array,
        entry: Entry,
        seconds: float,
    ) -> None:
        """Take a step for done: what it computed holds now.

        Parameters
        ----------
        readers : by address, the variables that a host has read
        holders : those of which it has computed the next value
        committed : the version numbers that go up
        entry : how to repeat the step
        seconds : how long it took
        """
        read = list(dict.fromkeys(itertools.chain.from_iterable(readers.values())))
        updated = list(dict.fromkeys(itertools.chain.from_iterable(holders.values())))
        for number in committed.tolist():
            self._before.setdefault(number, int(state.versions[number]))
        self._journal.append(entry)
        state.send_away(updated, self.fetch)
        # What a step only read must be as it was if the step is repeated.
        state.guard(read, self.fetch)
        self._away.update(dict.fromkeys(updated))
        state.commit(committed)
        for address, variables in holders.items():
            held = self._held.setdefault(address, {})
            held |= {self.key(variable): self.version(variable) for variable in variables}
        self._steps_seconds += seconds
        kept = sum(entry.size_bytes for entry in self._journal)
        if len(self._journal) >= self._snapshot_steps or kept > JOURNAL_BYTES:
            self._take_snapshot()

    def _take_snapshot(self) -> None:
        steps, steps_seconds, start = len(self._journal), self._steps_seconds, perf_counter()
        self.fetch()
        seconds = perf_counter() - start
        wanted = seconds / SNAPSHOT_SHARE / max(steps_seconds / max(steps, 1), 1e-9)
        self._snapshot_steps = int(min(max(wanted, FEWEST_STEPS), MOST_STEPS))

    def fetch(self) -> None:
        """Bring all values home. If hosts were lost that had some of them, they are computed anew first."""
        with state.lock:
            while not self._salvage():
                self.recover()

    def _salvage(self) -> bool:
        """Bring all values home from hosts that have them, if every value is on one of those."""
        away = [variable for variable in list(self._away) if state.is_away(variable)]
        sources: dict[str, list[Variable]] = {}
        for variable in away:
            key, version = self.key(variable), self.version(variable)
            holders = (
                address
                for address, held in self._held.items()
                if held.get(key) == version and address not in self.watch.lost
            )
            holder = next(holders, None)
            if holder is None:
                return False
            sources.setdefault(holder, []).append(variable)
        futures = {
            self.call(
                address,
                "get_values",
                {"keys": [self.key(variable) for variable in variables], "versions": self.versions(variables)},
            ): address
            for address, variables in sources.items()
        }
        try:
            answers = self.gather(futures)
        except HostsLost:
            return self._salvage()
        values: dict[Variable, Array] = {}
        for variables, answer in zip(sources.values(), answers, strict=True):
            values |= dict(zip(variables, answer.arrays, strict=True))
        state.bring_home(values)
        self._settle()
        return True

    def _settle(self) -> None:
        """What is here is what holds."""
        self._away.clear()
        self._journal.clear()
        self._before.clear()
        self._steps_seconds = 0.0

    def salvage(self) -> bool:
        """After a loss: try to bring all values home from the hosts that are left."""
        return self._salvage()

    def roll_back(self) -> list[Entry]:
        """Return to the last snapshot. Returns what was done since."""
        entries = list(self._journal)
        state.roll_back(self._before, list(self._away))
        self._held.clear()
        self._settle()
        return entries

    @property
    def steps_since_snapshot(self) -> int:
        return len(self._journal)

    def forget_host(self, address: str) -> None:
        """What it had is no longer of use."""
        self._held.pop(address, None)

    def end(self) -> None:
        """Bring values home, and let the hosts forget this client."""
        if any(state.is_away(variable) for variable in self._away):
            self.fetch()
        futures = [self.call(address, "end", {}) for address in self._held if address not in self.watch.lost]
        wait(futures, timeout=1.0)
        self._held.clear()
