"""What a client has on the hosts of a cluster: the values of its variables, and what it takes to get them back."""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from time import monotonic, perf_counter
from typing import Any, Protocol
from weakref import WeakKeyDictionary, WeakSet, ref

from executors.hosts.cluster import Cluster, HostUnreachableError, Message
from executors.hosts.failures import EXECUTION, FORGOTTEN, OTHER
from executors.hosts.journal import Entry, Journal
from executors.hosts.leftovers import Leftovers
from executors.hosts.watch import Watch
from miai_graph.errors import ExecutionError
from miai_graph.op import Array
from miai_graph.state import Variable, state

SNAPSHOT_SHARE = 0.05
"""Of the time, for bringing values home now and then, so that little is lost with a host."""

FIRST_SNAPSHOT_STEPS = 16
FEWEST_STEPS, MOST_STEPS = 8, 1000

RESTART_SECONDS, END_SECONDS = 10.0, 1.0
"""How long hosts may take to forget this client, before it comes anew and when it leaves."""

GREETING_SECONDS = 10.0
"""How often hosts are told that this client is there. They forget those that they have not heard of for long."""


class Fed(Protocol):
    """A batch that was sent ahead."""

    @property
    def ticket(self) -> int: ...


class HostsLost(Exception):  # noqa: N818  never seen by users
    """Hosts were lost while something was asked of them."""


