"""A service for tests of the transport: it does what its calls say."""

from __future__ import annotations

import os
import queue
import threading
import time
from typing import Any

import psutil

from executors.hosts.cluster import Channel, Message

MAKER = "hosts_echo:make_service"


def make_service(channel: Channel) -> Echo:
    return Echo(channel)


class Echo:
    """Answers calls named as its methods; what was posted is kept until somebody asks for it."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.posted: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.lost: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self.opened = threading.Semaphore(0)

    def handle(self, name: str, message: Message) -> Message:
        return getattr(self, name)(message)

    def deliver(self, message: Message) -> None:
        if message.content.get("fail"):
            raise ValueError("not this one")
        self.posted.put(message)

    def unreachable(self, address: str, reason: str) -> None:
        self.lost.put((address, reason))

    def close(self) -> None:
        self.opened.release()

    def echo(self, message: Message) -> Message:
        return message

    def facts(self, message: Message) -> Message:
        process = psutil.Process()
        listening = [entry.laddr for entry in process.net_connections() if entry.status == psutil.CONN_LISTEN]
        return Message(
            {
                "pid": os.getpid(),
                "address": self.channel.address,
                "listening": [[ip, port] for ip, port in listening],
                "thread": threading.get_ident(),
            }
        )

    def described(self, message: Message) -> Message:
        """What arrays are like here."""
        return Message({"arrays": [_describe(array) for array in message.arrays]}, message.arrays)

    def fail(self, message: Message) -> Message:
        raise ValueError(message.content["text"])

    def gate(self, message: Message) -> Message:
        """Wait until another call opens it."""
        self.opened.acquire(timeout=60)
        return message

    def open(self, message: Message) -> Message:
        self.opened.release()
        return message

    def taken(self, message: Message) -> Message:
        """What was posted next."""
        return self.posted.get(timeout=20)

    def drain(self, message: Message) -> Message:
        """Wait until so many were posted."""
        for _ in range(message.content["count"]):
            self.posted.get(timeout=20)
        return Message()

    def missed(self, message: Message) -> Message:
        """Which host could not be reached, and why."""
        address, reason = self.lost.get(timeout=20)
        return Message({"address": address, "reason": reason})

    def forward(self, message: Message) -> Message:
        """Post to another host so many times, numbered; the arrays are overwritten at once."""
        arrays = [array.copy() for array in message.arrays]
        for number in range(message.content["count"]):
            self.channel.post(message.content["to"], Message({"number": number}, arrays))
            for array in arrays:
                array.fill(0)
                array[...] = array + number + 1
        return Message()

    def pinged(self, message: Message) -> Message:
        """Seconds a round trip to another host and back, and a megabyte there."""
        to, rounds = message.content["to"], message.content["rounds"]
        started = time.perf_counter()
        for _ in range(rounds):
            self.channel.post(to, Message({"back": self.channel.address}, message.arrays))
            self.posted.get(timeout=20)
        return Message({"seconds": (time.perf_counter() - started) / rounds})

    def ponged(self, message: Message) -> Message:
        """The other end of `pinged`."""
        for _ in range(message.content["rounds"]):
            found = self.posted.get(timeout=20)
            self.channel.post(found.content["back"], Message({}, found.arrays))
        return Message()


def _describe(array: Any) -> list[Any]:
    return [array.dtype.str, list(array.shape), bool(array.flags.writeable), bool(array.flags.aligned)]
