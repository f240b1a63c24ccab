"""Serves a page to browsers on this machine, and what is new to those who wait for it."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Condition, Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

from miai_graph.errors import ArgumentError

LOOPBACK = "127.0.0.1"
LONGEST_WAIT_SECONDS = 20.0
"""After which a browser is told that there is nothing new, and asks again."""

_PATIENCE_SECONDS = 5.0
"""How long who has asked is thought to be still there; and how long a silent connection is kept."""
_FAREWELL_SECONDS = 1.0
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def check_port(port: Any) -> None:
    """Raise ArgumentError unless it is a number of a port, or 0."""
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < 65536:
        raise ArgumentError(f"expected a port from 0 to 65535; found {port!r}")


class ReportServer:
    """A server that nobody but this machine can reach, in threads of its own, which `close` ends.

    Parameters
    ----------
    make_page : the page that shows given data
    port : where to listen; 0: anywhere that is free

    Raises
    ------
    ArgumentError
        if `port` is no number of a port, or is not free.
    """

    def __init__(self, make_page: Callable[[str], str], port: int = 0) -> None:
        check_port(port)
        self._changed = Condition()
        self._make_page = make_page
        self._data = ""
        self._version = 0
        self._delivered = 0
        self._asked = -math.inf
        self._is_open = True
        try:
            self._server = _Server(self, port)
        except OSError as error:
            raise ArgumentError(
                f"expected a port of {LOOPBACK} that is free; found for {port}: {error}. Choose port=0 for any"
            ) from error
        self._thread = Thread(
            target=self._server.serve_forever, args=(0.05,), name="miai-graph live report", daemon=True
        )
        self._thread.start()

    @property
    def address(self) -> str:
        """For browsers."""
        return f"http://{LOOPBACK}:{self._server.server_port}/"

    @property
    def is_watched(self) -> bool:
        """Whether a browser waits for what is new, or did a moment ago."""
        return time.monotonic() - self._asked < _PATIENCE_SECONDS

    @property
    def version(self) -> int:
        """How often something was published."""
        return self._version

    def publish(self, data: str) -> None:
        """Give the data to all who wait for what is new."""
        with self._changed:
            self._data = data
            self._version += 1
            self._changed.notify_all()

    def close(self) -> None:
        """Stop serving, once those who wait have got the last that was published. May be called again."""
        with self._changed:
            if not self._is_open:
                return
            if self.is_watched:
                self._changed.wait_for(lambda: self._delivered >= self._version, _FAREWELL_SECONDS)
            self._is_open = False
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def page(self) -> bytes:
        """What is shown first."""
        with self._changed:
            self._asked = time.monotonic()
            data = self._data
        return self._make_page(data).encode()

    def data_after(self, version: int) -> tuple[int, bytes] | None:
        """The data and its version, as soon as it is newer than one; None if it has not become so."""
        deadline = time.monotonic() + LONGEST_WAIT_SECONDS
        with self._changed:
            while self._version <= version and self._is_open and time.monotonic() < deadline:
                self._asked = time.monotonic()
                self._changed.wait(1.0)
            return (self._version, self._data.encode()) if self._version > version else None

    def delivered(self, version: int) -> None:
        """Told when a browser has got everything up to a version."""
        with self._changed:
            self._delivered = max(self._delivered, version)
            self._changed.notify_all()


class _Server(ThreadingHTTPServer):
    """Knows its connections, so that silent ones do not hold up its end."""

    daemon_threads = False
    block_on_close = True

    def __init__(self, report: ReportServer, port: int) -> None:
        self.report = report
        self.connections: set[socket.socket] = set()
        super().__init__((LOOPBACK, port), _Handler)
        self.hosts = {f"{name}:{self.server_port}" for name in (LOOPBACK, "localhost")}

    def server_bind(self) -> None:
        # HTTPServer's own asks the network for this machine's name.
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = self.socket.getsockname()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        for connection in tuple(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RD)
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _PATIENCE_SECONDS
    server_version = "miai-graph"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer: the page, or data that is newer than ``after``."""
        # A page of another site, under a name that leads here, must not read what is served.
        if self.headers.get("Host") not in self.server.hosts:
            return self._answer(HTTPStatus.FORBIDDEN, b"expected a request to this machine by its loopback address\n")
        report = self.server.report
        address = urlsplit(self.path)
        if address.path == "/":
            return self._answer(HTTPStatus.OK, report.page(), "text/html; charset=utf-8")
        if address.path != "/data":
            return self._answer(HTTPStatus.NOT_FOUND, b"expected / or /data\n")
        after = parse_qs(address.query).get("after", ["0"])[0]
        version = int(after) if after.isdecimal() else 0
        report.delivered(version)
        found = report.data_after(version)
        if found is None:
            return self._answer(HTTPStatus.NO_CONTENT, b"")
        self._answer(HTTPStatus.OK, found[1], "application/json")
        return report.delivered(found[0])

    def _answer(self, status: HTTPStatus, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing: the terminal is the training's."""
