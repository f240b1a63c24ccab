"""What a client says to its hosts: calls, whose answers come unless a host is lost first."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any

from executors.hosts.cluster import Cluster, HostUnreachableError, Message
from executors.hosts.failures import EXECUTION, FORGOTTEN, OTHER
from executors.hosts.watch import Watch
from miai_graph.errors import ExecutionError
from miai_graph.op import Array


class HostsLost(Exception):  # noqa: N818  never seen by users
    """Hosts were lost while something was asked of them."""


@dataclass(frozen=True, eq=False)
class OrderedStep:
    """A step that hosts were told to run.

    ticket : of the step
    calls : by future, the address of the host
    """

    ticket: int
    calls: dict[Future[Message], str] = field(default_factory=dict)

    @property
    def is_failing(self) -> bool:
        """Whether a host has ended it in another way than by computing its part."""
        return any(_has_failed(future) for future in self.calls if future.done())


class Conversation:
    """A client's calls.

    Parameters
    ----------
    cluster : of the hosts
    watch : says which of them are lost

    Attributes
    ----------
    name : by which hosts know this client
    forgetful : hosts that have let go of this client
    aborted : the last step that was given up; what was sent for it and those before it is gone
    ahead : steps that hosts run while nobody waits for them yet. They are watched all the same: if a host fails, the
        others must not wait for it, and keep those waiting who ask for something else
    describe : tells a host's name, by its address
    """

    def __init__(self, cluster: Cluster, watch: Watch) -> None:
        self.name = f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self.cluster = cluster
        self.watch = watch
        self.forgetful: list[str] = []
        self.aborted = -1
        self.ahead: list[OrderedStep] = []
        self._ordered: dict[str, int] = {}
        self.describe: Callable[[str], str] = str
        self._known: set[str] = set()

    def there(self) -> list[str]:
        """The hosts that know this client. Other threads may learn of losses meanwhile."""
        return [address for address in tuple(self._known) if address not in self.watch.lost]

    def call(
        self, address: str, name: str, content: Mapping[str, Any], arrays: Sequence[Array] = ()
    ) -> Future[Message]:
        """Call this session's end on a host."""
        self._known.add(address)
        return self.cluster.call(address, name, Message({"session": self.name, **content}, arrays))

    def order(self, step: OrderedStep, address: str, content: Mapping[str, Any]) -> None:
        """Tell a host to run its part of a step, after those that it was told to run before."""
        before = self._ordered.get(address, -1)
        turn = {"ticket": step.ticket, "after": before if before > self.aborted else None}
        self._ordered[address] = step.ticket
        step.calls[self.call(address, "run", {**content, **turn})] = address

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
                self.forget_values(address)
                self.forgetful.append(address)
            raise HostsLost

    def gather_step(self, step: OrderedStep) -> list[Message]:
        """The answers of hosts that run a step. When one fails, the others are told to give up.

        Raises
        ------
        HostsLost
            when one of the hosts is lost first.
        ExecutionError
            if a node failed on one of them.
        """
        calls = step.calls
        for future in self._as_they_end(calls):
            if _failed(future.result()) is not None:
                break
        else:
            return [future.result() for future in calls]
        self.abort(calls, step.ticket, "another host failed")
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
            done, _ = wait([*waiting, *self._under_way_ahead(), news], return_when=FIRST_COMPLETED)
            for future in done & waiting:
                if isinstance(error := future.exception(), HostUnreachableError):
                    self.watch.report(error.address, error.reason)
                    raise HostsLost
                yield future
            waiting -= done

    def _under_way_ahead(self) -> list[Future[Message]]:
        """The calls of steps that were ordered ahead. Steps of which one has failed are given up."""
        under_way: list[Future[Message]] = []
        for step in self.ahead:
            left = [future for future in step.calls if not future.done()]
            is_lost = any(step.calls[future] in self.watch.lost for future in left)
            if step.ticket > self.aborted and (is_lost or step.is_failing):
                self._tell_aborted(step.calls.values(), step.ticket, "another host failed")
            under_way += left
        return under_way

    def abort(self, calls: Mapping[Future[Message], str], ticket: int, reason: str, others: Iterable[str] = ()) -> None:
        """Tell hosts that a step is given up, and wait until those that were called have done so.

        Parameters
        ----------
        others : hosts that are told, too: they may have been called, if that was interrupted
        """
        self._tell_aborted({*calls.values(), *others}, ticket, reason)
        left = dict(calls)
        while left := {future: address for future, address in left.items() if address not in self.watch.lost}:
            try:
                for _ in self._as_they_end(left):
                    pass
                return
            except HostsLost:
                continue

    def _tell_aborted(self, addresses: Iterable[str], ticket: int, reason: str) -> None:
        self.aborted = max(self.aborted, ticket)
        for address in addresses:
            if address not in self.watch.lost:
                self.call(address, "abort", {"ticket": ticket, "reason": reason})

    def forget_values(self, address: str) -> None:
        """A host has none any more of the values that it had."""


def _has_failed(future: Future[Message]) -> bool:
    return future.exception() is not None or _failed(future.result()) is not None


def _failed(answer: Message) -> str | None:
    """How a call failed, if it did."""
    kind: str | None = answer.content.get("failed")
    return kind
