"""Messages over Dask's connections, for both ends: how they are written, and the line on which posts travel.

Content travels as MessagePack and arrays as their bytes; nothing is pickled. What Dask and its cluster are told to do
differently from their defaults stands here, too.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dask
import distributed
import msgpack
import numpy as np
from distributed.comm import Comm, connect
from distributed.comm.core import FatalCommClosedError
from distributed.protocol import Serialized, register_serialization_family

from executors.hosts.cluster import HostUnreachableError, Message, RemoteError
from executors.hosts.connection.addresses import parse_address
from executors.hosts.connection.credentials import Credentials
from executors.hosts.connection.reach import CONNECT_SECONDS
from miai_graph.errors import ArgumentError
from miai_graph.op import Array

CALL, POST = "miai_call", "miai_post"
"""The handlers of a worker."""

SILENCE_SECONDS = 6
"""A host that has not been heard of for so long is dropped."""

SETTINGS: Mapping[str, Any] = {
    "distributed.comm.compression": False,
    "distributed.comm.timeouts.connect": f"{CONNECT_SECONDS}s",
    "distributed.comm.timeouts.tcp": "11s",
    "distributed.scheduler.worker-ttl": f"{SILENCE_SECONDS}s",
    "distributed.scheduler.http.routes": [],
    "distributed.scheduler.work-stealing": False,
    "distributed.scheduler.active-memory-manager.start": False,
    "distributed.worker.http.routes": [],
    "distributed.worker.profile.enabled": False,
    "distributed.worker.use-file-locking": False,
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.disk": False,
    "distributed.admin.system-monitor.gil.enabled": False,
    "distributed.diagnostics.nvml": False,
}
"""How a cluster of miai_graph differs from other Dask clusters: nothing listens but the connections' ports, the lost
are noticed within seconds, and nothing samples what the threads do."""

_FAMILY = "miai_graph"
# Dask reads each buffer after the first one into memory of its own, which is aligned as arrays should be.
_FIRST_BUFFER = bytearray(1)


def set_time_limits() -> None:
    """Let connections of this process notice within seconds that the other side is gone."""
    dask.config.set({key: value for key, value in SETTINGS.items() if ".timeouts." in key})


def dask_security(credentials: Credentials) -> distributed.Security:
    """The same credentials for each role, and TLS 1.3 always."""
    roles = ("client", "scheduler", "worker")
    certificates = {f"tls_{role}_cert": credentials.certificate for role in roles}
    keys = {f"tls_{role}_key": credentials.key for role in roles}
    return distributed.Security(
        require_encryption=True,
        tls_ca_file=credentials.authority,
        tls_min_version=ssl.TLSVersion.TLSv1_3,
        tls_max_version=ssl.TLSVersion.TLSv1_3,
        **certificates,
        **keys,
    )


def pack(message: Message) -> Serialized:
    """A message as Dask sends it. Arrays that are contiguous are not copied; they must stay as they are until sent.

    Raises
    ------
    ArgumentError
        if it holds what is no plain data.
    """
    arrays = [np.asarray(array) for array in message.arrays]
    try:
        content = msgpack.packb(dict(message.content), default=_as_plain)
    except (TypeError, ValueError, OverflowError) as error:
        raise ArgumentError(f"expected plain data in a message; found {error}") from error
    header = {
        "serializer": _FAMILY,
        "content": content,
        "arrays": [(_plain_dtype(array), array.shape) for array in arrays],
    }
    return Serialized(header, [_FIRST_BUFFER, *map(_bytes_of, arrays)])


def owned(message: Message) -> Message:
    """The message with copies of its arrays."""
    return Message(message.content, [np.array(array, order="C") for array in message.arrays])


def answer_or_raise(address: str, reply: Any) -> Message:
    """What a handler has answered.

    Raises
    ------
    RemoteError
        if it has failed.
    HostUnreachableError
        if there is no such handler.
    """
    if not isinstance(reply, Mapping):
        raise HostUnreachableError(address, "it is a Dask worker without miai_graph. Install miai-graph there")
    if "failure" in reply:
        raise RemoteError(address, reply["failure"], reply["lines"])
    answer: Message = reply["message"]
    return answer


async def knock(address: str, seconds: float = CONNECT_SECONDS) -> None:
    """Raise OSError at once if nobody listens there, which Dask would try again and again for seconds."""
    _, writer = await asyncio.wait_for(asyncio.open_connection(*parse_address(address)), seconds)
    writer.close()


def unreachable(address: str, error: BaseException) -> HostUnreachableError:
    """What an error of a connection means, as a clause."""
    if any(isinstance(cause, FatalCommClosedError) for cause in _causes(error)):
        reason = "it has another token or certificate"
    elif isinstance(error, ConnectionRefusedError):
        reason = "nobody listens there any more"
    elif isinstance(error, TimeoutError) or "Timed out trying to connect" in str(error):
        reason = "no connection with it could be made. Is it on, and does its firewall let its port through?"
    else:
        reason = "its connection broke"
    found = HostUnreachableError(address, reason)
    found.__cause__ = error
    return found


class Line:
    """The connection on which one host's posts to another travel: in order, and as many at once as there are.

    It lives on the event loop; it is made by the first post, and again by the first one after it broke.
    """

    def __init__(
        self, address: str, connection_arguments: Mapping[str, Any], connect_seconds: float = CONNECT_SECONDS
    ) -> None:
        self._address = address
        self._connect_seconds = connect_seconds
        self._arguments = connection_arguments
        self._queue: deque[tuple[Serialized, asyncio.Future[None]]] = deque()
        self._unanswered: deque[asyncio.Future[None]] = deque()
        self._comm: Comm | None = None
        self._writer: asyncio.Task[None] | None = None
        self._reader: asyncio.Task[None] | None = None

    def send(self, packed: Serialized) -> asyncio.Future[None]:
        """Send a message. The future is done when the other side has taken it, or raises `HostUnreachableError`."""
        taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((packed, taken))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())
        return taken

    def close(self, error: HostUnreachableError) -> None:
        """Let go of the connection; what is under way raises this."""
        if self._comm is not None:
            self._comm.abort()
        for task in (self._writer, self._reader):
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        self._comm = self._writer = self._reader = None
        for taken in (*self._unanswered, *(taken for _, taken in self._queue)):
            if not taken.done():
                taken.set_exception(error)
        self._unanswered.clear()
        self._queue.clear()

    async def _write(self) -> None:
        try:
            comm = self._comm or await self._connect()
            while self._queue:
                packed, taken = self._queue.popleft()
                self._unanswered.append(taken)
                await comm.write({"op": POST, "message": packed})
            self._writer = None
        except OSError as error:
            self.close(unreachable(self._address, error))

    async def _connect(self) -> Comm:
        await knock(self._address, self._connect_seconds)
        comm = await connect(self._address, timeout=self._connect_seconds, **self._arguments)
        comm.name = "miai_graph posts"
        comm.allow_offload = False
        self._comm = comm
        self._reader = asyncio.create_task(self._read(comm))
        return comm

    async def _read(self, comm: Comm) -> None:
        """Each post is answered; that the connection is broken is heard at once, too."""
        try:
            while True:
                self._take(await comm.read())
        except OSError as error:
            self.close(unreachable(self._address, error))

    def _take(self, reply: Any) -> None:
        taken = self._unanswered.popleft()
        if taken.done():
            return
        try:
            answer_or_raise(self._address, reply)
        except (HostUnreachableError, RemoteError) as error:
            taken.set_exception(error)
        else:
            taken.set_result(None)


def _unpack(header: Mapping[str, Any], frames: Sequence[Any]) -> Message:
    content = msgpack.unpackb(header["content"], strict_map_key=False)
    pairs = zip(header["arrays"], frames[1:], strict=True)
    return Message(content, [_array(np.dtype(dtype), shape, frame) for (dtype, shape), frame in pairs])


def _array(dtype: np.dtype[Any], shape: tuple[int, ...], frame: Any) -> Array:
    array: Array = np.ndarray(shape, dtype, frame) if len(frame) else np.empty(shape, dtype)
    return array if array.flags.aligned and array.flags.writeable else array.copy()


def _bytes_of(array: Array) -> memoryview:
    if not array.nbytes:
        return memoryview(b"")
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _plain_dtype(array: Array) -> str:
    if array.dtype.hasobject or array.dtype.fields is not None:
        raise ArgumentError(f"expected arrays of numbers, truth values or texts in a message; found {array.dtype}")
    return array.dtype.str


def _as_plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__}: {value!r:.60}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _packed_already(_: object) -> Any:
    raise NotImplementedError


register_serialization_family(_FAMILY, _packed_already, _unpack)
