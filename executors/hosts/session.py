"""What a client has on the hosts of a cluster: the values of its variables, and what it takes to get them back."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import wait
from contextlib import suppress
from functools import partial
from time import monotonic, perf_counter
from typing import Protocol
from weakref import WeakKeyDictionary, WeakSet, ref

import numpy as np

from executors.hosts.cluster import Cluster
from executors.hosts.conversation import Conversation, HostsLost
from executors.hosts.journal import Entry, Journal
from executors.hosts.leftovers import Leftovers
from executors.hosts.watch import Watch
from miai_graph.op import Array
from miai_graph.state import Variable, state

SNAPSHOT_SHARE = 0.05
"""Of the time, for bringing values home now and then, so that little is lost with a host."""

FIRST_SNAPSHOT_STEPS = 16
FEWEST_STEPS, MOST_STEPS = 8, 1000

PEEKED_BYTES = 1 << 16
"""Values up to this size can be read without bringing all home."""

RESTART_SECONDS, END_SECONDS = 10.0, 1.0
"""How long hosts may take to forget this client, before it comes anew and when it leaves."""

GREETING_SECONDS = 10.0
"""How often hosts are told that this client is there. They forget those that they have not heard of for long."""


class Fed(Protocol):
    """A batch that was sent ahead."""

    @property
    def ticket(self) -> int: ...


class Session(Conversation):
    """Values of variables on hosts.

    Parameters
    ----------
    cluster : of the hosts
    watch : says which of them are lost
    journal : of steps; it is only known here, not kept

    Attributes
    ----------
    numbers : for variables, programs, plans and steps
    leftovers : on hosts, of what is gone here
    feeds : batches that were sent ahead of their steps, while somebody has them
    recover : called when values are lost; it must compute them anew, or raise
    """

    def __init__(self, cluster: Cluster, watch: Watch, journal: Journal) -> None:
        super().__init__(cluster, watch)
        self.numbers = itertools.count()
        self.leftovers = Leftovers()
        self.feeds: WeakSet[Fed] = WeakSet()
        self._keys: WeakKeyDictionary[Variable, int] = WeakKeyDictionary()
        self._left: set[str] = set()
        self._held: dict[str, dict[int, int]] = {}
        self._kept_journal = ref(journal)
        self._away: WeakKeyDictionary[Variable, None] = WeakKeyDictionary()
        self._snapshot_steps = FIRST_SNAPSHOT_STEPS
        self._unfinished: Callable[[], None] | None = None
        self._greeted_at = monotonic()
        watch.greet = self.greet
        self.recover: Callable[[], None]

    @property
    def _journal(self) -> Journal:
        return self._kept_journal() or Journal()

    def key(self, variable: Variable) -> int:
        """The number by which hosts know a variable."""
        if variable not in self._keys:
            self._keys[variable] = next(self.numbers)
            self.leftovers.note_key(variable, self._keys[variable])
        return self._keys[variable]

    def tidy(self) -> None:
        """Let hosts forget what is gone here."""
        programs, keys = self.leftovers.take()
        if programs or keys:
            for address in self.there():
                numbers = [found[address] for found in programs if address in found]
                self.call(address, "forget", {"programs": numbers, "keys": keys})

    def oldest(self, ticket: int) -> int:
        """The first step for which something that was sent may still be needed."""
        return min([ticket, *(fed.ticket for fed in self.feeds)])

    def push(self, wanted: Mapping[str, Sequence[Variable]]) -> None:
        """See to it that hosts have the values of variables, by address."""
        missing = {address: self._missing(address, variables) for address, variables in wanted.items()}
        state.require_home(itertools.chain.from_iterable(missing.values()))
        futures = {}
        for address, variables in missing.items():
            if variables:
                arrays = [state.array(variable) for variable in variables]
                futures[self.call(address, "set_values", self._named(variables), arrays)] = address
        self.gather(futures)
        for address, variables in missing.items():
            self._hold(address, variables)

    def _missing(self, address: str, variables: Sequence[Variable]) -> list[Variable]:
        """Those of which a host does not have the values as they are now."""
        held = self._held.get(address, {})
        pairs = zip(variables, self.versions(variables), strict=True)
        return [variable for variable, version in pairs if held.get(self.key(variable)) != version]

    def _hold(self, address: str, variables: Sequence[Variable]) -> None:
        """Note that a host has these values as they are now."""
        keys = map(self.key, variables)
        self._held.setdefault(address, {}).update(zip(keys, self.versions(variables), strict=True))

    def _named(self, variables: Sequence[Variable]) -> dict[str, list[int]]:
        """Which values are meant, as hosts know them."""
        return {"keys": [self.key(variable) for variable in variables], "versions": self.versions(variables)}

    def versions(self, variables: Iterable[Variable]) -> list[int]:
        """Of values as they are after all steps that were committed."""
        versions: list[int] = state.versions[state.numbers(variables)].tolist()
        return versions

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
        self._finish()
        read = list(dict.fromkeys(itertools.chain.from_iterable(readers.values())))
        updated = list(dict.fromkeys(itertools.chain.from_iterable(holders.values())))
        if not updated:
            state.commit(committed)
            return
        before = dict(zip(committed.tolist(), state.versions[committed].tolist(), strict=True))
        self._unfinished = partial(self._note, before, holders, entry, seconds)
        state.send_away(updated, self)
        # What a step only read must be as it was if the step is repeated.
        state.guard(read, self.fetch)
        self._away.update(dict.fromkeys(updated))
        state.commit(committed)
        self._finish()

    def take_snapshot_if_due(self) -> None:
        """Bring values home after so many steps that it takes a small share of the time."""
        if len(self._journal.entries) >= self._snapshot_steps or self._journal.is_full:
            self._take_snapshot()

    def _finish(self) -> None:
        """Do what was begun, and could have been interrupted, as by Ctrl-C."""
        if self._unfinished is not None:
            self._unfinished()
            self._unfinished = None

    def _note(
        self, before: Mapping[int, int], holders: Mapping[str, Sequence[Variable]], entry: Entry, seconds: float
    ) -> None:
        """Note a step, if it was committed."""
        number = next(iter(before))
        if state.versions[number] == before[number]:
            return
        self._journal.add(entry, before, seconds)
        for address, variables in holders.items():
            self._hold(address, variables)

    def _take_snapshot(self) -> None:
        steps, steps_seconds, start = len(self._journal.entries), self._journal.seconds, perf_counter()
        self.fetch()
        seconds = perf_counter() - start
        wanted = seconds / SNAPSHOT_SHARE / max(steps_seconds / max(steps, 1), 1e-9)
        self._snapshot_steps = int(min(max(wanted, FEWEST_STEPS), MOST_STEPS))

    def fetch(self) -> None:
        """Bring all values home. If hosts were lost that had some of them, they are computed anew first."""
        with state.lock:
            while not self.salvage():
                self.recover()

    def peek(self, variable: Variable) -> Array:
        """A copy of a value. A small one is only looked at, so that reading a counter after each epoch costs little."""
        with state.lock:
            holder = self._holder(variable)
            if holder is not None and variable.type.size_bytes <= PEEKED_BYTES:
                with suppress(HostsLost):
                    (answer,) = self.gather({self.call(holder, "get_values", self._named([variable])): holder})
                    return np.array(answer.arrays[0])
            self.fetch()
            return state.array(variable).copy()

    def _holder(self, variable: Variable) -> str | None:
        """A host that has the value as it is now."""
        self._finish()
        key, (version,) = self.key(variable), self.versions([variable])
        for address, held in self._held.items():
            if held.get(key) == version and address not in self.watch.lost:
                return address
        return None

    def salvage(self) -> bool:
        """Bring all values home from hosts that have them, if every value is on one of those."""
        self._finish()
        sources: dict[str, list[Variable]] = {}
        for variable in [variable for variable in list(self._away) if state.is_away(variable)]:
            holder = self._holder(variable)
            if holder is None:
                return False
            sources.setdefault(holder, []).append(variable)
        futures = {}
        for address, variables in sources.items():
            futures[self.call(address, "get_values", self._named(variables))] = address
        try:
            answers = self.gather(futures)
        except HostsLost:
            return self.salvage()
        values: dict[Variable, Array] = {}
        for variables, answer in zip(sources.values(), answers, strict=True):
            values |= dict(zip(variables, answer.arrays, strict=True))
        self._unfinished = partial(self._take_home, values)
        self._finish()
        return True

    def _take_home(self, values: Mapping[Variable, Array]) -> None:
        state.bring_home({variable: value for variable, value in values.items() if state.is_away(variable)})
        self._settle()

    def _settle(self) -> None:
        """What is here is what holds."""
        self._away.clear()
        self._journal.clear()

    def roll_back(self) -> list[Entry]:
        """Return to the last snapshot. Returns what was done since."""
        self._finish()
        entries = list(self._journal.entries)
        self._unfinished = self._return
        self._finish()
        return entries

    def _return(self) -> None:
        state.roll_back(self._journal.before, list(self._away))
        self._held.clear()
        self._settle()

    def restart(self) -> None:
        """Let hosts that were lost and are there again forget what they had: steps could still wait there."""
        if self._left:
            back = self._left.intersection(self.cluster.addresses)
            wait([self.call(address, "end", {}) for address in back], timeout=RESTART_SECONDS)
            self._left -= back

    def greet(self) -> None:
        """Let hosts know that this client is there, whenever it is time for that."""
        if monotonic() - self._greeted_at > GREETING_SECONDS:
            self._greeted_at = monotonic()
            for address in self.there():
                self.call(address, "greet", {})

    def forget_values(self, address: str) -> None:
        self._held.pop(address, None)

    def forget_host(self, address: str) -> None:
        """What it had is no longer of use."""
        self.forget_values(address)
        self._left.add(address)

    def end(self) -> None:
        """Bring values home, and let the hosts forget this client."""
        try:
            if any(state.is_away(variable) for variable in self._away):
                self.fetch()
        finally:
            futures = [self.call(address, "end", {}) for address in self.there()]
            wait(futures, timeout=END_SECONDS)
            self._held.clear()
