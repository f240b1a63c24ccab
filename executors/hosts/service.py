"""What runs on a host: keeps stages' graphs, plans and values for its clients, and computes its part of steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Event, RLock, Thread
from time import monotonic
from typing import Any, TypeVar
from weakref import ref

import numpy as np

from executors.hosts.cluster import Channel, Message
from executors.hosts.facts import host_facts
from executors.hosts.failures import ABORTED, EXECUTION, FORGOTTEN, OTHER
from executors.hosts.mailbox import Mailbox, StepAborted
from executors.hosts.probing import PROBE, Prober
from executors.hosts.stage import HostPlan, HostProgram, Values
from miai_graph.errors import ArgumentError, ExecutionError, MiaiGraphError
from miai_graph.kernels.products.few_rows import products
from miai_graph.plan.memory import Workspace

FORGET_SECONDS = 60.0
"""A client that has not been heard of for so long is gone."""

_LOOK_SECONDS = 5.0


Found = TypeVar("Found")


def make_service(channel: Channel) -> HostService:
    """The service of a host that is a process of its own. Kernels that most graphs need are compiled meanwhile."""
    Thread(target=products, name="compiler of kernels", daemon=True).start()
    return HostService(channel)


class HostService:
    """Sessions of clients, each with its own graphs and values.

    Parameters
    ----------
    channel : to the other hosts
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._prober = Prober(channel)
        self._sessions: dict[str, Session] = {}
        self._closed = Event()
        self._lock = RLock()
        Thread(target=_forget_clients, args=(ref(self), self._closed), name="sessions of clients", daemon=True).start()

    def handle(self, name: str, message: Message) -> Message:
        """Answer a call: one of those of `Session` or of `Prober`, or ``describe``."""
        if name == "describe":
            return Message(host_facts(message.content.get("measure", False)))
        if name in self._prober.calls:
            return self._prober.calls[name](message)
        session = self._session(message.content["session"])
        if name == "end":
            self._end(session, "the session ended")
            return Message()
        if name not in CALLS:
            raise ArgumentError(f"expected one of the calls {', '.join(sorted(CALLS))}; found {name!r}")
        answer: Callable[[Message], Message] = getattr(session, name)
        try:
            return answer(message)
        except Forgotten:
            return _failure(FORGOTTEN, "its client had not been heard of for long")

    def _session(self, name: str) -> Session:
        with self._lock:
            session = self._sessions.setdefault(name, Session(name, self._channel))
            session.heard_at = monotonic()
            return session

    def _end(self, session: Session, reason: str) -> None:
        with self._lock:
            self._sessions.pop(session.name, None)
        session.abort(Message({"ticket": LAST_TICKET, "reason": reason}))

    def forget_clients(self) -> None:
        """Let go of what clients have here that were killed, or cannot reach this host."""
        for session in list(self._sessions.values()):
            if monotonic() - session.heard_at > FORGET_SECONDS:
                self._end(session, "its client was not heard of")

    def deliver(self, message: Message) -> None:
        """Put what another host or the client sent where the step will look for it."""
        content = message.content
        if PROBE in content:
            self._prober.deliver(message)
            return
        self._session(content["session"]).mailbox.put(content["ticket"], tuple(content["key"]), message.arrays)

    def unreachable(self, address: str, reason: str) -> None:
        """Give up all steps: one that needs that host cannot end."""
        self._prober.unreachable(address, reason)
        for session in list(self._sessions.values()):
            session.lose(address, reason)

    def close(self) -> None:
        """Give up all steps."""
        self._closed.set()
        for session in list(self._sessions.values()):
            session.abort(Message({"ticket": LAST_TICKET, "reason": "the host was closed"}))


def _forget_clients(service: ref[HostService], closed: Event) -> None:
    while not closed.wait(min(_LOOK_SECONDS, FORGET_SECONDS)):
        alive = service()
        if alive is None:
            return
        alive.forget_clients()
        del alive


LAST_TICKET = 1 << 62

CALLS = frozenset(("program", "plan", "set_values", "get_values", "run", "abort", "forget", "greet"))
"""The calls that a session answers, by its methods of these names."""


