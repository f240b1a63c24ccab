"""What hosts are to each other and to the user's process: services that are called, and channels for values.

Nothing here knows how messages travel. `dask_cluster` sends them over authenticated connections between machines,
`in_process` hands them over within one process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from miai_graph.errors import MiaiGraphError
from miai_graph.op import Array

CLOCK = "clock"
"""The call that a host's end of the connection answers by itself and at once: ``{"ns": perf_counter_ns()}``."""


@dataclass(frozen=True)
class Message:
    """What is said: plain data, as JSON could hold it, and arrays beside it."""

    content: Mapping[str, Any] = field(default_factory=dict)
    arrays: Sequence[Array] = ()


class Service(Protocol):
    """What answers on a host."""

    def handle(self, name: str, message: Message) -> Message:
        """Answer a call from the user's process. Each call has a thread of its own, and may take long."""
        ...

    def deliver(self, message: Message) -> None:
        """Take what another host, or the user's process, has posted. Must not wait for anything."""
        ...

    def unreachable(self, address: str, reason: str) -> None:
        """What was posted to that host could not be delivered."""
        ...

    def close(self) -> None:
        """End whatever is going on."""
        ...


class Channel(Protocol):
    """A host's way to the others."""

    @property
    def address(self) -> str:
        """This host's own."""
        ...

    def post(self, address: str, message: Message) -> None:
        """Send to another host's `Service.deliver`, or one's own, and do not wait. The arrays may be changed as soon as
        this returns."""
        ...


ServiceMaker = Callable[[Channel], Service]


class HostUnreachableError(MiaiGraphError):
    """A host's connection ended, or could not be made.

    Attributes
    ----------
    address, reason : which, and as a clause why
    """

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(f"expected host {address} to answer; found that {reason}")
        self.address = address
        self.reason = reason


class RemoteError(MiaiGraphError):
    """A service raised. Its text is what it raised; `lines` is the traceback there."""

    def __init__(self, address: str, text: str, lines: str) -> None:
        super().__init__(f"host {address}: {text}")
        self.address = address
        self.text = text
        self.lines = lines


class Cluster(ABC):
    """The hosts, as the user's process sees them."""

    @property
    @abstractmethod
    def addresses(self) -> Sequence[str]:
        """Of the hosts that are there now, in the order in which they joined.

        Raises
        ------
        ClusterLostError
            if nobody knows any more, because the scheduler is gone.
        """

    @abstractmethod
    def call(self, address: str, name: str, message: Message | None = None) -> Future[Message]:
        """Call a host's service. The future raises `HostUnreachableError` or `RemoteError`; it ends for certain only
        when the host answers or its connection breaks, so wait for it with a time limit."""

    @abstractmethod
    def post(self, address: str, message: Message) -> Future[None]:
        """Send to a host's `Service.deliver`. The arrays may be changed when the future is done."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the hosts; those that were started for this cluster end."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