class Session:
    """Values of variables on hosts.

    Parameters
    ----------
    cluster : of the hosts
    watch : says which of them are lost
    journal : of steps; it is only known here, not kept

    Attributes
    ----------
    name : by which hosts know this client
    numbers : for variables, programs, plans and steps
    leftovers : on hosts, of what is gone here
    forgetful : hosts that have let go of this session
    feeds : batches that were sent ahead of their steps, while somebody has them
    aborted : the last step that was given up; what was sent for it and those before it is gone
    recover : called when values are lost; it must compute them anew, or raise
    describe : tells a host's name, by its address
    """

    def __init__(self, cluster: Cluster, watch: Watch, journal: Journal) -> None:
        self.name = f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self.cluster = cluster
        self.watch = watch
        self.numbers = itertools.count()
        self.leftovers = Leftovers()
        self.forgetful: list[str] = []
        self.feeds: WeakSet[Fed] = WeakSet()
        self.aborted = -1
        self._keys: WeakKeyDictionary[Variable, int] = WeakKeyDictionary()
        self._known: set[str] = set()
        self._left: set[str] = set()
        self._held: dict[str, dict[int, int]] = {}
        self._kept_journal = ref(journal)
        self._away: WeakKeyDictionary[Variable, None] = WeakKeyDictionary()
        self._snapshot_steps = FIRST_SNAPSHOT_STEPS
        self._unfinished: Callable[[], None] | None = None
        self._greeted_at = monotonic()
        watch.greet = self.greet
        self.recover: Callable[[], None]
        self.describe: Callable[[str], str] = str

    @property
    def _journal(self) -> Journal:
        return self._kept_journal() or Journal()

    def key(self, variable: Variable) -> int:
        """The number by which hosts know a variable."""
        if variable not in self._keys:
            self._keys[variable] = next(self.numbers)
            self.leftovers.note_key(variable, self._keys[variable])
        return self._keys[variable]

    def _there(self) -> list[str]:
        """The hosts that know this client. Other threads may learn of losses meanwhile."""
        return [address for address in tuple(self._known) if address not in self.watch.lost]

    def tidy(self) -> None:
        """Let hosts forget what is gone here."""
        programs, keys = self.leftovers.take()
        if programs or keys:
            for address in self._there():
                numbers = [found[address] for found in programs if address in found]
                self.call(address, "forget", {"programs": numbers, "keys": keys})

    def call(
        self, address: str, name: str, content: Mapping[str, Any], arrays: Sequence[Array] = ()
    ) -> Future[Message]:
        """Call this session's end on a host."""
        self._known.add(address)
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
        answers = [future.result() for future in futures]
        self._require_remembered(dict(zip(futures.values(), answers, strict=True)))
        return answers

    def _require_remembered(self, answers: Mapping[str, Message | None]) -> None:
        """Raise HostsLost if hosts have let go of this session, and with it of values."""
        forgetful = [address for address, answer in answers.items() if answer and _failed(answer) == FORGOTTEN]
        if forgetful:
            for address in forgetful:
                self._held.pop(address, None)
                self.forgetful.append(address)
            raise HostsLost

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
            if _failed(future.result()) is not None:
                break
        else:
            return [future.result() for future in calls]
        self.abort(calls, ticket, "another host failed")
        answers = {calls[future]: future.result() for future in self._as_they_end(calls)}
        self._require_remembered(answers)
        for kind in (EXECUTION, OTHER):
            for address, answer in answers.items():
                if _failed(answer) == kind:
                    raise ExecutionError(f"{answer.content['text']}\n  host: {self.describe(address)}")
        for answer in answers.values():
            for address, reason in answer.content.get("lost", {}).items():
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

    def abort(self, calls: Mapping[Future[Message], str], ticket: int, reason: str, others: Iterable[str] = ()) -> None:
        """Tell hosts that a step is given up, and wait until those that were called have done so.

        Parameters
        ----------
        others : hosts that are told, too: they may have been called, if that was interrupted
        """
        self.aborted = max(self.aborted, ticket)
        for address in {*calls.values(), *others}:
            if address not in self.watch.lost:
                self.call(address, "abort", {"ticket": ticket, "reason": reason})
        left = dict(calls)
        while left := {future: address for future, address in left.items() if address not in self.watch.lost}:
            try:
                for _ in self._as_they_end(left):
                    pass
                return
            except HostsLost:
                continue

    def oldest(self, ticket: int) -> int:
        """The first step for which something that was sent may still be needed."""
        return min([ticket, *(fed.ticket for fed in self.feeds)])

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
        return self.versions((variable,))[0]

    def versions(self, variables: Iterable[Variable]) -> list[int]:
        """Of values as they are after all steps that were committed."""
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
        self._finish()
        read = list(dict.fromkeys(itertools.chain.from_iterable(readers.values())))
        updated = list(dict.fromkeys(itertools.chain.from_iterable(holders.values())))
        if not updated:
            state.commit(committed)
            return
        before = dict(zip(committed.tolist(), state.versions[committed].tolist(), strict=True))
        self._unfinished = partial(self._note, before, holders, entry, seconds)
        state.send_away(updated, self.fetch)
        # What a step only read must be as it was if the step is repeated.
        state.guard(read, self.fetch)
        self._away.update(dict.fromkeys(updated))
        state.commit(committed)
        self._finish()
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
            held = self._held.setdefault(address, {})
            held |= {self.key(variable): self.version(variable) for variable in variables}

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

    def salvage(self) -> bool:
        """Bring all values home from hosts that have them, if every value is on one of those."""
        self._finish()
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
        futures = {}
        for address, variables in sources.items():
            content = {"keys": [self.key(variable) for variable in variables], "versions": self.versions(variables)}
            futures[self.call(address, "get_values", content)] = address
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
            for address in self._there():
                self.call(address, "greet", {})

    def forget_host(self, address: str) -> None:
        """What it had is no longer of use."""
        self._held.pop(address, None)
        self._left.add(address)

    def end(self) -> None:
        """Bring values home, and let the hosts forget this client."""
        try:
            if any(state.is_away(variable) for variable in self._away):
                self.fetch()
        finally:
            futures = [self.call(address, "end", {}) for address in self._there()]
            wait(futures, timeout=END_SECONDS)
            self._held.clear()


def _failed(answer: Message) -> str | None:
    """How a call failed, if it did."""
    kind: str | None = answer.content.get("failed")
    return kind
