"""How a worker that sleeps is woken: by an event that counts, where the system has such, else by an empty message.

A message would do everywhere, but Linux takes one through a socket for a sign that the sender is about to sleep, and
lets the receiver run on the sender's core: then both share one while the other is idle.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import connection as connections
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from weakref import finalize

WAKE_UP = b""
HAS_BELLS = hasattr(os, "eventfd")


class Bell:
    """Wakes one process. It may be given to others, who then can ring it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        finalize(self, os.close, descriptor)

    @classmethod
    def create(cls) -> Bell:
        return cls(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))

    def ring(self) -> None:
        """Wake the process."""
        os.eventfd_write(self.descriptor, 1)

    def send(self, connection: Connection, pid: int) -> None:
        """Give it to the process at the other end, which must `receive` it."""
        send_handle(connection, self.descriptor, pid)
        os.set_blocking(connection.fileno(), True)

    @classmethod
    def receive(cls, connection: Connection) -> Bell:
        """What the other end sends."""
        return cls(recv_handle(connection))


class Sleeper:
    """Sleeps until its bell rings, or there is something to read.

    Parameters
    ----------
    bell : None where the system has none: then it is rung by messages
    """

    def __init__(self, peers: Sequence[Connection], bell: Bell | None) -> None:
        self._peers = peers
        self._bell = bell
        self._places = {peer.fileno(): place for place, peer in enumerate(peers)} if bell else {}
        if bell is not None:
            self._poll = select.poll()
            for descriptor in (bell.descriptor, *self._places):
                self._poll.register(descriptor, select.POLLIN)

    def sleep(self) -> list[int]:
        """The places of those who said something, or are gone."""
        if self._bell is None:
            return [self._peers.index(ready) for ready in connections.wait(self._peers)]
        found = [descriptor for descriptor, _ in self._poll.poll()]
        if self._bell.descriptor in found:
            os.eventfd_read(self._bell.descriptor)
        return [self._places[descriptor] for descriptor in found if descriptor in self._places]


def ringing(bell: Bell | None, connection: Connection) -> Callable[[], object]:
    """What to call to wake the process at the other end of a connection."""
    return bell.ring if bell is not None else partial(connection.send_bytes, WAKE_UP)
