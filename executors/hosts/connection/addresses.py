"""Addresses of hosts, as users type them and as hosts write them."""

from __future__ import annotations

import re

from miai_graph.errors import ArgumentError

SCHEDULER_PORT = 8786
WORKER_PORT = 8788

_WRITTEN = re.compile(r"(?:(?:tcp|tls)://)?(?:\[(?P<v6>[0-9a-fA-F:.%]+)\]|(?P<name>[^\s:/\[\]]+))(?::(?P<port>\d+))?/?")


def parse_address(text: str, port: int = SCHEDULER_PORT) -> tuple[str, int]:
    """Host and port of an address as a user types it: ``192.168.0.4``, ``name:8786``, ``tcp://…`` or ``tls://…``.

    Raises
    ------
    ArgumentError
        if it is none.
    """
    found = _WRITTEN.fullmatch(text.strip())
    number = int(found["port"] or port) if found else -1
    if found is None or not 0 < number < 2**16:
        raise ArgumentError(
            f"expected the address of a cluster, such as 192.168.0.4:{SCHEDULER_PORT}; found {text!r}. "
            "Type the one that 'miai-graph cluster start' shows"
        )
    return found["v6"] or found["name"], number


def split_address(address: str) -> tuple[str, int]:
    """Machine and port of an address as members of a cluster write it. Hosts in this process have no ports."""
    return parse_address(address) if "://" in address else (address, 0)


def write_address(host: str, port: int) -> str:
    """The address as the members of a cluster write it: always with TLS."""
    return f"tls://[{host}]:{port}" if ":" in host else f"tls://{host}:{port}"