class Forgotten(Exception):  # noqa: N818  never seen by users
    """A client asks for what is not here any more."""


class Session:
    """What one client has on this host.

    Attributes
    ----------
    name : unique among clients
    mailbox : what was sent to this host in the client's steps
    heard_at : when the client was last heard of
    """

    def __init__(self, name: str, channel: Channel) -> None:
        self.name = name
        self.mailbox = Mailbox()
        self._channel = channel
        self._values = Values()
        self._workspace = Workspace()
        self._programs: dict[int, HostProgram] = {}
        self._plans: dict[int, HostPlan] = {}
        self.heard_at = monotonic()
        self._ticket = -1
        self._peers: frozenset[str] = frozenset()
        self._lost: dict[str, str] = {}
        self._computing = RLock()

    def program(self, message: Message) -> Message:
        """Take a stage's graph."""
        self._programs[message.content["program"]] = HostProgram(message, self._values)
        return Message()

    def plan(self, message: Message) -> Message:
        """Prepare to run a program on batches of one size. Returns the plan's description."""
        content = message.content
        with self._computing:
            self._plans[content["plan"]] = plan = HostPlan(
                content,
                _known(self._programs, content["program"]),
                self._values,
                self._workspace,
                self.name,
                self._channel.post,
                self.mailbox,
            )
            return plan.description

    def forget(self, message: Message) -> Message:
        """Let go of programs with the plans made of them, and of values."""
        with self._computing:
            for number in message.content["programs"]:
                gone = self._programs.pop(number, None)
                self._plans = {key: plan for key, plan in self._plans.items() if plan.program is not gone}
            self._values.forget(message.content["keys"])
        return Message()

    def set_values(self, message: Message) -> Message:
        """Take values of variables, with their versions."""
        content = message.content
        with self._computing:
            _require(all(key in self._values for key in content["keys"]))
            for key, version, array in zip(content["keys"], content["versions"], message.arrays, strict=True):
                self._values.set(key, version, array)
        return Message()

    def get_values(self, message: Message) -> Message:
        """Give values of variables, of the versions asked for: a step that is under way does not write to them."""
        content = message.content
        _require(all(key in self._values for key in content["keys"]))
        pairs = zip(content["keys"], content["versions"], strict=True)
        return Message({}, [self._values.get(key, version) for key, version in pairs])

    def run(self, message: Message) -> Message:
        """Compute this host's part of a step. What goes wrong is part of the answer."""
        content = message.content
        plan = _known(self._plans, content["plan"])
        try:
            if content["after"] is not None:
                # Calls can arrive in another order than they were made.
                self.mailbox.wait_until_over(content["after"])
            with self._computing, np.errstate(all="ignore"):
                return self._run(plan, content)
        except StepAborted as error:
            return _failure(ABORTED, error, lost=self._lost)
        except ExecutionError as error:
            return _failure(EXECUTION, error)
        except MiaiGraphError as error:
            return _failure(OTHER, error)

    def _run(self, plan: HostPlan, content: Mapping[str, Any]) -> Message:
        self.mailbox.forget(before=content["oldest"])
        self._lost = {}
        self._ticket, self._peers = content["ticket"], plan.peers
        answer = plan.run(content)
        self.mailbox.end(self._ticket)
        return answer

    def abort(self, message: Message) -> Message:
        """Give up a step that is under way, and those before it."""
        self.mailbox.abort(message.content["ticket"], message.content["reason"])
        return Message()

    def lose(self, address: str, reason: str) -> None:
        """Another host cannot be reached: the step that needs it ends."""
        if address in self._peers:
            self._lost[address] = reason
            self.mailbox.abort(self._ticket, f"host {address} could not be reached: {reason}")

    def greet(self, message: Message) -> Message:
        """The client is there."""
        return Message()


def _known(found: Mapping[int, Found], number: int) -> Found:
    _require(number in found)
    return found[number]


def _require(is_known: bool) -> None:
    if not is_known:
        raise Forgotten


def _failure(kind: str, error: object, **more: Any) -> Message:
    return Message({"failed": kind, "text": str(error), **more})
