"""What runs on the machines of a cluster: the worker, with a service behind it, and the scheduler."""

from __future__ import annotations

import asyncio
import errno
import sys
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from threading import Thread
from typing import Any, cast

import dask
from distributed import Scheduler, Worker, WorkerPlugin

from executors.hosts.cluster import CLOCK, HostUnreachableError, Message, ServiceMaker
from executors.hosts.connection.addresses import write_address
from executors.hosts.connection.credentials import Credentials
from executors.hosts.connection.dask_wire import CALL, POST, SETTINGS, Line, dask_security, owned, pack, set_time_limits
from executors.hosts.connection.host_process import MAKER
from executors.hosts.connection.reach import CONNECT_SECONDS
from miai_graph.errors import ExecutorError

SWITCH_SECONDS = 5e-5
"""How long a thread that computes in Python may keep the one that sends and receives waiting."""

JOIN_SECONDS = 30
"""How long the scheduler may take to let a worker in."""

DOUBTFUL_SECONDS = 0.5
"""How long a connection may take to a host that had left: it has come back, or it is never answered."""

_LEFT = "it has left the cluster"
_LIMIT_CHECK_MILLISECONDS = 1000

_REASONS = {
    "worker-handle-scheduler-connection-broken": "its connection with the scheduler ended",
    "worker-heartbeat-missing": "the scheduler had dropped it",
}


class HostPlugin(WorkerPlugin):  # type: ignore[misc]
    """Makes a Dask worker a host: a service, and the handlers by which it is reached.

    Our own workers have it from the start; others get it from the first client.
    """

    name = "miai_graph"
    idempotent = True

    def __init__(self, maker: str = MAKER) -> None:
        self.maker = maker

    def setup(self, worker: Worker) -> None:
        """Start the service. If it runs already, because a client brings the plugin once more, it goes on."""
        if not hasattr(worker, "miai_graph_host"):
            worker.miai_graph_host = _Host(worker, self.maker)

    def teardown(self, worker: Worker) -> None:
        """End the service if the worker ends, too."""
        host = getattr(worker, "miai_graph_host", None)
        if host is not None and worker.status.name in ("closing", "closed", "failed"):
            host.service.close()


class _Host:
    """A worker's handlers, and its service's way to other hosts. Lives on the worker's event loop."""

    def __init__(self, worker: Worker, maker: str) -> None:
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._lines: dict[str, Line] = {}
        self._doubtful: set[str] = set()
        self.service = _resolve(maker)(_Channel(self))
        self._forget_elsewhere = worker.stream_handlers["remove-worker"]
        worker.stream_handlers["remove-worker"] = self._forget
        worker.handlers[CALL] = self._call
        worker.handlers[POST] = self._deliver
        sys.setswitchinterval(SWITCH_SECONDS)

    @property
    def address(self) -> str:
        return str(self._worker.address)

    def soon(self, action: Callable[..., object], *arguments: Any) -> None:
        """Do this on the event loop, unless that has ended, and the worker with it."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(action, *arguments)

    def send(self, address: str, packed: Any) -> None:
        if address not in self._lines:
            seconds = DOUBTFUL_SECONDS if address in self._doubtful else CONNECT_SECONDS
            self._lines[address] = Line(address, self._worker.connection_args, seconds)
        self._lines[address].send(packed).add_done_callback(lambda taken: self._check(address, taken))

    def _check(self, address: str, taken: asyncio.Future[None]) -> None:
        error = None if taken.cancelled() else taken.exception()
        if error is None:
            self._doubtful.discard(address)
        elif address in self._doubtful:
            self.service.unreachable(address, _LEFT)
        else:
            self.service.unreachable(address, error.reason if isinstance(error, HostUnreachableError) else str(error))

    async def _call(self, name: str, message: Message) -> Mapping[str, Any]:
        if name == CLOCK:
            return {"message": pack(Message({"ns": time.perf_counter_ns()}))}
        answer: asyncio.Future[Mapping[str, Any]] = self._loop.create_future()
        Thread(target=self._handle, args=(name, message, answer), name=f"miai_graph {name}", daemon=True).start()
        return await answer

    def _handle(self, name: str, message: Message, answer: asyncio.Future[Mapping[str, Any]]) -> None:
        self.soon(_settle, answer, _guarded(lambda: self.service.handle(name, message)))

    async def _deliver(self, message: Message) -> Mapping[str, Any]:
        return _guarded(lambda: self._delivered(message))

    def _delivered(self, message: Message) -> Message:
        self.service.deliver(message)
        return Message()

    def _forget(self, worker: str, **details: Any) -> None:
        """Another worker has left the cluster, or was dropped."""
        self._forget_elsewhere(worker=worker, **details)
        self._doubtful.add(worker)
        if line := self._lines.pop(worker, None):
            line.close(HostUnreachableError(worker, _LEFT))


class _Channel:
    """A service's way to the others, from any thread."""

    def __init__(self, host: _Host) -> None:
        self._host = host

    @property
    def address(self) -> str:
        return self._host.address

    def post(self, address: str, message: Message) -> None:
        kept = owned(message)
        if address == self.address:
            self._host.soon(self._host.service.deliver, kept)
        else:
            self._host.soon(self._host.send, address, pack(kept))


