"""Emulated hosts: network namespaces of Linux, joined by links of a given speed.

Each host is a namespace with an interface of its own; a bridge in a further namespace is the switch between them. Both
ends of each link let through only so many bits a second. Nothing outside these namespaces is changed. Making them needs
root, which ``unshare --user --map-root-user --net --mount`` also gives, with a file system of one's own on ``/run``.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from miai_graph.errors import ArgumentError, ExecutorError

INTERFACE = "eth0"
"""What a host's interface is called within it."""

_NAMESPACES = Path("/run/netns")
_PROGRAMS = ("ip", "tc", "nsenter")
_SWITCH = "switch0"
_MOST_HOSTS = 250
_OWN_NAME = re.compile(r"miai-(\d+)-")
# What an idle link sends at once. More would let short messages pass faster than the link; with less, the timers of the
# kernel keep long ones from reaching its speed.
_BURST_SECONDS, _LEAST_BURST_BYTES = 0.4e-3, 2000
_QUEUE_SECONDS = 0.05
_numbers = itertools.count()


class EmulatedNetwork:
    """Hosts that reach each other, and nobody else, within a ``with`` block.

    At its end the processes on the hosts are killed. Networks that a killed process has left are removed when the next
    one is made.

    Parameters
    ----------
    hosts : how many. Where a user's process takes part, it may run on one of them, or on one more.
    bits_per_second : the speed of each host's link, in each direction

    Attributes
    ----------
    addresses : of the hosts, in their order

    Raises
    ------
    ArgumentError, ExecutorError
        if an argument is out of range, or the block is entered where hosts cannot be emulated (see `can_emulate`).
    """

    def __init__(self, hosts: int = 2, bits_per_second: float = 1e9) -> None:
        if not 1 <= hosts <= _MOST_HOSTS:
            raise ArgumentError(f"expected 1 to {_MOST_HOSTS} hosts; found {hosts}")
        if not bits_per_second > 0:
            raise ArgumentError(f"expected a positive number of bits per second; found {bits_per_second}")
        self.bits_per_second = bits_per_second
        self.addresses = tuple(f"10.0.0.{number}" for number in range(1, hosts + 1))
        prefix = f"miai-{os.getpid()}-{next(_numbers)}"
        self._switch = f"{prefix}-switch"
        self._names = [f"{prefix}-{host}" for host in range(hosts)]
        self._processes: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> Self:
        reason = _what_is_missing()
        if reason is not None:
            raise ExecutorError(_cannot(reason))
        _sweep()
        try:
            self._build()
        except subprocess.CalledProcessError as error:
            self._remove()
            raise ExecutorError(_cannot(_refusal(error))) from error
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._remove()

    def run(self, host: int, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a command on a host.

        Parameters
        ----------
        host : its number, from 0
        options : of `subprocess.Popen`

        Returns
        -------
        The command's own process: to signal it is to signal the command.
        """
        # Unlike `ip netns exec` this leaves /sys alone, where a process finds how many cores it may use.
        enter = ["nsenter", f"--net={_NAMESPACES / self._names[host]}", "--"]
        process = subprocess.Popen([*enter, *command], **options)
        self._processes.append(process)
        return process

    def link_down(self, host: int) -> None:
        """Pull a host's cable: it reaches nobody, and nobody reaches it."""
        self._set_port(host, "down")

    def link_up(self, host: int) -> None:
        """Put a host's cable back in."""
        self._set_port(host, "up")

    def _set_port(self, host: int, state: str) -> None:
        _ip("-n", self._switch, "link", "set", "dev", _port(host), state)

    def _build(self) -> None:
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "dev", _SWITCH, "type", "bridge")
        _ip("-n", self._switch, "link", "set", "dev", _SWITCH, "up")
        for host, (name, address) in enumerate(zip(self._names, self.addresses, strict=True)):
            _ip("netns", "add", name)
            peer = ("peer", "name", INTERFACE, "netns", name)
            _ip("-n", self._switch, "link", "add", "dev", _port(host), "type", "veth", *peer)
            _ip("-n", self._switch, "link", "set", "dev", _port(host), "master", _SWITCH, "up")
            _ip("-n", name, "address", "add", f"{address}/24", "dev", INTERFACE)
            for interface in ("lo", INTERFACE):
                _ip("-n", name, "link", "set", "dev", interface, "up")
            self._limit(name, INTERFACE)
            self._limit(self._switch, _port(host))

    def _limit(self, name: str, interface: str) -> None:
        """Let only so much leave through an interface."""
        bytes_per_second = self.bits_per_second / 8
        burst = max(bytes_per_second * _BURST_SECONDS, _LEAST_BURST_BYTES)
        queue = max(bytes_per_second * _QUEUE_SECONDS, 2 * burst)
        shape = ["rate", f"{self.bits_per_second:.0f}bit", "burst", f"{burst:.0f}", "limit", f"{queue:.0f}"]
        _run("tc", "-n", name, "qdisc", "add", "dev", interface, "root", "tbf", *shape)

    def _remove(self) -> None:
        for process in self._processes:
            process.kill()
        for name in (*self._names, self._switch):
            _delete(name)
        for process in self._processes:
            process.wait()


def can_emulate() -> str | None:
    """Why hosts cannot be emulated here, as a clause; None if they can."""
    try:
        with EmulatedNetwork(hosts=1):
            return None
    except ExecutorError as error:
        cause = error.__cause__
        return _refusal(cause) if isinstance(cause, subprocess.CalledProcessError) else _what_is_missing()


def _what_is_missing() -> str | None:
    if sys.platform != "linux":
        return "this is not Linux"
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    return f"there is no program {missing[0]!r}" if missing else None


def _cannot(reason: str) -> str:
    return (
        f"expected a machine that can emulate hosts; found that {reason}. Run this as root on Linux, with iproute2 and "
        "util-linux installed"
    )


def _refusal(error: subprocess.CalledProcessError) -> str:
    return f"`{' '.join(error.cmd)}` failed ({' '.join(error.stderr.split())})"


def _sweep() -> None:
    """Remove what processes have left that were killed."""
    for name in _existing():
        owner = _OWN_NAME.match(name)
        if owner is not None and not Path("/proc", owner[1]).exists():
            _delete(name)


def _existing() -> list[str]:
    return [path.name for path in _NAMESPACES.iterdir()] if _NAMESPACES.exists() else []


def _delete(name: str) -> None:
    """Kill what runs in a namespace, and remove it; nothing if it is not there, or another process removes it too."""
    if not (_NAMESPACES / name).exists():
        return
    with suppress(subprocess.CalledProcessError):
        for pid in _pids(name):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _ip("netns", "delete", name)


def _pids(name: str) -> Iterator[int]:
    """The processes of a namespace, until it has none: one that is killed may just have started another."""
    while found := [int(pid) for pid in _ip("netns", "pids", name).split()]:
        yield from found


def _port(host: int) -> str:
    """The switch's end of a host's link."""
    return f"port{host}"


def _ip(*arguments: str) -> str:
    return _run("ip", *arguments)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
