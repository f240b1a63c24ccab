"""Whether a cluster can be reached from this machine, and by what address this machine is seen."""

from __future__ import annotations

import socket
import ssl

import psutil

from executors.hosts.connection.addresses import parse_address
from executors.hosts.connection.credentials import Credentials
from miai_graph.errors import ArgumentError, ExecutorError

CONNECT_SECONDS = 5.0
"""How long a connection may take until it is there."""


def local_address_towards(address: str, credentials: Credentials) -> str:
    """Knock at a scheduler's door, and tell by which of its own addresses this machine got there.

    Raises
    ------
    ArgumentError
        if it does not take these credentials.
    ExecutorError
        if it cannot be reached: one sentence says why.
    """
    host, port = parse_address(address)
    try:
        with socket.create_connection((host, port), CONNECT_SECONDS) as plain:
            own = plain.getsockname()[0]
            with credentials.context().wrap_socket(plain) as secure:
                # In TLS 1.3 the other side's opinion of our certificate comes after the handshake.
                if not secure.recv(1):
                    raise ConnectionResetError("the connection was closed")
    except OSError as error:
        if _means_other_token(error):
            raise ArgumentError(
                f"expected the token of the cluster at {host}:{port}; found that it has another one. "
                "Type the one that its 'miai-graph cluster start' has shown"
            ) from None
        raise ExecutorError(f"expected a cluster at {host}:{port}; found {_obstacle(error, port)}") from None
    return own


def own_addresses() -> list[str]:
    """The addresses of this machine in its networks, the likeliest to be reached by others first."""
    found = [
        entry.address
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family == socket.AF_INET and not entry.address.startswith(("127.", "169.254.")) and _is_up(name)
    ]
    route = _address_of_default_route()
    return sorted(dict.fromkeys(found), key=lambda address: address != route)


def _is_up(interface: str) -> bool:
    state = psutil.net_if_stats().get(interface)
    return state is None or state.isup


def _address_of_default_route() -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address that is nobody's; nothing is sent
        except OSError:
            return None
        return str(probe.getsockname()[0])


def _means_other_token(error: OSError) -> bool:
    reason = getattr(error, "reason", None) or ""
    return isinstance(error, ssl.SSLCertVerificationError) or "UNKNOWN_CA" in reason


def _obstacle(error: OSError, port: int) -> str:
    if isinstance(error, socket.gaierror):
        return "no machine of that name. Type its address in numbers"
    if isinstance(error, ConnectionRefusedError):
        return "nobody listening there. Is it running ('miai-graph cluster start'), and is that its port?"
    if isinstance(error, TimeoutError):
        return (
            f"no answer within {CONNECT_SECONDS:g} s. Is the machine on and in the same network, and does its "
            f"firewall let port {port} through?"
        )
    if isinstance(error, ssl.SSLError | ConnectionError):
        return "somebody there who is not a cluster of miai_graph, or does not accept these certificates"
    return f"{type(error).__name__}: {error}"
