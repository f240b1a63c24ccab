"""A host of a cluster as a process of its own, which ends with the process that started it."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import Connection
from threading import Thread
from typing import Any, Self

from executors.hosts.connection.credentials import Credentials
from executors.hosts.connection.loading import load
from executors.hosts.connection.loop import new_loop
from executors.processes import launch
from executors.processes.lifeline import end_with_parent
from miai_graph.errors import ExecutorError, MiaiGraphError

STOP_SECONDS = 3.0
"""How long a host may take to say good-bye before it is killed."""

MAKER = "executors.hosts.service:make_service"
"""What makes a host's service: a function of a module, which is called with the host's channel."""

_TARGET = "executors.hosts.connection.host_process:serve"


class HostProcess:
    """A worker in a process that this one started.

    It is begun without knowing its cluster, so that it can load what it needs meanwhile; then it is told to join.
    """

    def __init__(self, threads: int) -> None:
        self._process = launch.start(_TARGET, threads)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def connection(self) -> Connection:
        """Ready to be read when there is news."""
        return self._process.connection

    def join(self, scheduler: str, credentials: Credentials, *, host: str, port: int, maker: str = MAKER) -> None:
        """Tell it which cluster to join, and where to listen; does not wait for it."""
        order = {
            "scheduler": scheduler,
            "credentials": asdict(credentials),
            "host": host,
            "port": port,
            "maker": maker,
        }
        with suppress(OSError):  # it has ended already, which `news` tells
            self.connection.send_bytes(json.dumps(order).encode())

    def news(self, seconds: float | None = None) -> dict[str, str]:
        """What it says next: its ``address`` when it has joined, an ``error``, or why it ``ended``."""
        try:
            if not self.connection.poll(seconds):
                return {"error": f"expected a host to join the cluster; found that it did not within {seconds:g} s"}
            told: dict[str, str] = json.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            return {"ended": f"its process {self._process.describe_exit()}"}
        return told

    def joined(self, seconds: float) -> str:
        """Wait until it has joined; returns its address.

        Raises
        ------
        ExecutorError
            if it does not.
        """
        told = self.news(seconds)
        if "address" not in told:
            raise ExecutorError(told.get("error") or f"expected a host to join the cluster; found that {told['ended']}")
        return told["address"]

    def stop(self) -> None:
        """End it."""
        self._process.stop(STOP_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()


def serve(connection: Connection) -> None:
    """Be a worker: what such a process runs. Ends when the connection is closed, or the scheduler is gone."""
    end_with_parent(connection)
    dask_host = load("connection.dask_host")
    order = json.loads(connection.recv_bytes())
    order["credentials"] = Credentials(**order["credentials"])

    async def work() -> str:
        stop = asyncio.get_running_loop().create_future()
        Thread(target=_watch, args=(connection, asyncio.get_running_loop(), stop), daemon=True).start()
        reason: str = await dask_host.run_worker(
            **order, on_ready=lambda address: _tell(connection, address=address), stop=stop
        )
        return reason

    code = 1
    try:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            _tell(connection, ended=runner.run(work()))
        code = 0
    except MiaiGraphError as error:
        _tell(connection, error=str(error))
    except Exception as error:
        _tell(connection, error=f"expected a host to join the cluster; found {type(error).__name__}: {error}")
    finally:
        os._exit(code)  # whatever threads of a service still compute


def _watch(connection: Connection, loop: asyncio.AbstractEventLoop, stop: asyncio.Future[None]) -> None:
    with suppress(EOFError, OSError):
        connection.recv_bytes()
    with suppress(RuntimeError):  # the loop has ended already
        loop.call_soon_threadsafe(stop.cancel)


def _tell(connection: Connection, **news: str) -> None:
    with suppress(OSError):
        connection.send_bytes(json.dumps(news).encode())