class _Quiet:
    """Of a server: it has no web page. Dask would open a port without encryption for it even if it is empty."""

    def start_http_server(self, *_: Any, **__: Any) -> None:
        """Do nothing."""


class _Worker(_Quiet, Worker):  # type: ignore[misc]
    """A worker that remembers why it ended."""

    end_reason = "it was stopped"

    async def close(self, *arguments: Any, reason: str = "", **options: Any) -> Any:
        self.end_reason = _REASONS.get(reason, self.end_reason)
        return await super().close(*arguments, reason=reason, **options)


class _Scheduler(_Quiet, Scheduler):  # type: ignore[misc]
    """A scheduler without a web page."""


async def run_worker(
    scheduler: str,
    credentials: Credentials,
    *,
    host: str,
    port: int,
    maker: str = MAKER,
    on_ready: Callable[[str], None],
    stop: Awaitable[Any],
) -> str:
    """Be a host of a cluster until `stop` is done or the scheduler is gone; returns why it ended.

    Parameters
    ----------
    scheduler : its address
    host, port : where to listen; port 0 is any free one
    on_ready : told the address as soon as others can call
    """
    dask.config.set(SETTINGS)
    with _private_folder() as folder, _told_clearly(host, port):
        worker = await _Worker(
            scheduler,
            nthreads=1,
            host=write_address(host, port).removesuffix(f":{port}"),
            port=port,
            security=dask_security(credentials),
            memory_limit=0,
            death_timeout=JOIN_SECONDS,
            local_directory=folder,
            plugins=(HostPlugin(maker),),
            dashboard=False,
        )
    on_ready(worker.address)
    ends = [asyncio.ensure_future(end) for end in (stop, worker.finished())]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for end in ends:
        end.cancel()
    await worker.close(executor_wait=False)
    return str(worker.end_reason)


async def start_scheduler(credentials: Credentials, *, host: str, port: int) -> Scheduler:
    """Start a scheduler on the running event loop; it ends by its `close`.

    Parameters
    ----------
    host, port : where to listen; an empty host is all addresses of this machine, port 0 any free one
    """
    set_time_limits()
    with dask.config.set(SETTINGS), _private_folder() as folder, _told_clearly(host, port):
        scheduler = _Scheduler(
            host=write_address(host or "0.0.0.0", port).removesuffix(f":{port}"),
            port=port,
            protocol="tls",
            security=dask_security(credentials),
            dashboard=False,
            local_directory=folder,
        )
        await scheduler
    scheduler.periodic_callbacks["worker-ttl"].callback_time = _LIMIT_CHECK_MILLISECONDS
    return scheduler


@contextmanager
def _private_folder() -> Iterator[str]:
    """Where a server of Dask may put files while it starts. It would keep them, and import from there, in a folder that
    is shared with others; ours needs none."""
    with tempfile.TemporaryDirectory(prefix="miai-graph-") as folder:
        yield folder
    sys.path[:] = [entry for entry in sys.path if not entry.startswith(folder)]


@contextmanager
def _told_clearly(host: str, port: int) -> Iterator[None]:
    """Dask wraps what went wrong at the start in errors of its own."""
    try:
        yield
    except RuntimeError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE:
            raise ExecutorError(
                f"expected port {port} to be free; found it in use. Does a cluster run here already? End it, or choose "
                "another port (--worker-port, --port)"
            ) from error
        if isinstance(cause, OSError) and cause.errno == errno.EADDRNOTAVAIL:
            raise ExecutorError(f"expected an address of this machine; found {host}") from error
        raise ExecutorError(f"expected to start at port {port}; found {type(cause).__name__}: {cause}") from error


def _resolve(maker: str) -> ServiceMaker:
    module, _, function = maker.partition(":")
    return cast(ServiceMaker, getattr(import_module(module), function))


def _guarded(handle: Callable[[], Message]) -> Mapping[str, Any]:
    """The handler's reply. Its arrays are the service's own again as soon as this returns."""
    try:
        return {"message": pack(owned(handle()))}
    except BaseException as error:
        text = f"{type(error).__name__}: {error}"
        return {"failure": text, "lines": "".join(traceback.format_exception(error))}


def _settle(answer: asyncio.Future[Any], value: Any) -> None:
    if not answer.done():
        answer.set_result(value)
